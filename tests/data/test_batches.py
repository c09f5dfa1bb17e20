import pickle

import numpy as np
import pytest
import torch

from nni_bertnas.data.batches import TokenDataset, make_loader, make_stream, of_rank, ragged_positions
from nni_bertnas.data.samplers import LengthBatches, RankBatches, StreamBatches


def test_length_batches_cover_every_row_once_in_a_new_order_every_epoch() -> None:
    lengths = np.random.default_rng(1).integers(1, 60, 1003)
    batches = LengthBatches(lengths, 16, shuffle=True, seed=3)
    first, second = list(batches), list(batches)
    assert len(first) == len(batches) and first != second
    assert sorted(row for batch in first for row in batch) == list(range(1003))
    assert list(LengthBatches(lengths, 16, shuffle=True, seed=3)) == first
    padding = sum(lengths[batch].max() * len(batch) for batch in first) / lengths.sum() - 1
    assert padding < 0.1  # in random batches it is about 0.9
    in_order = list(LengthBatches(lengths, 16, shuffle=False))
    assert sorted(row for batch in in_order for row in batch) == list(range(1003))


def test_ragged_positions_against_naive_loop() -> None:
    offsets = np.array([0, 3, 4, 9])
    positions, mask = ragged_positions(offsets, [2, 0])
    assert positions[mask].tolist() == [4, 5, 6, 7, 8, 0, 1, 2]
    assert mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]


def test_token_batches() -> None:
    data = TokenDataset(np.array([5, 6, 7, 8, 9, 10]), np.array([3, 1, 2]), [1, 0, 1])
    batch = data.batch([1, 0])
    assert len(batch) == 2 and batch.hidden == [] and batch.logits is None
    assert batch.input_ids.tolist() == [[8, 0, 0], [5, 6, 7]]
    assert batch.mask.tolist() == [[True, False, False], [True, True, True]]
    assert torch.equal(batch.labels, torch.tensor([0, 1]))


def test_a_batch_moves_as_a_whole() -> None:
    batch = TokenDataset(np.array([5, 6, 7]), np.array([2, 1]), [1, 0]).batch([0, 1])
    batch.hidden = [torch.ones(2, 2, 4), torch.zeros(2, 2, 4)]
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    tensors = [moved.mask, moved.input_ids, moved.token_type_ids, moved.labels, *moved.hidden]
    assert all(tensor.device.type == "meta" for tensor in tensors) and len(moved.hidden) == 2
    assert batch.mask.device.type == "cpu"


def test_a_stream_is_endless_and_cut_into_epochs() -> None:
    lengths = np.random.default_rng(0).integers(1, 9, 100), np.random.default_rng(1).integers(1, 9, 50)
    epochs = StreamBatches(lengths, 10, seed=0, epoch_rows=70)
    batches = [batch for _ in range(15) for batch in epochs]
    assert len(epochs) == 7 and len(batches) == 105
    for start in range(0, 105, 15):  # seven passes over both parts
        rows = sorted(row for batch in batches[start : start + 15] for row in batch)
        assert rows == list(range(150))
    assert all(len({row < 100 for row in batch}) == 1 for batch in batches)
    assert [b for _ in range(15) for b in StreamBatches(lengths, 10, seed=0, epoch_rows=70)][:7] == batches[:7]
    assert len(StreamBatches(lengths, 8, seed=0)) == 13 + 7


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_part_the_very_batches_of_one(size: int) -> None:
    lengths = np.random.default_rng(1).integers(1, 60, 145)
    whole = LengthBatches(lengths, 16, shuffle=True, seed=3)
    parted = [RankBatches(LengthBatches(lengths, 16, shuffle=True, seed=3), rank, size) for rank in range(size)]
    for _ in range(2):  # epochs
        batches, spares = list(whole), 0
        assert all(len(one) == len(batches) for one in parted)
        for batch, *parts in zip(batches, *parted, strict=True):
            own = [part.rows for part in parts if not part.spare]
            assert sorted(row for rows in own for row in rows) == sorted(batch)
            assert all(part.whole == len(batch) and part.rows for part in parts)
            assert max(map(len, own)) - min(map(len, own)) <= 1
            spares += sum(part.spare for part in parts)
        assert spares == size - 1  # of the batch of one row


def test_a_ranks_loader_is_that_of_a_copy_in_another_process() -> None:
    data = TokenDataset(np.arange(5, 20), np.array([3, 1, 2, 4, 5]), [0, 1, 2, 3, 4])
    for loader in (make_loader(data, 2, shuffle=True, seed=1), make_stream([data, data], 2, seed=1, epoch_rows=8)):
        copies = [pickle.loads(pickle.dumps(loader)) for _ in range(2)]
        for _ in range(2):  # epochs
            parts = [list(of_rank(copy, rank, 2)) for rank, copy in enumerate(copies)]
            for batch, *pair in zip(loader, *parts, strict=True):
                labels = [label for part in pair if not part.spare for label in part.labels.tolist()]
                assert sorted(labels) == sorted(batch.labels.tolist())
                assert all(part.num_rows == len(batch) == batch.num_rows for part in pair)
    with pytest.raises(AssertionError, match="a copy would begin anew"):
        pickle.dumps(loader.batch_sampler)
