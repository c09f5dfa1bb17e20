"""`bertnas plan`: what a study will make, and how long it takes."""

from argparse import Namespace

from nni_bertnas.cli.show import open_console
from nni_bertnas.report.plan import show_plan
from nni_bertnas.stages.plan import make_plan
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import check_all
from nni_bertnas.study_files import load_study


def run(arguments: Namespace) -> None:
    """Measure and print; nothing of the study is made."""
    opened, console = Run(load_study(arguments.study)), open_console()
    check_all(opened)
    console.print(f"measuring, for half a minute: {arguments.study}", highlight=False, soft_wrap=True)
    show_plan(make_plan(opened), arguments.study, console)
