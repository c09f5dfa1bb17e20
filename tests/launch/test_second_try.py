"""Units whose trials fail, by experiments that make what they are told to."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny import tiny_run

from nni_bertnas.errors import PhaseError
from nni_bertnas.launch.experiments import Failure, gist
from nni_bertnas.launch.second_try import make_units
from nni_bertnas.stages.left_out import left_out, missing_units
from nni_bertnas.stages.run import Unit, unit_name
from nni_bertnas.stages.stage import ensure, load


@pytest.mark.parametrize(("fails", "asked", "lost"), [(0, 1, []), (1, 2, []), (2, 2, ["block0_depth2"])])
def test_what_fails_is_tried_once_more_and_then_left_out(
    fails: int, asked: int, lost: list[str], built_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cell = {"strategy": "random", "depths": [1, 2], "epochs": 1, "options": {"samples": 1 + fails}}
    run, stage, told = tiny_run(built_copy, cell=cell), load("cell"), []  # samples: units of its own for each case
    units = stage.units(run)

    def experiment(some: Sequence[Unit]) -> list[Failure]:
        told.append([unit_name(unit) for unit in some])
        bad = [unit for unit in some if unit_name(unit) == "block0_depth2" and len(told) <= fails]
        for unit in some:
            if unit not in bad:
                ensure(run, "cell", unit)
        return [Failure(unit, f"it broke {len(told)}") for unit in bad]

    make_units(run, stage, units, experiment)
    assert told == [[unit_name(unit) for unit in units], ["block0_depth2"]][:asked]
    assert not missing_units(run, stage, units)
    assert [unit_name(unit) for unit in units if left_out(run, stage, unit)] == lost
    assert [f"it broke {number}" in caplog.text for number in (1, 2)] == [fails > 0, fails > 1]


def test_what_a_study_needs_is_an_error(built_copy: Path) -> None:
    run, stage = tiny_run(built_copy, cell={"depths": [1]}), load("cell")
    units = stage.units(run)
    with pytest.raises(PhaseError, match="it broke; it was tried twice"):
        make_units(run, stage, units, lambda some: [Failure(unit, "it broke") for unit in some])


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("Traceback\n  File x\nValueError: no", "ValueError: no"),
        (
            "a.UserError: Constraints violated (seq)!\n  - Not all\n\nThe error above occurred in export.\n",
            "a.UserError: Constraints violated (seq)!",
        ),
        ("error: cell.epochs: must be 1 or more\n", "error: cell.epochs: must be 1 or more"),
        ("KeyError: 'a'\n\nDuring handling\n\nOSError: full\nmore", "OSError: full"),
        ("Killed\n", "Killed"),
        ("", ""),
    ],
)
def test_the_gist_of_an_error_output_names_the_last_error(said: str, found: str) -> None:
    assert gist(said) == found
