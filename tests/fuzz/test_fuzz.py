"""Whatever people's files hold: our own errors alone, and what is read is what a naive reader reads.

A few dozen cases of each kind run by default; more with BERTNAS_FUZZ=10000 pytest tests/fuzz.
"""

import copy
import csv
import json
import math
import os
import shutil
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import WORDS, tiny_study_fields, write_tiny_model

from nni_bertnas.config import CustomSettings, Study, TaskSettings, TransferSettings, to_yaml
from nni_bertnas.data.models import load_classifier
from nni_bertnas.data.readers import read_records
from nni_bertnas.data.rows import Rows
from nni_bertnas.data.task_data import read_splits
from nni_bertnas.data.transfer import load_transfer
from nni_bertnas.deploy.copies import write_copy
from nni_bertnas.deploy.predict import load_predictor
from nni_bertnas.errors import BertnasError
from nni_bertnas.study_files import load_study, parse_study

CASES = int(os.environ.get("BERTNAS_FUZZ", "30"))
fuzz = settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
pytestmark = pytest.mark.timeout(7200)

odd = st.sampled_from(
    ["", " ", "-", "nan", "inf", "null", "0", "1.0", "1e400", "é", "e\u0301", "\ufeff", "[/b]", '"', "'", "{}", "%s",
     "~", "\x00", "\u2028", "a,b", "a\tb", "a\nb", "🙂", "ﬁ", "off", "no", "1_000"]
)  # fmt: skip
texts = st.one_of(odd, st.text(max_size=12))
numbers = st.one_of(st.integers(-3, 3), st.integers(), st.floats(), st.sampled_from([1e308, -0.0, 2**63, 10**30]))
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=4,
)


def places(raw: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    for key, value in raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ():
        found += places(value, (*path, key))
    return found


def whole_study() -> dict[str, Any]:
    """Every key of a study, with its default."""
    with tempfile.TemporaryDirectory() as folder:
        fields = tiny_study_fields(Path(folder))
        raw: dict[str, Any] = yaml.safe_load(to_yaml(parse_study(fields)))
    own = {"train": "a.csv", "text_columns": ["text"], "labels": ["a", "b"]}
    raw["task"] = {**raw["task"], "name": "custom", "source": "files", "data_dir": None, "custom": own}
    return raw


WHOLE = whole_study()


@given(st.data())
@fuzz
def test_study_files(data: st.DataObject) -> None:
    raw = copy.deepcopy(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(raw)))
        inside: Any = raw
        for key in path[:-1]:
            inside = inside[key]
        kind = data.draw(st.sampled_from(["value", "value", "value", "gone", "new"]))
        if kind == "gone" and isinstance(inside, dict):
            del inside[path[-1]]
        elif kind == "new" and isinstance(inside, dict):
            inside[data.draw(texts)] = data.draw(plain)
        else:
            inside[path[-1]] = data.draw(plain)
    try:
        study = parse_study(raw)
    except BertnasError as error:
        assert str(error).strip()
        return
    assert isinstance(study, Study) and parse_study(yaml.safe_load(to_yaml(study))) == study


@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
)
@fuzz
def test_what_is_no_study_at_all(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.yml"
        path.write_bytes(content)
        with pytest.raises(BertnasError):
            load_study(path)


def naive_label(value: Any) -> str | None:
    """As a person reads a label; None for what is none."""
    if isinstance(value, bool | int | float | str) and not (isinstance(value, float) and math.isnan(value)):
        text = unicodedata.normalize("NFC", str(value)).strip()
        head, point, tail = text.partition(".")
        if point and head.lstrip("+-").isascii() and head.lstrip("+-").isdigit() and not tail.strip("0"):
            text = head
        return text or None
    return None


def read(path: Path, **own: Any) -> tuple[tuple[str, ...], Rows]:
    custom = CustomSettings(train=str(path), text_columns=["text"], **own)
    names, found = read_splits(TaskSettings(name="custom", source="files", custom=custom, bad_rows="skip"))
    return names, found["train"]


labels = st.lists(
    st.one_of(st.sampled_from(["a", "b", 0, 1, 1.0, "1", True, None, "é", "e\u0301"]), plain), min_size=4, max_size=12
)


def write_labels(folder: Path, values: list[Any]) -> Path:
    path = folder / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"t{n}", "label": one}) for n, one in enumerate(values)))
    return path


