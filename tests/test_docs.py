"""What the documents say: their examples run, their studies are right, what they name is there."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from nni_bertnas.cli import COMMANDS
from nni_bertnas.stages.run import Run
from nni_bertnas.study_files import parse_study, read_yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.name: path.read_text() for path in PAGES}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "stages.md", "coming-from.md"])
def test_the_python_example_runs(name: str, built: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXTS[name], re.DOTALL)
    folder = "runs/demo/features"
    assert folder in example and "NasExperiment(" in example
    monkeypatch.setenv("HOME", str(tmp_path))
    names: dict = {}
    own = example.replace(folder, str(built.folder("features"))).replace("hidden_size = 128", "hidden_size = 16")
    exec(own, names)
    assert set(names["architecture"]) == {"layer_0", "layer_1"}


def test_every_study_in_the_documents_is_right(tmp_path: Path) -> None:
    path, seen = tmp_path / "study.yml", []
    for name, text in TEXTS.items():
        for example in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
            path.write_text(example)
            study = parse_study({"name": "part", **read_yaml(path)}, name)
            seen.append(study)
    assert len(seen) >= 6 and any(study.augment.copies == 20 for study in seen)
    assert any(study.baseline.students == {"random": 3, "uniform": 1} for study in seen)
    tickets = [study for study in seen if study.name == "tickets"]
    assert tickets and all(study.task.custom.text_columns == ["subject", "body"] for study in tickets)


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_page_names_is_there(name: str) -> None:
    text, folder = TEXTS[name], next(path for path in PAGES if path.name == name).parent
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make (\w+)", text, re.MULTILINE)) <= targets
    assert set(re.findall(r"(?:`|^)bertnas (\w+)", text, re.MULTILINE)) <= set(COMMANDS)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (folder / link).exists(), link
    for path in re.findall(
        r"`((?:nni_bertnas|search_space|trials|tests|benchmarks|experiment_configs)/[\w./]+)`", text
    ):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    ("script", "written", "command"),
    [
        ("docs/generate.py", "studies.md", "make docs"),
        ("benchmarks/table.py", "README.md", "benchmarks/table.py"),
        ("benchmarks/peers_table.py", "peers.md", "benchmarks/peers_table.py"),
    ],
)
def test_what_a_script_writes_is_fresh(script: str, written: str, command: str) -> None:
    spec = importlib.util.spec_from_file_location("script", ROOT / script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main() == TEXTS[written], f"write it anew with: {command}"


def test_the_site_has_every_page_and_the_readme_is_short() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = set(re.findall(r"[\w-]+\.md", str(nav)))
    assert pages == {path.name for path in (ROOT / "docs").glob("*.md")}
    assert len(TEXTS["README.md"].encode()) <= 8 * 1024 and len(TEXTS["CONTRIBUTING.md"].encode()) <= 4 * 1024
