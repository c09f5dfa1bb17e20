"""Models and tokenizers that are not what they seem are refused: every way to a model goes through these checks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_tiny_model
from transformers import BertConfig, BertForSequenceClassification

from nni_bertnas.data.loading import load_tokenizer_of, unknown_share
from nni_bertnas.data.models import load_classifier, load_encoder, load_tokenizer, weights_fingerprint
from nni_bertnas.data.rows import Rows
from nni_bertnas.deploy.predict import load_predictor
from nni_bertnas.errors import ConfigError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of two labels with its tokenizer."""
    folder = write_tiny_model(tmp_path_factory.mktemp("loading") / "model")
    torch.manual_seed(1)
    shape = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    model = BertForSequenceClassification(shape)
    model.classifier.weight.data.normal_()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def model(source: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(source, tmp_path / "model"))


def test_a_whole_model_is_loaded_as_it_is(model: Path) -> None:
    loaded, tokenizer = load_classifier(model)
    assert len(tokenizer) == 100 and not loaded.training
    before = load_file(model / "model.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
    assert load_encoder(str(model)).config.hidden_size == 32  # of a classifier's file the head is left over


def no_tokenizer(model: Path) -> str:
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink(missing_ok=True)
    return r"tokenizer knows \d word pieces, the model 100; copy the tokenizer's files|the tokenizer cannot be loaded"


def endless(model: Path) -> str:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**30}))
    return r"config.json asks for 10{30} layers; correct it"


def huge(model: Path) -> str:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 10**9}))
    return r"config.json asks for 13\d,\d{3},\d{3},\d{3} parameters, its files hold"


def other_tokenizer(model: Path) -> str:
    words = json.loads((model / "tokenizer.json").read_text())
    words["model"]["vocab"] |= {f"x{number}": 100 + number for number in range(5)}
    (model / "tokenizer.json").write_text(json.dumps(words))
    return "knows 105 word pieces, more than the model, 100"


def wrapped(model: Path) -> str:
    weights = load_file(model / "model.safetensors")
    named = {f"_orig_mod.{name}": value for name, value in weights.items()}
    save_file(named, model / "model.safetensors", metadata={"format": "pt"})
    return "lack .* of the model's weights.*_orig_mod"


def half_a_model(model: Path) -> str:
    weights = load_file(model / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "layer.1." not in name}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
    return "lack 16 of the model's weights"


def fewer_layers_in_the_configuration(model: Path) -> str:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    return "hold more layers than config.json says"


def not_a_number(model: Path) -> str:
    weights = load_file(model / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.weight"][0, 0] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return "bert.encoder.layer.1.output.dense.weight has values that are no finite numbers|" + (
        "encoder.layer.1.output.dense.weight has values that are no finite numbers"
    )


def pointer(model: Path) -> str:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 437955512\n"
    (model / "model.safetensors").write_text(text)
    return r"model.safetensors is a pointer of Git LFS, not the file; fetch it with: git lfs pull"


def cut_short(model: Path) -> str:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: len(content) // 2])
    return "cannot be loaded: "


def no_json(model: Path) -> str:
    (model / "config.json").write_text('{"model_type": "bert", ')
    return "cannot be loaded: "


def adapter(model: Path) -> str:
    (model / "config.json").unlink()
    (model / "adapter_config.json").write_text("{}")
    return "holds an adapter, no whole model; merge it"


def no_configuration(model: Path) -> str:
    (model / "config.json").unlink()
    return "holds no config.json"


DAMAGES = [
    no_tokenizer, other_tokenizer, wrapped, half_a_model, fewer_layers_in_the_configuration, not_a_number, pointer,
    cut_short, no_json, adapter, no_configuration, endless, huge,
]  # fmt: skip
OF_TOKENIZER = [no_tokenizer, other_tokenizer]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_model_is_one_error_with_file_and_remedy(model: Path, damage: Callable[[Path], str]) -> None:
    message = damage(model)
    for load in (load_classifier, load_predictor):
        with pytest.raises(ConfigError, match=message) as caught:
            load(model)
        assert "\n" not in str(caught.value) and str(model) in str(caught.value)
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(str(model)) if damage in OF_TOKENIZER else load_encoder(str(model))


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "~/models/bert", "models/of/mine"])
def test_a_path_that_is_not_there_is_no_name_of_the_hub(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no such folder; correct the path"):
        load_tokenizer(name)


def test_a_file_is_no_folder(model: Path) -> None:
    with pytest.raises(ConfigError, match="is a file; give the folder"):
        load_tokenizer(str(model / "model.safetensors"))


def test_what_share_of_the_pieces_is_unknown(model: Path) -> None:
    tokenizer = load_tokenizer(str(model))
    assert unknown_share(tokenizer, ["qaa qab zzz", "zzz"]) == pytest.approx(0.5)
    assert unknown_share(tokenizer, []) == 0


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "pytorch_model.bin"])
def test_the_fingerprint_covers_every_file_that_is_read(model: Path, file: str) -> None:
    (model / "pytorch_model.bin").write_bytes(b"one")
    before = weights_fingerprint(str(model))
    (model / "result.json").write_text("{}")  # of a study
    assert weights_fingerprint(str(model)) == before
    with (model / file).open("ab") as content:
        content.write(b" ")
    assert weights_fingerprint(str(model)) != before


def test_predictions_are_those_of_the_weights_in_the_file(model: Path) -> None:
    found = load_predictor(model).probabilities(Rows(["qaa qab"], [0]))
    plain = BertForSequenceClassification.from_pretrained(model).eval()
    ids = load_tokenizer(str(model))("qaa qab", return_tensors="pt")
    with torch.inference_mode():
        assert found[0].tolist() == pytest.approx(plain(**ids).logits.softmax(-1)[0].tolist(), abs=1e-5)


def test_a_tokenizer_that_needs_sentencepiece_says_so(tmp_path: Path) -> None:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    shape = XLMRobertaConfig(vocab_size=100, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    XLMRobertaModel(shape).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    message = r"the tokenizer cannot be read from sentencepiece\.bpe\.model alone; install sentencepiece"
    with pytest.raises(ConfigError, match=message):
        load_tokenizer_of(str(tmp_path), "teacher.model: x", 100)
