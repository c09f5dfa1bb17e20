"""What a study will make before any of it is made: units, steps, seconds, bytes.

Every stage has one small function that counts the steps its units make, out of settings and rows alone; what a step
takes is measured (:mod:`~nni_bertnas.stages.pace`).
"""

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np

from nni_bertnas.config import SupernetSettings, TrainingSettings
from nni_bertnas.data.batches import TokenDataset
from nni_bertnas.data.models import load_tokenizer
from nni_bertnas.data.tokens import CHUNK, tokenize, tokenize_stream
from nni_bertnas.data.transfer import load_transfer
from nni_bertnas.errors import PhaseError
from nni_bertnas.machine import num_cores
from nni_bertnas.search.strategies import OneShotOptions, RandomOptions, TrialOptions, find_strategy
from nni_bertnas.stages import STAGES
from nni_bertnas.stages.cells import starts_general
from nni_bertnas.stages.pace import Pace, block_candidates, measure
from nni_bertnas.stages.run import Run, Unit
from nni_bertnas.stages.stage import Stage, found_whole, load, trials_at_once
from nni_bertnas.stages.students import JUDGED_ROWS
from nni_bertnas.store.budget import rows_within
from nni_bertnas.store.layout import ARRAYS, Layout
from nni_bertnas.student.latency import around
from nni_bertnas.training.losses import LOSSES
from nni_bertnas.training.teacher import label_map

UNCERTAIN = 1.5  # times as long, or as short, all stages together; one alone may be off by 2 (docs, "Stages")
_EXPERIMENT_SECONDS, _TRIAL_SECONDS = 12.0, 3.0  # that NNI takes to start and stop, and between trials
_LATENCY_PASSES = 60  # of the teacher, and of all else together, at every length of the table
_COMPARED_PASSES = 400  # teacher against student
Count = dict[str, float]  # how many steps of which kind


class Sizes:
    """The rows of a study, tokenised, and what is stored of them.

    Args:
        run: Of the study.

    Attributes:
        train: All rows that the features are made of, train's own first.
        labelled: How many are train's own.
        dev: Of dev.
        final: Word pieces of the splits that are read at the end.
    """

    def __init__(self, run: Run) -> None:
        study, splits = run.study, run.data.splits
        tokenizer = load_tokenizer(study.teacher.model, study.teacher.trust_remote_code)
        self.run, longest = run, study.task.max_length
        chunks = itertools.chain(splits["train"].chunks(CHUNK), load_transfer(study.transfer, study.task, splits))
        self.train: TokenDataset = tokenize_stream(tokenizer, chunks, longest)
        self.labelled = len(splits["train"])
        self.dev: TokenDataset = tokenize(tokenizer, splits["dev"], longest)
        finals = (tokenize(tokenizer, splits[name], longest) for name in run.data.final_splits)
        self.final = sum(len(one.tokens) for one in finals)

    @cached_property
    def stored(self) -> np.ndarray:
        """Which rows of train have their hidden states stored."""
        tokens = self._layout(self.train, len(self.train.tokens)).token_bytes()
        return rows_within(self.run.study.features, tokens, self.train.lengths, len(self.dev.tokens))

    def _layout(self, tokens: TokenDataset, num_hidden_tokens: int) -> Layout:
        run = self.run
        return Layout(
            edges=run.cuts,
            dtype=run.study.features.dtype,
            hidden_size=run.pretrained_config.hidden_size,
            num_labels=0 if run.teacher_kind == "siamese" else len(run.data.label_names) or 1,
            num_rows=len(tokens),
            num_hidden_tokens=num_hidden_tokens,
            sides=2 if tokens.token_types.any() else 1,
            separate=run.separate,
        )

    @property
    def feature_bytes(self) -> int:
        """Of the feature store on disk, but for what describes it."""
        kept = int((self.train.lengths * self.stored).sum())
        layouts = (self._layout(self.train, kept), self._layout(self.dev, len(self.dev.tokens)))
        files = sum(file.count * file.row_bytes for layout in layouts for file in layout.files().values())
        arrays = sum(getattr(one, name).nbytes for one in (self.train, self.dev) for name in ARRAYS if name != "stored")
        return files + arrays + len(self.train) + len(self.dev)

    def parts(self, *, hidden: bool) -> list[int]:
        """Rows of the parts that a student learns from: with and without hidden states, and made of train's."""
        study, kept = self.run.study, int(self.stored.sum())
        mined = sum((study.pairs.bm25, study.pairs.near, study.pairs.beyond, study.pairs.random))
        more = (
            2 * self.labelled * mined,
            self.labelled * study.augment.corruptions,
            self.labelled * study.augment.copies,
        )
        own = (kept, len(self.train) - kept) if hidden else (len(self.train),)
        return [rows for rows in (*own, *more) if rows]

    @property
    def general_pieces(self) -> float:
        """Word pieces of general text, each as long as a text of the study is."""
        sides = 2 if self.run.task.pairs else 1
        return self.run.general_rows * float(self.train.lengths.mean()) / sides


