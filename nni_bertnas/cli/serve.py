"""`bertnas serve`: an exported model as a web service."""

from argparse import Namespace

from nni_bertnas.errors import ConfigError
from nni_bertnas.runtime.classifier import Classifier


def run(arguments: Namespace) -> None:
    """Answer requests until the process is ended."""
    classifier = Classifier(arguments.folder, threads=arguments.threads, batch_size=arguments.max_batch)
    try:
        from nni_bertnas.runtime.server import Limits, serve
    except ImportError as error:
        raise ConfigError(f"serve needs {error.name}; install it with: pip install 'nni-bertnas[serve]'") from error
    limits = Limits(max_texts=arguments.max_texts, max_characters=arguments.max_characters)
    serve(classifier, arguments.host, arguments.port, limits)
