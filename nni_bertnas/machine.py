"""The machine: its cores and memory, its accelerator, the precision that is fast on it."""

import os
import time
from dataclasses import dataclass

import torch

# By how much threads are quicker than one: to this power of their number. Measured where two share a core; on cores of
# their own they help more.
_THREADS_HELP = 0.4


@dataclass(frozen=True)
class Span:
    """What something took.

    Attributes:
        seconds: On the clock.
        cpu_seconds: Of this process, over all threads.
        threads: That it is to have.
    """

    seconds: float
    cpu_seconds: float
    threads: int

    @classmethod
    def now(cls) -> "Span":
        """A moment, to be taken from a later one."""
        return cls(time.perf_counter(), time.process_time(), torch.get_num_threads())

    def __sub__(self, start: "Span") -> "Span":
        return Span(self.seconds - start.seconds, self.cpu_seconds - start.cpu_seconds, self.threads)

    def __truediv__(self, count: float) -> "Span":
        return Span(self.seconds / count, self.cpu_seconds / count, self.threads)

    @property
    def at_rest(self) -> float:
        """About what it would take on the clock where nothing else ran; the same on an accelerator."""
        if best_device().type != "cpu":
            return self.seconds
        return self.cpu_seconds / self.threads**_THREADS_HELP


def num_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Of the whole machine; a number beyond any where the system does not tell."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 62


def set_threads(concurrency: int, threads: int | None) -> None:
    """Give this process its share of the cores, so that concurrent trials do not fight over them.

    Without `threads` that is no more than OMP_NUM_THREADS, where the user has set it.
    """
    own = os.environ.get("OMP_NUM_THREADS", "")
    most = int(own) if own.isdigit() else num_cores()
    torch.set_num_threads(threads or max(1, min(most, num_cores() // concurrency)))


def best_device() -> torch.device:
    """The accelerator of this machine, or its CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def mixed_precision(precision: str, wide: bool = False) -> str:
    """Lightning's name of a study's `student.precision` on this machine.

    `auto` is mixed precision with bfloat16 on CUDA devices that have it, and, for wide steps, on CPUs with units for
    products of matrices (AMX). Elsewhere it was measured to gain nothing (docs, "What a search and its steps cost").

    Args:
        precision: The study's.
        wide: Whether a step has enough to do to pay for the conversions: several cells at a batch of dozens of rows.
    """
    device = best_device()
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        fast |= wide and device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))
        precision = "bfloat16" if fast else "float32"
    return {"float32": "32-true", "bfloat16": "bf16-mixed"}[precision]
