"""nni_bertnas: block-wise architecture search and distillation of BERT students with NNI.

The public names are loaded when they are first used, as torch, transformers and NNI take seconds to load.
"""

import importlib
import os
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "CellSpace": "search_space.spaces",
    "DistillationEvaluator": "nni_bertnas.search.evaluator",
    "FeatureStore": "nni_bertnas.store.reader",
    "Run": "nni_bertnas.stages.run",
    "Study": "nni_bertnas.config",
    "StudentForSequenceClassification": "search_space.student",
    "TrainingSettings": "nni_bertnas.config",
    "load_study": "nni_bertnas.study_files",
    "run_study": "nni_bertnas.stages.stage",
}
__all__ = ["__version__", "quiet_libraries", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def quiet_libraries() -> None:
    """Keep transformers' loading bars and reports out of a command's output, unless the user asked for them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
