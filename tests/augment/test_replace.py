import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_tiny_model
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from nni_bertnas.augment.replace import Replacements, Slot, augment_rows, load_masked_lm, replace_words
from nni_bertnas.augment.words import Neighbours, embedding_neighbours, read_vectors, whole_words
from nni_bertnas.config import AugmentSettings
from nni_bertnas.data.rows import Rows
from nni_bertnas.errors import ConfigError
from nni_bertnas.training.masked_lm import masked_logits

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
def replacements(tmp_path_factory: pytest.TempPathFactory) -> Replacements:
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
    return Replacements(model, tokenizer, embedding_neighbours(model, tokenizer), 3)


@torch.no_grad()
def naive_words(replacements: Replacements, text: str, position: int, word: str) -> tuple[str, ...]:
    """The definition: mask one piece, sort the whole vocabulary, keep what is another word."""
    ids = replacements.tokenizer(text, return_tensors="pt")["input_ids"]
    ids[0, position] = replacements.tokenizer.mask_token_id
    order = replacements.model(ids).logits[0, position].argsort(descending=True)
    found = [VOCABULARY[number] for number in order if VOCABULARY[number] in WORDS and VOCABULARY[number] != word]
    return tuple(found[: replacements.top_k])


def test_candidates_are_the_likeliest_words_in_each_place(replacements: Replacements) -> None:
    text = "The river 2 stone . river don't a bread"
    slots = replacements.slots([text, "window", ""])
    assert [text[slot.start : slot.end] for slot in slots[0]] == ["river", "stone", "river", "bread"]
    pieces = replacements.tokenizer.convert_ids_to_tokens(replacements.tokenizer(text)["input_ids"])
    positions = [number for number, piece in enumerate(pieces) if piece in WORDS]
    for slot, position in zip(slots[0], positions, strict=True):
        assert slot.words == naive_words(replacements, text, position, text[slot.start : slot.end])
    assert len(slots[1]) == 1 and slots[2] == []


def test_split_words_take_the_nearest_embeddings_and_keep_their_capitals(replacements: Replacements) -> None:
    text = "a Riverbow 2 CLOUD rivers"
    slots = replacements.slots([text])[0]
    table = replacements.model.get_input_embeddings().weight.detach().numpy()
    vector = (table[VOCABULARY.index("river")] + table[VOCABULARY.index("##bow")]) / 2
    likeness = {
        word: float(vector @ table[VOCABULARY.index(word)] / np.linalg.norm(table[VOCABULARY.index(word)]))
        for word in WORDS
    }
    nearest = sorted(WORDS, key=lambda word: -likeness[word])[:3]
    assert slots[0].words == tuple(word.capitalize() for word in nearest)
    assert all(word.isupper() for word in slots[1].words) and "CLOUD" not in slots[1].words
    assert text[slots[2].start : slots[2].end] == "rivers" and len(slots[2].words) == 3


def test_a_text_longer_than_the_model_is_read_in_windows(replacements: Replacements) -> None:
    text = " ".join([*WORDS, "the", "."] * 100)
    slots = replacements.slots([text])[0]
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
    found = Replacements(RobertaForMaskedLM(shape), tokenizer, Neighbours([], np.zeros((0, 2))), 4)
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


def test_both_texts_of_a_pair_change_and_copies_depend_on_seed_and_row_alone(replacements: Replacements) -> None:
    rows = Rows([" ".join(WORDS)] * 4, [0] * 4, [" ".join(reversed(WORDS))] * 4)

    def make(copies: int, seed: int, numbers: range = range(4)) -> list:
        settings = AugmentSettings(copies=copies, probability=0.5, consistent=False)
        return list(augment_rows(rows, numbers, replacements, settings, seed))

    many = make(6, 0)
    assert make(6, 0) == many and make(6, 1) != many
    assert make(2, 0) == [one for one in many if one[1] < 2]
    assert make(6, 0, range(2, 4)) == [one for one in many if one[0] >= 2]
    assert len({texts for *_, texts in many}) == len(many)
    assert all(first != rows.texts[0] and second != rows.pairs[0] for *_, (first, second) in many)


def test_a_word_of_both_texts_becomes_the_same_in_both(replacements: Replacements) -> None:
    rows = Rows([" ".join(WORDS)] * 4, [0] * 4, [" ".join(reversed(WORDS)).upper()] * 4)
    settings = AugmentSettings(copies=6, probability=0.5)
    made = [texts for *_, texts in augment_rows(rows, range(4), replacements, settings, 0)]
    assert len({first for first, _ in made}) > 6
    for first, second in made:
        assert first.split() == [word.lower() for word in reversed(second.split())]
        assert first != rows.texts[0]


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


def test_words_with_spaces_as_glove_840b_has_them(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    lines = [f"{word} {number} 0.5 0.25" for number, word in enumerate(WORDS)]
    path.write_text("\n".join([*lines, ". . . 0.1 0.2 0.3", "at name@domain.com 0.3 0.2 0.1"]) + "\n")
    found = read_vectors(path)
    assert found.words == [word for word in WORDS if len(word) > 1]
    assert found.lookup(". . .").tolist() == pytest.approx([0.1, 0.2, 0.3])
    np.testing.assert_allclose(found.lookup(WORDS[3]), [3, 0.5, 0.25])


def test_bad_word_vectors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_text("river 1 2 3\nstone 1 two 3\n")
    with pytest.raises(ConfigError, match="no GloVe or word2vec"):
        read_vectors(path)


def test_the_head_runs_at_the_masked_places_alone(replacements: Replacements) -> None:
    ids = torch.tensor([[2, 12, 4, 14, 3], [2, 13, 15, 3, 0]])
    mask, at = (ids != 0).long(), torch.zeros(2, 5, dtype=torch.bool)
    at[0, 2] = at[1, 1] = at[1, 2] = True
    full = replacements.model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(masked_logits(replacements.model, ids, mask, at), full[at])
    assert replacements.model(input_ids=ids, attention_mask=mask).logits.shape == full.shape  # the hook is gone


def test_a_model_without_a_head_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no head of this kind"):
        load_masked_lm(str(write_tiny_model(tmp_path / "headless")))
    with pytest.raises(ConfigError, match=r"augment\.masked_lm: .*nowhere: there is no such folder"):
        load_masked_lm(str(tmp_path / "nowhere"))
