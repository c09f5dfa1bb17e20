"""Models that others made: nothing of them is run, and nothing outside their folder is read."""

import ast
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_run, write_tiny_model
from transformers import BertConfig, BertForSequenceClassification

from nni_bertnas.data.models import load_classifier, load_config, load_encoder, load_tokenizer
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.stages.stage import ensure
from nni_bertnas.training.probes import Probes
from search_space.operations import make_operation
from search_space.student import StudentConfig, StudentForSequenceClassification

CODE = """
import os
from pathlib import Path
Path({mark!r}).write_text("run")
from transformers import BertConfig, BertForSequenceClassification, BertModel

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertModel):
    config_class = OwnConfig

class OwnClassifier(BertForSequenceClassification):
    config_class = OwnConfig
"""
AUTO = {
    "AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel",
    "AutoModelForSequenceClassification": "own.OwnClassifier",
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is made when what should not run runs."""
    return tmp_path / "mark"


def with_code(model: Path, mark: Path) -> None:
    """Let a model come with code of its own."""
    (model / "own.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": AUTO}))


@pytest.mark.parametrize("load", [load_config, load_encoder, load_tokenizer, lambda name: load_classifier(Path(name))])
def test_code_beside_a_model_is_not_run(
    model: Path, mark: Path, load: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_code(model, mark)
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")  # transformers would ask, and a person might say yes
    with pytest.raises(ConfigError, match=r"code of its own, which is not run; .*teacher\.trust_remote_code: true"):
        load(str(model))
    assert not mark.exists()


def test_code_is_run_where_the_study_says_so_of_the_teacher_alone(
    model: Path, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_code(model, mark)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    root, teacher = tmp_path / "root", {"model": str(model), "epochs": 1}
    with pytest.raises(ConfigError, match="not run"):
        ensure(tiny_run(root, teacher=teacher), "teacher")
    assert not mark.exists()
    run = tiny_run(root, teacher={**teacher, "trust_remote_code": True})
    ensure(run, "teacher")
    assert mark.exists() and type(run.load_teacher()[0]).__name__ == "OwnClassifier"
    with pytest.raises(ConfigError, match="not run"):
        load_classifier(run.folder("teacher"))  # as bertnas predict opens it, who knows no study


class Evil:
    """What makes a folder when it is read by pickle."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("write", ["torch", "pickle"])
@pytest.mark.parametrize("load", [load_encoder, lambda name: load_classifier(Path(name))])
def test_a_pickle_that_holds_more_than_tensors_is_not_opened(
    model: Path, mark: Path, load: Callable[[str], object], write: str
) -> None:
    (model / "model.safetensors").unlink()
    path = model / "pytorch_model.bin"
    if write == "torch":
        torch.save({"weight": Evil(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Evil(mark), protocol=2))
    with pytest.raises(ConfigError, match="holds more than tensors, and is not opened; ask for the weights as safe"):
        load(str(model))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists()  # else the test above says nothing


def test_weights_as_bin_are_read_as_before(model: Path) -> None:
    BertForSequenceClassification(BertConfig.from_pretrained(model)).save_pretrained(model)
    loaded, _ = load_classifier(model)
    torch.save(loaded.state_dict(), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    again, _ = load_classifier(model)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_arrays_that_hold_objects_are_not_opened(tmp_path: Path, mark: Path) -> None:
    names = ("weights", "biases", "quality", "edges", "separate")
    np.savez(tmp_path / "probes.npz", **{name: np.array([Evil(mark)], dtype=object) for name in names})
    with pytest.raises(PhaseError, match=r"probes\.npz is missing or damaged .*allow_pickle=False"):
        Probes.load(tmp_path / "probes.npz")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["os:_exit", "os.abort", "builtins:exec", "subprocess:Popen", "code:interact"])
def test_a_name_out_of_a_students_configuration_is_not_called(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a class of torch\.nn\.Module"):
        make_operation(name, 8)
    cell = {"space": "layers", "depth": 1, "architecture": {"layer_0": name}}
    config = StudentConfig(cells=[], hidden_size=16, embedding_size=8, vocab_size=100, teacher_hidden_size=16)
    StudentForSequenceClassification(config).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "cells": [cell]}))
    with pytest.raises(ConfigError, match="must be a class of torch"):
        load_classifier(tmp_path)


# links


@pytest.mark.parametrize("file", ["vocab.txt", "model.safetensors", "more.json"])
def test_a_link_out_of_a_models_folder_is_refused(model: Path, tmp_path: Path, file: str) -> None:
    secret = tmp_path / "secret"
    if (model / file).exists():
        shutil.move(model / file, secret)
    (model / file).symlink_to(secret)
    for load in (load_config, load_encoder, load_tokenizer):
        with pytest.raises(ConfigError, match=rf"{file} is a link out of the folder, to .*secret; put the file itself"):
            load(str(model))


def test_links_inside_and_those_of_the_hubs_cache_are_followed(model: Path, tmp_path: Path) -> None:
    shutil.move(model / "config.json", model / "real.json")
    (model / "config.json").symlink_to("real.json")
    assert load_encoder(str(model)).config.hidden_size == 32
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    revision = cache / "snapshots" / "0123"
    revision.mkdir(parents=True)
    for number, path in enumerate(sorted(model.iterdir())):
        shutil.copy(path, cache / "blobs" / str(number))
        (revision / path.name).symlink_to(Path("../../blobs") / str(number))
    assert load_encoder(str(revision)).config.hidden_size == 32


FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "torch.load", "pickle.load", "pickle.loads", "joblib.load", "os.system",
    "yaml.unsafe_load", "yaml.full_load",
}  # fmt: skip
ARGUED = {("ranks.py", "pickle.loads")}  # between a process and its own helpers, through a pipe that nobody else has
FORBIDDEN_WORDS = {"allow_pickle", "shell", "trust_remote_code"}  # as True


def test_nothing_in_the_library_reads_pickles_or_runs_texts() -> None:
    """By its sources: what would, has to be argued for here."""
    root, calls = Path(__file__).parents[2], 0
    for folder in ("nni_bertnas", "search_space", "trials"):
        for path in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    name, words = ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords}
                    calls += 1
                    allowed = (
                        name not in FORBIDDEN or (path.name, name) in ARGUED or words.get("weights_only") == "True"
                    )
                    assert allowed and not name.endswith((".extractall", ".unpack_archive")), (path, name)
                    assert not [word for word in FORBIDDEN_WORDS if words.get(word) == "True"], (path, name)
                    assert name != "yaml.load" or words["Loader"] == "_Loader", path
    assert calls > 1000
