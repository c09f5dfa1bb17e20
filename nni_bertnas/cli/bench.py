"""`bertnas bench`: saved and exported models beside each other on this machine."""

from argparse import Namespace

from nni_bertnas.cli.show import open_console
from nni_bertnas.report.speed import benched, draw_speeds, speed_table, write_speeds


def run(arguments: Namespace) -> None:
    """Measure models, print a table, and write what is asked for."""
    speeds = benched(arguments.models, arguments.rows, threads=arguments.threads)
    open_console().print(speed_table(speeds, arguments.threads))
    if arguments.json is not None:
        write_speeds(speeds, arguments.threads, arguments.json)
    if arguments.draw is not None:
        draw_speeds(speeds, arguments.draw)
