"""Augmentation of the training rows, after TinyBERT (Jiao et al. 2020, arXiv 1909.10351, Algorithm 1).

A word that is one piece to the masked language model may be replaced by one of the model's most probable words in its
place; a split word by one of its nearest word vectors. Stop words and what is not a word stay. Candidates come from
the unchanged text, once for all copies, as in the authors' code; their algorithm as printed masks a text in which
earlier words are already replaced. The teacher labels what comes out.
"""

import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from nni_bertnas.artifacts import (
    RunDirectory,
    atomic_folder,
    file_fingerprint,
    fingerprint,
    read_result,
    write_result,
)
from nni_bertnas.config import Study, study_to_dict
from nni_bertnas.data.batches import load_task, tokenize
from nni_bertnas.data.sources import UNLABELLED, Rows
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.store.reader import FeatureStore, open_features
from nni_bertnas.store.writer import SplitWriter
from nni_bertnas.training.masked_lm import find_masked_lm, masked_logits
from nni_bertnas.training.teacher import load_teacher, teacher_fingerprint, weights_fingerprint
from nni_bertnas.training.trainer import best_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXTS = "rows.parquet"
_PART_ROWS = 256  # rows of train between two savings
_WINDOW, _OVERLAP = 128, 32  # word pieces of context for the masked language model
_BATCH_ROWS = 64  # masked copies at a time
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]  # rows of train done, of how many


@dataclass(frozen=True)
class Slot:
    """A word of a text that may be replaced.

    Attributes:
        start: First character.
        end: After the last.
        words: What it may be replaced by, likeliest first.
    """

    start: int
    end: int
    words: tuple[str, ...]


def _replaceable(word: str) -> bool:
    """Whether a string is a word, and neither one letter nor a stop word."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return len(word) > 1 and word.isalpha() and word.lower() not in ENGLISH_STOP_WORDS


def _like(word: str, model: str) -> str:
    """`word` with the capital letters of `model`."""
    if model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def whole_words(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """The pieces of a vocabulary that are whole words and may replace one: number -> word.

    Knows WordPiece (continuations start with `##`), and byte-level BPE and SentencePiece (words start with a mark).
    """
    pieces = {number: piece for piece, number in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    mark = next((mark for mark in "Ġ▁" if sum(p.startswith(mark) for p in pieces.values()) > len(pieces) / 20), "")
    return {
        number: piece.removeprefix(mark)
        for number, piece in sorted(pieces.items())
        if number not in special and piece.startswith(mark) and _replaceable(piece.removeprefix(mark))
    }


class Neighbours:
    """The nearest words by cosine of their vectors.

    Args:
        words: Of the vocabulary; only those that may replace another are answered.
        vectors: `(num_words, size)`.
        lookup: The vector of a word, None for an unknown one; None looks into `words`.
    """

    def __init__(
        self, words: Sequence[str], vectors: np.ndarray, lookup: Callable[[str], np.ndarray | None] | None = None
    ) -> None:
        kept = [number for number, word in enumerate(words) if _replaceable(word)]
        self.words = [words[number] for number in kept]
        self.vectors = F.normalize(torch.from_numpy(np.asarray(vectors[kept], np.float32)), dim=-1)
        places = {word: number for number, word in enumerate(words)}
        self.lookup = lookup or (lambda word: vectors[places[word]] if word in places else None)
        self._known: dict[tuple[str, int], tuple[str, ...]] = {}

    def nearest(self, word: str, count: int) -> tuple[str, ...]:
        """Up to `count` other words, nearest first; none for a word without a vector."""
        word = word.lower()
        if (word, count) not in self._known:
            vector = self.lookup(word)
            found: list[str] = []
            if vector is not None and len(self.words):
                likeness = self.vectors @ F.normalize(torch.from_numpy(np.asarray(vector, np.float32)), dim=0)
                best = likeness.topk(min(len(self.words), 2 * count + 1)).indices.tolist()
                found = [self.words[number] for number in best if self.words[number].lower() != word]
            self._known[word, count] = tuple(dict.fromkeys(found))[:count]
        return self._known[word, count]


def read_vectors(path: Path) -> Neighbours:
    """Word vectors: GloVe text, word2vec text (first line: count and size), or word2vec binary (`.bin`).

    Raises:
        ConfigError: The file is missing or damaged, or gensim is not installed.
    """
    try:
        import smart_open  # gensim's own way to plain and compressed files
        from gensim.models import KeyedVectors
    except ImportError:
        raise ConfigError("augment.vectors needs gensim; install it with pip install 'nni-bertnas[vectors]'") from None
    binary = path.name.removesuffix(".gz").endswith(".bin")
    try:
        with smart_open.open(path, "rb") as file:
            headless = len(file.readline().split()) != 2
        loaded = KeyedVectors.load_word2vec_format(str(path), binary=binary, no_header=headless and not binary)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"augment.vectors: {path} holds no GloVe or word2vec vectors ({error})") from error
    return Neighbours(loaded.index_to_key, loaded.vectors)


def embedding_neighbours(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Neighbours:
    """Word vectors out of a model's input embeddings; a split word is the mean of its pieces."""
    table = model.get_input_embeddings().weight.detach().float().cpu().numpy()
    words = whole_words(tokenizer)

    def lookup(word: str) -> np.ndarray | None:
        pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
        return table[pieces].mean(0) if pieces and tokenizer.unk_token_id not in pieces else None

    return Neighbours(list(words.values()), table[list(words)], lookup)


