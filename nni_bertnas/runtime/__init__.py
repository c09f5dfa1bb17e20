"""An exported model in use, without torch: numpy, onnxruntime and tokenizers are all that it needs.

`bertnas export` copies this folder beside the model as `bertnas_runtime`, so that nothing of nni_bertnas is needed
where the model is used; so its modules name each other alone.
"""

from .classifier import Classifier

__all__ = ["Classifier"]
