"""Whatever is sent to the service: an answer that says what is wrong, no path of a file, and it goes on."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from exported import chain_of, some_rows, write_student
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nni_bertnas.deploy.export import export
from nni_bertnas.errors import ConfigError
from nni_bertnas.runtime.classifier import Classifier
from nni_bertnas.runtime.manifest import FILE
from nni_bertnas.runtime.server import Limits, make_app

LIMITS = Limits(max_texts=4, max_characters=50, max_bytes=4000, seconds=0.5)
JSON = {"content-type": "application/json"}
fuzz = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rows = tmp_path_factory.mktemp("served"), some_rows(False, 5)
    source, target = write_student(root / "student", [chain_of(["convolution_3"])]), root / "onnx"
    export(source, "onnx", target, held_out=rows, calibration=rows)
    return target


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(make_app(Classifier(folder), LIMITS), raise_server_exceptions=False) as one:
        yield one


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=60)),
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
bodies = st.one_of(
    st.fixed_dictionaries({"texts": st.lists(st.text(max_size=60), max_size=6)}),
    st.fixed_dictionaries({"texts": values}, optional={"pairs": values}),
    values,
)


@fuzz
@given(bodies)
def test_any_json_is_answered_or_refused(client: TestClient, body: Any) -> None:
    response = client.post("/predict", content=json.dumps(body).encode(), headers=JSON)
    assert response.status_code in (200, 422)
    if response.status_code == 200:
        assert len(response.json()["predictions"]) == len(body["texts"]) <= LIMITS.max_texts
    else:
        assert response.json()["detail"]


@fuzz
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(client: TestClient, body: bytes) -> None:
    assert client.post("/predict", content=body, headers=JSON).status_code in (400, 422)


@fuzz
@given(st.text(max_size=40), st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "TRACE", "PATCH"]))
def test_no_path_of_a_request_leads_to_a_file(client: TestClient, path: str, method: str) -> None:
    client.base_url = "http://testserver"  # type: ignore[assignment]
    try:
        response = client.request(method, "/x/" + path)
    except Exception as error:  # no URL at all
        assert "url" in type(error).__name__.lower() or isinstance(error, UnicodeError), error
        return
    assert response.status_code in (404, 405)


@pytest.mark.parametrize("path", ["/../bertnas.json", "/bertnas.json", "/model.onnx", "/docs", "/openapi.json",
                                  "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/predict/../bertnas.json"])  # fmt: skip
def test_no_file_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in (404, 405)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 2000,
        b'{"texts": ' + b"[" * 1500 + b"]" * 1500 + b"}",
        b'{"a":' * 700 + b"1" + b"}" * 700,
        b'{"texts": ["\\ud800"]}',
        b'{"texts": [' + b"9" * 3000 + b"]}",
        b'{"texts": ["a"], "texts": [1]}',
        b'{"texts": ["' + b"a" * 51 + b'"]}',
        b'{"texts": ' + json.dumps(["a"] * 5).encode() + b"}",
        b'{"texts": ["a"], "model": "../../etc/passwd"}',
        b"",
        b"NaN",
        b"\xff\xfe{",
    ],
)
def test_nesting_sizes_and_halves_are_refused_and_it_goes_on(client: TestClient, body: bytes) -> None:
    response = client.post("/predict", content=body, headers=JSON)
    assert response.status_code in (400, 413, 422) and response.json()["detail"]
    assert client.post("/predict", json={"texts": ["a"]}).status_code == 200


def test_errors_say_nothing_of_this_machine(client: TestClient, folder: Path) -> None:
    for body in (b"", b"{", b'{"texts": [1]}', b"[" * 2000, b'{"texts": ["\\ud800"]}'):
        text = client.post("/predict", content=body, headers=JSON).text
        assert str(folder) not in text and "Traceback" not in text and ".py" not in text


@contextmanager
def serving(folder: Path, limits: Limits) -> Iterator[int]:
    """The service on a free port, as `serve` runs it."""
    app, listener = make_app(Classifier(folder), limits), socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", limit_concurrency=limits.max_connections))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


def ask(port: int, text: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(text)
    return connection


def answer(connection: socket.socket) -> bytes:
    with connection:
        return connection.recv(1 << 16)


def test_bodies_that_do_not_come_and_crowds_are_sent_away(folder: Path) -> None:
    body = b'{"texts": ["a"]}'
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(
        body
    )
    with serving(folder, Limits(seconds=0.5)) as port:
        start = time.monotonic()
        assert b"408" in answer(ask(port, head + body[:3])) and time.monotonic() - start < 8
        assert b"200 OK" in answer(ask(port, head + body))
        assert b"400" in answer(ask(port, b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 100_000 + b"\r\n\r\n"))
    with serving(folder, Limits(max_connections=4)) as port:
        idle = [ask(port, head) for _ in range(8)]
        while b"503" not in (found := answer(ask(port, head + body))):  # until all of them are taken
            assert b"200 OK" in found
        for one in idle:
            one.close()
        while b"200 OK" not in (found := answer(ask(port, head + body))):
            assert b"503" in found


# the folder that is served


@pytest.mark.parametrize("file", ["tokenizer.json", "model.onnx", FILE, "other.txt"])
def test_a_folder_with_links_out_of_it_is_not_served(folder: Path, tmp_path: Path, file: str) -> None:
    own, secret = tmp_path / "own", tmp_path / "secret"
    own.mkdir()
    secret.write_text("{}")
    for path in folder.iterdir():
        if path.name != file and path.is_file():
            (own / path.name).write_bytes(path.read_bytes())
    (own / file).symlink_to(secret)
    with pytest.raises(ConfigError, match=f"{file} is a link out of the folder; put the file itself there"):
        Classifier(own)


@pytest.mark.parametrize("name", ["../secret.onnx", "/etc/secret.onnx", "sub/model.onnx"])
def test_a_manifest_names_files_of_its_folder_alone(folder: Path, tmp_path: Path, name: str) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (own / path.name).write_bytes(path.read_bytes())
    (tmp_path / "secret.onnx").write_bytes((folder / "model.onnx").read_bytes())
    raw = json.loads((own / FILE).read_text())
    (own / FILE).write_text(json.dumps({**raw, "model": name}))
    if Path(name).name != "model.onnx":
        with pytest.raises(ConfigError, match=r"own/secret\.onnx cannot be loaded"):
            Classifier(own)
    else:
        assert Classifier(own)(["a"])  # the one that lies there


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{}", '{"model": 1}', "\x00"])
def test_a_manifest_that_is_none_is_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"bertnas\.json cannot be read"):
        Classifier(tmp_path)


def test_weights_of_an_onnx_file_that_lie_elsewhere_are_not_read(folder: Path, tmp_path: Path) -> None:
    import onnx

    own = tmp_path / "own"
    own.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (own / path.name).write_bytes(path.read_bytes())
    model = onnx.load(folder / "model.onnx")
    largest = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    (tmp_path / "secret.bin").write_bytes(largest.raw_data)
    largest.ClearField("raw_data")
    largest.data_location = onnx.TensorProto.EXTERNAL
    largest.external_data.add(key="location", value="../secret.bin")
    (own / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Classifier(own)