class Candidates:
    """What each word of a text may be replaced by.

    Args:
        model: Masked language model.
        tokenizer: Its own; a fast one, as words are found by their characters.
        neighbours: For the words that the tokenizer splits.
        top_k: Candidates per word.

    Raises:
        ConfigError: The tokenizer is slow or has no mask.
    """

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", neighbours: Neighbours, top_k: int
    ) -> None:
        if not tokenizer.is_fast or tokenizer.mask_token_id is None:
            raise ConfigError("augment.masked_lm: its tokenizer must be a fast one with a mask token")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.neighbours = neighbours
        self.top_k = top_k
        self.words = whole_words(tokenizer)
        numbers = torch.zeros(model.config.vocab_size, dtype=torch.bool)
        numbers[list(self.words)] = True
        self._barred = ~numbers
        self.window = min(_WINDOW, tokenizer.model_max_length, model.config.max_position_embeddings)

    def slots(self, texts: Sequence[str]) -> list[list[Slot]]:
        """The replaceable words of every text, in their order; each masked alone, in a window of its context.

        Texts may be of any length.
        """
        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=self.window, stride=min(_OVERLAP, self.window // 4),
            return_overflowing_tokens=True, return_offsets_mapping=True, return_attention_mask=False,
            return_token_type_ids=False,
        )  # fmt: skip
        found: dict[tuple[int, int], Slot] = {}
        masked: list[tuple[int, int, int, int]] = []  # window, position, text, start of the word
        spans = [{match.start(): match for match in _WORD.finditer(text)} for text in texts]
        for window, text in enumerate(encoded["overflow_to_sample_mapping"]):
            starts: dict[int, int] = {}  # first character of a piece -> its position
            ends: dict[int, int] = {}
            for position, (start, end) in enumerate(encoded["offset_mapping"][window]):
                if end > start:
                    start += texts[text][start] == " "  # byte-level BPE counts the space before
                    starts[start], ends[end] = position, position
            for start, match in spans[text].items():
                first, last = starts.get(start), ends.get(match.end())
                if first is None or last is None or (text, start) in found or not _replaceable(match[0]):
                    continue
                words = () if first == last else self.neighbours.nearest(match[0], self.top_k)
                found[text, start] = Slot(start, match.end(), tuple(_like(word, match[0]) for word in words))
                if first == last:
                    masked.append((window, first, text, start))
        for (_, _, text, start), words in zip(masked, self._predict(encoded["input_ids"], masked), strict=True):
            slot = found[text, start]
            word = texts[text][start : slot.end]
            others = dict.fromkeys(_like(other, word) for other in words if other.lower() != word.lower())
            found[text, start] = Slot(start, slot.end, tuple(others)[: self.top_k])
        slots: list[list[Slot]] = [[] for _ in texts]
        for (text, _), slot in sorted(found.items()):
            if slot.words:
                slots[text].append(slot)
        return slots

    @torch.inference_mode()
    def _predict(self, windows: list[list[int]], masked: list[tuple[int, int, int, int]]) -> list[list[str]]:
        """For every (window, position, …), the words that the model finds likeliest there."""
        answers: list[list[str]] = [[] for _ in masked]
        order = sorted(range(len(masked)), key=lambda number: len(windows[masked[number][0]]))
        device, pad = best_device(), self.tokenizer.pad_token_id or 0
        self.model.to(device)
        barred = self._barred.to(device)
        for start in range(0, len(order), _BATCH_ROWS):
            chunk = order[start : start + _BATCH_ROWS]
            longest = len(windows[masked[chunk[-1]][0]])
            inputs = torch.full((len(chunk), longest), pad)
            hidden = torch.zeros(len(chunk), longest, dtype=torch.bool)
            mask = torch.zeros(len(chunk), longest, dtype=torch.long)
            for row, number in enumerate(chunk):
                window, position, *_ = masked[number]
                inputs[row, : len(windows[window])] = torch.tensor(windows[window])
                mask[row, : len(windows[window])] = 1
                inputs[row, position] = self.tokenizer.mask_token_id
                hidden[row, position] = True
            logits = masked_logits(self.model, inputs.to(device), mask.to(device), hidden.to(device))
            logits.masked_fill_(barred, -torch.inf)
            # Three more, as the word itself may be among them, in up to three spellings.
            best = logits.topk(min(self.top_k + 3, len(self.words))).indices.tolist()
            for number, words in zip(chunk, best, strict=True):
                answers[number] = [self.words[word] for word in words]
        return answers


