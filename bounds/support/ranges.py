"""Check the sizes of numbers that a bound can multiply."""

from __future__ import annotations

import numpy as np

from langevin.model.problem import Problem, require_compatible
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from langevin.support import validate

SMALLEST, LARGEST = 1e-30, 1e30
"""Products of ten such numbers are doubles still; no data or training is near these ends."""


def require_moderate(
    problem: Problem,
    weights: Weights,
    schedule: Schedule | None = None,
    *,
    pairs: bool = False,
    **numbers: float | None,
) -> None:
    """Refuse inputs that are incompatible, leave the range of doubles in products, or exceed memory.

    Parameters
    ----------
    problem, weights
    schedule : Schedule, optional
    pairs : bool
        Whether the bound holds a number for each pair of samples: of one class, in a ReLU net.
    **numbers : float or None
        Others by their names, which None leaves out.
    """
    require_compatible(problem, weights, schedule)
    arrays = {"problem.X": problem.X, "problem.y": problem.y, "weights.W": weights.W, "weights.v": weights.v}
    sizes = {name: max(float(array.max()), -float(array.min())) for name, array in arrays.items()}
    for phase in schedule or ():
        for name in ("time", "clip", "stabiliser"):
            _require(name, getattr(phase, name), "take another unit of time or of loss")
        # less noise than can be squared is none
        _require("sigma", max(phase.sigma, SMALLEST), "take another unit of time or of loss")
    for name, number in numbers.items():
        _require(name, None if number is None else validate.number(name, number), "take another unit")
    for name, size in sizes.items():
        _require(f"the largest entry of {name}", size, "rescale inputs, targets or weights")
    n, h = problem.samples, len(weights.v)
    entries = 6 * n * h + 4 * n * problem.dim + 2 * h * problem.dim + 4 * (n + h) * (problem.outputs_dim - 1)
    if pairs:
        apart = problem.activation == "relu" and problem.classification
        counts = np.unique(problem.y, return_counts=True)[1] if apart else np.array([n])
        entries += 7 * int((counts.astype(np.int64) ** 2).sum())
    validate.memory(
        8.0 * entries,
        f"a bound for {n} samples in {problem.dim} dimensions and {h} neurons",
        "take fewer samples or neurons",
    )


def _require(name: str, number: float | None, remedy: str) -> None:
    if number and not SMALLEST <= abs(number) <= LARGEST:
        raise ValueError(
            f"{name} must be 0 or from {SMALLEST:g} to {LARGEST:g} in size for a bound, got {number:g}: "
            f"{remedy}"
        )
