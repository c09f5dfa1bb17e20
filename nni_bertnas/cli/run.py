"""`bertnas run`: all of a study, in order; what is finished is reused."""

from argparse import Namespace

from nni_bertnas.artifacts import disk_errors
from nni_bertnas.cli.show import open_teller
from nni_bertnas.cli.stage import make, open_where
from nni_bertnas.report.results import show
from nni_bertnas.report.trained import show_frontier
from nni_bertnas.stages import STAGES
from nni_bertnas.stages.locks import alone
from nni_bertnas.stages.outline import write_outline
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.smoke import smoke
from nni_bertnas.stages.stage import check_all, load
from nni_bertnas.study_files import load_study
from nni_bertnas.tracking.logs import LOG, open_log


def run(arguments: Namespace) -> None:
    """Make every stage that the study asks for, then print the closing table."""
    study, path = load_study(arguments.study), arguments.study
    if arguments.smoke:
        study = smoke(study)
    opened = Run(study)
    check_all(opened)
    with disk_errors(opened.root), alone(opened.root), open_log(opened.root / LOG):
        teller = open_teller(arguments)
        if arguments.force:
            opened.discard_from(arguments.force)
        if arguments.smoke:
            path = opened.write_study()
        write_outline(opened)
        teller.say(f"study {study.name} ({path}), everything goes to {opened.root}")
        where = open_where(arguments, opened, path, teller)
        for name in STAGES:
            stage = load(name)
            if stage.units(opened):
                make(opened, stage, path, teller, where)
        show(opened, teller)
        show_frontier(opened, teller)
        if arguments.smoke:
            teller.say(
                "every stage runs; of so few rows the scores mean nothing. The study itself: "
                f"bertnas plan {arguments.study}, bertnas run {arguments.study}"
            )
