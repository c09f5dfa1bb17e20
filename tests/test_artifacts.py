from pathlib import Path

import pytest

from nni_bertnas.artifacts import atomic_folder, read_result, write_whole
from nni_bertnas.errors import PhaseError


def test_atomic_folder_leaves_nothing_half_written(tmp_path: Path) -> None:
    target = tmp_path / "result"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as folder:
        (folder / "a").write_text("2")
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "1" and list(tmp_path.iterdir()) == [target]


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(PhaseError, match="damaged"):
        read_result(tmp_path)


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a.json", "old")

    def full(path: Path, text: str, encoding: str) -> None:
        path.open("w").write(text[:2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        write_whole(tmp_path / "a.json", "newer")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_bytes() == b"old"
