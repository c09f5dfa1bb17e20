"""New rows answered by the teacher: what the stages that make some have in common."""

from pathlib import Path

import numpy as np

from nni_bertnas.augment.parts import LABELLED
from nni_bertnas.data.rows import Rows, unlabelled
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.machine import best_device
from nni_bertnas.stages.run import Run
from nni_bertnas.store.reader import FeatureStore
from nni_bertnas.store.writer import SplitWriter
from nni_bertnas.tracking.tracker import Progress, unwatched


def label_rows(
    run: Run, folder: Path, texts: list[str], pairs: list[str] | None = None, vectors: np.ndarray | None = None,
    *, progress: Progress = unwatched,
) -> FeatureStore:  # fmt: skip
    """The teacher's answers for rows, stored without hidden states; what an interrupted run left there stays.

    Args:
        run: Of the study.
        folder: Of the stage; takes the store.
        texts: The first or only text of every row.
        pairs: The second ones.
        vectors: Of both texts of every row, `(rows, 2 * hidden)`, where they are known and read separately.
        progress: Takes the rows done.
    """
    teacher, tokenizer = run.load_teacher()
    rows = Rows(texts, unlabelled(len(texts), regression=run.task.regression), pairs)
    tokens = tokenize(tokenizer, rows, run.study.task.max_length)
    answering = None if run.teacher_kind == "siamese" else teacher.to(best_device())
    writer = SplitWriter(folder / LABELLED, answering, tokens, (), encoder=run.load_encoder(), vectors=vectors)
    writer.write(lambda done, total, *_: progress(done, total, "rows labelled"))
    return run.open_store(folder / LABELLED)
