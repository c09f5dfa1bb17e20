"""What each command of `bertnas` does."""

import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_bertnas.artifacts import RunDirectory
from nni_bertnas.config import Study, load_study
from nni_bertnas.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console


def _console() -> "Console":
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def run(arguments: Namespace) -> None:
    """All of a study, in order; what is finished is reused."""
    from nni_bertnas.search.strategies import check_search

    study = load_study(arguments.study)
    check_search(study)
    directory = RunDirectory(study)
    if arguments.force:
        directory.discard_from(arguments.force)
    console = _console()
    console.print(f"study {study.name} ({arguments.study}), everything goes to {directory.root}", highlight=False)
    if study.augment.copies:
        from nni_bertnas.training.masked_lm import find_masked_lm

        find_masked_lm(study)  # is needed late; an hour's work should not end with its lack
    _teacher(study, console)
    _features(study, console)
    for name in ("cell", "block"):
        _phase(study, arguments.study, name, console)
    if study.augment.copies:
        _augment(study, console)
    _phase(study, arguments.study, "supernet", console)
    _show(study, console)


def validate(arguments: Namespace) -> None:
    """Check files; every problem of every file is reported at once."""
    from nni_bertnas.search.strategies import check_search

    problems = []
    try:
        check_search(load_study(arguments.study))
    except ConfigError as error:
        problems.append(str(error))
    if arguments.nni_yaml:
        from nni_bertnas.launch.experiments import check_nni_yaml

        for path in arguments.nni_yaml:
            problems += check_nni_yaml(path)
    if problems:
        raise ConfigError("\n".join(problems))
    print(f"{1 + len(arguments.nni_yaml)} file(s) are right")


def teacher(arguments: Namespace) -> None:
    """Make the teacher."""
    _teacher(load_study(arguments.study), _console())


def features(arguments: Namespace) -> None:
    """Build the feature store."""
    study = load_study(arguments.study)
    console = _console()
    _teacher(study, console)
    _features(study, console)


def data(arguments: Namespace) -> None:
    """What the data look like."""
    from nni_bertnas.report.data import show_data

    show_data(load_study(arguments.study), _console())


def predict(arguments: Namespace) -> None:
    """Predictions of a saved model."""
    from nni_bertnas.deploy.predict import load_predictor, missing_of_submission, predict_file, write_submission

    source, target = arguments.file, arguments.glue_submission
    if target is not None and (arguments.output or arguments.columns or arguments.quotes):
        raise ConfigError("--glue-submission takes no --output, --columns or --quotes, as GLUE's files are known")
    predictor = load_predictor(arguments.model)
    if target is not None:
        counts = write_submission(predictor, source, target)
        missing = missing_of_submission(target)
        wanting = f"; still missing: {', '.join(missing)}" if missing else "; it is complete"
    else:
        target, wanting = arguments.output or source.with_name(f"{source.stem}.predictions.csv"), ""
        literal = arguments.quotes == "literal"
        counts = predict_file(predictor, source, target, columns=arguments.columns, literal_quotes=literal)
    print(f"{target}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}{wanting}")


def space(arguments: Namespace) -> None:
    """What a study searches."""
    from nni_bertnas.report.drawing import draw_space
    from nni_bertnas.search.strategies import check_search
    from nni_bertnas.stages.architecture import show_space, write_search_space
    from search_space.cells import space_operations

    study = load_study(arguments.study)
    check_search(study)
    depth = max(study.cell.depths) if arguments.depth is None else arguments.depth
    if depth < 1:
        raise ConfigError(f"--depth must be at least 1, got {depth}")
    show_space(study, depth, _console())
    width = study.student.hidden_size
    if arguments.nni is not None:
        write_search_space(study, depth, arguments.nni)
    if arguments.draw is not None:
        operations = space_operations(study.cell.space, width, study.cell.operations)
        draw_space(study.cell.space, depth, operations, width, arguments.draw)


def augment(arguments: Namespace) -> None:
    """Make the augmented rows; with --fit-mlm the masked language model too."""
    study = load_study(arguments.study)
    console = _console()
    if arguments.fit_mlm:
        _masked_lm(study, console)
    _teacher(study, console)
    _features(study, console)
    _augment(study, console)


def phase(arguments: Namespace) -> None:
    """One phase through NNI."""
    study = load_study(arguments.study)
    _phase(study, arguments.study, arguments.command, _console())


def report(arguments: Namespace) -> None:
    """Print the closing table."""
    _show(load_study(arguments.study), _console())


def _show(study: Study, console: "Console") -> None:
    from nni_bertnas.report.results import show

    show(study, console)


def _teacher(study: Study, console: "Console") -> None:
    from nni_bertnas.data.tasks import task_spec
    from nni_bertnas.report.results import record_seconds
    from nni_bertnas.tracking import open_tracker
    from nni_bertnas.training.teacher import ensure_teacher, find_teacher

    start = time.perf_counter()
    result = find_teacher(study)
    reused = result is not None
    if result is None:
        with (
            open_tracker(study, "teacher", study.task.name) as tracker,
            console.status("teacher: fine-tuning …") as status,
        ):

            def show(metrics: Any) -> None:
                tracker.epoch(metrics, "train_loss")
                epoch = f"epoch {metrics['epoch'] + 1:.0f} of {study.teacher.epochs}"
                done = f"{epoch}, train loss {metrics['train_loss']:.3f}"
                status.update(f"teacher: {done}")
                console.print(f"teacher: {done}, {time.perf_counter() - start:.0f} s", highlight=False)

            result = ensure_teacher(study, show)
        record_seconds(study, "teacher", time.perf_counter() - start)
    spec = task_spec(study.task)
    kept = " (reused)" if reused else f", {time.perf_counter() - start:.0f} s"
    splits = [name for name, value in result.items() if isinstance(value, dict)]
    scores = [f"{split} {name} {result[split][name] * 100:.2f}" for split in splits for name in spec.metrics]
    console.print(f"teacher, in percent: {', '.join(scores)}{kept}", highlight=False)


