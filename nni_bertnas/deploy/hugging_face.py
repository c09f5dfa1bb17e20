"""Export as a Hugging Face folder that loads where neither this project nor NNI is installed."""

from pathlib import Path

from nni_bertnas.data.models import load_classifier
from nni_bertnas.data.rows import Rows


def export(source: Path, target: Path, rows: Rows) -> None:
    """See :class:`~nni_bertnas.deploy.export.Exporter`.

    A student's model code is written beside its weights as it is in this version, so that
    `AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` works anywhere.
    """
    model, tokenizer = load_classifier(source)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
