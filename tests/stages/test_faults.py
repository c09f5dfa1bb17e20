"""What disks, other processes and clocks do to a study: one clear message, nothing lost, no wrong number."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import fill, read_only, small_disk
from tiny import all_units, tiny_run, tiny_study

from nni_bertnas.artifacts import damaged_file, disk_errors, read_result
from nni_bertnas.cli import main
from nni_bertnas.config import to_yaml
from nni_bertnas.data.models import load_classifier
from nni_bertnas.errors import CandidateError, PhaseError
from nni_bertnas.stages import STAGES
from nni_bertnas.stages.left_out import leave_out, left_out, missing_units
from nni_bertnas.stages.locks import alone, one_at_a_time
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure, find, load
from nni_bertnas.tracking.histories import HISTORY, Record, read_state
from nni_bertnas.tracking.logs import open_log
from nni_bertnas.training.trainer import KeepBest

FULL = r"the disk is full; make room, or set runs_dir to another disk.*run the same command again"


def contents(folder: Path) -> dict[str, bytes]:
    """Of every file whose bytes do not tell the time."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.suffix in (".bin", ".npy")}


CELL = {"strategy": "random", "epochs": 1, "options": {"samples": 2}}


@pytest.fixture(scope="module")
def blocks(built_copy: Path) -> Run:
    """A study up to its blocks; tests work on copies."""
    run = tiny_run(built_copy, cell=CELL)
    all_units(run, "cell", "block")
    return run


def moved(blocks: Run, runs: Path) -> Run:
    """A copy of it, whose runs lie elsewhere."""
    shutil.copytree(blocks.root.parent, runs)
    return Run(tiny_study(blocks.root.parents[1], runs_dir=str(runs), cell=CELL))


@pytest.fixture
def copied(blocks: Run, tmp_path: Path) -> Run:
    return moved(blocks, tmp_path / "runs")


def with_other(run: Run, **sections: Any) -> Run:
    """The same study with some fields changed, in the same folder."""
    sections["cell"] = {**CELL, **sections.get("cell", {})}
    return Run(tiny_study(Path(str(run.study.task.data_dir)).parent, runs_dir=run.study.runs_dir, **sections))


# full and read-only disks


def test_a_full_disk_is_one_message_and_what_was_whole_stays(blocks: Run, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8192) as disk:
        run = moved(blocks, disk / "runs")
        unit = {"block": 0}
        shutil.rmtree(run.folder("block", unit))
        filler = fill(disk, 4)
        with pytest.raises(PhaseError, match=FULL):
            ensure(run, "block", unit)
        assert [path.name for path in (run.root / "block").iterdir()] == ["block1"]  # no half of the other
        filler.unlink()
        assert {one["depth"] for one in ensure(run, "block", unit)["candidates"]} == {1}


def test_a_feature_store_on_a_full_disk_goes_on_when_there_is_room(blocks: Run, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8192) as disk:
        run = moved(blocks, disk / "runs")
        before = contents(run.folder("features"))
        shutil.rmtree(run.folder("features"))
        filler = fill(disk, 150)  # not all has room
        with pytest.raises(PhaseError, match=FULL):
            ensure(run, "features")
        assert find(run, "features") is None
        filler.unlink()
        ensure(run, "features")
        assert contents(run.folder("features")) == before


