"""The figures of the page against naive ones."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from nni_bertnas.data.metrics import METRICS
from nni_bertnas.data.rows import Rows
from nni_bertnas.report.page.architectures import student_picture
from nni_bertnas.report.page.axes import Axis
from nni_bertnas.report.page.charts import lines
from nni_bertnas.report.page.history import History, read_histories
from nni_bertnas.report.page.markup import Markup, figures, join, table, tag
from nni_bertnas.report.page.predictions import Predictions
from nni_bertnas.report.page.statistics import (
    Interval,
    calibration_error,
    confusion,
    label_counts,
    paired_bootstrap,
    reliability_bins,
    wilson,
)
from nni_bertnas.report.page.verdict import Facts, headline, reasons

Z = 1.959963984540054


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (3, 10), (867, 1067), (1, 1)])
def test_wilsons_ends_are_as_far_from_the_share_as_their_own_spread_allows(right: int, total: int) -> None:
    found, share = wilson(right, total), right / total
    for end in {round(found.low, 12), round(found.high, 12)} - {0.0, 1.0}:
        assert abs(end - share) == pytest.approx(Z * math.sqrt(end * (1 - end) / total))
    assert found.low <= share + 1e-12 and share <= found.high + 1e-12
    assert wilson(0, 0) == Interval(0.0, 1.0)


def test_a_paired_bootstrap_is_of_the_same_rows_for_both() -> None:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, 800)
    teacher = np.where(generator.random(800) < 0.15, 1 - labels, labels)
    student = np.where(generator.random(800) < 0.05, 1 - teacher, teacher)
    first, second, apart = paired_bootstrap(labels, teacher, student, lambda a, b: float((a == b).mean()))
    difference = (student == labels).astype(float) - (teacher == labels)
    half = Z * difference.std() / math.sqrt(800)
    assert (apart.low, apart.high) == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.003)
    # By rows of its own for each, it would be more than twice as wide.
    assert 2 * (apart.high - apart.low) < math.hypot(first.high - first.low, second.high - second.low)
    assert wilson((teacher == labels).sum(), 800).low == pytest.approx(first.low, abs=0.006)
    assert paired_bootstrap(labels, teacher, teacher, METRICS["accuracy"].compute)[2] == Interval(0.0, 0.0)


def test_calibration_error_against_a_loop() -> None:
    generator = np.random.default_rng(0)
    confidence = np.append(generator.random(200), [0.0, 1.0, 0.1, 0.3])  # edges too
    right = (generator.random(204) < confidence**2).astype(float)
    expected, seen = 0.0, 0
    for place in range(10):
        rows = [
            n for n, c in enumerate(confidence) if place / 10 <= c and (c < (place + 1) / 10 or (place == 9 and c == 1))
        ]
        seen += len(rows)
        expected += abs(sum(right[n] for n in rows) - sum(confidence[n] for n in rows)) / 204
    bins = reliability_bins(confidence, right)
    assert seen == sum(one.count for one in bins) == 204
    assert calibration_error(bins) == pytest.approx(expected)
    assert calibration_error(reliability_bins(np.ones(5), np.ones(5))) == 0.0


def test_confusions_and_label_counts_against_loops() -> None:
    generator = np.random.default_rng(1)
    labels, answers = generator.integers(0, 4, (2, 100))
    found = confusion(labels, answers, 5)
    for label in range(5):
        for answer in range(5):
            expected = sum(a == label and b == answer for a, b in zip(labels, answers, strict=True))
            assert found[label, answer] == expected
    sets, said = generator.integers(0, 2, (2, 60, 3))
    for label, counts in enumerate(label_counts(sets, said)):
        pairs = [(a[label], b[label]) for a, b in zip(sets, said, strict=True)]
        assert tuple(counts) == (pairs.count((1, 1)), pairs.count((0, 1)), pairs.count((1, 0)))


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [
        (0, 1, False),
        (72.1, 84.9, False),
        (0.22, 15.1, True),
        (1.3, 1.34, True),
        (-0.4, 0.2, False),
        (1e-4, 3e-4, False),
    ],
)
def test_ticks_are_few_round_and_inside(low: float, high: float, log: bool) -> None:
    axis = Axis.over("x", [low, high], log=log)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 6 and len({axis.spell(tick) for tick in ticks}) == len(ticks)
    assert all(0 <= axis.share(tick) <= 1 for tick in ticks)
    assert [axis.share(end) for end in (axis.low, axis.high)] == pytest.approx([0, 1])
    for tick in ticks:
        assert float(axis.spell(tick).replace("\N{MINUS SIGN}", "-").replace(",", "")) == pytest.approx(tick)


def test_epochs_have_whole_ticks() -> None:
    drawn = lines("loss", {"a": [[(1.0, 0.5), (2.0, 0.4)]]}, "epoch", "loss")
    below = re.findall(r'<text x="[\d.]+" y="213" text-anchor="middle">(.*?)</text>', drawn)
    assert below == ["1", "2"]


@pytest.mark.parametrize(
    ("space", "architecture"),
    [
        ("layers", {"layer_0": "convolution_3", "layer_1": "attention_4"}),
        (
            "textnas",
            {"layer_0": "convolution_3", "layer_1_input": [1], "layer_1": "max_pool_3", "layer_1_skip_0": "identity"},
        ),
        ("no.such.module:Space", {"left": "convolution_3", "pick": [0, 2]}),
    ],
)
def test_a_student_is_drawn_block_by_block(space: str, architecture: dict) -> None:
    result = {"depths": [2, 0], "architecture": [architecture, {}], "shape": {"head": "align", "encoding": "separate"}}
    parsed = Texts()
    parsed.feed(student_picture(space, result, '"a" & b'))
    assert parsed.elements[0][1]["aria-label"] == '"a" & b'
    wanted = ["embeddings, texts apart", "block 0", "block 1", "no layer", "head: align"]
    operations = [one for label, one in architecture.items() if isinstance(one, str) and "_skip_" not in label]
    assert all(text in parsed.text for text in [*wanted, *operations])
    assert ("pick: 0+2" in parsed.text) == (space == "no.such.module:Space")
    boxes = [attributes for name, attributes in parsed.elements if name == "rect"]
    width, height = map(float, parsed.elements[0][1]["viewbox"].split()[2:])
    for box in boxes:
        x, y, w, h = (float(box[key]) for key in ("x", "y", "width", "height"))
        assert min(x, y) >= 0 and x + w <= width and y + h <= height
    heads = [attributes for name, attributes in parsed.elements if name == "polygon"]
    assert sum("skip" in one["class"] for one in heads) == (space == "textnas")
    assert len(heads) >= len(wanted) - 2


class Texts(HTMLParser):
    """Every element, and all text between them."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_what_is_no_markup_is_escaped() -> None:
    evil = "\"><script>alert('&amp;')</script>"
    parsed = Texts()
    parsed.feed(join([tag("p", evil, title=evil), table(evil, [evil], [[evil]]), tag("b", Markup("<i>x</i>"))]))
    assert "script" not in {name for name, _ in parsed.elements}
    assert parsed.text == evil * 4 + "x"
    assert dict(parsed.elements)["p"] == {"title": evil}
    assert figures(-1234.5, 1) == "\N{MINUS SIGN}1,234.5" and figures(2, 0, sign=True) == "+2"


