"""Studies as YAML files: read, and checked as a whole.

Reading collects all problems of a file and raises one ConfigError with a dotted path for each: what is of the wrong
type or out of range, names that are no row of the table that they stand for, and settings that do not go together.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from nni_bertnas.config import CellSettings, Study, TaskSettings, to_dict
from nni_bertnas.data.metrics import METRICS
from nni_bertnas.data.sources import SOURCES
from nni_bertnas.data.tasks import TASKS, TaskSpec, task_spec
from nni_bertnas.errors import ConfigError, lookup
from nni_bertnas.profiles import apply_profile
from nni_bertnas.search.random_cells import BASELINES
from nni_bertnas.search.strategies import STRATEGIES, find_strategy
from nni_bertnas.store.layout import DTYPES
from nni_bertnas.student.build import list_shapes, resolve_shape
from nni_bertnas.student.runtimes import RUNTIMES
from nni_bertnas.training.losses import LOSSES
from nni_bertnas.training.optimizers import OPTIMIZERS
from nni_bertnas.yaml_files import read_yaml
from search_space.heads import HEADS

_Settings = TypeVar("_Settings")
_ADAPTER = TypeAdapter(Study)
# Which table's row a setting names; of mappings, every key.
_TABLES: Mapping[str, Mapping[str, Any]] = {
    "task.name": {**TASKS, "custom": None},
    "task.source": SOURCES,
    "task.custom.metric": METRICS,
    "features.dtype": DTYPES,
    "student.head": {"auto": None, "search": None, **HEADS},
    "cell.strategy": STRATEGIES,
    "cell.optimizer": OPTIMIZERS,
    "cell.losses": LOSSES,
    "block.optimizer": OPTIMIZERS,
    "block.losses": LOSSES,
    "supernet.latency_runtime": RUNTIMES,
    "baseline.students": BASELINES,
    "distill.losses": LOSSES,
}


def load_study(path: str | Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: With every problem of the file, one a line, by dotted path.
    """
    return parse_study(read_yaml(path), str(path))


def parse_study(raw: Any, origin: str = "study") -> Study:
    """Build a study from plain data (dicts, lists, numbers, strings), defaults filled in; see :func:`load_study`."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{origin}: must be a mapping of study fields, got {type(raw).__name__}")
    study = None
    try:
        raw = apply_profile(raw)
    except ConfigError as error:
        raise _refusal(origin, [str(error)]) from None
    problems = [*_wrong_names(raw), *_wrong_options(raw)]
    try:
        # JSON, because strict dataclasses take mappings from it alone.
        study = _ADAPTER.validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        problems += [_describe(problem) for problem in error.errors()]
    if study is not None and not problems:
        problems += _misfits(study)
    if problems or study is None:
        raise _refusal(origin, problems)
    options = to_dict(find_strategy(study.cell)[1])
    return dataclasses.replace(study, cell=dataclasses.replace(study.cell, options=options))


def load_settings(kind: type[_Settings], path: str | Path) -> _Settings:
    """Read a YAML file of other settings than a study's, as strictly; an empty one has the defaults.

    Args:
        kind: The dataclass.
        path: Of the file.

    Raises:
        ConfigError: With every problem of the file, one a line, by dotted path.
    """
    raw = read_yaml(path)
    try:
        return TypeAdapter(kind).validate_json(json.dumps({} if raw is None else raw, default=str))
    except ValidationError as error:
        raise _refusal(str(path), [_describe(problem) for problem in error.errors()]) from None
    except ConfigError as error:
        raise _refusal(str(path), [str(error)]) from None


def check(study: Study) -> None:
    """Whether a study that was made in Python is right, as every one is that was read.

    Raises:
        ConfigError: With every problem, one a line, by dotted path.
    """
    raw = to_dict(study)
    if problems := [*_wrong_names(raw), *_wrong_options(raw)] or _misfits(study):
        raise _refusal("study", problems)


def _refusal(origin: str, problems: Sequence[str]) -> ConfigError:
    lines = "\n".join(f"  {problem}" for problem in problems)
    return ConfigError(f"{origin}: {len(problems)} problem(s)\n{lines}")


def _describe(problem: Any, before: str = "") -> str:
    """One problem that pydantic found in plain data, by its dotted path behind `before`."""
    # Union members (int | None) append their type's name to the path; only real field names are kept.
    path = ".".join(str(part) for part in problem["loc"] if not (isinstance(part, str) and "[" in part))
    path = f"{before}.{path}" if before and path else before or path
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{path}: unknown key; remove it or correct its spelling"
    if problem["type"] in ("missing", "missing_keyword_only_argument"):
        return f"{path}: missing; it has no default"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if problem["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: {message}, got {problem['input']!r}"


def _at(raw: Any, path: str) -> Any:
    """What plain data have at a dotted path; None where there is nothing."""
    for name in path.split("."):
        raw = raw.get(name) if isinstance(raw, dict) else None
    return raw


def _wrong_names(raw: dict[str, Any]) -> Iterator[str]:
    """Names that are no row of their table; what is no name is for the types to say."""
    for path, table in _TABLES.items():
        value = _at(raw, path)
        names = value if isinstance(value, dict) else [value]
        for name in names:
            if isinstance(name, str):
                try:
                    lookup(table, name, path)
                except ConfigError as error:
                    yield str(error)


def _wrong_options(raw: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the options of the strategy that is named, where there is one."""
    name, options = _at(raw, "cell.strategy") or CellSettings().strategy, _at(raw, "cell.options")
    if isinstance(name, str) and name in STRATEGIES and isinstance(options, dict):
        try:
            STRATEGIES[name].read_options(options)
        except ValidationError as error:
            known = ", ".join(to_dict(STRATEGIES[name].options()))
            for problem in error.errors():
                text = _describe(problem, "cell.options")
                yield text.replace("remove it or correct its spelling", f"{name} takes {known}")


