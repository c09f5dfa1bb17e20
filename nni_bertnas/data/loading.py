"""Models and tokenizers out of folders, and the check that what was loaded is what the folder holds.

`from_pretrained` makes up what is missing: weights of other names are drawn at random, a folder without a tokenizer
gives an empty one. Here that is one error, with the file and the remedy.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_bertnas.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_POINTER = b"version https://git-lfs"
_NUMBER = re.compile(r"\.\d+\.")
_FEW_KNOWN = 0.5  # share of a model's pieces that its tokenizer must know
_SHOWN = 3
_LAYERS = 1000  # more than any encoder has
_SLACK, _SMALL = 8, 50_000_000  # parameters by the byte of the files (four bits each at least), and besides
_CODE = ("trust_remote_code", "contains custom code")  # what transformers says where a model comes with code
_PICKLE = "Weights only load failed"  # what torch says of a pickle that holds more than tensors


@contextmanager
def loading(what: str, problem: str = "cannot be loaded") -> Iterator[None]:
    """Make one clear error of whatever `from_pretrained` raises.

    Args:
        what: Is loaded, with the setting that names it.
        problem: What is wrong where it fails.

    Raises:
        ConfigError: It failed.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # of pickle, zip, JSON, safetensors, torch, tokenizers, and of the file system
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if any(mark in str(error) for mark in _CODE):
            reason = (
                "it comes with code of its own, which is not run; where you trust it, set teacher.trust_remote_code: "
                "true (of teacher.model alone)"
            )
        elif _PICKLE in str(error):
            reason = "its .bin file holds more than tensors, and is not opened; ask for the weights as safetensors"
        raise ConfigError(f"{what} {problem}: {reason}") from error


def check_source(source: str, what: str) -> None:
    """Whether a model's folder is whole, as far as its files tell; a hub name is left to the hub.

    Args:
        source: A folder or hub name.
        what: The setting that names it, and its value.

    Raises:
        ConfigError: It is not there, or holds pointers or an adapter instead of weights.
    """
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists():
            raise ConfigError(f"{what} is a file; give the folder that holds config.json and the weights")
        if source.startswith((".", "/", "~", "\\")) or source.count("/") > 1 or "\\" in source:
            raise ConfigError(f"{what}: there is no such folder; correct the path")
        return
    names = {file.name for file in folder.iterdir()}
    if "config.json" not in names and "adapter_config.json" in names:
        raise ConfigError(
            f"{what} holds an adapter, no whole model; merge it into its base model (peft: merge_and_unload) and "
            "save that"
        )
    if "config.json" not in names:
        raise ConfigError(f"{what} holds no config.json; give the folder that save_pretrained wrote")
    check_links(folder, what)
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.stat().st_size < 1024 and file.read_bytes().startswith(_POINTER):
            raise ConfigError(f"{what}: {file.name} is a pointer of Git LFS, not the file; fetch it with: git lfs pull")


def check_links(folder: Path, what: str, *, deep: bool = False) -> None:
    """Whether all files of a folder lie in it, so that what is read, copied or sent of it is its own.

    The hub's cache is made of links from `snapshots/REVISION` to `blobs` beside it; those are its own, too.

    Args:
        folder: Of a model.
        what: The setting that names it, and its value.
        deep: Whether folders inside it count, too.

    Raises:
        ConfigError: A link leads elsewhere.
    """
    own = [folder.resolve()]
    if own[0].parent.name == "snapshots":
        own.append(own[0].parents[1] / "blobs")
    for path in sorted(folder.rglob("*") if deep else folder.iterdir()):
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in own):
            raise ConfigError(
                f"{what}: {path.relative_to(folder)} is a link out of the folder, to {os.readlink(path)}; put the file "
                "itself there"
            )


