"""One NNI trial of the cell phase that trains one architecture; its operations are NNI's parameters."""

from nni_bertnas.stages.architecture import run_architecture
from nni_bertnas.stages.run import Run, Unit
from nni_bertnas.tracking.tracker import Tracker
from trials.runner import run_trial


def _make(run: Run, unit: Unit, tracker: Tracker) -> None:
    parameters = {name: value for name, value in unit.items() if name not in ("block", "depth")}
    run_architecture(run, unit["block"], unit["depth"], parameters, tracker)


if __name__ == "__main__":
    run_trial("architecture", "cell", _make, ("block", "depth"))