def _misfits(study: Study) -> list[str]:
    """Settings that do not go together."""
    spec, problems = task_spec(study.task), _source_misfits(study.task)
    own = study.task.custom
    if own is not None and own.metric is not None and own.kind != METRICS[own.metric].kind:
        problems.append(f"task.custom.metric: {own.metric} does not suit {own.kind}")
    for part in ("cell", "block"):
        wrong = [name for name in getattr(study, part).losses if LOSSES[name].needs not in ("hidden", "entries")]
        if wrong:
            problems.append(f"{part}.losses: {', '.join(wrong)} needs more than the hidden states that a cell has")
    if spec.regression and (wrong := [name for name in study.distill.losses if LOSSES[name].of_classes]):
        problems.append(f"distill.losses: {', '.join(wrong)} is not for regression, whose one score has no softmax")
    if spec.multi_label:
        if "probe" in (*study.cell.losses, *study.block.losses, *study.distill.losses):
            problems.append("losses: probe is for one label a row")
        if study.teacher.kind in ("siamese", "both"):
            problems.append(f"teacher.kind: {study.teacher.kind} is for one label a row; set auto")
        if spec.pairs and any((study.pairs.bm25, study.pairs.near, study.pairs.beyond, study.pairs.random)):
            problems.append("pairs: are for one label a row; name pairs of your own in transfer.files")
    if spec.regression and study.task.balance != "off":
        problems.append("task.balance: is for classes; set off for scores")
    length, most = study.supernet.latency_length, study.task.max_length
    if length is not None and length > most:
        problems.append(
            f"supernet.latency_length: {length} is more than task.max_length, to which rows are cut, {most}"
        )
    return problems + _pair_misfits(study, spec) + find_strategy(study.cell)[1].misfits(study.cell)


def _pair_misfits(study: Study, spec: TaskSpec) -> list[str]:
    """What is for pairs in a task of single texts, and ways to read pairs that do not go together."""
    shape, problems = resolve_shape(study.student, spec), []
    compares, separate = HEADS[shape.head].sides == 2, shape.encoding == "separate"
    if "search" in (study.student.head, study.student.encoding) and len(list_shapes(study.student, spec)) == 1:
        problems.append("student.head, student.encoding: there is nothing to search for single texts; set auto")
    if spec.pairs and not compares and study.distill.losses.get("sentence_vector"):
        problems.append(
            "distill.losses: sentence_vector is, for pairs, for a head that compares; set student.head: auto"
        )
    if compares and not spec.pairs:
        problems.append(f"student.head: {shape.head} is for pairs; set auto, or pool")
    if separate and not (spec.pairs and compares):
        problems.append("student.encoding: separate is for pairs, with a head that compares them; set auto, or joint")
    if study.teacher.kind in ("siamese", "both") and not separate:
        problems.append(
            f"teacher.kind: {study.teacher.kind} is for pairs that are read separately; set auto, or "
            "student.encoding: separate"
        )
    return problems


def _source_misfits(task: TaskSettings) -> list[str]:
    source, problems = SOURCES[task.source], []
    if task.custom is not None and not source.own_data:
        fitting = " or ".join(name for name, one in SOURCES.items() if one.own_data)
        problems.append(f"task.source: must be {fitting} for own data, got {task.source}")
    if task.custom is None and not source.known_tasks:
        problems.append(f"task.source: {task.source} is for name: custom; set source: glue, hub or disk")
    if task.custom is not None and task.source == "files" and task.custom.train is None:
        problems.append("task.custom.train: must name the file of training rows when source is files")
    if source.needs_folder and task.data_dir is None:
        problems.append(f"task.data_dir: must name the folder when source is {task.source}")
    return problems
