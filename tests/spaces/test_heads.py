import math

import pytest
import torch
from torch import Tensor

from search_space.heads import HEADS, Side, split_pairs
from search_space.spaces import StudentSpace
from search_space.student import StudentConfig, StudentForSequenceClassification

PAIRS = [name for name, head in HEADS.items() if head.sides == 2]
CELLS = [{"space": "layers", "depth": 1, "architecture": {"layer_0": "convolution_3"}}]
ENCODINGS = [("joint", CELLS), ("separate", CELLS), ("separate", [])]
# [CLS] a [SEP] b [SEP], padded
IDS = torch.tensor([[1, 11, 12, 13, 2, 21, 22, 2, 0, 0], [1, 11, 2, 21, 22, 23, 24, 25, 26, 2]])
TYPES = torch.tensor([[0] * 5 + [1] * 3 + [0] * 2, [0] * 3 + [1] * 7])
MASK = (IDS > 0).long()


def make_student(head: str, encoding: str, cells: list, **more: object) -> StudentForSequenceClassification:
    torch.manual_seed(0)
    config = StudentConfig(
        cells=cells, teacher_hidden_size=16, hidden_size=12, embedding_size=8, vocab_size=40, num_labels=3, head=head,
        max_position_embeddings=20, encoding=encoding, token_weights=True, static_path=True, sep_token_id=2, **more,
    )  # fmt: skip
    student = StudentForSequenceClassification(config).eval()
    for module in (student.static, student.token_weight):
        if module is not None:
            torch.nn.init.normal_(module.weight)
    return student


def side(length: int, width: int = 6) -> Side:
    """Of so many positions, padded to 8."""
    x, bias = torch.randn(2, 8, width), torch.randn(2, 8)
    return x, (torch.arange(8) < length).expand(2, -1), bias


def together(sides: list[Side]) -> Side:
    """As a head takes them: all first ones before all second ones."""
    x, mask, bias = (torch.cat(part) for part in zip(*sides, strict=True))
    return x, mask, bias


