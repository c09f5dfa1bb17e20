import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import all_units, tiny_run

from nni_bertnas.data.tokens import tokenize
from nni_bertnas.errors import PhaseError
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure
from nni_bertnas.store import writer as writing
from nni_bertnas.store.layout import DTYPES, decode, encode
from nni_bertnas.store.reader import FeatureDataset, FeatureStore
from nni_bertnas.store.writer import SplitWriter, shard_rows


@pytest.fixture
def writer(built: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SplitWriter:
    """Of train at two edges in several shards."""
    monkeypatch.setattr(writing, "_SHARD_TOKENS", 500)
    return make_writer(built, tmp_path / "train")


def make_writer(run: Run, folder: Path, dtype: str = "float16") -> SplitWriter:
    teacher, tokenizer = run.load_teacher()
    rows = tokenize(tokenizer, run.data.splits["train"], run.study.task.max_length)
    return SplitWriter(folder, teacher, rows, [0, 2], dtype)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.bin")}


def test_shards_hold_every_row_once_and_about_as_many_word_pieces() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 20_000)
    shards = shard_rows(lengths)
    assert [row for first, stop in shards for row in range(first, stop)] == list(range(len(lengths)))
    sizes = [lengths[first:stop].sum() for first, stop in shards]
    assert max(sizes) <= writing._SHARD_TOKENS + 60 and min(sizes[:-1]) >= writing._SHARD_TOKENS - 60
    assert shard_rows(np.array([5])) == [(0, 1)]


