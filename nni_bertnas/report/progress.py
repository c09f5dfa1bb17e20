"""What a command tells while it works: bars at a terminal, lines elsewhere, and all of it into the log."""

import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from nni_bertnas.tracking.logs import said

Level = Literal["quiet", "normal", "verbose"]
LINE_SECONDS = 30.0  # between two lines, where there is no bar, and in the log
_TICK_SECONDS = 1.0
_WIDTH = 120  # of the log
_SHOWN = ("train_loss", "dev_")  # how the metrics begin that people see of every epoch


def spell_seconds(seconds: float) -> str:
    """As people read it: 45 s, 12.5 min, 3.2 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def spell_epoch(metrics: Mapping[str, Any], *, everything: bool = False) -> str:
    """One epoch in one line: its losses and scores on dev, or all its metrics."""
    shown = (
        f"{name} {value:.3f}"
        for name, value in metrics.items()
        if isinstance(value, int | float)
        and name not in ("epoch", "seconds")
        and (everything or name.rpartition("/")[2].startswith(_SHOWN))
    )
    return f"epoch {metrics['epoch'] + 1:.0f}: {', '.join(shown)}"


class Work:
    """A piece of work under way: how much of it is done, how fast, and how long the rest takes.

    Args:
        name: Of it.
        clock: Gives seconds.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.name, self.clock = name, clock
        self.done, self.total, self.what, self.note = 0, 0, "", ""
        self.start = clock()
        self._loss: float | None = None
        self._first: tuple[float, int] | None = None  # when the pieces were counted first, and how many were done

    def update(self, done: int, total: int, what: str, loss: float | None = None) -> None:
        """How much is done; other pieces, or another total of them, are other work, with a speed of its own."""
        if self._first is None or (total, what) != (self.total, self.what) or done < self.done:
            self._first = self.clock(), done
        self.done, self.total, self.what, self._loss = done, total, what, loss

    def say(self, note: str, done: int, total: int) -> None:
        """How much is done of what cannot be timed by its pieces, in words of one's own."""
        self.done, self.total, self.note = done, total, note

    @property
    def rest(self) -> str:
        """Loss, speed and time left, as far as they are known."""
        parts = [self.note] if self.note else []
        if self._loss is not None:
            parts.append(f"loss {self._loss:.3f}")
        if self._first is not None:
            seconds, pieces = self.clock() - self._first[0], self.done - self._first[1]
            if seconds > 0 and pieces > 0:
                left = (self.total - self.done) * seconds / pieces
                parts += [f"{pieces / seconds:.1f} {self.what}/s", f"{spell_seconds(left)} left"]
        return ", ".join(parts)

    def __str__(self) -> str:
        if not self.total:
            return f"{self.name}: under way for {spell_seconds(self.clock() - self.start)}"
        counted = f"{self.done} of {self.total} {self.what}".strip()
        rest = f", {self.rest}" if self.rest else ""
        return f"{self.name}: {counted}{rest}, under way for {spell_seconds(self.clock() - self.start)}"


class Teller:
    """Tells people what a command does.

    Args:
        console: Where they read it.
        level: `quiet`: what is printed alone, the closing tables; `verbose`: all metrics of every epoch.
        clock: Gives seconds.
    """

    def __init__(self, console: Console, level: Level = "normal", clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.level, self.clock = console, level, clock
        self._work: Work | None = None
        self._last = clock()
        self._lock = threading.Lock()

    @property
    def _bars(self) -> bool:
        return self.console.is_terminal and self.level != "quiet"

    def say(self, text: str) -> None:
        """Tell one thing."""
        self._note(text)
        if self.level != "quiet":
            self.console.print(text, highlight=False, soft_wrap=True)

    def print(self, *things: Any, **options: Any) -> None:
        """Print what a command is for, whatever the level; takes what rich's console does."""
        self.console.print(*things, **options)
        plain = Console(file=io.StringIO(), width=_WIDTH, markup=False)
        plain.print(*things, highlight=False, soft_wrap=all(isinstance(thing, str) for thing in things))
        self._note(plain.file.getvalue().rstrip("\n"))  # type: ignore[attr-defined]

    def _note(self, text: str) -> None:
        self._last = self.clock()
        for line in text.splitlines():
            said.info(line.rstrip())

    def tick(self) -> None:
        """Say how the work stands, where nothing was said for a while; with a bar, the log alone has need of it."""
        with self._lock:
            if self._work is None or self.clock() - self._last < LINE_SECONDS:
                return
            text = str(self._work)
            if self._bars:
                self._note(text)
            else:
                self.say(text)

    @contextmanager
    def work(self, name: str) -> Iterator[Work]:
        """A piece of work, with a bar at a terminal and a line now and then elsewhere."""
        work, end = Work(name, self.clock), threading.Event()

        def watch(bar: Progress | None) -> None:
            while not end.wait(_TICK_SECONDS):
                self.tick()
                if bar is not None:
                    bar.update(bar.task_ids[0], completed=work.done, total=work.total or None, description=work.rest)

        self._work = work
        bar = _bar(name, self.console) if self._bars else None
        thread = threading.Thread(target=watch, args=(bar,), daemon=True)
        try:
            if bar is not None:
                bar.add_task("", total=None)
                bar.start()
            thread.start()
            yield work
        finally:
            end.set()
            thread.join()
            if bar is not None:
                bar.stop()
            with self._lock:
                self._work = None


def _bar(name: str, console: Console) -> Progress:
    rest = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis"))
    columns = TextColumn(name), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), rest
    return Progress(*columns, console=console, transient=True, refresh_per_second=2)


class Watcher:
    """Shows epochs and progress of a unit that is made in this process.

    Args:
        teller: Tells them.
        work: Of the unit.
    """

    def __init__(self, teller: Teller, work: Work) -> None:
        self.teller, self.work = teller, work

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """See :class:`~nni_bertnas.tracking.tracker.Watcher`."""
        text = spell_epoch(metrics, everything=self.teller.level == "verbose")
        self.teller.say(f"{self.work.name}: {text}, {spell_seconds(self.work.clock() - self.work.start)}")

    def progress(self, done: int, total: int, what: str = "rows", loss: float | None = None) -> None:
        """See :class:`~nni_bertnas.tracking.tracker.Watcher`."""
        self.work.update(done, total, what, loss)
