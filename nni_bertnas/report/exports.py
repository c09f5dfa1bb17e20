"""What is exported: the best student of a study, or a saved model, and the rows on which its exports are tried."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nni_bertnas.config import ExportSettings, Study
from nni_bertnas.data.rows import Rows
from nni_bertnas.data.texts import read_texts
from nni_bertnas.errors import ConfigError
from nni_bertnas.report.results import best_student
from nni_bertnas.runtime.manifest import FILE, read_manifest
from nni_bertnas.stages.run import Run
from nni_bertnas.study_files import load_study

STUDY_ENDINGS = (".yml", ".yaml")


@dataclass(frozen=True)
class Exported:
    """A model that can be exported.

    Attributes:
        folder: Of the saved model.
        held_out: Rows on which an export is compared with it.
        calibration: Rows by which 8-bit activations are scaled.
        settings: Of the study that made it; the defaults where there is none.
        run: Of that study; None where there is none.
    """

    folder: Path
    held_out: Rows
    calibration: Rows
    settings: ExportSettings
    run: Run | None = None


def find_exported(path: Path, rows: Path | None = None) -> Exported:
    """A model with rows of its task.

    Args:
        path: A study file, of which the best student on dev is taken, or the folder of a saved model.
        rows: A file with the columns that the model reads; None takes dev and train of the study that made it.

    Raises:
        ConfigError: There is no such model, or nothing says which rows to take.
        PhaseError: The study has no student yet.
    """
    study, folder = None, path
    if path.suffix in STUDY_ENDINGS:
        study = load_study(path)
        folder = best_student(Run(study))[0] / "student"
    columns = model_texts(folder)
    if rows is None:
        study = study or study_of(folder)
        if study is None:
            raise ConfigError(
                f"--rows: {folder} lies in no run, so name a file of its task (.csv, .tsv, .jsonl, .parquet or .txt) "
                "on which the export is compared with it"
            )
        run, settings = Run(study), study.export
        held_out, calibration = (run.data.splits[name] for name in ("dev", "train"))
        return Exported(
            folder, _some(held_out, settings.rows), _some(calibration, settings.calibration_rows), settings, run
        )
    settings = ExportSettings() if study is None else study.export
    if not columns:
        raise ConfigError(f"--rows: {folder} does not say which columns it reads; export a model of a study")
    found = read_some(rows, columns, max(settings.rows, settings.calibration_rows))
    return Exported(folder, _some(found, settings.rows), _some(found, settings.calibration_rows), settings)


def model_texts(folder: Path) -> list[str]:
    """Columns of the texts that a saved or exported model reads; none where it does not say.

    Raises:
        ConfigError: The folder holds no model.
    """
    if (folder / FILE).is_file():
        return read_manifest(folder).texts
    try:
        note = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("bertnas_task") or {}
    except (OSError, ValueError, AttributeError):
        raise ConfigError(f"{folder} holds no model; give its folder, e.g. runs/demo/supernet/seed0/student") from None
    return [str(name) for name in note.get("texts", ())]


def study_of(folder: Path) -> Study | None:
    """The study that made a model, which lies beside each result."""
    for place in (folder, folder.resolve().parent):
        if (place / "study.yml").is_file():
            return load_study(place / "study.yml")
    return None


def read_some(path: Path, texts: Sequence[str], count: int) -> Rows:
    """At least so many rows of a file, or all there are.

    Raises:
        ConfigError: There are none, or the file cannot be read.
    """
    found: Rows | None = None
    for rows in read_texts(path, texts):
        found = rows if found is None else found + rows
        if len(found) >= count:
            break
    if not found:
        raise ConfigError(f"--rows: {path} has no rows")
    return found


def _some(rows: Rows, count: int) -> Rows:
    return rows.take(range(min(count, len(rows))))
