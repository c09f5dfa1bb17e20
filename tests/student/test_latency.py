"""Latencies are measured once, kept, scaled to the teacher, and added up."""

import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import chain

from nni_bertnas.student import latency
from nni_bertnas.student.candidates import Candidate
from nni_bertnas.student.latency import NOTHING, REFERENCE, LatencyTable, OtherWork, Part, around, cell_parts, link_part
from nni_bertnas.student.runtimes import RUNTIMES

MS = {"teacher": 10.0, "a": 1.0, "b": 2.0, REFERENCE.name: 0.5}
TEACHER, A, B, _ = (Part(name, lambda lengths: lambda length: None) for name in MS)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine: how slow it is, what others take of it, and what was measured on it."""
    state: dict[str, Any] = {"speed": 1.0, "others": 0.0, "seen": []}

    def measure(
        calls: Mapping[str, Any], lengths: Sequence[int], *, threads: int, run: int, before: Mapping[str, Any]
    ) -> dict[str, float]:
        if (one := (sorted(calls), lengths[0], threads)) not in state["seen"]:  # once of all rounds
            state["seen"].append(one)
        return {name: MS[name] * lengths[0] * state["speed"] for name in calls}

    monkeypatch.setattr(latency, "measure_latency_ms", measure)
    monkeypatch.setattr(OtherWork, "cores", lambda self: state["others"])
    return state


def test_sums_between_the_lengths_that_were_measured(tmp_path: Path, clock: dict[str, Any]) -> None:
    table = LatencyTable(tmp_path)
    parts = {"teacher": [TEACHER], "both": [A, B], "nothing": []}
    assert table.latency_ms(parts, [20, 30, 44]) == {"teacher": 300.0, "both": 90.0, "nothing": 0.0}
    assert [length for _, length, _ in clock["seen"]] == [16, 24, 32, 48] == around([20, 30, 44])


def test_what_is_known_is_measured_by_nobody_again(tmp_path: Path, clock: dict[str, Any]) -> None:
    LatencyTable(tmp_path, threads=2).latency_ms({"teacher": [TEACHER], "a": [A]}, [8])
    again = LatencyTable(tmp_path, threads=2)
    assert again.latency_ms({"teacher": [TEACHER], "a": [A]}, [8]) == {"teacher": 80.0, "a": 8.0}
    assert clock["seen"] == [(["a", REFERENCE.name, "teacher"], 8, 2)]
    clock["speed"] = 3.0  # the machine has become slower
    assert again.latency_ms({"teacher": [TEACHER], "a": [A], "b": [B]}, [8]) == {"teacher": 80.0, "a": 8.0, "b": 16.0}
    assert clock["seen"][1:] == [(["b", REFERENCE.name], 8, 2)]
    content = json.loads(again.path.read_text())
    assert content["parts"]["b"] == {"8": 16.0} and content["machine"]["cores"] > 0
    assert not LatencyTable(tmp_path, threads=1).lengths(A) and not LatencyTable(tmp_path, batch=32).lengths(A)


def test_another_runtime_has_a_table_of_its_own_whose_parts_are_without_the_start(
    tmp_path: Path, clock: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RUNTIMES, "onnx", replace(RUNTIMES["onnx"], compile=lambda passes, threads: passes))
    monkeypatch.setitem(MS, NOTHING.name, 0.25)
    whole = replace(TEACHER, whole=True)
    assert LatencyTable(tmp_path).latency_ms({"teacher": [whole], "a": [A]}, [8]) == {"teacher": 80.0, "a": 8.0}
    table = LatencyTable(tmp_path, runtime="onnx")
    assert not table.lengths(A) and table.machine["runtime"].startswith("onnxruntime ")
    parts = {"teacher": [whole], "a": [A], "both": [A, B], "less": [REFERENCE]}
    assert table.latency_ms(parts, [8]) == {"teacher": 80.0, "a": 6.0, "both": 20.0, "less": 2.0}
    again = LatencyTable(tmp_path, runtime="onnx")
    clock["seen"].clear()
    assert again.latency_ms(parts, [8])["a"] == 6.0 and not clock["seen"]


def test_a_damaged_file_is_made_anew(tmp_path: Path, clock: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    path = LatencyTable(tmp_path).path
    for content in ("{", "[]", '{"parts": [1]}', '{"parts": {"a": {"8": "x"}}}'):
        path.write_text(content)
        table = LatencyTable(tmp_path)
        assert f"{path} is damaged" in caplog.text
        assert table.latency_ms({"teacher": [TEACHER]}, [8]) == {"teacher": 80.0}
        caplog.clear()


def test_beside_other_work_nothing_is_kept(
    tmp_path: Path, clock: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    clock["others"] = 1000.0
    table = LatencyTable(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert table.latency_ms({"teacher": [TEACHER], "a": [A]}, [8]) == {"teacher": 80.0, "a": 8.0}
    assert not table.quiet and not table.path.exists() and "bertnas profile STUDY" in caplog.text
    clock["others"] = 0.0
    clock["seen"].clear()
    assert table.latency_ms({"teacher": [TEACHER], "a": [A]}, [8]) == {"teacher": 80.0, "a": 8.0}
    assert not clock["seen"]  # by this process it serves
    other = LatencyTable(tmp_path)
    other.latency_ms({"teacher": [TEACHER], "a": [A]}, [8])
    assert other.quiet and len(clock["seen"]) == 1 and other.path.exists()


@pytest.mark.parametrize("runtime", list(RUNTIMES))
def test_a_cell_is_the_sum_of_its_layers_and_a_graph_a_whole(tmp_path: Path, runtime: str) -> None:
    first, second = cell_parts(chain("convolution_3", "attention_4"), 16, sides=2)
    assert first != second and cell_parts(chain("attention_4"), 16, sides=2) == [second]
    assert cell_parts(chain("attention_4"), 16)[0] != second != cell_parts(chain("attention_4"), 32, sides=2)[0]
    architecture = {"layer_0": "convolution_3", "layer_1": "max_pool_3", "layer_1_input": [0], "layer_1_skip_0": "zero"}
    graph = cell_parts(Candidate(space="textnas", depth=2, architecture=architecture), 16)
    assert len(graph) == 1 and cell_parts(chain(), 16) == []
    table = LatencyTable(tmp_path, runtime=runtime)
    parts = {"teacher": [link_part(256)], "chain": [first, second], "graph": graph, "deep": [first] * 50}
    found = table.latency_ms(parts, [20, 30])  # the real clock
    assert 0 < found["chain"] < found["deep"] and found["graph"] > 0
    assert np.isfinite(list(found.values())).all()


def test_other_work_is_seen() -> None:
    watch = OtherWork()
    busy = "import time; end = time.monotonic() + 1\nwhile time.monotonic() < end: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    assert watch.cores() > 0.3
