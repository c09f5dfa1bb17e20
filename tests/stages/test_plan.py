"""What a plan says, beside what a tiny study then makes: rows, steps and bytes to the last one."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
from rich.console import Console
from tiny import tiny_run, write_scores

from nni_bertnas.machine import Span, best_device
from nni_bertnas.report.plan import show_plan
from nni_bertnas.stages import STAGES
from nni_bertnas.stages.pace import Pace
from nni_bertnas.stages.plan import COUNTS, Sizes, make_plan, student_steps, wall_seconds
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure, load
from nni_bertnas.store.layout import ARRAYS

TRIALS = {"strategy": "random", "options": {"samples": 2}, "depths": [1, 2]}


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """Steps of all trainings, by the kind of module."""
    made: Counter = Counter()
    before = pl.Trainer.fit

    def fit(self: pl.Trainer, model: pl.LightningModule, *others: object, **more: object) -> None:
        before(self, model, *others, **more)
        made[type(model).__name__] += self.global_step

    with monkeypatch.context() as patch:
        patch.setattr(pl.Trainer, "fit", fit)
        yield made


def units_made(run: Run, name: str) -> None:
    for unit in load(name).units(run):
        ensure(run, name, unit)


def steps_of(counts: list[dict[str, float]], kind: str) -> float:
    return sum(number for one in counts for name, number in one.items() if name.startswith(kind))


@pytest.mark.slow
@pytest.mark.parametrize("partly", [False, True])
def test_steps_and_bytes_are_those_that_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partly: bool) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"qaa qa{chr(98 + number % 20)} qba qb{chr(97 + number // 20)}" for number in range(90)))
    run = tiny_run(
        tmp_path,
        cell={**TRIALS, "batch_size": 13},
        block={"max_rows": 70, "batch_size": 8, "no_layer": True},
        features={"max_gigabytes": 3e-4} if partly else {},
        transfer={"files": [str(texts)]},
        supernet={"finalists": 2, "half": False, "bag": True, "last_epochs": 1, "batch_size": 7, "epochs": 2},
    )
    sizes = Sizes(run)
    counts = {name: COUNTS[name](run, sizes) for name in STAGES if name in COUNTS}
    assert sizes.stored.all() != partly
    one, two = (
        steps_of(COUNTS["supernet"](Run(replace(run.study, supernet=settings)), sizes), "student_step")
        for settings in (run.study.supernet, replace(run.study.supernet, half=True))
    )
    assert two - one == student_steps(run, sizes, "student")
    kinds = {"teacher": "_FineTuning", "cell": "_Together", "block": "_Beside", "supernet": "StudentDistillation"}
    for name, kind in kinds.items():
        with counted(monkeypatch) as made:
            units_made(run, name)
        expected = steps_of(counts[name], f"{name}_step" if name != "supernet" else "student_step")
        expected += steps_of(counts[name], "bag_step")
        if name == "cell":  # a sample may come twice, and is trained once then
            tried = sum(run.read("cell", unit)["num_searched"] for unit in load("cell").units(run))
            expected *= tried / (2 * len(load("cell").units(run)))
        assert made[kind] == expected, name
    assert len(sizes.train) == len(run.train) and np.array_equal(sizes.train.tokens, run.train.tokens)
    assert np.array_equal(np.flatnonzero(sizes.stored), run.train.rows)
    folder = run.folder("features")
    written = sum(file.stat().st_size for file in folder.glob("*/*.bin"))
    arrays = sum(np.load(file).nbytes for file in folder.glob("*/*.npy"))
    assert len(list(folder.glob("*/*.npy"))) == 2 * len(ARRAYS)
    assert sizes.feature_bytes == written + arrays
    (pieces,) = counts["features"]
    assert pieces["stored_piece"] == sum(store.index.num_hidden_tokens for store in (run.train, run.dev))
    assert pieces["stored_piece"] + pieces["teacher_piece"] == len(run.train.tokens) + len(run.dev.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["single", "scores"])
def test_a_plan_measures_what_is_missing_and_makes_nothing(tmp_path: Path, kind: str) -> None:
    own = {} if kind == "single" else {"task": write_scores(tmp_path / "scores"), "general": {"rows": 100}}
    run = tiny_run(tmp_path, cell=TRIALS, supernet={"finalists": 2, "bag": True}, **own)
    plan = make_plan(run)
    assert not run.root.exists() and plan.pace is not None
    names = [work.stage for work in plan.works]
    assert names == [name for name in STAGES if load(name).units(run)]
    assert all(work.finished == 0 and work.seconds is not None and work.seconds > 0 for work in plan.works)
    console = Console(record=True, width=120, markup=False)
    show_plan(plan, Path("a.yml"), console)
    text = console.export_text()
    assert "uncertain by a factor of 1.5" in text and "bertnas run a.yml --smoke" in text


@pytest.mark.slow
def test_what_is_finished_is_not_planned(built: Run) -> None:
    run = tiny_run(built.root.parents[1], cell=TRIALS)
    plan = {work.stage: work for work in make_plan(run).works}
    assert plan["teacher"].finished == plan["features"].finished == 1 and plan["teacher"].seconds == 0
    assert plan["cell"].finished == 0 and not plan["teacher"].count and plan["cell"].count


def test_every_stage_is_counted_or_said_not_to_be_known() -> None:
    assert set(STAGES) - set(COUNTS) == {"probes"}


def test_trials_run_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nni_bertnas.stages import plan

    monkeypatch.setattr(plan, "_TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(plan, "_EXPERIMENT_SECONDS", 0.0)
    monkeypatch.setattr(plan, "num_cores", lambda: 2)
    run = tiny_run(tmp_path, nni={"concurrency": 2})
    assert wall_seconds(run, load("cell"), [10, 20, 10, 20]) == 40  # 10 then 10 then 20; 20
    assert wall_seconds(run, load("features"), [10, 20]) == 30
    assert wall_seconds(run, load("supernet"), [10, 20]) == 30, "latency is measured: one at a time"
    run = tiny_run(tmp_path, nni={"concurrency": 4})
    assert wall_seconds(run, load("cell"), [10, 10, 10, 10]) == 20, "four on two cores"


def test_beside_other_work_the_processors_time_counts() -> None:
    spans = {"step": Span(seconds=9.0, cpu_seconds=2.0, threads=1)}
    assert Pace(spans=spans, memory_bytes=0, others=0.0, busy=False).seconds({"step": 3}) == 27.0
    expected = 6.0 if best_device().type == "cpu" else 27.0
    assert Pace(spans=spans, memory_bytes=0, others=2.0, busy=True).seconds({"step": 3}) == expected


def test_rows_made_of_trains_are_counted_once(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, augment={"corruptions": 2})
    sizes = Sizes(run)
    assert sizes.parts(hidden=False) == [len(sizes.train), 2 * sizes.labelled]
    units_made(run, "corrupt")
    assert 1.5 * sizes.labelled < run.read("corrupt")["rows"] <= 2 * sizes.labelled
