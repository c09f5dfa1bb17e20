import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_run

from nni_bertnas.data.batches import Batch, make_loader
from nni_bertnas.data.samplers import LengthBatches
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.errors import PhaseError
from nni_bertnas.stages.run import Run
from nni_bertnas.store.reader import FeatureDataset, FeatureStore


@pytest.mark.parametrize("split", ["train", "dev"])
def test_stored_features_are_the_live_teachers(built: Run, split: str) -> None:
    teacher, tokenizer = built.load_teacher()
    rows = built.data.splits[split]
    live = tokenize(tokenizer, rows, built.study.task.max_length)
    store = built.train if split == "train" else built.dev
    assert store.edges == [0, 1, 2] and len(store) == len(rows)
    dataset = FeatureDataset(store, store.edges, tokens=True)
    loader = make_loader(dataset, 16, shuffle=False)
    for numbers, batch in zip(LengthBatches(live.lengths, 16, shuffle=False), loader, strict=True):
        expected = live.batch(numbers)
        mask = batch.mask
        assert torch.equal(mask, expected.mask) and torch.equal(batch.labels, expected.labels)
        assert torch.equal(batch.input_ids, expected.input_ids)
        with torch.inference_mode():
            output = teacher(expected.input_ids, mask.long(), expected.token_type_ids, output_hidden_states=True)
        for edge, hidden in zip(store.edges, batch.hidden, strict=True):
            torch.testing.assert_close(hidden[mask], output.hidden_states[edge][mask], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(batch.logits, output.logits, rtol=1e-3, atol=1e-3)


def test_no_padding_is_stored_and_variance_is_right(built: Run) -> None:
    store = built.train
    for edge in store.edges:
        values = np.fromfile(store.folder / f"hidden_{edge}.bin", np.float16).reshape(-1, 32)
        assert len(values) == store.lengths.sum()
        assert store.variance(edge) == pytest.approx(values.astype(np.float64).var(), rel=1e-2)


def test_a_part_of_the_rows(built: Run) -> None:
    store = built.train
    batch = FeatureDataset(store, (1,), rows=[7, 3], part="architecture").batch([1])
    start, stop = store.offsets[3], store.offsets[4]
    assert batch.part == "architecture"
    values = np.fromfile(store.folder / "hidden_1.bin", np.float16).reshape(-1, 32)
    np.testing.assert_array_equal(batch.hidden[0][0].numpy(), values[start:stop].astype(np.float32))


def test_missing_and_damaged_stores_name_the_command(built: Run, tmp_path: Path) -> None:
    with pytest.raises(PhaseError, match="bertnas features"):
        FeatureStore(tmp_path)
    copy = tmp_path / "train"
    shutil.copytree(built.folder("features") / "train", copy)
    (copy / "hidden_1.bin").write_bytes(b"")
    with pytest.raises(PhaseError, match="bertnas features"):
        FeatureStore(copy).hidden([1], [0])
    with pytest.raises(PhaseError, match="not 5"):
        FeatureStore(copy).hidden([5], [0])
    with pytest.raises(PhaseError, match="bertnas teacher"):
        tiny_run(tmp_path / "empty").load_teacher()


def test_batches_are_read_ahead_in_a_thread_and_stay_the_same(built: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = FeatureDataset(built.train, (0, 1))
    inner, threads = FeatureDataset.__getitems__, []

    def watched(self: FeatureDataset, rows: list[int]) -> Batch:
        threads.append(threading.current_thread())
        return inner(self, rows)

    monkeypatch.setattr(FeatureDataset, "__getitems__", watched)
    assert dataset.read_ahead
    ahead = list(make_loader(dataset, 16, shuffle=True, seed=3))
    assert threading.main_thread() not in threads
    dataset.read_ahead = False
    threads.clear()
    plain = list(make_loader(dataset, 16, shuffle=True, seed=3))
    assert set(threads) == {threading.main_thread()}
    for one, other in zip(ahead, plain, strict=True):
        assert all(map(torch.equal, one.hidden, other.hidden))

    def broken(self: FeatureDataset, rows: list[int]) -> Batch:
        raise PhaseError("gone")

    monkeypatch.setattr(FeatureDataset, "__getitems__", broken)
    dataset.read_ahead = True
    with pytest.raises(PhaseError, match="gone"):
        list(make_loader(dataset, 16, shuffle=True))
