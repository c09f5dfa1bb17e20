import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from conftest import tiny_study
from rich.console import Console

from nni_bertnas.artifacts import RunDirectory, read_result
from nni_bertnas.config import BaselineConfig, Study, parse_study
from nni_bertnas.errors import CandidateError, ConfigError, PhaseError
from nni_bertnas.launch.experiments import make_config
from nni_bertnas.report.results import best_student, show
from nni_bertnas.search import random_cells as baselines
from nni_bertnas.search.random_cells import (
    Baselines,
    latency_cost,
    params_cost,
    random_architecture,
    sample_architecture,
    student_names,
    uniform_architectures,
)
from nni_bertnas.search.watch import collapse
from nni_bertnas.stages import block, cell, supernet
from nni_bertnas.tracking import Tracker
from search_space.cells import SPACES, build_body, every_architecture, list_choices, space_operations, spell
from search_space.student import StudentForSequenceClassification
from trials.runner import _check

WIDTH = 16
OPERATIONS = {space: space_operations(space, WIDTH) for space in SPACES}
BASELINE = {"random": 1, "uniform": True}


def draw(space: str = "sequential", depths: tuple = (2,), **changes: object) -> baselines.Drawn:
    options = {"cost": params_cost(space, WIDTH), "target": 3000.0, "tolerance": 0.1, "seed": 0, **changes}
    return random_architecture(space, depths, OPERATIONS[space], WIDTH, **options)


@pytest.mark.parametrize("space", SPACES)
def test_a_random_cell_has_the_cost_that_is_wanted(space: str) -> None:
    depth = 3
    cost = params_cost(space, WIDTH)
    generator = random.Random(1)
    searched = sample_architecture(list_choices(space, depth, OPERATIONS[space], WIDTH), space, generator)
    target = cost(depth, searched)
    body = build_body(space, searched, depth, WIDTH)
    assert target == sum(parameter.numel() for parameter in body.parameters())
    for seed in range(5):
        drawn = draw(space, (depth,), target=target, seed=seed, avoid=(depth, searched))
        own = sum(parameter.numel() for parameter in build_body(space, drawn.architecture, depth, WIDTH).parameters())
        assert own == drawn.cost and abs(own / target - 1) <= 0.1 and drawn.ratio == own / target
        assert spell(drawn.architecture) != spell(searched)
        assert drawn == draw(space, (depth,), target=target, seed=seed, avoid=(depth, searched))
    assert len({spell(draw(space, (depth,), target=target, seed=seed).architecture) for seed in range(8)}) > 1


def test_every_architecture_is_drawn_as_often() -> None:
    operations = ("convolution_1", "max_pool_3")
    for space, depth in (("sequential", 3), ("textnas", 2), ("adabert", 1)):
        names = {spell(one) for one in every_architecture(space, depth, operations, WIDTH)}
        choices = list_choices(space, depth, operations, WIDTH)
        generator = random.Random(0)
        count = 40 * len(names)
        seen = Counter(spell(sample_architecture(choices, space, generator)) for _ in range(count))
        assert set(seen) == names
        chi_squared = sum((number - 40) ** 2 / 40 for number in seen.values())
        free = len(names) - 1
        assert abs(chi_squared - free) < 4 * (2 * free) ** 0.5


def test_depths_are_drawn_too() -> None:
    drawn = [draw(depths=(1, 2, 3), tolerance=1.0, seed=seed).depth for seed in range(60)]
    assert set(drawn) == {1, 2, 3} and min(Counter(drawn).values()) >= 8


def test_where_no_cell_fits_the_nearest_is_taken_and_named(caplog: pytest.LogCaptureFixture) -> None:
    costs = [params_cost("sequential", WIDTH)(1, {"layer_0": name}) for name in OPERATIONS["sequential"]]
    drawn = draw(depths=(1,), target=1e6)
    assert drawn.cost == max(costs) and drawn.ratio == max(costs) / 1e6
    assert "none of 500 random cells" in caplog.text


def test_the_searched_cell_is_drawn_only_where_there_is_no_other() -> None:
    def only(operations: tuple[str, ...]) -> baselines.Drawn:
        return random_architecture(
            "sequential", (1,), operations, WIDTH, cost=params_cost("sequential", WIDTH), target=816.0,
            tolerance=0.1, seed=0, avoid=(1, {"layer_0": "convolution_3"}),
        )  # fmt: skip

    assert only(("convolution_3", "zero")).architecture == {"layer_0": "zero"}
    assert only(("convolution_3",)).architecture == {"layer_0": "convolution_3"}


