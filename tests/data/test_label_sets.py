import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from torch.nn import functional as F

from nni_bertnas.config import CustomSettings, TaskSettings
from nni_bertnas.data.batches import Batch
from nni_bertnas.data.label_sets import MOST, indicators, members, read_set, set_number, strata
from nni_bertnas.data.rows import UNLABELLED
from nni_bertnas.data.task_data import load_task
from nni_bertnas.data.tasks import task_spec
from nni_bertnas.errors import ConfigError
from nni_bertnas.training.losses import Balance, Output, Scale, label_loss, soft_cross_entropy
from nni_bertnas.training.metrics import Scorer

SETS = [["joy"], ["anger"], [], ["joy", "anger", "fear"], ["fear", "joy"]]


def task(train: str, **fields: Any) -> TaskSettings:
    own = {name: fields.pop(name) for name in list(fields) if name in CustomSettings.__dataclass_fields__}
    custom = CustomSettings(**{"train": train, "text_columns": ["text"], "kind": "multi_label", **own})
    return TaskSettings(name="custom", source="files", custom=custom, **fields)


@given(st.sets(st.integers(0, MOST - 1)))
def test_a_set_is_a_number_and_back(labels: set[int]) -> None:
    number = set_number(labels)
    assert set(members(number, MOST)) == labels and 0 <= number < 1 << 62
    row = indicators(torch.tensor([number, UNLABELLED]), MOST)
    assert set(row[0].nonzero().flatten().tolist()) == labels and not row[1].any()


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (["joy", "anger", "joy"], ["joy", "anger"]), ("joy, anger", ["joy", "anger"]), ("", []), (None, []),
        (float("nan"), []), ([], []), (3.0, ["3"]), ([3, 17], ["3", "17"]), (np.array(["a"]), ["a"]), 
        ({"joy": 1}, None), ([["joy"]], None),
    ],
)  # fmt: skip
def test_what_a_cell_says(value: Any, names: list[str] | None) -> None:
    assert read_set(value, ",") == names


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_files_of_sets(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{ending}"
    rows = [{"text": f"text {number}", "label": SETS[number % 5]} for number in range(100)]
    if ending == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    elif ending == "csv":
        file.write_text("text,label\n" + "".join(f"{one['text']},{'|'.join(one['label'])}\n" for one in rows))
    else:
        pd.DataFrame(rows).to_parquet(file)
    data = load_task(task(str(file), label_separator="|"))
    assert data.label_names == ("anger", "fear", "joy")
    found = {text: label for part in data.splits.values() for text, label in zip(part.texts, part.labels, strict=True)}
    assert [found[f"text {number}"] for number in range(5)] == [0b100, 0b001, 0, 0b111, 0b110]
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 80, "dev": 10, "test": 10}
    assert all({0b100, 0b001} & set(part.labels) for part in data.splits.values())


def test_files_with_a_column_for_every_label(tmp_path: Path) -> None:
    marks = {True: ["1", "1.0", "true", "True"], False: ["0", "0.0", "false", ""]}
    lines = ["text,joy,anger,fear"]
    for number in range(100):
        cells = [marks[name in SETS[number % 5]][number % 4] for name in ("joy", "anger", "fear")]
        lines.append(f"text {number},{','.join(cells)}")
    (tmp_path / "a.csv").write_text("\n".join(lines))
    columns = ["joy", "anger", "fear"]
    data = load_task(task(str(tmp_path / "a.csv"), label_columns=columns))
    assert data.label_names == ("joy", "anger", "fear")
    found = {text: label for part in data.splits.values() for text, label in zip(part.texts, part.labels, strict=True)}
    assert [found[f"text {number}"] for number in range(5)] == [0b001, 0b010, 0, 0b111, 0b101]
    (tmp_path / "a.csv").write_text("\n".join([*lines[:3], "text x,1,maybe,0", *lines[3:]]))
    with pytest.raises(ConfigError, match=r"a.csv:4: anger must be 0 or 1, got 'maybe'; mend the row"):
        load_task(task(str(tmp_path / "a.csv"), label_columns=columns))
    assert (
        sum(map(len, load_task(task(str(tmp_path / "a.csv"), label_columns=columns, bad_rows="skip")).splits.values()))
        == 100
    )
    with pytest.raises(ConfigError, match=r"a.csv:2: no column awe \(task.custom.label_columns\)"):
        load_task(task(str(tmp_path / "a.csv"), label_columns=["joy", "awe"]))
    with pytest.raises(ValueError, match="label_columns must differ, with kind multi_label"):
        CustomSettings(train="a.csv", text_columns=["text"], label_columns=columns)


