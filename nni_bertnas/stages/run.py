"""One study's work, opened once: where it lies, and what one reads from it."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_bertnas.artifacts import fingerprint, read_result, write_result, write_whole
from nni_bertnas.config import StudentSettings, Study, TrainingSettings, resolve_boundaries, to_dict, to_yaml
from nni_bertnas.data.models import load_classifier, load_config, load_encoder
from nni_bertnas.data.task_data import TaskData, load_task
from nni_bertnas.data.tasks import TaskSpec, task_spec
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.search.strategies import list_spaces
from nni_bertnas.stages import built_on
from nni_bertnas.stages.locks import one_at_a_time
from nni_bertnas.store.reader import FeatureStore
from nni_bertnas.student.build import list_shapes, resolve_shape
from nni_bertnas.student.latency import LatencyTable
from nni_bertnas.tracking.event_files import EVENTS, EventFiles, of_trial
from nni_bertnas.tracking.histories import HISTORY, Record, record_name
from nni_bertnas.tracking.tracker import Book, Channel, Tracker, Watcher, start_wandb
from nni_bertnas.training.cells import CellTrainer
from nni_bertnas.training.probes import Probes
from nni_bertnas.training.relations import Attention
from nni_bertnas.training.siamese import Siamese
from search_space.listing import Space

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Unit = Mapping[str, Any]  # the parameters of one unit of work: whole numbers and texts; none where there is one alone
Result = dict[str, Any]  # what `result.json` holds
ANSWERS = "answers.npz"  # beside the features: how a siamese teacher's answers come out of them
PROBES = "probes.npz"  # in the folder of the stage probes
STUDY = "study.yml"  # in a run's folder, where the study was made in Python or is a smoke test
_SECONDS = "seconds.json"
_LATENCY_ROWS = 60


def unit_name(unit: Unit) -> str:
    """The name of a unit's folder, e.g. block0_depth2; empty where there is one alone."""
    return "_".join(value if isinstance(value, str) else f"{name}{value}" for name, value in unit.items())


