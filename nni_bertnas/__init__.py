"""nni_bertnas: block-wise architecture search and distillation of BERT students with NNI."""

import os

__version__ = "0.1.0"


def quiet_libraries() -> None:
    """Keep transformers' loading bars and reports out of a command's output, unless the user asked for them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
