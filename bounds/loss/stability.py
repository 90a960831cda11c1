"""Mean-square stability and stationary loss of linear probing with batches (8'c, new)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg, eigsh

from bounds.loss.moments import Probing, probing_of, require_memory
from bounds.loss.probing import CHAIN
from bounds.support.covers import declares
from bounds.support.numeric import root
from bounds.support.ranges import require_moderate
from langevin.model.problem import Problem
from langevin.model.weights import Weights
from langevin.support import validate
from langevin.support.validate import FloatArray

# up to so many samples the operator is written as a matrix
DENSE = 64


@dataclass(frozen=True)
class LpStability:
    """Which steps linear probing tolerates, and where it settles; see `lp_stability`.

    Attributes
    ----------
    largest_dt : float
        The second moments settle below this step, and grow without bound above it.
    full_batch_dt : float
        The same for full batches: ``2 / lambda_max(A A^T)``.
    growth : float
        ``dt^2 omega`` times the spectral radius of ``N``: below 1 if stable; infinite if ``dt`` is
        at least ``full_batch_dt``. NaN without a ``dt``.
    stationary_loss : float
        Limit of the expected loss; infinite if it is not stable. NaN without a ``dt``.
    """

    largest_dt: float
    full_batch_dt: float
    growth: float
    stationary_loss: float


@declares(CHAIN)
def lp_stability(
    problem: Problem,
    weights: Weights,
    *,
    sample_rate: float = 1.0,
    dt: float | None = None,
    sigma: float = 0.0,
) -> LpStability:
    r"""Return the largest step at which linear probing is mean-square stable, and the stationary loss.

    New (8'c). With ``A A^T = U diag(lambda) U^T`` on its range, ``omega = (1 - q) / q`` and ``N_il = sum_ab
    U_ia U_ib U_la U_lb lambda_a lambda_b / (1 - (1 - dt lambda_a)(1 - dt lambda_b))``, the second moments
    forget their start if and only if ``dt lambda_max < 2`` and ``dt^2 omega`` times the spectral radius of
    ``N`` is below 1. That product grows with ``dt``, so the largest step is its root; it is at least
    ``2 / (lambda_max + omega max ||A_i||^2)``. The loss then tends to ``sum(d) / 2`` with ``(I - dt^2 omega
    N) d = ||Y_perp,i||^2 + sum_a U_ia^2 2 sigma^2 K / (2 - dt lambda_a)``: what the targets leave
    unexplained, ``Y_perp``, feeds it through the sampling.

    Parameters
    ----------
    problem, weights
        What is probed; of the weights only the features count.
    sample_rate : float
        Poisson rate ``q``; 1 for full batches.
    dt : float, optional
        Step whose growth and stationary loss are wanted.
    sigma : float
        Noise, for the stationary loss.

    Returns
    -------
    LpStability

    Notes
    -----
    ``N`` is applied without forming it, in ``O(n min(n, h)^2)``; all of it takes 50 to 100 such products.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1], "linear", "square")
    >>> weights = Weights([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    >>> found = lp_stability(problem, weights, sample_rate=0.25, dt=0.1, sigma=0.1)
    >>> round(found.largest_dt, 6), found.full_batch_dt, round(found.stationary_loss, 6)
    (0.5, 2.0, 0.0125)
    """
    require_moderate(problem, weights, sigma=sigma)
    CHAIN.require(problem)
    rate = validate.rate("sample_rate", sample_rate)
    sigma = validate.non_negative("sigma", sigma)
    if dt is not None:
        dt = validate.positive("dt", dt)
    require_memory(problem, weights)
    sampling = _Sampling(probing_of(problem, weights), (1 - rate) / rate)
    growth = np.nan if dt is None else sampling.growth(dt)
    loss = np.nan
    if dt is not None:
        loss = sampling.stationary(dt, sigma) if growth < 1 else np.inf
    return LpStability(sampling.largest_dt(), sampling.full_batch_dt, growth, loss)


class _Sampling:
    """What the noise of sampling does to the squared residuals in the stationary state."""

    def __init__(self, probing: Probing, omega: float) -> None:
        self.probing, self.omega = probing, omega
        self.values = probing.eigenvalues
        self.U = probing.samples.features / np.sqrt(self.values)
        # an eigenvector without negative entries exists, as the matrix has none
        self.vector = np.ones(len(self.U))
        self.full_batch_dt = 2 / float(self.values[0]) if len(self.values) else np.inf

    def operator(self, dt: float) -> LinearOperator:
        """``dt^2 omega N``, symmetric and positive semidefinite, with entries that are not negative."""
        n = len(self.U)
        # dt^2 lambda_a lambda_b / (1 - (1 - dt lambda_a)(1 - dt lambda_b)), free of cancellation
        a = 1 / self.values
        weight = self.omega * dt / (a[:, None] + a - dt)

        def product(d: FloatArray) -> FloatArray:
            inner = (self.U.T * d.ravel()) @ self.U * weight
            return np.einsum("ij,ij->i", self.U @ inner, self.U)

        return LinearOperator((n, n), matvec=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]

    def growth(self, dt: float) -> float:
        """Spectral radius of `operator`; infinite where full batches are not stable."""
        if dt >= self.full_batch_dt:
            return np.inf
        if self.omega == 0 or not len(self.values):
            return 0.0
        operator, n = self.operator(dt), len(self.U)
        if n <= DENSE:
            matrix = np.column_stack([operator.matvec(column) for column in np.eye(n)])
            return float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])
        # few products at a time, from the last eigenvector: a product is what takes time
        found, self.vector = eigsh(operator, 1, which="LA", v0=self.vector, ncv=8, tol=1e-9)  # pyright: ignore[reportArgumentType]
        return float(found[0])

    def largest_dt(self) -> float:
        """Root of ``growth(dt) = 1``, which rises with ``dt``."""
        if self.omega == 0 or not len(self.values):
            return self.full_batch_dt
        # the largest sum of a row bounds the radius: this step is stable
        least = 2 / (self.values[0] + self.omega * float((self.U**2 @ self.values).max()))
        # nearly linear in the inverse step
        inverse = root(
            lambda x: 1 / self.growth(1 / x) - 1,
            1 / self.full_batch_dt,
            1 / least * (1 + 1e-9),
            xtol=1e-8 / least,
        )
        return 1 / inverse

    def stationary(self, dt: float, sigma: float) -> float:
        """Half the sum of the stationary squared residuals."""
        noise = 2 * sigma**2 * self.probing.start.shape[1] / (2 - dt * self.values)
        source = (self.probing.samples.gap**2).sum(1) + self.U**2 @ noise
        if self.omega == 0:
            return 0.5 * float(source.sum())
        operator, n = self.operator(dt), len(source)
        kept = LinearOperator((n, n), matvec=lambda d: d.ravel() - operator.matvec(d), dtype=np.float64)  # pyright: ignore[reportCallIssue]
        # symmetric and, where stable, positive definite
        found, failed = cg(kept, source, source, rtol=1e-12, maxiter=10 * n + 100)
        if failed:
            raise ArithmeticError(f"the stationary loss was not found: dt={dt:g} is next to the largest step")
        return 0.5 * float(found.sum())
