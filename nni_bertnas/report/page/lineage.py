"""Which result came from which, and with what it was made."""

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nni_bertnas import __version__
from nni_bertnas.config import to_dict
from nni_bertnas.errors import ConfigError
from nni_bertnas.machine import best_device, memory_bytes
from nni_bertnas.stages import STAGES
from nni_bertnas.stages.run import Result, Run
from nni_bertnas.student.latency import describe_machine
from nni_bertnas.student.runtimes import RUNTIMES
from nni_bertnas.yaml_files import read_yaml

_PACKAGES = ("torch", "transformers", "pytorch-lightning", "nni", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True)
class Link:
    """A result with those that it builds on.

    Attributes:
        name: Stage and unit.
        fingerprint: Of the result.
        seconds: It took; None where it does not say.
        sources: Names and fingerprints.
    """

    name: str
    fingerprint: str
    seconds: float | None
    sources: tuple[tuple[str, str], ...]


def lineage(run: Run) -> list[Link]:
    """Every finished result, stage by stage."""
    found: dict[str, dict[str, Result]] = {}
    for stage in STAGES:
        alone = run.read(stage)
        found[stage] = {stage: alone} if alone is not None else {
            f"{stage} {unit}": result for unit, (_, result) in run.results(stage).items()
        }  # fmt: skip
    return [
        Link(
            name,
            str(result.get("fingerprint", "")),
            result.get("seconds"),
            tuple(
                (source, str(other.get("fingerprint", "")))
                for before in STAGES[stage].on
                for source, other in found[before].items()
                if _fits(result, other)
            ),
        )
        for stage, results in found.items()
        for name, result in results.items()
    ]


def _fits(result: Result, source: Result) -> bool:
    """A block's result comes from the same block's alone, a seed's from the same seed's."""
    return all(result.get(key) in (None, source.get(key)) for key in ("block", "seed") if key in source)


def differing(run: Run, folder: Path) -> list[str]:
    """The fields of the study, by dotted path, that are not those that a result was made with.

    Args:
        run: Of the study.
        folder: Of the result.
    """
    try:
        before = _flat(read_yaml(folder / "study.yml"))
    except ConfigError:
        return []
    now = _flat(to_dict(run.study))
    return [name for name in sorted(now | before) if now.get(name) != before.get(name)]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {
        name: leaf for key, one in value.items() for name, leaf in _flat(one, f"{path}.{key}" if path else key).items()
    }


def versions() -> dict[str, str]:
    """Of what this report was made with."""
    found = {"nni_bertnas": __version__, "Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine(run: Run) -> dict[str, str]:
    """On which this report was made."""
    about = describe_machine()
    return {
        "processor": f"{about['processor']}, {about['cores']} cores, {about['instructions']}",
        "memory": f"{memory_bytes() / 2**30:.0f} GiB",
        "accelerator": "none" if best_device().type == "cpu" else str(best_device()),
        "system": f"{platform.system()} {platform.machine()}",
        "threads of a latency": str(run.study.supernet.latency_threads),
        "runtime of a latency": RUNTIMES[run.study.supernet.latency_runtime].title,
    }
