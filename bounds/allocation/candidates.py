"""Settings of private linear probing, ranked by their moments alone (8'c, new)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bounds.loss.law import correct, exceeds
from bounds.loss.moments import Points, Probing
from bounds.privacy.noise import noise_multiplier, normal_noise_multiplier
from langevin.support.validate import FloatArray

Criterion = Literal["accuracy", "loss"]

CRITERIA = ("accuracy", "loss")
LARGEST_SHARE = 0.01
"""Of clipped gradients with which the moments of the unclipped chain are taken to hold."""
# of the largest stable step on full batches, from there down
STEPS_OF_TIME = 1.9 * 2.0 ** (-np.arange(20) / 2)
# of the points that the ranking looks at
TRAINING, HELD_OUT = 400, 400
# by which a setting must be better to be worth reading more samples
WORTH = 1e-3


@dataclass(frozen=True)
class Candidate:
    """A setting; ``score`` is better if it is higher.

    Attributes
    ----------
    sample_rate, noise_multiplier, clip, dt : float
    steps : int
    clipped : float
        Expected share of clipped gradients.
    score : float
        Expected accuracy, or minus the expected loss, on held-out points.
    """

    sample_rate: float
    steps: int
    noise_multiplier: float
    dt: float
    clip: float
    clipped: float
    score: float

    @property
    def cost(self) -> float:
        """Samples read, over their number."""
        return self.sample_rate * self.steps


@dataclass(frozen=True)
class Grid:
    """What to choose from, and by what.

    Attributes
    ----------
    epsilon, delta : float
    sample_rates : tuple of float
    steps : tuple of int
    clips : ndarray
        Rising.
    criterion : {"accuracy", "loss"}
    """

    epsilon: float
    delta: float
    sample_rates: tuple[float, ...]
    steps: tuple[int, ...]
    clips: FloatArray
    criterion: Criterion


def best(probing: Probing, held_out: Points, norms: FloatArray, grid: Grid) -> Candidate:
    """Return the best setting of a grid, with its noise multiplier by an accountant.

    All settings are compared with the noise multiplier of the limit of many steps, and the best one of each
    sample rate again with that of the accountant.

    Parameters
    ----------
    probing : Probing
    held_out : Points
    norms : ndarray, shape (n,)
        Norms of the features.
    grid : Grid
    """
    curves = [
        _Curves(probing, held_out, norms, grid, float(dt)) for dt in STEPS_OF_TIME / probing.eigenvalues[0]
    ]
    budget = grid.epsilon, grid.delta
    finalists = []
    for rate in grid.sample_rates:
        ranked = []
        for steps in grid.steps:
            nu = normal_noise_multiplier(*budget, sample_rate=rate, steps=steps)
            ranked += [curve.candidate(rate, steps, nu) for curve in curves]
        steps = cheapest(ranked).steps
        nu = noise_multiplier(*budget, sample_rate=rate, steps=steps)
        finalists.append(cheapest([curve.candidate(rate, steps, nu) for curve in curves]))
    return cheapest(finalists)


def cheapest(candidates: list[Candidate]) -> Candidate:
    """The one that reads the fewest samples of those that are nearly the best, clipping hardly anything.

    If all clip more than `LARGEST_SHARE`, the one that clips least.
    """
    allowed = [c for c in candidates if c.clipped <= LARGEST_SHARE and np.isfinite(c.score)]
    if not allowed:
        return min(candidates, key=lambda c: c.clipped)
    top = max(c.score for c in allowed)
    near = [c for c in allowed if c.score >= top - WORTH * abs(top)]
    return min(near, key=lambda c: (c.cost, -c.score))


class _Curves:
    """Moments with one step ``dt`` at some numbers of steps, for every sample rate and any noise.

    The squared residuals that sampling sees are spread evenly over the samples, so that the covariance stays
    diagonal. It has a part that the mean drives and one that scales with the variance of the noise. Arrays
    have the knots, numbers of steps, as their first axis.
    """

    def __init__(self, probing: Probing, held_out: Points, norms: FloatArray, grid: Grid, dt: float) -> None:
        self.grid, self.dt, self.outputs = grid, dt, probing.start.shape[1]
        # 0 and powers of 2 as well: the share of clipped gradients is interpolated between them
        most = max(grid.steps)
        self.knots = sorted({0, *(2**k for k in range(most.bit_length())), *grid.steps} - {2 * most})
        rows = _spaced(len(norms), TRAINING)
        train = _taken(probing.samples, rows)
        test = _taken(held_out, _spaced(len(held_out.targets), HELD_OUT))
        self.norms = np.maximum(norms[rows], 1e-6 * norms.max())
        self.label, self.targets = test.targets.argmax(1), test.targets
        squares = np.vstack([train.features, test.features]).T ** 2
        lengths, residuals, variances = [], [], []
        for step, mean, covariance in self._walk(probing):
            lengths.append(np.linalg.norm(train.features @ mean + train.gap, axis=1))
            residuals.append(test.features @ mean + test.gap)
            variance = covariance @ squares / self.outputs
            # the noise in the kernel of the features, which nothing contracts
            variance[1, :, len(rows) :] += step * test.outside
            variances.append(variance)
        self.lengths, self.residuals = np.array(lengths), np.array(residuals)
        self.train_variance, self.test_variance = np.split(np.array(variances), [len(rows)], axis=-1)

    def _walk(self, probing: Probing) -> Iterator[tuple[int, FloatArray, FloatArray]]:
        """Yield the mean (rank, K) and both parts of the covariance (2, rates, rank) at the knots."""
        values, n = probing.eigenvalues, len(probing.samples.targets)
        factor = 1 - self.dt * values
        omega = 1 / np.array(self.grid.sample_rates) - 1
        spread = np.outer(self.dt**2 * omega * 2 / n, values)
        covariance = np.zeros((2, len(omega), len(values)))
        squares, floor, knots = (probing.start**2).sum(1), probing.floor, set(self.knots)
        with np.errstate(over="ignore", invalid="ignore"):
            for step in range(self.knots[-1] + 1):
                if step in knots:
                    yield step, (factor**step)[:, None] * probing.start, covariance
                loss = 0.5 * covariance @ values
                loss[0] += floor + 0.5 * float(values @ (factor ** (2 * step) * squares))
                covariance = factor**2 * covariance + loss[..., None] * spread
                covariance[1] += self.outputs

    def candidate(self, sample_rate: float, steps: int, noise_multiplier: float) -> Candidate:
        """The setting with the smallest clip of the grid that clips hardly anything, or the largest clip."""
        which, end = self.grid.sample_rates.index(sample_rate), self.knots.index(steps)
        clips, low, high = self.grid.clips, 0, len(self.grid.clips) - 1
        unit = (self.dt * noise_multiplier / sample_rate) ** 2
        # a larger clip brings more noise, but clips less of it
        while low < high:
            middle = (low + high) // 2
            if self._clipped(which, end, unit, clips[middle]) <= LARGEST_SHARE:
                high = middle
            else:
                low = middle + 1
        clip = float(clips[low])
        share = self._clipped(which, end, unit, clip)
        score = self._score(which, end, unit * clip**2) if share <= LARGEST_SHARE else -np.inf
        return Candidate(sample_rate, steps, noise_multiplier, self.dt, clip, share, score)

    def _clipped(self, which: int, end: int, unit: float, clip: float) -> float:
        """Expected share of clipped gradients over all steps."""
        parts = self.train_variance[: end + 1, :, which]
        variance = parts[:, 0] + unit * clip**2 * parts[:, 1]
        if not np.isfinite(variance).all():
            return 1.0
        shares = exceeds(self.lengths[: end + 1], variance, clip / self.norms, self.outputs).mean(1)
        return average(np.array(self.knots[: end + 1]), shares)

    def _score(self, which: int, end: int, noise: float) -> float:
        """Expected accuracy, or minus the expected loss, on the held-out points."""
        residual, parts = self.residuals[end], self.test_variance[end, :, which]
        variance = parts[0] + noise * parts[1]
        if self.grid.criterion == "loss":
            return -0.5 * float(((residual**2).sum(1) + self.outputs * variance).mean())
        return float(correct(residual + self.targets, variance, self.label).mean())


def average(knots: np.ndarray, values: FloatArray) -> float:
    """Mean of values over the steps ``0, ..., knots[-1] - 1``, interpolated between the knots."""
    total = np.trapezoid(values, knots) - (values[-1] - values[0]) / 2
    return float(total / knots[-1])


def _spaced(count: int, most: int) -> np.ndarray:
    """At most so many indices, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def _taken(points: Points, rows: np.ndarray) -> Points:
    return Points(*(getattr(points, name)[rows] for name in ("features", "targets", "gap", "outside")))
