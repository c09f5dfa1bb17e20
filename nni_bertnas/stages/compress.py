"""The whole job as one call in Python: rows in, student out; what it leaves is a study like any other."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nni_bertnas.data.columns import Kind, guess, look
from nni_bertnas.deploy.predict import Predictor, load_predictor
from nni_bertnas.errors import ConfigError
from nni_bertnas.stages.draft import Wishes, draft, merged, study_name
from nni_bertnas.stages.run import STUDY, Run
from nni_bertnas.stages.smoke import smoke as made_small
from nni_bertnas.stages.stage import run_study
from nni_bertnas.stages.students import STUDENT
from nni_bertnas.study_files import parse_study

if TYPE_CHECKING:
    import pandas as pd

_PERCENT, _MILLION = 100, 1e6


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """What came out.

    Attributes:
        folder: Of the run; `student` lies in it, and the study's file.
        student: Folder of the saved student.
        scores: By split and metric, of teacher and student, as shares.
        speedup: Teacher's latency / student's, at batch 1.
        num_params: Of teacher and student.
        meant: Whether scores mean anything; not of a smoke test.
    """

    folder: Path
    student: Path
    scores: Mapping[str, tuple[float, float]]
    speedup: float
    num_params: tuple[int, int]
    meant: bool

    @property
    def study(self) -> Path:
        """The file that `bertnas report` and the other commands take."""
        return self.folder / STUDY

    def rows(self) -> list[tuple[str, str, str]]:
        """What there is to say of teacher and student, line by line."""
        found = [(f"{name}, %", *(f"{value * _PERCENT:.2f}" for value in pair)) for name, pair in self.scores.items()]
        params = (f"{count / _MILLION:.1f}" for count in self.num_params)
        return [*found, ("parameters, M", *params), ("speed", "1", f"{self.speedup:.1f}")]  # type: ignore[list-item]

    def note(self) -> str:
        """Where it lies, and whether its scores mean anything."""
        warning = "" if self.meant else "a smoke test, whose scores mean nothing; "
        return f"{warning}{self.student}; more: bertnas report {self.study}"

    def __str__(self) -> str:
        lines = [f"{name:<24}{teacher:>10}{student:>10}" for name, teacher, student in self.rows()]
        return "\n".join([f"{'':<24}{'teacher':>10}{'student':>10}", *lines, self.note()])

    def _repr_html_(self) -> str:
        """Called by notebooks."""
        lines = [("", "teacher", "student"), *self.rows()]
        cells = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
        return f"<table>{cells}</table><p>{html.escape(self.note())}</p>"


def compress(
    model: str,
    train: "str | Path | pd.DataFrame",
    *,
    text: str | Sequence[str] = "text",
    label: str | Sequence[str] = "label",
    speedup: float = 10.0,
    dev: "str | Path | pd.DataFrame | None" = None,
    test: "str | Path | pd.DataFrame | None" = None,
    run_dir: str | Path = "runs/compressed",
    smoke: bool = False,
    kind: Kind | None = None,
    **more: Any,
) -> tuple[Predictor, Compressed]:
    """Compress a BERT for a task of your own; what is finished already is reused.

    Args:
        model: A folder, a hub name, or `package:NAME`; fine-tuned unless it is a classifier of these labels already.
        train: Rows, or the path of a .csv, .tsv, .jsonl or .parquet.
        text: Column of the texts; two for pairs.
        label: Column of the label; of several labels a column of lists, or one of 0 and 1 for each.
        speedup: Over the teacher at batch 1, at least.
        dev: Rows that choose the best epoch; None: a tenth of train.
        test: Rows that are read at the end; None: a tenth of train.
        run_dir: Takes everything.
        smoke: Whether all is made small, to see that it runs: in a folder beside, with scores that mean nothing.
        kind: `classification`, `regression` or `multi_label`; None: by the labels, scores where they are many numbers.
        **more: Sections and fields of a study, e.g. `student={"hidden_size": 128}` (docs, "Studies").

    Returns:
        The student, whose `predict` takes texts, and what is to say of it.

    Raises:
        ConfigError: An argument, or the data, cannot be used.
        PhaseError: Nothing came out of a stage.
    """
    root = Path(run_dir)
    if root.name != study_name(root.name):
        raise ConfigError(f"run_dir: its last part names the study: letters, digits, - _ and ., got {root.name!r}")
    texts, labels = ([one] if isinstance(one, str) else list(one) for one in (text, label))
    files = {
        name: _file(rows, name, [*texts, *labels], root)
        for name, rows in (("train", train), ("dev", dev), ("test", test))
        if rows is not None
    }
    table = look(files["train"])
    table.check(texts, "text")
    table.check(labels, "label")
    places = {name: str(path) for name, path in files.items()}
    wishes = Wishes(
        name=root.name,
        train=places["train"],
        dev=places.get("dev"),
        test=places.get("test"),
        teacher=model,
        speedup=speedup,
        guess=guess(table, texts, labels, kind),
    )
    raw = yaml.safe_load(draft(wishes, table, more).text)
    if "profile" in more:  # it says what the draft says of these
        raw = {name: value for name, value in raw.items() if name not in ("student", "cell")}
    study = parse_study(merged({**raw, "runs_dir": str(root.parent)}, more), "compress")
    study = made_small(study) if smoke else study
    Run(study).write_study()
    return _found(run_study(study), not smoke)


def _file(rows: Any, name: str, columns: Sequence[str], root: Path) -> Path:
    """The file of some rows, written where they are no file yet."""
    if isinstance(rows, str | Path):
        return Path(rows).resolve()
    if missing := [column for column in columns if column not in rows.columns]:
        raise ConfigError(f"{name}: there is no column {', '.join(missing)}; there are {', '.join(rows.columns)}")
    path = root / "data" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        rows[list(columns)].to_parquet(path, index=False)
    except (ValueError, TypeError) as error:  # pyarrow's own are of these kinds
        raise ConfigError(f"{name}: a column holds values of several kinds ({error}); make them one kind") from error
    return path.resolve()


def _found(run: Run, meant: bool) -> tuple[Predictor, Compressed]:
    unit = {"seed": run.study.seed}
    result, folder = run.read("supernet", unit), run.folder("supernet", unit) / STUDENT
    assert result is not None
    teacher, student = result["teacher"], result["student"]
    names = {
        f"{split} {name}": f"{split}_{name}" for split in ("dev", *run.data.final_splits) for name in run.task.metrics
    }
    report = Compressed(
        folder=run.root,
        student=folder,
        scores={name: (teacher[key], student[key]) for name, key in names.items()},
        speedup=result["speedup"],
        num_params=(teacher["num_params"], student["num_params"]),
        meant=meant,
    )
    return load_predictor(folder), report
