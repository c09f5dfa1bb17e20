import logging
from pathlib import Path

import pytest

from nni_bertnas.errors import PhaseError
from nni_bertnas.tracking.logs import open_log, said


def test_everything_that_is_said_is_in_the_log_once_and_appended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, library = tmp_path / "run" / "bertnas.log", logging.getLogger("some.library")
    before = logging.getLogger().level
    for name in ("nni", "nni.experiment"):  # which NNI's own experiments of other tests leave at other levels
        logging.getLogger(name).setLevel(logging.INFO)
    for number in range(2):
        with open_log(path, "cell-block0"):
            said.info("cell: %d of 2", number)
            library.info("a library tells")
            logging.getLogger("nni.experiment").info("Created ${CYAN}abc")
    with pytest.raises(PhaseError), open_log(path):
        raise PhaseError("something is missing")
    with pytest.raises(ZeroDivisionError), open_log(path):
        _ = 1 / 0
    said.info("after the run")
    lines = path.read_text().splitlines()
    first = [line.split(" ", 2)[2] for line in lines[:3]]  # without date and time
    assert first == [
        "INFO [cell-block0] bertnas: cell: 0 of 2",
        "INFO [cell-block0] some.library: a library tells",
        "INFO [cell-block0] nni.experiment: Created abc",
    ]
    assert lines[3].endswith("cell: 1 of 2") and lines[6].endswith("ERROR bertnas: PhaseError: something is missing")
    assert any("Traceback" in line for line in lines[7:]) and not any("after the run" in line for line in lines)
    assert logging.getLogger().level == before
    assert capsys.readouterr().out == ""


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with open_log(tmp_path / "file" / "bertnas.log"):
        said.info("goes on")
    assert "is not written" in caplog.text