def replace_words(text: str, slots: Sequence[Slot], probability: float, generator: np.random.Generator) -> str:
    """A copy of a text in which every slot's word is replaced with `probability`, all candidates alike."""
    parts, end = [], 0
    for slot in slots:
        if generator.random() < probability:
            parts += [text[end : slot.start], slot.words[generator.integers(len(slot.words))]]
            end = slot.end
    return "".join([*parts, text[end:]])


def augment_rows(
    rows: Rows, numbers: Sequence[int], candidates: Candidates, *, copies: int, probability: float, seed: int
) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """New rows: number of the row they come from, of the copy, and their one or two texts, both augmented.

    A row's copies depend on the seed, its number and its texts alone; fewer copies are a part of more.

    Args:
        rows: Of train.
        numbers: Which of them.
        candidates: What words may be replaced by.
        copies: Tries per row.
        probability: Of a word to be replaced.
        seed: Of all random choices.
    """
    sides = [rows.texts] if rows.pairs is None else [rows.texts, rows.pairs]
    texts = list(dict.fromkeys(side[number] for number in numbers for side in sides))
    slots = dict(zip(texts, candidates.slots(texts), strict=True))
    for number in numbers:
        generator = np.random.default_rng((seed, number))
        own = [side[number] for side in sides]
        for copy in range(copies):
            yield number, copy, tuple(replace_words(text, slots[text], probability, generator) for text in own)


def augment_fingerprint(study: Study) -> str:
    """A hash of all that the new rows and their labels depend on, but for how many copies there are.

    Raises:
        PhaseError: There is no masked language model.
    """
    settings = study_to_dict(study)["augment"]
    for name in ("copies", "fit_epochs", "masked_lm", "vectors"):
        del settings[name]
    vectors = study.augment.vectors
    return fingerprint(
        teacher_fingerprint(study),
        settings,
        weights_fingerprint(find_masked_lm(study)),
        vectors and file_fingerprint(_vectors_path(vectors)),
    )


