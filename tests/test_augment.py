import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_study, write_tiny_model
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from nni_bertnas.artifacts import RunDirectory, read_result
from nni_bertnas.augment import replace as augment
from nni_bertnas.augment.replace import (
    Candidates,
    Neighbours,
    Slot,
    augment_rows,
    disagreement,
    embedding_neighbours,
    ensure_augmented,
    open_augmented,
    read_vectors,
    replace_words,
    whole_words,
)
from nni_bertnas.cli import main
from nni_bertnas.config import Study, study_to_yaml
from nni_bertnas.data.batches import StreamBatches, load_task, make_stream
from nni_bertnas.data.sources import Rows
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.store.reader import FeatureDataset, open_features
from nni_bertnas.training import masked_lm
from nni_bertnas.training.masked_lm import ensure_masked_lm, find_masked_lm, masked_logits
from nni_bertnas.training.metrics import model_inputs
from nni_bertnas.training.teacher import load_teacher

WORDS = ["river", "stone", "bread", "cloud", "tiger", "metal", "garden", "window"]
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "a",
    "2",
    ".",
    "'",
    "t",
    "don",
    *WORDS,
    "##bow",
    "##s",
]


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Candidates:
    folder = tmp_path_factory.mktemp("masked")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40,
    )  # fmt: skip
    model = BertForMaskedLM(shape).eval()
    model.cls.predictions.bias.data.normal_()
    return Candidates(model, tokenizer, embedding_neighbours(model, tokenizer), 3)


@torch.no_grad()
def naive_words(candidates: Candidates, text: str, position: int, word: str) -> tuple[str, ...]:
    """The definition: mask one piece, sort the whole vocabulary, keep what is another word."""
    ids = candidates.tokenizer(text, return_tensors="pt")["input_ids"]
    ids[0, position] = candidates.tokenizer.mask_token_id
    order = candidates.model(ids).logits[0, position].argsort(descending=True)
    found = [VOCABULARY[number] for number in order if VOCABULARY[number] in WORDS and VOCABULARY[number] != word]
    return tuple(found[: candidates.top_k])


def test_candidates_are_the_likeliest_words_in_each_place(candidates: Candidates) -> None:
    text = "The river 2 stone . river don't a bread"
    slots = candidates.slots([text, "window", ""])
    assert [text[slot.start : slot.end] for slot in slots[0]] == ["river", "stone", "river", "bread"]
    pieces = candidates.tokenizer.convert_ids_to_tokens(candidates.tokenizer(text)["input_ids"])
    positions = [number for number, piece in enumerate(pieces) if piece in WORDS]
    for slot, position in zip(slots[0], positions, strict=True):
        assert slot.words == naive_words(candidates, text, position, text[slot.start : slot.end])
    assert len(slots[1]) == 1 and slots[2] == []


def test_split_words_take_the_nearest_embeddings_and_keep_their_capitals(candidates: Candidates) -> None:
    text = "a Riverbow 2 CLOUD rivers"
    slots = candidates.slots([text])[0]
    table = candidates.model.get_input_embeddings().weight.detach().numpy()
    vector = (table[VOCABULARY.index("river")] + table[VOCABULARY.index("##bow")]) / 2
    likeness = {
        word: float(vector @ table[VOCABULARY.index(word)] / np.linalg.norm(table[VOCABULARY.index(word)]))
        for word in WORDS
    }
    nearest = sorted(WORDS, key=lambda word: -likeness[word])[:3]
    assert slots[0].words == tuple(word.capitalize() for word in nearest)
    assert all(word.isupper() for word in slots[1].words) and "CLOUD" not in slots[1].words
    assert text[slots[2].start : slots[2].end] == "rivers" and len(slots[2].words) == 3


def test_a_text_longer_than_the_model_is_read_in_windows(candidates: Candidates) -> None:
    text = " ".join([*WORDS, "the", "."] * 100)
    slots = candidates.slots([text])[0]
    assert len(slots) == 800 and all(len(slot.words) == 3 for slot in slots)
    assert [text[slot.start : slot.end] for slot in slots] == WORDS * 100


