"""`bertnas report`: the closing table once more, and the report as a page."""

from argparse import Namespace

from nni_bertnas.cli.show import open_console
from nni_bertnas.report.page.write import write_page
from nni_bertnas.report.results import show
from nni_bertnas.report.trained import show_frontier
from nni_bertnas.stages.run import Run
from nni_bertnas.study_files import load_study


def run(arguments: Namespace) -> None:
    """Print teacher against student, and write the page."""
    opened, console = Run(load_study(arguments.study)), open_console()
    show(opened, console)
    show_frontier(opened, console)
    path = write_page(opened, arguments.html)
    console.print(f"the report as a page: {path}", highlight=False, soft_wrap=True)