def test_the_epochs_of_what_was_kept_stand_for_the_unit(tmp_path: Path) -> None:
    (tmp_path / "history").mkdir()
    records = [
        {"epoch": 0, "seconds": 9.0, "train_loss": 2.0},
        {"epoch": 0, "seconds": 19.0, "half/train_loss": 1.0, "half/general/loss": 3.0},
        {"epoch": 0, "seconds": 29.0, "bag/train_loss": 4.0},
    ]
    (tmp_path / "history" / "supernet-seed0.jsonl").write_text("\n".join(map(json.dumps, records)))
    for kept, loss in (({}, 2.0), ({"supernet-seed0": "half"}, 1.0), ({"supernet-seed0": "bag"}, 4.0)):
        (history,) = read_histories(tmp_path, kept)
        assert history.curve("train_loss") == [[(1, loss)]] and history.keys == ["epoch", "seconds", "train_loss"]


def test_a_history_falls_into_trainings(tmp_path: Path) -> None:
    records = [
        {"epoch": epoch, "train_loss": loss, "probability/layer_0/a": share, "probability/layer_0/b/c": 1 - share}
        for epoch, loss, share in [(0, 3.0, 0.5), (1, 2.0, 0.6), (0, 4.0, 0.5), (1, 1.0, 0.7)]
    ]
    records.append({"epoch": 0, "train_loss": 0.5, "dev_accuracy": float("nan"), "note": "text"})
    folder = tmp_path / "history"
    folder.mkdir()
    text = "\n".join(map(json.dumps, records))
    (folder / "cell-block0_depth2.jsonl").write_text(text + '\n[1]\n{"no": "epoch"}\n{"epoch": 1, "train_')
    (folder / "teacher.jsonl").write_text('{"epoch": 0, "train_loss": 1}')
    (folder / "supernet-seed0.jsonl").write_text("")
    (folder / "something-else.jsonl").write_text('{"epoch": 0}')
    teacher, cell = read_histories(tmp_path)
    assert (teacher.stage, teacher.unit, cell.stage, cell.unit) == ("teacher", "", "cell", "block0_depth2")
    assert cell.curve("train_loss") == [[(1, 3.0), (2, 2.0)], [(3, 4.0), (4, 1.0)], [(5, 0.5)]]
    assert cell.curve("dev_accuracy") == []
    assert cell.keys == ["epoch", "train_loss"]
    assert cell.probabilities() == {"layer_0": {"a": [0.5, 0.7], "b/c": [0.5, pytest.approx(0.3)]}}
    assert teacher.probabilities() == {}
    assert read_histories(tmp_path / "nothing") == []
    assert History("cell", "", [{"epoch": 0.0}]).curve("train_loss") == []


