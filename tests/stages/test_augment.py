import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from tiny import tiny_run

from nni_bertnas.augment import parts
from nni_bertnas.augment.parts import LABELLED, rows_of_copies
from nni_bertnas.cli import main
from nni_bertnas.config import to_yaml
from nni_bertnas.data.batches import make_stream, model_inputs
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.stages.augment import disagreement
from nni_bertnas.stages.rows import all_rows, own_rows
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure, find, load
from nni_bertnas.store.reader import FeatureDataset, FeatureStore
from nni_bertnas.store.writer import SplitWriter
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training import masked_lm


def test_disagreement() -> None:
    logits = np.array([[1, 2], [3, 0], [0, 1]], np.float16)
    assert disagreement(logits, np.array([1, 1, 0])) == pytest.approx(2 / 3)
    assert disagreement(np.array([[1.0], [4.0]], np.float16), np.array([1.5, 3.0])) == pytest.approx(0.75)


def open_labelled(run: Run, copies: int) -> tuple[FeatureStore, np.ndarray]:
    folder = run.folder("augment")
    return run.open_store(folder / LABELLED), rows_of_copies(folder, copies)


@pytest.fixture(scope="module")
def fitted(built: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny study with a masked language model fitted, in a run directory of its own."""
    root = tmp_path_factory.mktemp("augmented")
    shutil.copytree(built.root, root / built.study.name)
    run = with_copies(Run(dataclasses.replace(built.study, runs_dir=str(root))), 3, fit_epochs=1)
    ensure(run, "masked_lm")
    return run


def with_copies(run: Run, copies: int, **changes: object) -> Run:
    augment = dataclasses.replace(run.study.augment, copies=copies, **changes)
    return Run(dataclasses.replace(run.study, augment=augment))


class Progress(Tracker):
    """Hands on how many rows have new ones."""

    def __init__(self, take: Callable[[int, int], None]) -> None:
        super().__init__()
        self.take = take

    def progress(self, done: int, total: int, what: str = "rows", loss: float | None = None) -> None:
        if what == "rows":
            self.take(done, total)


class Labelling(Tracker):
    """Interrupts when the shard of labels is written, which all rows are told of once before."""

    labelled = False

    def progress(self, done: int, total: int, what: str = "rows", loss: float | None = None) -> None:
        if what == "rows labelled" and done == total:
            if self.labelled:
                raise KeyboardInterrupt
            self.labelled = True


def test_augmentation_resumes_and_its_rows_are_new_and_labelled_by_the_teacher(
    fitted: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_PART_ROWS", 64)

    def interrupt(done: int, total: int) -> None:
        if done >= 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(fitted, "augment", tracker=Progress(interrupt))
    root = fitted.root
    before = {file: file.stat().st_mtime_ns for file in root.glob(".augment-*/*.parquet")}
    assert len(before) == 2 and not fitted.folder("augment").exists()
    with pytest.raises(KeyboardInterrupt):
        ensure(fitted, "augment", tracker=Labelling())
    monkeypatch.setattr(SplitWriter, "_write_shard", None)  # what is labelled stays
    kept: dict[Path, int] = {}
    watch = Progress(lambda done, total: kept.update({file: file.stat().st_mtime_ns for file in before}))
    result = ensure(fitted, "augment", tracker=watch)
    assert kept == before and not list(root.glob(".augment-*/"))

    train = fitted.data.splits["train"]
    table = parquet.read_table(fitted.folder("augment") / "rows.parquet")
    settings = json.loads(table.schema.metadata[b"bertnas_augment"])
    assert settings["copies"] == 3 and settings["probability"] == 0.4 and settings["seed"] == 0
    texts = table.column("sentence").to_pylist()
    assert len(texts) == result["rows"] == len(set(texts)) and not set(texts) & set(train.texts)
    assert table.column("label").to_pylist() == [train.labels[row] for row in table.column("row").to_pylist()]
    assert result["tries"] == 3 * len(train)
    together = result["rows"] / result["tries"] + result["unchanged_share"] + result["duplicate_share"]
    assert together == pytest.approx(1)
    assert result["rows_per_second"] == pytest.approx(result["tries"] / result["seconds"])

    store, rows = open_labelled(fitted, 3)
    teacher, tokenizer = fitted.load_teacher()
    encoded = tokenizer(texts[:5], padding=True, return_tensors="pt")
    with torch.inference_mode():
        live = teacher(**encoded).logits
    np.testing.assert_allclose(store.logits[:5], live, atol=2e-2)
    labels = np.asarray(table.column("label").to_pylist())
    assert result["disagreement"] == pytest.approx((store.logits.argmax(1) != labels).mean())
    assert len(rows) == len(store) == len(texts) and set(store.labels.tolist()) == {-100}


def test_fewer_copies_are_a_part_of_more(fitted: Run) -> None:
    first = ensure(fitted, "augment")
    assert ensure(with_copies(fitted, 1), "augment") == first
    store, rows = open_labelled(fitted, 1)
    copies = parquet.read_table(fitted.folder("augment") / "rows.parquet").column("copy").to_numpy()
    assert 0 < len(rows) < len(store) and set(copies[rows]) == {0} and (copies == 0).sum() == len(rows)
    assert find(with_copies(fitted, 4), "augment") is None
    assert find(with_copies(fitted, 1, probability=0.2), "augment") is None


def test_a_student_batch_has_hidden_states_or_is_augmented(fitted: Run) -> None:
    ensure(fitted, "augment")
    store, rows = open_labelled(fitted, 3)
    train = fitted.train
    parts = [
        FeatureDataset(train, train.edges[1:], tokens=True),
        FeatureDataset(store, (), tokens=True, rows=rows, part="augmented"),
    ]
    loader = make_stream(parts, 16, seed=0, epoch_rows=None)
    seen = {"train": 0, "augmented": 0}
    for batch in loader:
        seen[batch.part] += len(batch)
        assert bool(batch.hidden) == (batch.part == "train")
        assert model_inputs(torch.nn.Linear(1, 1), batch)["input_ids"].shape == batch.mask.shape
    assert seen == {"train": len(train), "augmented": len(store)}


def test_what_is_missing_is_said(built: Run, tmp_path: Path) -> None:
    assert load("augment").units(built) == load("masked_lm").units(built) == []
    with pytest.raises(PhaseError, match="bertnas masked_lm STUDY"):
        find(with_copies(built, 2), "augment")
    named = with_copies(built, 2, masked_lm="some/model", vectors="nowhere")
    assert load("masked_lm").units(named) == []
    with pytest.raises(ConfigError, match=r"augment\.vectors: .* does not exist"):
        ensure(named, "augment")


def test_the_fitted_model_beats_the_commonest_piece(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, augment={"copies": 1, "fit_epochs": 30})
    path = Path(run.study.task.data_dir) / "SST-2" / "train.tsv"
    generator = np.random.default_rng(0)
    words = [f"q{a}{b}" for a in "abcdefghi" for b in "abcdefghij"]
    lines = []
    for number in range(400):  # the second word of each pair follows from the first
        pairs = [f"{words[first]} {words[first + 8]}" for first in generator.integers(0, 8, 5)]
        lines.append(f"{' '.join(pairs)}\t{number % 2}")
    path.write_text("\n".join(["sentence\tlabel", *lines, ""]))
    monkey = pytest.MonkeyPatch()
    monkey.setattr(masked_lm, "_LEARNING_RATE", 5e-3)
    with monkey.context():
        result = ensure(run, "masked_lm")
    monkey.undo()
    assert result["commonest_accuracy"] < 0.1 < 0.3 < result["dev_accuracy"]
    assert ensure(run, "masked_lm") == result


def test_the_command_fits_augments_and_says_what_came_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run(tmp_path, augment={"copies": 2, "fit_epochs": 1})
    path = tmp_path / "study.yml"
    path.write_text(to_yaml(run.study))
    assert main(["augment", str(path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    result = run.read("augment")
    assert f"{result['rows']} new rows of {result['tries']} tries" in text
    assert f"disagreement of the teacher and the labels {result['disagreement']:.1%}" in text
    assert "right on dev" in text and "tries/s" in text
    path.write_text(to_yaml(tiny_run(tmp_path, augment={"copies": 2, "masked_lm": "some/model"}).study))
    assert main(["masked_lm", str(path)]) == 2
    assert "leave augment.masked_lm out" in capsys.readouterr().err


def test_corrupted_texts_are_labelled_and_learnt_from(built_copy: Path) -> None:
    run = tiny_run(built_copy, augment={"corruptions": 2})
    result = ensure(run, "corrupt")
    table = parquet.read_table(run.folder("corrupt") / "rows.parquet").to_pydict()
    train = run.data.splits["train"]
    assert 240 < len(table["sentence"]) == result["rows"] and not set(table["sentence"]) & set(train.texts)
    store = run.open_store(run.folder("corrupt") / LABELLED)
    answers, own = store.logits.argmax(1), run.train.logits.argmax(1)[table["row"]]
    assert result["changed"] == pytest.approx(float((answers != own).mean()))
    assert result["answers"] == np.bincount(answers, minlength=2).tolist()
    assert [len(part) for part in all_rows(run, hidden=False, vectors=False)] == [len(run.train), result["rows"]]
    assert len(own_rows(run, vectors=False)) == len(train)
    assert "corrupted texts" in load("corrupt").describe(run, result)
