"""One NNI trial of the cell phase that trains one architecture; its operations are NNI's parameters."""

from typing import Any

from nni_bertnas.config import Study
from nni_bertnas.stages import architecture
from nni_bertnas.tracking import Tracker
from trials.runner import run_trial


def _run(study: Study, block: int, depth: int, tracker: Tracker, **parameters: Any) -> dict[str, Any]:
    return architecture.run(study, block, depth, parameters, tracker)


if __name__ == "__main__":
    run_trial("architecture", None, _run, ("block", "depth"))
