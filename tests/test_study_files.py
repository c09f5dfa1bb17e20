"""Studies read from files: what is right, and every way to be wrong that is named."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from nni_bertnas.config import TeacherSettings, resolve_boundaries, to_dict, to_yaml
from nni_bertnas.data.tasks import TASKS
from nni_bertnas.errors import ConfigError, lookup
from nni_bertnas.search.strategies import STRATEGIES
from nni_bertnas.stages.stage import run_study
from nni_bertnas.study_files import _TABLES, check, load_study, parse_study
from nni_bertnas.training.optimizers import OPTIMIZERS

CONFIGS = Path(__file__).parents[1] / "experiment_configs"

PAIRS = {"name": "stsb", "source": "hub"}


def test_every_problem_is_reported_at_once_with_its_path() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_study(
            {
                "name": "a/b",
                "zork": 1,
                "seed": 20240131235959,
                "cell": {"depths": [0, "x"], "learning_rate": -1, "strategy": "dart", "colour": 2},
                "distill": {"temperature": -1, "losses": {"logit_mse": 1.0, "hinge": 0.5}},
                "teacher": {"epochs": "3"},
                "task": {"name": "sst3", "source": 3},
                "features": {"dtype": "float12"},
                "block": {"optimizer": "sgd"},
                "baseline": {"students": {"ramdom": 2}},
                "supernet": {"budget": {"max_params": "many"}, "latency_runtime": "onnxx"},
            }
        )
    text = str(caught.value)
    for path in (
        "name:", "seed:", "zork: unknown key", "cell.depths.0:", "cell.depths.1:", "cell.learning_rate:",
        "cell.strategy:", "cell.colour: unknown key", "distill.temperature:", "teacher.epochs:", "task.name:",
        "task.source:",
        "supernet.budget.max_params:", "supernet.latency_runtime:", "distill.losses:", "features.dtype:",
        "block.optimizer:", "baseline.students:",
    ):  # fmt: skip
        assert f"  {path}" in text, path
    assert "got -1" in text and "must be one of darts, gumbel_darts" in text
    assert "baseline.students: must be one of random, uniform" in text and "got 'ramdom'" in text


def strategy(name: str, epochs: int = 2, **options: object) -> dict:
    return {"cell": {"strategy": name, "epochs": epochs, "options": options}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": {"num_blocks": 2, "boundaries": [0, 6]}}, "keep one"),
        ({"teacher": {"boundaries": [0, 4, 2]}}, "must rise"),
        ({"supernet": {"latency_length": 129}}, r"supernet\.latency_length: 129 is more than task\.max_length, .* 128"),
        ({"teacher": {"boundaries": [1, 4]}}, "start at 0"),
        ({"task": {"name": "sst2", "source": "glue"}}, "data_dir"),
        ({"task": {"name": "custom"}}, "custom must be given"),
        ({"task": {"name": "custom", "custom": {"text_columns": ["a"]}}}, "source: must be disk or files"),
        ({"task": {"name": "custom", "source": "files", "custom": {"text_columns": ["a"]}}}, "custom.train: must name"),
        (
            {
                "task": {
                    "name": "custom",
                    "source": "disk",
                    "data_dir": "x",
                    "custom": {"text_columns": ["a"], "metric": "pearson"},
                }
            },
            r"task\.custom\.metric: pearson does not suit classification",
        ),
        ({"task": {"name": "sst2", "source": "files"}}, "source: files is for name: custom"),
        (
            {"task": {"name": "stsb", "source": "hub"}, "distill": {"losses": {"soft_cross_entropy": 1.0}}},
            r"distill\.losses: soft_cross_entropy is not for regression",
        ),
        (
            {"transfer": {"reviews": -1}},
            r"transfer.reviews: must be greater than or equal to 0",
        ),
        ({"student": {"head": "align"}}, r"student\.head: align is for pairs"),
        ({"student": {"encoding": "separate"}}, r"student\.encoding: separate is for pairs"),
        (
            {"task": PAIRS, "student": {"head": "pool", "encoding": "separate"}},
            r"student\.encoding: separate is for pairs",
        ),
        ({"task": PAIRS, "teacher": {"kind": "both"}, "student": {"encoding": "joint"}}, r"teacher\.kind: both is for"),
        ({"teacher": {"kind": "siamese"}}, r"teacher\.kind: siamese is for pairs"),
        ({"cell": {"losses": {"label": 1.0}}}, r"cell\.losses: label needs more than the hidden states"),
        ({"block": {"losses": {}}}, r"block\.losses"),
        ({"cell": {"depths": [1, 1]}}, "depths must differ"),
        (strategy("darts", epochs=2, warmup_epochs=2), r"cell\.options\.warmup_epochs must be under cell\.epochs"),
        (strategy("enas", epochs=2, warmup_epochs=2), r"cell\.options\.warmup_epochs must be under cell\.epochs"),
        ({"cell": {"max_cost": 3.0}}, "cost must say"),
        (strategy("darts", cost_weight=0.1), r"cell\.cost must say what cell\.options\.cost_weight"),
        (strategy("enas", cost_weight=0.1), r"cell\.options\.cost_weight: unknown key; enas takes candidate_epochs"),
        (strategy("random", cost_weight=0.1), r"cell\.options\.cost_weight: unknown key; random takes samples"),
        (strategy("evolution", halvings=1), r"cell\.options\.halvings: unknown key; evolution takes samples"),
        (strategy("darts", patience=3), r"cell\.options\.patience: unknown key; darts takes"),
        ({"cell": {"cost": "num_params", "max_cost": 0}}, r"cell\.max_cost"),
        ({"cell": {"cost": "watts"}}, r"cell\.cost"),
        (strategy("gumbel_darts", temperature=[1.0]), r"cell\.options\.temperature"),
        (strategy("gumbel_darts", temperature=[1.0, 0]), r"cell\.options\.temperature\.1"),
        (strategy("gumbel_darts", temperature=[0.1, 1.0]), r"cell\.options: temperature must fall"),
        (strategy("darts", ranking="loss"), r"cell\.options\.ranking"),
        (strategy("darts", operation_dropout=1.0), r"cell\.options\.operation_dropout"),
        (strategy("random_one_shot", rank_rows=3), r"cell\.options\.rank_rows"),
        (strategy("evolution", population=1), r"cell\.options\.population"),
        (strategy("darts", stable_epochs=0), r"cell\.options\.stable_epochs"),
        ({"cell": {"options": 3}}, r"cell\.options"),
        ({"cell": {"shared": "yes"}}, r"cell\.shared"),
        ({"cell": {"operations": "zero"}}, r"cell\.operations"),
        ({"distill": {"losses": {"label": 0, "logit_mse": 0}}}, "nothing would be learnt"),
        ({"name": None}, "name"),
    ],
)
def test_impossible_combinations(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_study({"name": "x", **fields})


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategys_defaults_are_filled_in_and_max_cost_is_for_all(name: str) -> None:
    study = parse_study({"name": "x", "cell": {"strategy": name, "cost": "num_flops", "max_cost": 1e6}})
    assert study.cell.options == to_dict(STRATEGIES[name].options()) and study.cell.max_cost == 1e6


def test_yaml_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "study.yml"
    path.write_text("name: x\nseed: 3\ncell: {learning_rate: 1e-3, depths: [2]}\ntracking: {wandb: off}\n")
    study = load_study(path)
    assert study.cell.learning_rate == 1e-3 and study.tracking.wandb == "off" and study.cell.depths == [2]
    assert parse_study(yaml.safe_load(to_yaml(study))) == study
    assert parse_study(to_dict(study)) == study


@pytest.mark.parametrize("text", ["name: x\nname: y\n", "name: [x\n", "- 1\n"])
def test_bad_yaml_is_a_config_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"study\.yml"):
        load_study(path)


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_study("nowhere.yml")


@pytest.mark.parametrize("path", _TABLES)
def test_every_name_of_a_table_is_taken_and_no_other(path: str) -> None:
    """That a setting's default is a row, and that its table is asked."""
    value = to_dict(parse_study({"name": "x"}))
    for part in path.split("."):
        value = value[part] if value is not None else None
    for name in value or () if isinstance(value, dict) or value is None else [value]:
        lookup(_TABLES[path], name, path)
    wrong: object = {"nobody": 1} if isinstance(value, dict) else "nobody"
    for part in reversed(path.split(".")):
        wrong = {part: wrong}
    assert isinstance(wrong, dict)
    with pytest.raises(ConfigError, match=f"{path}: must be one of "):
        parse_study({"name": "x", **wrong})


