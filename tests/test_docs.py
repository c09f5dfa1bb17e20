"""The Python example of the README, run as it is written."""

import re
from pathlib import Path

import pytest

from nni_bertnas.stages.run import Run
from nni_bertnas.study_files import parse_study, read_yaml

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_example_runs(built: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    folder = "runs/demo/features"
    assert folder in example and "NasExperiment(" in example
    monkeypatch.setenv("HOME", str(tmp_path))
    names: dict = {}
    exec(
        example.replace(folder, str(built.folder("features"))).replace("hidden_size = 128", "hidden_size = 16"),
        names,
    )
    assert set(names["architecture"]) == {"layer_0", "layer_1"}


def test_the_readme_gives_both_commands() -> None:
    assert "make run" in README and "make test" in README


def test_the_readme_shows_the_demo_as_it_is() -> None:
    demo = (Path(__file__).parents[1] / "experiment_configs/studies/demo.yml").read_text()
    assert demo.strip() in README


def test_the_readmes_studies_are_right(tmp_path: Path) -> None:
    path = tmp_path / "study.yml"
    studies = []
    for text in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL):
        path.write_text(text)
        studies.append(parse_study({"name": "part", **read_yaml(path)}))
    assert {study.name for study in studies} == {"demo", "tickets", "part"}
    (tickets,) = (study for study in studies if study.name == "tickets")
    assert tickets.task.custom is not None and tickets.task.custom.text_columns == ["subject", "body"]
    assert any(study.augment.copies == 20 for study in studies) and any(
        study.baseline.students.get("random") == 3 for study in studies
    )