def load_checked(
    kind: Any, source: str, what: str, *, new: Callable[[str, str], bool] = lambda name, base: False,
    trusted: bool = False, **options: Any,
) -> "PreTrainedModel":  # fmt: skip
    """A model whose weights are all out of its files.

    Args:
        kind: An auto class of transformers.
        source: A folder or hub name.
        what: The setting that names it, and its value.
        new: Takes a weight's name and the prefix of the model's encoder: whether it may be missing, as a new head is.
        trusted: Whether code that comes with the model is run.
        **options: Of `from_pretrained`.

    Raises:
        ConfigError: It cannot be loaded, or weights are missing, too many or no numbers.
    """
    check_source(source, what)
    _check_size(kind, source, what, trusted)
    with loading(what):
        model, info = kind.from_pretrained(
            source, output_loading_info=True, trust_remote_code=trusted, weights_only=True, **options
        )
    base = model.base_model_prefix
    lost = {name for name in info["missing_keys"] if not new(name, base)}
    lost |= {name for name, *_ in info["mismatched_keys"] if not new(name, base)}
    left = set(info["unexpected_keys"])
    whole = any(name.startswith(f"{base}.") for name in model.state_dict())  # encoder and head
    if lost and whole and all(new_head(name, base) for name in lost):
        raise ConfigError(f"{what}: its files have no head of this kind, such as {_some(lost)}; name another model")
    if lost:
        raise ConfigError(
            f"{what}: its files lack {len(lost)} of the model's weights, such as {_some(lost)}; "
            + (
                f"they hold others, such as {_some(left)}: save the model itself, without a wrapper around it"
                if left
                else "the files are not whole, or config.json is of another model"
            )
        )
    own = {_NUMBER.sub(".", name.removeprefix(f"{base}.")) for name in model.state_dict()}
    more = {name for name in left if _NUMBER.search(name) and _NUMBER.sub(".", name.removeprefix(f"{base}.")) in own}
    if more:
        raise ConfigError(
            f"{what}: its files hold more layers than config.json says, such as {_some(more)}; correct config.json"
        )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ConfigError(f"{what}: the weight {name} has values that are no finite numbers; train or save it anew")
    if not getattr(model.config, "is_encoder_decoder", False):
        import torch

        with loading(what, "cannot read a text; its config.json does not fit"), torch.inference_mode():
            model(input_ids=torch.ones(1, 2, dtype=torch.long))
    loaded: PreTrainedModel = model
    return loaded


def _check_size(kind: Any, source: str, what: str, trusted: bool) -> None:
    """Whether a configuration asks for about as much as a folder's files hold, before memory is given to it.

    Raises:
        ConfigError: For far more.
    """
    if not Path(source).is_dir():
        return
    import torch
    from transformers import AutoConfig

    with loading(what):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trusted)
        layers = getattr(config, "num_hidden_layers", 0)
    held = sum(file.stat().st_size for file in Path(source).iterdir() if file.is_file())
    if isinstance(layers, int) and layers > _LAYERS:
        raise ConfigError(f"{what}: config.json asks for {layers} layers; correct it")
    with loading(what), torch.device("meta"):
        wanted = sum(one.numel() for one in kind.from_config(config, trust_remote_code=trusted).parameters())
    if wanted > _SLACK * held + _SMALL:
        raise ConfigError(
            f"{what}: config.json asks for {wanted:,} parameters, its files hold {held:,} bytes: they are not whole, "
            "or config.json is of another model"
        )


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:_SHOWN])


def new_head(name: str, base: str) -> bool:
    """Whether a weight is of a head on top of the encoder, or of the pooler that leads to it."""
    return not name.startswith(f"{base}.") or "pooler" in name


def new_pooler(name: str, base: str) -> bool:
    """Whether a weight is of the pooler, which hidden states do without."""
    return "pooler" in name


def load_tokenizer_of(
    source: str, what: str, vocab_size: int | None = None, trusted: bool = False
) -> "PreTrainedTokenizerBase":
    """A model's tokenizer.

    Args:
        source: A folder or hub name.
        what: The setting that names it, and its value.
        vocab_size: Of the model; None: it is not known.
        trusted: Whether code that comes with the model is run.

    Raises:
        ConfigError: There is none, or it is not the model's.
    """
    from transformers import AutoTokenizer  # takes a second to load

    check_source(source, what)
    names = {file.name for file in Path(source).iterdir()} if Path(source).is_dir() else set()
    pieces_file = next((name for name in sorted(names) if name.endswith(".model")), None)
    problem = "cannot be loaded"
    if pieces_file and "tokenizer.json" not in names:
        problem = (
            f"cannot be read from {pieces_file} alone; install sentencepiece and protobuf, or save it as "
            "tokenizer.json beside the weights, which needs neither"
        )
    with loading(f"{what}: the tokenizer", problem):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=trusted)
        if not isinstance(tokenizer.model_max_length, int | float) or tokenizer.model_max_length < 1:
            raise ValueError(f"model_max_length must be a number, got {tokenizer.model_max_length!r}")
        tokenizer(["a", "b"], ["c", "d"], truncation=True, max_length=8)  # so that bad settings show here
    pieces = len(tokenizer)
    if vocab_size is not None and pieces < _FEW_KNOWN * vocab_size:
        raise ConfigError(
            f"{what}: its tokenizer knows {pieces} word pieces, the model {vocab_size}; copy the tokenizer's files "
            "(tokenizer.json, or vocab.txt and the like) of the base model into the folder"
        )
    if vocab_size is not None and pieces > vocab_size:
        raise ConfigError(
            f"{what}: its tokenizer knows {pieces} word pieces, more than the model, {vocab_size}; it is of another "
            "model, or tokens were added after the training"
        )
    return tokenizer


def unknown_share(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> float:
    """What share of the word pieces of some texts the tokenizer does not know."""
    unknown = tokenizer.unk_token_id
    if unknown is None or not len(texts):
        return 0.0
    ids = [number for row in tokenizer(list(texts), add_special_tokens=False).input_ids for number in row]
    return ids.count(unknown) / max(1, len(ids))
