"""Expected loss and accuracy of linear probing on held-out points, at every step (8'c, new)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bounds.band import Band, nowhere
from bounds.loss.law import correct
from bounds.loss.moments import Moments, Points, probing_of, require_memory, walk
from bounds.loss.probing import CHAIN, CHAIN_LP, OVERFLOW
from bounds.support.covers import declares
from bounds.support.phases import steps_until
from bounds.support.ranges import require_moderate
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.steps import Grid, grid
from langevin.model.weights import Weights
from langevin.support.validate import FloatArray

GAUSSIAN = f"{CHAIN_LP}, with the Gaussian law of the outputs: an approximation"


@declares(CHAIN)
def lp_expected_test_loss(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    times: ArrayLike | None = None,
    *,
    dt: float,
) -> Band:
    r"""Expected loss of linear probing on the held-out points, exactly, of the chain in steps of ``dt``.

    New (8'c): from the mean and the covariance of the head, which `lp_expected_loss` describes. The noise on
    the kernel of the training features, which no drift contracts, counts as far as held-out features lie in
    it.

    Parameters
    ----------
    problem : Problem
        With ``X_test`` and ``y_test``.
    weights, schedule
        From where is trained, and how.
    times : array_like, shape (m,), optional
    dt : float
        Step of the chain.

    Returns
    -------
    Band
        The sum over held-out points; ``lower`` and ``upper`` are the same. Not valid from the first other
        phase on.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0]], [1.0], "linear", "square", [[1.0, 1.0]], [1.0])
    >>> weights = Weights([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    >>> schedule = Schedule.lp(time=1.0, sigma=0.1)
    >>> lp_expected_test_loss(problem, weights, schedule, [0.0, 1.0], dt=0.5).upper.round(5)
    array([0.5   , 0.0475])
    """
    require_moderate(problem, weights, schedule)
    cut = grid(schedule, dt, times)
    reason = CHAIN.refuses(problem) or _no_points(problem)
    if reason:
        return nowhere(cut.times, reason, CHAIN_LP)
    valid = steps_until(cut, CHAIN.phases(schedule))
    loss = np.full(len(valid), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        found = _held_out(problem, weights, schedule, cut, int(valid.sum()))
        loss[valid] = [0.5 * moments.squared_residuals(points).sum() for moments, points in found]
    reason = CHAIN.refuses_phases(schedule) or OVERFLOW
    return Band(cut.times, loss, loss, valid & np.isfinite(loss), reason, CHAIN_LP)


@dataclass(frozen=True, eq=False)
class ExpectedAccuracy:
    """Expected accuracy on held-out points; see `lp_expected_accuracy`.

    Attributes
    ----------
    times : ndarray, shape (m,)
    value : ndarray, shape (m,)
        Mean over the points; NaN where not valid.
    points : ndarray, shape (m, points)
        Probability that each point is classified correctly.
    valid : ndarray of bool, shape (m,)
    reason : str
    source : str
    """

    times: FloatArray
    value: FloatArray
    points: FloatArray
    valid: NDArray[np.bool_]
    reason: str
    source: str = GAUSSIAN


@declares(CHAIN)
def lp_expected_accuracy(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    times: ArrayLike | None = None,
    *,
    dt: float,
) -> ExpectedAccuracy:
    r"""Expected accuracy of linear probing on each held-out point, of the chain in steps of ``dt``.

    New (8'c). **An approximation**: the outputs at a point are taken to be independent normal variables, with
    the exact means and the exact sum of variances, split evenly over the K outputs. With full batches that is
    their law. With batches it is close where the Gaussian noise outweighs that of sampling, and too high
    where it does not: against simulations with batches of about 8 of 60 samples it erred by .001 with three
    classes, and with ten by .012 with noise and .037 without.

    Parameters
    ----------
    problem : Problem
        With ``X_test`` and ``y_test``, and targets that say a class: -1 and +1, or one-hot rows.
    weights, schedule
        From where is trained, and how.
    times : array_like, shape (m,), optional
    dt : float
        Step of the chain.

    Returns
    -------
    ExpectedAccuracy

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0]], [1.0], "linear", "square", [[1.0, 1.0]], [1.0])
    >>> weights = Weights([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    >>> schedule = Schedule.lp(time=1.0, sigma=0.3)
    >>> lp_expected_accuracy(problem, weights, schedule, [0.0, 1.0], dt=0.5).value.round(3)
    array([0.5  , 0.917])
    """
    require_moderate(problem, weights, schedule)
    cut = grid(schedule, dt, times)
    reason = CHAIN.refuses(problem) or _no_points(problem) or _no_classes(problem)
    valid = steps_until(cut, CHAIN.phases(schedule)) & (not reason)
    chance = np.full((len(valid), 0 if problem.y_test is None else len(problem.y_test)), np.nan)
    value = np.full(len(valid), np.nan)
    if valid.any():
        with np.errstate(over="ignore", invalid="ignore"):
            found = _held_out(problem, weights, schedule, cut, int(valid.sum()))
            chance[valid] = [chances(moments, points) for moments, points in found]
        value = chance.mean(1)
    valid &= np.isfinite(value)
    reason = "" if valid.all() else reason or CHAIN.refuses_phases(schedule) or OVERFLOW
    return ExpectedAccuracy(cut.times, value, chance, valid, reason)


def chances(moments: Moments, points: Points) -> FloatArray:
    """Probability that each point with one-hot targets, or -1 and +1, is classified correctly."""
    targets, K = points.targets, moments.outputs
    label = targets.argmax(1) if K > 1 else targets[:, 0]
    return correct(moments.residual(points) + targets, moments.variance(points) / K, label)


def _held_out(
    problem: Problem, weights: Weights, schedule: Schedule, cut: Grid, records: int
) -> Iterator[tuple[Moments, Points]]:
    """Yield the moments at each record step, with the held-out points."""
    assert problem.X_test is not None
    assert problem.y_test is not None
    require_memory(problem, weights, len(problem.y_test))
    found = probing_of(problem, weights)
    features = problem.activate(problem.X_test @ weights.W.T)
    points = found.points(features, problem.y_test.reshape(len(features), -1))
    for moments in walk(found, schedule, cut, records):
        yield moments, points


def _no_points(problem: Problem) -> str:
    return "" if problem.X_test is not None else "there are no held-out points: give X_test and y_test"


def _no_classes(problem: Problem) -> str:
    """Say why held-out targets say no class, or nothing."""
    targets = problem.y_test
    if targets is None or targets.ndim == 1:
        signs = targets is None or bool((np.abs(targets) == 1.0).all())
        return "" if signs else "the held-out targets are not -1 and +1"
    one_hot = np.isin(targets, (0.0, 1.0)).all() and (targets.sum(1) == 1.0).all()
    return "" if one_hot else "the held-out targets are not one-hot"
