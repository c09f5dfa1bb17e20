import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import chain, chain_cell
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    PretrainedConfig,
    RobertaConfig,
)

from nni_bertnas.config import StudentSettings
from nni_bertnas.data.batches import Batch
from nni_bertnas.data.tasks import TASKS
from nni_bertnas.errors import PhaseError
from nni_bertnas.student.build import check_chain, new_student
from nni_bertnas.student.start import Start
from search_space.cells import build_cell
from search_space.student import StudentConfig, StudentForSequenceClassification

NAMES = [["convolution_3", "attention_4"], ["bidirectional_gru"], ["max_pool_3"]]
CELLS = [chain(*names).shape for names in NAMES]


def make_student(teacher_size: int = 32, hidden_size: int = 16) -> StudentForSequenceClassification:
    torch.manual_seed(0)
    config = StudentConfig(
        cells=CELLS, teacher_hidden_size=teacher_size, hidden_size=hidden_size, embedding_size=8, vocab_size=100,
        max_position_embeddings=20, id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1},
    )  # fmt: skip
    return StudentForSequenceClassification(config).eval()


def batch() -> Batch:
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5]).bool()
    types = torch.tensor([[0] * 5 + [1] * 4, [0] * 2 + [1] * 2 + [0] * 5])
    return Batch(input_ids=torch.randint(1, 100, (2, 9)) * mask, mask=mask, token_type_ids=types)


@pytest.mark.parametrize("hidden_size", [16, 32])
def test_chained_student_is_its_blocks_one_after_another(hidden_size: int) -> None:
    student = make_student(32, hidden_size)
    cells = [chain_cell(*names, teacher_size=32, hidden_size=hidden_size).eval() for names in NAMES]
    with pytest.raises(PhaseError, match="differs from its blocks"):
        check_chain(student, cells, batch())
    student.load_cells(cells)
    assert check_chain(student, cells, batch()) < 1e-4
    student.cells[1].layers[0].operation.ahead.weight_ih_l0.data *= 2
    with pytest.raises(PhaseError, match="differs from its blocks"):
        check_chain(student, cells, batch())


@pytest.mark.parametrize("hidden_size", [16, 32])
def test_a_chained_student_of_wired_cells_reads_pairs(hidden_size: int) -> None:
    textnas = {
        "layer_0": "bidirectional_gru", "layer_1_input": [0], "layer_1": "convolution_3", "layer_1_skip_0": "identity",
    }  # fmt: skip
    adabert = {
        "graph_0_node_0_edge_0": "convolution_3", "graph_0_node_0_edge_1": "max_pool_3",
        "graph_0_node_1_inputs": [1, 2], "graph_0_node_1_edge_1": "convolution_5", "graph_0_node_1_edge_2": "identity",
        "graph_0_node_2_inputs": [0, 3], "graph_0_node_2_edge_0": "zero", "graph_0_node_2_edge_3": "average_pool_3",
    }  # fmt: skip
    chosen = [
        {"space": "textnas", "depth": 2, "architecture": textnas},
        {"space": "adabert", "depth": 1, "architecture": adabert},
    ]
    torch.manual_seed(0)
    cells = [build_cell(**one, teacher_size=32, hidden_size=hidden_size).eval() for one in chosen]
    student = StudentForSequenceClassification(
        StudentConfig(cells=chosen, teacher_hidden_size=32, hidden_size=hidden_size, embedding_size=8, vocab_size=100)
    ).eval()
    student.load_cells(cells)
    one = batch()
    assert check_chain(student, cells, one) < 1e-4
    student.embeddings.token_type.weight.data.zero_()  # so that types are read by AdaBERT's views alone
    typed = student(one.input_ids, one.mask, one.token_type_ids).logits
    assert (typed - student(one.input_ids, one.mask).logits).abs().max() > 1e-3
    alone = student(one.input_ids[1:, :4], one.mask[1:, :4], one.token_type_ids[1:, :4]).logits
    torch.testing.assert_close(typed[1:], alone)


def test_padding_never_changes_the_logits() -> None:
    student, one = make_student(), batch()
    alone = student(one.input_ids[1:, :4], one.mask[1:, :4]).logits
    torch.testing.assert_close(student(one.input_ids, one.mask.long()).logits[1:], alone)
    torch.testing.assert_close(student(one.input_ids[1:, :4]).logits, alone)


def test_reload_gives_equal_logits(tmp_path: Path) -> None:
    student, one = make_student(), batch()
    student.save_pretrained(tmp_path)
    for loaded in (
        StudentForSequenceClassification.from_pretrained(tmp_path),
        AutoModelForSequenceClassification.from_pretrained(tmp_path),
    ):
        assert torch.equal(loaded(one.input_ids, one.mask).logits, student(one.input_ids, one.mask).logits)
        assert loaded.config.id2label == {0: "negative", 1: "positive"} and loaded.config.cells == CELLS


