"""Pretrained models by name: a path, a hub name, or a folder inside an installed package."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nni_bertnas.artifacts import file_fingerprint, fingerprint
from nni_bertnas.errors import ConfigError
from nni_bertnas.machine import best_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def package_folder(name: str) -> Path:
    """The folder of an installed package, found without importing it.

    Raises:
        ConfigError: It is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"package {name} is not installed; install it, e.g. with pip install 'nni-bertnas[demo]'")
    return Path(next(iter(spec.submodule_search_locations)))


def resolve_model(name: str, field: str = "teacher.model") -> str:
    """A folder or hub name that `from_pretrained` takes.

    Args:
        name: A path, a hub name, or `package:NAME` for the folder with a config.json inside an installed package.
        field: The setting that names it.

    Raises:
        ConfigError: The package is not installed or holds no model.
    """
    if not name.startswith("package:"):
        return name
    root = package_folder(name.removeprefix("package:"))
    found = sorted(root.rglob("config.json"), key=lambda path: len(path.parts))
    if not found:
        raise ConfigError(f"{field}: package {root.name} holds no config.json")
    return str(found[0].parent)


@contextmanager
def loading(what: str, problem: str = "cannot be loaded") -> Iterator[None]:
    """Make one clear error of what `from_pretrained` raises.

    Args:
        what: Is loaded, with the setting that names it.
        problem: What is wrong where it fails.

    Raises:
        ConfigError: It failed.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what} {problem}: {str(error).splitlines()[0]}") from error


def load_tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, by the name that `teacher.model` has.

    Raises:
        ConfigError: It cannot be loaded.
    """
    from transformers import AutoTokenizer  # takes a second to load

    with loading(f"teacher.model: the tokenizer of {model}"):
        return AutoTokenizer.from_pretrained(resolve_model(model))


def load_classifier(folder: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """A saved teacher or student in eval mode without gradients, and its tokenizer.

    Raises:
        ConfigError: The folder holds none that can be loaded.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # takes seconds to load

    import search_space.student  # noqa: F401  makes Hugging Face's auto classes know the student

    with loading(str(folder)):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder)


def load_encoder(model: str) -> "PreTrainedModel":
    """The encoder of a model, by the name that `teacher.model` has, in eval mode without gradients, where it runs best.

    Raises:
        ConfigError: It cannot be loaded.
    """
    from transformers import AutoModel  # takes seconds to load

    with loading(f"teacher.model: {model}"):
        return AutoModel.from_pretrained(resolve_model(model)).eval().requires_grad_(False).to(best_device())


def weights_fingerprint(model: str) -> str:
    """A hash of the weights in a model's folder; the name itself of a model on the hub."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    return fingerprint(sorted(file_fingerprint(file) for file in folder.glob("*.safetensors")))
