"""The teacher: a pretrained classifier, fine-tuned where it does not know the task yet."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from nni_bertnas.config import TaskSettings, TeacherSettings, resolve_boundaries
from nni_bertnas.data.batches import Batch, TokenDataset, make_loader, model_inputs
from nni_bertnas.data.loading import load_checked, new_head, unknown_share
from nni_bertnas.data.models import load_config, load_tokenizer, resolve_model
from nni_bertnas.data.rows import plain_label
from nni_bertnas.data.task_data import TaskData
from nni_bertnas.data.tasks import TaskSpec, task_note, task_spec
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.errors import ConfigError
from nni_bertnas.machine import Span
from nni_bertnas.tracking.tracker import Progress, unwatched
from nni_bertnas.training.losses import Balance, label_count, label_loss, over_ranks
from nni_bertnas.training.metrics import Scorer, evaluate_classifier
from nni_bertnas.training.optimizers import adamw_linear
from nni_bertnas.training.trainer import Clock, EpochReport, KeepBest, Report, StepReport, fit, pl

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROWS_CHECKED = 1000  # of train, for word pieces that the tokenizer does not know:
_UNKNOWN_ERROR, _UNKNOWN_WARNING = 0.5, 0.1  # shares of them
_log = logging.getLogger(__name__)


def label_map(
    config: Any, label_names: Sequence[str], mode: str, own_labels: Sequence[str] | None = None
) -> list[int] | None:
    """How a model's outputs go with the task's labels.

    Args:
        config: The Hugging Face configuration of the model.
        label_names: The task's, in the data's order; empty for regression.
        mode: `auto`, `always` or `never` fine-tune.
        own_labels: The model's, in its own order, where its configuration does not name them.

    Returns:
        For every label of the data, the model's output of the same name; None if the model has to learn the task.

    Raises:
        ConfigError: It may not be fine-tuned but has other labels.
    """
    if mode == "always":
        return None
    has_head = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    own = list(own_labels or (str(config.id2label[number]) for number in sorted(config.id2label)))
    if own_labels is not None and len(own) != config.num_labels:
        raise ConfigError(f"teacher.labels: the model has {config.num_labels} outputs, got {len(own)} names")
    if has_head and not label_names and len(own) == 1:
        return [0]
    places = {plain_label(name): number for number, name in enumerate(own)}
    if has_head and label_names and set(places) == {plain_label(name) for name in label_names}:
        return [places[plain_label(name)] for name in label_names]
    theirs = ", ".join(label_names) or "one score"
    if mode == "never" or own_labels is not None:
        remedy = "name its outputs in teacher.labels, or " if has_head and own_labels is None else ""
        raise ConfigError(
            f"teacher.model: {'its labels are ' + ', '.join(own) if has_head else 'it has no classifier'}, "
            f"the task's are {theirs}; {remedy}let it learn the task with "
            "teacher.fine_tune: always"
        )
    if has_head:
        _log.warning(
            "teacher.model: its labels are %s, the task's are %s: it learns the task with a new head; to keep its own, "
            "name its outputs in teacher.labels",
            ", ".join(own),
            theirs,
        )
    return None


@torch.no_grad()
def reorder_outputs(model: "PreTrainedModel", order: Sequence[int]) -> None:
    """Put a classifier's outputs into another order: output i becomes what output `order[i]` was.

    Raises:
        ConfigError: Its last linear layer is not the one that gives the logits.
    """
    if list(order) == list(range(len(order))):
        return
    ids = torch.arange(5, 9)[None]
    before = model.eval()(ids).logits
    last = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == len(order)]
    for parameter in last[-1].parameters() if last else ():
        parameter.copy_(parameter[list(order)])
    if not torch.allclose(model(ids).logits, before[:, list(order)], atol=1e-5):
        raise ConfigError(
            f"teacher.model: the outputs of {type(model).__name__} cannot be put into the data's order of labels; "
            "set teacher.fine_tune: always to train it anew"
        )


class _FineTuning(pl.LightningModule):
    def __init__(
        self, model: "PreTrainedModel", settings: TeacherSettings, spec: TaskSpec, balance: Balance, steps: int
    ) -> None:
        super().__init__()
        self.model = model
        self.balance = balance
        self.settings = settings
        self.scorer = Scorer(spec)
        self.steps = steps

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        assert batch.labels is not None
        loss = label_loss(self.model(**model_inputs(self.model, batch)).logits, batch.labels, self.balance)
        loss = loss * over_ranks(batch, [label_count(batch.labels, self.balance)])[0]
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=batch.num_rows, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if not batch.spare:
            self.scorer.add(self.model(**model_inputs(self.model, batch)).logits, batch.labels)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"dev_{name}": value for name, value in self.scorer.scores().items()})

    def configure_optimizers(self) -> Any:
        settings = self.settings
        return adamw_linear(
            self.model.parameters(), settings.learning_rate, settings.weight_decay, settings.warmup, self.steps
        )


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A teacher as it was made.

    Attributes:
        model: In eval mode.
        tokenizer: Its own.
        fine_tuned: Whether it had to learn the task.
        scores: The task's metrics by split.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    fine_tuned: bool
    scores: dict[str, dict[str, float]]


Check = Callable[["PreTrainedModel", "PreTrainedTokenizerBase"], None]


def make_teacher(
    settings: TeacherSettings, task: TaskSettings, data: TaskData, seed: int, report: Report, check: Check,
    progress: Progress = unwatched,
) -> Teacher:  # fmt: skip
    """Load a model and fine-tune it, unless it is a classifier of the task already.

    Args:
        settings: Which model, and how it is trained.
        task: What it has to learn.
        data: The task's rows.
        seed: Of the training.
        report: Takes the metrics of every epoch.
        check: Raises a ConfigError where the model, as it was loaded, is no teacher.
        progress: Takes the steps done.

    Raises:
        ConfigError: The model cannot be loaded or does not fit the task.
    """
    spec, source = task_spec(task), resolve_model(settings.model)
    pl.seed_everything(seed, verbose=False)
    what, tokenizer = f"teacher.model: {settings.model}", load_tokenizer(settings.model, settings.trust_remote_code)
    _check_pieces(tokenizer, data, what)
    config = load_config(settings.model, settings.trust_remote_code)
    order = label_map(config, data.label_names, settings.fine_tune, settings.labels)
    if order is not None:
        _check_problem(config, spec)
    resolve_boundaries(settings, config.num_hidden_layers)
    model = load_for_task(source, what, data.label_names, spec, new=order is None, trusted=settings.trust_remote_code)
    check(model, tokenizer)
    loaders = {
        split: make_loader(
            tokenize(tokenizer, rows, task.max_length), settings.batch_size, shuffle=split == "train", seed=seed
        )
        for split, rows in data.splits.items()
    }
    if order is None:
        _new_head(model)
        labels = data.splits["train"].labels
        balance = Balance.of(task.balance, labels, len(data.label_names), sets=spec.multi_label)
        module = _FineTuning(model.train(), settings, spec, balance, len(loaders["train"]) * settings.epochs)
        best = KeepBest(f"dev_{spec.metric}", model)
        fit(
            module, loaders["train"], loaders["dev"], settings.epochs, [best, EpochReport(report), StepReport(progress)]
        )
    else:
        reorder_outputs(model, order)
    model.config.bertnas_task = task_note(task)
    model.eval()
    scores = {split: evaluate_classifier(model, loaders[split], spec) for split in ("dev", *data.final_splits)}
    return Teacher(model=model, tokenizer=tokenizer, fine_tuned=order is None, scores=scores)


def load_for_task(
    source: str, what: str, label_names: Sequence[str], spec: TaskSpec, *, new: bool, trusted: bool = False
) -> "PreTrainedModel":
    """A classifier with a task's outputs.

    Args:
        source: A folder or hub name.
        what: The setting that names it, and its value.
        label_names: Of the task; none for a score.
        spec: The task.
        new: Whether its head is to be learnt; another task's is not wanted then.
        trusted: Whether code that comes with it is run.

    Raises:
        ConfigError: It cannot be loaded whole.
    """
    names = dict(enumerate(label_names or ("score",)))
    return load_checked(
        AutoModelForSequenceClassification,
        source,
        what,
        new=new_head if new else lambda name, base: False,
        trusted=trusted,
        id2label=names,
        label2id={name: number for number, name in names.items()},
        problem_type=spec.problem_type,
        ignore_mismatched_sizes=new,
        dtype=torch.float32,
    )


def time_step(
    model: "PreTrainedModel", settings: TeacherSettings, spec: TaskSpec, tokens: TokenDataset, limit: float
) -> Span:
    """What a step of the fine-tuning takes, measured for so many seconds; the model is trained meanwhile."""
    loader, clock = make_loader(tokens, settings.batch_size, shuffle=True), Clock(limit)
    balance = Balance.of("off", tokens.labels.tolist(), model.config.num_labels, sets=spec.multi_label)
    fit(_FineTuning(model.train(), settings, spec, balance, len(loader)), loader, None, 1, [clock])
    model.eval()
    return clock.step


def _check_problem(config: Any, spec: TaskSpec) -> None:
    """Whether a classifier with the task's labels answers the task's question: one label of a row, or any number."""
    several = config.problem_type == "multi_label_classification"
    if several != spec.multi_label:
        raise ConfigError(
            f"teacher.model: it gives {'any number of labels' if several else 'one label'} to a row, the task "
            f"{'any number' if spec.multi_label else 'one'}; set teacher.fine_tune: always to train it anew, or "
            f"task.custom.kind: {'multi_label' if several else 'classification'}"
        )


def _check_pieces(tokenizer: "PreTrainedTokenizerBase", data: TaskData, what: str) -> None:
    """Whether a tokenizer knows the words of train."""
    share = unknown_share(tokenizer, data.splits["train"].texts[:_ROWS_CHECKED])
    if share > _UNKNOWN_ERROR:
        raise ConfigError(
            f"{what}: its tokenizer does not know {share:.0%} of the word pieces of train; take a model of the texts' "
            "language, or mend its tokenizer files"
        )
    if share > _UNKNOWN_WARNING:
        _log.warning("%s: its tokenizer does not know %.0f %% of the word pieces of train", what, 100 * share)


def _new_head(model: "PreTrainedModel") -> None:
    """Draw the classifier anew, so that a teacher of another task with as many labels starts like any other."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(model.base_model_prefix):
            module.weight.data.normal_(std=model.config.initializer_range)
            if module.bias is not None:
                module.bias.data.zero_()
