"""A study made small: its whole chain runs, beside the study itself."""

from pathlib import Path

import pytest
from tiny import all_units, tiny_study, write_scores

from nni_bertnas.config import to_dict, to_yaml
from nni_bertnas.search.strategies import STRATEGIES
from nni_bertnas.stages import STAGES
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.smoke import smoke
from nni_bertnas.stages.stage import check_all, load, run_study
from nni_bertnas.study_files import load_study


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_is_right_and_smaller(tmp_path: Path, strategy: str) -> None:
    if strategy == "enas":
        pytest.importorskip("tianshou")
    study = tiny_study(tmp_path, cell={"strategy": strategy, "epochs": 5, "depths": [2, 1]})
    small = smoke(study)
    check_all(Run(small))
    Run(small).write_study()
    assert load_study(Run(small).root / "study.yml") == small, "nothing is lost in the file that trials read"
    assert (small.name, small.cell.depths, small.cell.epochs) == ("tiny-smoke", [2], 1)
    assert small.cell.options.get("samples", 2) <= 2 and small.cell.options.get("rank_limit", 8) <= 8
    assert smoke(small).cell == small.cell, "what is small stays as it is"
    kept = ("losses", "optimizer", "space", "strategy", "operations")
    assert all(getattr(small.cell, name) == getattr(study.cell, name) for name in kept)
    assert small.student == study.student and small.distill == study.distill


def test_numbers_are_lowered_only() -> None:
    def check(before: dict, after: dict) -> None:
        for name, value in after.items():
            if isinstance(value, dict):
                check(before.get(name, {}), value)
            elif isinstance(value, int | float) and isinstance(before.get(name), int | float):
                assert value <= before[name], name

    root = Path(__file__).parents[2] / "experiment_configs" / "studies"
    paths = sorted(root.rglob("*.yml"))
    assert len(paths) >= 10
    for path in paths:
        study = load_study(path)
        small = smoke(study)
        check(to_dict(study), to_dict(small))
        assert Run(small).general_rows <= 128 and bool(Run(small).general_rows) == bool(Run(study).general_rows)
        assert Run(small).root != Run(study).root


@pytest.mark.slow
def test_the_whole_chain_runs_and_leaves_the_study_alone(tmp_path: Path) -> None:
    study = tiny_study(
        tmp_path,
        task=write_scores(tmp_path / "scores"),
        student={"hidden_size": 16, "embedding_size": 8},
        general={"rows": 200},
        pairs={"bm25": 3, "like_task": False},
        block={"no_layer": True},
        supernet={"bag": True, "finalists": 3, "students": 2},
        baseline={"students": {"random": 2}},
    )
    run = run_study(smoke(study))
    assert {name: len(rows) for name, rows in run.data.splits.items()} == {"train": 256, "dev": 30, "glue_dev": 60}
    made = [name for name in STAGES if run.results(name) or run.read(name)]
    assert made == [name for name in STAGES if load(name).units(Run(study))]
    assert run.read("pairs")["rows"] and run.read("general")["rows"] <= 128
    assert not Run(study).root.exists()
    assert to_yaml(run.study) == (run.folder("supernet", {"seed": 0}) / "study.yml").read_text()
    all_units(run, "supernet")  # found as it is
