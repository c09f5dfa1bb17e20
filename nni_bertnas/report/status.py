"""How far a run is, read from its files alone: nothing heavy is loaded, nothing locked or written."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from nni_bertnas.artifacts import RESULT
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.report.progress import spell_seconds
from nni_bertnas.tracking.histories import (
    HISTORY,
    WEB_UI,
    is_alive,
    last_epoch,
    read_state,
    record_name,
    seconds_since,
)
from nni_bertnas.tracking.slurm import Task, is_live
from nni_bertnas.yaml_files import read_yaml

Facts = dict[str, Any]


def find_root(study: Path) -> Path:
    """The folder of a study's run, without checking the rest of the study.

    Raises:
        ConfigError: The file names none.
        PhaseError: Nothing was made yet.
    """
    try:
        fields = read_yaml(study)
        root = Path(os.path.expanduser(fields.get("runs_dir", "runs"))) / fields["name"]
    except (ConfigError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{study}: is no study with a name ({error}); see: bertnas validate {study}") from error
    if not root.is_dir():
        raise PhaseError(f"{root} is not there yet; begin with: bertnas run {study}")
    return root


def read_status(
    root: Path, plan: Mapping[str, Any], jobs: Mapping[str, str] | None = None, tasks: Sequence[Task] | None = None
) -> Facts:
    """How far every stage of a run is.

    Args:
        root: Of the run.
        plan: What the study asks for, see :mod:`~nni_bertnas.stages.outline`.
        jobs: Of Slurm, by name, that the run was handed over as.
        tasks: What Slurm says of them; None: it could not be asked.
    """
    times, now = _read_json(root / "seconds.json"), time.time()
    stages = [_read_stage(root, plan, name, times.get(name), now, tasks) for name in plan["stages"]]
    left = [one["seconds_left"] for one in stages if one["units"] != one["done"] + one["other_settings"]]
    return {
        "root": str(root),
        "web_ui": _web_ui(root, [unit for one in stages for unit in one["running"]]),
        "stages": stages,
        "slurm": _slurm(jobs or {}, tasks),
        "seconds_left": None if None in left else sum(left),
        "disk_bytes": {path.name: _bytes(path) for path in sorted(root.iterdir()) if path.is_dir()},
    }


def _slurm(jobs: Mapping[str, str], tasks: Sequence[Task] | None) -> list[Facts]:
    """Every job with how many of its tasks are in which state; no state where Slurm does not say, or no longer."""
    found = []
    for name, job in jobs.items():
        own = [task for task in tasks or () if task.job == job]
        reasons = sorted({task.reason for task in own if task.state == "PENDING"} - {"None"})
        states = dict(Counter(task.state.lower() for task in own))
        found.append({"job": name, "id": job, "states": states, "reasons": reasons, "asked": tasks is not None})
    return found


def _web_ui(root: Path, running: Iterable[Facts]) -> str | None:
    """The address of the experiment that `bertnas` started, or that a running trial belongs to; None: none is alive."""
    own = read_state(root / HISTORY, WEB_UI)
    if is_alive(own):
        return str(own["address"])
    known = _read_json(Path.home() / "nni-experiments" / ".experiment")  # NNI's own list, of `nnictl` too
    for unit in running:
        one = known.get(unit["experiment"], {})
        if isinstance(one.get("pid"), int) and psutil.pid_exists(one["pid"]):
            return f"http://127.0.0.1:{one['port']}"
    return None


def _read_stage(
    root: Path, plan: Mapping[str, Any], name: str, wall: float | None, now: float, tasks: Sequence[Task] | None
) -> Facts:
    units, at_once = plan["stages"][name]["units"], plan["stages"][name]["at_once"]
    found = [_read_unit(root, name, unit, plan["study"], now, tasks) for unit in units]
    by_state = {state: [one for one in found if one["state"] == state] for state in ("done", "other", "running")}
    rest = [one for one in found if one["state"] in ("waiting", "stopped")]
    spans = [(one["since"], one["since"] + one["seconds"]) for one in found if one["since"] and one["seconds"]]
    took = [one["seconds"] for one in by_state["done"] if one["seconds"]]
    mean = sum(took) / len(took) if took else None
    seconds_left = None
    if not rest and not by_state["running"]:
        seconds_left = 0.0
    elif mean is not None:
        under_way = sum(max(0.0, mean - one["seconds"]) for one in by_state["running"])
        seconds_left = (under_way + mean * len(rest)) / min(at_once, len(rest) + len(by_state["running"]))
    return {
        "name": name,
        "units": len(units),
        "done": len(by_state["done"]),
        "other_settings": len(by_state["other"]),
        "running": by_state["running"],
        "stopped": [one for one in rest if one["state"] == "stopped"],
        "left": len(rest),
        "seconds": max(_union(spans), wall or 0.0) if spans else wall,  # a stage takes longer than its units
        "seconds_left": seconds_left,
    }


def _read_unit(root: Path, stage: str, unit: str, mark: str, now: float, tasks: Sequence[Task] | None) -> Facts:
    """One unit: done, running, stopped, waiting, or there with other settings and so perhaps made anew."""
    folder, name = root / HISTORY, record_name(stage, unit)
    state, result = read_state(folder, name), root / stage / unit / RESULT
    since, seconds, epoch = state.get("since"), state.get("seconds"), last_epoch(folder, name) or {}
    alive = is_alive(state) if state.get("state") == "working" else False
    if alive is None and tasks is not None and "slurm_job" in state:
        alive = is_live(state["slurm_job"], tasks)
    if alive or alive is None:
        found = "running"
        seconds = seconds_since(state) if alive else max(0.0, now - state["since"])  # clocks are set meanwhile
    elif state.get("state") == "working":  # its process was killed
        found, seconds = "stopped", epoch.get("seconds")
    elif result.is_file():
        found = "done" if state.get("study", mark) == mark else "other"
        seconds = _read_json(result).get("seconds") if seconds is None else seconds
    else:
        found = "stopped" if state.get("state") == "stopped" else "waiting"
    loss = next((value for key, value in epoch.items() if key.rpartition("/")[2] == "train_loss"), None)
    return {
        "unit": unit,
        "state": found,
        "alive": alive,
        "slurm_job": state.get("slurm_job") if found == "running" else None,
        "experiment": state.get("experiment"),
        "since": since,
        "seconds": seconds,
        "epoch": epoch.get("epoch"),
        "loss": loss,
    }


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds that at least one of some spans of time covers."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def _read_json(path: Path) -> Facts:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _bytes(folder: Path) -> int:
    """Of all files in a folder, which may come and go meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total