def _steps(rows: int, batch_size: int) -> int:
    return ceil(rows / batch_size)


def _trained(settings: TrainingSettings, sizes: Sizes, share: float = 1.0) -> int:
    """Steps of an epoch of cells."""
    rows = int(sizes.stored.sum()) or len(sizes.train)
    return _steps(ceil(share * min(rows, settings.max_rows or rows)), settings.batch_size)


def teacher(run: Run, sizes: Sizes) -> list[Count]:
    """Fine-tuning, scored on dev after every epoch, and the scores at the end."""
    settings, config = run.study.teacher, run.pretrained_config
    known = label_map(config, run.data.label_names, settings.fine_tune, settings.labels) is not None
    epochs, dev = 0 if known else settings.epochs, len(sizes.dev.tokens)
    steps = epochs * _steps(sizes.labelled, settings.batch_size)
    return [{"teacher_step": steps, "teacher_piece": (epochs + 1) * dev + sizes.final}]


def features(run: Run, sizes: Sizes) -> list[Count]:
    """One pass over train, its rows without labels, and dev; then the latencies of operations."""
    kept = int((sizes.train.lengths * sizes.stored).sum())
    stored, rest = kept + len(sizes.dev.tokens), len(sizes.train.tokens) - kept
    return [{"stored_piece": stored, "teacher_piece": rest, "latency_pass": _table_passes(sizes)}]


def _table_passes(sizes: Sizes) -> int:
    return _LATENCY_PASSES * len(around(sizes.dev.lengths[:60].tolist()))


def general(run: Run, sizes: Sizes) -> list[Count]:
    """One pass over general text, and over every word piece by itself between two more."""
    vocabulary = run.pretrained_config.vocab_size
    return [{"teacher_piece": sizes.general_pieces + 3 * vocabulary}] if run.general_rows else []


def pairs(run: Run, sizes: Sizes) -> list[Count]:
    """One pass over the mined pairs, at most."""
    study = run.study.pairs
    mined = 2 * sizes.labelled * sum((study.bm25, study.near, study.beyond, study.random))
    return [{"teacher_piece": mined * float(sizes.train.lengths.mean())}] if mined else []


def corrupt(run: Run, sizes: Sizes) -> list[Count]:
    """One pass over the corrupted texts."""
    rows = sizes.labelled * run.study.augment.corruptions
    return [{"teacher_piece": rows * float(sizes.train.lengths.mean())}] if rows else []


def masked_lm(run: Run, sizes: Sizes) -> list[Count]:
    """Epochs over train and as many rows without labels, at most."""
    settings, teacher_batch = run.study.augment, run.study.teacher.batch_size
    rows = min(len(sizes.train), 2 * sizes.labelled)
    wanted = settings.copies and settings.masked_lm is None
    return [{"teacher_step": settings.fit_epochs * _steps(rows, teacher_batch)}] if wanted else []


def augment(run: Run, sizes: Sizes) -> list[Count]:
    """One pass per word of train, each over the whole text, and one over the new rows."""
    copies, lengths = run.study.augment.copies, sizes.train.lengths[: sizes.labelled].astype(float)
    return [{"teacher_piece": float((lengths**2).sum() + copies * lengths.sum())}] if copies else []


def cell(run: Run, sizes: Sizes) -> list[Count]:
    """What the strategy trains and scores in every (block, depth)."""
    settings, found = run.study.cell, []
    for unit in load("cell").units(run):
        blocks = run.num_blocks if settings.shared else 1
        steps, scored = _search(run, unit["depth"], sizes)
        found.append(
            {
                f"cell_step_{unit['depth']}": blocks * steps,
                "cell_start": blocks,
                "cell_piece": blocks * scored,
            }
        )
    return found


