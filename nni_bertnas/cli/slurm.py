"""`bertnas slurm`: a study as jobs of Slurm."""

from argparse import Namespace

from nni_bertnas.cli.show import open_console
from nni_bertnas.config.cluster import ClusterProfile
from nni_bertnas.launch.slurm import SUBMIT, make_jobs, submit, write_jobs
from nni_bertnas.report.jobs import show_jobs
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import check_all
from nni_bertnas.study_files import load_settings, load_study


def run(arguments: Namespace) -> None:
    """Write the scripts, hand the jobs over where that is asked for, and print a table of them."""
    opened = Run(load_study(arguments.study))
    profile = load_settings(ClusterProfile, arguments.profile)
    check_all(opened)
    folder, console = write_jobs(opened, profile), open_console()
    numbers = submit(folder) if arguments.submit else {}
    rows = [(job.name, job.does, job.after, profile.of(job.name)) for job in make_jobs(opened)]
    show_jobs(opened.study.name, rows, numbers, console)
    then = f"how far they are: bertnas status {arguments.study}"
    text = then if arguments.submit else f"hand them over with: bash {folder / SUBMIT}"
    console.print(f"scripts and logs: {folder}\n{text}", highlight=False, soft_wrap=True)
