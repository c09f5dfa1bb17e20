"""Reads back what Weights & Biases wrote offline."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path


def scan(content: bytes) -> Iterator[bytes]:
    """The records of a W&B transaction log: a 7-byte header, then LevelDB's log format (blocks of 32 KiB)."""
    position, record = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, last
            yield record
            record = b""


def read_offline_runs(root: Path) -> list[tuple[dict, list[dict]]]:
    """The run record and the history of every offline W&B run under a folder."""
    return [_read(path) for path in sorted(root.glob("wandb/offline-run-*/*.wandb"))]


def read_artifacts(root: Path, patience_seconds: float = 30.0) -> dict[str, dict[str, Path]]:
    """The files of every artifact that the offline W&B runs under a folder logged: by its name, where each lies.

    Waits for the first, as :func:`_read` does.
    """
    deadline = time.monotonic() + patience_seconds
    while not (found := _artifacts(root)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _artifacts(root: Path) -> dict[str, dict[str, Path]]:
    from wandb.proto import wandb_internal_pb2

    found = {}
    for path in sorted(root.glob("wandb/offline-run-*/*.wandb")):
        for data in scan(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "artifact":
                one = record.artifact
                found[one.name] = {file.path: Path(file.local_path) for file in one.manifest.contents}
    return found


def _read(path: Path, patience_seconds: float = 30.0) -> tuple[dict, list[dict]]:
    """A run's `finish` may return before another process has written its log: wait for the run's record."""
    deadline = time.monotonic() + patience_seconds
    while not (parsed := _parse(path))[0] and time.monotonic() < deadline:
        time.sleep(0.1)
    return parsed


def _parse(path: Path) -> tuple[dict, list[dict]]:
    from wandb.proto import wandb_internal_pb2

    run, history = {}, []
    for data in scan(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = {"group": record.run.run_group, "job_type": record.run.job_type, "name": record.run.display_name}
        elif kind == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            history.append(items)
    return run, history
