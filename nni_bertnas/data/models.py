"""Pretrained models by name: a path, a hub name, or a folder inside an installed package."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nni_bertnas.artifacts import RESULT, check_whole, file_fingerprint, fingerprint
from nni_bertnas.data.loading import check_source, load_checked, load_tokenizer_of, loading, new_pooler
from nni_bertnas.errors import ConfigError
from nni_bertnas.machine import best_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_READ = (".safetensors", ".bin", ".json", ".txt", ".model", ".py")  # endings of the files that transformers reads
_OURS = ("result.json",)  # beside a teacher that a study made; the time it took is in there


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


def load_config(model: str, trusted: bool = False) -> Any:
    """The configuration of a model, by the name that `teacher.model` has.

    Args:
        model: The name.
        trusted: Whether code that comes with the model is run, `teacher.trust_remote_code`.

    Raises:
        ConfigError: It cannot be loaded.
    """
    from transformers import AutoConfig  # takes a second to load

    source, what = resolve_model(model), f"teacher.model: {model}"
    check_source(source, what)
    with loading(what):
        return AutoConfig.from_pretrained(source, trust_remote_code=trusted)


def load_tokenizer(model: str, trusted: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, see :func:`load_config`.

    Raises:
        ConfigError: It cannot be loaded, or is not the model's.
    """
    pieces = getattr(load_config(model, trusted), "vocab_size", None)
    return load_tokenizer_of(resolve_model(model), f"teacher.model: {model}", pieces, trusted)


def load_classifier(folder: Path, trusted: bool = False) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """A saved teacher or student in eval mode without gradients, and its tokenizer.

    Args:
        folder: Where it is saved.
        trusted: Whether code that lies in the folder is run; a student's own code is never taken from there.

    Raises:
        ConfigError: The folder holds none that can be loaded whole.
        PhaseError: A file is not as it was when the result was written.
    """
    from transformers import AutoModelForSequenceClassification  # takes seconds to load

    import search_space.student  # noqa: F401  makes Hugging Face's auto classes know the student

    for place in (folder, folder.resolve().parent):  # a teacher is a result itself, a student lies in one
        if (place / RESULT).is_file():
            check_whole(place)
    model = load_checked(AutoModelForSequenceClassification, str(folder), str(folder), trusted=trusted)
    pieces = getattr(model.config, "vocab_size", None)
    return model.eval().requires_grad_(False), load_tokenizer_of(str(folder), str(folder), pieces, trusted)


def load_encoder(model: str, trusted: bool = False) -> "PreTrainedModel":
    """The encoder of a model, see :func:`load_config`, in eval mode without gradients, where it runs best.

    Raises:
        ConfigError: It cannot be loaded whole.
    """
    from transformers import AutoModel  # takes seconds to load

    what = f"teacher.model: {model}"
    encoder = load_checked(AutoModel, resolve_model(model), what, new=new_pooler, trusted=trusted)
    return encoder.eval().requires_grad_(False).to(best_device())


def weights_fingerprint(model: str) -> str:
    """A hash of what is read of a model's folder, weights, configuration, tokenizer; the name of one on the hub."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in _READ)
    return fingerprint([(file.name, file_fingerprint(file)) for file in files if file.name not in _OURS])


def without_hooks(model: nn.Module) -> nn.Module:
    """A model that can be copied to another process: transformers sets hooks when hidden states are first asked for.

    It sets them anew when they are asked for again.
    """
    for module in model.modules():
        for number, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__module__", "") == "transformers.utils.output_capturing":
                del module._forward_hooks[number]
        module.__dict__.pop("_output_capturing_hooks_installed", None)
    return model


Packed = tuple[type, Any, torch.dtype, dict[str, torch.Tensor]]


def packed(model: "PreTrainedModel | None") -> Packed | None:
    """What a model can be built of in another process: its kind, configuration, type and weights."""
    if model is None:
        return None
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    return type(model), model.config, model.dtype, state


def unpacked(parts: Packed | None) -> "PreTrainedModel | None":
    """The model, in eval mode, on this process's device."""
    if parts is None:
        return None
    kind, config, dtype, state = parts
    model: PreTrainedModel = kind(config).to(dtype)
    model.load_state_dict(state)
    return model.eval().to(best_device())
