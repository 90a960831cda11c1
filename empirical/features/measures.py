"""Measures of features."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.neighbors import KNeighborsClassifier

from empirical.data.splits import Labels
from langevin.support import validate
from langevin.support.validate import FloatArray

NEIGHBOURS = 20


def knn_accuracy(
    train: ArrayLike,
    train_labels: Labels,
    test: ArrayLike,
    test_labels: Labels,
    *,
    neighbours: int = NEIGHBOURS,
) -> float:
    """Return the accuracy of a vote of the nearest training points by cosine.

    Features' lengths say how sure a net is rather than of what, so the angle is what is compared, as is usual
    for features [1]_. Pixels and random nets may also reach a high one: report theirs next to it. (Raw pixels
    of glyphs of 24 pixels have .87 to .90 by cosine, which passes over their contrast, and .79 to .83 by
    distance; for trained nets the two differ by .02 at most.)

    Parameters
    ----------
    train, test : array_like, shape (n, features), (m, features)
    train_labels, test_labels : ndarray of int, shape (n,), (m,)
    neighbours : int
        Voters of equal weight; all training points where there are fewer.

    Returns
    -------
    float

    References
    ----------
    .. [1] Wu, Xiong, Yu, Lin, "Unsupervised feature learning via non-parametric instance discrimination",
       CVPR 2018.

    Examples
    --------
    >>> knn_accuracy([[1, 0], [0, 1]], np.array([0, 1]), [[3, 1], [1, 9]], np.array([0, 1]), neighbours=1)
    1.0
    """
    neighbours = validate.integer("neighbours", neighbours, 1)
    known, asked = unit_rows(matrix("train", train)), unit_rows(matrix("test", test))
    # of unit vectors, near is near by angle
    classifier = KNeighborsClassifier(min(neighbours, len(known)), algorithm="brute")
    classifier.fit(known, train_labels)
    return float((classifier.predict(asked) == test_labels).mean())


def linear_cka(a: ArrayLike, b: ArrayLike) -> float:
    """Linear centred kernel alignment of two sets of features of the same samples [1]_.

    ``|B^T A|^2 / (|A^T A| |B^T B|)`` in Frobenius norms, columns centred; from 0 to 1. It does not change
    under rotations, reflections and one common scale of either. Independent features of ``n`` samples have
    about ``sqrt(p q) / n`` rather than 0.

    Parameters
    ----------
    a, b : array_like, shape (n, p), (n, q)

    Returns
    -------
    float
        nan if either is constant over the samples.

    References
    ----------
    .. [1] Kornblith, Norouzi, Lee, Hinton, "Similarity of neural network representations revisited", ICML
       2019.

    Examples
    --------
    >>> a = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(linear_cka(a, -2 * a[:, ::-1]), 12)
    1.0
    """
    x, y = matrix("a", a), matrix("b", b)
    validate.same_length("a", x, "b", y)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    scale = np.sqrt(_overlap(x, x) * _overlap(y, y))
    return float(_overlap(x, y) / scale) if scale > 0 else float("nan")


def _overlap(x: FloatArray, y: FloatArray) -> float:
    """``|y^T x|^2``, in the cheaper of two ways."""
    if max(x.shape[1], y.shape[1]) > len(x):
        return float(((x @ x.T) * (y @ y.T)).sum())
    return float(((y.T @ x) ** 2).sum())


def cosine_similarity(a: ArrayLike, b: ArrayLike) -> float:
    """Return the mean cosine of each sample's two feature vectors; zero vectors count as 0.

    Parameters
    ----------
    a, b : array_like, shape (n, features)

    Returns
    -------
    float

    Examples
    --------
    >>> cosine_similarity([[1, 0], [0, 2]], [[3, 0], [1, 0]])
    0.5
    """
    x, y = matrix("a", a), matrix("b", b)
    if x.shape != y.shape:
        raise ValueError(f"a and b must have the same shape, got {x.shape} and {y.shape}")
    return float((unit_rows(x) * unit_rows(y)).sum(axis=1).mean())


def unit_rows(x: FloatArray) -> FloatArray:
    """Divide rows by their norms; zero rows stay zero."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)


def matrix(name: str, value: ArrayLike) -> FloatArray:
    """``value`` as a matrix of floats, or an error that names it."""
    return validate.array(name, value, 2)
