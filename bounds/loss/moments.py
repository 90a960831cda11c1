"""Moments of linear probing by Euler-Maruyama with Poisson batches and square loss (8'c, new).

With ``V*`` a least-squares head, ``H = A^T A`` and ``omega = (1 - q) / q``, the mean ``M`` of ``V - V*`` and
the covariance ``C``, summed over the outputs, follow

    M' = (I - dt H) M,
    C' = (I - dt H) C (I - dt H) + dt^2 omega A^T diag(E ||r_i||^2) A + 2 sigma^2 dt K I,

exactly, whatever the law of the noise: the batch is independent of the head. Everything is in the eigenbasis
of ``H`` on its range, which drift and sampling never leave; the noise on its kernel is white.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.steps import Grid
from langevin.model.weights import Weights
from langevin.support import threads, validate
from langevin.support.validate import FloatArray

RANGE = 1e-12
"""Relative size of the eigenvalues below which a direction counts as the kernel of ``H``."""


@dataclass(frozen=True, eq=False)
class Points:
    """Points whose residuals are followed: training samples or held-out points.

    Attributes
    ----------
    features : ndarray, shape (m, rank)
        Features in the eigenbasis.
    targets : ndarray, shape (m, K)
    gap : ndarray, shape (m, K)
        Residuals of the head ``V*`` plus the part of the initial head in the kernel of ``H``.
    outside : ndarray, shape (m,)
        Squared norms of the features in the kernel of ``H``; 0 for training samples.
    """

    features: FloatArray
    targets: FloatArray
    gap: FloatArray
    outside: FloatArray


@dataclass(frozen=True, eq=False)
class Probing:
    """Frozen features in the eigenbasis of ``H = A^T A`` on its range.

    Attributes
    ----------
    eigenvalues : ndarray, shape (rank,)
    basis : ndarray, shape (h, rank)
        Eigenvectors.
    start : ndarray, shape (rank, K)
        ``V_0 - V*``.
    samples : Points
        The training samples.
    optimum : ndarray, shape (rank, K)
        ``V*``.
    head : ndarray, shape (h, K)
        ``V_0``.
    """

    eigenvalues: FloatArray
    basis: FloatArray
    start: FloatArray
    samples: Points
    optimum: FloatArray
    head: FloatArray

    @property
    def floor(self) -> float:
        """Loss that no head removes."""
        return 0.5 * float((self.samples.gap**2).sum())

    def points(self, features: FloatArray, targets: FloatArray) -> Points:
        """Points with features (m, h) and targets (m, K)."""
        inside = features @ self.basis
        outside = features - inside @ self.basis.T
        gap = inside @ self.optimum + outside @ self.head - targets
        return Points(inside, targets, gap, np.einsum("ij,ij->i", outside, outside))


def eigenbasis(features: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Eigenvalues of ``A^T A`` on its range, falling, and eigenvectors, shapes (rank,) and (h, rank).

    By the smaller of the two Gram matrices: directions that it cannot resolve do not move in any number of
    stable steps that can be taken.
    """
    n, h = features.shape
    # threads of BLAS that wait for each other on busy processors were measured to take ten times as long
    with threads.one_blas_thread():
        values, vectors = np.linalg.eigh(features.T @ features if h <= n else features @ features.T)
    kept = values > RANGE * max(float(values[-1]), 0.0)
    values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
    return values, vectors if h <= n else features.T @ vectors / np.sqrt(values)


def probing(features: FloatArray, targets: FloatArray, head: FloatArray) -> Probing:
    """Decompose features (n, h) with targets (n, K), probed from a head (h, K)."""
    values, basis = eigenbasis(features)
    inside = features @ basis
    optimum = inside.T @ targets / values[:, None]
    start = basis.T @ head - optimum
    samples = Points(inside, targets, inside @ optimum - targets, np.zeros(len(features)))
    return Probing(values, basis, start, samples, optimum, head)


def probing_of(problem: Problem, weights: Weights) -> Probing:
    """Decompose the frozen features of a network."""
    head = weights.v.reshape(len(weights.v), -1)
    return probing(problem.features(weights.W), problem.targets, head)


def require_memory(problem: Problem, weights: Weights, held_out: int = 0) -> None:
    """Refuse moments that do not fit into memory."""
    n, h = problem.samples, len(weights.v)
    rank = min(n, h)
    validate.memory(
        8.0 * (3 * (n + held_out) * rank + 6 * rank**2),
        f"the moments of a head of {h} neurons for {n} samples",
        "take fewer samples or neurons",
    )


