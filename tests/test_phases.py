import dataclasses
import json
from pathlib import Path

import pytest
from conftest import tiny_study
from rich.console import Console
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from transformers import AutoTokenizer

from nni_bertnas.artifacts import RunDirectory, atomic_folder, read_result
from nni_bertnas.cli import main
from nni_bertnas.config import Study, study_to_yaml
from nni_bertnas.data.batches import load_task
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.report.results import best_student, show
from nni_bertnas.stages import block, cell, supernet
from nni_bertnas.tracking import Tracker
from search_space.student import StudentForSequenceClassification


class Recorder(Tracker):
    """Keeps what a phase reports."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[dict] = []
        self.results: list[dict] = []

    def epoch(self, metrics: dict, default: str) -> None:
        assert default in metrics
        self.epochs.append(dict(metrics))

    def final(self, metrics: dict) -> None:
        self.results.append(dict(metrics))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, dict]:
    """A whole tiny study, run phase by phase."""
    study = tiny_study(tmp_path_factory.mktemp("finished"), cell={"depths": [1, 2]})
    recorders = {name: Recorder() for name in ("cell", "block", "supernet")}
    for unit in cell.units(study, 2):
        cell.run(study, **unit, tracker=recorders["cell"])
    for unit in block.units(study, 2):
        block.run(study, **unit, tracker=recorders["block"])
    supernet.run(study, seed=0, tracker=recorders["supernet"])
    return study, recorders


def test_cell_results_are_ranked_and_complete(finished: tuple) -> None:
    study, recorders = finished
    for unit in cell.units(study, 2):
        folder = RunDirectory(study).cell(**unit)
        candidates = read_result(folder)["candidates"]
        scores = [one["score"] for one in candidates]
        assert len(candidates) == 2 and scores == sorted(scores)
        for one in candidates:
            assert len(one["architecture"]) == unit["depth"]
            assert one["num_params"] == sum(value.numel() for value in load_file(folder / one["weights"]).values())
            assert one["num_flops"] > 0 and one["latency_ms"] > 0
        assert (folder / "study.yml").read_text() == study_to_yaml(study)
    assert len(recorders["cell"].results) == 4
    assert all({"default", "num_params", "latency_ms"} <= set(result) for result in recorders["cell"].results)
    assert sum("architecture_entropy" in epoch for epoch in recorders["cell"].epochs) == 4 * study.cell.epochs


def test_block_goes_on_from_the_cells_weights(finished: tuple) -> None:
    study, _ = finished
    run = RunDirectory(study)
    cells = {depth: read_result(run.cell(0, depth)) for depth in (1, 2)}
    ranking = read_result(run.block(0))["candidates"]
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
        study = tiny_study(tmp_path, cell={"max_rows": max_rows}, block={"start": start})
        assert study.starts_fresh(100) is fresh


def test_choose_takes_the_best_the_fastest_each_depth_and_the_front_first() -> None:
    def one(score: float, latency_ms: float) -> dict:
        return {"score": score, "latency_ms": latency_ms}

    cells = {
        1: {"candidates": [one(0.5, 1.0), one(0.8, 1.5)]},
        2: {"candidates": [one(0.2, 3.0), one(0.3, 2.0), one(0.4, 4.0)]},
        3: {"candidates": [one(0.7, 5.0), one(0.9, 6.0)]},
    }
    chosen = [(depth, candidate["score"]) for depth, candidate in block.choose(cells, 9)]
    assert chosen == [(2, 0.2), (1, 0.5), (3, 0.7), (2, 0.3), (2, 0.4), (1, 0.8), (3, 0.9)]
    assert len(block.choose(cells, 2)) == 2
    cells = {
        1: {"candidates": [one(0.332, 1.1), one(0.334, 1.0)]},
        2: {"candidates": [one(0.335, 2.1), one(0.3355, 2.0), one(0.35, 1.9)]},
    }
    chosen = [(depth, candidate["score"]) for depth, candidate in block.choose(cells, 9)]
    assert chosen == [(2, 0.335), (1, 0.334), (2, 0.3355), (1, 0.332), (2, 0.35)]


def test_supernet_result_and_saved_student(finished: tuple) -> None:
    study, recorders = finished
    folder = RunDirectory(study).supernet(0)
    result = read_result(folder)
    assert result["chain_difference"] < 1e-3
    assert result["student"]["glue_dev_accuracy"] > 0.7 and result["teacher"]["glue_dev_accuracy"] > 0.9
    student = StudentForSequenceClassification.from_pretrained(folder / "student").eval()
    assert sum(parameter.numel() for parameter in student.parameters()) == result["student"]["num_params"]
    assert result["architecture"] == [one["architecture"] for one in student.config.cells]
    assert student.config.id2label == {0: "negative", 1: "positive"}
    rows = load_task(study.task).splits["glue_dev"]
    tokens = AutoTokenizer.from_pretrained(folder / "student")(rows.texts, padding=True, return_tensors="pt")
    predictions = student(**tokens).logits.argmax(-1).tolist()
    assert accuracy_score(rows.labels, predictions) == pytest.approx(result["student"]["glue_dev_accuracy"])
    best = max(epoch["dev_accuracy"] for epoch in recorders["supernet"].epochs)
    assert result["student"]["dev_accuracy"] == pytest.approx(best)
    assert recorders["supernet"].results[0]["default"] == pytest.approx(best)


def test_finished_results_are_reused_until_their_settings_change(finished: tuple) -> None:
    study, _ = finished
    folder = RunDirectory(study).cell(0, 1)
    before = (folder / "result.json").stat().st_mtime_ns
    again = Recorder()
    cell.run(study, 0, 1, again)
    assert (folder / "result.json").stat().st_mtime_ns == before and not again.epochs and again.results
    root = Path(study.runs_dir).parent
    other = tiny_study(root, cell={"depths": [1, 2], "learning_rate": 1e-3})
    assert cell.find(other, 0, 1) is None
    fewer = tiny_study(root, cell={"depths": [1]})
    assert cell.find(fewer, 0, 1) is not None and block.find(fewer, 0) is None
    longer = tiny_study(root, cell={"depths": [1, 2]}, supernet={"epochs": 9})
    assert block.find(longer, 0) is not None and supernet.find(longer, 0) is None


def test_the_report_names_both_sides_and_the_place(finished: tuple, capsys: pytest.CaptureFixture) -> None:
    study, _ = finished
    show(study, Console(width=200))
    text = capsys.readouterr().out
    folder, result = best_student(study)
    assert f"{result['student']['glue_dev_accuracy'] * 100:.2f}" in text and str(folder / "student") in text
    assert f"{result['teacher']['latency_ms']:.2f}" in text and "1 / " in text


def test_an_impossible_budget_says_what_is_possible(finished: tuple) -> None:
    study, _ = finished
    root = Path(study.runs_dir).parent
    small = tiny_study(root, cell={"depths": [1, 2]}, supernet={"budget": {"max_params": 10}})
    with pytest.raises(PhaseError, match=r"the smallest student has \d"):
        supernet.run(small, 0)
    assert read_result(RunDirectory(study).supernet(0)) is not None  # the earlier student is still there


def test_a_budget_is_kept(finished: tuple) -> None:
    study, _ = finished
    smallest = min(
        sum(c["num_params"] for c in pair)
        for pair in zip(*(read_result(RunDirectory(study).block(b))["candidates"] for b in (0, 1)), strict=True)
    )
    limit = read_result(RunDirectory(study).supernet(0))["student"]["num_params"]
    root = Path(study.runs_dir).parent
    same = tiny_study(root, cell={"depths": [1, 2]}, supernet={"budget": {"max_params": limit}, "epochs": 1})
    result = supernet.run(same, 5)
    assert smallest < result["student"]["num_params"] <= limit
    assert result["student"]["num_params"] == result["selection"]["num_params"]


def test_missing_inputs_name_the_command(tmp_path: Path, built: Study) -> None:
    study = tiny_study(tmp_path)
    with pytest.raises(PhaseError, match="bertnas teacher"):
        block.run(study, 0)
    with pytest.raises(PhaseError, match="bertnas cell STUDY"):
        block.run(built, 0)
    with pytest.raises(PhaseError, match="bertnas block STUDY"):
        supernet.run(built, 0)
    with pytest.raises(PhaseError, match="bertnas run"):
        best_student(built)
    with pytest.raises(ConfigError, match="0 to 1, got 7"):
        cell.run(built, 7, 1)


def test_atomic_folder_leaves_nothing_half_written(tmp_path: Path) -> None:
    target = tmp_path / "result"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as folder:
        (folder / "a").write_text("2")
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "1" and list(tmp_path.iterdir()) == [target]


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(PhaseError, match="damaged"):
        read_result(tmp_path)


def test_discarding_takes_what_builds_on_it(tmp_path: Path) -> None:
    run = RunDirectory(tiny_study(tmp_path))
    for name in ("teacher", "features", "cell", "block", "supernet"):
        (run.root / name).mkdir(parents=True)
    run.discard_from("block")
    assert {path.name for path in run.root.iterdir()} == {"teacher", "features", "cell"}


def test_commands_report_errors_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "study.yml"
    path.write_text("name: x\ncell: {colour: 3}\n")
    assert main(["validate", str(path)]) == 2
    assert "cell.colour: unknown key" in capsys.readouterr().err
    path.write_text(study_to_yaml(tiny_study(tmp_path)))
    assert main(["validate", str(path)]) == 0
    assert main(["report", str(path)]) == 1
    assert "bertnas run" in capsys.readouterr().err
    assert main(["teacher", str(path)]) == 0
    assert json.loads((tmp_path / "runs/tiny/teacher/result.json").read_text())["fine_tuned"]


def test_a_supernet_without_progress_ends_early(finished: tuple[Study, dict]) -> None:
    study, recorder = finished[0], Recorder()
    settings = dataclasses.replace(study.supernet, epochs=6, patience=1, learning_rate=1e-12)
    student = dataclasses.replace(study.student, freeze_embeddings=True)
    supernet.run(dataclasses.replace(study, supernet=settings, student=student), 5, tracker=recorder)
    assert [metrics["epoch"] for metrics in recorder.epochs] == [0, 1]
