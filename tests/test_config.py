from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from nni_bertnas import config
from nni_bertnas.config import (
    CellConfig,
    DistillConfig,
    TaskConfig,
    TeacherConfig,
    load_study,
    parse_study,
    resolve_boundaries,
    study_to_dict,
    study_to_yaml,
)
from nni_bertnas.data.tasks import TASKS
from nni_bertnas.errors import ConfigError
from nni_bertnas.launch.experiments import check_nni_yaml
from nni_bertnas.search.strategies import STRATEGIES
from nni_bertnas.training.losses import LOGIT_LOSSES

CONFIGS = Path(__file__).parents[1] / "experiment_configs"


def test_every_problem_is_reported_at_once_with_its_path() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_study(
            {
                "name": "a/b",
                "zork": 1,
                "cell": {"depths": [0, "x"], "learning_rate": -1, "strategy": "dart", "colour": 2},
                "distill": {"temperature": -1},
                "teacher": {"epochs": "3"},
                "task": 3,
                "supernet": {"budget": {"max_params": "many"}},
            }
        )
    text = str(caught.value)
    for path in (
        "name:", "zork: unknown key", "cell.depths.0:", "cell.depths.1:", "cell.learning_rate:", "cell.strategy:",
        "cell.colour: unknown key", "distill.temperature:", "teacher.epochs:", "task:", "supernet.budget.max_params:",
    ):  # fmt: skip
        assert f"  {path}" in text, path
    assert "got -1" in text and "'darts', 'gumbel_darts'" in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": {"num_blocks": 2, "boundaries": [0, 6]}}, "keep one"),
        ({"teacher": {"boundaries": [0, 4, 2]}}, "must rise"),
        ({"teacher": {"boundaries": [1, 4]}}, "start at 0"),
        ({"task": {"name": "sst2", "source": "glue"}}, "data_dir"),
        ({"task": {"name": "custom"}}, "custom must be given"),
        ({"task": {"name": "custom", "custom": {"text_columns": ["a"]}}}, "source must be files or disk"),
        ({"task": {"name": "custom", "source": "files", "custom": {"text_columns": ["a"]}}}, "custom.train must name"),
        (
            {"task": {"name": "custom", "source": "files", "custom": {"text_columns": ["a"], "metric": "pearson"}}},
            "suit",
        ),
        ({"task": {"name": "sst2", "source": "files"}}, "source files is for name: custom"),
        ({"task": {"name": "stsb", "source": "hub"}, "distill": {"logit_loss": "soft_cross_entropy"}}, "must be mse"),
        ({"cell": {"depths": [1, 1]}}, "depths must differ"),
        ({"cell": {"epochs": 2, "warmup_epochs": 2, "strategy": "darts"}}, "warmup_epochs"),
        ({"cell": {"epochs": 2, "warmup_epochs": 2, "strategy": "enas"}}, "warmup_epochs"),
        ({"cell": {"max_cost": 3.0}}, "cost must say"),
        ({"cell": {"cost_weight": 0.1}}, "cost must say"),
        ({"cell": {"cost": "num_params", "cost_weight": 0.1, "strategy": "enas"}}, "for enas set max_cost"),
        ({"cell": {"cost": "num_params", "max_cost": 0}}, r"cell\.max_cost"),
        ({"cell": {"cost": "watts"}}, r"cell\.cost"),
        ({"cell": {"temperature": [1.0]}}, r"cell\.temperature"),
        ({"cell": {"temperature": [1.0, 0]}}, r"cell\.temperature\.1"),
        ({"cell": {"ranking": "loss"}}, r"cell\.ranking"),
        ({"cell": {"operation_dropout": 1.0}}, r"cell\.operation_dropout"),
        ({"cell": {"rank_rows": 3}}, r"cell\.rank_rows"),
        ({"cell": {"population": 1}}, r"cell\.population"),
        ({"cell": {"stable_epochs": 0}}, r"cell\.stable_epochs"),
        ({"cell": {"shared": "yes"}}, r"cell\.shared"),
        ({"cell": {"operations": "zero"}}, r"cell\.operations"),
        ({"cell": {"cost": "num_params", "cost_weight": 0.1, "strategy": "random"}}, "for random set max_cost"),
        ({"cell": {"temperature": [0.1, 1.0]}}, "temperature must fall"),
        ({"distill": {"logit_weight": 0, "hidden_weight": 0, "label_weight": 0}}, "nothing would be learnt"),
        ({"name": None}, "name"),
    ],
)
def test_impossible_combinations(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_study({"name": "x", **fields})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_max_cost_and_long_warmup_are_possible_everywhere(strategy: str) -> None:
    cell = {"strategy": strategy, "cost": "num_flops", "max_cost": 1e6, "epochs": 3, "warmup_epochs": 2}
    assert parse_study({"name": "x", "cell": cell}).cell.max_cost == 1e6


def test_yaml_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "study.yml"
    path.write_text("name: x\nseed: 3\ncell: {learning_rate: 1e-3, depths: [2]}\ntracking: {wandb: off}\n")
    study = load_study(path)
    assert study.cell.learning_rate == 1e-3 and study.tracking.wandb == "off" and study.cell.depths == [2]
    assert parse_study(yaml.safe_load(study_to_yaml(study))) == study
    assert parse_study(study_to_dict(study)) == study


@pytest.mark.parametrize("text", ["name: x\nname: y\n", "name: [x\n", "- 1\n"])
def test_bad_yaml_is_a_config_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"study\.yml"):
        load_study(path)


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_study("nowhere.yml")


