"""Results on disk: how they are told apart, and written without ever being half there."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_bertnas.errors import PhaseError

if TYPE_CHECKING:
    import numpy as np

RESULT = "result.json"
CHECKSUMS = "checksums.json"  # beside it: size and CRC-32 of every file that the result came with
_CHECKSUM = "checksum"  # in a result: CRC-32 of the rest of it
_CHUNK = 1 << 20
# What a file system says -> what it means, and what to do.
_DISK: Mapping[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", "make room, or set runs_dir to another disk and features.max_gigabytes"),
    errno.EDQUOT: ("your quota of the disk is used up", "make room, or set runs_dir to another disk"),
    errno.EFBIG: ("a file would be larger than is allowed", "see ulimit -f, or set features.max_gigabytes"),
    errno.EROFS: ("it can only be read", "mount it for writing, or set runs_dir to a folder that can be written"),
    errno.EACCES: ("it is not yours to use", "see its owner and mode, or set runs_dir to a folder that is yours"),
    errno.EPERM: ("it is not yours to use", "see its owner and mode, or set runs_dir to a folder that is yours"),
    errno.EIO: ("the disk fails", "see the system's log, and take another disk"),
    errno.ESTALE: ("the shared file system has lost it", "see that it is mounted"),
}
_TOLD = re.compile(r"os error (\d+)")  # by libraries in Rust, safetensors among them
# By others, torch and numpy among them, who keep the number to themselves.
_WRITTEN = re.compile(r"No space left on device|PytorchStreamWriter failed writing|requested and \d+ written")


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
        while chunk := file.read(_CHUNK):
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


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Make one clear error of what a disk does that is full, read-only or broken.

    Args:
        folder: Of what is written.

    Raises:
        PhaseError: It did.
    """
    try:
        yield
    except PhaseError:
        raise
    except Exception as error:  # OSError, and those of safetensors and torch
        number = _disk_error(error)
        if number not in _DISK:
            raise
        what, remedy = _DISK[number]
        place = getattr(error, "filename", None) or folder
        raise PhaseError(
            f"{place}: {what}; {remedy}, and run the same command again: it goes on from what is finished"
        ) from error


def _disk_error(error: BaseException) -> int:
    """The number of a file system's error, through what libraries make of it; 0 where it is none."""
    told = _TOLD.search(str(error))
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if told and type(error).__module__.startswith(("safetensors", "builtins")):
        return int(told.group(1))
    return errno.ENOSPC if _WRITTEN.search(str(error)) else 0


def write_result(folder: Path, result: Mapping[str, Any], study: str, *, deep: bool = True) -> None:
    """Write `result.json`, and before it the resolved study as YAML and the checksums of what is there.

    Args:
        folder: Of the result.
        result: As JSON takes it.
        study: As YAML.
        deep: Whether folders inside have checksums here, too; a feature store has its own.
    """
    files = sorted(path for path in (folder.rglob("*") if deep else folder.iterdir()) if path.is_file())
    own = (CHECKSUMS, RESULT, "study.yml")
    sums = {path.relative_to(folder).as_posix(): _sum(path) for path in files if path.name not in own}
    write_whole(folder / CHECKSUMS, json.dumps(sums))
    write_whole(folder / "study.yml", study)
    plain = json.loads(json.dumps(result))
    write_whole(folder / RESULT, json.dumps({**plain, _CHECKSUM: _crc_of(plain)}, indent=1))


def _crc_of(plain: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(plain).encode())


def _sum(path: Path) -> list[int]:
    status = path.stat()
    return _crc(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _crc(path: Path, size: int, time_ns: int) -> list[int]:
    return [size, file_checksum(path)]


def file_checksum(path: Path, start: int = 0, stop: int | None = None) -> int:
    """CRC-32 of a file, or of a byte range of it.

    Raises:
        EOFError: The file ends before the range.
    """
    value = 0
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK if stop is None else min(_CHUNK, stop - start)):
            value, start = zlib.crc32(chunk, value), start + len(chunk)
    if stop is not None and start < stop:
        raise EOFError(f"{path} has no {stop} bytes")
    return value


def damaged_file(folder: Path) -> str | None:
    """The first file of a result that is not as it was when the result was written; None: all are, as far as is known.

    Every file is read once per process. Results of earlier versions have no checksums.
    """
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        wanted = {folder / name: [int(one) for one in kept] for name, kept in sums.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return CHECKSUMS
    for path, kept in wanted.items():
        inside = path.resolve().is_relative_to(folder.resolve())
        if not inside or not path.is_file() or _sum(path) != kept:
            return path.relative_to(folder).as_posix()
    return None


def load_arrays(path: Path, names: Sequence[str], command: str) -> "dict[str, np.ndarray]":
    """Arrays out of a file .npz, of numbers alone.

    Args:
        path: Of the file.
        names: Of the arrays.
        command: That makes the file.

    Raises:
        PhaseError: It is missing or damaged, or holds something else.
    """
    import numpy as np  # for those who read results alone it would be slow

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise PhaseError(f"{path} is missing or damaged ({error}); make it anew with: {command}") from error


def check_whole(folder: Path) -> None:
    """Whether a result's files are as they were when it was written, see :func:`damaged_file`.

    Raises:
        PhaseError: One is not.
    """
    if (name := damaged_file(folder)) is not None:
        raise PhaseError(
            f"{folder / name} is not as it was when the result was written; make it anew with bertnas run STUDY, or, "
            f"if you changed it on purpose, remove {folder / CHECKSUMS}"
        )


def own_file(folder: Path, name: str) -> Path:
    """A file that a result names, which must lie in the result's own folder.

    Raises:
        PhaseError: It lies elsewhere.
    """
    path = folder / name
    if Path(name).name != name or name == ".." or path.is_symlink():
        raise PhaseError(
            f"{folder / RESULT} names {name!r}, which leads out of its folder; make it anew with: "
            "bertnas run STUDY --force STAGE"
        )
    return path


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
        checksum = result.pop(_CHECKSUM, None)
        if checksum not in (None, _crc_of(result)):
            raise ValueError("its checksum is wrong")
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise PhaseError(f"{path} is damaged ({error}); remove the folder {folder} and run the phase again") from error
    return result if expected is None or result.get("fingerprint") == expected else None
