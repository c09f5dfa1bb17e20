"""`bertnas status`: how far a run is, from another terminal, while it goes on or afterwards."""

import json
from argparse import Namespace

from nni_bertnas.cli.show import open_console
from nni_bertnas.report.status import find_root, read_status, show_status
from nni_bertnas.tracking.histories import HISTORY, OUTLINE, read_state
from nni_bertnas.tracking.slurm import ask, read_jobs


def run(arguments: Namespace) -> None:
    """Print how far every stage is."""
    root = find_root(arguments.study)
    plan, jobs = read_state(root / HISTORY, OUTLINE) or _outline(arguments), read_jobs(root)
    status = read_status(root, plan, jobs, ask(jobs))
    if arguments.json:
        print(json.dumps(status, indent=1))
    else:
        show_status(status, open_console())


def _outline(arguments: Namespace) -> dict[str, object]:
    """Of a run that wrote none down, as one of an older version: worked out, which takes seconds."""
    from nni_bertnas.stages.outline import make_outline  # torch and NNI, which nobody need wait for otherwise
    from nni_bertnas.stages.run import Run
    from nni_bertnas.study_files import load_study

    return make_outline(Run(load_study(arguments.study)))
