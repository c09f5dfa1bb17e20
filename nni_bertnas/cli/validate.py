"""`bertnas validate`: files checked; every problem of every file is reported at once."""

from argparse import Namespace

from nni_bertnas.errors import ConfigError
from nni_bertnas.launch.nni_files import check_nni_yaml
from nni_bertnas.search.strategies import check_search
from nni_bertnas.study_files import load_study


def run(arguments: Namespace) -> None:
    """Check a study file and NNI's experiment files."""
    problems = []
    try:
        study = load_study(arguments.study)
        check_search(study.cell, study.student.hidden_size)
    except ConfigError as error:
        problems.append(str(error))
    for path in arguments.nni_yaml:
        problems += check_nni_yaml(path)
    if problems:
        raise ConfigError("\n".join(problems))
    print(f"{1 + len(arguments.nni_yaml)} file(s) are right")
