"""Which sizes of numbers a bound can multiply."""

from __future__ import annotations

from langevin import _validate
from langevin.problem import Problem, Weights, require_compatible
from langevin.schedule import Schedule

SMALLEST, LARGEST = 1e-30, 1e30
"""Products of ten such numbers are doubles still; no data or training is near these ends."""


def require_moderate(
    problem: Problem, weights: Weights, schedule: Schedule | None = None, **numbers: float | None
) -> None:
    """Refuse what is not compatible, or leaves the range of doubles in the products that bounds are made of.

    Parameters
    ----------
    problem, weights
    schedule : Schedule, optional
    **numbers : float or None
        Others by their names, which None leaves out.
    """
    require_compatible(problem, weights)
    arrays = {"problem.X": problem.X, "problem.y": problem.y, "weights.W": weights.W, "weights.v": weights.v}
    sizes = {name: max(float(array.max()), -float(array.min())) for name, array in arrays.items()}
    if schedule is not None:
        _validate.instance("schedule", schedule, Schedule)
    for phase in schedule or ():
        for name in ("time", "sigma", "clip", "stabiliser"):
            _require(name, getattr(phase, name), "take another unit of time or of loss")
    for name, number in numbers.items():
        _require(name, None if number is None else _validate.number(name, number), "take another unit")
    for name, size in sizes.items():
        _require(f"the largest entry of {name}", size, "rescale inputs, targets or weights")


def _require(name: str, number: float | None, remedy: str) -> None:
    if number and not SMALLEST <= abs(number) <= LARGEST:
        raise ValueError(
            f"{name} must be 0 or from {SMALLEST:g} to {LARGEST:g} in size for a bound, got {number:g}: "
            f"{remedy}"
        )