def test_uniform_cells() -> None:
    for space in SPACES:
        depth = 3
        found = uniform_architectures(space, depth, OPERATIONS[space], WIDTH)
        assert list(found) == list(OPERATIONS[space])
        for name, architecture in found.items():
            build_body(space, architecture, depth, WIDTH)
            operations = {
                choice for label, choice in architecture.items() if isinstance(choice, str) and "_skip_" not in label
            }
            assert operations == {name}
    chain = uniform_architectures("textnas", 3, OPERATIONS["textnas"], WIDTH)["convolution_3"]
    assert chain["layer_1_input"] == [1] and chain["layer_2_input"] == [2]
    assert chain["layer_2_skip_0"] == chain["layer_2_skip_1"] == "zero"
    graph = uniform_architectures("adabert", 1, OPERATIONS["adabert"], WIDTH)["max_pool_3"]
    assert graph["graph_0_node_1_inputs"] == graph["graph_0_node_2_inputs"] == [0, 1]


def test_a_uniform_student_is_the_nearest_of_all(built: Study) -> None:
    study = tiny_study(Path(built.runs_dir).parent, cell={"depths": [1, 2]})
    searched = [
        {"depth": 1, "architecture": {"layer_0": "convolution_5"}},
        {"depth": 2, "architecture": {"layer_0": "convolution_5", "layer_1": "dilated_convolution_5"}},
    ]
    drawn = Baselines(study, searched, [9]).students("uniform")
    first, second = next(drawn), next(drawn)
    # Dilated convolutions are as large as plain ones; of equal cost the first in the space's order is taken.
    assert [spell(one.architecture) for one in first] == ["convolution_5", "convolution_5, convolution_5"]
    assert [one.ratio for one in first] == [1.0, 1.0]
    assert {choice for one in second for choice in one.architecture.values()} == {"dilated_convolution_5"}
    # What was searched comes last.
    same = [{"depth": 1, "architecture": {"layer_0": "convolution_5"}}] * 2
    assert spell(next(Baselines(study, same, [9]).students("uniform"))[0].architecture) == "dilated_convolution_5"


def test_random_students_differ_and_keep_their_numbers(built: Study) -> None:
    searched = [{"depth": 1, "architecture": {"layer_0": "convolution_5"}}] * 2
    study = tiny_study(Path(built.runs_dir).parent, baseline={"tolerance": 0.5})
    drawn = [next(Baselines(study, searched, [9]).students(f"random_{number}")) for number in range(5)]
    texts = [str([spell(one.architecture) for one in cells]) for cells in drawn]
    assert len(set(texts)) == 5
    assert texts[3] == str(
        [spell(one.architecture) for one in next(Baselines(study, searched, [9]).students("random_3"))]
    )
    other = tiny_study(Path(built.runs_dir).parent, baseline={"tolerance": 0.5}, seed=1)
    assert any(
        next(Baselines(other, searched, [9]).students(f"random_{number}")) != cells
        for number, cells in enumerate(drawn)
    )
    shared = tiny_study(Path(built.runs_dir).parent, cell={"shared": True}, baseline={"tolerance": 0.5})
    for number in range(4):
        first, second = next(Baselines(shared, searched, [9]).students(f"random_{number}"))
        assert first.architecture == second.architecture


