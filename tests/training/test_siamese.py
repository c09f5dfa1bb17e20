from pathlib import Path

import numpy as np
import pytest

from nni_bertnas.data.rows import UNLABELLED
from nni_bertnas.training.siamese import Answered, Siamese, cosines, features, fit_siamese

WIDTH = 6


def make_rows(count: int, kind: str, seed: int) -> Answered:
    """Labels that follow the cosine; a cross-encoder that knows them with noise."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(count, 2 * WIDTH)).astype(np.float32)
    likeness = cosines(vectors)
    if kind == "scores":
        labels = (5 * (likeness + 1) / 2 + 0.3 * generator.normal(size=count)).astype(np.float32)
        logits = (2 * labels + 1 + generator.normal(size=count))[:, None]
    else:
        labels = (likeness + 0.3 * generator.normal(size=count) > 0).astype(np.int64)
        logits = np.stack([-labels, labels], axis=1) * 3 + generator.normal(size=(count, 2)) * 4
    return Answered(vectors, logits.astype(np.float16), labels)


def error(answer: np.ndarray, labels: np.ndarray) -> float:
    return float(((answer[:, 0] - labels) ** 2).mean() if answer.shape[1] == 1 else (answer.argmax(1) != labels).mean())


@pytest.mark.parametrize(("kind", "num_labels"), [("scores", 1), ("classes", 2)])
def test_both_know_more_than_either(kind: str, num_labels: int, tmp_path: Path) -> None:
    train, dev, new = (make_rows(count, kind, seed) for seed, count in enumerate((800, 300, 600)))
    train.labels[:5] = np.nan if kind == "scores" else UNLABELLED
    alone = fit_siamese(train, dev, num_labels, both=False)
    both = fit_siamese(train, dev, num_labels, both=True)
    assert alone.share == 0 and 0 < both.share < 1
    cross = new.logits.astype(float)
    if kind == "scores":
        slope, intercept = np.polyfit(dev.logits[:, 0].astype(float), dev.labels, 1)
        cross = intercept + slope * cross
    errors = [
        error(answer, new.labels) for answer in (both(new.logits, new.vectors), alone(new.logits, new.vectors), cross)
    ]
    assert errors[0] <= min(errors[1:]) + 0.01 and errors[0] < max(errors[1:])
    np.testing.assert_array_equal(alone(np.zeros((600, 0)), new.vectors), alone(new.logits, new.vectors))
    both.save(tmp_path / "answers.npz")
    loaded = Siamese.load(tmp_path / "answers.npz")
    np.testing.assert_array_equal(loaded(new.logits, new.vectors), both(new.logits, new.vectors))
    missing = new.vectors.copy()
    missing[3, WIDTH:] = 0
    assert (
        np.isnan(both(new.logits, missing)[3]).all() and np.isfinite(np.delete(both(new.logits, missing), 3, 0)).all()
    )


def test_several_classes_are_the_logistic_regressions_own() -> None:
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(300, 2 * WIDTH)).astype(np.float32)
    labels = np.digitize(cosines(vectors), [-0.3, 0.3])
    rows = Answered(vectors, np.zeros((300, 0)), labels)
    found = fit_siamese(rows, rows, 3, both=False)
    x = features(vectors)
    x = (x - x.mean(0)) / x.std(0)
    expected = LogisticRegression(C=0.01, max_iter=500).fit(x, labels).decision_function(x)
    np.testing.assert_allclose(found(rows.logits, vectors), expected, atol=1e-4)