def test_on_a_full_disk_the_command_says_so_once(
    blocks: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", 8192) as disk:
        run = moved(blocks, disk / "runs")
        shutil.rmtree(run.folder("teacher"))
        (tmp_path / "study.yml").write_text(to_yaml(run.study))
        fill(disk, 16)
        assert main(["teacher", str(tmp_path / "study.yml"), "--quiet"]) == 1
        said = capsys.readouterr().err.strip().splitlines()
        assert len([line for line in said if "error:" in line]) == 1 and re.search(FULL, said[-1])
        assert not any("Traceback" in line for line in said)
        assert not run.folder("teacher").exists()


def test_histories_and_logs_on_a_full_disk_stop_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        fill(disk, 0)
        record = Record(disk / HISTORY, "cell-block0_depth1", "mark")
        with open_log(disk / "run" / "bertnas.log"):
            record.begin()
            for epoch in range(100):
                record.epoch({"epoch": epoch, "train_loss": 0.1})
                logging.getLogger("nni_bertnas").info("a line of the log: %s", "x" * 4000)
            record.end("done")
    assert len([one for one in caplog.records if one.message.startswith("the history of")]) == 1


def test_a_file_over_a_limit_is_the_same_error_where_nobody_may_mount(tmp_path: Path) -> None:
    """By RLIMIT_FSIZE, for which nobody needs to be root."""
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from nni_bertnas.artifacts import atomic_folder, disk_errors, write_result\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "folder = Path(sys.argv[1])\n"
        "try:\n"
        "  with disk_errors(folder), atomic_folder(folder / 'unit') as fresh:\n"
        "    (fresh / 'small').write_bytes(bytes(10_000)); write_result(fresh, {'text': 'x' * 30_000}, '')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert re.search(r"^PhaseError .*a file would be larger than is allowed; see ulimit -f", done.stdout, re.M), done
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_run_is_read_and_not_made(blocks: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = moved(blocks, tmp_path / "runs")
    (tmp_path / "study.yml").write_text(to_yaml(run.study))
    rows = next(Path(str(run.study.task.data_dir)).rglob("dev.tsv"))
    with read_only(tmp_path / "runs"):
        assert main(["run", str(tmp_path / "study.yml")]) == 1
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(said) == 1 and "it can only be read; mount it for writing" in said[0], said
        for command in ("status", "features"):  # what is there already
            assert main([command, str(tmp_path / "study.yml")]) == 0
        target = tmp_path / "found.csv"
        assert main(["predict", str(run.folder("teacher")), str(rows), "--output", str(target)]) == 0
        assert len(target.read_text().splitlines()) == 41


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/1"),
        OSError("131072 requested and 4096 written"),
        type("SafetensorError", (Exception,), {"__module__": "safetensors_rust"})("I/O error: x (os error 28)"),
    ],
)
def test_libraries_words_for_a_full_disk(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(PhaseError, match=FULL), disk_errors(tmp_path):
        raise error


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "nothing").read_text()
    with pytest.raises(RuntimeError, match="a bug"), disk_errors(tmp_path):
        raise RuntimeError("a bug")


# damaged files


