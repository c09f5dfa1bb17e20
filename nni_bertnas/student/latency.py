"""What parts of students take on this machine: measured once, in turns, kept in a file, and looked up after that."""

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from filelock import FileLock
from torch import Tensor, nn

from nni_bertnas.artifacts import file_fingerprint, fingerprint, write_whole
from nni_bertnas.machine import num_cores
from nni_bertnas.student.candidates import Candidate
from nni_bertnas.student.cost import Call, Passes, cell_call, measure_latency_ms, model_call
from nni_bertnas.student.runtimes import RUNTIMES, describe_runtime
from search_space import cells, embeddings, heads, operations, student
from search_space.cells import Sequential, build_body, find_space, spell
from search_space.student import StudentConfig

GRID = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # lengths that are measured, all others between them
_ROUNDS, _PASSES = 5, 5  # over all lengths and parts; of each in a row
OTHERS = 0.125  # share of the machine that other work may take meanwhile
_OTHER_BYTES = 3_000_000  # about what the layers of a student read
_TEACHER = "teacher"
_NO_COST = ("_name_or_path", "bertnas_task", "id2label", "label2id", "dropout", "problem_type", "transformers_version")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Something whose latency is asked for.

    Attributes:
        name: Says exactly what is measured, so that it is known again.
        make: Given lengths, its forward passes.
        whole: Whether it is a model. Before each pass of what is not, as much memory is read, and not counted, as the
            layers around it in a student read: alone it would find its weights in the processor's nearest cache, and
            take two thirds of the time.
    """

    name: str
    make: Callable[[Sequence[int]], Passes] = field(compare=False)
    whole: bool = False


def model_part(model: Any, *, pairs: bool, batch: int = 1) -> Part:
    """A whole classifier, teacher or student.

    Args:
        model: In eval mode.
        pairs: Whether its rows are pairs of texts.
        batch: Rows of a pass.
    """
    kind = "student" if isinstance(model.config, StudentConfig) else _TEACHER
    shape = {name: value for name, value in model.config.to_dict().items() if name not in _NO_COST}
    name = f"{kind} {fingerprint(shape, pairs)}"
    return Part(name, lambda lengths: model_call(model, lengths, pairs=pairs, batch=batch), whole=True)


def cell_parts(one: Candidate, width: int, *, sides: int = 1, batch: int = 1) -> list[Part]:
    """What a cell's body is made of: of layers one after another each, of a graph the whole.

    Args:
        one: The cell.
        width: Of the body.
        sides: 2 where the two texts of a row are sequences of their own, each half as long.
        batch: Rows of a pass.
    """

    def part(space: str, architecture: Mapping[str, Any], depth: int) -> Part:
        def make(lengths: Sequence[int]) -> Passes:
            body = build_body(space, architecture, depth, width).eval()
            return cell_call(body, width, lengths, sides=sides, batch=batch)

        name = f"{space}: {spell(architecture)}; {_shape(width, sides)}"
        return Part(name, make)

    if issubclass(find_space(one.space), Sequential):
        layers = (one.architecture[f"layer_{number}"] for number in range(one.depth))
        return [part("sequential", {"layer_0": name}, 1) for name in layers]
    return [part(one.space, one.architecture, one.depth)]


def link_part(width: int, *, sides: int = 1, batch: int = 1) -> Part:
    """The map between two blocks; see :func:`cell_parts`."""

    def make(lengths: Sequence[int]) -> Passes:
        return cell_call(_Map(width), width, lengths, sides=sides, batch=batch)

    return Part(f"map; {_shape(width, sides)}", make)


class _Map(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        return self.map(x)


def _shape(width: int, sides: int) -> str:
    return f"width {width}, {sides} side{'s' * (sides > 1)}"


class LatencyTable:
    """Milliseconds of one forward pass by part and length, of a machine, a runtime, a number of threads and rows.

    A part that is not known is measured in turns with all others that are not, and beside REFERENCE, by which it is
    scaled to the time when that was measured first: the speed of machines drifts, and that of students, which are many
    small operations, otherwise than that of teachers. What was measured while other work took more than an eighth of
    the machine is used by this process, with a warning, and not kept.

    Args:
        folder: Takes one file per machine, runtime, threads and batch; studies share it.
        threads: Of every pass.
        batch: Rows of a pass.
        runtime: A name out of :data:`~nni_bertnas.student.runtimes.RUNTIMES`.

    Attributes:
        path: The file.
        quiet: Whether nothing else ran while the last parts were measured.
    """

    def __init__(self, folder: Path, *, threads: int = 1, batch: int = 1, runtime: str = "torch") -> None:
        self.threads, self.batch, self.runtime = threads, batch, runtime
        self.machine = {**describe_machine(), "runtime": describe_runtime(runtime)}
        self.path = folder / f"latency-{fingerprint(self.machine, threads, batch)}.json"
        self.quiet = True
        self._start = [NOTHING] if RUNTIMES[runtime].starts else []
        self._known = self._read()
        self._loose: dict[str, dict[int, float]] = {}  # beside other work

    def _read(self) -> dict[str, dict[int, float]]:
        try:
            parts = json.loads(self.path.read_text(encoding="utf-8"))["parts"]
            return {name: {int(n): float(ms) for n, ms in row.items()} for name, row in parts.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("%s is damaged (%s) and is made anew", self.path, error)
            return {}

    def latency_ms(self, parts: Mapping[str, Sequence[Part]], lengths: Sequence[int]) -> dict[str, float]:
        """Median over some lengths, of each the sum over its parts.

        Args:
            parts: By name.
            lengths: Real sequence lengths.
        """
        grid = around(lengths)
        self.measure([part for own in parts.values() for part in own], grid)
        found = {}
        for name, own in parts.items():
            rows = [[self.at(part, length) for length in grid] for part in own]
            total = np.sum(rows, axis=0) if rows else np.zeros(len(grid))
            found[name] = float(median(np.interp(lengths, grid, total)))
        return found

    def at(self, part: Part, length: int) -> float:
        """Milliseconds at a length of GRID that was measured; of what is no model, without the start of a pass."""
        start = 0.0 if part.whole else sum(self._measured(one.name, length) for one in self._start)
        return max(0.0, self._measured(part.name, length) - start)

    def _measured(self, name: str, length: int) -> float:
        known = self._known.get(name, {})
        return known[length] if length in known else self._loose[name][length]

    def lengths(self, part: Part) -> list[int]:
        """At which a part was measured."""
        return sorted({*self._known.get(part.name, {}), *self._loose.get(part.name, {})})

    def measure(self, parts: Sequence[Part], grid: Sequence[int]) -> None:
        """Measure what is not known of some parts.

        Args:
            parts: To be known afterwards.
            grid: Lengths out of GRID.
        """
        reference = REFERENCE.name
        wanted = {part.name: part for part in (REFERENCE, *self._start, *parts)}
        missing = {length: [name for name in wanted if length not in self.lengths(wanted[name])] for length in grid}
        if not any(missing.values()):
            return
        watch = OtherWork()
        asked = {length: {reference: None, **dict.fromkeys(names)} for length, names in missing.items() if names}
        made = {
            name: RUNTIMES[self.runtime].compile(part.make(lengths), self.threads)
            for name, part in wanted.items()
            if (lengths := [length for length, names in asked.items() if name in names])
        }
        calls: dict[int, dict[str, Call]] = {
            length: {name: made[name] for name in names} for length, names in asked.items()
        }
        content = torch.zeros(_OTHER_BYTES // 4)
        before: dict[str, Call] = {
            name: lambda length: content.sum() for name, part in wanted.items() if not part.whole
        }
        times: dict[int, list[dict[str, float]]] = {length: [] for length in calls}
        for _ in range(_ROUNDS):  # so that a slow moment of the machine meets all lengths and parts alike
            for length, own in calls.items():
                times[length].append(
                    measure_latency_ms(own, [length] * _PASSES, threads=self.threads, run=_PASSES, before=before)
                )
        found: dict[str, dict[int, float]] = {}
        for length, rounds in times.items():
            now = {name: median(one[name] for one in rounds) for name in calls[length]}
            scale = self._known.get(reference, {}).get(length, now[reference]) / now[reference]
            for name in missing[length]:
                found.setdefault(name, {})[length] = now[name] * scale
        self.quiet = not watch.much()
        if self.quiet:
            self._keep(found)
            return
        _log.warning(
            "other work took %.1f cores while latencies were measured: they are not kept, and may mislead; run bertnas "
            "profile STUDY where nothing else runs",
            watch.cores(),
        )
        for name, row in found.items():
            self._loose.setdefault(name, {}).update(row)

    def _keep(self, found: Mapping[str, Mapping[int, float]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            for known in (self._read(), found):
                for name, row in known.items():
                    self._known[name] = {**self._known.get(name, {}), **row}
            content = {"machine": self.machine, "threads": self.threads, "batch": self.batch, "parts": self._known}
            write_whole(self.path, json.dumps(content, indent=1))


def _reference(lengths: Sequence[int]) -> Passes:
    return cell_call(build_body("layers", _LAYERS, len(_LAYERS), 192).eval(), 192, lengths)


_LAYERS = {"layer_0": "convolution_3", "layer_1": "attention_4"}
REFERENCE = Part("reference: a convolution and attention, width 192, one row", _reference)

NOTHING = Part("nothing, width 192, one row", lambda lengths: cell_call(_Same().eval(), 192, lengths))


class _Same(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x.neg()


def around(lengths: Sequence[int]) -> list[int]:
    """The lengths of GRID between which all of some lie."""
    least = max((one for one in GRID if one <= min(lengths)), default=GRID[0])
    most = min((one for one in GRID if one >= max(lengths)), default=GRID[-1])
    return [one for one in GRID if least <= one <= most]


@cache
def describe_machine() -> dict[str, Any]:
    """What a latency depends on beside the model: the processor, torch, and the code of the search space."""
    code = [file_fingerprint(Path(str(module.__file__))) for module in (operations, cells, embeddings, heads, student)]
    return {
        "processor": _processor(),
        "cores": num_cores(),
        "system": platform.system(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "code": fingerprint(*code),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class OtherWork:
    """How much of the machine others take from now on."""

    def __init__(self) -> None:
        self._start, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    def cores(self) -> float:
        """Cores' worth of others' work since the start; what a virtual machine is not given counts as others'."""
        seconds = max(1e-3, time.monotonic() - self._start)
        return max(0.0, (_busy_seconds() - self._busy) - (_own_seconds() - self._own)) / seconds

    def much(self) -> bool:
        """Whether that is so much of the machine that what was measured meanwhile may mislead."""
        return self.cores() > OTHERS * (psutil.cpu_count() or 1)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _own_seconds() -> float:
    own = os.times()
    return own.user + own.system
