"""What the searched student and its baselines have in common: trained end to end, measured, saved."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from nni_bertnas.artifacts import fingerprint, state_fingerprint
from nni_bertnas.config import StudentSettings, SupernetSettings, to_dict
from nni_bertnas.data.batches import make_loader, make_stream
from nni_bertnas.data.metrics import title
from nni_bertnas.data.tasks import task_note
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.stages.general import general_folder, load_shared, save_shared
from nni_bertnas.stages.rows import all_rows, own_rows
from nni_bertnas.stages.run import Result, Run
from nni_bertnas.store.reader import FeatureDataset, FeatureStore
from nni_bertnas.student.build import check_chain, new_student
from nni_bertnas.student.candidates import Candidate
from nni_bertnas.student.cost import (
    Call,
    Passes,
    count_activation_bytes,
    count_flops,
    count_params,
    measure_latency_ms,
    model_call,
)
from nni_bertnas.student.latency import Part, model_part
from nni_bertnas.student.runtimes import RUNTIMES
from nni_bertnas.student.start import Start
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training import resume
from nni_bertnas.training.losses import LOSSES, Balance
from nni_bertnas.training.metrics import evaluate_classifier
from nni_bertnas.training.student import StudentDistillation
from nni_bertnas.training.texts import PIECES, TEXTS, distil_texts
from nni_bertnas.training.trainer import EpochReport, KeepBest, fit, pl
from search_space.heads import HEADS
from search_space.student import StudentForSequenceClassification

_log = logging.getLogger(__name__)
# Of a student, what learning texts leaves alone, but for the scores by which word pieces are weighed.
_UNTOUCHED, _WEIGH = ("student.classifier", "student.pool"), "student.pool.weigh"
STUDENT = "student"  # folder of the saved model inside the result
FIDELITY = "dev_logit_mse"  # how far a student's answers on dev are from the teacher's
JUDGED_ROWS = 20_000  # of an epoch where students are judged after a short training
_LATENCY_REPEATS = 3  # how often every length is measured


class StudentMaker:
    """Teacher, rows and settings that a student is made with.

    Args:
        run: Of the study.
        seed: Of the end-to-end training.

    Attributes:
        shape: Of the students.
    """

    def __init__(self, run: Run, seed: int) -> None:
        self.run, self.seed, self.shape = run, seed, run.shape
        self.start = time.perf_counter()
        pl.seed_everything(seed, verbose=False)
        self.teacher, self.tokenizer = run.load_teacher()
        self.lengths = run.latency_lengths * _LATENCY_REPEATS

    @property
    def middle(self) -> int:
        """The median of the lengths, at which floating-point operations are counted."""
        return sorted(self.lengths)[len(self.lengths) // 2]

    @cached_property
    def start_of_students(self) -> Start:
        """What every student starts from."""
        run, vocab = self.run, self.teacher.config.vocab_size
        general = general_folder(run)
        text = run.train if general is None else FeatureStore(general / TEXTS)
        return Start(
            teacher=self.teacher,
            spec=run.task,
            note=task_note(run.study.task),
            sep_token_id=self.tokenizer.sep_token_id,
            counts=np.bincount(text.tokens, minlength=vocab),
            pieces=None if general is None else np.load(general / PIECES),
        )

    def _distil_texts(self, student: StudentForSequenceClassification, vector_map: nn.Module, tracker: Tracker) -> None:
        """Pre-distil a student on general text; what starts alike is trained once, for all studies that share it."""
        if (general := general_folder(self.run)) is None:
            return
        settings, both = self.run.study.general, nn.ModuleDict({"student": student, "vector_map": vector_map})
        state = both.state_dict()
        touched = {name: state[name] for name in state if not name.startswith(_UNTOUCHED) or name.startswith(_WEIGH)}
        start = fingerprint(to_dict(settings), self.seed, self.shape.encoding, state_fingerprint(touched))
        file = general / f"student-{start}.safetensors"
        if (known := load_shared(file)) is not None:
            both.load_state_dict(known, strict=False)
            return
        store = FeatureStore(general / TEXTS)
        report = partial(tracker.epoch, default=None)
        with resume.apart(start):
            distil_texts(student, vector_map, store, settings, seed=self.seed, report=report)
        save_shared({name: both.state_dict()[name] for name in touched}, file)

    def new_student(self, candidates: Sequence[Candidate]) -> StudentForSequenceClassification:
        """A student of an architecture, its cells fresh; see :func:`~nni_bertnas.student.build.new_student`."""
        return new_student(self.shape, self.start_of_students, self.layered(candidates))

    def call(self, model: nn.Module) -> Passes:
        """Forward passes of teacher or student on such rows as the task has."""
        return model_call(model, self.lengths, pairs=self.run.train.has_pairs)

    def compile(self, model: nn.Module) -> Call:
        """The same in the study's runtime."""
        settings = self.run.study.supernet
        return RUNTIMES[settings.latency_runtime].compile(self.call(model), settings.latency_threads)

    @cached_property
    def compiled_teacher(self) -> Call:
        """The teacher in the study's runtime, for all students that are timed beside it."""
        return self.compile(self.teacher)

    def latency_ms(self, student: nn.Module) -> dict[str, float]:
        """Of `teacher` and `student` at batch 1, in the study's runtime and in turns."""
        calls = {"teacher": self.compiled_teacher, "student": self.compile(student)}
        return measure_latency_ms(calls, self.lengths, threads=self.run.study.supernet.latency_threads)

    def part(self, model: Any, batch: int = 1) -> Part:
        """Teacher or student as a part of the table of latencies."""
        return model_part(model, pairs=self.run.train.has_pairs, batch=batch)

    @cached_property
    def dev_loader(self) -> Any:
        """All of dev, as a whole student reads it."""
        return make_loader(FeatureDataset(self.run.dev, (), tokens=True), 128, shuffle=False)

    def train(self, candidates: Sequence[Candidate], kind: str, folder: Path, tracker: Tracker) -> Result:
        """Chain the cells of candidates, train the student end to end, measure and save it.

        Args:
            candidates: The chosen one of every block, with its cell.
            kind: `searched`, or the name of a baseline.
            folder: Takes the saved student.
            tracker: Takes the metrics.

        Returns:
            What the result says of it.
        """
        model, trained = self.distil(candidates, self.run.study.supernet, tracker)
        model = model.fused()
        sides = self._compare(model)
        start, self.start = self.start, time.perf_counter()
        model.save_pretrained(folder / STUDENT)
        self.tokenizer.model_max_length = model.config.max_position_embeddings  # so that truncation=True cuts to it
        self.tokenizer.save_pretrained(folder / STUDENT)
        return {
            "seed": self.seed,
            "student_kind": kind,
            "architecture": [dict(one.architecture) for one in candidates],
            "depths": [one.depth for one in candidates],
            "shape": {"head": self.shape.head, "encoding": self.shape.encoding},
            "block_scores": [one.score for one in candidates],
            **trained,
            **sides,
            "speedup": sides["teacher"]["latency_ms"] / sides["student"]["latency_ms"],
            "latency_threads": self.run.study.supernet.latency_threads,
            "latency_runtime": self.run.study.supernet.latency_runtime,
            "seconds": self.start - start,
        }

    def judge(
        self, candidates: Sequence[Candidate], tracker: Tracker | None = None, shape: StudentSettings | None = None
    ) -> float:
        """How near a student comes to the teacher's answers on dev after a short training: the mean squared error.

        Scores on the labels of a small dev would say less: their noise is greater than what students differ by.

        Args:
            candidates: Of every block.
            tracker: Takes the metrics of every epoch.
            shape: Of the student; None: the one that all have.
        """
        supernet = self.run.study.supernet
        rows = min(supernet.epoch_rows or JUDGED_ROWS, JUDGED_ROWS, len(self.run.train))
        short = replace(supernet, epochs=supernet.search_epochs, epoch_rows=rows, last_epochs=0, patience=None)
        before, self.shape = self.shape, shape or self.shape
        error: float = self.distil(candidates, short, tracker or Tracker(), general=False)[1][FIDELITY]
        self.shape = before
        return error

    def distil(
        self,
        candidates: Sequence[Candidate],
        settings: SupernetSettings,
        tracker: Tracker,
        *,
        general: bool = True,
        callbacks: Sequence[pl.Callback] = (),
    ) -> tuple[StudentForSequenceClassification, dict[str, Any]]:
        """Chain the cells of candidates and train the student end to end.

        Args:
            candidates: Of every block, with their cells.
            settings: Of the training.
            tracker: Takes the metrics.
            general: Whether it learns general text first, where the study asks for that.
            callbacks: Of Lightning, besides.

        Returns:
            The student in eval mode, and what is known of its training.
        """
        run, study = self.run, self.run.study
        pl.seed_everything(self.seed, verbose=False)
        metric, cells = f"dev_{run.task.metric}", [one.trained for one in self.layered(candidates)]
        student = self.new_student(candidates)
        student.load_cells(cells)
        difference = check_chain(student, cells, next(iter(self.dev_loader)))
        pl.seed_everything(self.seed, verbose=False)  # whatever the head, so that what starts alike is alike
        vector_map = nn.Linear(student.classifier.in_features, run.train.hidden_size)
        before = time.perf_counter()
        if general:
            self._distil_texts(student, vector_map, tracker.part("general"))
        general_seconds = time.perf_counter() - before
        needed = {LOSSES[name].needs for name, weight in study.distill.losses.items() if weight}
        vectors = "vectors" in needed and HEADS[self.shape.head].sides == (2 if run.task.pairs else 1)
        # Where head and encoding are searched, pairs may be read otherwise than the stored hidden states were.
        alike = (self.shape.encoding == "separate") == run.separate
        sources = all_rows(
            run, hidden=bool(needed & {"hidden", "entries"}) and len(cells) > 0 and alike, vectors=vectors
        )
        loader = make_stream(sources, settings.batch_size, seed=self.seed, epoch_rows=settings.epoch_rows)
        module = StudentDistillation(
            student,
            cells,
            [run.train.variance(edge) for edge in run.train.edges[1:]],
            vector_map,
            distill=study.distill,
            settings=settings,
            spec=run.task,
            balance=Balance.of(
                study.task.balance,
                run.data.splits["train"].labels,
                student.config.num_labels,
                sets=run.task.multi_label,
            ),
            probes=run.probes,
            attention=run.attention(run.edges[:-1]),
            steps=len(loader) * settings.epochs,
            freeze_embeddings=study.student.freeze_embeddings,
        )
        best = KeepBest(metric, student, lambda: module.judged, lambda: module.scorer.noise)
        own = [best, EpochReport(lambda metrics: tracker.epoch(metrics, metric)), *callbacks]
        stops = []
        if settings.patience is not None:
            stops.append(pl.callbacks.EarlyStopping(metric, mode="max", patience=settings.patience))
        precision = study.student.precision
        fit(module.train(), loader, self.dev_loader, settings.epochs, [*own, *stops], precision=precision)
        if settings.last_epochs:
            last = make_loader(own_rows(run, vectors=vectors), settings.batch_size, shuffle=True, seed=self.seed)
            module.begin_last(len(last) * settings.last_epochs)
            fit(module.train(), last, self.dev_loader, settings.last_epochs, own, precision=precision)
        return student.eval(), {
            "chain_difference": difference,
            FIDELITY: best.metrics[FIDELITY],
            "kept_epoch": best.epoch,
            "general_seconds": general_seconds,
        }

    def layered(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """The candidates; none where none has a layer and the word pieces' vectors lead past them."""
        return candidates if any(one.depth for one in candidates) or not self.shape.static_path else ()

    def _compare(self, student: StudentForSequenceClassification) -> dict[str, dict[str, Any]]:
        """Scores and costs of teacher and student, their latencies measured in turns."""
        run = self.run
        loaders = {"dev": self.dev_loader}
        for split in run.data.final_splits:
            tokens = tokenize(self.tokenizer, run.data.splits[split], run.study.task.max_length)
            loaders[split] = make_loader(tokens, 128, shuffle=False)
        saved = run.read("teacher") or {}
        scores = {
            "teacher": {split: saved[split] for split in loaders},
            "student": {split: evaluate_classifier(student, loader, run.task) for split, loader in loaders.items()},
        }
        models = {"teacher": self.teacher, "student": student}
        calls = {name: self.call(model) for name, model in models.items()}
        latency_ms = self.latency_ms(student)
        return {
            side: {
                **{f"{split}_{name}": value for split, one in scores[side].items() for name, value in one.items()},
                "num_params": count_params(model),
                "num_flops": count_flops(calls[side], self.middle),
                "activation_bytes": count_activation_bytes(calls[side], self.middle),
                "latency_ms": latency_ms[side],
            }
            for side, model in models.items()
        }


def metrics(run: Run, result: Result) -> dict[str, float]:
    """What NNI is told of a student: its score on dev, those on other splits, its cost."""
    metric, own = run.task.metric, result["student"]
    return {
        "default": own[f"dev_{metric}"],
        **{name: value for name, value in own.items() if name.endswith(f"_{metric}")},
        "num_params": own["num_params"],
        "latency_ms": own["latency_ms"],
        "speedup": result["speedup"],
    }


def describe(run: Run, result: Result) -> str:
    """A student in one line."""
    metric, own = run.task.metric, result["student"]
    said = title(metric, run.data.label_names)
    scores = ", ".join(f"{name.removesuffix(f'_{metric}')} {said} {value * 100:.2f} %"
                       for name, value in own.items() if name.endswith(f"_{metric}"))  # fmt: skip
    return f"{scores}, {own['num_params']:,} parameters, {result['speedup']:.1f} times as fast as the teacher"
