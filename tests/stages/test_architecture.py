import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file
from tiny import Recorder, tiny_run

from nni_bertnas.artifacts import read_result
from nni_bertnas.cli import main
from nni_bertnas.config import to_yaml
from nni_bertnas.errors import CandidateError, ConfigError
from nni_bertnas.report.space import show_space
from nni_bertnas.search.parameters import nni_search_space, read_parameters
from nni_bertnas.stages import architecture
from nni_bertnas.stages.architecture import run_architecture
from nni_bertnas.stages.cells import read_candidates
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure, find
from nni_bertnas.training.cells import block_scores

NAMES = ["convolution_3", "max_pool_3", "zero"]
UNIT = {"block": 0, "depth": 1}


def small(root: Path, **settings: object) -> Run:
    return tiny_run(root, cell={"operations": NAMES, "epochs": 1, **settings})


def test_trials_are_ranked_for_the_block_phase(tmp_path: Path) -> None:
    run, recorder = small(tmp_path), Recorder()
    for name in NAMES:
        run_architecture(run, 0, 1, {"layer_0": name}, recorder)
    folder = run.folder("cell", UNIT)
    ranking = read_result(folder)
    scores = {one["architecture"]["layer_0"]: one["score"] for one in ranking["candidates"]}
    assert ranking["num_searched"] == 3 and len(scores) == run.study.cell.candidates == 2
    assert (
        sorted(scores.values()) == sorted(final["default"] for final in recorder.results)[:2] == list(scores.values())
    )
    for one in read_candidates(ranking):
        loaded = one.load(folder, 32, 16).trained
        assert block_scores([loaded], run.dev, run.edges[:2]) == pytest.approx([one.score], rel=1e-4)
        assert one.num_params == sum(value.numel() for value in load_file(folder / one.weights).values())
    assert len(ensure(run, "block", {"block": 0})["candidates"]) == 2
    assert find(run, "cell", UNIT) is None  # the study's own search is still to be done
    trials = folder.with_name("block0_depth1_trials").glob("*/result.json")
    times = {path: path.stat().st_mtime_ns for path in trials}
    run_architecture(run, 0, 1, {"layer_0": "zero"})
    assert len(times) == 3 and all(path.stat().st_mtime_ns == time for path, time in times.items())
    # Other settings: the old trials no longer fit and are left out.
    run_architecture(small(tmp_path, learning_rate=1e-3), 0, 1, {"layer_0": "zero"})
    assert read_result(folder)["num_searched"] == 1
    assert "collapsed" in read_result(folder)["collapsed"]
    # A budget that is set later: the dear one is not ranked any more, and not trained where it is proposed again.
    cheap = small(tmp_path, cost="num_params", max_cost=100)
    run_architecture(cheap, 0, 1, {"layer_0": "zero"})
    ranked = read_result(folder)["candidates"]
    assert {one["architecture"]["layer_0"] for one in ranked} == {"max_pool_3", "zero"}
    with pytest.raises(CandidateError, match=r"convolution_3: its num_params 784 is over cell\.max_cost"):
        run_architecture(cheap, 0, 1, {"layer_0": "convolution_3"})


def test_the_twin_that_ends_first_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, results, train = small(tmp_path), [], architecture._train

    def late(*arguments: object) -> dict:
        results.append(train(*arguments))  # another trial of the same architecture ends meanwhile
        results.append(train(*arguments))
        return results[-1]

    monkeypatch.setattr(architecture, "_train", late)
    run_architecture(run, 0, 1, {"layer_0": "zero"})
    (folder,) = run.folder("cell", UNIT).with_name("block0_depth1_trials").iterdir()
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
        run_architecture(small(tmp_path), 0, 1, parameters)
    assert "bertnas space STUDY --depth 1" in str(caught.value)
    assert not small(tmp_path).folder("teacher").exists()


def test_what_the_study_does_not_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--depth must be one of"):
        run_architecture(small(tmp_path), 0, 2, {"layer_0": "zero", "layer_1": "zero"})
    with pytest.raises(ConfigError, match="shared must be false"):
        run_architecture(small(tmp_path, shared=True), 0, 1, {"layer_0": "zero"})
    assert not small(tmp_path).folder("teacher").exists()


def test_inputs_are_spelled_and_read_back(tmp_path: Path) -> None:
    listed = small(tmp_path, space="adabert").spaces[1]
    space = nni_search_space(listed)
    assert space["graph_0_node_2_inputs"]["_value"] == ["0+1", "0+2", "0+3", "1+2", "1+3", "2+3"]
    parameters = {label: choice["_value"][-1] for label, choice in space.items()}
    read = read_parameters(listed, parameters)
    assert read["graph_0_node_2_inputs"] == [2, 3] and "graph_0_node_2_edge_0" not in read


def test_space_command_writes_what_trials_take(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = small(tmp_path, depths=[1, 2])
    path = tmp_path / "study.yml"
    path.write_text(to_yaml(run.study))
    for name, read in (("space.json", json.loads), ("space.yml", yaml.safe_load)):
        target = tmp_path / name
        assert main(["space", str(path), "--nni", str(target)]) == 0
        space = read(target.read_text())
        assert {label: choice["_value"] for label, choice in space.items()} == {"layer_0": NAMES, "layer_1": NAMES}
        parameters = {label: choice["_value"][0] for label, choice in space.items()}
        assert read_parameters(run.spaces[2], parameters) == parameters
    text = capsys.readouterr().out
    assert "depth 1: 3 architectures" in text and "depth 2: 9 architectures" in text
    assert main(["space", str(path), "--depth", "0"]) == 2
    assert main(["space", str(path), "--nni", str(tmp_path / "no" / "space.yml")]) == 2
    show_space(run, run.spaces[1], Console(width=100))
    assert "784" in capsys.readouterr().out  # a convolution of 3 positions over 16 channels: 3 · 16 · 16 + 16