class Run:
    """A study at work, under `runs_dir/name`.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.root = Path(study.runs_dir) / study.name
        self.fingerprints: dict[str, str] = {}  # of stages, see stage_fingerprint

    def __reduce__(self) -> Any:
        return Run, (self.study,)  # another process reads the rest anew

    # where

    def folder(self, stage: str, unit: Unit | None = None) -> Path:
        """Of a stage's result, or of one of its units'."""
        return self.root / stage / unit_name(unit or {})

    def unfinished(self, stage: str, unit: Unit) -> Path:
        """Beside a unit's result, what is saved of it while it is made."""
        folder = self.folder(stage, unit)
        return folder.with_name(f".{folder.name}.unfinished")

    @property
    def shared(self) -> Path:
        """What all studies of a folder share, as it depends on no task."""
        return self.root.parent / ".shared"  # no study can have this name

    @cached_property
    def latencies(self) -> LatencyTable:
        """What parts of students take on this machine, at batch 1; shared by all studies of a folder."""
        return self.latency_table()

    def latency_table(self, batch: int = 1, kind: type[LatencyTable] = LatencyTable) -> LatencyTable:
        """The machine's for a size of batch, in the threads and the runtime that the study asks for."""
        settings = self.study.supernet
        return kind(self.shared, threads=settings.latency_threads, batch=batch, runtime=settings.latency_runtime)

    @property
    def latency_lengths(self) -> list[int]:
        """At which latencies are asked for: those of real rows, or the one that the study names."""
        lengths: list[int] = self.dev.lengths[:_LATENCY_ROWS].tolist()
        named = self.study.supernet.latency_length
        return lengths if named is None else [named] * len(lengths)

    @property
    def nni(self) -> Path:
        """Experiment files, logs and database of the NNI experiments that `bertnas` starts."""
        return self.root / "nni"

    # what

    @cached_property
    def task(self) -> TaskSpec:
        """The row of its task."""
        return task_spec(self.study.task)

    @cached_property
    def data(self) -> TaskData:
        """The task's rows, split."""
        return load_task(self.study.task)

    @cached_property
    def spaces(self) -> dict[int, Space]:
        """What is searched, by depth."""
        return {space.depth: space for space in list_spaces(self.study.cell, self.study.student.hidden_size)}

    @cached_property
    def shape(self) -> StudentSettings:
        """Of the student, `auto` resolved."""
        return resolve_shape(self.study.student, self.task)

    @cached_property
    def shapes(self) -> list[StudentSettings]:
        """Of the student: all that head and encoding are searched among, or one."""
        return list_shapes(self.study.student, self.task)

    @property
    def separate(self) -> bool:
        """Whether the texts of a pair are read separately."""
        return self.shape.encoding == "separate"

    @property
    def teacher_kind(self) -> str:
        """Whose answers the student learns, `auto` resolved."""
        kind = self.study.teacher.kind
        return ("both" if self.separate and self.task.regression else "cross") if kind == "auto" else kind

    @property
    def general_rows(self) -> int:
        """How many texts of no task in particular the student learns first, null resolved as it was measured best."""
        settings = self.study.general
        return max(settings.cells, 20_000 if self.task.pairs else 0) if settings.rows is None else settings.rows

    @property
    def probed(self) -> bool:
        """Whether any loss asks for the answers of probes."""
        study = self.study
        return any(part.losses.get("probe") for part in (study.cell, study.block, study.distill))

    @property
    def probe_stage(self) -> list[tuple[str, Unit]]:
        """What is made before anything that a loss of probes takes part in."""
        return [("probes", {})] if self.probed else []

    @cached_property
    def probes(self) -> Probes | None:
        """Of the teacher's edges; None where no loss asks for them.

        Raises:
            PhaseError: They are not made yet.
        """
        if not self.probed:
            return None
        file = self.folder("probes") / PROBES
        if not file.is_file():
            raise PhaseError(f"{file} is missing; make it with: bertnas probes STUDY")
        return Probes.load(file)

    def attention(self, edges: Sequence[int]) -> Attention | None:
        """Of the teacher behind some edges; None where no loss asks for it."""
        parts = self.study.cell, self.study.block, self.study.distill
        if not any(part.losses.get(name) for part in parts for name in ("attention_relation", "value_relation")):
            return None
        return Attention.of(self.load_encoder() or self.load_teacher()[0], edges)

    @property
    def num_blocks(self) -> int:
        """Into how many the teacher is cut."""
        return self.study.teacher.blocks

    @cached_property
    def edges(self) -> list[int]:
        """The layers at which the teacher is cut, by the saved teacher.

        Raises:
            PhaseError: There is no teacher yet.
        """
        return resolve_boundaries(self.study.teacher, self._saved_teacher()["num_layers"])

    @property
    def cuts(self) -> list[int]:
        """The same, by the model that the teacher is fine-tuned from."""
        return resolve_boundaries(self.study.teacher, self.pretrained_config.num_hidden_layers)

    @cached_property
    def train(self) -> FeatureStore:
        """What the teacher gave for train."""
        return self._store("train")

    @cached_property
    def dev(self) -> FeatureStore:
        """What the teacher gave for dev."""
        return self._store("dev")

    def _store(self, split: str) -> FeatureStore:
        return self.open_store(self.folder("features") / split)

    def open_store(self, folder: Path) -> FeatureStore:
        """A store of what the teacher gives."""
        file = self.folder("features") / ANSWERS
        answer = Siamese.load(file) if file.is_file() else None
        return FeatureStore(folder, self._load_reader, answer)

    def _load_reader(self) -> "PreTrainedModel":
        return self.load_encoder() or self.load_teacher()[0]

    def load_teacher(self) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
        """The saved teacher in eval mode without gradients, and its tokenizer.

        Raises:
            PhaseError: There is none.
        """
        self._saved_teacher()
        return load_classifier(self.folder("teacher"), self.study.teacher.trust_remote_code)

    def load_encoder(self) -> "PreTrainedModel | None":
        """What reads texts separately, the model that the teacher was fine-tuned from; None where pairs are joint."""
        return self.load_pretrained() if self.separate else None

    @cached_property
    def pretrained_config(self) -> Any:
        """Of the model that the teacher is fine-tuned from."""
        return load_config(self.study.teacher.model, self.study.teacher.trust_remote_code)

    def load_pretrained(self) -> "PreTrainedModel":
        """The encoder that the teacher was fine-tuned from."""
        return load_encoder(self.study.teacher.model, self.study.teacher.trust_remote_code)

    def _saved_teacher(self) -> Result:
        result = self.read("teacher")
        if result is None:
            raise PhaseError(f"{self.folder('teacher')} holds no teacher; make it with: bertnas teacher STUDY")
        return result

    def seed(self, block: int, depth: int = 0) -> int:
        """Of what is done for one block, and depth."""
        return self.study.seed + 1000 * block + depth

    def trainer(
        self, first: int, settings: TrainingSettings, tracker: Tracker, *, seed: int, blocks: int = 1
    ) -> CellTrainer:
        """What trains the cells of consecutive blocks.

        Args:
            first: Number of the first block.
            settings: Of the training.
            tracker: Takes the metrics of every epoch.
            seed: Of order and choice of the rows.
            blocks: How many.
        """
        edges = self.edges[first : first + blocks + 1]
        return CellTrainer(
            train=self.train,
            dev=self.dev,
            edges=edges,
            attention=self.attention(edges[:-1]),
            probes=self.probes,
            settings=settings,
            precision=self.study.student.precision,
            seed=seed,
            report=lambda metrics: tracker.epoch(metrics, "train_loss"),
        )

    def check_block(self, block: int) -> None:
        """Whether there is such a block.

        Raises:
            ConfigError: There is not.
        """
        if not 0 <= block < self.num_blocks:
            raise ConfigError(f"block must be 0 to {self.num_blocks - 1}, got {block}; correct block for this trial")

    # results

    def read(self, stage: str, unit: Unit | None = None) -> Result | None:
        """The result of a unit, whatever it was made from; None where there is none."""
        return read_result(self.folder(stage, unit))

    def write(self, folder: Path, result: Result, *, deep: bool = True) -> None:
        """Write a result and, beside it, the resolved study; see :func:`~nni_bertnas.artifacts.write_result`."""
        write_result(folder, result, to_yaml(self.study), deep=deep)

    def write_study(self) -> Path:
        """Write the resolved study into its folder, for those that read a file; gives its path."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_whole(self.root / STUDY, to_yaml(self.study))
        return self.root / STUDY

    def results(self, stage: str) -> dict[str, tuple[Path, Result]]:
        """Folder and result of every finished unit of a stage, by its folder's name."""
        folders = sorted(path for path in (self.root / stage).glob("[!.]*") if path.is_dir())
        results = {folder.name: (folder, read_result(folder)) for folder in folders}
        return {name: (folder, result) for name, (folder, result) in results.items() if result is not None}

    def refresh(self) -> None:
        """Forget what was read from results, as one was made anew."""
        self.fingerprints.clear()
        for name in ("edges", "train", "dev", "probes"):
            self.__dict__.pop(name, None)

    def discard_from(self, stage: str) -> None:
        """Remove the results of a stage and of all that build on it; of `general` what other studies share, too."""
        shared = self.read("general") if stage == "general" else None
        if shared is not None:
            shutil.rmtree(self.shared / f"general-{shared['fingerprint']}", ignore_errors=True)
        for name in built_on(stage):
            for folder in (self.root / name, self.unfinished(name, {})):
                shutil.rmtree(folder, ignore_errors=True)
        self.refresh()

    # records

    @cached_property
    def mark(self) -> str:
        """Of the study as it is."""
        return fingerprint(to_yaml(self.study))

    def record(self, stage: str, unit: Unit) -> Record:
        """The history and the state of one unit of work."""
        return Record(self.root / HISTORY, record_name(stage, unit_name(unit)), self.mark)

    def books(self, stage: str, unit: Unit) -> list[Book]:
        """What keeps the metrics of one unit of work, whoever else is told of them."""
        found: list[Book] = [self.record(stage, unit)]
        found.append(EventFiles(self.root / EVENTS / record_name(stage, unit_name(unit))))
        if output := os.environ.get("NNI_OUTPUT_DIR"):  # of the trial that this is, and where NNI's web UI looks
            found.append(EventFiles(of_trial(Path(output))))
        return found

    @contextmanager
    def tracker(
        self, stage: str, unit: Unit, *, channel: Channel | None = None, watcher: Watcher | None = None
    ) -> Iterator[Tracker]:
        """What takes the metrics of one unit of work: its books, and one W&B run in the study's group.

        Args:
            stage: Name of the stage.
            unit: Of the stage.
            channel: The line to NNI inside a trial.
            watcher: A person's terminal.
        """
        name = f"{stage}-{unit_name(unit) or self.study.task.name}"[:128]  # W&B's longest
        wandb_run = start_wandb(
            self.study.tracking,
            self.root,
            group=self.study.name,
            job_type=stage,
            name=name,
            config=to_dict(self.study),
        )
        tracker = Tracker(channel, wandb_run, watcher, self.books(stage, unit))
        try:
            yield tracker
        finally:
            tracker.close()

    def record_seconds(self, stage: str, seconds: float) -> None:
        """Keep the wall time of a stage beside its results."""
        with one_at_a_time(self.root, "seconds"):
            write_whole(self.root / _SECONDS, json.dumps(self.read_seconds() | {stage: seconds}, indent=1))

    def read_seconds(self) -> dict[str, float]:
        """Wall time of every stage that `bertnas` ran; none where they cannot be read, as nothing depends on them."""
        try:
            times = json.loads((self.root / _SECONDS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return times if isinstance(times, dict) else {}
