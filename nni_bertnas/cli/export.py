"""`bertnas export`: a saved model in another format."""

from argparse import Namespace

from nni_bertnas.deploy import export


def run(arguments: Namespace) -> None:
    """Export a model."""
    export(arguments.model, arguments.to, arguments.output)
    print(f"{arguments.output}: {arguments.model} as {arguments.to}")