def _search(run: Run, depth: int, sizes: Sizes) -> tuple[float, float]:
    """Steps of a search at one depth, in those of one cell, and the word pieces of dev that it scores; at most."""
    settings, space = run.study.cell, run.spaces[depth]
    strategy, options = find_strategy(settings)
    dev, every = len(sizes.dev.tokens), space.count()
    if isinstance(options, OneShotOptions):
        # A differentiable strategy runs all operations at once, others one path at a time.
        paths = len(space.operations) if strategy.family == "differentiable" else 1
        steps = (paths * settings.epochs + settings.candidates * options.candidate_epochs) * _trained(settings, sizes)
        ranked = min(options.rank_limit, every) * min(options.rank_rows or len(sizes.dev), len(sizes.dev))
        return steps, settings.candidates * dev + ranked * float(sizes.dev.lengths.mean())
    tried = min(every, options.samples) if isinstance(options, TrialOptions) else every
    shares = [(tried, 1.0)]
    if isinstance(options, RandomOptions) and options.halvings:
        counts = [tried]
        for _ in range(options.halvings):
            counts.append(min(counts[-1], max(settings.candidates, ceil(counts[-1] / 2))))
        shares = [(count, 0.5 ** (options.halvings - number)) for number, count in enumerate(counts)]
    steps = sum(count * settings.epochs * _trained(settings, sizes, share) for count, share in shares)
    return steps, sum(count for count, _ in shares) * dev


def block(run: Run, sizes: Sizes) -> list[Count]:
    """All candidates of a block trained side by side, scored, and put in the block's place."""
    settings = run.study.block
    count = len(block_candidates(run)) + settings.no_layer
    replaced = count * min(settings.replaced_rows, len(sizes.dev)) * float(sizes.dev.lengths.mean())
    steps = settings.epochs * _trained(settings, sizes)
    if starts_general(run):
        steps += settings.epochs * _steps(run.study.general.cells, settings.batch_size)
    one = {
        "block_step": steps,
        "cell_start": 1.0,
        "cell_piece": count * len(sizes.dev.tokens),
        "teacher_piece": replaced,
    }
    return [one for _ in range(run.num_blocks)]


def student_steps(run: Run, sizes: Sizes, kind: str) -> int:
    """Steps of the training of one student, `student` or `bag`, if it does not end early."""
    settings, losses = run.study.supernet, run.study.distill.losses
    # Of one without layers there are no hidden states to compare.
    hidden = kind == "student" and any(LOSSES[name].needs in ("hidden", "entries") for name in losses if losses[name])
    epoch = sum(_steps(rows, settings.batch_size) for rows in sizes.parts(hidden=hidden))
    if settings.epoch_rows is not None:
        epoch = _steps(settings.epoch_rows, settings.batch_size)
    return settings.epochs * epoch + settings.last_epochs * _steps(sizes.labelled, settings.batch_size)


def judged_steps(settings: SupernetSettings, sizes: Sizes) -> int:
    """Steps of a student that is judged after a short training."""
    rows = min(settings.epoch_rows or JUDGED_ROWS, JUDGED_ROWS, len(sizes.train))
    return settings.search_epochs * _steps(rows, settings.batch_size)


def _one_student(run: Run, sizes: Sizes, kind: str) -> Count:
    steps = student_steps(run, sizes, kind)
    if run.general_rows:
        general = run.study.general
        steps += general.epochs * _steps(run.general_rows, general.batch_size)
    return {f"{kind}_step": steps, f"{kind}_start": 1, "latency_pass": _COMPARED_PASSES}


def supernet(run: Run, sizes: Sizes) -> list[Count]:
    """Latencies, finalists and shapes judged, the student, the one of half its latency, and the one without layers."""
    settings = run.study.supernet
    judged = (settings.finalists if settings.finalists > 1 else 0) + (len(run.shapes) if len(run.shapes) > 1 else 0)
    students = 2 if settings.half and settings.finalists > 1 else 1
    found = {kind: students * count for kind, count in _one_student(run, sizes, "student").items()}
    found["student_step"] += judged * judged_steps(settings, sizes)
    found["student_start"] += judged
    found["latency_pass"] += _table_passes(sizes)
    if settings.bag and run.shape.static_path:
        bag = _one_student(run, sizes, "bag")
        found = {name: found.get(name, 0) + bag.get(name, 0) for name in {**found, **bag}}
    return [found]


