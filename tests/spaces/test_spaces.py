"""The kinds of cell: what they compute, how many they are, and that a path of a supernet is the cell that leaves it."""

import itertools
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from nni.nas.nn.pytorch import InputChoice, LayerChoice
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.strategy import DARTS, RandomOneShot
from tiny import tiny_run
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from nni_bertnas.data.batches import Batch
from nni_bertnas.data.tasks import task_note
from nni_bertnas.search.differentiable import _sum_all_edges
from nni_bertnas.stages.cells import read_candidates
from nni_bertnas.stages.stage import ensure
from nni_bertnas.student.build import check_chain, new_student
from nni_bertnas.student.start import Start
from search_space.cells import (
    SPACES,
    AdaBERT,
    Architecture,
    Choice,
    build_body,
    build_cell,
    find_space,
    spell,
    views,
)
from search_space.listing import Space
from search_space.spaces import CellSpace, EveryInput, extract_cells
from search_space.student import StudentForSequenceClassification

WIDTH = 48
MASK = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1, 0]]).bool()
SECOND = torch.tensor([[0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]]).bool()
FEW = ("convolution_3", "attention_4", "max_pool_3")


def draw(space: str, depth: int, operations: tuple[str, ...], seed: int, width: int = WIDTH) -> dict[str, Choice]:
    """A whole sample, also of what the other choices leave out."""
    generator = random.Random(seed)
    choices = Space.of(space, depth, width, operations).choices
    return {label: generator.choice(options) for label, options in choices.items()}


def canonical(space: str, sample: Architecture) -> dict[str, Choice]:
    return find_space(space).canonical(sample)


