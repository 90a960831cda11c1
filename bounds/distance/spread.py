"""How fast linear probing with shared features can drive two heads apart (sections 1a, 1a' and 8'd).

The drift of one output, or of K under a clipping that keeps it minus the gradient of a convex function, is
monotone: it never drives two heads apart. Under flat clipping of the softmax loss with K >= 3 outputs, or of
one-vs-rest, it is neither a gradient nor monotone, but nearly so.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from bounds.support.covers import CLIPPING, clipping
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.schedule import Phase
from langevin.model.weights import Weights
from langevin.support.validate import FloatArray

MONOTONE = {
    "square": ("none", "flat", "normalised"),
    "huber": ("none",),
    "softmax": ("none", "margin"),
    "ovr": ("none", "column"),
}
"""Clipping under which the drift of K outputs is minus the gradient of a convex function, by loss."""
DEFECTS = {"softmax": 0.0142288, "ovr": 0.110652}
"""Proved ``lambda`` in ``<f - f', c r - c' r'> >= -lambda C / ||A_i|| ||f - f'||^2`` of flat clipping.

For softmax the largest ``a^3 (1 - a) / (4 (1 + a^2)^(3/2))``, at ``a^3 + 4 a = 3``, for one-vs-rest the
largest ``P^(3/2) (1 - P) v (1 - v) / (1 - P + P v^2)`` over P and v up to 1, both rounded up.
"""
STEP_DEFECTS = DEFECTS | {"ovr": 0.25}
"""The same by completing the square, whose proof also holds of long steps; see `step_rate`."""


def defect(loss: str, outputs: int, kind: str) -> float | None:
    """``lambda`` of `DEFECTS` under a clipping, 0 where the drift is monotone, None where it is not known."""
    # two outputs of the softmax loss are one of the logistic loss
    scalar = outputs == (2 if loss == "softmax" else 1)
    if scalar or kind in MONOTONE.get(loss, ()):
        return 0.0
    return DEFECTS.get(loss) if kind == "flat" else None


def step_rate(expansion: float, step: float, loss: str) -> float:
    """Growth rate of squared distances in steps, from the one-sided Lipschitz constant of the drift.

    ``step`` is ``dt s lambda_max(A A^T)``, below 2. The square is completed, or half the step added to
    ``lambda``.
    """
    size = expansion / DEFECTS[loss]
    return 2 * min(STEP_DEFECTS[loss] * size / (1 - step / 2), expansion + size * step / 2)


class Spread(NamedTuple):
    """Bound of the growth of ``e = E ||Delta||^2`` in linear probing.

    Attributes
    ----------
    rate : float
        ``e' <= noise + rate e``; of the chain ``e + dt (noise + rate e)`` after a step. 0 if the drift is
        monotone, infinite if no bound is known.
    reason : str
        Why none is known.
    """

    rate: float
    reason: str = ""


class Features:
    """Sizes of the features at the start, which all paths share until full fine-tuning begins."""

    def __init__(self, problem: Problem, weights: Weights) -> None:
        self.problem = problem
        self._weights = weights

    @cached_property
    def matrix(self) -> FloatArray:
        """``A``, shape (n, h)."""
        return self.problem.features(self._weights.W)

    @cached_property
    def norms(self) -> FloatArray:
        """``||A_i||``, shape (n,)."""
        return np.linalg.norm(self.matrix, axis=1)

    @cached_property
    def largest(self) -> float:
        """``lambda_max(A A^T)``."""
        return float(np.linalg.norm(self.matrix, 2)) ** 2

    def largest_clipped(self, clip: float) -> float:
        """``lambda_max(A^T diag(1 / ||A_i||) A)`` over the samples that clipping at ``clip`` can reach."""
        reached = self.steepest > clip
        if not reached.any():
            return 0.0
        return float(np.linalg.norm(self.matrix[reached] / np.sqrt(self.norms[reached])[:, None], 2)) ** 2

    @cached_property
    def steepest(self) -> FloatArray:
        """Bounds of the norms of the unclipped gradients in the head, shape (n,); infinite where none."""
        steepest = LOSSES[self.problem.loss].steepest(self.problem.outputs_dim)
        if steepest is None:
            return np.where(self.norms > 0, np.inf, 0.0)
        return steepest * self.norms

    def gradients(self, phase: Phase) -> FloatArray:
        """Bounds of the norms of the clipped gradients in the head, shape (n,)."""
        if phase.clip is None:
            return self.steepest
        if phase.clipping == "normalised":
            with np.errstate(invalid="ignore"):
                share = self.steepest / (self.steepest + phase.stabiliser)
            return phase.clip * np.where(np.isfinite(self.steepest), share, 1.0)
        return np.minimum(self.steepest, phase.clip)


def spread(features: Features, phase: Phase, dt: float | None = None) -> Spread:
    """Bound the growth in a phase of linear probing before any full fine-tuning.

    Parameters
    ----------
    features : Features
    phase : Phase
    dt : float, optional
        Step of the chain; None for the diffusion.
    """
    problem, kind = features.problem, clipping(phase)
    if kind == "flat" and phase.clip is not None and not (features.steepest > phase.clip).any():
        # clipping cannot act
        kind = "none"
    share = defect(problem.loss, problem.outputs_dim, kind)
    if share is None:
        return Spread(np.inf, _not_monotone(problem, kind))
    expansion = 0.0
    if share and phase.clip is not None:
        expansion = share * phase.clip * features.largest_clipped(phase.clip)
    if dt is None:
        return Spread(2 * expansion)
    smoothness = LOSSES[problem.loss].smoothness
    if kind == "normalised" and phase.clip is not None:
        smoothness *= phase.clip / phase.stabiliser
    step = dt * smoothness * features.largest
    if step > 2 or (expansion and step == 2):
        return Spread(np.inf, _too_large(dt, step))
    return Spread(step_rate(expansion, step, problem.loss) if expansion else 0.0)


def _not_monotone(problem: Problem, kind: str) -> str:
    others = " or ".join(repr(name) for name in MONOTONE.get(problem.loss, ()))
    return (
        f"linear probing {CLIPPING[kind]} is not monotone for {problem.outputs_dim} outputs of the "
        f"{problem.loss} loss, and how fast it can drive heads apart is not known: take clipping {others}"
    )


def _too_large(dt: float, step: float) -> str:
    return (
        f"dt={dt:g} is too large: steps of linear probing may drive heads apart, as dt times the largest "
        f"curvature is {step:g}, which exceeds 2: take dt <= {2 * dt / step:.3g}"
    )
