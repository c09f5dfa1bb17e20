import itertools
import json
from pathlib import Path

import pytest
from exported import chain_of, some_rows, write_student

from nni_bertnas.cli import main
from nni_bertnas.config import ExportSettings, Study
from nni_bertnas.deploy import bench as measured
from nni_bertnas.deploy.export import export
from nni_bertnas.report import speed
from nni_bertnas.report.exports import Exported


def test_models_are_measured_in_turns_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, rows = write_student(tmp_path / "student", [chain_of(["convolution_3"])]), some_rows(False, 30)
    export(source, "onnx", tmp_path / "onnx", held_out=rows, calibration=rows)
    (tmp_path / "rows.csv").write_text("\n".join(["a", *rows.texts]))
    order: list[int] = []
    monkeypatch.setattr(measured, "_SECONDS", 0.002)
    own = measured._milliseconds

    def noted(call):
        order.append(id(call))
        return own(call)

    monkeypatch.setattr(measured, "_milliseconds", noted)
    options = [
        "--rows",
        str(tmp_path / "rows.csv"),
        "--json",
        str(tmp_path / "b.json"),
        "--draw",
        str(tmp_path / "b.png"),
    ]
    assert main(["bench", str(source), str(tmp_path / "onnx"), *options]) == 0
    assert "rows/s" in capsys.readouterr().out and (tmp_path / "b.png").stat().st_size > 10_000
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["threads"] == 1 and found["machine"]["torch"]
    saved, exported = found["models"]
    assert (saved["engine"], exported["engine"]) == ("PyTorch", "ONNX Runtime") and exported["name"].endswith("/onnx")
    assert saved["size_mb"] == pytest.approx((source / "model.safetensors").stat().st_size / 1e6)
    assert exported["size_mb"] == pytest.approx((tmp_path / "onnx" / "model.onnx").stat().st_size / 1e6)
    assert 0 < exported["first_answer_s"] < saved["first_answer_s"] and exported["resident_mb"] < saved["resident_mb"]
    # longer rows than the 32 pieces that the student knows are left out
    assert set(saved["passes"]) == {"real", *(f"{batch} x 16" for batch in measured.BATCHES)} == set(exported["passes"])
    for one in (*saved["passes"].values(), *exported["passes"].values()):
        assert 0 < one["p50_ms"] <= one["p95_ms"]
    assert saved["passes"]["8 x 16"]["rows_per_s"] == pytest.approx(8000 / saved["passes"]["8 x 16"]["p50_ms"])
    first, second = list(dict.fromkeys(order))[:2]
    changes = sum(a != b for a, b in itertools.pairwise(order) if {a, b} <= {first, second})
    assert changes >= 2 * measured._ROUNDS - 1  # one after the other, round by round


def test_models_of_different_texts_are_not_measured_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = write_student(tmp_path / "single" / "student", [chain_of(["convolution_3"])])
    pairs = write_student(tmp_path / "pairs" / "student", [], head="compare", encoding="separate")
    assert main(["bench", str(single), str(pairs)]) == 2 and "measure them apart" in capsys.readouterr().err
    assert main(["bench", str(tmp_path)]) == 2 and "holds no model" in capsys.readouterr().err


@pytest.mark.parametrize(("pairs", "count", "taken"), [(True, 7, 7), (False, 90, 60)])
def test_a_small_dev_is_taken_whole(
    pairs: bool, count: int, taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = some_rows(pairs, count)
    found = Exported(folder=tmp_path, held_out=rows, calibration=rows, settings=ExportSettings())
    monkeypatch.setattr(speed, "study_of", lambda folder: Study(name="own"))
    monkeypatch.setattr(speed, "find_exported", lambda folder: found)
    assert speed._rows([tmp_path], ["a"], None) == rows.take(range(taken))
