import asyncio
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from exported import chain_of, some_rows, write_student
from fastapi.testclient import TestClient

from nni_bertnas.cli import main
from nni_bertnas.deploy.export import export
from nni_bertnas.runtime.classifier import Classifier
from nni_bertnas.runtime.server import Batcher, Limits, make_app


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exported models of single texts and of pairs."""
    root, found = tmp_path_factory.mktemp("served"), {}
    for name, cells, shape in (
        ("single", [chain_of(["convolution_3"])], {}),
        ("pairs", [], {"head": "compare", "encoding": "separate"}),
    ):
        source, rows = write_student(root / name / "student", cells, **shape), some_rows(name == "pairs", 5)
        found[name] = root / name / "onnx"
        export(source, "onnx", found[name], held_out=rows, calibration=rows)
    return found


@pytest.mark.parametrize("name", ["single", "pairs"])
def test_answers_are_the_classifiers_own(folders: dict[str, Path], name: str) -> None:
    classifier, rows = Classifier(folders[name]), some_rows(name == "pairs", 20)
    asked = {"texts": rows.texts} | ({"pairs": rows.pairs} if rows.pairs else {})
    with TestClient(make_app(classifier)) as client:
        response = client.post("/predict", json=asked)
        assert response.status_code == 200
        for said, row in zip(response.json()["predictions"], classifier(rows.texts, rows.pairs), strict=True):
            assert said["label"] == row["label"]
            assert said["probabilities"] == pytest.approx(row["probabilities"], abs=1e-6)
        assert client.get("/health").json()["labels"] == classifier.labels
        counted = client.get("/metrics").text
    assert re.search(r'bertnas_requests_total\{status="200"\} 2', counted)
    assert "bertnas_rows_total 20" in counted and "bertnas_request_seconds_count 1" in counted


def test_what_is_no_request_is_refused_with_the_field(folders: dict[str, Path]) -> None:
    limits = Limits(max_texts=3, max_characters=10, max_bytes=200)
    with TestClient(make_app(Classifier(folders["single"]), limits)) as client:
        for body, status, message in (
            ({"texts": []}, 422, "texts: List should have at least 1"),
            ({"texts": ["a"] * 4}, 422, "texts: List should have at most 3"),
            ({"texts": ["a" * 11]}, 422, "texts.0: String should have at most 10"),
            ({"texts": ["a", " "]}, 422, "texts[1] is empty"),
            ({"texts": [3]}, 422, "texts.0: Input should be a valid string"),
            ({"texts": ["a"], "pairs": ["b"]}, 422, "pairs: Extra inputs"),
            ({"text": "a"}, 422, "texts: Field required"),
            ({"texts": ["a" * 300]}, 413, "at most 200 bytes"),
        ):
            response = client.post("/predict", json=body)
            assert response.status_code == status and message in response.json()["detail"]
        parts = (part for part in [b'{"texts": ["', b"a" * 300, b'"]}'])  # of a length that is not said
        assert client.post("/predict", content=parts).status_code == 413
        assert client.post("/predict", content=b'{"tex').status_code == 422
        assert client.get("/predict").status_code == 405 and client.get("/../etc/passwd").status_code == 404
        assert client.post("/predict", json={"texts": ["a"]}).status_code == 200  # and goes on
    with TestClient(make_app(Classifier(folders["pairs"]))) as client:
        assert "pairs: Field required" in client.post("/predict", json={"texts": ["a"]}).json()["detail"]
        response = client.post("/predict", json={"texts": ["a"], "pairs": ["b", "c"]})
        assert response.status_code == 422 and "as many as texts, 1, got 2" in response.json()["detail"]


class Slow:
    """A classifier whose first pass waits to be let go."""

    batch_size = 8

    def __init__(self) -> None:
        self.seen: list[list[str]] = []
        self.go = threading.Event()

    def probabilities(self, texts: list[str], pairs: list[str] | None) -> np.ndarray:
        self.seen.append(list(texts))
        self.go.wait(10)
        if "bad" in texts:
            raise RuntimeError("broken")
        return np.array([[float(text)] for text in texts])


def test_requests_that_wait_share_passes_and_too_many_are_sent_away() -> None:
    slow, passes = Slow(), []

    async def run() -> list:
        batcher = Batcher(slow, Limits(max_waiting=4), passes.append)
        worker = asyncio.create_task(batcher.work())
        first = asyncio.create_task(batcher.probabilities(["0"], []))
        while not slow.seen:
            await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher.probabilities([str(n), str(-n)], [])) for n in range(1, 5)]
        await asyncio.sleep(0)
        with pytest.raises(asyncio.QueueFull):
            await batcher.probabilities(["9"], [])
        slow.go.set()
        found = await asyncio.gather(first, *rest)
        with pytest.raises(RuntimeError, match="broken"):
            await batcher.probabilities(["bad"], [])
        after = await batcher.probabilities(["7"], [])
        worker.cancel()
        return [*found, after]

    found = asyncio.run(run())
    assert [one[:, 0].tolist() for one in found] == [[0.0], *([float(n), float(-n)] for n in range(1, 5)), [7.0]]
    assert slow.seen[:2] == [["0"], ["1", "-1", "2", "-2", "3", "-3", "4", "-4"]] and passes == [1, 8, 1]


def test_the_command_serves_on_this_machine_alone(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import uvicorn

    served: dict = {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: served.update(options))
    assert main(["serve", str(folders["single"]), "--port", "8765"]) == 0
    assert (served["host"], served["port"]) == ("127.0.0.1", 8765) and "asks nobody" not in capsys.readouterr().err
    assert main(["serve", str(folders["single"]), "--host", "0.0.0.0"]) == 0
    assert "asks nobody" in capsys.readouterr().err
    assert main(["serve", str(folders["single"].parent)]) == 2
