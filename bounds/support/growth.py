"""How fast the drift can let the weights grow."""

from __future__ import annotations

from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.weights import Method


def pull(problem: Problem, method: Method) -> float:
    """Largest growth of ``||theta||^2`` by the drift: ``theta . grad f`` is ``2 f``, in probing ``f``."""
    growth = LOSSES[problem.loss].growth
    if growth is None:
        raise ValueError(f"problem.loss must have a growth constant, got {problem.loss!r}: add it to LOSSES")
    return (4 if method == "fft" else 2) * float(growth(problem.targets).sum())
