import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tiny import tiny_run

from nni_bertnas.errors import ConfigError
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure, find
from nni_bertnas.training.teacher import label_map, reorder_outputs


def test_teacher_learns_keeps_labels_and_is_reused(built: Run) -> None:
    folder = built.folder("teacher")
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    result = ensure(built, "teacher")
    assert result["fine_tuned"] and result["dev"]["accuracy"] > 0.9
    assert find(built, "features") is not None
    teacher, _ = built.load_teacher()
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_fine_tuned_teacher_is_taken_as_it_is(built: Run, tmp_path: Path) -> None:
    run = tiny_run(tmp_path, teacher={"model": str(built.folder("teacher")), "fine_tune": "auto"})
    result = ensure(run, "teacher")
    assert not result["fine_tuned"]
    ours, theirs = run.load_teacher()[0], built.load_teacher()[0]
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


def test_a_teacher_with_another_order_of_labels_gives_the_same_answers(built: Run, tmp_path: Path) -> None:
    teacher, tokenizer = built.load_teacher()
    reorder_outputs(teacher, [1, 0])
    teacher.config.id2label = {0: "Positive", 1: "Negative"}
    teacher.config.label2id = {"Positive": 0, "Negative": 1}
    for part in (teacher, tokenizer):
        part.save_pretrained(tmp_path / "turned")
    run = tiny_run(tmp_path, teacher={"model": str(tmp_path / "turned")})
    result = ensure(run, "teacher")
    assert not result["fine_tuned"] and result["glue_dev"] == ensure(built, "teacher")["glue_dev"]
    assert run.load_teacher()[0].config.id2label == {0: "negative", 1: "positive"}


def test_a_teacher_that_cannot_be_loaded_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.model"):
        ensure(tiny_run(tmp_path, teacher={"model": str(tmp_path / "nothing")}), "teacher")
    assert not tiny_run(tmp_path).folder("teacher").exists()


def test_a_head_of_other_labels_is_given_up_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    from transformers import BertConfig

    config = BertConfig(num_labels=2, architectures=["BertForSequenceClassification"])
    assert label_map(config, ("0", "1"), "auto") is None
    said = "its labels are LABEL_0, LABEL_1, the task's are 0, 1: it learns the task with a new head; to keep its own"
    assert said in caplog.text
    caplog.clear()
    assert label_map(BertConfig(architectures=["BertModel"]), ("0", "1"), "auto") is None and not caplog.text


def test_every_stage_in_this_process_tells_how_much_is_done(tmp_path: Path) -> None:
    class Watcher:
        def __init__(self) -> None:
            self.seen: dict[str, list[tuple[int, int]]] = {}
            self.losses: list[float] = []

        def epoch(self, metrics: Mapping[str, float]) -> None:
            pass

        def progress(self, done: int, total: int, what: str = "rows", loss: float | None = None) -> None:
            self.seen.setdefault(what, []).append((done, total))
            if loss is not None:
                self.losses.append(loss)

    run = tiny_run(tmp_path, general={"rows": 50}, augment={"corruptions": 2, "copies": 1, "fit_epochs": 2})
    wanted = {
        "teacher": {"steps"}, "features": {"rows"}, "general": {"rows", "word pieces"}, "corrupt": {"rows labelled"},
        "masked_lm": {"steps"}, "augment": {"rows", "rows labelled"},
    }  # fmt: skip
    for stage, kinds in wanted.items():
        watcher = Watcher()
        with run.tracker(stage, {}, watcher=watcher) as tracker:
            ensure(run, stage, {}, tracker)
        assert set(watcher.seen) == kinds, stage
        for steps in watcher.seen.values():
            assert steps[-1][0] == steps[-1][1]  # all of it, in the end
        if stage == "teacher":
            batches = -(-len(run.data.splits["train"]) // run.study.teacher.batch_size)
            assert watcher.seen["steps"] == [(step + 1, 3 * batches) for step in range(3 * batches)]
            assert 0 < watcher.losses[0] < 2
