"""All that the page shows, out of a study's results, as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nni_bertnas.config import to_yaml
from nni_bertnas.data.metrics import METRICS, title
from nni_bertnas.errors import BertnasError
from nni_bertnas.report.page.history import History, read_histories
from nni_bertnas.report.page.intervals import Intervals, score_intervals
from nni_bertnas.report.page.lineage import Link, differing, lineage, machine, versions
from nni_bertnas.report.page.models import Model, predicted_front, trained_models
from nni_bertnas.report.page.predictions import Predictions, predict_splits
from nni_bertnas.report.results import best_student, collapsed_searches
from nni_bertnas.stages.run import Result, Run
from nni_bertnas.stages.students import STUDENT
from nni_bertnas.stages.supernet import SEARCHED
from nni_bertnas.tracking.histories import record_name


@dataclass(frozen=True, kw_only=True, eq=False)
class Page:
    """What a study came to.

    Attributes:
        study: Name of the study.
        task: Name of the task.
        metric: A key of METRICS, the one that ranks.
        metric_title: As people read it.
        kind: classification, regression or multi_label.
        label_names: In the order of their numbers.
        rows: Of every split.
        final: The splits that no training and no choice looked at.
        result: Of the best searched student.
        sizes: Bytes of the saved weights of teacher and student.
        budget: The limits that the study set, by name.
        notes: What a reader has to know besides.
        models: All that were trained, the teacher first.
        front: Latency in ms and error of the predicted front.
        front_note: Why it is empty.
        space: Of the cells.
        histories: Of the stages' trainings.
        rankings: Every block's result.
        cells: Results of the cell phase, by the units' names.
        predictions: By split, of dev and the first final one.
        intervals: Of both models' scores, by split: dev, then the final ones.
        predictions_note: Why there are none.
        seconds: Wall time by stage.
        settings: The resolved study as YAML.
        settings_differ: Fields, by dotted path, that the student was made with otherwise.
        versions: Of packages.
        machine: By what is told of it.
        lineage: Of all results.
        root: The study's folder.
    """

    study: str
    task: str
    metric: str
    metric_title: str
    kind: str
    label_names: tuple[str, ...]
    rows: Mapping[str, int]
    final: Sequence[str]
    result: Result
    sizes: Mapping[str, int]
    budget: Mapping[str, float]
    notes: Sequence[str]
    models: Sequence[Model]
    front: Sequence[tuple[float, float]]
    front_note: str
    space: str
    histories: Sequence[History]
    rankings: Sequence[Result]
    cells: Mapping[str, Result]
    predictions: Mapping[str, Predictions]
    intervals: Mapping[str, Intervals]
    predictions_note: str
    seconds: Mapping[str, float]
    settings: str
    settings_differ: Sequence[str]
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    lineage: Sequence[Link]
    root: Path


def gather(run: Run) -> Page:
    """Read what a study has left; the models predict where they have not yet.

    Raises:
        ConfigError: The task's data cannot be read.
        PhaseError: There is no student yet.
    """
    folder, result = best_student(run)
    kind = METRICS[run.task.metric].kind
    predictions, predictions_note = _predictions(run, folder / STUDENT, kind)
    intervals = {
        split: score_intervals(
            run.root,
            run.task.metric,
            (result["teacher"][f"{split}_{run.task.metric}"], result["student"][f"{split}_{run.task.metric}"]),
            len(run.data.splits[split]),
            predictions.get(split),
        )
        for split in ("dev", *run.data.final_splits)
    }
    front, front_note = predicted_front(run)
    return Page(
        study=run.study.name,
        task=run.study.task.name,
        metric=run.task.metric,
        metric_title=title(run.task.metric, run.data.label_names),
        kind=kind,
        label_names=run.data.label_names,
        rows={name: len(rows) for name, rows in run.data.splits.items()},
        final=run.data.final_splits,
        result=result,
        sizes={"teacher": _bytes(run.folder("teacher")), "student": _bytes(folder / STUDENT)},
        budget=_limits(run.study.supernet.budget),
        notes=list(collapsed_searches(run)),
        models=trained_models(run),
        front=front,
        front_note=front_note,
        space=run.study.cell.space,
        histories=read_histories(
            run.root,
            {
                record_name("supernet", name): one["kept"]
                for name, (_, one) in run.results("supernet").items()
                if one.get("kept", SEARCHED) != SEARCHED
            },
        ),
        rankings=sorted((result for _, result in run.results("block").values()), key=lambda one: one["block"]),
        cells={name: result for name, (_, result) in run.results("cell").items()},
        predictions=predictions,
        intervals=intervals,
        predictions_note=predictions_note,
        seconds=run.read_seconds(),
        settings=to_yaml(run.study),
        settings_differ=differing(run, folder),
        versions=versions(),
        machine=machine(run),
        lineage=lineage(run),
        root=run.root,
    )


def _predictions(run: Run, student: Path, kind: str) -> tuple[dict[str, Predictions], str]:
    try:
        return predict_splits(run, student, ["dev", *run.data.final_splits[:1]], kind), ""
    except BertnasError as error:
        return {}, str(error)


def _limits(budget: Any) -> dict[str, float]:
    return {name: value for name, value in vars(budget).items() if isinstance(value, int | float)}


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*") if file.suffix in (".safetensors", ".bin"))
