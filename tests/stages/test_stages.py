import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from tiny import Recorder, all_units, tiny_run, tiny_study
from transformers import AutoTokenizer

from nni_bertnas import machine
from nni_bertnas.artifacts import read_result
from nni_bertnas.cli import main
from nni_bertnas.config import to_yaml
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.report.results import best_student, collapsed_searches, show
from nni_bertnas.stages import STAGES, built_on, stage
from nni_bertnas.stages.block import choose
from nni_bertnas.stages.cells import load_ranked, starts_fresh
from nni_bertnas.stages.run import Run, unit_name
from nni_bertnas.stages.stage import check_unit, ensure, find, load, run_study, stage_fingerprint, trials_at_once
from nni_bertnas.stages.students import StudentMaker
from nni_bertnas.stages.supernet import choose as choose_students
from nni_bertnas.stages.supernet import finals, nearest
from nni_bertnas.student.candidates import Candidate, kind_of
from nni_bertnas.student.latency import LatencyTable
from nni_bertnas.study_files import parse_study
from search_space.cells import spell
from search_space.student import StudentForSequenceClassification

SEED = {"seed": 0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Recorder]]:
    """A whole tiny study, stage by stage."""
    run = tiny_run(tmp_path_factory.mktemp("finished"), cell={"depths": [1, 2]})
    recorders = {name: Recorder() for name in ("cell", "block", "supernet")}
    for name, recorder in recorders.items():
        for unit in load(name).units(run):
            ensure(run, name, unit, recorder)
    return run, recorders


def test_cell_results_are_ranked_and_complete(finished: tuple[Run, dict[str, Recorder]]) -> None:
    run, recorders = finished
    for unit in load("cell").units(run):
        folder = run.folder("cell", unit)
        candidates = read_result(folder)["candidates"]
        scores = [one["score"] for one in candidates]
        assert len(candidates) == 2 and scores == sorted(scores)
        for one in candidates:
            assert len(one["architecture"]) == unit["depth"]
            assert one["num_params"] == sum(value.numel() for value in load_file(folder / one["weights"]).values())
            assert one["num_flops"] > 0 and one["latency_ms"] > 0
        assert (folder / "study.yml").read_text() == to_yaml(run.study)
    assert len(recorders["cell"].results) == 4
    assert all({"default", "num_params", "latency_ms"} <= set(result) for result in recorders["cell"].results)
    assert sum("architecture_entropy" in epoch for epoch in recorders["cell"].reported) == 4 * run.study.cell.epochs


def test_block_goes_on_from_the_cells_weights(finished: tuple[Run, dict[str, Recorder]]) -> None:
    run, _ = finished
    cells = {depth: run.read("cell", {"block": 0, "depth": depth}) for depth in (1, 2)}
    ranking = run.read("block", {"block": 0})["candidates"]
    before = {str(c["architecture"]): c["score"] for result in cells.values() for c in result["candidates"]}
    assert len(ranking) == 2
    everything = [candidate for result in cells.values() for candidate in result["candidates"]]
    best = min(everything, key=lambda one: one["score"])["architecture"]
    assert best in [one["architecture"] for one in ranking]
    # One epoch from scratch could not beat what came before; going on does.
    assert all(one["score"] < before[str(one["architecture"])] * 1.02 for one in ranking)
    assert any(one["score"] < before[str(one["architecture"])] for one in ranking)


def test_cells_start_afresh_where_the_search_saw_little(tmp_path: Path) -> None:
    for max_rows, start, fresh in (
        (40, "auto", True), (60, "auto", False), (None, "auto", False), (None, "fresh", True), (40, "cell", False),
    ):  # fmt: skip
        run = tiny_run(tmp_path, cell={"max_rows": max_rows}, block={"start": start})
        run.train = SimpleNamespace(rows=range(100))
        assert starts_fresh(run) is fresh