@pytest.mark.parametrize(("student", "constant", "keeps"), [(0.9, 0.8, False), (0.7, 0.75, True), (0.9, 0.5, True)])
def test_a_teacher_that_learnt_nothing_is_said(student: float, constant: float, keeps: bool) -> None:
    facts = Facts(metric="accuracy", split="test", teacher=0.8, student=student, difference=None, rows=500, speedup=9.0,
                  constant=constant)  # fmt: skip
    assert headline(facts).startswith("Do not keep it yet: its teacher") != keeps
    assert any(f"would score {100 * constant:.1f} %" in one for one in reasons(facts)) == (constant > 0.5)


def test_what_one_answer_to_all_rows_scores() -> None:
    labels = np.array([1, 1, 1, 0])
    own = Predictions(split="dev", rows=Rows(["a"] * 4, [1.0, 1.0, 1.0, 0.0]), total=4, labels=labels, sides={},
                      kind="classification")  # fmt: skip
    assert own.constant("accuracy") == 0.75 and own.constant("matthews") == 0
    assert own.constant("accuracy_f1") == pytest.approx((0.75 + 6 / 7) / 2)
    assert replace(own, kind="regression", labels=labels + 0.5).constant("pearson") == 0
    sets = replace(own, kind="multi_label", labels=np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]]))
    assert sets.constant("exact_match") == 0.5  # the commonest set, {0}
    assert sets.constant("micro_f1") == pytest.approx(2 * 5 / (8 + 5))  # labels 0 and 1
    assert sets.constant("macro_f1") == pytest.approx((6 / 7 + 4 / 6 + 0) / 3)


@pytest.mark.parametrize(
    ("student", "interval", "speedup", "start"),
    [
        (0.85, None, 1.05, "Do not keep it: it has 1.1 times"),
        (0.81, Interval(-0.01, 0.03), 9.0, "Keep it: no worse"),
        (0.79, Interval(-0.03, 0.01), 9.0, "Keep it: 9.0 times the speed for 1.0 points of accuracy, a loss that"),
        (0.60, Interval(-0.45, 0.05), 9.0, "These rows cannot say"),
        (0.78, Interval(-0.03, -0.01), 9.0, "Keep it where 9.0 times the speed is worth 2.0 points"),
        (0.72, Interval(-0.12, -0.04), 9.0, "Keep it only where"),
        (0.60, None, 9.0, "Do not keep it as it is: it loses 20.0 points"),
    ],
)
def test_the_verdict_follows_the_figures(student: float, interval: Interval | None, speedup: float, start: str) -> None:
    facts = Facts(metric="accuracy", split="test", teacher=0.8, student=student, difference=interval, rows=500,
                  speedup=speedup, missed=("too big",), bare=(0.5, 0.2))  # fmt: skip
    assert headline(facts).startswith(start)
    said = " ".join(reasons(facts))
    assert "The budget is not kept: too big." in said and "Without any layer it would score 50.0 %" in said
    assert ("The loss is real" in said) == (interval is not None and interval.high < 0)
    assert ("too few" in said) == (interval is not None and interval.low <= 0 <= interval.high)
