"""`bertnas run`: all of a study, in order; what is finished is reused."""

from argparse import Namespace

from nni_bertnas.cli.show import open_console
from nni_bertnas.cli.stage import make
from nni_bertnas.report.results import show
from nni_bertnas.report.trained import show_frontier
from nni_bertnas.stages import STAGES
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.smoke import smoke
from nni_bertnas.stages.stage import check_all, load
from nni_bertnas.study_files import load_study


def run(arguments: Namespace) -> None:
    """Make every stage that the study asks for, then print the closing table."""
    study, path = load_study(arguments.study), arguments.study
    if arguments.smoke:
        study = smoke(study)
    opened, console = Run(study), open_console()
    check_all(opened)
    if arguments.force:
        opened.discard_from(arguments.force)
    if arguments.smoke:
        path = opened.write_study()
    console.print(f"study {study.name} ({path}), everything goes to {opened.root}", highlight=False)
    for name in STAGES:
        stage = load(name)
        if stage.units(opened):
            make(opened, stage, path, console)
    show(opened, console)
    show_frontier(opened, console)
    if arguments.smoke:
        console.print(
            "every stage runs; of so few rows the scores mean nothing. The study itself: "
            f"bertnas plan {arguments.study}, bertnas run {arguments.study}",
            highlight=False,
            soft_wrap=True,
        )
