"""Export a saved model, and refuse what does not answer as it does."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from nni_bertnas.artifacts import atomic_folder
from nni_bertnas.data.rows import Rows
from nni_bertnas.deploy import FORMATS
from nni_bertnas.deploy.fidelity import Agreement, agreement
from nni_bertnas.deploy.predict import Predictor, load_predictor
from nni_bertnas.errors import ConfigError, PhaseError, lookup
from nni_bertnas.runtime.classifier import Classifier
from nni_bertnas.runtime.manifest import FILE, read_manifest


class Exporter(Protocol):
    """What a format's module has as `export`."""

    def __call__(self, source: Path, target: Path, rows: Rows) -> None:
        """Write what the format wants of a saved model into a fresh folder.

        Args:
            source: Folder of a saved student or teacher.
            target: Folder that is there and empty.
            rows: Of the task, to calibrate by.
        """
        ...


def export(
    source: Path,
    name: str,
    target: Path,
    *,
    held_out: Rows,
    calibration: Rows,
    min_agreement: float | None = None,
    card: str | None = None,
) -> Agreement:
    """Export a saved model.

    Args:
        source: Its folder.
        name: A key of FORMATS.
        target: Folder that takes it; must not be there yet, or be empty.
        held_out: Rows on which the exported model is compared with the model; at least one.
        calibration: Rows by which 8-bit activations are scaled.
        min_agreement: Share of the held-out rows on which both must answer alike; None: as the format has it.
        card: Written beside it as README.md.

    Returns:
        How they agree.

    Raises:
        ConfigError: There is no such format or model, the folder holds something, or an extra is not installed.
        PhaseError: The exported model answers otherwise too often; nothing is kept of it.
    """
    form = lookup(FORMATS, name, "--to")
    check_target(target)
    predictor = load_predictor(source)
    predictor.model.to("cpu")  # where exported models run
    try:
        exporter: Exporter = importlib.import_module(f"nni_bertnas.deploy.{form.module}").export
    except ImportError as error:
        raise ConfigError(
            f"--to {name} needs {error.name}; install it with: pip install 'nni-bertnas[{form.extra}]'"
        ) from error
    least = form.min_agreement if min_agreement is None else min_agreement
    if not 0 <= least <= 1:
        raise ConfigError(f"--min-agreement must be a share from 0 to 1, got {least:g}")
    with atomic_folder(target.resolve()) as folder:
        exporter(source, folder, calibration)
        found = _compare(predictor, open_exported(folder), held_out)
        if found.share < least:
            worst = found.worst(least)
            raise PhaseError(
                f"--to {name}: the exported model answers as the model does on {found.share:.1%} of {found.num_rows:,} "
                f"held-out rows, less than export.min_agreement = {least:.1%}{f'; of {worst}' if worst else ''}; "
                "nothing was written. Take another format, or allow it with --min-agreement"
            )
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        if (folder / FILE).is_file():
            replace(read_manifest(folder), agreement=found.figures()).write(folder)
    return found


def check_target(target: Path) -> None:
    """Whether a folder can take an exported model.

    Raises:
        ConfigError: It holds something, or the command runs in it.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--output: {target} is there already; name another folder")
    if target.resolve() == Path.cwd():
        raise ConfigError("--output: must not be the folder that the command runs in; name another")


def open_exported(folder: Path) -> Callable[[Rows], np.ndarray]:
    """What an exported model gives to rows, see `probabilities` of `Classifier`, by the way its users take."""
    if (folder / FILE).is_file():
        classifier = Classifier(folder)
        return lambda rows: classifier.probabilities(rows.texts, rows.pairs)
    return load_predictor(folder).probabilities


def _compare(predictor: Predictor, exported: Callable[[Rows], np.ndarray], rows: Rows) -> Agreement:
    return agreement(predictor.probabilities(rows), exported(rows), predictor.kind, predictor.label_names)
