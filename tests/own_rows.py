"""Files of own data, and studies' tasks of them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset

from nni_bertnas.config import CustomSettings, TaskSettings
from nni_bertnas.data.sources import SOURCES
from nni_bertnas.data.tasks import task_spec


def own_task(
    train: Path, text_columns: tuple[str, ...] = ("text",), bad_rows: Any = "error", **own: Any
) -> TaskSettings:
    paths = {split: str(own.pop(split)) for split in ("dev", "test") if split in own}
    custom = CustomSettings(train=str(train), text_columns=list(text_columns), **paths, **own)
    return TaskSettings(name="custom", source="files", custom=custom, bad_rows=bad_rows)


def fingerprint(task: TaskSettings) -> list[str]:
    return SOURCES[task.source].fingerprint(task, task_spec(task))


def disk_task(folder: Path, **own: Any) -> TaskSettings:
    return TaskSettings(
        name="custom", source="disk", data_dir=str(folder), custom=CustomSettings(**{"text_columns": ["text"], **own})
    )


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix in (".csv", ".tsv"):
        frame.to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        Dataset.from_list(rows).save_to_disk(path)
    return path


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
