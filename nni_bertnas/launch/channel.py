"""The line from a trial to NNI."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nni
import nni.trial
from nni.runtime.env_vars import trial_env_vars
from nni.runtime.trial_command_channel import get_default_trial_command_channel

TURNS = "BERTNAS_TURNS"  # a folder that trials of several machines see, see launch/remote.py
_log = logging.getLogger(__name__)


class NniChannel:
    """The line from this trial to NNI, taken before anything swaps it.

    A `NasExperiment` running inside a trial replaces NNI's trial command channel while a model trains, and what is
    reported then goes to that inner experiment. This keeps hold of the outer one.
    """

    def __init__(self) -> None:
        self._channel = get_default_trial_command_channel()
        with _turn():
            self.parameters: dict[str, Any] = nni.get_next_parameter() or {}
        self._parameter_id = nni.trial._params["parameter_id"] if nni.trial._params else None
        self._sequence = 0

    def _send(self, kind: str, sequence: int, value: Mapping[str, float]) -> None:
        self._channel.send_metric(kind, self._parameter_id, trial_env_vars.NNI_TRIAL_JOB_ID, sequence, dict(value))

    def intermediate(self, value: Mapping[str, float]) -> None:
        """One point of the trial's curves; `default` is the main one."""
        self._send("PERIODICAL", self._sequence, value)
        self._sequence += 1

    def final(self, value: Mapping[str, float]) -> None:
        """The trial's result; `default` is the main number."""
        self._send("FINAL", 0, value)


@contextmanager
def _turn(patience_seconds: float = 60.0) -> Iterator[None]:
    """Let trials that share a folder ask NNI for their parameters in the order in which NNI made them.

    NNI 3.0 hands parameters to trials in the order of their requests, whatever parameters it shows for them: of two
    that start together, each may get the other's, and the web UI then shows results under the wrong parameters.
    """
    number, output = int(trial_env_vars.NNI_TRIAL_SEQ_ID or -1), trial_env_vars.NNI_OUTPUT_DIR
    shared = os.environ.get(TURNS)
    if number < 0 or output is None or (trial_env_vars.NNI_PLATFORM != "local" and shared is None):
        yield
        return
    turns = Path(output).parent / "turns" if shared is None else Path(shared, str(trial_env_vars.NNI_EXP_ID))
    turns.mkdir(exist_ok=True, parents=True)
    deadline = time.monotonic() + patience_seconds
    while number > 0 and not (turns / str(number - 1)).exists():
        if time.monotonic() > deadline:
            _log.warning("trial %d did not ask for its parameters; going on without it", number - 1)
            break
        time.sleep(0.05)
    yield
    (turns / str(number)).touch()