def flip(path: Path, place: float = 0.5) -> None:
    """Turn one bit of a file over, and leave its time and size as they are, as a failing disk does."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # not what a process has read before


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [flip, cut, empty, Path.unlink])
@pytest.mark.parametrize("name", ["candidate_0.safetensors", "result.json"])
def test_a_damaged_unit_is_named_and_made_anew(
    copied: Run, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    unit = {"block": 0}
    folder = copied.folder("block", unit)
    before, weights = copied.read("block", unit), (folder / "candidate_0.safetensors").read_bytes()
    assert before is not None and find(copied, "block", unit) == before and damaged_file(folder) is None
    damage(folder / name)
    assert find(copied, "block", unit) is None
    if (name, damage) != ("result.json", Path.unlink):  # then there is none
        assert str(folder / name) in caplog.text and "made anew" in caplog.text
    made = ensure(copied, "block", unit)
    timed = {"latency_ms"}
    for one, other in zip(before["candidates"], made["candidates"], strict=True):
        assert {key: one[key] for key in one.keys() - timed} == {key: other[key] for key in other.keys() - timed}
    assert (folder / "candidate_0.safetensors").read_bytes() == weights


@pytest.mark.parametrize("damage", [flip, cut])
def test_damaged_weights_are_never_used(copied: Run, damage: Callable[[Path], None]) -> None:
    unit = {"block": 0, "depth": 1}
    damage(copied.folder("cell", unit) / "candidate_0.safetensors")
    shutil.rmtree(copied.folder("block", {"block": 0}))
    with pytest.raises(PhaseError, match=r"candidate_0\.safetensors is not as it was when the result was written"):
        ensure(with_other(copied, block={"start": "cell"}), "block", {"block": 0})
    damage(copied.folder("teacher") / "model.safetensors")
    with pytest.raises(PhaseError, match=r"model\.safetensors is not as it was"):
        load_classifier(copied.folder("teacher"))
    assert find(copied, "teacher") is None


def test_numbers_of_a_damaged_result_are_never_shown(copied: Run) -> None:
    path = copied.folder("block", {"block": 1}) / "result.json"
    text = path.read_text()
    digit = re.search(r'"score": 0\.(\d)', text)
    assert digit is not None
    place = digit.start(1)
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    json.loads(path.read_text())  # it is JSON as before
    with pytest.raises(PhaseError, match=rf"{re.escape(str(path))} is damaged \(its checksum is wrong\); remove"):
        copied.read("block", {"block": 1})
    for text in ("[]", "[" * 100_000, "1", '{"checksum": []}'):
        path.write_text(text)
        with pytest.raises(PhaseError, match="is damaged"):
            copied.results("block")


@pytest.mark.parametrize("name", ["train/hidden_1.bin", "dev/logits.bin", "train/tokens.npy", "dev/index.json"])
@pytest.mark.parametrize("damage", [flip, cut])
def test_damaged_features_are_mended(copied: Run, name: str, damage: Callable[[Path], None]) -> None:
    folder = copied.folder("features")
    before = contents(folder)
    damage(folder / name)
    assert find(copied, "features") is None
    ensure(copied, "features")
    assert contents(folder) == before


def test_results_of_versions_without_checksums_are_read(copied: Run) -> None:
    folder = copied.folder("block", {"block": 0})
    (folder / "checksums.json").unlink()
    plain = json.loads((folder / "result.json").read_text())
    del plain["checksum"]
    (folder / "result.json").write_text(json.dumps(plain))
    assert find(copied, "block", {"block": 0}) == plain
    (folder / "checksums.json").write_text("{")
    assert damaged_file(folder) == "checksums.json"


# names that lead elsewhere


@pytest.mark.parametrize("name", ["../../teacher/model.safetensors", "/etc/passwd", "sub/file", "..", "link"])
def test_no_name_in_a_result_leads_out_of_its_folder(copied: Run, name: str) -> None:
    folder = copied.folder("cell", {"block": 0, "depth": 1})
    (folder / "link").symlink_to("/etc/passwd")
    result = read_result(folder)
    assert result is not None
    result["candidates"][0]["weights"] = name
    copied.write(folder, result)
    shutil.rmtree(copied.folder("block", {"block": 0}))
    run = with_other(copied, block={"start": "cell"})
    with pytest.raises(PhaseError, match=re.escape(f"names {name!r}, which leads out of its folder")):
        ensure(run, "block", {"block": 0})


def test_checksums_of_files_elsewhere_are_damage(copied: Run) -> None:
    folder = copied.folder("block", {"block": 0})
    sums = json.loads((folder / "checksums.json").read_text())
    (folder / "checksums.json").write_text(json.dumps({**sums, "../../teacher/config.json": [1, 2]}))
    assert damaged_file(folder) == "../../teacher/config.json"


def test_forcing_general_text_removes_no_folder_that_a_file_names(tmp_path: Path) -> None:
    run, other = tiny_run(tmp_path), tmp_path / "precious"
    other.mkdir()
    run.write_study()
    run.folder("general").mkdir(parents=True)
    run.write(run.folder("general"), {"fingerprint": "x", "folder": str(other)})
    run.discard_from("general")
    assert other.is_dir()


# two processes


def test_two_runs_of_one_study_do_not_meet(blocks: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = moved(blocks, tmp_path / "runs")
    again = with_other(run)
    (tmp_path / "study.yml").write_text(to_yaml(run.study))
    with alone(run.root):
        with pytest.raises(PhaseError, match=rf"made already, by process {os.getpid()} on .*bertnas status"):
            alone(again.root).__enter__()
        assert main(["run", str(tmp_path / "study.yml"), "--force", "teacher"]) == 1
        assert "is being made already, by process" in capsys.readouterr().err
        assert run.folder("teacher").is_dir()  # nothing was discarded
    with alone(again.root):
        assert read_state(run.root / HISTORY, "maker")["pid"] == os.getpid()


def test_waiting_for_another_process_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tiny_run(tmp_path)
    script = (
        "import sys, time; from filelock import FileLock\n"
        "with FileLock(sys.argv[1]): print('held', flush=True); time.sleep(4)"
    )
    run.root.mkdir(parents=True)
    command = [sys.executable, "-c", script, str(run.root / ".teacher.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with one_at_a_time(run.root, "teacher"):
            pass
    assert "another process makes teacher; this one waits for it" in caplog.text


# units that fail


def test_a_depth_that_failed_is_left_out_of_the_blocks(copied: Run) -> None:
    run = with_other(copied, cell={"depths": [1, 2]})
    cell, lost, other_lost = load("cell"), {"block": 0, "depth": 2}, {"block": 1, "depth": 2}
    with pytest.raises(PhaseError, match="block 0 has no cells of depth 2"):
        ensure(run, "block", {"block": 0})
    path = leave_out(run, cell, lost, "it was killed")
    assert left_out(run, cell, lost) == f"it was killed; to try it again remove {path}"
    assert missing_units(run, cell, cell.units(run)) == [other_lost]
    found = ensure(run, "block", {"block": 0})
    assert {one["depth"] for one in found["candidates"]} == {1}
    with pytest.raises(PhaseError, match="block 1 has no cells of depth 2"):  # nobody gave it up
        ensure(run, "block", {"block": 1})
    other = with_other(copied, cell={"depths": [1, 2], "epochs": 3})
    assert left_out(other, cell, lost) is None  # it would be made of something else
    path.unlink()
    assert missing_units(run, cell, cell.units(run)) == [lost, other_lost]
    run.discard_from("cell")
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("name", "done", "spared"),
    [
        ("cell", [{"block": 0, "depth": 1}, {"block": 1, "depth": 2}], True),
        ("cell", [{"block": 0, "depth": 1}, {"block": 0, "depth": 2}], False),
        ("block", [{"block": 0}], False),
        ("supernet", [], False),
        ("frontier", [{"seed": 0, "point": 1}], True),
        ("frontier", [], False),
        ("baselines", [], True),
    ],
)
def test_what_a_study_can_do_without(name: str, done: list, spared: bool, tmp_path: Path) -> None:
    assert name in STAGES
    assert load(name).spares(tiny_run(tmp_path, cell={"depths": [1, 2]}), done) is spared


def test_weights_that_are_no_numbers_are_never_the_best() -> None:
    """A model whose outputs are no numbers still has an accuracy."""
    model = torch.nn.Linear(2, 2)
    best = KeepBest("dev_accuracy", model)
    told = type("Trainer", (), {"callback_metrics": {"dev_accuracy": torch.tensor(0.5)}, "current_epoch": 0})()
    model.weight.data.fill_(float("nan"))
    best.on_validation_end(told, None)
    with pytest.raises(CandidateError, match="no finite weights after any epoch; lower its learning_rate"):
        best.on_fit_end(told, None)
    model.weight.data.fill_(1.0)
    best.on_validation_end(told, None)
    model.weight.data.fill_(float("inf"))
    told.callback_metrics["dev_accuracy"] = torch.tensor(0.9)
    best.on_validation_end(told, None)
    best.on_fit_end(told, None)
    assert bool((model.weight == 1).all())


def test_a_student_that_diverges_is_an_error_and_no_result(copied: Run) -> None:
    run = with_other(copied, supernet={"epochs": 1}, distill={"losses": {"logit_mse": 3e38}})
    with pytest.raises(CandidateError, match="no finite weights"):
        ensure(run, "supernet", {"seed": 0})
    assert not run.folder("supernet", {"seed": 0}).exists()
