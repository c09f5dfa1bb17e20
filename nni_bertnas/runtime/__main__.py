"""`python -m bertnas_runtime FOLDER`: a JSON line per line of text; with `--serve`, a web service."""

import argparse
import json
import sys
from pathlib import Path

from .classifier import Classifier
from .errors import ConfigError


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bertnas_runtime", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parents[1], help="of the model")
    parser.add_argument("--serve", action="store_true", help="answer POST /predict instead of reading lines")
    parser.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="(default: 8000)")
    parser.add_argument("--threads", type=int, default=1, help="of every pass (default: 1)")
    arguments = parser.parse_args()
    try:
        classifier = Classifier(arguments.folder, threads=arguments.threads)
        if arguments.serve:
            from .server import serve

            serve(classifier, arguments.host, arguments.port)
        else:
            _answer(classifier)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _answer(classifier: Classifier) -> None:
    for number, line in enumerate(sys.stdin, 1):
        first, tab, second = line.rstrip("\n").partition("\t")
        try:
            found = classifier(first, second if tab or classifier.pairs else None)[0]
        except ValueError as error:
            raise ConfigError(f"line {number}: {error} (the texts of a pair are parted by a tab)") from error
        print(json.dumps(found, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    sys.exit(main())