def test_a_study_made_in_python_is_checked_alike() -> None:
    study = parse_study({"name": "x"})
    check(study)
    other = dataclasses.replace(study, block=dataclasses.replace(study.block, optimizer="sgd"))
    with pytest.raises(ConfigError, match=f"block.optimizer: must be one of {', '.join(OPTIMIZERS)}, got 'sgd'"):
        check(other)
    other = dataclasses.replace(study, cell=dataclasses.replace(study.cell, strategy="darts"))  # options of another
    with pytest.raises(ConfigError, match=r"2 problem(?s:.)*cell.options.samples(?s:.)*cell.options.patience"):
        run_study(other)
    with pytest.raises(ConfigError, match="losses have weights of 0 alone"):
        parse_study({"name": "x", "block": {"losses": {"hidden_mse": 0.0}}})


def test_boundaries() -> None:
    assert resolve_boundaries(TeacherSettings(), 6) == [0, 2, 4, 6]
    assert resolve_boundaries(TeacherSettings(num_blocks=4), 6) == [0, 2, 3, 4, 6]
    assert resolve_boundaries(TeacherSettings(boundaries=[0, 1, 6]), 6) == [0, 1, 6]
    with pytest.raises(ConfigError, match="must end at 6"):
        resolve_boundaries(TeacherSettings(boundaries=[0, 5]), 6)
    with pytest.raises(ConfigError, match="at most 6"):
        resolve_boundaries(TeacherSettings(num_blocks=7), 6)


