"""Students without layers: a candidate of every block, and a whole student that layers have to beat."""

from pathlib import Path

import pytest
import torch
from tiny import all_units, tiny_run

from nni_bertnas.data.models import load_classifier
from nni_bertnas.errors import ConfigError
from nni_bertnas.report.front import measured_students
from nni_bertnas.report.page.models import trained_models
from nni_bertnas.report.results import half_or_whole, layers_or_none
from nni_bertnas.stages.block import STAGE as BLOCK
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure
from nni_bertnas.stages.supernet import nearest
from nni_bertnas.student.cost import count_params

SEED = {"seed": 0}


@pytest.fixture(scope="module")
def bag(built_copy: Path) -> Run:
    """A study whose budget leaves no room for layers."""
    run = tiny_run(
        built_copy,
        cell={"strategy": "random", "operations": ["convolution_3", "convolution_5"], "epochs": 1},
        block={"no_layer": True},
        supernet={
            "bag": True,
            "finalists": 1,
            "epochs": 20,
            "learning_rate": 1e-2,
            "last_epochs": 1,
            "budget": {"max_params": 7000},
        },
    )
    all_units(run, "cell", "block", "supernet")
    return run


def test_a_cell_without_layers_is_a_candidate_of_every_block(bag: Run) -> None:
    for unit in BLOCK.units(bag):
        depths = [one["depth"] for one in bag.read("block", unit)["candidates"]]
        assert depths.count(0) == 1 and len(depths) == 3


def test_a_student_without_layers_learns_and_loads(bag: Run) -> None:
    result, folder = bag.read("supernet", SEED), bag.folder("supernet", SEED)
    assert result["depths"] == [0, 0] and result["kept"] == "searched" and "compared" not in result
    assert result["student"]["dev_accuracy"] > 0.7 and result["speedup"] > 1
    model, tokenizer = load_classifier(folder / "student")
    assert model.config.cells == [] and not list(model.cells)
    rows = bag.data.splits["dev"]
    with torch.inference_mode():
        logits = model(**tokenizer(rows.texts, padding=True, return_tensors="pt")).logits
    own = (logits.argmax(1) == torch.tensor(rows.labels)).double().mean()
    assert result["student"]["dev_accuracy"] == pytest.approx(float(own))
    with pytest.raises(ConfigError, match="the searched student has no layers"):
        ensure(bag, "baselines", {"seed": 0, "student": "random_0"})


@pytest.mark.slow
def test_layers_are_taken_where_they_are_better_than_fewer_and_none(
    built_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(
        built_copy,
        cell={"strategy": "grid", "operations": ["convolution_3", "max_pool_3"], "epochs": 1},
        supernet={"bag": True, "finalists": 2},
    )
    monkeypatch.setattr("nni_bertnas.stages.supernet.finals", lambda finalists: [1, 0])
    all_units(run, "cell", "block", "supernet")
    result = run.read("supernet", SEED)
    assert [one["cells"] for one in result["finals"]] == [result["finalists"][number]["cells"] for number in (1, 0)]
    taken = result["finals"][nearest([(one["dev_logit_mse"], one["latency_ms"]) for one in result["finals"]])]
    assert {**taken, "cells": 0} == {**result["compared"]["searched"], "cells": 0}
    assert "; ".join(taken["cells"]) in half_or_whole(run, result)
    assert len(measured_students(run)) == 4  # the teacher, both, and the one without layers
    models = {one.name: one for one in trained_models(run)}
    (other,) = (one for one in result["finals"] if one is not taken)
    assert len(models) == 4 and models["other finalist, seed 0"].side == other
    errors = {name: one["dev_logit_mse"] for name, one in result["compared"].items()}
    searched = "half" if taken is result["finals"][1] else "searched"
    better = "searched" if errors["searched"] < errors["bag"] else "bag"
    assert result["kept"] == {"searched": searched, "bag": "bag"}[better] and result["dev_logit_mse"] == errors[better]
    assert any(result["depths"]) == (better == "searched") and result["student_kind"] == "searched"
    text = layers_or_none(run, result)
    assert text.endswith("was kept") and ("as near" in text) == (better == "bag") and "with layers" in text
    folder = run.folder("supernet", SEED)
    assert count_params(load_classifier(folder / "other")[0]) == other["num_params"]
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"other", "student"}
