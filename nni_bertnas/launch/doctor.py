"""What a machine lacks for a study: each check says what it found, and what to do where that is not enough."""

import importlib.metadata
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from nni_bertnas.errors import BertnasError
from nni_bertnas.machine import best_device, memory_bytes, num_cores

_PORT = 8080  # NNI's
_LOW_GIGABYTES = 5.0  # of disk
_LOW_MEMORY = 4.0
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        state: `ok`; `note`: it works, but you may want to know; `bad`: studies will fail.
        text: What was found.
        remedy: What to do; empty where it is ok.
    """

    state: Literal["ok", "note", "bad"]
    text: str
    remedy: str = ""


def versions(folder: Path) -> Finding:
    """Python, and what the package asks for."""
    wrong = []
    for line in importlib.metadata.requires("nni-bertnas") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted} is missing")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted} is wanted, {found} is there")
    shown = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "nni", "transformers"))
    text = f"Python {platform.python_version()}, {shown}"
    if wrong:
        return Finding(
            "bad", f"{text}; {'; '.join(wrong)}", "pip install --upgrade nni-bertnas, in a fresh environment"
        )
    return Finding("ok", text)


def machine(folder: Path) -> Finding:
    """Cores, memory, accelerator."""
    memory, cores = memory_bytes() / 1e9, num_cores()
    text = f"{cores} core(s), {memory:.0f} GB of memory, {best_device().type}"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if memory < _LOW_MEMORY:
        return Finding("note", text, "set nni.concurrency: 1; a trial takes about 2 GB")
    if load > cores:
        return Finding("note", f"{text}; load {load:.1f}", "latencies are measured right only where nothing else runs")
    return Finding("ok", text)


def threads(folder: Path) -> Finding:
    """What OpenMP is told."""
    names = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    text = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
    few = os.environ.get("OMP_NUM_THREADS", "")
    if few.isdigit() and int(few) < num_cores():
        return Finding("note", text, f"unset OMP_NUM_THREADS to let a study use all {num_cores()} cores")
    return Finding("ok", text)


def disk(folder: Path) -> Finding:
    """Room and rights where results and temporary files go."""
    from nni_bertnas.launch.manager import writable

    free = {place: shutil.disk_usage(place).free / 1e9 for place in (folder, Path(tempfile.gettempdir()))}
    text = ", ".join(f"{size:.0f} GB free in {place}" for place, size in free.items())
    if closed := [str(place) for place in free if not writable(place)]:
        return Finding("bad", f"{text}; {', '.join(closed)} cannot be written", "work in another folder, or set TMPDIR")
    if min(free.values()) < _LOW_GIGABYTES:
        return Finding("note", text, "set features.max_gigabytes, or runs_dir to another disk")
    return Finding("ok", text)


def home(folder: Path) -> Finding:
    """Where NNI keeps its list of experiments."""
    from nni_bertnas.launch.manager import writable

    if writable(Path.home()):
        return Finding("ok", str(Path.home()))
    return Finding(
        "note",
        f"{Path.home()} cannot be written",
        "bertnas keeps NNI's files in the temporary folder; for nnictl set HOME to a folder that can be",
    )


def proxy(folder: Path) -> Finding:
    """Proxies, which would stand between NNI and itself."""
    named = sorted(name for name in os.environ if name.lower() in _PROXIES)
    if not named:
        return Finding("ok", "none")
    return Finding(
        "note", ", ".join(named), "bertnas goes past them on this machine; for nnictl set NO_PROXY=localhost"
    )


def nni(folder: Path) -> Finding:
    """Whether NNI's manager starts here, on which port, and how fast."""
    from nni.experiment import Experiment
    from nni.experiment.config import AlgorithmConfig, ExperimentConfig

    from nni_bertnas.launch.manager import manager

    logging.getLogger("nni").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as place:
        config = ExperimentConfig("local")
        config.trial_command, config.trial_code_directory = f"{sys.executable} -V", place
        config.trial_concurrency, config.max_trial_number = 1, 1
        config.tuner, config.search_space = AlgorithmConfig(name="Random"), {}
        config.experiment_working_directory = place
        before = time.perf_counter()
        try:
            with manager(Experiment(config), _PORT) as port:
                seconds = time.perf_counter() - before
        except BertnasError as error:
            return Finding(
                "bad", str(error), "see that nothing forbids node, the program inside the package nni, to run"
            )
    text = f"started in {seconds:.1f} s on port {port}"
    if port != _PORT:
        return Finding("note", text, f"{_PORT} is taken; nni.port says from which one on a free one is looked for")
    return Finding("ok", text)


CHECKS: Mapping[str, Callable[[Path], Finding]] = {
    "versions": versions,
    "machine": machine,
    "threads": threads,
    "disk": disk,
    "home": home,
    "proxy": proxy,
    "NNI": nni,
}