def test_a_saved_student_loads_where_this_project_is_not(tmp_path: Path) -> None:
    student, one = make_student(), batch()
    student.save_pretrained(tmp_path / "student")
    expected = student(one.input_ids, one.mask).logits
    torch.save((one.input_ids, one.mask, expected), tmp_path / "expected.pt")
    script = f"""
import sys, torch
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("nni", "search_space", "nni_bertnas", "trials"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained({str(tmp_path / "student")!r}, trust_remote_code=True)
ids, mask, expected = torch.load({str(tmp_path / "expected.pt")!r})
assert torch.equal(model(ids, mask).logits, expected)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "shape",
    [
        BertConfig(num_hidden_layers=1, num_attention_heads=4, hidden_size=32, intermediate_size=8),
        RobertaConfig(num_hidden_layers=1, num_attention_heads=4, hidden_size=32, intermediate_size=8, pad_token_id=1),
        DistilBertConfig(n_layers=1, n_heads=4, dim=32, hidden_dim=8),
    ],
    ids=lambda shape: shape.model_type,
)
def test_embeddings_start_as_the_teachers(shape: PretrainedConfig) -> None:
    torch.manual_seed(0)
    shape.vocab_size = 100
    teacher = AutoModelForSequenceClassification.from_config(shape).eval()
    ids = batch().input_ids.clamp(min=2)  # no padding
    differences = []
    for rank in (8, 24, 32):
        settings = StudentSettings(hidden_size=16, embedding_size=rank, head="pool", encoding="joint")
        start = Start(teacher=teacher, spec=TASKS["sst2"], note={"max_length": 32})
        embeddings = new_student(settings, start, [chain("zero")]).embeddings
        with torch.no_grad():
            live = teacher.base_model(ids, output_hidden_states=True).hidden_states[0]
            differences.append(float((embeddings(ids)[1] - live).abs().mean()))
    assert differences[0] > differences[1] > differences[2] and differences[2] < 1e-6


def test_outputs() -> None:
    student, one = make_student(), batch()
    labels = torch.tensor([0, 1])
    output = student(one.input_ids, one.mask, labels=labels, output_hidden_states=True)
    assert output.logits.shape == (2, 2) and len(output.hidden_states) == 3
    assert output.hidden_states[0].shape == (2, 9, 16)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    assert torch.equal(student(one.input_ids, one.mask, return_dict=False)[0], output.logits)


def test_a_text_too_long_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="truncation=True"):
        make_student()(torch.ones(1, 21, dtype=torch.long))


@pytest.mark.parametrize(
    ("depths", "left", "rank", "width"),
    [
        ((1, 0, 1), (1, 1), 8, 16),
        ((0, 0, 1), (1,), 8, 16),
        ((1, 0, 0), (1, 0), 32, 16),  # nothing to expand
        ((0, 0, 0), (0,), 8, 16),
        ((1, 1, 1), (1, 1, 1), 8, 32),  # no map between the blocks
    ],
)
@pytest.mark.parametrize(("head", "encoding"), [("pool", "joint"), ("align", "joint"), ("compare", "separate")])
def test_what_a_student_is_fused_to_answers_the_same(
    depths: tuple[int, ...], left: tuple[int, ...], rank: int, width: int, head: str, encoding: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    cells = [
        {"space": "layers", "depth": 1, "architecture": {"layer_0": "convolution_3"}} if depth
        else {"space": "sequential", "depth": 0, "architecture": {}}
        for depth in depths
    ]  # fmt: skip
    config = StudentConfig(
        cells=cells, hidden_size=width, teacher_hidden_size=32, embedding_size=rank, vocab_size=100, token_weights=True,
        static_path=True, max_position_embeddings=20, num_labels=3, head=head, encoding=encoding,
    )  # fmt: skip
    student, one = StudentForSequenceClassification(config).eval(), batch()
    for name, parameter in student.named_parameters():
        if parameter.ndim == 1:  # all biases, and the norms' weights
            torch.nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.3)
    fused = student.fused()
    assert tuple(cell["depth"] for cell in fused.config.cells) == left and not fused.training
    assert fused.config.fused is (rank < 32)
    types = torch.arange(one.input_ids.shape[1]).ge(2).long().expand_as(one.input_ids)
    with torch.no_grad():
        expected = student(one.input_ids, one.mask, types).logits
        found = fused(one.input_ids, one.mask, types).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    fused.save_pretrained(tmp_path)
    again = StudentForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(again(one.input_ids, one.mask, types).logits, found)
    assert fused.fused() is fused
