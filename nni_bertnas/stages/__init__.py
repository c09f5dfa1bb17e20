"""What a study goes through: one module, and one row of STAGES, each. They chain through what they leave on disk.

The commands of `bertnas`, what `--force` takes, the folders of a run and the job types of Weights & Biases all follow
from the table. Stages are loaded when they are used, as some of them load torch, Lightning and NNI.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One stage.

    Attributes:
        help: What its command says of it.
        on: The stages that it builds on.
    """

    help: str
    on: tuple[str, ...] = ()


STAGES: Mapping[str, Entry] = {
    "teacher": Entry("make the teacher, fine-tuned where it needs it"),
    "features": Entry("run the teacher once over the data and store what it gives", ("teacher",)),
    "general": Entry("what the pretrained model makes of text of no task in particular, for all studies of it"),
    "probes": Entry("linear classifiers on the teacher's edges, where the loss probe has a weight", ("features",)),
    "cell": Entry("the cell phase through NNI", ("features", "probes")),
    "block": Entry("the block phase through NNI", ("cell",)),
    "pairs": Entry("new pairs for the student out of train's texts (study section pairs)", ("features",)),
    "corrupt": Entry("corrupted texts of train for the student (study section augment)", ("features",)),
    "masked_lm": Entry("fit a masked language model to the task's text, for the augmentation"),
    "augment": Entry("new training rows for the student (study section augment)", ("teacher", "masked_lm")),
    "supernet": Entry("the supernet phase through NNI", ("block", "general", "pairs", "corrupt", "augment")),
    "frontier": Entry(
        "students along the front of score and latency through NNI (study field supernet.students)",
        ("block", "general", "pairs", "corrupt", "augment"),
    ),
    "baselines": Entry("students of random and uniform cells through NNI (study section baseline)", ("supernet",)),
}


def built_on(name: str) -> list[str]:
    """A stage and all that build on it, directly or not."""
    found = [name]
    for other, entry in STAGES.items():
        if set(entry.on) & set(found):
            found.append(other)
    return found