def _vectors_path(name: str) -> Path:
    if not Path(name).is_file():
        raise ConfigError(f"augment.vectors: {name} does not exist")
    return Path(name)


def find_augmented(study: Study) -> dict[str, Any] | None:
    """The result of the study's augmentation, if it is there, still fits, and has as many copies or more."""
    result = read_result(RunDirectory(study).augment, augment_fingerprint(study))
    return result if result is not None and result["copies"] >= study.augment.copies else None


def open_augmented(study: Study) -> tuple[FeatureStore, np.ndarray]:
    """The new rows as the teacher labelled them (no hidden states), and the numbers of those that the study asks for.

    Raises:
        PhaseError: They are not made yet.
    """
    result = find_augmented(study)
    if result is None:
        raise PhaseError(
            f"{RunDirectory(study).augment} holds no new rows for augment.copies = {study.augment.copies}; "
            "make them with: bertnas augment STUDY"
        )
    store = FeatureStore(RunDirectory(study).augment / "labelled")
    copies = np.load(store.folder / "copies.npy")
    return store, np.flatnonzero(copies < study.augment.copies)


def ensure_augmented(study: Study, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Make the study's new rows and the teacher's labels for them, unless they are there.

    Finished parts of the texts are kept when it is interrupted, and used again.

    Returns:
        The result: rows, shares of unchanged and duplicate copies, rows a second, the teacher's disagreement with the
        labels of the rows they came from.

    Raises:
        PhaseError: There is no masked language model, or no store of features.
        ConfigError: `augment.copies` is 0, or a model or file cannot be read.
    """
    if study.augment.copies == 0:
        raise ConfigError("augment.copies is 0; set it to the new rows per row that you want, e.g. 20")
    run = RunDirectory(study)
    with run.lock("augment"):
        result = find_augmented(study)
        if result is None:
            result = _make(study, run.augment, progress)
    return result


def _make(study: Study, target: Path, progress: Progress) -> dict[str, Any]:
    expected = augment_fingerprint(study)
    data = load_task(study.task)
    train = data.splits["train"]
    parts = target.with_name(f".augment-{expected}-{study.augment.copies}")
    seconds = _write_parts(study, train, parts, progress)
    teacher, tokenizer = load_teacher(study)
    with atomic_folder(target) as folder:
        new, origin, copies, counts = _merge(parts, train, folder / TEXTS, study)
        start = time.perf_counter()
        unlabelled = [float("nan") if study.task.regression else UNLABELLED] * len(new)
        tokens = tokenize(tokenizer, Rows(new.texts, unlabelled, new.pairs), study.task.max_length)
        SplitWriter(folder / "labelled", teacher.to(best_device()), tokens, ()).write()
        np.save(folder / "labelled" / "copies.npy", copies)
        labels = np.asarray(train.labels)
        result = {
            "fingerprint": expected,
            "copies": study.augment.copies,
            **counts,
            "seconds": seconds,
            "rows_per_second": counts["tries"] / seconds,
            "label_seconds": time.perf_counter() - start,
            "disagreement": disagreement(FeatureStore(folder / "labelled").logits, labels[origin]),
            "disagreement_of_train": disagreement(open_features(study, "train").logits[: len(train)], labels),
        }
        write_result(folder, study, result)
    for old in target.parent.glob(".augment-*"):
        shutil.rmtree(old)
    return result


def disagreement(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose label is not the teacher's; for scores, the mean absolute difference."""
    if logits.shape[1] == 1:
        return float(np.abs(logits[:, 0].astype(np.float64) - labels).mean())
    return float((logits.argmax(1) != labels).mean())


def _write_parts(study: Study, train: Rows, parts: Path, progress: Progress) -> float:
    """Write what is missing of the new rows' texts, part by part; returns the seconds of all parts, old ones too."""
    import pyarrow as pa
    from pyarrow import parquet

    parts.mkdir(parents=True, exist_ok=True)
    candidates: Candidates | None = None
    seconds = 0.0
    for first in range(0, len(train), _PART_ROWS):
        file = parts / f"{first:09d}.parquet"
        if not file.exists():
            candidates = candidates or _candidates(study)
            start = time.perf_counter()
            made = list(
                augment_rows(
                    train,
                    range(first, min(first + _PART_ROWS, len(train))),
                    candidates,
                    copies=study.augment.copies,
                    probability=study.augment.probability,
                    seed=study.seed,
                )
            )
            columns: dict[str, Any] = {"row": [one[0] for one in made], "copy": [one[1] for one in made]}
            for side in range(1 if train.pairs is None else 2):
                columns[f"text{side}"] = [one[2][side] for one in made]
            took = {"seconds": str(time.perf_counter() - start)}
            table = pa.table(columns).replace_schema_metadata(took)
            fresh = file.with_suffix(".fresh")
            parquet.write_table(table, fresh)
            fresh.replace(file)
        seconds += float(parquet.read_schema(file).metadata[b"seconds"])
        progress(min(first + _PART_ROWS, len(train)), len(train))
    return seconds


def _candidates(study: Study) -> Candidates:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    source = find_masked_lm(study)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, info = AutoModelForMaskedLM.from_pretrained(source, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"augment.masked_lm: {source} cannot be loaded: {str(error).splitlines()[0]}") from error
    if info["missing_keys"]:
        raise ConfigError(
            f"augment.masked_lm: {source} has no head of a masked language model ({sorted(info['missing_keys'])[0]} is "
            "missing); name another model, or leave it out and fit one with: bertnas augment STUDY --fit-mlm"
        )
    if study.augment.vectors is not None:
        neighbours = read_vectors(_vectors_path(study.augment.vectors))
    else:
        neighbours = embedding_neighbours(*load_teacher(study))
    return Candidates(model, tokenizer, neighbours, study.augment.top_k)


def _merge(parts: Path, train: Rows, target: Path, study: Study) -> tuple[Rows, np.ndarray, np.ndarray, dict[str, Any]]:
    """Join the parts into one file without copies that are unchanged, or equal to another or to a row of train.

    Returns:
        The new rows, for each the number of its row of train and of its copy, and the counts.
    """
    import pyarrow as pa
    from pyarrow import parquet

    from nni_bertnas.data.tasks import task_spec

    seen = set(zip(train.texts, train.pairs or train.texts, strict=True))
    texts: list[str] = []
    pairs: list[str] = []
    origin: list[int] = []
    copies: list[int] = []
    tries = unchanged = 0
    for file in sorted(parts.glob("*.parquet")):
        table = parquet.read_table(file)
        second = table.column("text1" if train.pairs is not None else "text0")
        columns = (table.column("row"), table.column("copy"), table.column("text0"), second)
        for number, copy, text, pair in zip(*(column.to_pylist() for column in columns), strict=True):
            tries += 1
            if text == train.texts[number] and (train.pairs is None or pair == train.pairs[number]):
                unchanged += 1
            elif (text, pair) not in seen:
                seen.add((text, pair))
                texts.append(text)
                pairs.append(pair)
                origin.append(number)
                copies.append(copy)
    if not texts:
        raise ConfigError("augment: no word of train could be replaced; raise augment.probability, or set copies: 0")
    rows = Rows(texts, [train.labels[number] for number in origin], pairs if train.pairs is not None else None)
    spec = task_spec(study.task)
    sides = [rows.texts] if rows.pairs is None else [rows.texts, rows.pairs]
    table = pa.table(
        {**dict(zip(spec.texts, sides, strict=True)), spec.label: rows.labels, "row": origin, "copy": copies}
    )
    settings = json.dumps({"seed": study.seed, **study_to_dict(study)["augment"]})
    parquet.write_table(table.replace_schema_metadata({"bertnas_augment": settings}), target)
    counts = {
        "tries": tries,
        "rows": len(texts),
        "unchanged_share": unchanged / tries,
        "duplicate_share": (tries - unchanged - len(texts)) / tries,
    }
    return rows, np.asarray(origin), np.asarray(copies), counts
