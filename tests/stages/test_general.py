from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import WORDS, all_units, chain, tiny_run, write_scores
from torch import nn

from nni_bertnas.config import to_dict
from nni_bertnas.data.models import load_encoder
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.stages import students
from nni_bertnas.stages.cells import general_cells
from nni_bertnas.stages.general import general_folder
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure, find, load
from nni_bertnas.stages.students import StudentMaker
from nni_bertnas.store.reader import FeatureDataset, FeatureStore
from nni_bertnas.store.writer import SplitWriter
from nni_bertnas.student.candidates import Candidate, no_layer
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training.cells import CellTrainer, block_scores
from nni_bertnas.training.losses import Output, Scale, sentence_vector
from nni_bertnas.training.texts import PIECES, TEXTS


def make_run(root: Path, **sections: dict) -> Run:
    texts = root / "general.txt"
    if not texts.exists():
        generator = np.random.default_rng(0)
        lines = (
            " ".join(WORDS[word] for word in generator.integers(0, 95, generator.integers(3, 9))) for _ in range(90)
        )
        texts.write_text("\n".join(lines) + "\n")
    general = {"files": [str(texts)], "rows": 80, "epochs": 4, **sections.pop("general", {})}
    return tiny_run(root, general=general, **sections)


def test_shards_of_general_text_outlive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Tracker):
        read = False

        def progress(self, done: int, total: int, what: str = "rows", loss: float | None = None) -> None:
            if done == total and self.read:
                raise KeyboardInterrupt  # the shard is written
            self.read = done == total

    run = make_run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        ensure(run, "general", tracker=Interrupted())
    assert not list(run.shared.glob("general-*"))
    monkeypatch.setattr(SplitWriter, "_write_shard", None)  # none is made again
    result = ensure(run, "general")
    assert len(FeatureStore(Path(result["folder"]) / TEXTS)) == 80
    assert [path.name for path in run.shared.glob(".general-*")] == [f".general-{result['fingerprint']}.lock"]


def test_general_text_is_stored_once_for_all_studies_of_a_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert find(run, "general") is None
    result = ensure(run, "general")
    folder = Path(result["folder"])
    assert folder.parent == run.shared.resolve() and result["rows"] == 80
    encoder, store = load_encoder(run.study.teacher.model), FeatureStore(folder / TEXTS)
    ids = torch.from_numpy(store.tokens[: store.offsets[1]].astype(np.int64))[None]
    with torch.inference_mode():
        expected = encoder(ids).last_hidden_state.mean(1)
        alone = encoder(torch.tensor([[2, 17, 3]])).last_hidden_state[0, 1]
    torch.testing.assert_close(store.vectors([0]), expected, atol=2e-3, rtol=2e-3)
    pieces = np.load(folder / PIECES)
    assert pieces.shape == (100, 32)
    np.testing.assert_allclose(pieces[17], alone.numpy(), atol=2e-3)
    written = (folder / PIECES).stat().st_mtime_ns
    other = make_run(tmp_path, task={"max_train_rows": 60})
    other.root = run.root.with_name("other")
    assert ensure(other, "general")["folder"] == str(folder)
    assert (folder / PIECES).stat().st_mtime_ns == written
    assert load("general").fingerprint(make_run(tmp_path, general={"rows": 70}), {}) != result["fingerprint"]
    other.discard_from("features")
    assert find(other, "general") is not None
    other.discard_from("general")
    assert not folder.exists() and find(run, "general") is None


def test_a_student_learns_general_text_once(built_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(built_copy)
    with pytest.raises(PhaseError, match="bertnas general STUDY"):
        StudentMaker(run, 0).new_student([chain("convolution_3")])
    result, made = ensure(run, "general"), []
    store = FeatureStore(Path(result["folder"]) / TEXTS)
    for _ in range(2):
        maker = StudentMaker(run, 0)
        student = maker.new_student([chain("convolution_3"), chain("zero")])
        vector_map = nn.Linear(16, 32)
        losses = []
        for _ in range(2):
            batch = FeatureDataset(store, (), tokens=True, vectors=True).batch(np.arange(80))
            with torch.inference_mode():
                vectors, _ = student.text_vectors(batch.input_ids, batch.mask)
                losses.append(float(sentence_vector(Output(vectors=vector_map(vectors)), batch, Scale())))
            if len(losses) == 1:
                maker._distil_texts(student, vector_map, Tracker())
        assert losses[1] < 0.8 * losses[0]
        made.append(student.state_dict())
        monkeypatch.setattr(students, "distil_texts", None)  # the second time it is read
    assert all(torch.equal(made[0][name], value) for name, value in made[1].items())


def test_students_without_layers_share_what_they_learnt_whatever_their_heads(built_copy: Path) -> None:
    run = make_run(built_copy)
    folder = Path(ensure(run, "general")["folder"])
    before = set(folder.glob("student-*"))
    states = []
    for head in ("pool", "other"):
        maker = StudentMaker(run, 0)
        student = maker.new_student([])
        if head == "other":
            student.classifier = nn.Linear(8, 5)
        torch.manual_seed(0)
        maker._distil_texts(student, nn.Linear(8, 32), Tracker())
        states.append(student.embeddings.word.weight)
    assert torch.equal(*states) and len(set(folder.glob("student-*")) - before) == 1


@pytest.mark.parametrize("pairs", [False, True])
def test_cells_learn_general_text_before_the_tasks_and_once_for_all_studies(
    tmp_path: Path, pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"task": write_scores(tmp_path)} if pairs else {}
    block = {"epochs": 2, "no_layer": True}
    run = make_run(tmp_path, general={"cells": 60}, block=block, cell={"strategy": "random", "epochs": 1}, **data)
    all_units(run, "teacher", "features", "cell")
    assert find(run, "general") is None
    drawn = [chain("convolution_3"), no_layer()]
    ensure(run, "general")
    store = FeatureStore(general_folder(run) / TEXTS)
    assert store.edges == run.edges and store.rows.tolist() == list(range(60)) and len(store) == 80
    before = [one.fresh(32, 16) for one in drawn]
    trainer = CellTrainer(train=store, dev=run.dev, edges=run.edges[:2], settings=run.study.block)
    for one in before:
        trainer.start_maps([one.trained])
    made = general_cells(run, 0, drawn)

    def score(candidate: Candidate) -> float:
        return block_scores([candidate.trained], store, run.edges[:2])[0]

    assert score(made[0]) < score(before[0])
    files = set(general_folder(run).glob("cell-*"))
    assert len(files) == 2
    monkeypatch.setattr(CellTrainer, "fit_candidates", None)  # the second time they are read
    for one, again in zip(made, general_cells(run, 0, drawn), strict=True):
        assert all(
            torch.equal(value, again.trained.state_dict()[name]) for name, value in one.trained.state_dict().items()
        )
    monkeypatch.undo()
    ensure(run, "block", {"block": 0})
    assert set(general_folder(run).glob("cell-*")) > files
    assert load("block").fingerprint(
        make_run(tmp_path, block=block, cell=to_dict(run.study.cell), **data), {"block": 0}
    ) != (load("block").fingerprint(run, {"block": 0}))
    with pytest.raises(ConfigError, match=r"general: cells must be at most rows"):
        make_run(tmp_path, general={"cells": 81})