def shake(module: torch.nn.Module) -> None:
    """Leave no parameter at a start that hides a mistake, such as equal shares."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("space", SPACES)
def test_a_body_obeys_the_mask_and_is_trainable(space: str, seed: int) -> None:
    depth = 3
    sample = draw(space, depth, Space.of(space, 1, WIDTH).operations, seed)
    body = build_body(space, canonical(space, sample), depth, WIDTH).eval()
    shake(body)
    x = torch.randn(*MASK.shape, WIDTH, requires_grad=True)
    y = body(x, MASK, SECOND)
    assert y.shape == x.shape and y.isfinite().all()
    other = torch.where(MASK.unsqueeze(-1), x, torch.full_like(x, 100.0))
    torch.testing.assert_close(body(other, MASK, SECOND)[MASK], y[MASK], atol=5e-5, rtol=1e-4)
    padded = [torch.cat([part, part[:, :3]], dim=1) for part in (x, MASK & False, SECOND & False)]
    padded[1][:, :7], padded[2][:, :7] = MASK, SECOND
    torch.testing.assert_close(body(*padded)[:, :7][MASK], y[MASK], atol=5e-5, rtol=1e-4)
    alone = body(x[:1, :4], MASK[:1, :4], SECOND[:1, :4])
    torch.testing.assert_close(alone, y[:1, :4], atol=5e-5, rtol=1e-4)
    y[MASK].square().sum().backward()
    assert x.grad is not None and x.grad[MASK].any() and not x.grad[~MASK].any()
    gradients = [parameter.grad for parameter in body.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def test_views_split_the_positions_of_pairs_alone() -> None:
    x = torch.randn(*MASK.shape, 4)
    first, second = views(x, MASK, SECOND)
    for row, position in itertools.product(range(3), range(7)):
        if row == 2:  # not a pair
            own = first[row, position], second[row, position]
            assert torch.equal(own[0], x[row, position]) and torch.equal(own[1], x[row, position])
        elif SECOND[row, position]:
            assert not first[row, position].any() and torch.equal(second[row, position], x[row, position])
        else:
            assert torch.equal(first[row, position], x[row, position]) and not second[row, position].any()
    assert all(torch.equal(view, x) for view in views(x, MASK, None))


def test_an_adabert_graph_by_hand() -> None:
    """Two graphs, wired so that every input is read; against the formulas of the docstring."""
    wires = {"node_1_inputs": [0, 2], "node_2_inputs": [1, 3]}
    operations = {
        "node_0_edge_0": "average_pool_3", "node_0_edge_1": "convolution_3", "node_1_edge_0": "identity",
        "node_1_edge_2": "max_pool_3", "node_2_edge_1": "zero", "node_2_edge_3": "identity",
    }  # fmt: skip
    graph = {**wires, **operations}
    architecture = {f"graph_{n}_{label}": choice for n in (0, 1) for label, choice in graph.items()}
    body = build_body("adabert", architecture, 2, 8)
    shake(body)
    x = torch.randn(*MASK.shape, 8)

    def by_hand(number: int, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        own = body.graphs[number]
        zero, one = own.norms[0](first), own.norms[1](second)
        node_0 = own.edges[0]["0"](zero, MASK) + own.edges[0]["1"](one, MASK)
        two = own.norms[2](node_0)
        node_1 = zero + own.edges[1]["2"](two, MASK)
        node_2 = own.norms[3](node_1)
        shares = own.combination.softmax(0)
        return shares[0] * node_0 + shares[1] * node_1 + shares[2] * node_2

    first, second = views(x, MASK, SECOND)
    after = x + by_hand(0, first, second)
    torch.testing.assert_close(body(x, MASK, SECOND)[MASK], (after + by_hand(1, x, after))[MASK])


def test_a_textnas_cell_by_hand() -> None:
    architecture: dict[str, Choice] = {
        "layer_0": "convolution_1", "layer_1_input": [0], "layer_1": "max_pool_3", "layer_1_skip_0": "identity",
        "layer_2_input": [1], "layer_2": "average_pool_3", "layer_2_skip_0": "zero", "layer_2_skip_1": "identity",
    }  # fmt: skip
    body = build_body("textnas", architecture, 3, 8)
    shake(body)
    x = torch.randn(*MASK.shape, 8)
    y0 = body.layers[0](x, MASK)
    y1 = body.layers[1](x, MASK) + x
    y2 = body.layers[2](y0, MASK) + y0
    shares = body.combination.softmax(0)
    expected = shares[0] * y0 + shares[1] * y1 + shares[2] * y2
    torch.testing.assert_close(body(x, MASK)[MASK], expected[MASK])


def test_textnas_reads_the_last_five_outputs() -> None:
    choices = Space.of("textnas", 7, 8, ("zero", "identity")).choices
    assert [len(choices.get(f"layer_{n}_input", [0])) for n in range(7)] == [1, 2, 3, 4, 5, 5, 5]
    fixed: dict[str, Choice] = {label: [0] if label.endswith("_input") else "zero" for label in choices}
    fixed["layer_6_input"], fixed["layer_1"], fixed["layer_6"] = [0], "convolution_1", "identity"
    body = build_body("textnas", fixed, 7, 8)
    assert body.picks[6].numbers == [0]
    x = torch.randn(1, 3, 8)
    seen: list[torch.Tensor] = []
    body.layers[6].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    outputs: list[torch.Tensor] = []
    body.layers[1].register_forward_hook(lambda module, arguments, output: outputs.append(output))
    body(x, torch.ones(1, 3, dtype=torch.bool))
    # Outputs are the input, then layers 0 to 5; the fifth from the end is layer 1's.
    assert torch.equal(seen[0], outputs[0]) and not torch.equal(outputs[0], x)


@pytest.mark.parametrize(
    ("space", "depth", "operations"),
    [
        ("sequential", 3, FEW), ("layers", 2, FEW), ("nasbert", 2, FEW), ("textnas", 1, FEW), ("textnas", 2, FEW),
        ("textnas", 3, ("zero", "max_pool_3")), ("adabert", 1, ("identity", "max_pool_3")),
    ],
)  # fmt: skip
def test_every_architecture_is_counted_once_and_can_be_built(space: str, depth: int, operations: tuple) -> None:
    own = Space.of(space, depth, WIDTH, operations)
    every = list(own.every())
    assert len({spell(one) for one in every}) == len(every) == own.count()
    assert CellSpace.of(own, 8).space == own
    names = {spell(one) for one in every}
    for number in range(40):
        one = canonical(space, draw(space, depth, operations, number))
        assert spell(one) in names and spell(own.canonical(one)) == spell(one)
    for one in every[:: max(1, len(every) // 40)]:
        assert canonical(space, one) == one
        build_body(space, one, depth, 8)


@pytest.mark.parametrize("depth", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("count", [2, 8, 10])
def test_the_sizes_of_the_large_spaces(count: int, depth: int) -> None:
    operations = Space.of("sequential", 1, WIDTH).operations[:count]

    def architectures(space: str) -> int:
        return Space.of(space, depth, WIDTH, operations).count()

    assert architectures("sequential") == count**depth
    inputs = math.prod(min(5, layer + 1) for layer in range(depth))
    skips = 2 ** (depth * (depth - 1) // 2)
    assert architectures("textnas") == inputs * skips * count**depth
    graphs = (1 * 3 * 6 * count**6) ** depth
    assert architectures("adabert") == graphs


def test_unkept_edges_of_adabert_change_nothing() -> None:
    operations = ("convolution_3", "max_pool_3")
    sample = draw("adabert", 2, operations, 0)
    sample.update({"graph_0_node_1_inputs": [0, 2], "graph_0_node_1_edge_1": "max_pool_3"})
    other = {**sample, "graph_0_node_1_edge_1": "convolution_3"}
    assert sample != other
    x, outputs = torch.randn(*MASK.shape, 8), []
    for one in (sample, other):
        torch.manual_seed(0)
        outputs.append(build_cell("adabert", canonical("adabert", one), 2, 8, 8)(x, MASK))
        torch.manual_seed(0)
        outputs.append(build_cell("adabert", one, 2, 8, 8)(x, MASK))
    assert spell(canonical("adabert", sample)) == spell(canonical("adabert", other))
    assert "graph_0_node_1_edge_1" not in canonical("adabert", sample)
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    kept = {**sample, "graph_0_node_1_edge_2": "zero"}
    assert spell(canonical("adabert", kept)) != spell(canonical("adabert", sample))


def test_adabert_derives_the_two_strongest_edges() -> None:
    def edge(node: int, number: int, **shares: float) -> dict[str, dict[str, float]]:
        return {f"graph_0_node_{node}_edge_{number}": shares}

    derived = AdaBERT.derive(
        {
            **edge(0, 0, zero=0.9, identity=0.06, convolution_3=0.04),  # both stay, however weak
            **edge(0, 1, zero=0.1, identity=0.2, convolution_3=0.7),
            **edge(1, 0, zero=0.4, identity=0.35, convolution_3=0.25),
            **edge(1, 1, zero=0.0, identity=0.34, convolution_3=0.66),
            **edge(1, 2, zero=0.6, identity=0.36, convolution_3=0.04),  # zero never counts: 0.36 > 0.35
            **edge(2, 0, zero=0.1, identity=0.8, convolution_3=0.1),
            **edge(2, 1, zero=0.98, identity=0.01, convolution_3=0.01),
            **edge(2, 2, zero=0.5, identity=0.25, convolution_3=0.25),
            **edge(2, 3, zero=0.5, identity=0.2, convolution_3=0.3),
        }
    )
    assert derived["graph_0_node_1_inputs"] == {"1+2": 1.0} and derived["graph_0_node_2_inputs"] == {"0+3": 1.0}
    assert "graph_0_node_0_inputs" not in derived
    assert derived["graph_0_node_0_edge_0"] == {"identity": 0.06, "convolution_3": 0.04}


def path_of(space: str, blocks: int = 2, depth: int = 2) -> tuple[CellSpace, dict[str, Choice]]:
    own = CellSpace(space=space, depth=depth, teacher_size=12, hidden_size=8, operations=FEW, blocks=blocks)
    shake(own)
    return own, draw(space, depth, FEW, 3, 8)


@pytest.mark.parametrize("space", SPACES)
def test_an_extracted_cell_is_its_sampled_path(space: str) -> None:
    own, sample = path_of(space)
    supernet = RandomOneShot().mutate_model(own)
    x = [torch.randn(*MASK.shape, 12) for _ in range(2)]
    for seed in range(4):
        sample = draw(space, 2, FEW, seed, 8)
        for module in supernet.modules():
            if isinstance(module, BaseSuperNetModule):
                module.resample(memo=dict(sample))
        cells = extract_cells(supernet, own.space.canonical(sample))
        for path, one, expected in zip(cells, x, supernet(x, MASK, SECOND), strict=True):
            torch.testing.assert_close(path(one, MASK, SECOND), expected)
    difference = (cells[0](x[0], MASK, SECOND) - cells[1](x[0], MASK, SECOND)).abs().max()
    assert difference > 0.1  # one architecture, weights of their own


@pytest.mark.parametrize("space", SPACES)
def test_an_extracted_cell_is_its_path_where_the_architecture_is_sure(space: str) -> None:
    own, sample = path_of(space)
    if space == "adabert":  # nodes sum all edges: those that are not kept must be zero
        own = CellSpace(space=space, depth=2, teacher_size=12, hidden_size=8, operations=(*FEW, "zero"), blocks=2)
        shake(own)
        kept = own.space.canonical(sample)
        sample = {label: kept.get(label, "zero") for label in sample}
    supernet = DARTS(mutation_hooks=[_sum_all_edges]).mutate_model(own)
    for module in supernet.modules():
        if isinstance(module, EveryInput):
            module.chosen = module.count  # no scaling
        elif isinstance(module, (LayerChoice, InputChoice)):
            options = module.names if isinstance(module, LayerChoice) else range(module.n_candidates)
            chosen = sample[module.label]
            wanted = [chosen] if isinstance(chosen, str) else chosen
            module._arch_alpha.data = torch.tensor([100.0 if one in wanted else -100.0 for one in options])
    x = [torch.randn(*MASK.shape, 12) for _ in range(2)]
    cells = extract_cells(supernet, own.space.canonical(sample))
    for path, one, expected in zip(cells, x, supernet(x, MASK, SECOND), strict=True):
        torch.testing.assert_close(path(one, MASK, SECOND), expected)


@pytest.mark.parametrize("space", SPACES)
def test_a_frozen_sample_is_the_architectures_cell(space: str) -> None:
    """What NNI builds of a sample has the weights, by name, of what we build of the architecture."""
    own, sample = path_of(space, blocks=1)
    frozen = own.freeze(sample)
    ours = own.space.build(own.space.canonical(sample), own.teacher_size)
    missing, more = ours.load_state_dict(frozen.cells[0].state_dict(), strict=False)
    # NNI also keeps edges that are not picked.
    assert not missing and (space == "adabert" or not more)
    x = torch.randn(*MASK.shape, 12)
    torch.testing.assert_close(frozen([x], MASK, SECOND)[0], ours(x, MASK, SECOND))


def test_every_input_is_scaled_to_those_that_are_kept() -> None:
    tensors = list(torch.randn(4, 2, 3))
    torch.testing.assert_close(EveryInput(4, 2)(tensors), (tensors[0] + tensors[1] + tensors[2] + tensors[3]) / 2)


def test_what_is_missing_or_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="None for layer_1"):
        build_body("sequential", {"layer_0": "zero"}, 2, 8)
    with pytest.raises(ValueError, match="a list is needed"):
        build_body("textnas", {"layer_0": "zero", "layer_1": "zero", "layer_1_input": "0"}, 2, 8)
    with pytest.raises(ValueError, match="unknown space 'mesh'; choose one of textnas"):
        find_space("mesh")
    with pytest.raises(ValueError, match="cannot be imported"):
        find_space("no_such_module.Mine")
    with pytest.raises(ValueError, match=r"must be a subclass of search_space\.cells\.Body"):
        find_space("torch.nn.Linear")
    with pytest.raises(ValueError, match=r"must be a class of torch\.nn\.Module"):
        Space.of("layers", 1, 8, ["zero", "builtins.str"])


OWN = '''
import torch
from search_space.cells import Body, Layer
from search_space.operations import make_operation

class Scale(torch.nn.Module):
    """A learned factor per unit."""
    def __init__(self, hidden_size):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(hidden_size))
    def forward(self, x, mask):
        return x * self.factor

class Twice(Body):
    """One chosen layer, gone through twice."""
    OPERATIONS = ("convolution_3", "max_pool_3", "zero")
    def __init__(self, choose, depth, operations, hidden_size):
        super().__init__(choose, depth, operations, hidden_size)
        self.layer = Layer(choose.operation("layer_0", operations, lambda name: make_operation(name, hidden_size)),
                           hidden_size)
    def forward(self, x, mask, second=None):
        return self.layer(self.layer(x, mask), mask)
'''


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a user's module with an operation and a space."""
    (tmp_path / "bertnas_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "bertnas_own"
    sys.modules.pop("bertnas_own", None)


def test_own_operations_and_spaces_go_by_their_dotted_names(own_module: str) -> None:
    space = Space.of(f"{own_module}.Twice", 1, 8, [f"{own_module}.Scale", "zero"])
    assert space.operations == (f"{own_module}:Scale", "zero")  # a module's name may hold no dots
    body = build_body(f"{own_module}.Twice", {"layer_0": f"{own_module}:Scale"}, 1, 8)
    x, mask = torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)
    once = x + body.layer.norm(x)
    torch.testing.assert_close(body(x, mask), once + body.layer.norm(once))
    assert space.choices == {"layer_0": list(space.operations)}


