"""The run directory: where everything of a study lies, and how it is written without ever being half there."""

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

from filelock import FileLock

from nni_bertnas.config import Study, study_to_yaml
from nni_bertnas.errors import PhaseError

RESULT = "result.json"
STAGES = ("teacher", "features", "cell", "block", "augment", "supernet")  # in the order in which they feed each other


class RunDirectory:
    """Paths of one study's artifacts under `runs_dir/name`."""

    def __init__(self, study: Study) -> None:
        self.root = Path(study.runs_dir) / study.name

    @property
    def teacher(self) -> Path:
        """The fine-tuned teacher, as `save_pretrained` writes it."""
        return self.root / "teacher"

    @property
    def features(self) -> Path:
        """The feature store, one folder per split."""
        return self.root / "features"

    @property
    def masked_lm(self) -> Path:
        """The masked language model that was fitted for the augmentation."""
        return self.root / "masked_lm"

    @property
    def augment(self) -> Path:
        """The augmented rows, and the teacher's labels for them."""
        return self.root / "augment"

    def cell(self, block: int, depth: int) -> Path:
        """The ranked candidates of one (block, depth)."""
        return self.root / "cell" / f"block{block}_depth{depth}"

    def block(self, block: int) -> Path:
        """The ranking of one block."""
        return self.root / "block" / f"block{block}"

    def supernet(self, seed: int, student: str = "searched") -> Path:
        """One trained student: the searched one of a seed, or a baseline."""
        return self.root / "supernet" / (f"seed{seed}" if student == "searched" else f"seed{seed}_{student}")

    @property
    def nni(self) -> Path:
        """Experiment files, logs and database of the NNI experiments that `bertnas` starts."""
        return self.root / "nni"

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold one named lock of the study across processes."""
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f".{name}.lock"):
            yield

    def discard_from(self, stage: str) -> None:
        """Remove the results of a stage and of all that build on it."""
        for name in STAGES[STAGES.index(stage) :]:
            shutil.rmtree(self.root / name, ignore_errors=True)


def fingerprint(*parts: Any) -> str:
    """A short hash of plain data (what `json` takes), the same in every process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """A short hash of a file's content, read once per process while its size and time stay as they are."""
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


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


def write_result(folder: Path, study: Study, result: Mapping[str, Any]) -> None:
    """Write `result.json` and, beside it, the resolved study."""
    (folder / "study.yml").write_text(study_to_yaml(study), encoding="utf-8")
    (folder / RESULT).write_text(json.dumps(result, indent=1), encoding="utf-8")


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
