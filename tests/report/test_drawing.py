import builtins
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from tiny import tiny_study_fields

from nni_bertnas.cli import main
from nni_bertnas.errors import ConfigError
from nni_bertnas.report.drawing import draw_architecture, draw_space
from search_space.cells import SPACES, Body, Sequential
from search_space.listing import Space

pytest.importorskip("matplotlib", reason="the extra plots is not installed")
OPERATIONS = ("convolution_3", "average_pool_3")


class Forked(Body):
    """Two operations side by side, of which one input is chosen."""

    OPERATIONS = ("convolution_3", "identity")

    def __init__(self, choose, depth, operations, hidden_size):
        super().__init__(choose, depth, operations, hidden_size)
        self.left = choose.operation("left", operations, lambda name: None)
        self.pick = choose.inputs("pick", 3, 2)


class Rewired(Sequential):
    """Connects otherwise than its base."""

    def forward(self, x, mask, second=None):
        return x


def dashed(path: Path) -> int:
    """How many arrows of an SVG are dashed."""
    return path.read_text().count("stroke-dasharray") // 2  # line and head


def texts(path: Path) -> Counter:
    """Every text of an SVG with its number."""
    return Counter(re.findall(r"<!-- (.*?) -->", path.read_text()))


@pytest.mark.parametrize("space", ["layers", "sequential", "nasbert"])
@pytest.mark.parametrize("depth", [1, 3])
def test_every_option_stands_once_per_decision(space: str, depth: int, tmp_path: Path) -> None:
    own = Space.of(space, depth, 48)
    draw_space(own, tmp_path / "space.svg")
    found = texts(tmp_path / "space.svg")
    assert {found[name] for name in own.operations} == {depth}
    assert [found[f"layer_{number}"] for number in range(depth + 1)] == [1] * depth + [0]
    assert dashed(tmp_path / "space.svg") == 0


def test_a_textnas_space_and_one_of_its_architectures(tmp_path: Path) -> None:
    draw_space(Space.of("textnas", 3, 16, OPERATIONS), tmp_path / "space.svg")
    found = texts(tmp_path / "space.svg")
    assert [found[name] for name in OPERATIONS] == [3, 3]
    assert found["zero"] == found["identity"] == 2  # one list for both skips of layer_2
    assert (found["0: cell input"], found["1: layer_0"], found["2: layer_1"]) == (2, 2, 1)
    # Five inputs, three skips, and their two kinds in the legend.
    assert dashed(tmp_path / "space.svg") == 2 + 3 + 3 + 2
    architecture = {
        "layer_0": "convolution_3", "layer_1_input": [0], "layer_1": "average_pool_3", "layer_1_skip_0": "zero",
        "layer_2_input": [2], "layer_2": "convolution_3", "layer_2_skip_0": "identity", "layer_2_skip_1": "zero",
    }  # fmt: skip
    draw_architecture("textnas", 3, architecture, tmp_path / "one.svg")
    found = texts(tmp_path / "one.svg")
    assert (found["convolution_3"], found["average_pool_3"], found["zero"], found["added"]) == (2, 1, 0, 1)
    assert dashed(tmp_path / "one.svg") == 0


def test_an_adabert_space_and_one_of_its_architectures(tmp_path: Path) -> None:
    draw_space(Space.of("adabert", 2, 16, OPERATIONS), tmp_path / "space.svg")
    found = texts(tmp_path / "space.svg")
    assert [found[name] for name in OPERATIONS] == [6, 6]  # once per node
    assert found["edge_0, edge_1, edge_2, edge_3, each one of"] == found["2+3"] == 2
    assert dashed(tmp_path / "space.svg") == 2 * (3 + 4) + 1
    choices = Space.of("adabert", 2, 16, OPERATIONS).choices
    architecture = {label: options[0] for label, options in choices.items()}
    draw_architecture("adabert", 2, architecture, tmp_path / "one.svg")
    found = texts(tmp_path / "one.svg")
    assert found["edge_0: convolution_3"] == found["edge_1: convolution_3"] == 6
    assert "edge_2: convolution_3" not in found


@pytest.mark.parametrize("kind", [Forked, Rewired])
def test_other_spaces_have_one_box_per_decision_in_order(kind: type[Body], tmp_path: Path) -> None:
    name = f"{__name__}:{kind.__name__}"
    draw_space(Space.of(name, 1, 16, ("convolution_3", "identity")), tmp_path / "own.svg")
    expected = {
        Forked: ["left", "convolution_3", "identity", "pick", "0+1", "0+2", "1+2"],
        Rewired: ["layer_0", "convolution_3", "identity"],
    }
    assert list(texts(tmp_path / "own.svg"))[1:] == ["cell input", *expected[kind], "cell output"]


@pytest.mark.parametrize("space", SPACES)
def test_a_png_can_be_opened(space: str, tmp_path: Path) -> None:
    from PIL import Image

    draw_space(Space.of(space, 2, 16, OPERATIONS), tmp_path / "deep" / "space.PNG")
    with Image.open(tmp_path / "deep" / "space.PNG") as image:
        assert image.width > image.height / 3 > 50


def test_the_command_draws_the_studys_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = tiny_study_fields(tmp_path)
    fields["cell"] |= {"space": "layers", "operations": list(OPERATIONS), "depths": [1, 2]}
    file = tmp_path / "study.yml"
    file.write_text(yaml.safe_dump(fields))
    assert main(["space", str(file), "--draw", str(tmp_path / "space.svg")]) == 0
    found = texts(tmp_path / "space.svg")
    assert [found[name] for name in OPERATIONS] == [2, 2]  # the largest depth
    assert main(["space", str(file), "--depth", "1", "--draw", str(tmp_path / "space.svg")]) == 0
    assert texts(tmp_path / "space.svg")["convolution_3"] == 1
    assert main(["space", str(file), "--draw", str(tmp_path / "space.pdf")]) != 0
    assert "space.pdf: a picture's name must end in" in capsys.readouterr().err


def test_what_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"space\.pdf: a picture's name must end in \.png or \.svg"):
        draw_space(Space.of("layers", 1, 16, OPERATIONS), tmp_path / "space.pdf")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"space\.svg: cannot be written \(.+\); give another path"):
        draw_space(Space.of("layers", 1, 16, OPERATIONS), tmp_path / "file" / "space.svg")
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'nni-bertnas\[plots\]'"):
        draw_space(Space.of("layers", 1, 16, OPERATIONS), tmp_path / "space.png")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
