"""The teacher: found, fine-tuned once, loaded for its targets."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from nni_bertnas.artifacts import (
    RunDirectory,
    atomic_folder,
    file_fingerprint,
    fingerprint,
    read_result,
    write_result,
)
from nni_bertnas.config import Study, TaskConfig, TeacherConfig, resolve_boundaries, study_to_dict
from nni_bertnas.data.batches import data_fingerprint, load_task, make_loader, tokenize
from nni_bertnas.data.sources import package_folder, plain_label
from nni_bertnas.data.tasks import TaskSpec, task_spec
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.training.metrics import Scorer, evaluate_classifier, label_loss, model_inputs
from nni_bertnas.training.trainer import EpochReport, KeepBest, Report, adamw_linear, fit, pl

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)


def resolve_model(name: str) -> str:
    """A folder or hub name that `from_pretrained` takes.

    Args:
        name: A path, a hub name, or `package:NAME` for the folder with a config.json inside an installed package.

    Raises:
        ConfigError: The package is not installed or holds no model.
    """
    if not name.startswith("package:"):
        return name
    root = package_folder(name.removeprefix("package:"))
    found = sorted(root.rglob("config.json"), key=lambda path: len(path.parts))
    if not found:
        raise ConfigError(f"teacher.model: package {root.name} holds no config.json")
    return str(found[0].parent)


def load_tokenizer(study: Study) -> "PreTrainedTokenizerBase":
    """The tokenizer that the study's teacher starts from.

    Raises:
        ConfigError: It cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(resolve_model(study.teacher.model))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"teacher.model: the tokenizer of {study.teacher.model} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error


def weights_fingerprint(model: str) -> str:
    """A hash of the weights in a model's folder; the name itself of a model on the hub."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    return fingerprint(sorted(file_fingerprint(file) for file in folder.glob("*.safetensors")))


def teacher_fingerprint(study: Study) -> str:
    """A hash of all that the teacher depends on: data, source weights, settings (not where it is cut)."""
    settings = study_to_dict(study)["teacher"]
    del settings["num_blocks"], settings["boundaries"]
    return fingerprint(
        study.seed, data_fingerprint(study.task), weights_fingerprint(resolve_model(study.teacher.model)), settings
    )


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
    if mode == "never" or own_labels is not None:
        remedy = "name its outputs in teacher.labels, or " if has_head and own_labels is None else ""
        raise ConfigError(
            f"teacher.model: {'its labels are ' + ', '.join(own) if has_head else 'it has no classifier'}, "
            f"the task's are {', '.join(label_names) or 'one score'}; {remedy}let it learn the task with "
            "teacher.fine_tune: always"
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
    def __init__(self, model: "PreTrainedModel", config: TeacherConfig, spec: TaskSpec, steps: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.scorer = Scorer(spec)
        self.steps = steps

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = label_loss(self.model(**model_inputs(self.model, batch)).logits, batch["labels"])
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.scorer.add(self.model(**model_inputs(self.model, batch)).logits, batch["labels"])

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"dev_{name}": value for name, value in self.scorer.scores().items()})

    def configure_optimizers(self) -> Any:
        config = self.config
        return adamw_linear(
            self.model.parameters(), config.learning_rate, config.weight_decay, config.warmup, self.steps
        )


def find_teacher(study: Study) -> dict[str, Any] | None:
    """The result of the study's teacher, if it is there and still fits."""
    return read_result(RunDirectory(study).teacher, teacher_fingerprint(study))


def ensure_teacher(study: Study, report: Report = lambda metrics: None) -> dict[str, Any]:
    """Make the study's teacher unless it is there: fine-tuned where it needs it, saved with its tokenizer.

    Args:
        study: The study.
        report: Takes the metrics of every epoch.

    Returns:
        The teacher's result: fingerprint, dev score, seconds, whether it was fine-tuned.

    Raises:
        ConfigError: The model cannot be loaded or does not fit the task.
    """
    run = RunDirectory(study)
    with run.lock("teacher"):
        result = find_teacher(study)
        if result is None:
            _log.info("making the teacher from %s", study.teacher.model)
            result = _make_teacher(study, run.teacher, teacher_fingerprint(study), report)
    return result


def _make_teacher(study: Study, target: Path, expected: str, report: Report) -> dict[str, Any]:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    start = time.perf_counter()
    spec = task_spec(study.task)
    source = resolve_model(study.teacher.model)
    data = load_task(study.task)
    pl.seed_everything(study.seed, verbose=False)
    tokenizer = load_tokenizer(study)
    try:
        config = AutoConfig.from_pretrained(source)
        order = label_map(config, data.label_names, study.teacher.fine_tune, study.teacher.labels)
        resolve_boundaries(study.teacher, config.num_hidden_layers)
        names = dict(enumerate(data.label_names or ("score",)))
        model = AutoModelForSequenceClassification.from_pretrained(
            source,
            id2label=names,
            label2id={name: number for number, name in names.items()},
            problem_type="regression" if spec.regression else "single_label_classification",
            ignore_mismatched_sizes=order is None,  # another task's head is not wanted
            dtype=torch.float32,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"teacher.model: {study.teacher.model} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    loaders = {split: _loader(tokenizer, rows, study, shuffle=split == "train") for split, rows in data.splits.items()}
    if order is None:
        _new_head(model)
        train = loaders["train"]
        module = _FineTuning(model.train(), study.teacher, spec, len(train) * study.teacher.epochs)
        best = KeepBest(f"dev_{spec.metric}", model)
        fit(module, train, loaders["dev"], study.teacher.epochs, [best, EpochReport(report)])
    else:
        reorder_outputs(model, order)
    model.config.bertnas_task = task_note(study.task)
    model.eval()
    result = {
        "fingerprint": expected,
        "fine_tuned": order is None,
        "num_layers": config.num_hidden_layers,
        **{split: evaluate_classifier(model, loaders[split], spec) for split in ("dev", *data.final_splits)},
        "seconds": time.perf_counter() - start,
    }
    with atomic_folder(target) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_result(folder, study, result)
    return result


def _new_head(model: "PreTrainedModel") -> None:
    """Draw the classifier anew, so that a teacher of another task with as many labels starts like any other."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(model.base_model_prefix):
            module.weight.data.normal_(std=model.config.initializer_range)
            module.bias.data.zero_()


def task_note(task: TaskConfig) -> dict[str, Any]:
    """What a saved model's configuration says of its task, for `bertnas predict`."""
    return {"name": task.name, "texts": list(task_spec(task).texts), "max_length": task.max_length}


def _loader(tokenizer: "PreTrainedTokenizerBase", rows: Any, study: Study, *, shuffle: bool) -> DataLoader[Any]:
    data = tokenize(tokenizer, rows, study.task.max_length)
    return make_loader(data, study.teacher.batch_size, shuffle=shuffle, seed=study.seed)


def read_teacher(study: Study) -> dict[str, Any]:
    """The result of the saved teacher, whatever its settings.

    Raises:
        PhaseError: There is none.
    """
    folder = RunDirectory(study).teacher
    result = read_result(folder)
    if result is None:
        raise PhaseError(f"{folder} holds no teacher; make it with: bertnas teacher STUDY")
    return result


def load_teacher(study: Study) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """The saved teacher in eval mode without gradients, and its tokenizer.

    Raises:
        PhaseError: There is none.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    read_teacher(study)
    folder = RunDirectory(study).teacher
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder)
