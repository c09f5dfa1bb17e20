"""The distillation evaluator under the name by which NNI's users import it."""

from nni_bertnas.search.evaluator import DistillationEvaluator

__all__ = ["DistillationEvaluator"]
