"""Comparing alternatives on common draws, with errors that include the choice of a rate."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from langevin.support.validate import FloatArray

# of the comparison, two-sided
LEVEL = 0.05
_RESAMPLES = 100


class Outcomes(NamedTuple):
    """Where runs end, by alternative and draw: held-out accuracy, and mean loss over the training samples.

    A run that leaves the range of its numbers is right nowhere, and its loss is infinite.
    """

    accuracy: FloatArray
    loss: FloatArray


def standard_error(values: FloatArray) -> FloatArray:
    """Of the means over the draws, the last axis; NaN where one is infinite."""
    with np.errstate(invalid="ignore"):
        return values.std(-1, ddof=1) / math.sqrt(values.shape[-1])


def best_of(accuracy: FloatArray, loss: FloatArray) -> int:
    """Return the place of the highest mean accuracy over the draws (on ties, the lowest mean loss).

    An alternative of which a run left the range of numbers comes after all others.
    """
    whole = np.isfinite(loss).all(1)
    return int(np.lexsort((loss.mean(1), -accuracy.mean(1), ~whole))[0])


def deficit_of(
    accuracy: FloatArray, loss: FloatArray, choice: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Accuracy lost against the best alternative, mean and standard error, paired by draws.

    Parameters
    ----------
    accuracy, loss : ndarray, shape (m, draws)
    choice : ndarray, shape (m,), optional
        Standard error of each mean that comes from the choice of its rate, see `chosen`.
    """
    best = best_of(accuracy, loss)
    lost = accuracy[best] - accuracy
    error = standard_error(lost)
    if choice is not None:
        others = np.arange(len(lost)) != best
        error = np.sqrt(error**2 + np.where(others, choice**2 + choice[best] ** 2, 0.0))
    return lost.mean(1), error


def as_good_as(accuracy: FloatArray, loss: FloatArray, choice: FloatArray | None = None) -> NDArray[np.bool_]:
    """Tell which alternatives are not worse than the best by a paired t-test."""
    from scipy.stats import t

    mean, error = deficit_of(accuracy, loss, choice)
    most = t.ppf(1 - LEVEL / 2, accuracy.shape[1] - 1) * error
    return (mean <= most) & np.isfinite(loss).all(1)


def within_error(
    accuracy: FloatArray, loss: FloatArray, choice: FloatArray | None = None
) -> NDArray[np.bool_]:
    """Tell which alternatives are within one standard error of the best; at least that one is."""
    mean, error = deficit_of(accuracy, loss, choice)
    found = (mean <= error) & np.isfinite(loss).all(1)
    # one lost run alone makes the error as large as the deficit
    found[best_of(accuracy, loss)] = True
    return found


class Chosen(NamedTuple):
    """What the choice of one alternative comes to.

    Attributes
    ----------
    place : int
        The first, that is the smallest rate, within one standard error of the best.
    accuracy, loss : ndarray, shape (draws,)
        Of each draw, the end of the run at the rate that all *other* draws choose: as the choice has not seen
        the draw, their means are not raised by it.
    error : float
        Standard deviation of the mean accuracy over choices from resampled draws.
    """

    place: int
    accuracy: FloatArray
    loss: FloatArray
    error: float


def chosen(accuracy: FloatArray, loss: FloatArray) -> Chosen:
    """Choose among alternatives in increasing order, and say what the choice adds to the error.

    Parameters
    ----------
    accuracy, loss : ndarray, shape (m, draws)
    """
    m, draws = accuracy.shape
    place = int(within_error(accuracy, loss).argmax())
    if m == 1 or draws < 3:
        return Chosen(place, accuracy[place], loss[place], 0.0)

    def pick(of: NDArray[np.int64]) -> int:
        return int(within_error(accuracy[:, of], loss[:, of]).argmax())

    every = np.arange(draws)
    unseen = [pick(np.delete(every, j)) for j in every]
    random = np.random.default_rng(0)
    again = [pick(random.integers(draws, size=draws)) for _ in range(_RESAMPLES)]
    error = float(accuracy.mean(1)[again].std())
    return Chosen(place, accuracy[unseen, every], loss[unseen, every], error)
