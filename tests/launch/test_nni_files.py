import re
from pathlib import Path

import pytest

from nni_bertnas.launch.nni_files import check_nni_yaml, write_cell_files

CONFIGS = Path(__file__).parents[2] / "experiment_configs"


def test_every_shipped_file_validates() -> None:
    found = sorted(CONFIGS.glob("*.yml"))
    assert len(found) == 8
    for path in found:
        assert check_nni_yaml(path) == []


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
