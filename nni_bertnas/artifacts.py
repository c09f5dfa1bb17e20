"""Results on disk: how they are told apart, and written without ever being half there."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from nni_bertnas.errors import PhaseError

RESULT = "result.json"


def fingerprint(*parts: Any) -> str:
    """A short hash of plain data (what `json` takes), the same in every process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """A short hash of a file's content, read once per process while its size and time stay as they are."""
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


def state_fingerprint(state: Mapping[str, Any]) -> str:
    """A short hash of tensors by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@lru_cache
def _digest(path: Path, size: int, time_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Fill a new folder that takes the target's place when, and only when, the block ends well.

    Yields:
        A fresh folder beside the target, removed if the block raises (Ctrl-C included).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield fresh
        fresh.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        os.replace(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def clear_leftovers(target: Path) -> None:
    """Remove what killed processes left of :func:`atomic_folder`; no other may be at the same target now."""
    for folder in target.parent.glob(f".{target.name}.????????"):
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file at once: never half, even where the process ends meanwhile or the disk is full."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def write_result(folder: Path, result: Mapping[str, Any], study: str) -> None:
    """Write `result.json` and, beside it, the resolved study as YAML."""
    write_whole(folder / "study.yml", study)
    write_whole(folder / RESULT, json.dumps(result, indent=1))


def read_result(folder: Path, expected: str | None = None) -> dict[str, Any] | None:
    """The result in a folder.

    Args:
        folder: Where :func:`write_result` wrote.
        expected: The fingerprint it must carry; None takes any.

    Returns:
        None where there is none, or it carries another fingerprint.

    Raises:
        PhaseError: It is there but not readable.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PhaseError(f"{path} is damaged ({error}); remove the folder {folder} and run the phase again") from error
    return result if expected is None or result.get("fingerprint") == expected else None
