"""TensorBoard's event files, where the package tensorboard is installed."""

import importlib.util
import logging
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

EVENTS = "tensorboard"  # folder of such files, for NNI too
_log = logging.getLogger(__name__)


def of_trial(output: Path) -> Path:
    """The folder that TensorBoard shows of a trial when it is started by the button in NNI's web UI.

    NNI 3.0 looks elsewhere than it puts the output where its local service starts the trials: the output is in
    `<experiment>/environments/…/trials/<trial>`, and it looks in `<experiment>/trials/<trial>/output/tensorboard`.

    Args:
        output: What NNI names as the trial's folder for output (`NNI_OUTPUT_DIR`).
    """
    if len(output.parents) > 3 and output.parents[2].name == "environments":
        return output.parents[3] / "trials" / output.name / "output" / EVENTS
    return output / EVENTS


class EventFiles:
    """Writes the metrics of one unit of work for TensorBoard; whatever happens to them, the work goes on.

    Args:
        folder: Of the unit; what an earlier attempt left there goes when the unit begins anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None
        self._steps: Counter[str] = Counter()

    def begin(self, kept: Sequence[Mapping[str, Any]] = ()) -> None:
        """Begin anew, with epochs of an earlier attempt."""
        self.close()
        self._steps.clear()
        if importlib.util.find_spec("tensorboard") is None:  # an extra
            return
        try:
            from torch.utils.tensorboard import SummaryWriter  # takes a quarter of a second to load

            shutil.rmtree(self.folder, ignore_errors=True)
            self._writer = SummaryWriter(str(self.folder), flush_secs=5)
        except Exception as error:  # a full disk, a broken installation: tracking never stops a run
            _log.warning("TensorBoard's files are not written: %s", error)
            return
        for metrics in kept:
            self.epoch({name: one for name, one in metrics.items() if name != "seconds" and one is not None})

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """One point of every metric; its step is how many it had before, as epochs count anew in every training."""
        if self._writer is None and not self._steps:
            self.begin()
        for name, value in metrics.items():
            if name != "epoch":
                self._add(name, value)
        self._call("flush")

    def final(self, metrics: Mapping[str, float]) -> None:
        """The result."""
        if self._writer is not None:
            for name, value in metrics.items():
                self._add(f"final/{name}", value)
            self._call("flush")

    def end(self, state: str) -> None:
        """What the unit came to follows."""

    def close(self) -> None:
        """Write out what is left."""
        self._call("close")
        self._writer = None

    def _add(self, name: str, value: float) -> None:
        if math.isfinite(value):
            self._call("add_scalar", name, value, self._steps[name])
        self._steps[name] += 1

    def _call(self, method: str, *arguments: Any) -> None:
        if self._writer is None:
            return
        try:
            getattr(self._writer, method)(*arguments)
        except Exception as error:
            _log.warning("TensorBoard's files are no longer written: %s", error)
            self._writer = None