def test_damaged_and_missing_shards_alone_are_made_anew(
    writer: SplitWriter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index = writer.write()
    before = contents(writer.folder)
    assert index.num_shards == len(writer.rows) > 4
    made: list[int] = []
    inner = SplitWriter._write_shard
    monkeypatch.setattr(
        SplitWriter, "_write_shard", lambda self, n, report: (made.append(n), inner(self, n, report))[1]
    )
    writer.write()
    assert made == []
    start, stop = writer._range("hidden_2", 3)
    with (writer.folder / "hidden_2.bin").open("r+b") as file:  # one flipped bit
        file.seek((start + stop) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.truncate(writer.folder / "logits.bin", writer._range("logits", len(writer.rows) - 1)[1] - 1)
    assert writer.write() == index
    assert made == [3, len(writer.rows) - 1] and contents(writer.folder) == before
    assert "shard 3 of" in caplog.text
    (writer.folder / "hidden_0.bin").unlink()
    writer.write()
    assert contents(writer.folder) == before


def test_an_interrupted_build_goes_on_where_it_stopped(writer: SplitWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "BATCH_SIZE", 16)  # several steps a shard
    inner = SplitWriter._write_shard

    def stop_at_two(self: SplitWriter, number: int, report: Callable[[int], None]) -> dict:
        if number == 2:
            raise KeyboardInterrupt
        return inner(self, number, report)

    monkeypatch.setattr(SplitWriter, "_write_shard", stop_at_two)
    with pytest.raises(KeyboardInterrupt):
        writer.write()
    with pytest.raises(PhaseError, match="bertnas features"):
        FeatureStore(writer.folder)
    made: list[int] = []
    monkeypatch.setattr(
        SplitWriter, "_write_shard", lambda self, n, report: (made.append(n), inner(self, n, report))[1]
    )
    told: list[tuple[int, int]] = []
    writer.write(lambda done, total, *_: told.append((done, total)))
    assert told == sorted(told) and told[-1] == (len(writer.data), len(writer.data))
    assert {stop for _, stop in writer.rows} < {done for done, _ in told}  # every shard's end, and steps between
    assert made == list(range(2, len(writer.rows)))
    resumed = contents(writer.folder)
    (writer.folder / writing._SHARDS).unlink()
    writer.write()
    assert contents(writer.folder) == resumed


@pytest.mark.parametrize(("dtype", "most"), [("float16", 1e-3), ("bfloat16", 5e-3), ("int8", 2e-2)])
def test_types_and_their_measured_errors(built: Run, tmp_path: Path, dtype: str, most: float) -> None:
    exact = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    error = (decode(*encode(exact, dtype)) - exact).square().mean().sqrt() / exact.std()
    assert 0 < error < most
    writer = make_writer(built, tmp_path / "train", dtype)
    index = writer.write()
    assert all(0 < value < most for value in index.error.values())
    size = sum((writer.folder / f"{name}.bin").stat().st_size for name in index.files() if "_" in name)
    one = 2 * (32 * DTYPES[dtype].itemsize + (4 if dtype == "int8" else 0))  # two edges
    assert size == index.num_tokens * one == index.num_tokens * index.token_bytes()
    store = FeatureStore(writer.folder)
    (hidden,) = store.hidden([2], [5])
    with torch.inference_mode():
        batch = writer.data.batch([5])
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.mask.long()}
        expected = writer.teacher(**inputs, output_hidden_states=True).hidden_states[2]
    assert hidden.dtype == torch.float32
    assert (hidden - expected).square().mean().sqrt() / expected.std() < 2 * most


def test_what_does_not_fit_into_half_precision_names_the_remedy(writer: SplitWriter, built: Run) -> None:
    def loud(writer: SplitWriter) -> SplitWriter:
        norm = writer.teacher.base_model.encoder.layer[1].output.LayerNorm
        with torch.no_grad():
            norm.weight.mul_(1e6)
        return writer

    with pytest.raises(PhaseError, match=r"set features\.dtype to bfloat16"):
        loud(writer).write()
    loud(make_writer(built, writer.folder, "bfloat16")).write()


@pytest.mark.slow
def test_a_disk_budget_stores_a_fixed_part(built_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, caplog.handler.level = built_copy, logging.WARNING
    before = tiny_run(root)
    whole, dev = before.train, before.dev
    budget = (dev.index.num_tokens + whole.index.num_tokens / 2) * whole.index.token_bytes() / 1e9
    run = tiny_run(root, name="subset", features={"max_gigabytes": budget})
    shutil.copytree(before.folder("teacher"), run.folder("teacher"))
    result = ensure(run, "features")
    assert (
        result["stored_rows"] == pytest.approx(len(whole) / 2, abs=10) and "are stored, always the same" in caplog.text
    )
    hidden_bytes = sum(file.stat().st_size for file in run.folder("features").rglob("hidden_*.bin"))
    assert hidden_bytes <= budget * 1e9
    part = run.train
    assert len(part) == len(whole) and len(part.rows) == result["stored_rows"]
    assert np.array_equal(part.logits, whole.logits)
    for row in part.rows[:5]:
        assert torch.equal(part.hidden([1], [row])[0], whole.hidden([1], [row])[0])
    assert part.variance(2) == pytest.approx(whole.variance(2))
    ensure(run, "cell", {"block": 0, "depth": 1})  # searches on the part
    with pytest.raises(PhaseError, match=r"max_gigabytes 1e-06 is too little .* set it to "):
        ensure(tiny_run(root, name="subset", features={"max_gigabytes": 1e-6}), "features")


@pytest.mark.slow
def test_live_gives_what_a_store_gives(built_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = tiny_run(built_copy)
    whole = before.train
    run = tiny_run(
        built_copy, name="live", supernet={"epochs": 1}, cell={"strategy": "random", "depths": [1]},
        features={"max_gigabytes": 1e-6, "over_budget": "live"},
    )  # fmt: skip
    shutil.copytree(before.folder("teacher"), run.folder("teacher"))
    ensure(run, "features")
    assert "the teacher runs live" in caplog.text
    live = run.train
    assert not (run.folder("features") / "train" / "hidden_1.bin").stat().st_size
    rows = [3, 40, 41]
    mask = FeatureDataset(whole, (), rows=rows).batch([0, 1, 2]).mask
    for one, other in zip(live.hidden([0, 2], rows), whole.hidden([0, 2], rows), strict=True):
        torch.testing.assert_close(one[mask], other[mask], rtol=2e-3, atol=2e-3)
    assert live.variance(1) == pytest.approx(whole.variance(1))
    with pytest.raises(PhaseError, match="open it with the teacher"):
        FeatureStore(live.folder).hidden([0], rows)
    all_units(run, "cell", "block", "supernet")
    assert run.read("supernet", {"seed": 0})["student"]["dev_accuracy"] >= 0


def test_a_file_that_became_shorter_is_named(writer: SplitWriter) -> None:
    writer.write()
    store = FeatureStore(writer.folder)
    dataset = FeatureDataset(store, (2,))
    dataset.batch([0])
    os.truncate(writer.folder / "hidden_2.bin", 100)
    with pytest.raises(PhaseError, match=r"hidden_2\.bin became shorter.*bertnas features"):
        dataset.batch([len(dataset) - 1])


def test_answers_are_kept_as_exactly_as_the_teacher_gives_them(built: Run, tmp_path: Path) -> None:
    teacher, tokenizer = built.load_teacher()
    teacher.classifier.bias.data += torch.tensor([2010.3, 107_000.0])  # a year, a price
    data = tokenize(tokenizer, built.data.splits["dev"], 32)
    SplitWriter(tmp_path / "dev", teacher, data, [0]).write()
    batch = data.batch([3])
    said = teacher(batch.input_ids, batch.mask.long()).logits[0]
    torch.testing.assert_close(torch.tensor(FeatureStore(tmp_path / "dev").logits[3]), said, rtol=1e-6, atol=0)
    teacher.classifier.bias.data += float("inf")
    with pytest.raises(PhaseError, match="the teacher's answers are not finite"):
        SplitWriter(tmp_path / "other", teacher, data, [0]).write()
