"""The expected loss to first order in the noise (section 8): an estimate, not a bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import solve_ivp

from bounds.distance.flow import span
from bounds.features.blocks import COVERS as BLOCKS
from bounds.features.blocks import MARGINS, collapsed
from bounds.support.covers import Covers, declares, sampling
from bounds.support.numeric import patient
from bounds.support.ranges import require_moderate
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.steps import record_times
from langevin.model.weights import Weights
from langevin.support.validate import FloatArray

SOURCE = "new (section 8), an estimate"


def _of_classes(R: FloatArray, Y: FloatArray, S: FloatArray) -> FloatArray:
    """Third cumulants of the classes, contracted."""
    p = R + Y
    away = np.eye(p.shape[1]) - p[:, None]
    return np.einsum("nm,nma->na", p * np.einsum("nma,nab,nmb->nm", away, S, away, optimize=True), away)


def _of_signs(R: FloatArray, Y: FloatArray, S: FloatArray) -> FloatArray:
    g = np.abs(R)
    return -Y * g * (1 - g) * (1 - 2 * g) * np.diagonal(S, axis1=1, axis2=2)


def _one_vs_rest(R: FloatArray, Y: FloatArray, S: FloatArray) -> FloatArray:
    p = R + Y
    return p * (1 - p) * (1 - 2 * p) * np.diagonal(S, axis1=1, axis2=2)


Third = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]
THIRD: dict[str, Third] = {
    "square": lambda R, Y, S: np.zeros_like(R),
    "logistic": _of_signs,
    "softmax": _of_classes,
    "ovr": _one_vs_rest,
}
"""Third derivatives of a sample's loss from its residual, contracted with covariances of the outputs."""
LOW_RANK = Covers(tuple(THIRD), ("linear",), lp=("none",), fft=("none",), outputs=True)
COLLAPSED = replace(BLOCKS, lp=())
LARGEST = 13
"""Largest ``k + K`` of the general method, whose unknowns number its fourth power."""
RTOL, ATOL = 1e-9, 1e-11


@dataclass(frozen=True, eq=False)
class Estimate:
    """An estimate of ``E L(theta_t)`` without guarantee; see `first_order_loss`.

    Attributes
    ----------
    times : ndarray, shape (m,)
    value : ndarray, shape (m,)
        ``L(theta~_t)`` plus ``correction``; NaN where not valid.
    zeroth : ndarray, shape (m,)
        ``L(theta~_t)``.
    correction : ndarray, shape (m,)
        ``sigma^2 c(t)``.
    valid : ndarray of bool, shape (m,)
    reason : str
    source : str
    """

    times: FloatArray
    value: FloatArray
    zeroth: FloatArray
    correction: FloatArray
    valid: NDArray[np.bool_]
    reason: str
    source: str = SOURCE


@declares({"low rank": LOW_RANK, "collapsed block": COLLAPSED})
def first_order_loss(
    problem: Problem, weights: Weights, schedule: Schedule, times: ArrayLike | None = None
) -> Estimate:
    r"""Estimate ``E L(theta_t) = L(theta~_t) + sigma^2 c(t) + o(sigma^2)``.

    New (section 8; 8' with K outputs). Mean and covariance of the deviation are carried along the
    zeroth-order path, for the Gram matrix ``M`` of ``(W, V)`` in span coordinates, or for the two
    coordinates of a collapsed block. It is an **estimate, not a bound**, doubtful once ``sigma^2 h`` is not
    small.

    Assumptions
        Either a linear net without clipping with at most 13 dimensions of the inputs' span and outputs
        together, or one collapsed block (all ``y_i x_i`` equal) of a linear net, or of a ReLU net whose
        neurons stay in their cone, with one output.

    Parameters
    ----------
    problem, weights, schedule
        What is trained, from where, and how.
    times : array_like, shape (m,), optional

    Returns
    -------
    Estimate
        Nowhere valid if no method applies.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1], "linear", "square")
    >>> weights = Weights([[2.0, 0.0], [0.0, 2.0]], [0.0, 0.0])
    >>> found = first_order_loss(problem, weights, Schedule.fft(time=9.0, sigma=0.01), [0.0, 9.0])
    >>> found.value.round(7)
    array([1.e+00, 1.e-04])
    """
    require_moderate(problem, weights, schedule)
    t = record_times(schedule, times)
    loss = LOW_RANK.refuses(problem)
    other = loss or LOW_RANK.refuses_phases(schedule) or _too_large(problem, weights)
    if not other:
        return _estimate(t, *_general(problem, weights, schedule, t))
    block, reason = collapsed(problem, weights)
    if block is not None:
        reason = COLLAPSED.refuses_phases(schedule)
    else:
        # a problem of the general method is refused for its schedule or its size
        reason = f"not a linear net, and {reason}" if loss else other
        reason = next(filter(None, map(sampling, schedule)), reason)
    if reason or block is None:
        nan = np.full(len(t), np.nan)
        return Estimate(t, nan, nan, nan, np.zeros(len(t), dtype=bool), reason)
    scale = float(np.sqrt(block.G[0, 0]))
    u = block.Z[:, 0] / scale
    start = 0.5 * np.array([((block.alpha + u) ** 2).sum(), ((block.alpha - u) ** 2).sum()])
    chain = _Collapsed(problem, len(block.samples), scale, weights.width)
    return _estimate(t, *chain.run(start, schedule, t))


