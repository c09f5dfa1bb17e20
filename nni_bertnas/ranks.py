"""Processes of this machine that do one piece of work together, a GPU each where there are any.

This process is rank 0: it alone holds locks, writes and reports. The other ranks are started when they are first needed
and are handed functions to call. What torch's processes agree by is a file in a folder of our own, and they talk over
the loopback: no port is open to others.
"""

import contextlib
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from nni_bertnas import quiet_libraries
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.machine import best_device

_TIMEOUT = timedelta(minutes=10)  # of one exchange
_END_SECONDS = 5.0
_LOG_LINES = 5
_START = "from nni_bertnas.ranks import serve; serve()"
_active: "Ranks | None" = None  # of this process, while a unit is made
_line: Connection | None = None  # of another rank, to rank 0
_in_step = False  # whether all ranks are at the same


class Ranks:
    """The other ranks, as rank 0 sees them.

    Args:
        size: Ranks in all.
        field: The setting that says so.
    """

    def __init__(self, size: int, field: str) -> None:
        self.size, self.field = size, field
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lines: list[Connection] = []
        self._folder: Path | None = None
        self._heard: list[Any] = []
        self._answers: dict[int, tuple[bool, Any]] = {}

    @contextlib.contextmanager
    def working(self, function: Callable[..., Any], *arguments: Any) -> Iterator[list[Any]]:
        """Let every other rank call a function as long as the block lasts.

        Args:
            function: Of a module.
            arguments: Are copied to every rank.

        Yields:
            A list that holds what the calls gave, by rank, once the block has ended.

        Raises:
            PhaseError: A rank ended, or raised.
        """
        content = pickle.dumps((function, arguments))
        results: list[Any] = []
        try:
            self._start()
            for line in self._lines:
                line.send_bytes(content)
            yield results
            results += [self._receive(rank) for rank in range(1, self.size)]
        except BaseException as error:  # the others wait for this one, or this one waited for them
            if isinstance(error, RuntimeError) and _lost(error):
                self._blame(error)
            raise
        finally:
            if len(results) < self.size - 1:
                self.close()

    def _start(self) -> None:
        if self._processes:
            return
        self._check()
        self._folder = Path(tempfile.mkdtemp(prefix="bertnas-ranks-"))  # nobody else may connect
        threads = max(1, torch.get_num_threads() // self.size)
        # No trial of NNI's, whoever this process is.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NNI_")}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        for rank in range(1, self.size):
            own, other = Pipe()
            told = other.fileno(), self._folder, rank, self.size, threads
            command = [sys.executable, "-c", _START, *map(str, told)]
            with (self._folder / f"{rank}.log").open("wb") as log:
                process = subprocess.Popen(
                    command, env=environment, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, stdout=log,
                    stderr=log, start_new_session=True,
                )  # fmt: skip
            other.close()
            self._processes.append(process)
            self._lines.append(own)
        for rank in range(1, self.size):
            self._receive(rank)  # that it has loaded what it needs
        _join(self._folder, 0, self.size)

    def _check(self) -> None:
        device = best_device().type
        if device not in ("cpu", "cuda"):
            raise ConfigError(f"{self.field} must be 1 on {device}, got {self.size}")
        if device == "cuda" and torch.cuda.device_count() < self.size:
            raise ConfigError(
                f"{self.field} must be at most {torch.cuda.device_count()}, the GPUs that this process sees, got "
                f"{self.size}"
            )

    def heard(self) -> list[Any]:
        """What other ranks have told since the last call, see :func:`tell`."""
        for rank, line in enumerate(self._lines, 1):
            while rank not in self._answers and line.poll():
                self._read(rank)
        found, self._heard = self._heard, []
        return found

    def _read(self, rank: int) -> None:
        try:
            good, result = pickle.loads(self._lines[rank - 1].recv_bytes())
        except (EOFError, OSError):
            code = self._processes[rank - 1].wait()
            good, result = False, f"it ended with {code}: {self._last_words(rank)}"
        if good is None:
            self._heard.append(result)
        else:
            self._answers[rank] = good, result

    def _receive(self, rank: int) -> Any:
        while rank not in self._answers:
            self._read(rank)
        good, result = self._answers.pop(rank)
        if not good:
            raise PhaseError(
                f"process {rank} of {self.size} failed, {result}; run the same again, or set {self.field} to 1"
            )
        return result

    def _last_words(self, rank: int) -> str:
        assert self._folder is not None
        lines = (self._folder / f"{rank}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_LOG_LINES:]) or "without a word"

    def _blame(self, error: Exception) -> None:
        """Raise for the rank that failed first, where this one failed for its sake alone."""
        time.sleep(0.5)  # that the message is there
        for rank, line in enumerate(self._lines, 1):
            if rank in self._answers or line.poll() or self._processes[rank - 1].poll() is not None:
                try:
                    self._receive(rank)
                except PhaseError as first:
                    raise first from error

    def close(self) -> None:
        """End the other ranks; they are started anew when they are needed again."""
        for line in self._lines:
            line.close()
        for process in self._processes:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes, self._lines, self._answers = [], [], {}
        if distributed.is_initialized():
            distributed.destroy_process_group()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


@contextlib.contextmanager
def together(size: int, field: str) -> Iterator[None]:
    """Let what is trained in the block be trained by so many processes.

    Args:
        size: Of this process and its helpers; 1: there are none.
        field: The setting that says so.
    """
    global _active
    before, _active = _active, Ranks(size, field) if size > 1 else None
    try:
        yield
    finally:
        if _active is not None:
            _active.close()
        _active = before


def active() -> Ranks | None:
    """The other ranks; None where this process works by itself."""
    return None if _in_step else _active


@contextlib.contextmanager
def in_step() -> Iterator[None]:
    """All ranks are in this block at the same time; outside of it every process is the only one."""
    global _in_step
    _in_step = True
    try:
        yield
    finally:
        _in_step = False


def tell(value: Any) -> None:
    """Let rank 0 know of a part of what this other rank does, before it is done with all."""
    _say(None, value)


def _say(good: bool | None, value: Any) -> None:
    assert _line is not None
    _line.send_bytes(pickle.dumps((good, value)))  # not by its own means, which would share tensors' memory


def size() -> int:
    """How many processes do the same as this one."""
    return distributed.get_world_size() if _in_step else 1


def rank() -> int:
    """The number of this process among them."""
    return number() if _in_step else 0


def number() -> int:
    """The number of this process, whatever the others do."""
    return distributed.get_rank()


def shares(counts: torch.Tensor) -> torch.Tensor:
    """What the means of this rank weigh, so that the mean over ranks is the mean over all that all ranks have.

    Args:
        counts: What this rank's means are over, `(n,)`.

    Returns:
        `(n,)`, in single precision: counts times ranks over the counts of all ranks.
    """
    counts = counts.detach().float()
    totals = counts.clone()
    distributed.all_reduce(totals)
    return counts * size() / totals.clamp(min=1e-9)


def gathered(items: list[Any]) -> list[Any]:
    """The items of all ranks, rank after rank."""
    if size() == 1:
        return items
    found: list[Any] = [None] * size()
    distributed.all_gather_object(found, items)
    return [item for part in found for item in part]


def from_first(value: Any) -> Any:
    """What rank 0 has in place of this rank's own."""
    if size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Make every gradient the mean over ranks; a rank that has none counts as zeros, and where none has one, none gets.

    Of sparse gradients the rows of all ranks are put together, so that the whole matrix never travels.
    """
    trained = [one for one in parameters if one.requires_grad]
    kinds = torch.tensor([0 if one.grad is None else 1 + one.grad.is_sparse for one in trained])
    distributed.all_reduce(kinds, distributed.ReduceOp.MAX)
    dense = [one for one, kind in zip(trained, kinds.tolist(), strict=True) if kind == 1]
    for one in dense:
        if one.grad is None:
            one.grad = torch.zeros_like(one)
    for some in _buckets([one.grad for one in dense if one.grad is not None]):
        flat = torch.cat([gradient.reshape(-1) for gradient in some])
        distributed.all_reduce(flat)
        parts = flat.div_(size()).split([gradient.numel() for gradient in some])
        for gradient, part in zip(some, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
    for one, kind in zip(trained, kinds.tolist(), strict=True):
        if kind == 2:
            one.grad = _all_rows(one)


_BUCKET = 1 << 24  # entries, that a large teacher's gradients are not all there twice


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    some: list[torch.Tensor] = []
    for gradient in gradients:
        if some and sum(one.numel() for one in some) + gradient.numel() > _BUCKET:
            yield some
            some = []
        some.append(gradient)
    if some:
        yield some


def _all_rows(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The mean over ranks of a sparse gradient."""
    width, device = parameter.shape[1:], parameter.device
    if parameter.grad is None:
        rows, values = torch.zeros(0, dtype=torch.int64, device=device), parameter.new_zeros(0, *width)
    else:
        own = parameter.grad.coalesce()
        rows, values = own.indices()[0], own.values()
    counts = torch.zeros(size(), dtype=torch.int64)
    counts[rank()] = len(rows)
    distributed.all_reduce(counts)
    most = int(counts.max())
    padded_rows, padded = rows.new_zeros(most), values.new_zeros(most, *width)
    padded_rows[: len(rows)], padded[: len(rows)] = rows, values
    of_rows = [torch.empty_like(padded_rows) for _ in range(size())]
    of_values = [torch.empty_like(padded) for _ in range(size())]
    distributed.all_gather(of_rows, padded_rows)
    distributed.all_gather(of_values, padded)
    every = [(one[:count], two[:count]) for one, two, count in zip(of_rows, of_values, counts.tolist(), strict=True)]
    indices, entries = (torch.cat(part) for part in zip(*every, strict=True))
    return torch.sparse_coo_tensor(indices[None], entries / size(), parameter.shape, check_invariants=False).coalesce()


def _lost(error: RuntimeError) -> bool:
    """Whether it says that another rank is gone; gloo has no kind of its own."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def _join(folder: Path, own: int, total: int) -> None:
    if sys.platform == "linux":  # gloo takes the address of the host's name otherwise, which others may reach
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    backend = "gloo"
    if best_device().type == "cuda":
        torch.cuda.set_device(own)
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(
        backend, init_method=f"file://{folder}/store", rank=own, world_size=total, timeout=_TIMEOUT
    )


def serve() -> None:
    """Be another rank, until rank 0 hangs up; the command line says of whom."""
    file, folder, own, total, threads = sys.argv[1:]
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    global _line
    line = _line = Connection(int(file))
    torch.set_num_threads(int(threads))
    quiet_libraries()
    _say(True, None)
    _join(Path(folder), int(own), int(total))
    with contextlib.suppress(EOFError, OSError):
        while True:
            content = line.recv_bytes()
            try:
                function, arguments = pickle.loads(content)
                _say(True, function(*arguments))
            except BaseException as error:
                traceback.print_exc()
                _say(False, f"{type(error).__name__}: {error}")
                break
    os._exit(0)  # no word to ranks that may be gone


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