def show_status(status: Facts, console: Console) -> None:
    """Print it for people."""
    table = Table(title=status["root"])
    for column in ("stage", "done", "running", "left", "wall time", "time left", "on disk"):
        table.add_column(column, justify="right" if column != "stage" else "left")
    for one in status["stages"]:
        size = status["disk_bytes"].get(one["name"])
        other = f" (+{one['other_settings']})" if one["other_settings"] else ""
        table.add_row(
            one["name"],
            f"{one['done']} of {one['units']}{other}",
            str(len(one["running"]) or ""),
            str(one["left"] or ""),
            _spell(one["seconds"]),
            "" if one["seconds_left"] == 0 else _spell(one["seconds_left"], "?"),
            "" if size is None else f"{size / 1e6:,.1f} MB",
        )
    console.print(table)
    for one in status["stages"]:
        for unit in (*one["running"], *one["stopped"]):
            console.print(_spell_unit(one["name"], unit), highlight=False, soft_wrap=True)
    for job in status["slurm"]:
        console.print(_spell_job(job), highlight=False, soft_wrap=True)
    shown = {one["name"] for one in status["stages"]}
    if others := {name: size for name, size in status["disk_bytes"].items() if name not in shown}:
        spelt = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in others.items())
        console.print(f"beside them on disk: {spelt}", highlight=False)
    if any(one["other_settings"] for one in status["stages"]):
        console.print("(+n): made with other settings; reused where they change nothing", highlight=False)
    if status["web_ui"]:
        console.print(f"NNI's web UI: {status['web_ui']}", highlight=False)


def _spell_job(job: Facts) -> str:
    states = ", ".join(f"{count} {state}" for state, count in job["states"].items())
    reasons = f" ({', '.join(job['reasons'])})" if job["reasons"] else ""
    unknown = "no longer in its queue" if job["asked"] else "it cannot be asked from here"
    return f"Slurm's job {job['id']}, {job['job']}: {states or unknown}{reasons}"


def _spell_unit(stage: str, unit: Facts) -> str:
    since = "" if unit["since"] is None else time.strftime(" since %H:%M:%S", time.localtime(unit["since"]))
    if unit["state"] == "stopped":
        what = f"stopped, begun{since.replace(' since', ' at')}; no process works on it"
    else:
        where = f" in Slurm's job {unit['slurm_job']}" if unit["slurm_job"] else ""
        what = f"running{since}{where}" + (" on another machine" if unit["alive"] is None else "")
    epoch = "" if unit["epoch"] is None else f", epoch {unit['epoch'] + 1}"
    loss = "" if unit["loss"] is None else f", loss {unit['loss']:.4f}"
    return f"{stage} {unit['unit']}".strip() + f": {what}{epoch}{loss}"


def _spell(seconds: float | None, unknown: str = "") -> str:
    return unknown if seconds is None else spell_seconds(seconds)
