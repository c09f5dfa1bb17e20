"""The part that the trial scripts share."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from nni_bertnas import quiet_libraries
from nni_bertnas.config import load_study
from nni_bertnas.errors import BertnasError, ConfigError
from nni_bertnas.tracking import NniChannel, open_tracker


def run_trial(
    phase: str, names: Mapping[str, type] | None, run: Callable[..., dict[str, Any]], options: Sequence[str] = ()
) -> None:
    """Run one NNI trial and exit: parameters in, one phase call, metrics out.

    Args:
        phase: Name of the phase.
        names: The parameters that the trial takes from NNI with their types, whole numbers or texts; None
            leaves the check to `run`.
        run: The phase's `run`.
        options: Whole numbers that the trial takes from its command line.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m trials.{phase}", description=f"One NNI trial of the {phase} phase."
    )
    parser.add_argument("--study", required=True, help="the study's YAML file")
    for name in options:
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    quiet_libraries()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("nni").propagate = False  # it has its own handler
    signal.signal(signal.SIGTERM, _stop)
    try:
        study = load_study(arguments.study)
        channel = NniChannel()
        parameters = channel.parameters if names is None else _check(phase, names, channel.parameters)
        if twice := set(options) & set(parameters):
            raise ConfigError(f"searchSpace: {', '.join(sorted(twice))} stands in trialCommand; leave it out")
        parameters = {name: getattr(arguments, name) for name in options} | parameters
        from nni_bertnas.training.trainer import set_threads

        if phase != "supernet":  # which runs alone
            set_threads(study.concurrency(phase), study.nni.threads)
        # As the folder of the result is called.
        texts = (value if isinstance(value, str) else f"{name}{value}" for name, value in parameters.items())
        unit = "_".join(text for text in texts if text != "searched")[:100]  # W&B's longest name has 128
        with open_tracker(study, phase, unit, channel) as tracker:
            run(study, **parameters, tracker=tracker)
    except BertnasError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _check(phase: str, names: Mapping[str, type], parameters: dict[str, Any]) -> dict[str, Any]:
    wrong = set(parameters) != set(names)
    if wrong or not all(isinstance(parameters[name], kind) for name, kind in names.items()):
        wanted = ", ".join(f"{name} as {'text' if kind is str else 'whole number'}" for name, kind in names.items())
        raise ConfigError(
            f"searchSpace: a {phase} trial takes {wanted}, got {parameters}; run it "
            f"through nnictl create --config experiment_configs/{phase}.yml"
        )
    return {name: parameters[name] for name in names}


def _stop(signal_number: int, frame: Any) -> NoReturn:
    # NNI ends a trial with SIGTERM; as an exception it lets half-written folders be removed.
    sys.exit(128 + signal_number)
