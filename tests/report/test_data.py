"""What `bertnas data` prints."""

import pytest

from nni_bertnas.cli.show import open_console
from nni_bertnas.data.rows import Rows
from nni_bertnas.report.data import balance


def test_brackets_in_labels_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("[/INST]", "[bold]", "[INST]")
    console = open_console()
    console.print(balance("[/red]", names, {"train": Rows(["a", "b", "c"], [0, 1, 2])}))
    console.print(f"label {names[0]}")
    text = capsys.readouterr().out
    assert all(name in text for name in (*names, "[/red]"))