def test_what_is_no_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": f"text {number}", "label": SETS[number % 5]} for number in range(100)]
    rows[3]["label"] = {"joy": 1}
    rows[8]["label"] = ["joy", "bliss"]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        ConfigError, match=r"a.jsonl:4: label must be a list of texts or numbers, or one text, got dict"
    ):
        load_task(task(str(tmp_path / "a.jsonl")))
    names = ["joy", "anger", "fear"]
    with caplog.at_level(logging.WARNING):
        data = load_task(task(str(tmp_path / "a.jsonl"), labels=names, bad_rows="skip"))
    assert sum(map(len, data.splits.values())) == 98 and "a.jsonl:9: label ['joy', 'bliss']" in caplog.text
    many = [{"text": f"text {number}", "label": [number]} for number in range(100)]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, many)))
    with pytest.raises(ConfigError, match="there are 100 labels; a row can have any of at most 62"):
        load_task(task(str(tmp_path / "b.jsonl")))


def test_rows_are_split_by_their_rarest_label() -> None:
    assert strata([0b01] * 5 + [0b11] * 3 + [0, 0], 2) == [0] * 5 + [1] * 3 + [-1] * 2
    assert strata([0b01] * 5 + [0b10], 2) == [0] * 6  # what is alone goes with the largest


def test_metrics_and_losses_of_sets(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n")
    spec = task_spec(task(str(tmp_path / "a.csv")))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 3, generator=generator)
    truth = torch.randint(0, 2, (40, 3), generator=generator)
    truth[:, 2] = 0
    labels = truth @ torch.tensor([1, 2, 4])
    scorer = Scorer(spec)
    scorer.add(logits[:25], labels[:25])
    scorer.add(logits[25:], labels[25:])
    said = (logits > 0).numpy()
    naive = {
        "micro_f1": f1_score(truth.numpy().ravel(), said.ravel()),
        "macro_f1": np.mean([f1_score(truth[:, one], said[:, one], zero_division=0) for one in range(3)]),
        "exact_match": np.mean((said == truth.numpy()).all(1)),
    }
    assert scorer.scores() == pytest.approx(naive)
    scorer.add(logits, labels)
    own = {f"f1 of {name}": f1_score(truth[:, one], said[:, one], zero_division=0) for one, name in enumerate("abc")}
    assert scorer.scores("abc") == pytest.approx(naive | own)
    known = labels.clone()
    known[::4] = UNLABELLED
    rows = known != UNLABELLED
    expected = F.binary_cross_entropy_with_logits(logits[rows], truth[rows].float())
    torch.testing.assert_close(label_loss(logits, known, Balance(sets=True)), expected)
    assert float(label_loss(logits, torch.full((40,), UNLABELLED), Balance(sets=True))) == 0
    share = truth[rows].float().mean(0)
    for kind in ("weights", "logits"):
        balance = Balance.of(kind, labels[rows].tolist(), 3, sets=True)
        odds = share.clamp(1 / 30, 29 / 30).logit()
        weights, offset = ((-odds).exp(), 0) if kind == "weights" else (None, odds)
        own = F.binary_cross_entropy_with_logits(logits[rows] + offset, truth[rows].float(), pos_weight=weights)
        torch.testing.assert_close(label_loss(logits, known, balance), own)
    batch = Batch(mask=torch.ones(40, 1, dtype=torch.bool), logits=torch.randn(40, 3, generator=generator))
    assert batch.logits is not None
    own = F.binary_cross_entropy_with_logits(logits / 2, (batch.logits / 2).sigmoid()) * 4
    scale = Scale(temperature=2.0, balance=Balance(sets=True))
    torch.testing.assert_close(soft_cross_entropy(Output(logits=logits), batch, scale), own)
