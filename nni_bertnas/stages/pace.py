"""How fast this machine is at a study: every kind of step really made for a few seconds, on some of its rows.

The rows, models, cells and students are those of the stages, and so is the code; what is written lies in a folder that
is removed. Times are those of the machine as it is: where other work runs beside, they are longer.
"""

import random
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from nni_bertnas.config import (
    AugmentSettings,
    BaselineSettings,
    GeneralSettings,
    PairsSettings,
    Study,
    TransferSettings,
)
from nni_bertnas.data.batches import TokenDataset
from nni_bertnas.data.models import load_tokenizer, resolve_model
from nni_bertnas.machine import Span, best_device, num_cores
from nni_bertnas.search.random_cells import sample_architecture
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import load, trials_at_once
from nni_bertnas.stages.students import StudentMaker
from nni_bertnas.store.writer import SplitWriter
from nni_bertnas.student.candidates import Candidate, no_layer
from nni_bertnas.student.cost import model_call
from nni_bertnas.student.latency import OtherWork
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training.teacher import load_for_task, time_step
from nni_bertnas.training.trainer import Clock

_PROBE_SECONDS = 1.0
_SECONDS = 4.0  # of steps of the teacher, and of its passes
_CELL_SECONDS = 1.0
_DEV_ROWS, _LEAST_ROWS, _MOST_ROWS = 64, 128, 2000
_PASSES = 10  # of the teacher, one row each
_CELLS = 3  # random ones of every depth
_STEPS = 50  # of a student, at most


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What was measured.

    Attributes:
        spans: By kind of step, as :mod:`~nni_bertnas.stages.plan` counts them.
        memory_bytes: Of this process, at its highest.
        others: Cores that other work took meanwhile.
        busy: Whether that was so much that the processor's time is what counts.
    """

    spans: Mapping[str, Span]
    memory_bytes: int
    others: float
    busy: bool

    def seconds(self, count: Mapping[str, float]) -> float:
        """What some steps take where nothing else runs.

        Args:
            count: How many of which kind.
        """
        return sum(
            number * (self.spans[kind].at_rest if self.busy else self.spans[kind].seconds)
            for kind, number in count.items()
        )


def measure(run: Run, train: TokenDataset, labelled: int, dev: TokenDataset) -> Pace:
    """Make some steps of every kind.

    Args:
        run: Of the study.
        train: All rows that the features are made of.
        labelled: How many of them, the first ones, are train's own.
        dev: Of dev.

    Raises:
        ConfigError: The model cannot be loaded, or does not fit the task.
    """
    busy, watch = _others_work(), OtherWork()
    found: dict[str, Span] = {}

    def take(threads: int, steps: Callable[[], Mapping[str, Span]]) -> None:
        # Beside other work threads wait for each other, so that one alone says more: what it takes of the processor.
        torch.set_num_threads(1 if busy else threads)
        found.update({name: replace(span, threads=threads) for name, span in steps().items()})

    before, own = torch.get_num_threads(), run.study.nni.threads
    shares = {
        name: own or max(1, num_cores() // trials_at_once(run, load(name))) for name in ("cell", "block", "supernet")
    }
    with tempfile.TemporaryDirectory() as folder:
        rehearsal = Run(_small(run, folder))
        rehearsal.data = run.data
        take(before, lambda: _teacher(rehearsal, train, labelled, dev, np.random.default_rng(run.study.seed)))
        take(run.study.supernet.latency_threads, lambda: _latency(rehearsal))
        take(shares["cell"], lambda: _cells(rehearsal))
        take(shares["block"], lambda: _blocks(rehearsal))
        take(shares["supernet"], lambda: _students(rehearsal))
    torch.set_num_threads(before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return Pace(spans=found, memory_bytes=peak, others=watch.cores(), busy=busy)


def _others_work() -> bool:
    """Whether other work takes so much of the machine that times on the clock tell little."""
    watch = OtherWork()
    time.sleep(_PROBE_SECONDS)
    return watch.much()


def _small(run: Run, folder: str) -> Study:
    """The study without what needs other stages, in a folder of its own."""
    study = run.study

    def without_probes(losses: Mapping[str, float], instead: str) -> dict[str, float]:
        return {name: weight for name, weight in losses.items() if name != "probe" and weight} or {instead: 1.0}

    return replace(
        study,
        runs_dir=folder,
        teacher=replace(study.teacher, kind="cross"),
        student=run.shape,
        transfer=TransferSettings(),
        general=GeneralSettings(rows=0),
        pairs=PairsSettings(),
        augment=AugmentSettings(),
        baseline=BaselineSettings(),
        cell=replace(study.cell, losses=without_probes(study.cell.losses, "hidden_mse")),
        block=replace(study.block, losses=without_probes(study.block.losses, "hidden_mse")),
        distill=replace(study.distill, losses=without_probes(study.distill.losses, "logit_mse")),
    )


def _teacher(
    run: Run, train: TokenDataset, labelled: int, dev: TokenDataset, generator: np.random.Generator
) -> dict[str, Span]:
    """Its steps and passes; leaves a teacher and features of some rows behind."""
    settings, folder = run.study.teacher, run.folder("teacher")
    source, what = resolve_model(settings.model), f"teacher.model: {settings.model}"
    model = load_for_task(
        source, what, run.data.label_names, run.task, new=True, trusted=settings.trust_remote_code
    ).eval()
    model.save_pretrained(folder)
    load_tokenizer(settings.model, settings.trust_remote_code).save_pretrained(folder)
    run.write(folder, {"num_layers": model.config.num_hidden_layers})
    features, encoder = run.folder("features"), run.load_encoder()
    model.requires_grad_(False).to(best_device())

    def write(split: str, tokens: TokenDataset, edges: Sequence[int]) -> Span:
        start = Span.now()
        SplitWriter(features / split, model, tokens, edges, run.study.features.dtype, encoder=encoder).write()
        return (Span.now() - start) / len(tokens.tokens)

    write("dev", dev.take(generator.permutation(len(dev))[:_DEV_ROWS]), run.edges)
    order = generator.permutation(len(train))
    first = write("first", train.take(order[:_LEAST_ROWS]), run.edges)
    rows = int(np.clip(_SECONDS / 2 / first.seconds / train.lengths.mean(), _LEAST_ROWS, _MOST_ROWS))
    stored, passed = (
        write(name, train.take(order[:rows]), edges) for name, edges in (("train", run.edges), ("plain", ()))
    )
    own = train.take(generator.permutation(labelled)[: 50 * settings.batch_size])
    step = time_step(model.requires_grad_(True), settings, run.task, own, _SECONDS)
    return {"teacher_step": step, "teacher_piece": passed, "stored_piece": stored}


def _latency(run: Run) -> dict[str, Span]:
    """Passes of the teacher over one row."""
    model, lengths = run.load_teacher()[0], run.latency_lengths[:_PASSES]
    call = model_call(model, lengths, pairs=run.train.has_pairs)
    call(lengths[0])
    start = Span.now()
    for length in lengths:
        call(length)
    return {"latency_pass": (Span.now() - start) / len(lengths)}


def _random_cells(run: Run, depth: int, count: int) -> list[Candidate]:
    """Cells of random architectures, fresh."""
    generator, space = random.Random(run.study.seed), run.spaces[depth]
    drawn = (sample_architecture(space, generator) for _ in range(count))
    some = [Candidate(space=space.name, depth=depth, architecture=architecture) for architecture in drawn]
    return [one.fresh(run.train.hidden_size, run.study.student.hidden_size) for one in some]


def _cells(run: Run) -> dict[str, Span]:
    """Steps of single cells, by depth, where they start from, and what it takes to score them."""
    found: dict[str, Span] = {}
    trainer = run.trainer(0, run.study.cell, Tracker(), seed=run.study.seed)
    start = Span.now()
    trainer.start_maps([_random_cells(run, min(run.spaces), 1)[0].trained])
    found["cell_start"] = Span.now() - start
    scored = []
    for depth in run.spaces:
        steps = []
        for one in _random_cells(run, depth, _CELLS):
            steps.append(trainer.time_step([one.trained.train()], _CELL_SECONDS))
            start = Span.now()
            trainer.score([one.trained])
            scored.append((Span.now() - start) / len(run.dev.tokens))
        found[f"cell_step_{depth}"] = _mean(steps)
    return found | {"cell_piece": _mean(scored)}


def _mean(spans: Sequence[Span]) -> Span:
    seconds, cpu_seconds = (
        float(np.mean([getattr(one, name) for one in spans])) for name in ("seconds", "cpu_seconds")
    )
    return Span(seconds, cpu_seconds, spans[0].threads)


def _blocks(run: Run) -> dict[str, Span]:
    """Steps of a block's candidates beside each other."""
    some = block_candidates(run)
    cells = [one for number, depth in enumerate(some) for one in _random_cells(run, depth, number + 1)[-1:]]
    sizes = run.train.hidden_size, run.study.student.hidden_size
    cells += [no_layer().fresh(*sizes)] if run.study.block.no_layer else []
    trainer = run.trainer(0, run.study.block, Tracker(), seed=run.study.seed)
    return {"block_step": trainer.time_step([one.trained.train() for one in cells], _SECONDS / 2, beside=True)}


