import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import tiny_study
from rich.console import Console
from safetensors.torch import load_file

from nni_bertnas.artifacts import RunDirectory, read_result
from nni_bertnas.cli import main
from nni_bertnas.config import Study, study_to_yaml
from nni_bertnas.errors import CandidateError, ConfigError
from nni_bertnas.launch.experiments import check_nni_yaml
from nni_bertnas.search.evaluator import block_scores
from nni_bertnas.stages import architecture as architectures
from nni_bertnas.stages import block, cell
from nni_bertnas.store.reader import open_features, study_edges
from nni_bertnas.student.candidates import load_cell
from nni_bertnas.tracking import Tracker

NAMES = ["convolution_3", "max_pool_3", "zero"]


def small(root: Path, **settings: object) -> Study:
    return tiny_study(root, cell={"operations": NAMES, "epochs": 1, **settings})


def test_trials_are_ranked_for_the_block_phase(tmp_path: Path) -> None:
    study, finals = small(tmp_path), []

    class Recorder(Tracker):
        def final(self, metrics: dict) -> None:
            finals.append(metrics)

    for name in NAMES:
        architectures.run(study, 0, 1, {"layer_0": name}, Recorder())
    folder = RunDirectory(study).cell(0, 1)
    ranking = read_result(folder)
    scores = {one["architecture"]["layer_0"]: one["score"] for one in ranking["candidates"]}
    assert ranking["num_searched"] == 3 and len(scores) == study.cell.candidates == 2
    assert sorted(scores.values()) == sorted(final["default"] for final in finals)[:2] == list(scores.values())
    for one in ranking["candidates"]:
        loaded = load_cell(folder, one, 32, 16)
        edges = study_edges(study)[:2]
        assert block_scores([loaded], open_features(study, "dev"), edges) == pytest.approx([one["score"]], rel=1e-4)
        assert one["num_params"] == sum(value.numel() for value in load_file(folder / one["weights"]).values())
    assert len(block.run(study, 0)["candidates"]) == 2
    assert cell.find(study, 0, 1) is None  # the study's own search is still to be done
    trials = folder.with_name("block0_depth1_trials").glob("*/result.json")
    times = {path: path.stat().st_mtime_ns for path in trials}
    architectures.run(study, 0, 1, {"layer_0": "zero"})
    assert len(times) == 3 and all(path.stat().st_mtime_ns == time for path, time in times.items())
    # Other settings: the old trials no longer fit and are left out.
    other = small(tmp_path, learning_rate=1e-3)
    architectures.run(other, 0, 1, {"layer_0": "zero"})
    assert read_result(folder)["num_searched"] == 1
    assert "collapsed" in read_result(folder)["collapsed"]
    # A budget that is set later: the dear one is not ranked any more, and not trained where it is proposed again.
    cheap = small(tmp_path, cost="num_params", max_cost=100)
    architectures.run(cheap, 0, 1, {"layer_0": "zero"})
    ranked = read_result(folder)["candidates"]
    assert {one["architecture"]["layer_0"] for one in ranked} == {"max_pool_3", "zero"}
    with pytest.raises(CandidateError, match=r"convolution_3: its num_params 784 is over cell\.max_cost"):
        architectures.run(cheap, 0, 1, {"layer_0": "convolution_3"})


def test_the_twin_that_ends_first_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, results, train = small(tmp_path), [], architectures._train

    def late(*arguments: object) -> dict:
        results.append(train(*arguments))  # another trial of the same architecture ends meanwhile
        results.append(train(*arguments))
        return results[-1]

    monkeypatch.setattr(architectures, "_train", late)
    architectures.run(study, 0, 1, {"layer_0": "zero"})
    (folder,) = RunDirectory(study).cell(0, 1).with_name("block0_depth1_trials").iterdir()
    assert results[0] == results[1] == read_result(folder)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"layer_0": "convolution_5"}, "layer_0: 'convolution_5'"),
        ({"layer_0": "zero", "layer_1": "zero"}, "layer_1"),
        ({"block": 0}, "block, layer_0"),
        ({"layer_0": ["zero"]}, r"layer_0: \['zero'\]"),
    ],
)
def test_parameters_that_are_not_the_studys_are_refused(tmp_path: Path, parameters: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        architectures.run(small(tmp_path), 0, 1, parameters)
    assert "bertnas space STUDY --depth 1" in str(caught.value)
    assert not RunDirectory(small(tmp_path)).teacher.exists()


def test_what_the_study_does_not_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--depth must be one of"):
        architectures.run(small(tmp_path), 0, 2, {"layer_0": "zero", "layer_1": "zero"})
    with pytest.raises(ConfigError, match="shared must be false"):
        architectures.run(small(tmp_path, shared=True), 0, 1, {"layer_0": "zero"})
    assert not RunDirectory(small(tmp_path)).teacher.exists()


def test_inputs_are_spelled_and_read_back(tmp_path: Path) -> None:
    study = small(tmp_path, space="adabert")
    space = architectures.nni_search_space(study, 1)
    assert space["graph_0_node_2_inputs"]["_value"] == ["0+1", "0+2", "0+3", "1+2", "1+3", "2+3"]
    parameters = {label: choice["_value"][-1] for label, choice in space.items()}
    read = architectures.read_parameters(study, 1, parameters)
    assert read["graph_0_node_2_inputs"] == [2, 3] and "graph_0_node_2_edge_0" not in read


def test_space_command_writes_what_trials_take(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    study = small(tmp_path, depths=[1, 2])
    path = tmp_path / "study.yml"
    path.write_text(study_to_yaml(study))
    for name, read in (("space.json", json.loads), ("space.yml", yaml.safe_load)):
        target = tmp_path / name
        assert main(["space", str(path), "--nni", str(target)]) == 0
        space = read(target.read_text())
        assert {label: choice["_value"] for label, choice in space.items()} == {"layer_0": NAMES, "layer_1": NAMES}
        parameters = {label: choice["_value"][0] for label, choice in space.items()}
        assert architectures.read_parameters(study, 2, parameters) == parameters
    text = capsys.readouterr().out
    assert "depth 1: 3 architectures" in text and "depth 2: 9 architectures" in text
    assert main(["space", str(path), "--depth", "0"]) == 2
    assert main(["space", str(path), "--nni", str(tmp_path / "no" / "space.yml")]) == 2
    architectures.show_space(study, 1, Console(width=100))
    assert "784" in capsys.readouterr().out  # a convolution of 3 positions over 16 channels: 3 · 16 · 16 + 16


def test_an_experiment_file_is_checked_against_the_study(tmp_path: Path) -> None:
    configs = Path(__file__).parents[1] / "experiment_configs"
    text = (configs / "cell_random.yml").read_text()
    text = text.replace("trialCodeDirectory: ..", f"trialCodeDirectory: {configs.parent}")
    for old, new, message in (
        ("- attention_8", "- attention_12", "bertnas space .* --depth 2"),
        ("--depth 2", "--depth 7", "one of the study's cell.depths"),
        ("--block 0 ", "", "must end in --block"),
        ("layer_1:", "layer_2:", "is not the study's space"),
        ("- attention_8", "- [0, 1]", "is not the study's space"),
        (
            "_type: choice\n    _value: *operations",
            "_type: randint\n    _value: *operations",
            "is not the study's space",
        ),
        ("    _value: *operations", "", "is not the study's space"),
    ):
        path = tmp_path / "cell.yml"
        path.write_text(text.replace(old, new))
        (problem,) = check_nni_yaml(path)
        assert re.search(message, problem), problem
