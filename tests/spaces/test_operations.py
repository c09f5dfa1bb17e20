import pytest
import torch

from search_space.cells import SPACES
from search_space.listing import Space
from search_space.operations import (
    OPERATIONS,
    AveragePool,
    BidirectionalGRU,
    FeedForward,
    MaxPool,
    SeparableConvolution,
    make_operation,
    parameter_free,
)

WIDTH = 48
# Left, right and inner padding, none, and nothing but padding.
MASKS = torch.tensor(
    [
        [1, 1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 1],
        [1, 0, 1, 1, 0, 1, 1],
        [1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0],
    ]
).bool()


@pytest.fixture(params=OPERATIONS)
def operation(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    return make_operation(request.param, WIDTH)


def test_shape_and_finite(operation: torch.nn.Module) -> None:
    x = torch.randn(*MASKS.shape, WIDTH)
    y = operation(x, MASKS)
    assert y.shape == x.shape and y.isfinite().all()


def test_mixed_precision_changes_little(operation: torch.nn.Module) -> None:
    x = torch.randn(*MASKS.shape, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        y = operation(x, MASKS).float()
    assert (y - operation(x, MASKS))[MASKS].abs().max() < 0.02 * x.abs().max()


def test_weights_of_half_precision(operation: torch.nn.Module) -> None:
    x = torch.randn(*MASKS.shape, WIDTH).bfloat16()
    y = operation.bfloat16()(x, MASKS)
    assert y.dtype == torch.bfloat16 and y.isfinite().all()


def test_length_one(operation: torch.nn.Module) -> None:
    y = operation(torch.randn(2, 1, WIDTH), torch.ones(2, 1, dtype=torch.bool))
    assert y.shape == (2, 1, WIDTH) and y.isfinite().all()


def test_masked_positions_never_leak(operation: torch.nn.Module) -> None:
    x = torch.randn(*MASKS.shape, WIDTH)
    other = torch.where(MASKS.unsqueeze(-1), x, torch.full_like(x, 1e4))
    torch.testing.assert_close(operation(x, MASKS)[MASKS], operation(other, MASKS)[MASKS])


def test_padding_changes_nothing(operation: torch.nn.Module) -> None:
    x = torch.randn(1, 4, WIDTH)
    padded = torch.cat([x, torch.randn(1, 3, WIDTH)], dim=1)
    alone = operation(x, torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(operation(padded, MASKS[:1])[:, :4], alone)


def test_gradients(operation: torch.nn.Module) -> None:
    x = torch.randn(*MASKS.shape, WIDTH, requires_grad=True)
    y = operation(x, MASKS)
    y[MASKS].square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    reads = not isinstance(operation, type(make_operation("zero", WIDTH)))
    assert bool(x.grad[MASKS].any()) == reads
    for name, parameter in operation.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("name", OPERATIONS)
def test_survives_freezing_and_reloading(name: str) -> None:
    x = torch.randn(*MASKS.shape, WIDTH)
    operation, other = make_operation(name, WIDTH), make_operation(name, WIDTH)
    before = operation(x, MASKS)
    operation.requires_grad_(False)
    other.load_state_dict(operation.state_dict())
    assert not operation(x, MASKS).requires_grad
    torch.testing.assert_close(other(x, MASKS), before)


def test_convolution_reads_n_grams() -> None:
    """A change at one position reaches exactly the positions within the kernel's reach."""
    for name, reach in (("convolution_1", 0), ("convolution_5", 2), ("dilated_convolution_3", 2)):
        operation = make_operation(name, WIDTH)
        x = torch.randn(1, 9, WIDTH)
        moved = x.clone()
        moved[0, 4] += 1
        mask = torch.ones(1, 9, dtype=torch.bool)
        changed = (operation(x, mask) != operation(moved, mask)).any(-1)[0].nonzero().flatten()
        assert changed.min() == 4 - reach and changed.max() == 4 + reach


def test_pools_against_naive_loop() -> None:
    x = torch.randn(*MASKS.shape, WIDTH)
    largest, mean = MaxPool(3)(x, MASKS), AveragePool(3)(x, MASKS)
    for row, position in MASKS.nonzero().tolist():
        window = [p for p in range(max(0, position - 1), min(MASKS.shape[1], position + 2)) if MASKS[row, p]]
        torch.testing.assert_close(largest[row, position], x[row, window].amax(0))
        torch.testing.assert_close(mean[row, position], x[row, window].mean(0))


def test_gru_against_packed_torch_gru() -> None:
    torch.manual_seed(0)
    ours = BidirectionalGRU(WIDTH)
    theirs = torch.nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)
    for name, value in ours.ahead.named_parameters():
        theirs.get_parameter(name).data.copy_(value)
    for name, value in ours.back.named_parameters():
        theirs.get_parameter(name + "_reverse").data.copy_(value)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    x = torch.randn(2, 5, WIDTH)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, mask.sum(1), batch_first=True)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    torch.testing.assert_close(ours(x, mask)[mask], expected[mask])


def test_feed_forward_and_separable_convolution_against_naive_loops() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(1, 5, WIDTH), torch.tensor([[1, 1, 1, 1, 0]]).bool()
    wide = FeedForward(WIDTH, 2)
    assert wide.widen.out_features == 2 * WIDTH
    for position in range(4):
        expected = wide.output(torch.nn.functional.gelu(wide.widen(x[0, position])))
        torch.testing.assert_close(wide(x, mask)[0, position], expected)
    separable = SeparableConvolution(WIDTH, 3)
    for position in range(4):
        window = [p for p in (position - 1, position, position + 1) if 0 <= p < 4]
        own = separable.depthwise.bias + sum(
            x[0, p] * separable.depthwise.weight[:, 0, p - position + 1] for p in window
        )
        expected = torch.nn.functional.gelu(separable.pointwise(own))
        torch.testing.assert_close(separable(x, mask)[0, position], expected, atol=1e-5, rtol=1e-5)


def test_narrow_operations_have_fewer_parameters() -> None:
    sizes = [
        sum(parameter.numel() for parameter in make_operation(f"feed_forward_4{suffix}", WIDTH).parameters())
        for suffix in ("", "_half", "_quarter")
    ]
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < sizes[0] / 3


def test_spaces_name_operations_that_exist() -> None:
    for space in SPACES.values():
        assert set(space.OPERATIONS) <= set(OPERATIONS)


def test_which_operations_learn_nothing() -> None:
    free = {name for name in OPERATIONS if parameter_free(name, WIDTH)}
    assert free == {"max_pool_3", "average_pool_3", "identity", "zero"}


def test_heads_follow_the_width() -> None:
    assert (
        "attention_8" in Space.of("layers", 1, 32).operations
        and "attention_12" not in Space.of("layers", 1, 32).operations
    )
    names = Space.of("layers", 1, 36).operations
    assert "attention_4" in names and "attention_12" in names and "attention_8" not in names
    with pytest.raises(ValueError, match="divides, got 36"):
        make_operation("attention_8", 36)
    with pytest.raises(ValueError, match="choose one of"):
        make_operation("convolution_2", 36)
    with pytest.raises(ValueError, match="choose one of"):
        Space.of("none", 1, 36)
    with pytest.raises(ValueError, match="divides, got 36"):
        Space.of("layers", 1, 36, ["attention_8", "zero"])
    with pytest.raises(ValueError, match="needs two operations"):
        Space.of("layers", 1, 36, ["zero"])