def test_byte_level_pieces_are_words_too() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator([" ".join(WORDS)] * 5, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", mask_token="<mask>", unk_token="<unk>", bos_token="<s>",
        eos_token="</s>", model_max_length=30,
    )  # fmt: skip
    assert set(WORDS) <= set(whole_words(tokenizer).values())
    shape = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=40, pad_token_id=1,
    )  # fmt: skip
    found = Candidates(RobertaForMaskedLM(shape), tokenizer, Neighbours([], np.zeros((0, 2))), 4)
    text = "River stone, the cloud"
    # "River" is split, as the capital was never seen, and has no vector.
    assert [text[slot.start : slot.end] for slot in found.slots([text])[0]] == ["stone", "cloud"]
    assert all(set(slot.words) <= set(whole_words(tokenizer).values()) for slot in found.slots([text])[0])


def test_sentencepiece_marks_its_words() -> None:
    vocabulary = {"<s>": 0, "▁river": 1, "bow": 2, "▁the": 3, "▁7": 4, "▁Stone": 5}
    assert whole_words(SimpleNamespace(get_vocab=lambda: vocabulary, all_special_ids=[0])) == {1: "river", 5: "Stone"}


@given(st.lists(st.sampled_from([*WORDS, "The", "2", "—", "é", "don't"]), max_size=12), st.integers(0, 99))
def test_only_words_change(words: list[str], seed: int) -> None:
    text = "  ".join(words)
    slots = [Slot(m.start(), m.end(), ("new", "other")) for m in re.finditer("|".join(WORDS), text)]
    generator = np.random.default_rng(seed)
    changed = replace_words(text, slots, 0.5, generator).split("  ")
    assert len(changed) == len(text.split("  "))
    for before, after in zip(text.split("  "), changed, strict=True):
        assert after == before or (before in WORDS and after in ("new", "other"))
    assert replace_words(text, slots, 1.0, generator).count("river") == 0


def test_probability_and_candidates_are_drawn_as_asked() -> None:
    text = " ".join(["river"] * 5000)
    slots = [Slot(m.start(), m.end(), ("one", "two", "three")) for m in re.finditer("river", text)]
    words = replace_words(text, slots, 0.4, np.random.default_rng(0)).split()
    assert words.count("river") / 5000 == pytest.approx(0.6, abs=0.03)
    assert all(words.count(word) / 5000 == pytest.approx(0.4 / 3, abs=0.02) for word in ("one", "two", "three"))


def test_both_texts_of_a_pair_change_and_copies_depend_on_seed_and_row_alone(candidates: Candidates) -> None:
    rows = Rows([" ".join(WORDS)] * 4, [0] * 4, [" ".join(reversed(WORDS))] * 4)

    def make(copies: int, seed: int, numbers: range = range(4)) -> list:
        return list(augment_rows(rows, numbers, candidates, copies=copies, probability=0.5, seed=seed))

    many = make(6, 0)
    assert make(6, 0) == many and make(6, 1) != many
    assert make(2, 0) == [one for one in many if one[1] < 2]
    assert make(6, 0, range(2, 4)) == [one for one in many if one[0] >= 2]
    assert len({texts for *_, texts in many}) == len(many)
    assert all(first != rows.texts[0] and second != rows.pairs[0] for *_, (first, second) in many)


@pytest.mark.parametrize(
    ("name", "binary", "header"),
    [("v.txt", False, False), ("v.vec.gz", False, True), ("v.bin", True, True), ("v.txt.gz", False, False)],
)
def test_word_vectors_by_file(tmp_path: Path, name: str, binary: bool, header: bool) -> None:
    from gensim.models import KeyedVectors

    generator = np.random.default_rng(3)
    words, vectors = [*WORDS, "the", "Üben", "42"], generator.normal(size=(11, 20)).astype(np.float32)
    keyed = KeyedVectors(20)
    keyed.add_vectors(words, vectors)
    keyed.save_word2vec_format(str(tmp_path / name), binary=binary, write_header=header)
    found = read_vectors(tmp_path / name)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = dict(zip(words, unit @ unit[2], strict=True))
    allowed = [word for word in (*WORDS, "Üben") if word != "bread"]
    assert found.nearest("Bread", 4) == tuple(sorted(allowed, key=lambda word: -likeness[word])[:4])
    assert found.nearest("unknown", 4) == ()


