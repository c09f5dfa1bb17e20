"""The search of head and encoding, through NNI: every way to compare two texts is tried once."""

from collections.abc import Callable, Sequence
from pathlib import Path

from nni_bertnas.config import StudentSettings
from nni_bertnas.search.evaluator import SampleEvaluator
from nni_bertnas.search.search import run_experiment
from nni_bertnas.search.trials import Proposals
from search_space.spaces import StudentSpace
from search_space.student import StudentConfig


def search_shapes(
    shapes: Sequence[StudentSettings], config: StudentConfig, metric: Callable[[StudentSettings], float], folder: Path
) -> dict[str, float]:
    """Try students that differ in head or encoding.

    Args:
        shapes: What is tried.
        config: Of any such student.
        metric: Takes a shape; high is good.
        folder: Where NNI keeps its files.

    Returns:
        The metric of every shape, by :func:`shape_name`.
    """
    found: dict[str, float] = {}
    by_name = {(shape.head, shape.encoding): shape for shape in shapes}
    heads, encodings = (list(dict.fromkeys(names)) for names in zip(*by_name, strict=True))

    def try_one(sample: object) -> float:
        assert isinstance(sample, dict)
        shape = by_name[sample["head"], sample["encoding"]]
        found[shape_name(shape)] = metric(shape)
        return found[shape_name(shape)]

    samples = Proposals(({"head": head, "encoding": encoding}, lambda metric: None) for head, encoding in by_name)
    run_experiment(StudentSpace(config, heads, encodings), SampleEvaluator(try_one), samples, "simplified", folder)
    return found


def shape_name(shape: StudentSettings) -> str:
    """Head and encoding in one word, as results name them."""
    return f"{shape.head}_{shape.encoding}"
