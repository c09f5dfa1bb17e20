"""`bertnas push`: an exported model onto the Hugging Face hub."""

from argparse import Namespace

from nni_bertnas.deploy.push import push


def run(arguments: Namespace) -> None:
    """Upload a folder, and say where it is."""
    print(push(arguments.folder, arguments.repository, private=not arguments.public))
