"""nni_bertnas: block-wise architecture search and distillation of BERT students with NNI.

The public names are loaded when they are first used, as torch, transformers and NNI take seconds to load.
"""

import importlib
import logging
import os
import warnings
from typing import Any

__version__ = "0.1.0"

# Threads that wait for each other shall not take the cores from who else works (measured: benchmarks/threads.py).
# OpenMP reads it when torch is loaded; what the user says holds.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
    os.environ["GOMP_SPINCOUNT"] = "1000"

_PUBLIC = {
    "Classifier": "nni_bertnas.runtime.classifier",
    "CellSpace": "search_space.spaces",
    "DistillationEvaluator": "nni_bertnas.search.evaluator",
    "FeatureStore": "nni_bertnas.store.reader",
    "Run": "nni_bertnas.stages.run",
    "Study": "nni_bertnas.config",
    "StudentForSequenceClassification": "search_space.student",
    "TrainingSettings": "nni_bertnas.config",
    "compress": "nni_bertnas.stages.compress",
    "load_study": "nni_bertnas.study_files",
    "run_study": "nni_bertnas.stages.stage",
}
__all__ = ["__version__", "quiet_libraries", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# NNI's torch wrappers and Lightning speak of these at every import or fit; none of them is ours to mend.
_WARNINGS = (
    r".*Buffer.*is found to be not a nn.Module.*",
    r".*LinearCrossEntropyOptions.*",
    r".*does not have many workers.*",
    r".*`srun` command is available.*",  # in a job of Slurm; one process starts all others there
    r".*defined a `validation_step` but have no.*",  # it is for ENAS alone
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*when logging on epoch level in distributed setting.*",  # what dev is scored by is the same on all ranks
)


def quiet_libraries() -> None:
    """Keep libraries' loading bars, reports and harmless warnings out of a command's output.

    Of transformers' the user can ask for by its own environment variables.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