def test_bad_word_vectors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_text("river 1 2 3\nstone 1 two 3\n")
    with pytest.raises(ConfigError, match="no GloVe or word2vec"):
        read_vectors(path)


def test_the_head_runs_at_the_masked_places_alone(candidates: Candidates) -> None:
    ids = torch.tensor([[2, 12, 4, 14, 3], [2, 13, 15, 3, 0]])
    mask, at = (ids != 0).long(), torch.zeros(2, 5, dtype=torch.bool)
    at[0, 2] = at[1, 1] = at[1, 2] = True
    full = candidates.model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(masked_logits(candidates.model, ids, mask, at), full[at])
    assert candidates.model(input_ids=ids, attention_mask=mask).logits.shape == full.shape  # the hook is gone


def test_disagreement() -> None:
    logits = np.array([[1, 2], [3, 0], [0, 1]], np.float16)
    assert disagreement(logits, np.array([1, 1, 0])) == pytest.approx(2 / 3)
    assert disagreement(np.array([[1.0], [4.0]], np.float16), np.array([1.5, 3.0])) == pytest.approx(0.75)


@pytest.fixture(scope="module")
def fitted(built: Study, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The tiny study with a masked language model fitted, in a run directory of its own."""
    root = tmp_path_factory.mktemp("augmented")
    shutil.copytree(RunDirectory(built).root, root / built.name)
    study = dataclasses.replace(
        built, runs_dir=str(root), augment=dataclasses.replace(built.augment, copies=3, fit_epochs=1)
    )
    ensure_masked_lm(study)
    return study


def with_copies(study: Study, copies: int, **changes: object) -> Study:
    return dataclasses.replace(study, augment=dataclasses.replace(study.augment, copies=copies, **changes))


def test_augmentation_resumes_and_its_rows_are_new_and_labelled_by_the_teacher(
    fitted: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "_PART_ROWS", 64)

    def interrupt(done: int, total: int) -> None:
        if done >= 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_augmented(fitted, interrupt)
    root = RunDirectory(fitted).root
    before = {file: file.stat().st_mtime_ns for file in root.glob(".augment-*/*.parquet")}
    assert len(before) == 2 and not RunDirectory(fitted).augment.exists()
    kept: dict[Path, int] = {}
    result = ensure_augmented(
        fitted, lambda done, total: kept.update({file: file.stat().st_mtime_ns for file in before})
    )
    assert kept == before and not list(root.glob(".augment-*/"))

    train = load_task(fitted.task).splits["train"]
    table = parquet.read_table(RunDirectory(fitted).augment / "rows.parquet")
    settings = json.loads(table.schema.metadata[b"bertnas_augment"])
    assert settings["copies"] == 3 and settings["probability"] == 0.4 and settings["seed"] == 0
    texts = table.column("sentence").to_pylist()
    assert len(texts) == result["rows"] == len(set(texts)) and not set(texts) & set(train.texts)
    assert table.column("label").to_pylist() == [train.labels[row] for row in table.column("row").to_pylist()]
    assert result["tries"] == 3 * len(train)
    together = result["rows"] / result["tries"] + result["unchanged_share"] + result["duplicate_share"]
    assert together == pytest.approx(1)
    assert result["rows_per_second"] == pytest.approx(result["tries"] / result["seconds"])

    store, rows = open_augmented(fitted)
    teacher, tokenizer = load_teacher(fitted)
    encoded = tokenizer(texts[:5], padding=True, return_tensors="pt")
    with torch.inference_mode():
        live = teacher(**encoded).logits
    np.testing.assert_allclose(store.logits[:5], live, atol=2e-2)
    labels = np.asarray(table.column("label").to_pylist())
    assert result["disagreement"] == pytest.approx((store.logits.argmax(1) != labels).mean())
    assert len(rows) == len(store) == len(texts) and set(store.labels.tolist()) == {-100}


def test_fewer_copies_are_a_part_of_more(fitted: Study) -> None:
    first = ensure_augmented(fitted)
    assert ensure_augmented(with_copies(fitted, 1)) == first
    store, rows = open_augmented(with_copies(fitted, 1))
    copies = parquet.read_table(RunDirectory(fitted).augment / "rows.parquet").column("copy").to_numpy()
    assert 0 < len(rows) < len(store) and set(copies[rows]) == {0} and (copies == 0).sum() == len(rows)
    with pytest.raises(PhaseError, match=r"augment\.copies = 4"):
        open_augmented(with_copies(fitted, 4))
    with pytest.raises(PhaseError, match="holds no new rows"):
        open_augmented(with_copies(fitted, 1, probability=0.2))


def test_a_student_batch_has_hidden_states_or_is_augmented(fitted: Study) -> None:
    ensure_augmented(fitted)
    store, rows = open_augmented(fitted)
    train = open_features(fitted, "train")
    parts = [
        FeatureDataset(train, train.edges[1:], tokens=True),
        FeatureDataset(store, (), tokens=True, rows=rows, part="augmented"),
    ]
    loader = make_stream(parts, 16, seed=0, epoch_rows=None)
    seen = {"train": 0, "augmented": 0}
    for batch in loader:
        seen[batch["part"]] += len(batch["labels"])
        assert bool(batch["hidden"]) == (batch["part"] == "train")
        assert model_inputs(torch.nn.Linear(1, 1), batch)["input_ids"].shape == batch["mask"].shape
    assert seen == {"train": len(train), "augmented": len(store)}


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


def test_what_is_missing_is_said(built: Study, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"augment\.copies is 0"):
        ensure_augmented(built)
    with pytest.raises(PhaseError, match="--fit-mlm"):
        ensure_augmented(with_copies(built, 2))
    headless = with_copies(built, 2, masked_lm=str(write_tiny_model(tmp_path / "headless")))
    with pytest.raises(ConfigError, match="no head of a masked language model"):
        ensure_augmented(headless)
    with pytest.raises(ConfigError, match=r"augment\.vectors: .* does not exist"):
        ensure_augmented(
            dataclasses.replace(headless, augment=dataclasses.replace(headless.augment, vectors="nowhere"))
        )


def test_the_fitted_model_beats_the_commonest_piece(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, augment={"fit_epochs": 30})
    path = Path(study.task.data_dir) / "SST-2" / "train.tsv"
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
        result = ensure_masked_lm(study)
    monkey.undo()
    assert result["commonest_accuracy"] < 0.1 < 0.3 < result["dev_accuracy"]
    assert find_masked_lm(study) == str(RunDirectory(study).masked_lm)
    assert ensure_masked_lm(study) == result


def test_the_command_fits_augments_and_says_what_came_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tiny_study(tmp_path, augment={"copies": 2, "fit_epochs": 1})
    path = tmp_path / "study.yml"
    path.write_text(study_to_yaml(study))
    assert main(["run", str(path)]) != 0  # before any work is done
    assert "--fit-mlm" in capsys.readouterr().err and not RunDirectory(study).root.exists()
    assert main(["augment", str(path), "--fit-mlm"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    result = read_result(RunDirectory(study).augment)
    assert f"{result['rows']} new rows of {result['tries']} tries" in text
    assert f"disagreement of the teacher and the labels {result['disagreement']:.1%}" in text
    assert "right on dev" in text and "tries/s" in text
    named = tiny_study(tmp_path, augment={"copies": 2, "masked_lm": "some/model"})
    path.write_text(study_to_yaml(named))
    assert main(["augment", str(path), "--fit-mlm"]) != 0
    assert "set it to null to fit one" in capsys.readouterr().err
