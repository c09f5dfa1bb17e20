"""Teachers of other builds than BERT: the whole chain, and what is refused before any time is spent."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny import WORDS, all_units, tiny_run, tiny_study_fields, write_scores
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import RobertaProcessing
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from nni_bertnas.deploy.predict import load_predictor
from nni_bertnas.errors import ConfigError
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure
from nni_bertnas.student.start import embedding_parts, places

SHAPE = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
MODERN = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
DEBERTA = {
    "relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Electra": {"embedding_size": 16},
    "Albert": {"embedding_size": 16},
    "DebertaV2": DEBERTA,
    "Deberta": {},
    "ModernBert": MODERN,
    "DistilBert": {},
    "Roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "XLMRoberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "MPNet": {"pad_token_id": 1},
}
SEPARATORS_DOUBLED = ("Roberta", "XLMRoberta", "MPNet")


def classifier(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    shape = {**SHAPE, **KINDS.get(kind, {}), **more}
    if kind == "DistilBert":
        shape = {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, **more}
    config = getattr(transformers, f"{kind}Config")(**shape)
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def write_model(folder: Path, kind: str, **more: Any) -> str:
    """A tiny untrained encoder with a tokenizer of the kind's own habits."""
    classifier(kind, **more).save_pretrained(folder)
    if kind in SEPARATORS_DOUBLED:
        numbers = {name: place for place, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *WORDS])}
        backend = Tokenizer(WordLevel(numbers, unk_token="<unk>"))
        backend.pre_tokenizer = Whitespace()
        backend.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
        PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", sep_token="</s>",
            cls_token="<s>", unk_token="<unk>",
        ).save_pretrained(folder)  # fmt: skip
    else:
        (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
        BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def small_run(root: Path, model: str, **more: Any) -> Run:
    tiny_study_fields(root)  # writes the task
    return tiny_run(
        root,
        teacher={"model": model, "epochs": 1},
        cell={"strategy": "random", "options": {"samples": 1}, "epochs": 1, "candidates": 1},
        block={"candidates": 1},
        **{"supernet": {"epochs": 1}, **more},
    )


CHAINS = [
    *((kind, "") for kind in ("Albert", "ModernBert", "MPNet")),
    ("DistilBert", "separate"),
    *((kind, "joint") for kind in ("Roberta", "DebertaV2")),
    pytest.param("Electra", "", marks=pytest.mark.long),
    pytest.param("DebertaV2", "", marks=pytest.mark.long),
    *(pytest.param(kind, "separate", marks=pytest.mark.long) for kind in ("Roberta", "XLMRoberta", "DebertaV2")),
    *(pytest.param(kind, "joint", marks=pytest.mark.long) for kind in ("MPNet", "DistilBert")),
]


@pytest.mark.parametrize(("kind", "pairs"), CHAINS, ids=lambda part: part or "single")
def test_the_whole_chain(kind: str, pairs: str, tmp_path: Path) -> None:
    """Of single texts, or of pairs in an encoding; where minutes are given, joint ones are timed as they are served."""
    more: dict[str, Any] = {}
    if pairs:
        more = {
            "task": write_scores(tmp_path / "scores"),
            "general": {"rows": 60, "epochs": 1},
            "student": {"encoding": pairs},
            "supernet": {"epochs": 1, "latency_runtime": "onnx" if (kind, pairs) == ("MPNet", "joint") else "torch"},
        }
    run = small_run(tmp_path, write_model(tmp_path / kind, kind), **more)
    all_units(run, "teacher", "features", "general", "cell", "block", "supernet")
    assert run.read("supernet", {"seed": 0})["chain_difference"] < 1e-4
    predictor = load_predictor(run.folder("supernet", {"seed": 0}) / "student")
    rows = run.data.splits["glue_dev"]
    found = predictor.probabilities(rows)
    assert np.isfinite(found).all() and found.std() > 0
    if pairs == "separate":  # each text is found where it stands
        swapped = type(rows)(rows.pairs, rows.labels, rows.texts)
        np.testing.assert_allclose(predictor.probabilities(swapped), found, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_students_start_from_what_enters_the_teachers_first_layer(kind: str) -> None:
    teacher = classifier(kind)
    parts = embedding_parts(teacher, 20)
    ids = torch.randint(5, 100, (32, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        live = teacher.base_model(ids, output_hidden_states=True).hidden_states[0]
        total = parts.words[ids] + parts.positions[:20] + parts.types[0]
        found = torch.nn.functional.layer_norm(total, (32,), parts.scale, parts.shift)
    together = torch.corrcoef(torch.stack([found.flatten(), live.flatten()]))[0, 1]
    # What is normed before it is projected is no sum; at random weights positions are as large as words.
    assert together > (0.7 if kind in ("Electra", "Albert") else 0.999)


def test_the_places_of_a_model() -> None:
    assert [places(classifier(kind)) for kind in ("Bert", "Roberta", "XLMRoberta", "MPNet")] == [64, 62, 62, 62]


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("GPT2", {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}, "reads from left to right alone"),
        ("T5", {"pad_token_id": 0, "d_model": 32, "num_heads": 4, "d_ff": 64}, "an encoder and a decoder"),
    ],
)
def test_a_decoder_is_refused_by_name(kind: str, more: dict[str, Any], message: str, tmp_path: Path) -> None:
    run = small_run(tmp_path, write_model(tmp_path / kind, kind, **more))
    with pytest.raises(ConfigError, match=rf"teacher\.model: {kind}ForSequenceClassification .*{message}.*ModernBERT"):
        ensure(run, "teacher")


def test_more_word_pieces_than_places(tmp_path: Path) -> None:
    model = write_model(tmp_path / "Roberta", "Roberta")
    task = {"name": "sst2", "source": "glue", "data_dir": str(tmp_path / "data"), "max_length": 63}
    with pytest.raises(ConfigError, match=r"task\.max_length must be at most 62, the positions of this teacher"):
        ensure(small_run(tmp_path, model, task=task), "teacher")
    run = small_run(tmp_path, model, task={**task, "max_length": 62})
    all_units(run, "teacher", "features", "cell", "block", "supernet")
    long = tmp_path / "long.csv"
    long.write_text("sentence\n" + "qaa " * 200 + "\n")
    with long.open() as file:
        texts = [row["sentence"] for row in csv.DictReader(file)]
    for folder in (Path(model), run.folder("teacher"), run.folder("supernet", {"seed": 0}) / "student"):
        assert np.isfinite(load_predictor(folder).probabilities(type(run.data.splits["dev"])(texts, [0]))).all()
