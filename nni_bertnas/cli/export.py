"""`bertnas export`: a saved model in another format."""

from argparse import Namespace

from nni_bertnas.deploy.export import export
from nni_bertnas.report.card import model_card
from nni_bertnas.report.exports import find_exported


def run(arguments: Namespace) -> None:
    """Export a model, and say how near it comes to what it was made from."""
    found = find_exported(arguments.model, arguments.rows)
    least = found.settings.min_agreement if arguments.min_agreement is None else arguments.min_agreement
    agreement = export(
        found.folder,
        arguments.to,
        arguments.output,
        held_out=found.held_out,
        calibration=found.calibration,
        min_agreement=least,
        card=None if found.run is None or arguments.to != "hf" else model_card(found.run, found.folder),
    )
    print(
        f"{arguments.output}: {found.folder} as {arguments.to}; answers as it does on {agreement.share:.2%} of "
        f"{agreement.num_rows:,} held-out rows, greatest difference {agreement.difference:.1e}"
    )
