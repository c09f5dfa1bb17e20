import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from nni_bertnas.launch.nni_files import check_nni_yaml, write_cell_files

CONFIGS = Path(__file__).parents[2] / "experiment_configs"


def test_every_shipped_file_validates() -> None:
    found = sorted(CONFIGS.glob("*.yml"))
    assert len(found) == 8
    for path in found:
        assert check_nni_yaml(path) == []


@pytest.fixture
def keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, on a machine with the key and the mount that those for other services name."""
    shutil.copytree(CONFIGS, tmp_path / "experiment_configs")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").touch()
    openpai = tmp_path / "experiment_configs" / "training_services" / "openpai.yml"
    openpai.write_text(
        openpai.read_text().replace("localStorageMountPoint: /shared", f"localStorageMountPoint: {tmp_path}")
    )
    return tmp_path / "experiment_configs"


def test_the_files_for_other_machines_validate(keyed: Path) -> None:
    for name in ("cell", "block", "supernet"):
        assert check_nni_yaml(keyed / "remote" / f"{name}.yml") == []
        here, there = (yaml.safe_load((keyed / part / f"{name}.yml").read_text()) for part in (".", "remote"))
        assert {key for key in here if here[key] != there[key]} == {
            "experimentName", "trialCommand", "trialCodeDirectory", "trainingService"
        }  # fmt: skip
        assert there["trialCommand"].endswith(here["trialCommand"])


@pytest.mark.parametrize("name", ["frameworkcontroller", "hybrid", "kubeflow", "openpai"])
def test_the_templates_for_other_services_are_nnis(keyed: Path, name: str) -> None:
    path = keyed / "training_services" / f"{name}.yml"
    assert check_nni_yaml(path) == []
    text = path.read_text()
    for old, new in (("platform:", "platfrom:"), ("trialConcurrency: 2", "trialConcurrency: 0")):  # NNI is asked
        path.write_text(text.replace(old, new))
        assert "NNI refuses it" in check_nni_yaml(path)[0]


def test_what_nni_is_sent_is_small(tmp_path: Path) -> None:
    """As NNI reads `.nniignore`: like git."""
    shutil.copy(CONFIGS.parent / ".nniignore", tmp_path / ".gitignore")
    kept = ("trials/cell.py", "nni_bertnas/data/tasks.py", "experiment_configs/studies/demo.yml", "own_operations.py")
    left = (
        ".venv/bin/python",
        ".git/config",
        "runs/demo/result.json",
        "tests/tiny.py",
        "nni_bertnas/__pycache__/a.pyc",
    )
    for file in (*kept, *left):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    for command in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    sent = subprocess.run(["git", "ls-files"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert sorted(sent.split()) == sorted(kept)


def test_the_files_of_the_cell_phase_are_as_they_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "experiment_configs"
    study = folder / "studies" / "demo.yml"
    study.parent.mkdir(parents=True)
    study.write_text((CONFIGS / "studies" / "demo.yml").read_text())
    written = write_cell_files(folder, Path("experiment_configs/studies/demo.yml"))
    assert len(written) == 3
    for path in written:
        assert path.read_text() == (CONFIGS / path.name).read_text(), "write them anew with: make configs"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trialConcurrency: 2", "trialConcurency: 2", "NNI refuses it"),
        ("trials.cell", "trials.sell", "trialCommand must be"),
        ("studies/demo.yml", "studies/none.yml", "cannot be read"),
        ("  depth:", "  width:", "searchSpace must have block, depth"),
    ],
)
def test_a_wrong_nni_file_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (CONFIGS / "cell.yml").read_text().replace("trialCodeDirectory: ..", f"trialCodeDirectory: {CONFIGS.parent}")
    assert old in text
    path = tmp_path / "cell.yml"
    path.write_text(text.replace(old, new))
    problems = check_nni_yaml(path)
    assert any(message in problem for problem in problems), problems


def test_an_experiment_file_is_checked_against_the_study(tmp_path: Path) -> None:
    text = (CONFIGS / "cell_random.yml").read_text()
    text = text.replace("trialCodeDirectory: ..", f"trialCodeDirectory: {CONFIGS.parent}")
    for old, new, message in (
        ("- attention_8", "- attention_12", "bertnas space .* --depth 2"),
        ("--depth 2", "--depth 7", "one of the study's cell.depths"),
        ("--block 0 ", "", "must end in --block"),
        ("layer_1:", "layer_2:", "is not the study's space"),
        ("- attention_8", "- [0, 1]", "is not the study's space"),
        ("_type: choice", "_type: randint", "is not the study's space"),
        ("    _value:", "    value:", "is not the study's space"),
    ):
        path = tmp_path / "cell.yml"
        path.write_text(text.replace(old, new))
        (problem,) = check_nni_yaml(path)
        assert re.search(message, problem), problem
