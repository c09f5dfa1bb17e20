"""The teacher: found, fine-tuned once, loaded for its targets."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from nni_bertnas.artifacts import (
    RunDirectory,
    atomic_folder,
    file_fingerprint,
    fingerprint,
    read_result,
    write_result,
)
from nni_bertnas.config import Study, TeacherConfig, resolve_boundaries, study_to_dict
from nni_bertnas.data import (
    data_fingerprint,
    load_rows,
    make_loader,
    package_folder,
    tokenize,
)
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.tasks import METRICS, TASKS
from nni_bertnas.training import EpochReport, KeepBest, Report, adamw_linear, fit, pl

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


def _weights_fingerprint(model: str) -> str:
    folder = Path(model)
    if not folder.is_dir():
        return model
    return fingerprint(sorted(file_fingerprint(file) for file in folder.glob("*.safetensors")))


def teacher_fingerprint(study: Study) -> str:
    """A hash of all that the teacher depends on: data, source weights, settings (not where it is cut)."""
    settings = study_to_dict(study)["teacher"]
    del settings["num_blocks"], settings["boundaries"]
    return fingerprint(
        study.seed, data_fingerprint(study.task), _weights_fingerprint(resolve_model(study.teacher.model)), settings
    )


def needs_fine_tuning(config: Any, label_names: Sequence[str], mode: str) -> bool:
    """Whether a model has to learn the task first.

    Args:
        config: The Hugging Face configuration of the model.
        label_names: The task's, in the data's order.
        mode: `auto`, `always` or `never`.

    Raises:
        ConfigError: It has the task's labels in another order, or may not be fine-tuned but lacks them.
    """
    if mode == "always":
        return True
    has_head = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    own = [str(config.id2label[number]).lower() for number in sorted(config.id2label)]
    wanted = [name.lower() for name in label_names]
    if has_head and own == wanted:
        return False
    if has_head and sorted(own) == sorted(wanted):
        raise ConfigError(
            f"teacher.model: its labels are {own}, the data's {wanted}; set teacher.fine_tune: always to train it anew"
        )
    if mode == "never":
        raise ConfigError(
            f"teacher.model: {'its labels are ' + str(own) if has_head else 'it has no classifier'}, "
            f"the task's {wanted}; set teacher.fine_tune: auto"
        )
    return True


class _FineTuning(pl.LightningModule):
    def __init__(self, model: "PreTrainedModel", config: TeacherConfig, metric: str, steps: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.metric = metric
        self.steps = steps
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.model(batch["input_ids"], attention_mask=batch["mask"].long(), labels=batch["labels"]).loss
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        logits = self.model(batch["input_ids"], attention_mask=batch["mask"].long()).logits
        self._seen.append((logits.argmax(-1), batch["labels"]))

    def on_validation_epoch_end(self) -> None:
        predictions, labels = (torch.cat(part).tolist() for part in zip(*self._seen, strict=True))
        self._seen.clear()
        self.log(f"dev_{self.metric}", METRICS[self.metric](labels, predictions))

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
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    start = time.perf_counter()
    spec = TASKS[study.task.name]
    source = resolve_model(study.teacher.model)
    pl.seed_everything(study.seed, verbose=False)
    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        tune = needs_fine_tuning(config, spec.label_names, study.teacher.fine_tune)
        resolve_boundaries(study.teacher, config.num_hidden_layers)
        labels = dict(enumerate(spec.label_names))
        model = AutoModelForSequenceClassification.from_pretrained(
            source, id2label=labels, label2id={name: number for number, name in labels.items()}, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"teacher.model: {study.teacher.model} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    rows = load_rows(study.task)
    dev = _loader(tokenizer, rows["dev"], study, shuffle=False)
    if tune:
        train = _loader(tokenizer, rows["train"], study, shuffle=True)
        module = _FineTuning(model.train(), study.teacher, spec.metric, len(train) * study.teacher.epochs)
        best = KeepBest(f"dev_{spec.metric}", model)
        fit(module, train, dev, study.teacher.epochs, [best, EpochReport(report)])
        score = best.best
    else:
        score = evaluate_classifier(model.eval(), dev, spec.metric)
    result = {
        "fingerprint": expected,
        "fine_tuned": tune,
        "num_layers": config.num_hidden_layers,
        "dev": {spec.metric: score},
        "seconds": time.perf_counter() - start,
    }
    with atomic_folder(target) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_result(folder, study, result)
    return result


def _loader(tokenizer: "PreTrainedTokenizerBase", rows: Any, study: Study, *, shuffle: bool) -> DataLoader[Any]:
    data = tokenize(tokenizer, rows, study.task.max_length)
    return make_loader(data, study.teacher.batch_size, shuffle=shuffle, seed=study.seed)


@torch.inference_mode()
def evaluate_classifier(model: "PreTrainedModel", loader: DataLoader[Any], metric: str) -> float:
    """The metric of a Hugging Face classifier in eval mode over batches of input_ids, mask, labels."""
    predictions: list[int] = []
    labels: list[int] = []
    for batch in loader:
        logits = model(
            input_ids=batch["input_ids"].to(model.device), attention_mask=batch["mask"].long().to(model.device)
        ).logits
        predictions += logits.argmax(-1).tolist()
        labels += batch["labels"].tolist()
    return METRICS[metric](labels, predictions)


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
