"""`bertnas data`: what a study's data look like."""

from argparse import Namespace

from nni_bertnas.cli.show import open_console
from nni_bertnas.report.data import show_data
from nni_bertnas.stages.run import Run
from nni_bertnas.study_files import load_study


def run(arguments: Namespace) -> None:
    """Print rows, labels, lengths and examples."""
    show_data(Run(load_study(arguments.study)), open_console())