def _features(study: Study, console: "Console") -> None:
    from nni_bertnas.report.results import record_seconds
    from nni_bertnas.store.reader import ensure_features, find_features

    start = time.perf_counter()
    reused = find_features(study) is not None
    with console.status("features: the teacher runs once over the data …"):
        result = ensure_features(study)
    if not reused:
        record_seconds(study, "features", time.perf_counter() - start)
    kept = " (reused)" if reused else f", {time.perf_counter() - start:.0f} s"
    console.print(f"features: edges {result['edges']}, {result['num_bytes'] / 1e6:.0f} MB{kept}", highlight=False)


def _masked_lm(study: Study, console: "Console") -> None:
    from nni_bertnas.training.masked_lm import ensure_masked_lm

    if study.augment.masked_lm is not None:
        raise ConfigError(f"augment.masked_lm names {study.augment.masked_lm}; set it to null to fit one")

    def show(metrics: Any) -> None:
        done = f"epoch {metrics['epoch'] + 1:.0f} of {study.augment.fit_epochs}"
        console.print(f"masked language model: {done}, right on dev {metrics['dev_accuracy']:.1%}", highlight=False)

    with console.status("masked language model: fitting to the task's text …"):
        result = ensure_masked_lm(study, show)
    shares = f"{result['dev_accuracy']:.1%} right on dev, the commonest piece {result['commonest_accuracy']:.1%}"
    console.print(f"masked language model: {shares}, {result['seconds']:.0f} s", highlight=False)


def _augment(study: Study, console: "Console") -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from nni_bertnas.augment.replace import TEXTS, ensure_augmented, find_augmented
    from nni_bertnas.report.results import record_seconds

    start = time.perf_counter()
    reused = study.augment.copies > 0 and find_augmented(study) is not None
    columns = [
        TextColumn("augment: rows of train"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")

        def show(done: int, total: int) -> None:
            rate = f"{done / (time.perf_counter() - start):.1f} rows/s"
            bar.update(
                task, completed=done, total=total, description=rate + (", now the teacher" if done == total else "")
            )

        result = ensure_augmented(study, show)
    if not reused:
        record_seconds(study, "augment", time.perf_counter() - start)
    console.print(
        f"augment: {result['rows']} new rows of {result['tries']} tries ({result['unchanged_share']:.1%} unchanged, "
        f"{result['duplicate_share']:.1%} duplicates), {result['rows_per_second']:.0f} tries/s, then the teacher "
        f"{result['label_seconds']:.0f} s{' (reused)' if reused else ''}",
        highlight=False,
    )
    what, number = ("mean difference", "{:.3f}") if study.task.regression else ("disagreement", "{:.1%}")
    both = (number.format(result[name]) for name in ("disagreement", "disagreement_of_train"))
    console.print(
        "augment: {} of the teacher and the labels {}, on train itself {}; the texts are in {}".format(
            what, *both, RunDirectory(study).augment / TEXTS
        ),
        highlight=False,
        soft_wrap=True,
    )


def _phase(study: Study, study_path: Path, name: str, console: "Console") -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from nni_bertnas.launch.experiments import PHASES, make_config, run_experiment
    from nni_bertnas.launch.trial_server import server
    from nni_bertnas.report.results import record_seconds
    from nni_bertnas.store.reader import study_edges

    phase_module = PHASES[name]
    units = phase_module.units(study, len(study_edges(study)) - 1)
    if all(phase_module.find(study, **unit) is not None for unit in units):
        console.print(f"{name}: {len(units)} result(s) (reused)", highlight=False)
        return
    start = time.perf_counter()
    columns = [
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    ]
    done: set[str] = set()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting NNI", total=len(units))

        def show(jobs: list[Any], address: str) -> None:
            if not bar.tasks[0].fields.get("told"):
                console.print(f"{name}: {len(units)} trial(s), web UI at {address}", highlight=False)
                bar.update(task, told=True)
            for job in jobs:
                if job.status == "SUCCEEDED" and job.trialJobId not in done:
                    done.add(job.trialJobId)
                    console.print(f"{name}: {_describe(job)}", highlight=False)
            bar.update(task, completed=len(done), description=address)

        with server() as address:
            run_experiment(make_config(study, study_path, name, units, address), study.nni.port, show)
    record_seconds(study, name, time.perf_counter() - start)


def _describe(job: Any) -> str:
    unit = " ".join(f"{key} {value}" for key, value in job.hyperParameters[0].parameters.items())
    metrics = job.finalMetricData[0].data if job.finalMetricData else {}
    numbers = ", ".join(f"{key} {value:,.4g}" for key, value in metrics.items())
    return f"{unit}: {numbers}, {(job.endTime - job.startTime) / 1000:.0f} s"
