import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from exported import chain_of, some_rows, write_student

from nni_bertnas.deploy import container
from nni_bertnas.deploy.export import export
from nni_bertnas.deploy.predict import load_predictor
from nni_bertnas.errors import ConfigError


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("contained") / "student", [chain_of(["convolution_3"])])


def lay_out(requirements: Path, target: Path) -> None:
    """What `pip install --no-deps --target` of the file would lay down, out of what is installed here."""
    for line in requirements.read_text().splitlines():
        name, _, pinned = line.partition("==")
        assert pinned == version(name)
        for file in distribution(name).files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                (target / file).symlink_to(file.locate())


def ask(port: int, path: str, body: dict | None = None) -> dict:
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


@pytest.mark.parametrize("name", ["onnx", "onnx-int8"])
def test_an_exported_folder_serves_with_its_requirements_alone(student: Path, tmp_path: Path, name: str) -> None:
    rows, out = some_rows(False, 8), tmp_path / "out"
    export(student, name, out, held_out=rows, calibration=rows, min_agreement=0.5)
    lay_out(out / "requirements.txt", tmp_path / "packages")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # -S: the packages installed here cannot be seen
    command = [sys.executable, "-S", "-m", "bertnas_runtime", "--serve", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "packages")}
    with subprocess.Popen(command, cwd=out, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as service:
        try:
            while True:
                assert service.poll() is None, service.stderr and service.stderr.read().decode()
                try:
                    assert ask(port, "/health")["status"] == "ok"
                    break
                except urllib.error.URLError:
                    time.sleep(0.05)
            said = ask(port, "/predict", {"texts": rows.texts})["predictions"]
        finally:
            service.terminate()
    before = load_predictor(student).probabilities(rows)
    for one, row in zip(said, before, strict=True):
        assert list(one["probabilities"].values()) == pytest.approx(row.tolist(), abs=1e-5 if name == "onnx" else 0.1)


def test_onnxruntime_does_not_report_to_its_makers(tmp_path: Path) -> None:
    script = "import nni_bertnas.runtime, onnxruntime; onnxruntime.get_available_providers()"
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    own = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}  # where it keeps this machine's number
    subprocess.run([sys.executable, "-c", script], env=environment | own, check=True)
    assert not list(tmp_path.iterdir())


def test_the_dockerfile_takes_what_is_in_the_folder(student: Path, tmp_path: Path) -> None:
    rows, out = some_rows(False, 8), tmp_path / "out"
    export(student, "onnx", out, held_out=rows, calibration=rows)
    lines = (out / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY") and "--from" not in line for name in line.split()[1:-1]]
    files = {file.name for file in out.iterdir()}
    assert files == {*(name.removesuffix("*") for name in copied), "Dockerfile"}
    images = [line.split()[1] for line in lines if line.startswith("FROM")]
    inside = container._INSIDE["python_version"]
    assert images == [f"python:{inside}-slim-bookworm", "gcr.io/distroless/python3-debian12"]  # which has Python 3.11
    assert lines.index("USER 65532:65532") > max(n for n, line in enumerate(lines) if line.startswith("RUN"))


def test_what_only_fetches_models_is_left_out() -> None:
    found = container.pinned()
    assert found["pydantic-core"] == version("pydantic-core")  # found through fastapi's pydantic alone
    assert not {"huggingface-hub", "hf-xet", "httpx2", "torch", "transformers", "nni"} & set(found)
    assert "colorama" not in found  # of uvicorn's click on Windows


def test_a_package_that_is_not_installed_is_named(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "NEEDED", ("numpy", "no-such-package"))
    rows = some_rows(False, 5)
    with pytest.raises(ConfigError, match=r"version of no-such-package.*nni-bertnas\[export\]"):
        export(student, "onnx", tmp_path / "out", held_out=rows, calibration=rows)
    assert not (tmp_path / "out").exists()
