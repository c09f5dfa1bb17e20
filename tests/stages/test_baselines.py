import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import Recorder, all_units, chain, rewrite, tiny_run

from nni_bertnas.artifacts import read_result
from nni_bertnas.errors import CandidateError, ConfigError, PhaseError
from nni_bertnas.launch.experiments import make_config
from nni_bertnas.report.results import best_student, show
from nni_bertnas.search.random_cells import BASELINES, Matching, params_cost
from nni_bertnas.search.watch import collapse
from nni_bertnas.stages import baselines
from nni_bertnas.stages.baselines import read_name, train_cells
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure, find, load
from nni_bertnas.student.candidates import Candidate
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training.cells import CellTrainer
from search_space.cells import spell
from search_space.student import StudentForSequenceClassification

WIDTH = 16
STUDENTS = {"random": 1, "uniform": 1}
SEED = {"seed": 0}


def unit(student: str, seed: int = 0) -> dict[str, Any]:
    return {"seed": seed, "student": student}


def test_units_and_names(tmp_path: Path) -> None:
    stage = load("baselines")
    assert stage.units(tiny_run(tmp_path)) == []
    run = tiny_run(tmp_path, seed=3, baseline={"students": {"random": 2, "uniform": 1}})
    units = stage.units(run)
    assert units == [unit(name, 3) for name in ("random_0", "random_1", "uniform_0")]
    config = make_config(run, Path("x.yml"), stage, units)
    assert config.max_trial_number == 3 and list(config.search_space) == ["seed", "student"]
    assert config.tuner.class_args == {"optimize_mode": "maximize"} and config.trial_concurrency == 1
    assert run.folder("baselines", units[1]).name == "seed3_random_1"
    assert read_name("uniform_12") == (BASELINES["uniform"], 12)
    for wrong, message in (("best_1", "must be one of random, uniform"), ("random", "must be KIND_NUMBER")):
        with pytest.raises(ConfigError, match=message):
            ensure(run, "baselines", unit(wrong))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny study with its searched student alone."""
    run = tiny_run(tmp_path_factory.mktemp("baselines"), supernet={"epochs": 3})
    all_units(run, "cell", "block", "supernet")
    return run


@pytest.fixture(scope="module")
def finished(searched: Run) -> Run:
    """The same study, which then asks for baselines."""
    run = tiny_run(searched.root.parents[1], supernet={"epochs": 3}, baseline={"students": STUDENTS})
    path = run.folder("supernet", SEED) / "result.json"
    before = path.stat().st_mtime_ns
    all_units(run, "supernet", "baselines")
    assert path.stat().st_mtime_ns == before
    return run


def test_baselines_go_through_the_same_stages(finished: Run) -> None:
    own = finished.read("supernet", SEED)
    for name in ("random_0", "uniform_0"):
        folder = finished.folder("baselines", unit(name))
        result = read_result(folder)
        assert set(own) - {"selection", "kept", "finalists"} <= set(result) and result["student_kind"] == name
        assert result["teacher"]["dev_accuracy"] == own["teacher"]["dev_accuracy"]
        assert result["chain_difference"] < 1e-3 and all(0 < score < 1 for score in result["block_scores"])
        student = StudentForSequenceClassification.from_pretrained(folder / "student")
        assert sum(parameter.numel() for parameter in student.parameters()) == result["student"]["num_params"]
        assert [one["architecture"] for one in student.config.cells] == result["architecture"]
        assert result["architecture"] != own["architecture"]
        matched = result["matched"]
        bodies = [sum(p.numel() for p in body.parameters()) for body in student.cells]
        assert bodies == matched["own"] and matched["ratio"] == sum(bodies) / sum(matched["searched"])
        # What is around the cells is the same.
        assert result["student"]["num_params"] - sum(bodies) == own["student"]["num_params"] - sum(matched["searched"])
    uniform = finished.read("baselines", unit("uniform_0"))["architecture"]
    (operation,) = {choice for one in uniform for choice in one.values()}
    assert operation in finished.spaces[1].operations


@pytest.mark.parametrize(
    ("section", "expected"),
    [({"strategy": "darts"}, 3), ({"strategy": "random"}, 2), ({"strategy": "darts", "shared": True}, 3)],
)
def test_as_many_epochs_as_the_searched_cells(
    finished: Run, monkeypatch: pytest.MonkeyPatch, section: dict, expected: int
) -> None:
    trained = []
    monkeypatch.setattr(
        CellTrainer, "fit_cells",
        lambda self, cells, epochs: trained.append((self.edges, self.settings.learning_rate, epochs)),
    )  # fmt: skip
    monkeypatch.setattr(
        CellTrainer, "fit_candidates",
        lambda self, cells, epochs: trained.append((self.edges, self.settings.learning_rate, epochs)),
    )  # fmt: skip
    run = tiny_run(finished.root.parents[1], cell=section, block={"learning_rate": 1e-3})
    found = train_cells(run, [chain("convolution_3")] * 2)
    assert all(0 < one.score < 9 and not one.trained.training for one in found)
    both = [((0, 1), 1e-3, 1), ((1, 2), 1e-3, 1)]
    blocks = [(0, 1, 2)] if "shared" in section else [(0, 1), (1, 2)]
    assert trained == [(edges, 4e-3, expected) for edges in blocks] + both


def test_finished_baselines_are_reused(finished: Run, searched: Run) -> None:
    root = finished.root.parents[1]
    for name in ("random_0", "uniform_0"):
        assert find(finished, "baselines", unit(name)) is not None
    more = tiny_run(root, supernet={"epochs": 3}, baseline={"students": {"random": 5}})
    assert find(more, "baselines", unit("random_0")) is not None
    assert find(more, "baselines", unit("random_1")) is None
    closer = tiny_run(root, supernet={"epochs": 3}, baseline={"students": STUDENTS, "tolerance": 0.05})
    assert find(closer, "supernet", SEED) is not None and find(closer, "baselines", unit("random_0")) is None
    longer = tiny_run(root, supernet={"epochs": 4}, baseline={"students": STUDENTS})
    with pytest.raises(PhaseError, match="bertnas supernet STUDY"):
        find(longer, "baselines", unit("uniform_0"))
    assert find(searched, "supernet", SEED) is not None


def test_a_baseline_makes_the_searched_student_first(finished: Run) -> None:
    recorder = Recorder()
    assert find(finished, "supernet", {"seed": 7}) is None
    result = ensure(finished, "baselines", unit("uniform_0", 7), recorder)
    own = find(finished, "supernet", {"seed": 7})
    assert own is not None and result["searched_fingerprint"] == own["fingerprint"]
    assert len(recorder.reported) == 3  # of the baseline alone
    shutil.rmtree(finished.folder("supernet", {"seed": 7}))
    shutil.rmtree(finished.folder("baselines", unit("uniform_0", 7)))


@pytest.mark.parametrize("name", BASELINES)
def test_cells_that_do_not_train_are_drawn_anew(name: str, built: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[str]] = []

    def train(run: Run, drawn: list[Candidate], tracker: Tracker) -> list[Candidate]:
        tried.append([spell(one.architecture) for one in drawn])
        if len(tried) < 3:
            raise CandidateError("its block score is [nan]")
        return drawn

    monkeypatch.setattr(baselines, "train_cells", train)
    match = Matching(
        spaces=built.spaces, searched=[chain("convolution_3")] * 2, cost=params_cost(WIDTH), tolerance=0.8,
        shared=False, seed=0,
    )  # fmt: skip
    drawn = baselines._train(built, BASELINES[name], 0, match, name, Tracker())
    assert [spell(one.architecture) for one in drawn] == tried[2] and len({str(one) for one in tried}) == 3
    monkeypatch.setattr(baselines, "train_cells", lambda *_: (_ for _ in ()).throw(CandidateError("nan")))
    with pytest.raises(PhaseError, match=r"lower cell\.learning_rate"):
        baselines._train(built, BASELINES[name], 0, match, name, Tracker())


def test_the_report_shows_them_beside_the_searched_one(finished: Run, capsys: pytest.CaptureFixture) -> None:
    folder, own = best_student(finished)
    assert folder == finished.folder("supernet", SEED)
    path = finished.folder("baselines", unit("random_0")) / "result.json"
    before = path.read_text()
    try:
        for accuracy, expected in ((1.0, True), (0.0, False)):
            result = json.loads(before)
            result["student"] |= {"dev_accuracy": accuracy, "glue_dev_accuracy": accuracy}
            result["block_scores"] = [1 - accuracy, 1 - accuracy]
            rewrite(path, result)
            assert best_student(finished)[0] == folder  # never a baseline
            show(finished, Console(width=240))
            text = capsys.readouterr().out
            assert "│ searched" in text and "│ random_0" in text and "│ uniform_0" in text
            assert f"{own['block_scores'][0]:.3f} {own['block_scores'][1]:.3f}" in text
            line = f"random_0 is as good as the searched student, or better: dev accuracy {accuracy * 100:.2f} against"
            assert (line in text) == expected
            assert "of 2 baseline(s) the searched student is better than:" in text
        result["matched"] |= {"within_tolerance": False, "ratio": 1.8, "own": [9, 9], "searched": [5, 5]}
        rewrite(path, result)
        show(finished, Console(width=240))
        assert "no match in cost: its cells have 1.80 times the searched ones' num_params" in capsys.readouterr().out
        # One that was matched with an earlier search is not shown.
        rewrite(path, {**result, "searched_fingerprint": "old"})
        show(finished, Console(width=240))
        assert "random_0" not in capsys.readouterr().out
    finally:
        path.write_text(before)


def test_the_report_calls_a_collapse_so(finished: Run, capsys: pytest.CaptureFixture) -> None:
    path = finished.folder("cell", {"block": 1, "depth": 1}) / "result.json"
    before = path.read_text()
    try:
        collapsed = collapse({"layer_0": "max_pool_3"}, WIDTH)
        rewrite(path, {**json.loads(before), "collapsed": collapsed})
        show(finished, Console(width=240))
        expected = "the search of block 1, depth 1 has collapsed to parameter-free operations: max_pool_3"
        assert expected in capsys.readouterr().out
    finally:
        path.write_text(before)