def _too_large(problem: Problem, weights: Weights) -> str:
    k, K = span(problem, weights).X.shape[1], problem.outputs_dim
    if k + K <= LARGEST:
        return ""
    return f"inputs of rank {k} and {K} outputs are {k + K} dimensions, and {LARGEST} are the most"


def _estimate(t: FloatArray, zeroth: FloatArray, correction: FloatArray) -> Estimate:
    return Estimate(t, zeroth + correction, zeroth, correction, np.ones(len(t), dtype=bool), "")


def _by_phase(
    y: FloatArray,
    schedule: Schedule,
    t: FloatArray,
    run: Callable[[FloatArray, Phase, FloatArray], tuple[FloatArray, FloatArray]],
) -> FloatArray:
    """Run the phases in turn and return the state at ``t``, shape (m, unknowns)."""
    out = np.empty((len(t), len(y)))
    for phase, start in zip(schedule, schedule.starts, strict=True):
        here = (t >= start) & (t <= start + phase.time)
        out[here], y = run(y, phase, np.minimum(t[here] - start, phase.time))
    return out


def _solve(rate, between: tuple[float, float], y: FloatArray, **options):
    if not np.isfinite(y).all():
        raise ArithmeticError(
            f"the expansion diverged at time {between[0]:g}: a moment is beyond all numbers"
        )
    solved = solve_ivp(patient(rate), between, y, "DOP853", rtol=RTOL, atol=ATOL, **options)
    if not solved.success:
        raise ArithmeticError(f"the expansion diverged at time {solved.t[-1]:g}: {solved.message}")
    return solved


class _Outputs:
    """Residuals of K outputs ``F (n, K)``, and what their second and third derivatives do."""

    def __init__(self, problem: Problem) -> None:
        self.loss, self.third, self.Y = LOSSES[problem.loss], THIRD[problem.loss], problem.targets

    def curvature(self, F: FloatArray) -> FloatArray:
        """Hessians of the samples' losses, shape (n, K, K)."""
        found = self.loss.curvature(F, self.Y)
        return found if self.loss.classes else found[:, :, None] * np.eye(F.shape[1])

    def bend(self, F: FloatArray, S: FloatArray) -> FloatArray:
        """Third derivatives contracted with covariances ``S (n, K, K)`` of the outputs, shape (n, K)."""
        return self.third(self.loss.residual(F, self.Y), self.Y, S)