def test_latency_can_be_matched(built: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    # One ms per operation with weights, on a clock that runs ever slower: the reference takes the drift away.
    drift = iter(range(1, 10_000))

    def measure(calls: dict, lengths: list, threads: int) -> dict:
        now = next(drift)
        return {name: now * call for name, call in calls.items()}

    monkeypatch.setattr(baselines, "cell_call", lambda body, size, lengths: 1 + sum(1 for p in body.parameters()))
    monkeypatch.setattr(baselines, "measure_latency_ms", measure)
    reference = (1, {"layer_0": "convolution_3"})
    cost = latency_cost("sequential", WIDTH, reference, [5])
    assert cost(*reference) == cost(1, {"layer_0": "convolution_7"}) == 5.0
    assert cost(1, {"layer_0": "zero"}) == 3.0
    study = tiny_study(Path(built.runs_dir).parent, baseline={"match": "latency_ms"})
    searched = [{"depth": 1, "architecture": {"layer_0": "max_pool_3"}}] * 2
    contest = Baselines(study, searched, [9])
    cells = next(contest.students("random_0"))
    assert contest.targets[0] == contest.targets[1] and all(one.ratio == 1.0 for one in cells)
    assert all(collapse(one.architecture, WIDTH) for one in cells)
    assert contest.facts("random_0", cells)["within_tolerance"]


def test_units_and_names() -> None:
    study = parse_study({"name": "x", "seed": 3})
    assert supernet.units(study, 2) == [{"seed": 3, "student": "searched"}]
    study = parse_study({"name": "x", "baseline": {"random": 2, "uniform": True}})
    units = supernet.units(study, 2)
    assert [unit["student"] for unit in units] == ["searched", "random_0", "random_1", "uniform"]
    config = make_config(study, Path("x.yml"), "supernet", units)
    assert config.max_trial_number == 4 and list(config.search_space) == ["seed", "student"]
    assert config.search_space["student"]["_value"][0] == "searched"  # which the others are matched with
    assert student_names(BaselineConfig()) == ["searched"]
    run = RunDirectory(study)
    assert run.supernet(0).name == "seed0" and run.supernet(0, "random_1").name == "seed0_random_1"
    with pytest.raises(ConfigError, match=r"baseline\.random"):
        parse_study({"name": "x", "baseline": {"random": -1}})
    with pytest.raises(ConfigError, match="random_NUMBER"):
        supernet.run(study, 0, "best")


def test_trials_take_texts() -> None:
    names = {"seed": int, "student": str}
    assert _check("supernet", names, {"student": "uniform", "seed": 1}) == {"seed": 1, "student": "uniform"}
    for wrong in ({"seed": 1}, {"seed": 1, "student": 2}, {"seed": "1", "student": "uniform"}):
        with pytest.raises(ConfigError, match="student as text"):
            _check("supernet", names, wrong)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A tiny study with its searched student alone."""
    study = tiny_study(tmp_path_factory.mktemp("baselines"), supernet={"epochs": 3})
    for phase in (cell, block):
        for unit in phase.units(study, 2):
            phase.run(study, **unit)
    for unit in supernet.units(study, 2):
        supernet.run(study, **unit)
    return study


@pytest.fixture(scope="module")
def finished(searched: Study) -> Study:
    """The same study, which then asks for baselines."""
    study = tiny_study(Path(searched.runs_dir).parent, supernet={"epochs": 3}, baseline=BASELINE)
    before = (RunDirectory(study).supernet(0) / "result.json").stat().st_mtime_ns
    for unit in supernet.units(study, 2):
        supernet.run(study, **unit)
    assert (RunDirectory(study).supernet(0) / "result.json").stat().st_mtime_ns == before
    return study


def test_baselines_go_through_the_same_phases(finished: Study) -> None:
    run = RunDirectory(finished)
    own = read_result(run.supernet(0))
    for name in ("random_0", "uniform"):
        folder = run.supernet(0, name)
        result = read_result(folder)
        assert set(own) - {"selection"} <= set(result) and result["student_kind"] == name
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
    (operation,) = {
        choice for one in read_result(run.supernet(0, "uniform"))["architecture"] for choice in one.values()
    }
    assert operation in OPERATIONS["layers"]


def test_as_many_epochs_as_the_searched_cells(finished: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    from nni_bertnas.search import evaluator

    trained = []
    monkeypatch.setattr(
        evaluator.DistillationEvaluator, "fit_cells",
        lambda self, cells, epochs: trained.append((self.edges, self.learning_rate, epochs)) or [0.5] * len(cells),
    )  # fmt: skip
    root = Path(finished.runs_dir).parent
    store = supernet.open_features(finished, "train")
    for section, expected in (
        ({"strategy": "darts"}, 3),
        ({"strategy": "random"}, 2),
        ({"strategy": "darts", "shared": True}, 3),
    ):
        study = tiny_study(root, cell=section, block={"learning_rate": 1e-3})
        cells = next(
            Baselines(study, [{"depth": 1, "architecture": {"layer_0": "convolution_3"}}] * 2, [9]).students("random_0")
        )
        trained.clear()
        baselines.train_cells(study, cells, store, store)
        both = [((0, 1), 1e-3, 1), ((1, 2), 1e-3, 1)]
        first = (
            [((0, 1, 2), 4e-3, expected)]
            if "shared" in section
            else [((0, 1), 4e-3, expected), ((1, 2), 4e-3, expected)]
        )
        assert trained == first + both


def test_finished_baselines_are_reused(finished: Study, searched: Study) -> None:
    root = Path(finished.runs_dir).parent
    for unit in supernet.units(finished, 2):
        assert supernet.find(finished, **unit) is not None
    more = tiny_study(root, supernet={"epochs": 3}, baseline={"random": 5})
    assert supernet.find(more, 0, "random_0") is not None and supernet.find(more, 0, "random_1") is None
    closer = tiny_study(root, supernet={"epochs": 3}, baseline={**BASELINE, "tolerance": 0.05})
    assert supernet.find(closer, 0) is not None and supernet.find(closer, 0, "random_0") is None
    longer = tiny_study(root, supernet={"epochs": 4}, baseline=BASELINE)
    assert supernet.find(longer, 0, "uniform") is None
    assert supernet.find(searched, 0) is not None


def test_a_baseline_makes_the_searched_student_first(finished: Study) -> None:
    recorded = []

    class Recorder(Tracker):
        def epoch(self, metrics: dict, default: str) -> None:
            recorded.append(metrics["dev_accuracy"])

    assert supernet.find(finished, 7) is None
    result = supernet.run(finished, 7, "uniform", Recorder())
    own = supernet.find(finished, 7)
    assert own is not None and result["searched_fingerprint"] == own["fingerprint"]
    assert len(recorded) == 3  # of the baseline alone
    for name in ("searched", "uniform"):
        shutil.rmtree(RunDirectory(finished).supernet(7, name))


def test_cells_that_do_not_train_are_drawn_anew(finished: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def train(study: Study, drawn: list, *stores: object) -> tuple:
        tried.append([spell(one.architecture) for one in drawn])
        if len(tried) < 3:
            raise CandidateError("its block score is [nan]")
        return ["cell"], [0.5]

    monkeypatch.setattr(baselines, "train_cells", train)
    searched = [{"depth": 1, "architecture": {"layer_0": "convolution_3"}}] * 2
    study = tiny_study(Path(finished.runs_dir).parent, baseline={"tolerance": 0.8})
    for name in ("random_0", "uniform"):
        tried.clear()
        drawn, cells, _ = baselines.train_student(Baselines(study, searched, [9]), name, None, None)
        assert cells == ["cell"] and [spell(one.architecture) for one in drawn] == tried[2]
        assert len({str(one) for one in tried}) == 3
    monkeypatch.setattr(baselines, "train_cells", lambda *_: (_ for _ in ()).throw(CandidateError("nan")))
    with pytest.raises(PhaseError, match=r"lower cell\.learning_rate"):
        baselines.train_student(Baselines(study, searched, [9]), "random_0", None, None)


def test_the_report_shows_them_beside_the_searched_one(finished: Study, capsys: pytest.CaptureFixture) -> None:
    run = RunDirectory(finished)
    folder, own = best_student(finished)
    assert folder == run.supernet(0)
    path = run.supernet(0, "random_0") / "result.json"
    before = path.read_text()
    try:
        for accuracy, expected in ((1.0, True), (0.0, False)):
            result = json.loads(before)
            result["student"] |= {"dev_accuracy": accuracy, "glue_dev_accuracy": accuracy}
            result["block_scores"] = [1 - accuracy, 1 - accuracy]
            path.write_text(json.dumps(result))
            assert best_student(finished)[0] == run.supernet(0)  # never a baseline
            show(finished, Console(width=240))
            text = capsys.readouterr().out
            assert "│ searched" in text and "│ random_0" in text and "│ uniform" in text
            assert f"{own['block_scores'][0]:.3f} {own['block_scores'][1]:.3f}" in text
            line = f"random_0 is as good as the searched student, or better: dev accuracy {accuracy * 100:.2f} against"
            assert (line in text) == expected
            assert "of 2 baseline(s) the searched student is better than:" in text
        result["matched"] |= {"within_tolerance": False, "ratio": 1.8, "own": [9, 9], "searched": [5, 5]}
        path.write_text(json.dumps(result))
        show(finished, Console(width=240))
        assert "no match in cost: its cells have 1.80 times the searched ones' num_params" in capsys.readouterr().out
        # One that was matched with an earlier search is not shown.
        path.write_text(json.dumps({**result, "searched_fingerprint": "old"}))
        show(finished, Console(width=240))
        assert "random_0" not in capsys.readouterr().out
    finally:
        path.write_text(before)


def test_the_report_calls_a_collapse_so(finished: Study, capsys: pytest.CaptureFixture) -> None:
    path = RunDirectory(finished).cell(1, 1) / "result.json"
    before = path.read_text()
    try:
        collapsed = collapse({"layer_0": "max_pool_3"}, WIDTH)
        path.write_text(json.dumps({**json.loads(before), "collapsed": collapsed}))
        show(finished, Console(width=240))
        expected = "the search of block 1, depth 1 has collapsed to parameter-free operations: max_pool_3"
        assert expected in capsys.readouterr().out
    finally:
        path.write_text(before)
