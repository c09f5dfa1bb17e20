"""YAML that would make objects, fill the memory, or never end: one error each, for studies and NNI's files alike."""

import os
import time
from pathlib import Path

import pytest

from nni_bertnas.errors import ConfigError
from nni_bertnas.launch.nni_files import check_nni_yaml
from nni_bertnas.report.status import find_root
from nni_bertnas.study_files import load_study
from nni_bertnas.yaml_files import read_yaml

_LAUGHS = "a0: &a0 [ha]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
_MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9))
HOSTILE = {
    "object": ("name: !!python/object/apply:os.mkdir [MARK]\n", "could not determine a constructor"),
    "name": ("name: !!python/name:os.system\n", "could not determine a constructor"),
    "module": ("name: !!python/module:antigravity\n", "could not determine a constructor"),
    "new": ("name: !!python/object/new:os.mkdir [MARK]\n", "could not determine a constructor"),
    "laughs": (_LAUGHS, "aliases stand for more than 100,000 values"),
    "merges": (_MERGES, "aliases stand for more than 100,000 values"),
    "itself": ("a: &a [*a]\n", "or for themselves"),
    "itself as a mapping": ("a: &a {b: *a}\n", "or for themselves"),
    "deep": ("name: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    "huge": ("name: x\n#" + "x" * 1_000_000, "more than 1,000,000 bytes"),
    "digits": ("name: x\nseed: " + "9" * 5000, "not valid YAML"),
    "date": ("name: x\nseed: 2001-99-99\n", "not valid YAML"),
    "key": ("name: x\n? [a, b]\n: c\n", "not valid YAML"),
    "bytes": ("name: \ud800", "not valid YAML"),
    "two": ("name: x\n---\nname: y\n", "not valid YAML"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_yaml_is_one_error_with_the_file(kind: str, tmp_path: Path) -> None:
    text, message = HOSTILE[kind]
    path, mark = tmp_path / "study.yml", tmp_path / "mark"
    path.write_bytes(text.replace("MARK", str(mark)).encode("utf-8", "surrogatepass"))
    start = time.process_time()
    for read in (load_study, check_nni_yaml, find_root):
        with pytest.raises(ConfigError, match=message) as raised:
            read(path)
        assert str(path) in str(raised.value)
    assert not mark.exists()
    assert time.process_time() - start < 20  # of 9 ** 11 values nobody would see the end


def test_a_file_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(ConfigError, match="/dev/zero: has more than"):
        read_yaml("/dev/zero")
    read, write = os.pipe()  # as the shell's <(command)
    os.write(write, b"name: piped\n")
    os.close(write)
    assert read_yaml(f"/dev/fd/{read}") == {"name": "piped"}
    os.close(read)


def test_aliases_of_an_honest_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "study.yml"
    path.write_text("a: &a {x: 1e-4, y: [1, 2]}\nb: *a\nc: [*a, *a]\n")
    same = {"x": 1e-4, "y": [1, 2]}
    assert read_yaml(path) == {"a": same, "b": same, "c": [same, same]}
