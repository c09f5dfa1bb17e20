"""The command line itself: every example is one, every module is there, shells are told what there is."""

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nni_bertnas.cli import COMMANDS, main, parser

HAS_ARGCOMPLETE = importlib.util.find_spec("argcomplete") is not None


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_right_and_end_the_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = COMMANDS[name].example
    (inside,) = re.findall(r"bertnas \w.*?(?=\)|$)", example)
    parsed = parser().parse_args(shlex.split(inside)[1:])
    assert parsed.command == name
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert " ".join(capsys.readouterr().out.split()).endswith(f"example: {example}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_module(name: str) -> None:
    assert callable(importlib.import_module(f"nni_bertnas.cli.{COMMANDS[name].module}").run)


@pytest.mark.skipif(not HAS_ARGCOMPLETE, reason="extra completion")
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_are_told_what_completes(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert "_ARGCOMPLETE=1" in text and "bertnas" in text


@pytest.mark.skipif(not HAS_ARGCOMPLETE, reason="extra completion")
def test_tab_completes_commands_and_options(tmp_path: Path) -> None:
    line, answer = "bertnas run --s", tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": " ", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    script = f"import os; os.dup2(os.open({str(answer)!r}, os.O_RDWR | os.O_CREAT), 8); " \
        "from nni_bertnas.cli import main; main([])"  # fmt: skip
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **asked}, check=True)
    assert answer.read_text().strip() == "--smoke"


def test_without_argcomplete_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'nni-bertnas[completion]'" in capsys.readouterr().err
