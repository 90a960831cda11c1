"""Observables of the whole network, evaluated outside the compiled code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from langevin.model.observables import OBSERVABLES
from langevin.model.problem import Problem

# odd, so that ties favour no class
NEIGHBOURS = 21


class Watcher(Protocol):
    """An observable of whole states, evaluated between calls into compiled code."""

    @property
    def name(self) -> str:
        """Key in `OBSERVABLES`."""
        ...

    def __call__(self, W: np.ndarray, v: np.ndarray) -> Any:
        """Evaluate at ``W (h, k)`` and a head, in the coordinates that the watcher was made for.

        Returns a number, or an array over the dimensions of the observable besides ``time``.
        """
        ...


@dataclass(frozen=True, eq=False)
class KNNAccuracy:
    """Accuracy of nearest neighbours among the hidden features of the training samples.

    ``problem`` holds its inputs in the coordinates of the states to come.
    """

    problem: Problem
    name: str = "knn_accuracy"

    def __call__(self, W: np.ndarray, v: np.ndarray) -> float:
        from sklearn.neighbors import KNeighborsClassifier

        p = self.problem
        assert p.X_test is not None
        assert p.y_test is not None
        W = W.astype(np.float64)
        features, held_out = p.features(W), p.activate(p.X_test @ W.T)
        if not (np.isfinite(features).all() and np.isfinite(held_out).all()):
            return np.nan
        neighbours = KNeighborsClassifier(min(NEIGHBOURS, p.samples))
        return float(neighbours.fit(features, p.y).score(held_out, p.y_test))


@dataclass(frozen=True, eq=False)
class Predictions:
    """What ``measure`` makes of the classes of training or held-out samples, and of the predicted ones.

    Both are numbers of classes, in the order of `Problem.labels`; the third argument is how many there are.
    """

    problem: Problem
    name: str
    measure: Callable[[np.ndarray, np.ndarray, int], Any]

    def __call__(self, W: np.ndarray, v: np.ndarray) -> Any:
        p, held_out = self.problem, OBSERVABLES[self.name].held_out
        X, y = (p.X_test, p.y_test) if held_out else (p.X, p.y)
        assert X is not None
        assert y is not None
        f = p.activate(X @ W.astype(np.float64).T) @ v
        if f.ndim == 2:
            return self.measure(y, f.argmax(axis=1), f.shape[1])
        classes = (y > 0).astype(np.int64)
        # an output of 0 is right for no class
        return self.measure(classes, np.where(y * f > 0, classes, 1 - classes), 2)


def _accuracy(classes: np.ndarray, predicted: np.ndarray, count: int) -> float:
    return float((classes == predicted).mean())


def _class_accuracy(classes: np.ndarray, predicted: np.ndarray, count: int) -> np.ndarray:
    """Share of right predictions per class, shape (count,); NaN for a class without samples."""
    right, samples = (
        np.bincount(which, minlength=count) for which in (classes[classes == predicted], classes)
    )
    return np.divide(right, samples, out=np.full(count, np.nan), where=samples > 0)


def _confusion(classes: np.ndarray, predicted: np.ndarray, count: int) -> np.ndarray:
    """Samples by class and predicted class, shape (count, count)."""
    return np.bincount(count * classes + predicted, minlength=count**2).reshape(count, count)


_MEASURES = {
    "test_accuracy": _accuracy,
    "class_accuracy": _class_accuracy,
    "test_class_accuracy": _class_accuracy,
    "confusion": _confusion,
    "test_confusion": _confusion,
}
WATCHERS: dict[str, Callable[[Problem], Watcher]] = {
    "knn_accuracy": KNNAccuracy,
    **{name: partial(Predictions, name=name, measure=measure) for name, measure in _MEASURES.items()},
}