def test_every_shipped_study_is_right() -> None:
    found = sorted(CONFIGS.glob("studies/**/*.yml"))
    assert len(found) == 11
    of_glue = {name for name, spec in TASKS.items() if spec.glue} - {"ax"}
    assert {load_study(path).task.name for path in found} >= of_glue


def test_the_study_of_the_front_is_the_demo_but_for_its_students() -> None:
    demo, front = (load_study(CONFIGS / "studies" / f"{name}.yml") for name in ("demo", "front"))
    assert front.supernet.students == 5
    assert dataclasses.replace(front, supernet=dataclasses.replace(front.supernet, students=0)) == demo


def test_a_profile_is_what_it_says_but_for_what_the_study_says() -> None:
    tiny = parse_study({"name": "x", "profile": "tiny"})
    assert (tiny.student.hidden_size, tiny.student.embedding_size, tiny.cell.depths) == (128, 64, [1])
    assert tiny.supernet.budget.min_speedup == 20.0 and "profile" not in to_yaml(tiny)
    assert parse_study({"name": "x", "profile": "small"}).student == parse_study({"name": "x"}).student
    own = {"student": {"hidden_size": 96}, "supernet": {"budget": {"max_latency_ms": 3.0}, "epochs": 2}}
    base = parse_study({"name": "x", "profile": "base", **own})
    assert (base.student.hidden_size, base.student.embedding_size, base.cell.depths) == (96, 192, [1, 2, 3])
    assert base.supernet.budget.min_speedup is None and base.supernet.epochs == 2
    with pytest.raises(ConfigError, match="profile: must be tiny, small, base, got 'huge'"):
        parse_study({"name": "x", "profile": "huge"})
    with pytest.raises(ConfigError, match=r"student"):
        parse_study({"name": "x", "profile": "tiny", "student": 3})


def test_a_tilde_is_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    raw = {
        "name": "s",
        "teacher": {"model": "~/bert"},
        "runs_dir": "~/runs",
        "transfer": {"files": ["~/a.txt", "b.txt"]},
    }
    study = parse_study(raw)
    assert (study.teacher.model, study.runs_dir) == ("/somewhere/bert", "/somewhere/runs")
    assert study.transfer.files == ["/somewhere/a.txt", "b.txt"]