def frontier(run: Run, sizes: Sizes) -> list[Count]:
    """One student each."""
    return [_one_student(run, sizes, "student") for _ in range(run.study.supernet.students)]


def baselines(run: Run, sizes: Sizes) -> list[Count]:
    """One student each, and its cells before."""
    study, units = run.study, load("baselines").units(run)
    depth = max(study.cell.depths)
    steps = run.num_blocks * study.cell.epochs * _trained(study.cell, sizes)
    alone = run.num_blocks * study.block.epochs * _trained(study.block, sizes) / (len(block_candidates(run)) + 1)
    cells = {f"cell_step_{depth}": steps, "block_step": alone, "cell_start": run.num_blocks}
    return [{**_one_student(run, sizes, "student"), **cells} for _ in units]


COUNTS: Mapping[str, Callable[[Run, Sizes], list[Count]]] = {
    "teacher": teacher, "features": features, "general": general, "cell": cell, "block": block, "pairs": pairs,
    "corrupt": corrupt, "masked_lm": masked_lm, "augment": augment, "supernet": supernet, "frontier": frontier,
    "baselines": baselines,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Work:
    """One stage of a plan.

    Attributes:
        stage: Its name.
        units: That the study asks for.
        finished: That are there.
        count: Steps of what is missing, by kind; empty where it cannot be said.
        seconds: That they take; None where it cannot be said.
    """

    stage: str
    units: int
    finished: int
    count: Count
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study will make.

    Attributes:
        sizes: Its rows.
        works: Its stages, in order.
        pace: As it was measured; None where all is finished.
    """

    sizes: Sizes
    works: Sequence[Work]
    pace: Pace | None

    @property
    def seconds(self) -> float:
        """Of all that can be said."""
        return sum(work.seconds or 0.0 for work in self.works)


def make_plan(run: Run) -> Plan:
    """Count what is missing of a study, measure the machine, and say how long it takes.

    Raises:
        ConfigError: The study cannot be run.
    """
    stages = {name: load(name) for name in STAGES if load(name).units(run)}
    missing = {
        name: [number for number, unit in enumerate(stage.units(run)) if not _finished(run, stage, unit)]
        for name, stage in stages.items()
    }
    sizes = Sizes(run)
    pace = measure(run, sizes.train, sizes.labelled, sizes.dev) if any(missing.values()) else None
    works = [_work(run, stage, missing[name], sizes, pace) for name, stage in stages.items()]
    return Plan(sizes=sizes, works=works, pace=pace)


def _finished(run: Run, stage: Stage, unit: Unit) -> bool:
    try:
        return found_whole(run, stage, unit) is not None
    except PhaseError:  # what it is made from is missing
        return False


def _work(run: Run, stage: Stage, missing: Sequence[int], sizes: Sizes, pace: Pace | None) -> Work:
    units: list[Unit] = stage.units(run)
    counts = COUNTS[stage.name](run, sizes) if stage.name in COUNTS else []
    left = [counts[number] for number in missing if counts]
    total: Count = {}
    for count in left:
        total = {name: total.get(name, 0) + count.get(name, 0) for name in {**total, **count}}
    seconds = 0.0 if not missing else None
    if left and pace is not None:
        seconds = wall_seconds(run, stage, [pace.seconds(count) for count in left])
    return Work(stage=stage.name, units=len(units), finished=len(units) - len(missing), count=total, seconds=seconds)


def wall_seconds(run: Run, stage: Stage, each: Sequence[float]) -> float:
    """How long units take together: one after another, or through NNI, some at a time.

    Args:
        run: Of the study.
        stage: Theirs.
        each: Seconds of every unit by itself.
    """
    if stage.optimize is None:
        return sum(each)
    at_once = min(len(each), trials_at_once(run, stage))
    threads = run.study.nni.threads or max(1, num_cores() // at_once)
    slower = max(1.0, at_once * threads / num_cores())
    ends = [0.0] * at_once
    for seconds in each:  # a trial starts when one before it ends
        heapq.heappush(ends, heapq.heappop(ends) + seconds * slower + _TRIAL_SECONDS)
    return max(ends) + _EXPERIMENT_SECONDS