@pytest.mark.slow
def test_own_operations_and_spaces_through_the_cell_phase_and_a_saved_student(
    own_module: str, built_copy: Path, tmp_path: Path
) -> None:
    choice, root = [f"{own_module}.Scale", "convolution_3", "zero"], built_copy
    picked = []
    for block, strategy in enumerate(("darts", "grid")):
        settings = {"space": f"{own_module}.Twice", "operations": choice, "strategy": strategy, "epochs": 1}
        run, unit = tiny_run(root, cell={**settings, "candidates": 3}), {"block": block, "depth": 1}
        found = {one.architecture["layer_0"]: one for one in read_candidates(ensure(run, "cell", unit))}
        assert set(found) == {f"{own_module}:Scale", "convolution_3", "zero"}
        picked.append(found[f"{own_module}:Scale"].load(run.folder("cell", unit), 32, 16))
    cells = [one.trained for one in picked]
    student = new_student(
        run.shape, Start(teacher=run.load_teacher()[0], spec=run.task, note=task_note(run.study.task)), picked
    )
    student.load_cells(cells)
    ids = torch.randint(5, 100, (2, 9))
    ones = torch.ones_like(ids)
    assert check_chain(student, cells, Batch(input_ids=ids, mask=ones.bool(), token_type_ids=0 * ids)) < 1e-4
    student.save_pretrained(tmp_path / "student")
    loaded = StudentForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    assert torch.equal(loaded(ids, ones).logits, student(ids, ones).logits)
    # As with trust_remote_code, where the copy of cells.py beside the weights has another class Body.
    copied = get_class_from_dynamic_module("student.StudentForSequenceClassification", str(tmp_path / "student"))
    assert copied is not StudentForSequenceClassification
    assert torch.equal(copied.from_pretrained(tmp_path / "student").eval()(ids, ones).logits, student(ids, ones).logits)
