"""Observables of the whole network, evaluated outside the compiled code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from langevin.model.problem import Problem

# odd, so that ties favour no class
NEIGHBOURS = 21


class Watcher(Protocol):
    """An observable of whole states, evaluated between calls into compiled code."""

    @property
    def name(self) -> str:
        """Key in `OBSERVABLES`."""
        ...

    def __call__(self, W: np.ndarray, v: np.ndarray) -> float:
        """Evaluate at ``W (h, k)`` and a head, in the coordinates that the watcher was made for."""
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
class TestAccuracy:
    """Share of held-out samples with ``y f > 0``, or whose largest output is that of their class."""

    problem: Problem
    name: str = "test_accuracy"

    def __call__(self, W: np.ndarray, v: np.ndarray) -> float:
        p = self.problem
        assert p.X_test is not None
        assert p.y_test is not None
        W = W.astype(np.float64)
        f = p.activate(p.X_test @ W.T) @ v
        return float(((p.y_test * f > 0) if f.ndim == 1 else f.argmax(axis=1) == p.y_test).mean())


WATCHERS: dict[str, Any] = {"knn_accuracy": KNNAccuracy, "test_accuracy": TestAccuracy}
