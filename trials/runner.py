"""The part that the trial scripts share."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from nni_bertnas import quiet_libraries
from nni_bertnas.errors import BertnasError, ConfigError
from nni_bertnas.launch.channel import NniChannel
from nni_bertnas.machine import set_threads
from nni_bertnas.stages.outline import write_outline
from nni_bertnas.stages.run import Run, Unit, unit_name
from nni_bertnas.stages.stage import check_unit, ensure, load, trials_at_once
from nni_bertnas.study_files import load_study
from nni_bertnas.tracking.histories import record_name
from nni_bertnas.tracking.logs import LOG, open_log
from nni_bertnas.tracking.tracker import Tracker


def run_stage(name: str) -> None:
    """Run one NNI trial of a stage and exit: a unit's parameters in, the unit made, metrics out."""
    stage = load(name)

    def make(run: Run, unit: Unit, tracker: Tracker) -> None:
        ensure(run, name, check_unit(stage, unit), tracker)

    run_trial(name, name, make)


def run_trial(name: str, stage: str, make: Callable[[Run, Unit, Tracker], None], options: Sequence[str] = ()) -> None:
    """Run one NNI trial and exit.

    Args:
        name: Of the trial's module.
        stage: Whose results it makes.
        make: Takes what the trial is about.
        options: Whole numbers that the trial takes from its command line.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m trials.{name}", description=f"One NNI trial of the stage {stage}."
    )
    parser.add_argument("--study", required=True, help="the study's YAML file")
    for option in options:
        parser.add_argument(f"--{option}", type=int, required=True)
    arguments = parser.parse_args()
    quiet_libraries()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("nni").propagate = False  # it has its own handler
    signal.signal(signal.SIGTERM, _stop)
    try:
        run, channel = Run(load_study(arguments.study)), NniChannel()
        if twice := set(options) & set(channel.parameters):
            raise ConfigError(f"searchSpace: {', '.join(sorted(twice))} stands in trialCommand; leave it out")
        unit: dict[str, Any] = {option: getattr(arguments, option) for option in options} | channel.parameters
        if not load(stage).alone:
            set_threads(trials_at_once(run, load(stage)), run.study.nni.threads)
        write_outline(run)
        with (
            open_log(run.root / LOG, record_name(stage, unit_name(unit))),
            run.tracker(stage, unit, channel=channel) as tracker,
        ):
            make(run, unit, tracker)
    except BertnasError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _stop(signal_number: int, frame: Any) -> NoReturn:
    # What ends a trial but NNI, which sends SIGINT; as an exception it lets half-written folders be removed.
    sys.exit(128 + signal_number)