def _general(
    problem: Problem, weights: Weights, schedule: Schedule, t: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Zeroth-order loss and correction through the Gram matrix."""
    X, W, _ = span(problem, weights)
    h, k = weights.width, W.shape[1]
    Theta = np.column_stack([W, weights.v])
    q = Theta.shape[1]
    net, eye = _Outputs(problem), np.eye(q)

    def of_outputs(S: FloatArray) -> FloatArray:
        """Covariances of the samples' outputs, shape (n, K, K)."""
        return np.einsum("na,amcl,nc->nml", X, S.reshape(q, q, q, q)[:k, k:, :k, k:], X, optimize=True)

    def run(y: FloatArray, phase: Phase, times: FloatArray) -> tuple[FloatArray, FloatArray]:
        fft = phase.method == "fft"
        noisy = eye if fft else np.diag(np.arange(q) >= k).astype(float)

        def pushed(U: FloatArray) -> FloatArray:
            """``B`` of the drift ``M B + B^T M``, by ``U = X^T R``; also of arrays of them."""
            B = np.zeros((q, q, *U.shape[2:]))
            B[:k, k:] = -U
            if fft:
                B[k:, :k] = -U.swapaxes(0, 1)
            return B

        def rate(_: float, y: FloatArray) -> FloatArray:
            M, mean = y[: q * q].reshape(q, q), y[q * q : 2 * q * q].reshape(q, q)
            S = y[2 * q * q :].reshape(q * q, q * q)
            F = X @ M[:k, k:]
            B = pushed(X.T @ net.loss.residual(F, net.Y))
            # B depends on M through the outputs: T is its derivative
            slope = np.zeros((k, q - k, q, q))
            slope[:, :, :k, k:] = np.einsum("na,nlm,nc->alcm", X, net.curvature(F), X, optimize=True)
            T = pushed(slope)
            drift = M @ B
            J = np.einsum("ia,bj->ijab", eye, B) + np.einsum("ai,bj->ijab", B, eye)
            swing = np.tensordot(M, T, 1)
            J = (J + swing + swing.swapaxes(0, 1)).reshape(q * q, q * q)
            bend = np.tensordot(S.reshape(q, q, q, q), T, ([1, 2, 3], [0, 2, 3]))
            bend = bend + M @ pushed(X.T @ net.bend(F, of_outputs(S))) / 2
            push = (J @ mean.ravel()).reshape(q, q) + bend + bend.T + 2 * phase.sigma**2 * h * noisy
            spread = np.einsum("ik,jl->ijkl", noisy, M) + np.einsum("il,jk->ijkl", noisy, M)
            spread = spread + spread.swapaxes(0, 1)
            change = J @ S
            change = change + change.T + 2 * phase.sigma**2 * spread.reshape(q * q, q * q)
            return np.concatenate([(drift + drift.T).ravel(), push.ravel(), change.ravel()])

        grid, where = np.unique(np.append(times, phase.time), return_inverse=True)
        states = _solve(rate, (0.0, phase.time), y, t_eval=grid).y.T[where]
        return states[:-1], states[-1]

    start = np.concatenate([(Theta.T @ Theta).ravel(), np.zeros(q * q + q**4)])
    loss, correction = np.empty(len(t)), np.empty(len(t))
    for i, y in enumerate(_by_phase(start, schedule, t, run)):
        M, mean = y[: 2 * q * q].reshape(2, q, q)[:, :k, k:]
        F = X @ M
        loss[i] = net.loss.value(F, net.Y).sum()
        correction[i] = (net.loss.residual(F, net.Y) * (X @ mean)).sum()
        correction[i] += 0.5 * (net.curvature(F) * of_outputs(y[2 * q * q :])).sum()
    return loss, correction


class _Collapsed:
    """Moments of ``P``, ``N`` of a collapsed block: path, mean deviation, covariance, all times sigma^2."""

    def __init__(self, problem: Problem, n: int, scale: float, h: int) -> None:
        self.loss = problem.loss
        self.n, self.scale, self.h = n, scale, h

    def slopes(self, x: FloatArray) -> tuple[float, float, float, float]:
        """``m``, ``g`` and its first two derivatives."""
        m = self.scale * (x[0] - x[1]) / 2
        g = float(MARGINS[self.loss].slope(m))
        return m, g, *MARGINS[self.loss].bends(g)

    def surface(self, x: FloatArray, clip: float) -> tuple[float, FloatArray]:
        """``psi``, positive where clipping is active, and its gradient."""
        _, g, g1, _ = self.slopes(x)
        size = max(x[0] + x[1], 1e-12)
        a = np.sign(g) * g1 * self.scale / 2
        b = 0.5 * clip / self.scale * size**-1.5
        return abs(g) - clip / (self.scale * np.sqrt(size)), np.array([a + b, b - a])

    def drift(self, x: FloatArray, clip: float | None) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Drift, its Jacobian and its second derivatives, shape (2, 2, 2); ``clip`` None where inactive."""
        P, N = x
        _, g, g1, g2 = self.slopes(x)
        if clip is None:
            a = self.scale / 2
            phi = self.n * self.scale * g
            d = self.n * self.scale * g1 * a * np.array([1.0, -1.0])
            dd = self.n * self.scale * g2 * a**2 * np.array([[1.0, -1.0], [-1.0, 1.0]])
        else:
            # trial steps of the integrator may leave P + N > 0
            size = max(P + N, 1e-12)
            phi = self.n * clip * np.sign(g) / np.sqrt(size)
            d = np.full(2, -0.5 * phi / size)
            dd = np.full((2, 2), 0.75 * phi / size**2)
        f = np.array([2 * phi * P, -2 * phi * N])
        J = np.array([2 * P * d, -2 * N * d]) + np.diag([2 * phi, -2 * phi])
        unit = np.eye(2)
        H = np.array([2 * P * dd, -2 * N * dd])
        H[0] += 2 * (np.outer(unit[0], d) + np.outer(d, unit[0]))
        H[1] -= 2 * (np.outer(unit[1], d) + np.outer(d, unit[1]))
        return f, J, H

    def run(self, start: FloatArray, schedule: Schedule, t: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return zeroth-order loss and correction at ``t``."""
        states = _by_phase(np.concatenate([start, np.zeros(6)]), schedule, t, self.phase)
        loss, correction = np.empty(len(t)), np.empty(len(t))
        for i, y in enumerate(states):
            m, g, g1, _ = self.slopes(y[:2])
            half = self.scale / 2
            spread = half**2 * (y[4] - y[5] - y[6] + y[7])
            loss[i] = self.n * LOSSES[self.loss].value(m, 1.0)
            # the loss has slope -g and curvature -g' in the margin
            correction[i] = self.n * (-g * half * (y[2] - y[3]) - 0.5 * g1 * spread)
        return loss, correction

    def phase(self, y: FloatArray, phase: Phase, times: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Run one phase, with jumps wherever clipping begins or ends."""
        clip = phase.clip
        active = clip is not None and self.surface(y[:2], clip)[0] > 0
        out = np.empty((len(times), 8))
        now = 0.0
        while True:

            def rate(_: float, y: FloatArray, active: bool = active) -> FloatArray:
                f, J, H = self.drift(y[:2], clip if active else None)
                S = y[4:].reshape(2, 2)
                mean = J @ y[2:4] + 0.5 * np.einsum("iab,ab->i", H, S) + 2 * phase.sigma**2 * self.h
                change = J @ S + S @ J.T + 8 * phase.sigma**2 * np.diag(y[:2])
                return np.concatenate([f, mean, change.ravel()])

            def leaves(_: float, y: FloatArray) -> float:
                return self.surface(y[:2], clip)[0] if clip is not None else 1.0

            leaves.terminal = True  # pyright: ignore[reportFunctionMemberAccess]
            # leave the surface first: after a jump psi is 0 up to roundoff
            leaves.direction = -1.0 if active else 1.0  # pyright: ignore[reportFunctionMemberAccess]
            solved = _solve(rate, (now, phase.time), y, events=leaves, dense_output=True)
            end = float(solved.t_events[0][0]) if solved.status == 1 else phase.time
            reached = (times >= now) & (times <= end)
            if reached.any():
                out[reached] = solved.sol(times[reached]).T
            if solved.status != 1 or clip is None:
                return out, solved.y[:, -1]
            y = np.array(solved.y_events[0][0])
            gradient = self.surface(y[:2], clip)[1]
            speed = gradient @ self.drift(y[:2], clip)[0]
            S = y[4:].reshape(2, 2)
            sign = np.sign(self.slopes(y[:2])[1])
            with np.errstate(divide="ignore", invalid="ignore"):
                # where the path only grazes the surface the expansion has no next term
                size = self.n * self.scale * sign * (gradient @ S @ gradient) / np.abs(speed)
            y[2:4] -= size * np.array([y[0], -y[1]])
            active, now = not active, end
