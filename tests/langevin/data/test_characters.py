"""Glyphs as a problem: classes, held-out images, and features of other classes."""

from functools import partial

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from langevin import digits, from_file, glyphs, linear_teacher, orthogonally_separable
from langevin.data import characters


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Few public images: pre-training takes a second."""
    monkeypatch.setattr(characters, "PUBLIC_CLASSES", 8)
    monkeypatch.setattr(characters, "PUBLIC_SAMPLES", 240)


def test_classes_are_named_and_numbered():
    problem, weights = glyphs(3, 12, samples=30, loss="softmax", cache=False)
    assert problem.class_names == ("glyph 0", "glyph 2", "glyph 4")
    assert np.bincount(problem.y).tolist() == [10, 10, 10]
    assert (problem.X.shape, weights.W.shape, weights.v.shape) == ((30, 256), (12, 256), (12, 3))
    scalar, start = glyphs(2, 12, samples=30, cache=False)
    assert set(scalar.y) == {-1.0, 1.0}
    assert start.v.shape == (12,)
    # the images of a class do not depend on how it is labelled, nor its features
    both, _ = glyphs(2, 12, samples=30, loss="ovr", cache=False)
    np.testing.assert_array_equal(both.X, scalar.X)
    np.testing.assert_array_equal(start.W, weights.W)


def test_features_of_other_classes_tell_new_ones_apart():
    """Better than those of a random layer of the same size, for a classifier on top of either."""
    problem, weights = glyphs(4, 48, samples=120, test_samples=400, loss="softmax", cache=False)
    W = np.random.default_rng(0).standard_normal(weights.W.shape)
    W *= np.linalg.norm(weights.W) / np.linalg.norm(W)

    def score(W: np.ndarray) -> float:
        assert problem.X_test is not None
        train, test = (problem.activate(X @ W.T) for X in (problem.X, problem.X_test))
        return float(LogisticRegression(max_iter=1000).fit(train, problem.y).score(test, problem.y_test))

    learnt, random = score(weights.W), score(W)
    error = (learnt * (1 - learnt) / 400 + random * (1 - random) / 400) ** 0.5
    assert learnt - random > 2 * error


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"classes must be 2 with loss 'logistic', got 3: take loss='soft"):
        glyphs(3, 4)
    with pytest.raises(ValueError, match="samples must be at least 5"):
        glyphs(5, 4, samples=4, loss="ovr")
    with pytest.raises(ValueError, match="outputs must be at least 1"):
        linear_teacher(outputs=0)


@pytest.mark.parametrize("loss", [None, [], "softmaxx"])
@pytest.mark.parametrize("make", [orthogonally_separable, glyphs, digits, partial(from_file, "x.csv")])
def test_losses_that_are_none_are_named(make, loss):
    with pytest.raises((ValueError, TypeError), match=r"^loss must be"):
        make(loss=loss)
