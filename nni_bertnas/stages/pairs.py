"""Stage pairs: new pairs out of the texts of train, labelled by the teacher, for the student alone.

Built in place: what an interrupted run labelled stays.
"""

import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.augment.mining import answer_bins, mine, score_edges, spread_alike
from nni_bertnas.config import to_dict
from nni_bertnas.data.rows import UNLABELLED, Rows
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.errors import ConfigError
from nni_bertnas.stages.labelled import label_rows
from nni_bertnas.stages.run import Result, Run, Unit
from nni_bertnas.stages.stage import Stage, stage_fingerprint
from nni_bertnas.store.writer import text_vectors
from nni_bertnas.tracking.tracker import Tracker

ROWS = "rows.parquet"
_EXAMPLES = 3


def _wanted(run: Run) -> bool:
    """Whether the study asks for new pairs."""
    settings = run.study.pairs
    return any((settings.bm25, settings.near, settings.beyond, settings.random))


def _fingerprint(run: Run, unit: Unit) -> str:
    teacher = stage_fingerprint(run, "teacher"), run.teacher_kind, run.separate
    return fingerprint(*teacher, run.study.seed, to_dict(run.study.pairs))


def _check(run: Run, unit: Unit) -> None:
    if not run.task.pairs:
        raise ConfigError(f"pairs: {run.study.task.name} is a task of single texts; leave the section out")


def _make(run: Run, unit: Unit, folder: Path, tracker: Tracker) -> Result:
    start, settings, seed = time.perf_counter(), run.study.pairs, run.study.seed
    train = run.data.splits["train"]
    texts = sorted({*train.texts, *(train.pairs or ())})
    known = {
        frozenset(pair) for rows in run.data.splits.values() for pair in zip(rows.texts, rows.pairs or (), strict=True)
    }
    alone = tokenize(run.load_teacher()[1], Rows(texts, [UNLABELLED] * len(texts)), run.study.task.max_length)
    vectors = text_vectors(run.load_pretrained(), alone, tracker.progress)
    mined = mine(texts, vectors, settings, known, seed)
    if not len(mined):
        raise ConfigError("pairs: no new pair was found; raise pairs.bm25, pairs.near, pairs.beyond or pairs.random")
    first, second = ([texts[number] for number in numbers] for numbers in (mined.first, mined.second))
    both = np.concatenate([vectors[mined.first], vectors[mined.second]], axis=1) if run.separate else None
    store = label_rows(run, folder, first, second, both, progress=tracker.progress)
    found = store.logits.astype(np.float32)
    own = run.train.logits[: len(train)].astype(np.float32)
    edges = score_edges(own)
    kinds, own_kinds = answer_bins(found, edges), answer_bins(own, edges)
    kept = spread_alike(kinds, own_kinds, seed) if settings.like_task else np.arange(len(mined))
    result: Result = {
        "mined": len(mined),
        "rows": len(kept),
        "by_origin": {origin: int((mined.origin[kept] == origin).sum()) for origin in dict.fromkeys(mined.origin)},
        "edges": None if edges is None else edges.tolist(),
        "histogram": np.bincount(kinds[kept], minlength=own_kinds.max() + 1).tolist(),
        "histogram_mined": np.bincount(kinds, minlength=own_kinds.max() + 1).tolist(),
        "histogram_of_train": np.bincount(own_kinds).tolist(),
        "seconds": time.perf_counter() - start,
    }
    columns = {
        name: [side[number] for number in kept] for name, side in zip(run.task.texts, (first, second), strict=True)
    }
    table = pa.table({**columns, "number": kept, "origin": mined.origin[kept], "answer": found[kept].tolist()})
    note = json.dumps({"seed": seed, **to_dict(settings), **result})
    parquet.write_table(table.replace_schema_metadata({"bertnas_pairs": note}), folder / ROWS)
    return result


def kept_rows(folder: Path) -> np.ndarray:
    """Numbers of the rows that were kept, in the store of all that were labelled."""
    return parquet.read_table(folder / ROWS, columns=["number"]).column("number").to_numpy()


def _describe(run: Run, result: Result) -> str:
    table = parquet.read_table(run.folder("pairs") / ROWS)
    examples = table.take(np.linspace(0, len(table) - 1, min(_EXAMPLES, len(table))).astype(int)).to_pylist()
    shown = "".join(
        f"\n  {one['origin']}, {' '.join(f'{value:.2f}' for value in one['answer'])}: "
        + " | ".join(one[name] for name in run.task.texts)
        for one in examples
    )
    origins = ", ".join(f"{name} {count}" for name, count in result["by_origin"].items())
    return (
        f"{result['rows']} of {result['mined']} mined pairs kept ({origins}); answers {result['histogram']} (mined "
        f"{result['histogram_mined']}, train {result['histogram_of_train']}); in {run.folder('pairs') / ROWS}{shown}"
    )


STAGE = Stage(
    name="pairs",
    units=lambda run: [{}] if _wanted(run) else [],
    fingerprint=_fingerprint,
    make=_make,
    describe=_describe,
    needs=lambda run, unit: [("teacher", {}), ("features", {})],
    check=_check,
    in_place=True,
    missing="set pairs.bm25, pairs.near, pairs.beyond or pairs.random to the partners of every text, e.g. 3",
)