@given(labels)
@fuzz
def test_label_columns(values: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_labels(Path(folder), values)
        expected = {f"t{n}": naive for n, one in enumerate(values) if (naive := naive_label(one)) is not None}
        try:
            names, rows = read(path)
        except BertnasError:
            plainly = {name.lower().replace("-", "_").replace(" ", "_") for name in expected.values()}
            assert len(plainly) < max(2, len(set(expected.values())))  # one label alone, or two that look alike
            return
        found = {text: names[int(label)] for text, label in zip(rows.texts, rows.labels, strict=True)}
        assert found == expected


@given(labels)
@fuzz
def test_scores(values: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_labels(Path(folder), values)
        expected = {}
        for number, one in enumerate(values):
            text = naive_label(one)
            try:
                score = math.nan if text is None else float(text)
            except (ValueError, OverflowError):
                continue
            if math.isfinite(score):
                expected[f"t{number}"] = score
        try:
            _, rows = read(path, kind="regression")
        except BertnasError:
            assert not expected
            return
        assert dict(zip(rows.texts, rows.labels, strict=True)) == expected


cells = st.one_of(odd, st.text(max_size=20)).filter(
    lambda text: "\x00" not in text and text.isprintable() | ("\n" in text)
)


@given(
    st.lists(st.tuples(cells, cells), min_size=1, max_size=8),
    st.sampled_from([",", "\t"]),
    st.sampled_from(["\n", "\r\n"]),
)
@fuzz
def test_tables_and_their_copies(rows: list[tuple[str, str]], delimiter: str, end: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("a.tsv" if delimiter == "\t" else "a.csv")
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
            writer.writerows([("text", "other"), *rows])
        with path.open(newline="", encoding="utf-8-sig") as file:
            naive = list(csv.reader(file, delimiter=delimiter))[1:]
        naive = [row for row in naive if row]
        found = [[record.values["text"], record.values["other"]] for record in read_records(path)]
        assert found == naive
        target = path.with_name(f"out{path.suffix}")
        write_copy(path, target, ({"prediction": number} for number in range(len(found))), literal_quotes=False)
        with target.open(newline="", encoding="utf-8") as file:
            copied = list(csv.reader(file, delimiter=delimiter))
        assert copied[0] == ["text", "other", "prediction"]
        assert copied[1:] == [[*row, str(number)] for number, row in enumerate(naive)]


@given(st.binary(max_size=300), st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.parquet"]), st.booleans())
@fuzz
def test_files_of_noise(content: bytes, name: str, headed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        head = {".csv": b"text,label\n", ".tsv": b"text\tlabel\n", ".jsonl": b'{"text": "a", "label": "b"}\n'}
        path.write_bytes((head.get(path.suffix, b"") if headed else b"") + content)
        try:
            names, rows = read(path)
        except BertnasError:
            return
        assert len(names) >= 2 and len(rows) == len(rows.labels) and all(text.strip() for text in rows.texts)


lines = st.one_of(cells, st.sampled_from([" ", "\x85", "\u2028", "a b", "c", '"', "\t", "{}"])).map(
    lambda text: text.replace("\n", " ")
)


@given(st.lists(lines, min_size=1, max_size=12), st.booleans(), st.sampled_from(["\n", "\r\n"]))
@fuzz
def test_files_without_labels(found: list[str], plain_text: bool, end: str) -> None:
    task, known = TaskSettings(name="sst2", source="glue"), {"train": Rows(["a b", "é"], [0, 1])}
    expected = [text for text in dict.fromkeys(one.strip() for one in found) if text and text not in ("a b", "é")]
    with tempfile.TemporaryDirectory() as folder:
        if plain_text:
            path, content = Path(folder) / "a.txt", end.join(found)
        else:
            path, content = Path(folder) / "a.jsonl", "\n".join(json.dumps({"sentence": one}) for one in found)
        path.write_bytes(content.encode())
        settings = TransferSettings(files=[str(path)])
        try:
            rows = [text for part in load_transfer(settings, task, known) for text in part.texts]
        except BertnasError as error:
            assert "sentence is empty" in str(error) and not plain_text and not all(one.strip() for one in found)
            return
        assert rows == expected


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertForSequenceClassification, BertTokenizerFast

    folder = write_tiny_model(tmp_path_factory.mktemp("fuzz") / "base")
    torch.manual_seed(0)
    target = folder.parent / "model"
    BertForSequenceClassification.from_pretrained(folder).save_pretrained(target)
    BertTokenizerFast.from_pretrained(folder).save_pretrained(target)
    shutil.copy(folder / "vocab.txt", target)
    return target


TEXTS = [" ".join(WORDS[number : number + 4]) for number in range(0, 80, 4)]


def change(file: Path, data: st.DataObject) -> None:
    """Damage one file as disks, downloads and editors do."""
    content = file.read_bytes()
    kind = data.draw(st.sampled_from(["gone", "cut", "empty", "noise", "pointer", "json"]))
    if kind == "gone":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(content[: data.draw(st.integers(0, max(0, len(content) - 1)))])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "noise":
        file.write_bytes(data.draw(st.binary(max_size=100)))
    elif kind == "pointer":
        file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif file.suffix == ".json":
        try:
            raw = json.loads(content)
        except ValueError:
            return
        where = places(raw)
        if where:
            path = data.draw(st.sampled_from([one for one in where if len(one) < 3]))
            inside = raw
            for key in path[:-1]:
                inside = inside[key]
            inside[path[-1]] = data.draw(plain)
        file.write_text(json.dumps(raw))


@given(data=st.data())
@fuzz
def test_folders_of_models(model: Path, data: st.DataObject) -> None:
    right = load_predictor(model).probabilities(Rows(TEXTS, [0] * len(TEXTS)))
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder) / "model"
        shutil.copytree(model, damaged)
        names = sorted(file.name for file in damaged.iterdir())
        for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
            change(damaged / name, data)
        before = load_file(model / "model.safetensors")
        try:
            loaded, _ = load_classifier(damaged)
            found = load_predictor(damaged).probabilities(Rows(TEXTS, [0] * len(TEXTS)))
        except BertnasError as error:
            assert str(damaged) in str(error) or "task" in str(error)
            return
        weights = loaded.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in before.items() if name in weights)
        assert np.isfinite(found).all()
        read_first = ("config.json", "tokenizer.json", "tokenizer_config.json")
        if all((damaged / name).is_file() for name in read_first) and all(
            (damaged / name).read_bytes() == (model / name).read_bytes() for name in read_first
        ):
            np.testing.assert_allclose(found, right, atol=1e-6)