class Moments:
    """Mean and covariance of the head, advanced in steps.

    Parameters
    ----------
    probing : Probing
    coupled : bool
        Whether the covariance couples eigenvectors, as it does with batches; otherwise it is diagonal.

    Attributes
    ----------
    mean : ndarray, shape (rank, K)
        Of ``V - V*``.
    covariance : ndarray, shape (rank, rank), or (rank,)
        Summed over the outputs; its diagonal if not ``coupled``.
    white : float
        Variance of each coordinate of the head in the kernel of ``H``.
    """

    def __init__(self, probing: Probing, *, coupled: bool) -> None:
        rank, self.outputs = probing.start.shape
        self.probing, self.coupled = probing, coupled
        self.mean = probing.start
        self.covariance = np.zeros((rank, rank) if coupled else rank)
        self.white = 0.0

    def advance(self, steps: int, dt: float, phase: Phase) -> None:
        """Take ``steps`` steps of ``dt`` in a phase."""
        noise = 2 * phase.sigma**2 * dt
        self.white += steps * noise
        if phase.sample_rate < 1:
            for _ in range(steps):
                self._sample(dt, (1 - phase.sample_rate) / phase.sample_rate, noise)
        else:
            self._contract(steps, dt, noise)

    def _contract(self, steps: int, dt: float, noise: float) -> None:
        """Take steps on full batches, in closed form: each adds noise that later ones contract."""
        pull = dt * self.probing.eigenvalues
        factor = 1 - pull
        added = self.outputs * noise * geometric(pull * (2 - pull), steps)
        self.mean = (factor**steps)[:, None] * self.mean
        if self.coupled:
            self.covariance *= np.outer(factor**steps, factor**steps)
            self.covariance[np.diag_indices_from(self.covariance)] += added
        else:
            self.covariance = self.covariance * factor ** (2 * steps) + added

    def _sample(self, dt: float, omega: float, noise: float) -> None:
        """Take a step on a Poisson batch."""
        squares = self.squared_residuals(self.probing.samples)
        weighted = dt * np.sqrt(omega * squares)[:, None] * self.probing.samples.features
        self._contract(1, dt, noise)
        self.covariance += weighted.T @ weighted

    def residual(self, points: Points) -> FloatArray:
        """Mean residuals of points, shape (m, K)."""
        return points.features @ self.mean + points.gap

    def variance(self, points: Points) -> FloatArray:
        """Variances of the outputs at points, summed over the outputs, shape (m,)."""
        left = points.features @ self.covariance if self.coupled else points.features * self.covariance
        inside = np.einsum("ij,ij->i", left, points.features)
        return inside + self.outputs * self.white * points.outside

    def squared_residuals(self, points: Points) -> FloatArray:
        """``E ||r_i||^2`` at points, shape (m,)."""
        mean = self.residual(points)
        return np.einsum("ij,ij->i", mean, mean) + self.variance(points)

    def loss(self) -> float:
        """Expected training loss."""
        diagonal = np.diagonal(self.covariance) if self.coupled else self.covariance
        second = (self.mean**2).sum(1) + diagonal
        return self.probing.floor + 0.5 * float(self.probing.eigenvalues @ second)


class Diagonal(Moments):
    """Moments with batches whose covariance is kept diagonal, in ``O(min(n, h) K)`` per step.

    What is neglected is of second order in the noise of sampling: `loss` depends on the diagonal alone, whose
    growth by sampling is exact where the squared residuals are. These are exact at the steps that `refresh`
    them, except for the neglected entries; between these steps all of them change in proportion.
    """

    def __init__(self, probing: Probing) -> None:
        super().__init__(probing, coupled=False)
        self._squares = probing.samples.features**2
        self.refresh()

    def refresh(self) -> None:
        """Compute how the noise of sampling is spread over the eigenvectors."""
        squares = self.squared_residuals(self.probing.samples)
        self._spread = squares @ self._squares / max(float(squares.mean()), np.finfo(float).tiny)

    def _sample(self, dt: float, omega: float, noise: float) -> None:
        mean_square = 2 * self.loss() / len(self._squares)
        self._contract(1, dt, noise)
        self.covariance += dt**2 * omega * mean_square * self._spread


def geometric(lost: FloatArray, count: int) -> FloatArray:
    """``1 + ratio + ... + ratio^(count - 1)`` at ``ratio = 1 - lost >= 0``, elementwise."""
    with np.errstate(divide="ignore"):
        left = np.log1p(-lost)
    return np.where(lost == 0.0, float(count), -np.expm1(count * left) / np.where(lost == 0.0, 1.0, lost))


def walk(probing: Probing, schedule: Schedule, cut: Grid, records: int) -> Iterator[Moments]:
    """Yield the moments at the first ``records`` record steps of a schedule cut into steps."""
    moments = Moments(probing, coupled=any(phase.sample_rate < 1 for phase in schedule))
    ends = np.cumsum(cut.phase_steps)
    done = 0
    for record in cut.record_steps[:records]:
        for phase, end in zip(schedule, ends, strict=True):
            steps = min(int(record), int(end)) - done
            if steps > 0:
                moments.advance(steps, cut.dt, phase)
                done += steps
        yield moments
