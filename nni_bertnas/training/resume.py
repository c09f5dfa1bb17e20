"""Trainings that go on where they were when the process that made a unit of work was killed.

A unit is a row of trainings with quick work between them that gives the same each time. So a unit that is made again
repeats that work: a training that had ended gives the weights it ended with, the one that was under way goes on behind
its last saved epoch, and whoever asks for random numbers gets those that would have come. Nothing is written before a
unit has taken `PERIOD_SECONDS`, and everything is removed when it is finished.
"""

import copy
import json
import logging
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from nni_bertnas import __version__
from nni_bertnas.artifacts import file_checksum, fingerprint, write_whole

PERIOD_SECONDS = float(os.environ.get("BERTNAS_CHECKPOINT_SECONDS", "120"))  # between two savings, at least
_INDEX = "index.json"  # what holds; a file that it does not name is none
_RANDOM = "bertnas_random"  # key in Lightning's checkpoint
_log = logging.getLogger(__name__)
_current: "Unfinished | None" = None  # a process makes one unit at a time
# Kind of a training, what writes a file of it, where its samplers stand; None: it has ended.
_Job = tuple[str, Callable[[Path], None], list[Any] | None]


class Unfinished:
    """What is saved of one unit of work while it is made.

    Args:
        folder: Beside the unit; made when something is saved.
        mark: Of all that the unit's result depends on; what was saved under another is removed.

    Attributes:
        epochs: How many epochs the unit had reported when it was last saved.
        count: Gives how many it has reported now.
    """

    def __init__(self, folder: Path, mark: str) -> None:
        self.folder = folder
        self.mark = fingerprint(mark, __version__, torch.__version__)
        self.count: Callable[[], int] = lambda: 0
        self.part = ""
        self._numbers: Counter[str] = Counter()  # of trainings begun, by part
        self._pending: dict[str, _Job] = {}  # of trainings that have ended
        self._saved = time.monotonic()
        index = self._read()
        self.epochs: int = index["epochs"]
        self._turn: int = index["turn"]  # of savings, over all attempts
        self._files: dict[str, dict[str, Any]] = index["files"]
        self.values: dict[str, Any] = index["values"]
        self._broken = False

    def _read(self) -> dict[str, Any]:
        nothing: dict[str, Any] = {"epochs": 0, "turn": 0, "files": {}, "values": {}}
        try:
            index: Any = json.loads((self.folder / _INDEX).read_text(encoding="utf-8"))
            if index["mark"] != self.mark:
                raise ValueError("the unit is made from something else now")
            for one in index["files"].values():
                if file_checksum(self.folder / one["file"]) != one["checksum"]:
                    raise ValueError(f"{one['file']} is damaged")
        except FileNotFoundError:
            return nothing
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("%s: %s; the unit is made from its beginning", self.folder, error)
            shutil.rmtree(self.folder, ignore_errors=True)
            return nothing
        _log.info("%s: goes on behind %d epochs", self.folder, index["epochs"])
        return index

    def next_key(self) -> str:
        """The name of the training that begins now, the same in every attempt."""
        self._numbers[self.part] += 1
        return f"{self.part}{self._numbers[self.part]}"

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= PERIOD_SECONDS and not self._broken

    def saved(self, key: str, kind: str) -> tuple[Path | None, list[Any] | None]:
        """The file of a training of this kind, and where its samplers stood; None: it had ended."""
        one = self._files.get(key, {})
        return (self.folder / one["file"], one["samplers"]) if one.get("kind") == kind else (None, None)

    def save(self, key: str, kind: str, write: Callable[[Path], None], samplers: list[Any]) -> None:
        """Save a training that is under way, and before it those that have ended.

        Args:
            key: Of the training.
            kind: Likewise.
            write: Writes a file of it.
            samplers: Plain data of where its samplers stand.
        """
        self._write({**self._pending, key: (kind, write, samplers)})

    def end(self, key: str, kind: str, state: dict[str, Any]) -> None:
        """Remember with what a training ended, and write that when it is time."""
        self._pending[key] = kind, partial(torch.save, state), None
        if self.due:
            self._write(self._pending)

    def _write(self, jobs: Mapping[str, _Job]) -> None:
        files, before = dict(self._files), {one["file"] for one in self._files.values()}
        self._turn += 1
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for key, (kind, write, samplers) in jobs.items():
                path = self.folder / f"{key}-{self._turn}.pt"
                write(path)
                files[key] = {"file": path.name, "checksum": file_checksum(path), "kind": kind, "samplers": samplers}
            index = {"mark": self.mark, "epochs": self.count(), "turn": self._turn, "files": files}
            write_whole(self.folder / _INDEX, json.dumps({**index, "values": self.values}))
        except (OSError, RuntimeError) as error:  # torch's writer has the latter for a full disk
            _log.warning("%s cannot be written (%s); the unit is made, but would begin anew", self.folder, error)
            self._broken = True
            return
        self._files, self._saved = files, time.monotonic()
        self._pending.clear()
        for name in before - {one["file"] for one in files.values()}:
            (self.folder / name).unlink(missing_ok=True)


@contextmanager
def unfinished(folder: Path, mark: str) -> Iterator[Unfinished]:
    """Let the trainings inside the block go on where an earlier attempt at the same unit was killed.

    Args:
        folder: Takes what is saved; removed when the block ends well.
        mark: Of all that the unit's result depends on.
    """
    global _current
    before, _current = _current, Unfinished(folder, mark)
    try:
        yield _current
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        _current = before