def test_names_in_the_configuration_are_the_keys_of_the_tables() -> None:
    for owner, field, table in (
        (CellConfig, "strategy", STRATEGIES),
        (TaskConfig, "name", {**TASKS, "custom": None}),
        (DistillConfig, "logit_loss", LOGIT_LOSSES),
    ):
        assert set(get_args(get_type_hints(owner)[field])) == set(table)


def test_boundaries() -> None:
    assert resolve_boundaries(TeacherConfig(), 6) == [0, 2, 4, 6]
    assert resolve_boundaries(TeacherConfig(num_blocks=4), 6) == [0, 2, 3, 4, 6]
    assert resolve_boundaries(TeacherConfig(boundaries=[0, 1, 6]), 6) == [0, 1, 6]
    with pytest.raises(ConfigError, match="must end at 6"):
        resolve_boundaries(TeacherConfig(boundaries=[0, 5]), 6)
    with pytest.raises(ConfigError, match="at most 6"):
        resolve_boundaries(TeacherConfig(num_blocks=7), 6)


def test_every_shipped_file_validates() -> None:
    studies = sorted(CONFIGS.glob("studies/**/*.yml"))
    experiments = sorted(CONFIGS.glob("*.yml"))
    assert len(studies) == 10 and len(experiments) == 6
    for path in studies:
        load_study(path)
    for path in experiments:
        assert check_nni_yaml(path) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trialConcurrency: 2", "trialConcurency: 2", "NNI refuses it"),
        ("trials.cell", "trials.sell", "trialCommand must be"),
        ("studies/demo.yml", "studies/none.yml", "cannot be read"),
        ("  depth:", "  width:", "searchSpace must have block, depth"),
    ],
)
def test_a_wrong_nni_file_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (CONFIGS / "cell.yml").read_text().replace("trialCodeDirectory: ..", f"trialCodeDirectory: {CONFIGS.parent}")
    assert old in text
    path = tmp_path / "cell.yml"
    path.write_text(text.replace(old, new))
    problems = check_nni_yaml(path)
    assert any(message in problem for problem in problems), problems


def test_concurrency_fits_the_machine_and_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "num_cores", lambda: 16)
    monkeypatch.setattr(config.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1 << 12, "SC_PHYS_PAGES": 5 << 19}[name])
    assert parse_study({"name": "x", "cell": {"depths": [1]}}).concurrency("cell") == 3  # blocks
    boundaries = parse_study({"name": "x", "teacher": {"boundaries": [0, 3, 6]}})
    assert boundaries.concurrency("cell") == 4  # blocks and depths
    assert boundaries.concurrency("block") == 2
    shared = parse_study({"name": "x", "cell": {"shared": True}})
    assert [shared.concurrency(phase) for phase in ("cell", "block", "supernet")] == [2, 3, 1]
    assert parse_study({"name": "x", "cell": {"depths": [1, 2, 3, 4]}}).concurrency("cell") == 5  # 10 GiB
    assert parse_study({"name": "x", "nni": {"concurrency": 7}}).concurrency("cell") == 7
    monkeypatch.setattr(config, "num_cores", lambda: 2)
    study = parse_study({"name": "x"})
    assert study.concurrency("cell") == 2  # three rounds of six
    assert study.concurrency("block") == 3  # two and then one would leave a core idle
