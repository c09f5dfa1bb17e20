"""`bertnas space`: what a study searches."""

import json
from argparse import Namespace
from pathlib import Path

import yaml

from nni_bertnas.cli.show import open_console
from nni_bertnas.errors import ConfigError
from nni_bertnas.report.drawing import draw_space
from nni_bertnas.report.space import show_space
from nni_bertnas.search.parameters import nni_search_space
from nni_bertnas.search.strategies import check_search
from nni_bertnas.stages.run import Run
from nni_bertnas.study_files import load_study
from search_space.listing import Space


def run(arguments: Namespace) -> None:
    """Print a study's space; write it for NNI, draw it."""
    opened = Run(load_study(arguments.study))
    cell, width = opened.study.cell, opened.study.student.hidden_size
    check_search(cell, width)
    depth = max(cell.depths) if arguments.depth is None else arguments.depth
    if depth < 1:
        raise ConfigError(f"--depth must be at least 1, got {depth}")
    space = Space.of(cell.space, depth, width, cell.operations)
    show_space(opened, space, open_console())
    if arguments.nni is not None:
        _write(space, arguments.nni)
    if arguments.draw is not None:
        draw_space(space, arguments.draw)


def _write(space: Space, path: Path) -> None:
    """Write NNI's search space, as JSON where the path ends so, else as YAML."""
    found = nni_search_space(space)
    text = json.dumps(found, indent=1) if path.suffix == ".json" else yaml.safe_dump(found, sort_keys=False)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--nni {path}: cannot be written ({error.strerror}); give another path") from error