@pytest.mark.parametrize("name", HEADS)
def test_what_is_masked_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    head = HEADS[name](6, False)
    sides = [side(4), side(7)][: head.sides]
    padded = []
    for x, mask, bias in sides:
        assert bias is not None
        more = torch.cat([x, torch.full((2, 3, 6), 1e3)], dim=1)
        padded.append((more, torch.cat([mask, torch.zeros(2, 3).bool()], dim=1), torch.cat([bias, bias[:, :3]], dim=1)))
    for found, expected in zip(head(together(padded)), head(together(sides)), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", PAIRS)
def test_a_symmetric_head_takes_no_notice_of_the_order(name: str) -> None:
    torch.manual_seed(0)
    sides = [side(4), side(7)]
    same, other = HEADS[name](6, True), HEADS[name](6, False)
    torch.testing.assert_close(same(together(sides))[0], same(together(sides[::-1]))[0])
    assert (other(together(sides))[0] - other(together(sides[::-1]))[0]).abs().max() > 1e-3


def naive_align(head: torch.nn.Module, sides: list[Side]) -> Tensor:
    """One row at a time, one word piece at a time."""
    rows = []
    for row in range(2):
        halves = []
        for own, other in ((0, 1), (1, 0)):
            x, y = (sides[number][0][row][sides[number][1][row]] for number in (own, other))
            bias = sides[own][2][row][sides[own][1][row]]
            weights = [math.exp(float(head.weigh(one) + b)) for one, b in zip(x, bias, strict=True)]
            share = [weight / sum(weights) for weight in weights]
            compared, missing = [], []
            for one in x:
                cosines = [float(torch.cosine_similarity(one, piece, dim=0)) for piece in y]
                powers = [math.exp(float(head.sharpness) * value) for value in cosines]
                aligned = sum(power / sum(powers) * piece for power, piece in zip(powers, y, strict=True))
                features = torch.cat([(one - aligned).abs(), one * aligned])
                compared.append(torch.nn.functional.gelu(head.compare(features)))
                missing.append(1 - max(cosines))
            mean = sum(s * one for s, one in zip(share, compared, strict=True))
            numbers = [
                sum(s * m for s, m in zip(share, missing, strict=True)),
                max(missing), sum(missing) / len(missing), math.log(len(missing)) / 4,
            ]  # fmt: skip
            halves.append(torch.cat([mean, torch.stack(compared).amax(0), torch.tensor(numbers)]))
        rows.append(torch.cat(halves))
    return torch.nn.functional.gelu(head.dense(torch.stack(rows)))


def test_alignment_against_naive_loop() -> None:
    torch.manual_seed(0)
    head, sides = HEADS["align"](6, False), [side(4), side(5)]
    torch.testing.assert_close(head(together(sides))[0], naive_align(head, sides), atol=1e-5, rtol=1e-4)


def test_comparison_against_its_formula() -> None:
    torch.manual_seed(0)
    head, sides = HEADS["compare"](6, False), [side(4), side(5)]
    means = []
    for x, mask, bias in sides:
        assert bias is not None
        share = (head.weigh(x)[..., 0] + bias).masked_fill(~mask, -1e9).softmax(1)
        means.append(torch.einsum("bs,bsh->bh", share, x))
    u, v = means
    cosine = (u * v).sum(1) / u.norm(dim=1) / v.norm(dim=1)
    features = torch.cat([(u - v).abs(), u * v, cosine[:, None], u, v], dim=1)
    found, vectors = head(together(sides))
    torch.testing.assert_close(found, torch.nn.functional.gelu(head.dense(features)))
    torch.testing.assert_close(vectors, torch.cat([u, v]))


def test_pairs_split_into_texts_that_are_alike() -> None:
    hidden = torch.randn(2, 10, 3)
    ids, states, mask = split_pairs(MASK.bool(), TYPES.bool(), IDS, hidden)
    rows = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
    assert rows == [[11, 12, 13, 2], [11, 2], [21, 22, 2], [21, 22, 23, 24, 25, 26, 2]]
    assert torch.equal(states[3][mask[3]], hidden[1, 3:]) and mask.shape == (4, 7)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(("encoding", "cells"), ENCODINGS)
def test_pairs_in_a_student(name: str, encoding: str, cells: list) -> None:
    student = make_student(name, encoding, cells, symmetric=True)
    output = student(IDS, MASK, TYPES, output_hidden_states=True)
    assert output.logits.shape == (2, 3) and output.vectors.shape == (4, 12 if cells else 8)
    alone = student(IDS[:1, :8], MASK[:1, :8], TYPES[:1, :8])
    torch.testing.assert_close(alone.logits, output.logits[:1])  # padding changes nothing
    # The second text is found by what ends the first, where there are no token types.
    student.embeddings.token_type = None if not cells else torch.nn.Embedding.from_pretrained(torch.zeros(2, 16))
    torch.testing.assert_close(student(IDS, MASK).logits, student(IDS, MASK, TYPES).logits)
    if encoding == "separate":
        swapped = torch.tensor([[1, 21, 22, 2, 11, 12, 13, 2]])
        types = torch.tensor([[0] * 4 + [1] * 4])
        torch.testing.assert_close(
            student(swapped, None, types).logits, student(IDS[:1, :8], None, TYPES[:1, :8]).logits
        )
        left, _ = student.text_vectors(torch.tensor([[1, 11, 12, 13, 2]]), torch.ones(1, 5))
        torch.testing.assert_close(left, student(IDS, MASK, TYPES).vectors[:1])
    else:
        assert output.hidden_states[0].shape == (2, 10, 12)


@pytest.mark.parametrize("name", HEADS)
def test_a_text_without_a_second_is_answered(name: str) -> None:
    student = make_student(name, "joint" if name == "pool" else "separate", CELLS)
    logits = student(torch.tensor([[1, 11, 12, 2]]), None, torch.zeros(1, 4, dtype=torch.long)).logits
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_of_a_head_learns(name: str) -> None:
    student = make_student(name, "joint", CELLS)
    student(IDS, MASK, TYPES, labels=torch.tensor([0, 2])).loss.backward()
    for one, parameter in student.named_parameters():
        if one != "pool.weigh.bias":  # shares do not depend on it; older students have it
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, one


@pytest.mark.parametrize("head", ["pool", "compare", "align"])
@pytest.mark.parametrize("encoding", ["joint", "separate"])
def test_a_sample_of_the_students_space_is_the_student_of_that_shape(head: str, encoding: str) -> None:
    shape = {
        "hidden_size": 8, "teacher_hidden_size": 8, "embedding_size": 4, "vocab_size": 20, "static_path": True,
        "max_position_embeddings": 12, "symmetric": True, "token_weights": True,
    }  # fmt: skip
    space = StudentSpace(StudentConfig(**shape), list(HEADS), ["joint", "separate"])
    assert {label: set(one.values) for label, one in space.simplify().items()} == {
        "head": set(HEADS), "encoding": {"joint", "separate"}
    }  # fmt: skip
    sample = space.freeze({"head": head, "encoding": encoding}).eval()
    student = StudentForSequenceClassification(StudentConfig(**shape, head=head, encoding=encoding)).eval()
    student.load_state_dict(sample.student.state_dict())
    ids, types = torch.randint(1, 20, (3, 9)), torch.tensor([[0] * 4 + [1] * 5] * 3)
    torch.testing.assert_close(
        sample(ids, token_type_ids=types).logits, student(ids, token_type_ids=types).logits, rtol=0, atol=0
    )