def test_choose_takes_the_best_the_fastest_each_depth_and_the_front_first() -> None:
    def make(table: dict[int, list[tuple[float, float]]]) -> list[Candidate]:
        """Of score and latency, by depth."""
        return [
            Candidate(space="layers", depth=depth, architecture={}, score=score, latency_ms=latency_ms)
            for depth, pairs in table.items()
            for score, latency_ms in pairs
        ]

    found = make({1: [(0.5, 1.0), (0.8, 1.5)], 2: [(0.2, 3.0), (0.3, 2.0), (0.4, 4.0)], 3: [(0.7, 5.0), (0.9, 6.0)]})
    chosen = [(one.depth, one.score) for one in choose(found, 9)]
    assert chosen == [(2, 0.2), (1, 0.5), (3, 0.7), (2, 0.3), (2, 0.4), (1, 0.8), (3, 0.9)]
    assert len(choose(found, 2)) == 2
    found = make({1: [(0.332, 1.1), (0.334, 1.0)], 2: [(0.335, 2.1), (0.3355, 2.0), (0.35, 1.9)]})
    chosen = [(one.depth, one.score) for one in choose(found, 9)]
    assert chosen == [(2, 0.335), (1, 0.334), (2, 0.3355), (1, 0.332), (2, 0.35)]
    kinds = ["attention_4", "attention_8", "max_pool_3", "convolution_3", "dilated_convolution_5"]
    found = [
        Candidate(space="layers", depth=1, architecture={"layer_0": name}, score=0.3 + 0.1 * number, latency_ms=1.0)
        for number, name in enumerate(kinds)
    ]
    chosen = [one.architecture["layer_0"] for one in choose(found, 4)]
    assert chosen == ["attention_4", "max_pool_3", "convolution_3", "attention_8"]
    assert kind_of({"layer_0": "nasbert:x", "layer_1": "dilated_convolution_5", "layer_1_input": [0]}) == (
        "convolution", "nasbert:x"
    )  # fmt: skip


def test_finalists_are_within_the_budget_and_unlike_and_the_nearest_to_the_teacher_goes_on(built_copy: Path) -> None:
    operations = ["convolution_3", "convolution_5", "attention_4", "max_pool_3"]
    run = tiny_run(
        built_copy,
        cell={"strategy": "grid", "operations": operations, "epochs": 1, "candidates": 4},
        block={"candidates": 4, "no_layer": True},
        supernet={"finalists": 3, "epochs": 2, "budget": {"max_params": 12_000}},
    )
    all_units(run, "cell", "block")
    maker = StudentMaker(run, 0)
    finalists = choose_students(maker, load_ranked(run), 3)
    kinds = [[kind_of(one.architecture) for one in candidates] for _, candidates in finalists]
    assert len(finalists) == 3 and all(combination.num_params <= 12_000 for combination, _ in finalists)
    assert all(a != b for one, other in itertools.combinations(kinds, 2) for a, b in zip(one, other, strict=True))
    assert [one.score for one, _ in choose_students(maker, load_ranked(run), 1)] == [finalists[0][0].score]
    everything = choose_students(maker, load_ranked(run), 99)
    kinds = [[kind_of(one.architecture) for one in candidates] for _, candidates in everything]
    assert len({str(one) for one in kinds}) == len(kinds) > 3
    result = ensure(run, "supernet", {"seed": 0})
    errors = [one["dev_logit_mse"] for one in result["finalists"]]
    last = finals([(one["dev_logit_mse"], one["latency_ms"]) for one in result["finalists"]])
    last = [n for n in last if n == last[0] or {*result["finalists"][n]["cells"]} != {"no layer"}]
    trained = result.get("finals", [result["finalists"][last[0]] | {"dev_logit_mse": result["dev_logit_mse"]}])
    assert [one["cells"] for one in trained] == [result["finalists"][number]["cells"] for number in last]
    taken = trained[nearest([(one["dev_logit_mse"], one["latency_ms"]) for one in trained])]
    assert taken["cells"] == [spell(one) for one in result["architecture"]] and len(set(errors)) == 3
    assert taken["dev_logit_mse"] == result["dev_logit_mse"]
    assert [one["score"] for one in result["finalists"]] == [combination.score for combination, _ in finalists]


