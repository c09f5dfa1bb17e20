import importlib.metadata
import time
from pathlib import Path

import pytest

from nni_bertnas.cli import main
from nni_bertnas.launch import doctor
from nni_bertnas.launch.doctor import CHECKS, Finding
from nni_bertnas.launch.manager import hold_port


def test_each_check_says_what_is_wrong_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in ("versions", "threads", "proxy", "home", "disk"):
        assert CHECKS[name](tmp_path).state == "ok", name
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", "/proc/nobody")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(doctor, "num_cores", lambda: 4)
    for name, word in (("proxy", "NO_PROXY"), ("home", "set HOME"), ("threads", "all 4 cores")):
        found = CHECKS[name](tmp_path)
        assert found.state == "note" and word in found.remedy
    assert CHECKS["disk"](Path("/proc")).state == "bad"
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.0" if name == "nni" else "99")
    found = CHECKS["versions"](tmp_path)
    assert found.state == "bad" and "nni==3.0 is wanted, 2.0 is there" in found.text and found.remedy


def test_what_is_bad_ends_with_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checks = {"one": lambda folder: Finding("ok", "fine"), "two": lambda folder: Finding("bad", "broken", "mend it")}
    monkeypatch.setattr("nni_bertnas.cli.doctor.CHECKS", checks)
    assert main(["doctor"]) == 1
    said = capsys.readouterr()
    assert "BAD  two: broken" in said.out and "mend it" in said.out and "as it is: two" in said.err


@pytest.mark.integration
def test_nni_starts_and_is_gone_within_twenty_seconds(tmp_path: Path) -> None:
    before = time.monotonic()
    with hold_port(8080):  # then another is taken, and said
        found = CHECKS["NNI"](tmp_path)
    assert found.state == "note" and "nni.port" in found.remedy and "started in" in found.text
    assert time.monotonic() - before < 20
