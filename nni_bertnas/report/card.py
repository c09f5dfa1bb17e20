"""The model card that goes with an exported student."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from nni_bertnas import __version__
from nni_bertnas.artifacts import read_result
from nni_bertnas.data.metrics import METRICS, title
from nni_bertnas.data.models import resolve_model
from nni_bertnas.errors import BertnasError
from nni_bertnas.report.page.intervals import score_intervals
from nni_bertnas.report.page.lineage import machine
from nni_bertnas.report.page.predictions import predict_splits
from nni_bertnas.report.page.statistics import Interval
from nni_bertnas.report.results import runtime_of
from nni_bertnas.stages.run import Result, Run
from search_space.cells import spell

_PIPELINE = """\
```python
from transformers import pipeline

classify = pipeline("text-classification", model="FOLDER", trust_remote_code=True, top_k=None)
classify({example}, truncation=True)
```

`trust_remote_code` runs the model code that lies in this folder."""


def model_card(run: Run, folder: Path) -> str | None:
    """The card of a student as Markdown; None of a model that is no student of the run.

    Args:
        run: That made it.
        folder: Of the saved student.
    """
    result = read_result(folder.parent)
    if result is None or "architecture" not in result:
        return None
    task = run.study.task
    example = '{"text": "one text", "text_pair": "another"}' if run.task.pairs else '"a text"'
    splits = {name: f"{len(rows):,}" for name, rows in run.data.splits.items()}
    parts = [
        _front_matter(run),
        f"# {run.study.name}: a student of {run.study.teacher.model}",
        f"It reads {' and '.join(f'`{name}`' for name in run.task.texts)} and gives {_answers(run)} "
        f"(task `{task.name}`). It was found by block-wise architecture search and distilled from its teacher by "
        f"[nni_bertnas](https://pypi.org/project/nni-bertnas/) {__version__}.",
        "## Use",
        _PIPELINE.replace("{example}", example),
        f"Texts are cut to {task.max_length} word pieces.",
        "## Scores",
        *_scores(run, folder, result),
        "## Speed and size",
        *_costs(run, result),
        "## Architecture",
        "\n".join(f"- block {number}: {spell(one)}" for number, one in enumerate(result["architecture"])),
        f"Width {run.study.student.hidden_size}, word matrix of rank {run.study.student.embedding_size}, "
        f"head `{result['shape']['head']}`, encoding `{result['shape']['encoding']}`.",
        "## Data",
        f"Source `{task.source}`; rows: {', '.join(f'{name} {count}' for name, count in splits.items())}. "
        "Its targets are the teacher's answers, on these rows and on what unlabelled text the study names.",
        "## Limits",
        "It is for texts like those it learnt from; on others neither it nor its teacher was tried. It carries over "
        "what its teacher learnt, biases too. A text in a language that the teacher does not know gets an answer, too.",
        "## Licence",
        f"Of the teacher `{run.study.teacher.model}`, from whose weights it was made: "
        f"{_licence(run) or 'not known here'}. What holds for the teacher and for the data holds for the student.",
        "## Made again",
        f"`bertnas run study.yml` with this study (result {result.get('fingerprint', '')}):",
        f"```yaml\n{(folder.parent / 'study.yml').read_text(encoding='utf-8').strip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(run: Run) -> str:
    licence = _licence(run)
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["nni-bertnas", "knowledge-distillation", "neural-architecture-search"],
        **({"license": licence} if licence else {}),
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _answers(run: Run) -> str:
    names = ", ".join(map(str, run.data.label_names))
    if run.task.regression:
        return "a score"
    return f"any of the labels {names}" if run.task.multi_label else f"one of the labels {names}"


def _scores(run: Run, folder: Path, result: Result) -> Iterator[str]:
    metric, splits = run.task.metric, ["dev", *run.data.final_splits]
    try:
        own = predict_splits(run, folder, splits[:2], METRICS[metric].kind)
    except BertnasError:
        own = {}
    lines = ["| split, score | teacher | student | student less teacher |", "|---|---|---|---|"]
    for split, name in itertools.product(splits, run.task.metrics):
        teacher, student = (result[side][f"{split}_{name}"] for side in ("teacher", "student"))
        found = score_intervals(run.root, name, (teacher, student), len(run.data.splits[split]), own.get(split))
        lines.append(
            f"| {split} ({len(run.data.splits[split]):,} rows), {title(name, run.data.label_names)}, % "
            f"| {_percent(teacher, found.teacher)} | {_percent(student, found.student)} "
            f"| {_percent(student - teacher, found.difference)} |"
        )
    yield "\n".join(lines)
    yield "In brackets 95 % intervals. The student's epoch was chosen by dev; no choice looked at the other splits."


def _percent(value: float, interval: Interval | None) -> str:
    around = "" if interval is None else f" ({100 * interval.low:.2f} to {100 * interval.high:.2f})"
    return f"{100 * value:.2f}{around}" if math.isfinite(value) else "-"


def _costs(run: Run, result: Result) -> Iterator[str]:
    teacher, student = result["teacher"], result["student"]
    rows = (
        ("parameters", "num_params", 0),
        ("FLOPs at batch 1", "num_flops", 0),
        ("latency at batch 1, ms", "latency_ms", 2),
    )
    lines = ["| | teacher | student |", "|---|---|---|"]
    for name, key, digits in rows:
        shown = (f"{side[key]:,.{digits}f}" for side in (teacher, student))
        lines.append(f"| {name} | {' | '.join(shown)} |")
    yield "\n".join(lines)
    about = machine(run)
    yield (
        f"{result['speedup']:.1f} times as fast as the teacher in {runtime_of(result)}, "
        f"{result['latency_threads']} thread(s), at {_lengths(run)}, both in turns. "
        f"Where this card was written: {about['processor']}, {about['system']}."
    )


def _lengths(run: Run) -> str:
    named = run.study.supernet.latency_length
    return "the lengths of the task's own rows" if named is None else f"{named} word pieces"


def _licence(run: Run) -> str:
    """Of the teacher's model card, where it lies in the model's folder; empty where nothing says."""
    try:
        text = (Path(resolve_model(run.study.teacher.model)) / "README.md").read_text(encoding="utf-8")
        fields = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
    except (OSError, yaml.YAMLError, IndexError, BertnasError):
        return ""
    return str(fields.get("license", "")) if isinstance(fields, dict) else ""