def test_cells_of_all_depths_have_latencies_of_one_table_before_they_are_chosen_from(
    finished: tuple[Run, dict[str, Recorder]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Candidate] = []

    def stop(found: list[Candidate], count: int) -> None:
        seen.extend(found)
        raise InterruptedError

    monkeypatch.setattr(LatencyTable, "latency_ms", lambda self, parts, lengths: dict.fromkeys(parts, 9.0))
    monkeypatch.setattr("nni_bertnas.stages.block.choose", stop)
    run, recorders = finished
    with pytest.raises(InterruptedError):
        load("block").make(run, {"block": 0}, tmp_path, recorders["block"])
    assert {one.depth for one in seen} == {1, 2} and {one.latency_ms for one in seen} == {9.0}


def test_supernet_result_and_saved_student(finished: tuple[Run, dict[str, Recorder]]) -> None:
    run, recorders = finished
    folder = run.folder("supernet", SEED)
    result = read_result(folder)
    assert result["chain_difference"] < 1e-3
    assert result["student"]["glue_dev_accuracy"] > 0.7 and result["teacher"]["glue_dev_accuracy"] > 0.9
    student = StudentForSequenceClassification.from_pretrained(folder / "student").eval()
    assert sum(parameter.numel() for parameter in student.parameters()) == result["student"]["num_params"]
    assert result["architecture"] == [one["architecture"] for one in student.config.cells]
    assert student.config.id2label == {0: "negative", 1: "positive"}
    rows = run.data.splits["glue_dev"]
    tokens = AutoTokenizer.from_pretrained(folder / "student")(rows.texts, padding=True, return_tensors="pt")
    predictions = student(**tokens).logits.argmax(-1).tolist()
    assert accuracy_score(rows.labels, predictions) == pytest.approx(result["student"]["glue_dev_accuracy"])
    scores = [epoch["dev_accuracy"] for epoch in recorders["supernet"].reported]
    kept = result["student"]["dev_accuracy"]
    assert kept == pytest.approx(scores[result["kept_epoch"]]) and kept > max(scores) - 0.1
    assert recorders["supernet"].results[0]["default"] == kept


def test_finished_results_are_reused_until_their_settings_change(finished: tuple[Run, dict[str, Recorder]]) -> None:
    run, _ = finished
    unit, root = {"block": 0, "depth": 1}, run.root.parents[1]
    path = run.folder("cell", unit) / "result.json"
    before, again = path.stat().st_mtime_ns, Recorder()
    ensure(run, "cell", unit, again)
    assert path.stat().st_mtime_ns == before and not again.epochs and again.results
    other = tiny_run(root, cell={"depths": [1, 2], "learning_rate": 1e-3})
    assert find(other, "cell", unit) is None
    fewer = tiny_run(root, cell={"depths": [1]})
    assert find(fewer, "cell", unit) is not None and find(fewer, "block", {"block": 0}) is None
    longer = tiny_run(root, cell={"depths": [1, 2]}, supernet={"epochs": 9})
    assert find(longer, "block", {"block": 0}) is not None and find(longer, "supernet", SEED) is None
    spelled = tiny_run(root, cell={"depths": [1, 2], "options": {"rank_limit": 300}})  # the default, written out
    assert find(spelled, "cell", unit) is not None


def test_the_report_names_both_sides_and_the_place(
    finished: tuple[Run, dict[str, Recorder]], capsys: pytest.CaptureFixture
) -> None:
    run, _ = finished
    show(run, Console(width=200))
    text = capsys.readouterr().out
    folder, result = best_student(run)
    assert f"{result['student']['glue_dev_accuracy'] * 100:.2f}" in text and str(folder / "student") in text
    assert f"{result['teacher']['latency_ms']:.2f}" in text and "1 / " in text


def test_an_impossible_budget_says_what_is_possible(finished: tuple[Run, dict[str, Recorder]]) -> None:
    run, _ = finished
    small = tiny_run(run.root.parents[1], cell={"depths": [1, 2]}, supernet={"budget": {"max_params": 10}})
    with pytest.raises(PhaseError, match=r"at most 10 parameters are wanted, [\d,]+ is the least"):
        ensure(small, "supernet", SEED)
    assert run.read("supernet", SEED) is not None  # the earlier student is still there


def test_a_budget_is_kept(finished: tuple[Run, dict[str, Recorder]]) -> None:
    run, _ = finished
    rankings = [run.read("block", {"block": block})["candidates"] for block in (0, 1)]
    smallest = min(sum(one["num_params"] for one in pair) for pair in zip(*rankings, strict=True))
    limit = run.read("supernet", SEED)["student"]["num_params"]
    settings = {"budget": {"max_params": limit}, "epochs": 1}
    same = tiny_run(run.root.parents[1], cell={"depths": [1, 2]}, supernet=settings)
    result = ensure(same, "supernet", {"seed": 5})
    assert smallest < result["student"]["num_params"] <= limit
    assert result["student"]["num_params"] == result["selection"]["num_params"]


def test_missing_inputs_name_the_command(tmp_path: Path, built: Run) -> None:
    with pytest.raises(PhaseError, match="bertnas cell STUDY"):
        ensure(tiny_run(tmp_path), "block", {"block": 0})
    with pytest.raises(PhaseError, match="bertnas block STUDY"):
        ensure(built, "supernet", SEED)
    with pytest.raises(PhaseError, match="bertnas run"):
        best_student(built)
    with pytest.raises(PhaseError, match="bertnas teacher"):
        stage_fingerprint(tiny_run(tmp_path), "features")


def test_discarding_takes_what_builds_on_it(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    for name in STAGES:
        run.folder(name).mkdir(parents=True)
    run.discard_from("block")
    assert {path.name for path in run.root.iterdir()} == set(STAGES) - {"block", "supernet", "frontier", "baselines"}
    run.discard_from("masked_lm")
    kept = {"teacher", "features", "probes", "cell", "general", "pairs", "corrupt"}
    assert {path.name for path in run.root.iterdir()} == kept


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_keeps_the_contract(name: str, tmp_path: Path) -> None:
    found = load(name)
    pairs = {"task": {"name": "stsb", "source": "glue", "data_dir": "nowhere"}} if name == "pairs" else {}
    run = tiny_run(
        tmp_path,
        **pairs,
        augment={"copies": 1, "corruptions": 1},
        baseline={"students": {"random": 1}},
        general={"rows": 8},
        pairs={"random": 1},
        supernet={"students": 2},
        block={"losses": {"probe": 1.0}},
    )
    assert found.name == name
    units = found.units(run)
    assert units and all(set(unit) == set(found.parameters) for unit in units)
    for unit in units:
        found.check(run, unit)
        assert {needed for needed, _ in found.needs(run, unit)} <= {*STAGES} - set(built_on(name))
    assert (found.optimize is None) == (not found.parameters)
    order = list(STAGES)
    assert all(order.index(needed) < order.index(name) for needed in STAGES[name].on)


def test_trials_take_the_parameters_of_their_stage() -> None:
    found = load("baselines")
    assert list(check_unit(found, {"student": "uniform_0", "seed": 1})) == ["seed", "student"]  # as its folder's name
    assert unit_name(check_unit(load("cell"), {"depth": 2, "block": 0})) == "block0_depth2"
    for wrong in ({"seed": 1}, {"seed": 1, "student": 2}, {"seed": "1", "student": "uniform_0"}):
        with pytest.raises(ConfigError, match="student as text"):
            check_unit(found, wrong)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"augment": {"copies": 1, "masked_lm": "package:nothere"}}, "package nothere is not installed"),
        ({"augment": {"copies": 1, "vectors": "nothere.txt"}}, "augment.vectors: nothere.txt does not exist"),
        ({"cell": {"space": "nosuch", "operations": ["convolution_3", "zero"]}}, "cell.space.*unknown space 'nosuch'"),
        ({"transfer": {"files": ["nothere.txt"]}}, "transfer.files: nothere.txt does not exist"),
        ({"general": {"rows": 8, "files": ["nothere.txt"]}}, "general.files: nothere.txt does not exist"),
        ({"pairs": {"random": 1}}, "pairs: sst2 is a task of single texts"),
        (
            {"task": {"name": "stsb", "source": "glue", "data_dir": "nowhere"}, "augment": {"corruptions": 1}},
            "augment.corruptions: is for tasks of single texts",
        ),
        ({"baseline": {"students": {"random": 1}}, "cell": {"space": "no.such"}}, "cell.space.*no.such"),
    ],
)
def test_what_cannot_be_made_is_said_before_anything_is(sections: dict, message: str, tmp_path: Path) -> None:
    run = tiny_run(tmp_path, **sections)
    with pytest.raises(ConfigError, match=message):
        run_study(run.study)
    assert not run.root.exists()