@contextmanager
def apart(name: str) -> Iterator[None]:
    """Count the trainings inside the block by themselves, as another attempt may find their results made.

    So random numbers go on behind it as if nothing had been drawn.
    """
    drawn, before = random_state(), "" if _current is None else _current.part
    if _current is not None:
        _current.part = f"{name}-"
    try:
        yield
        set_random_state(drawn)
    finally:
        if _current is not None:
            _current.part = before


def remember(name: str, make: Callable[[], Any]) -> Any:
    """Plain data that the first attempt at a unit makes, as what was measured may be otherwise in the next."""
    if _current is None:
        return make()
    if name not in _current.values:
        _current.values[name] = json.loads(json.dumps(make()))
    return _current.values[name]


class _Saving(pl.callbacks.Checkpoint):
    """Saves a training at the end of an epoch when it is time; Lightning calls it behind all others.

    Args:
        unit: Takes it.
        key: Of the training.
        kind: Likewise.
        samplers: Of its loaders.
    """

    def __init__(self, unit: Unfinished, key: str, kind: str, samplers: Sequence[Any]) -> None:
        self.unit, self.key, self.kind, self.samplers = unit, key, kind, samplers
        self._random: Mapping[str, Any] | None = None

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        """Called by Lightning."""
        self._random = checkpoint[_RANDOM]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning when it has drawn what it draws itself."""
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning; what ends a training follows its last epoch at once."""
        if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs or not self.unit.due:
            return
        # Lightning's own `save_checkpoint` waits for all ranks; none of this needs the others.
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False) | {_RANDOM: random_state()}
        self.unit.save(self.key, self.kind, partial(torch.save, state), [one.state_dict() for one in self.samplers])


def train(
    trainer: pl.Trainer, module: pl.LightningModule, loader: Any, dev: Any = None,
    samplers: Sequence[Any] | None = None,
) -> None:  # fmt: skip
    """`trainer.fit`, which goes on where an earlier attempt at this unit of work was killed.

    Args:
        trainer: Lightning's.
        module: What is trained; a LightningModule that holds state outside its parameters and buffers saves it in
            `on_save_checkpoint`, or says `resumable = False` and is then trained anew unless it had ended.
        loader: Batches.
        dev: Batches for validation; None: there is none.
        samplers: That `loader` draws from, with `state_dict` and `load_state_dict`; None: its own batch sampler.
    """
    fit: Callable[..., None] = partial(type(trainer).fit, trainer, module, loader, dev)
    if _current is None:
        fit()
        return
    unit, key, kind = _current, _current.next_key(), fingerprint(trainer.max_epochs, _describe(module))
    file, stood = unit.saved(key, kind)
    if file is not None and stood is None:
        _put(trainer, module, torch.load(file, map_location="cpu", weights_only=True))
        return
    if not getattr(module, "resumable", True):
        fit()
    else:
        drawn = [loader.batch_sampler] if samplers is None else samplers
        for sampler, state in zip(drawn, stood or (), strict=False):  # here, as loaders may go to other processes
            sampler.load_state_dict(state)
        saving = _Saving(unit, key, kind, drawn)
        trainer.callbacks.append(saving)
        try:
            fit(ckpt_path=file, weights_only=True if file else None)
        finally:
            trainer.callbacks.remove(saving)
    unit.end(key, kind, _taken(trainer, module))


def _describe(module: torch.nn.Module) -> list[Any]:
    """What tells trainings of one unit apart: shapes of weights, and what modules are given beside, as heads."""
    shapes = [(name, list(one.shape)) for name, one in _tensors(module)]
    plain = [
        (type(part).__qualname__, {name: one for name, one in vars(part).items() if _is_given(name, one)})
        for part in module.modules()
    ]
    return [shapes, plain]


def _is_given(name: str, value: Any) -> bool:
    return isinstance(value, int | float | str) and name != "training" and not name.startswith("_")


def _tensors(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, one) for name, one in module.state_dict().items() if isinstance(one, torch.Tensor)]


def _taken(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """What a training leaves: weights, what its callbacks know, and where random numbers stand."""
    return {
        "module": {name: one.detach().cpu().clone() for name, one in _tensors(module)},
        "callbacks": {one.state_key: copy.deepcopy(one.state_dict()) for one in _callbacks(trainer)},
        "random": random_state(),
    }


def _put(trainer: pl.Trainer, module: pl.LightningModule, state: Mapping[str, Any]) -> None:
    module.load_state_dict(state["module"])
    for one in _callbacks(trainer):
        if (known := state["callbacks"].get(one.state_key)) is not None:
            one.load_state_dict(known)
    set_random_state(state["random"])


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return [one for one in trainer.callbacks if one.state_dict()]


def random_state() -> dict[str, Any]:
    """Where the random numbers of torch, numpy and Python stand, as plain data and tensors."""
    kind, key, *others = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [str(kind), torch.from_numpy(np.asarray(key).astype(np.int64)), *others],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Let them go on from there."""
    version, numbers, following = state["python"]
    random.setstate((version, tuple(numbers), following))
    kind, key, *others = state["numpy"]
    np.random.set_state((kind, key.numpy().astype(np.uint32), *others))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        torch.cuda.set_rng_state_all(state["cuda"])