def block_candidates(run: Run) -> list[int]:
    """The depths of a block's candidates, as many as there can be; no layer is one more."""
    settings = run.study.cell
    every = [depth for _ in range(settings.candidates) for depth in settings.depths]
    return every[: run.study.block.candidates]


def _students(run: Run) -> dict[str, Span]:
    """Steps of students of cells of middle depth, and of the one without layers, with what each takes before."""
    maker, depths = StudentMaker(run, run.study.seed), sorted(run.spaces)
    blocks, sizes = run.num_blocks, (run.train.hidden_size, run.study.student.hidden_size)
    layered = _random_cells(run, depths[len(depths) // 2], blocks)
    kinds: dict[str, Sequence[Any]] = {"student": layered}
    if run.shape.static_path:
        kinds["bag"] = [no_layer().fresh(*sizes) for _ in range(blocks)]
    found: dict[str, Span] = {}
    settings = run.study.supernet
    few = replace(settings, epochs=1, epoch_rows=_STEPS * settings.batch_size, last_epochs=0, patience=None)
    for kind, cells in kinds.items():
        maker.new_student(cells)  # what all students start from is made once
        clock, start = Clock(_SECONDS), Span.now()
        maker.distil(cells, few, Tracker(), general=False, callbacks=[clock])
        whole = Span.now() - start
        steps = clock.ends[-1] - clock.ends[0]
        found |= {f"{kind}_step": clock.step, f"{kind}_start": whole - steps}
    return found