def test_baselines_of_an_older_version_are_no_searched_students(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    for name, kind, score in (("seed0", "searched", 0.7), ("seed0_random_0", "random_0", 0.8)):
        folder = run.folder("supernet") / name
        folder.mkdir(parents=True)
        run.write(folder, {"seed": 0, "student_kind": kind, "student": {"dev_accuracy": score}})
    assert best_student(run)[0].name == "seed0"
    for block, depth in ((0, 1), (7, 9)):
        folder = run.folder("cell", {"block": block, "depth": depth})
        folder.mkdir(parents=True)
        run.write(folder, {"block": block, "depth": depth, "collapsed": "nothing but zeros"})
    assert collapsed_searches(run) == ["the search of block 0, depth 1 has nothing but zeros"]


def test_trials_at_once_fit_the_machine_and_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trials(name: str, **sections: dict) -> int:
        return trials_at_once(Run(parse_study({"name": "x", **sections})), load(name))

    monkeypatch.setattr(stage, "num_cores", lambda: 16)
    monkeypatch.setattr(stage, "memory_bytes", lambda: 10 << 30)
    assert trials("cell", cell={"depths": [1]}) == 3  # blocks
    boundaries = {"boundaries": [0, 3, 6]}
    assert trials("cell", teacher=boundaries) == 4  # blocks and depths
    assert trials("block", teacher=boundaries) == 2
    assert [trials(name, cell={"shared": True}) for name in ("cell", "block", "supernet")] == [2, 3, 1]
    assert trials("cell", cell={"depths": [1, 2, 3, 4]}) == 5  # 10 GiB
    assert trials("cell", nni={"concurrency": 7}) == 7
    monkeypatch.setattr(stage, "num_cores", lambda: 2)
    assert trials("cell") == 2  # three rounds of six
    assert trials("block") == 3  # two and then one would leave a core idle
    assert machine.memory_bytes() > 1 << 28 and machine.num_cores() >= 1


def test_commands_report_errors_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "study.yml"
    path.write_text("name: x\ncell: {colour: 3}\n")
    assert main(["validate", str(path)]) == 2
    assert "cell.colour: unknown key" in capsys.readouterr().err
    path.write_text(to_yaml(tiny_study(tmp_path)))
    assert main(["validate", str(path)]) == 0
    assert main(["report", str(path)]) == 1
    assert "bertnas run" in capsys.readouterr().err
    assert main(["augment", str(path)]) == 2
    assert "set augment.copies" in capsys.readouterr().err
    assert main(["teacher", str(path)]) == 0
    assert json.loads((tmp_path / "runs/tiny/teacher/result.json").read_text())["fine_tuned"]
    out = capsys.readouterr().out
    assert "teacher: epoch 3: dev_accuracy" in out and "glue_dev accuracy" in out
    assert main(["teacher", str(path)]) == 0
    assert "(reused)" in capsys.readouterr().out


def test_a_supernet_without_progress_ends_early(finished: tuple[Run, dict[str, Recorder]]) -> None:
    settings = {"epochs": 6, "patience": 1, "learning_rate": 1e-12}
    run, recorder = finished[0], Recorder()
    other = tiny_run(
        run.root.parents[1], cell={"depths": [1, 2]}, supernet=settings, student={"freeze_embeddings": True}
    )
    ensure(other, "supernet", {"seed": 5}, recorder)
    assert [metrics["epoch"] for metrics in recorder.reported] == [0, 1]


@pytest.mark.slow
def test_a_study_runs_in_one_process(tmp_path: Path) -> None:
    study = tiny_study(
        tmp_path,
        cell={"strategy": "random", "operations": ["convolution_3", "zero"], "epochs": 1},
        supernet={"epochs": 1},
        baseline={"students": {"uniform": 1}},
    )
    run = run_study(study)
    made = {name: len(run.results(name)) for name in ("cell", "block", "supernet", "baselines")}
    assert made == {"cell": 2, "block": 2, "supernet": 1, "baselines": 1}
    assert not run.folder("augment").exists()


def test_wall_times_that_cannot_be_read_are_no_reason_to_stop(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    run.root.mkdir(parents=True)
    for content in ("", "{", "[1]", "\x00"):
        (run.root / "seconds.json").write_text(content)
        assert run.read_seconds() == {}
    run.record_seconds("teacher", 2.0)
    run.record_seconds("features", 3.0)
    assert run.read_seconds() == {"teacher": 2.0, "features": 3.0}
