"""Rates of the zeroth-order square loss: probing (section 4a), linear networks in full fine-tuning (4c)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp

from bounds.band import Band, nowhere
from bounds.distance.flow import RANK_TOLERANCE, Span, span
from bounds.support.covers import ANY, Covers, declares
from bounds.support.numeric import patient
from bounds.support.phases import probing_first, until
from bounds.support.ranges import require_moderate
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.steps import record_times
from langevin.model.weights import Weights
from langevin.support.validate import FloatArray

RATES = "re-derived, clipped form new (4a); replaces Theorem 4.2 of [1]"
CONSERVED = "new (4c); replaces Theorem 4.3 and Section 5.2 of [1]"
CONSERVED_OUTPUTS = "new (4c')"
COVERS = Covers(("square",), ANY, lp=("none", "flat"), fft=())
COVERS_CONSERVED = Covers(("square",), ("linear",), lp=("none",), fft=("none",), late_lp=(), outputs=True)
PAD = 1e-9
"""Relative padding of integrated bounds, above the integration's error."""


class Probe(NamedTuple):
    """Frozen features in their singular basis.

    Attributes
    ----------
    eigenvalues : ndarray, shape (rank,)
        Positive eigenvalues of ``A A^T``.
    coordinates : ndarray, shape (rank,), or (rank, K)
        ``u_k . r_0``, of each output.
    floor : float
        ``L_perp``, loss that no head removes.
    right : ndarray, shape (rank, h)
        Eigenvectors of ``A^T A``.
    """

    eigenvalues: FloatArray
    coordinates: FloatArray
    floor: float
    right: FloatArray


def probe(problem: Problem, weights: Weights) -> Probe:
    """Decompose the frozen features of linear probing."""
    A = problem.features(weights.W)
    if problem.activation == "linear":
        # A = X W^T: the rank is that of the inputs at most
        inside = span(problem, weights)
        U, s, Vt = np.linalg.svd(inside.singular[:, None] * inside.W.T, full_matrices=False)
        U = inside.left @ U
    else:
        U, s, Vt = np.linalg.svd(A, full_matrices=False)
    rank = int((s > RANK_TOLERANCE * max(A.shape) * max(s.max(initial=0.0), 1e-300)).sum())
    r = A @ weights.v - problem.y
    coordinates = U[:, :rank].T @ r
    rest = r - U[:, :rank] @ coordinates
    return Probe(s[:rank] ** 2, coordinates, 0.5 * float((rest**2).sum()), Vt[:rank])


@declares(COVERS)
def rates(problem: Problem, weights: Weights, schedule: Schedule, times: ArrayLike | None = None) -> Band:
    r"""Exponential and clipped-linear bounds of the square loss in linear probing, zeroth order.

    Re-derived; replaces Theorem 4.2 of [1]_, with clipping new (4a).

    Statement
        Unclipped: ``L - L_perp`` lies between ``(L_0 - L_perp) exp(-2 lambda t)`` with ``lambda_max`` and
        ``lambda_min+`` of ``A A^T``. Clipped: the Huberised loss ``H`` obeys ``H' <= -lambda min(2 H,
        kappa^2)``, ``kappa = C / max ||A_i||``, and ``H' >= -2 lambda_max H``; then ``H <= L <= H + (H -
        kappa^2/2)_+^2 / (2 kappa^2)``.

    Assumptions
        With clipping, targets in the range of the features.

    Parameters
    ----------
    problem, weights, schedule
        What is trained, from where, and how; the noise plays no part.
    times : array_like, shape (m,), optional

    Returns
    -------
    Band
        Not valid from the first phase that is not covered, or where the assumption fails.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 2.0]], [1, -1], "linear", "square")
    >>> weights = Weights([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    >>> band = rates(problem, weights, Schedule.lp(time=1.0), [0.0, 1.0])
    >>> band.lower.round(4), band.upper.round(4)
    (array([1.e+00, 3.e-04]), array([1.    , 0.1353]))
    """
    require_moderate(problem, weights, schedule)
    t = record_times(schedule, times)
    reason = COVERS.refuses(problem)
    if reason:
        return nowhere(t, reason, RATES)
    good, reason = COVERS.phases(schedule), COVERS.refuses_phases(schedule)
    found = probe(problem, weights)
    attainable = found.floor <= 1e-18 * max(1.0, float(problem.y @ problem.y))
    if not attainable and any(phase.clip is not None for phase in schedule):
        good = [g and phase.clip is None for g, phase in zip(good, schedule, strict=True)]
        # the first phase that is not good clips, unless it is not covered at all
        reason = COVERS.refuses_phases(Schedule(schedule.phases[: good.index(False) + 1]))
        reason = reason or "a phase clips and the targets are not in the range of the features"
    valid = until(schedule, t, good)
    if len(found.eigenvalues) == 0:
        loss = float(problem.losses(problem.outputs(weights)).sum())
        return Band(t, loss, loss, valid, reason, RATES)
    least, most = float(found.eigenvalues.min()), float(found.eigenvalues.max())
    A = problem.features(weights.W)
    sizes = np.linalg.norm(A, axis=1)
    residual = np.abs(A @ weights.v - problem.y)
    lower, upper = np.zeros(len(t)), np.zeros(len(t))
    low = high = 0.5 * float(found.coordinates @ found.coordinates)
    for k, (phase, start) in enumerate(zip(schedule, schedule.starts, strict=True)):
        here = (t >= start) & (t <= start + phase.time)
        local = np.append(t[here] - start, phase.time)
        if phase.clip is None:
            below, above = low * np.exp(-2 * most * local), high * np.exp(-2 * least * local)
        else:
            kappa = phase.clip / float(sizes.max())
            # the Huberised loss is known at the start, and between 0 and L later
            H_low = H_high = _huber(residual, phase.clip, sizes)
            if k > 0:
                H_low, H_high = min(low, _least_huber(low, kappa)), high
            below = H_low * np.exp(-2 * most * local)
            H = _relax(H_high, least, kappa, local)
            above = H + np.maximum(H - kappa**2 / 2, 0.0) ** 2 / (2 * kappa**2)
        lower[here], upper[here] = below[:-1], above[:-1]
        low, high = float(below[-1]), float(above[-1])
    return Band(t, found.floor + lower, found.floor + upper, valid, reason, RATES)


def _huber(residual: FloatArray, clip: float, sizes: FloatArray) -> float:
    """Return the Huber loss whose gradient in the head is the clipped gradient."""
    with np.errstate(divide="ignore"):
        knee = clip / sizes
    inside = residual <= knee
    knee = np.where(inside, 0.0, knee)
    return float(np.where(inside, residual**2 / 2, knee * residual - knee**2 / 2).sum())


def _least_huber(loss: float, kappa: float) -> float:
    """Return the smallest Huber loss for a loss of at least ``loss``: all of it on one sample."""
    r = np.sqrt(2 * loss)
    return loss if r <= kappa else float(kappa * r - kappa**2 / 2)


def _relax(H: float, rate: float, kappa: float, t: FloatArray) -> FloatArray:
    """Solve ``H' = -rate min(2 H, kappa^2)``."""
    knee = kappa**2 / 2
    if knee >= H:
        return H * np.exp(-2 * rate * t)
    turn = (H - knee) / (rate * kappa**2)
    return np.where(t < turn, H - rate * kappa**2 * t, knee * np.exp(-2 * rate * np.maximum(t - turn, 0.0)))


def imbalance(W: FloatArray, v: FloatArray) -> FloatArray:
    """Eigenvalues of ``-D = W W^T - V V^T``, falling, all ``h`` of them; ``O(h (k + K)^2)``.

    Parameters
    ----------
    W : ndarray, shape (h, k)
        First layer in span coordinates.
    v : ndarray, shape (h,) or (h, K)
    """
    R: FloatArray = np.asarray(np.linalg.qr(np.column_stack([W, v]), mode="r"), dtype=np.float64)
    signs = np.ones(R.shape[1])
    signs[W.shape[1] :] = -1.0
    found = np.asarray(np.linalg.eigvalsh((R * signs) @ R.T), dtype=np.float64)
    return np.sort(np.concatenate([found, np.zeros(len(v) - len(found))]))[::-1]


@declares(COVERS_CONSERVED)
def conserved_rates(
    problem: Problem, weights: Weights, schedule: Schedule, times: ArrayLike | None = None
) -> Band:
    r"""Bounds of the square loss of a linear network from the conserved imbalance of its layers.

    New (4c); replaces Theorem 4.3 and Section 5.2 of [1]_, without their conditions on the data.
    Zeroth order.

    Statement
        In span coordinates ``X = U Sigma V^T``, ``D = v v^T - W W^T`` is conserved. With ``u`` the norm of
        the residual in the range of ``X``: ``u' <= -sigma_min^2 (kappa_W + kappa_v(u)) u`` and ``u' >=
        -sigma_max^2 (v_max + w_max) u``; ``kappa_W = max(lambda_k(-D), 0)``, ``kappa_v(u) = (-d_- +
        sqrt(d_-^2 + 4 max(||beta*|| - u/sigma_min, 0)^2)) / 2``, ``v_max = (d_+ + sqrt(d_+^2 + 4
        (||beta*|| + u/sigma_min)^2)) / 2``, ``w_max = v_max + d_-``, ``beta*`` the least-squares solution and
        ``d_-``, ``d_+`` the largest eigenvalues of ``-D`` and ``D`` (at least 0). The lower bound lets
        ``v_max`` shrink with the upper bound on ``u``.

    K outputs
        New (4c'). ``D = V V^T - W W^T``, ``u`` the Frobenius norm, ``B* (k, K)`` the least-squares solution
        with singular values ``s_j`` (0 for ``j > min(k, K)``): ``||beta*||`` is ``s_K`` in ``kappa_V``, which
        is also at least ``lambda_K(D)``, and ``s_1`` in ``v_max``; and ``kappa_W`` is at least ``(-d_+ +
        sqrt(d_+^2 + 4 max(s_k - u/sigma_min, 0)^2)) / 2`` if ``k <= h``. With more outputs than dimensions
        ``s_K = 0``.

    Any data and targets; leading linear-probing phases are followed exactly.

    Parameters
    ----------
    problem, weights, schedule
        What is trained, from where, and how; the noise plays no part.
    times : array_like, shape (m,), optional

    Returns
    -------
    Band
        Not valid from the first phase that is not covered.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 2.0]], [1, -1], "linear", "square")
    >>> weights = Weights([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0.0, 0.0, 0.0])
    >>> band = conserved_rates(problem, weights, Schedule.fft(time=1.0), [0.0, 1.0])
    >>> bool(band.lower[1] < band.upper[1] < 0.14)
    True
    """
    require_moderate(problem, weights, schedule)
    t = record_times(schedule, times)
    source = CONSERVED if problem.outputs_dim == 1 else CONSERVED_OUTPUTS
    good, uncovered = COVERS_CONSERVED.phases(schedule), COVERS_CONSERVED.refuses_phases(schedule)
    reason = COVERS_CONSERVED.refuses(problem) or ("" if good[0] else uncovered)
    if reason:
        return nowhere(t, reason, source)
    valid = until(schedule, t, good)
    usable = good.index(False) if False in good else len(good)
    lead = sum(probing_first(schedule))
    V = weights.v.reshape(len(weights.v), -1)
    starts = schedule.starts
    probed = float(starts[lead]) if lead < len(good) else schedule.duration
    found = probe(problem, weights)
    coordinates = found.coordinates.reshape(-1, V.shape[1])
    decay = np.exp(-2 * np.outer(np.minimum(t, probed), found.eigenvalues))
    exact = found.floor + 0.5 * decay @ (coordinates**2).sum(1)
    lower, upper = exact.copy(), exact.copy()
    late = valid & (t > probed)
    if late.any() and lead < usable:
        # head at the end of linear probing
        shift = (np.expm1(-found.eigenvalues * probed) / np.sqrt(found.eigenvalues))[:, None] * coordinates
        low, high, floor = _full(problem, span(problem, weights), V + found.right.T @ shift, t[late] - probed)
        lower[late], upper[late] = floor + low, floor + high
    return Band(t, lower, upper, valid, uncovered, source)


class _Floors(NamedTuple):
    """What 4c and 4c' read off the start.

    Attributes
    ----------
    minus, plus : float
        ``d_-`` and ``d_+``.
    first, head : float
        Lower bounds of ``lambda_min(W^T W)`` and ``lambda_min(V^T V)`` by ``D`` alone.
    first_target, head_target, largest : float
        ``s_k``, ``s_K`` and ``s_1`` of ``B*``.
    """

    minus: float
    plus: float
    first: float
    head: float
    first_target: float
    head_target: float
    largest: float


def _floors(W: FloatArray, V: FloatArray, target: FloatArray) -> _Floors:
    """Constants of 4c' for the least-squares solution ``target`` (k, K); of 4c if ``K = 1``."""
    (h, k), K = W.shape, V.shape[1]
    values = imbalance(W, V)
    singular = np.zeros(max(k, K))
    singular[: min(k, K)] = np.linalg.svd(target, compute_uv=False)
    minus, plus = max(float(values[0]), 0.0), max(-float(values[-1]), 0.0)
    first = max(float(values[k - 1]), 0.0) if h >= k else 0.0
    head = first_target = 0.0
    # 4c, of a scalar head, has neither
    if K > 1:
        head = max(-float(values[h - K]), 0.0) if h >= K else 0.0
        # W^T W is singular if k > h
        first_target = float(singular[k - 1]) if h >= k else 0.0
    return _Floors(minus, plus, first, head, first_target, float(singular[K - 1]), float(singular[0]))


def _full(
    problem: Problem, inside: Span, V: FloatArray, t: FloatArray
) -> tuple[FloatArray, FloatArray, float]:
    """Bound ``u^2 / 2`` at ``t`` from both sides, and return ``L_perp``."""
    X, W, U, s = inside.X, inside.W, inside.left, inside.singular
    r = X @ (W.T @ V) - problem.targets
    r_in = U.T @ r
    floor = 0.5 * max(float((r**2).sum() - (r_in**2).sum()), 0.0)
    if X.shape[1] == 0:
        # inputs of zeros: nothing can be learnt
        return 0 * t, 0 * t, floor
    start = float(np.linalg.norm(r_in))
    given = _floors(W, V, U.T @ problem.targets / s[:, None])
    least, most = float(s[-1]), float(s[0])

    def rate(_: float, logs: FloatArray) -> FloatArray:
        # ||B - B*|| is at most this; u does not increase, but a trial step may say so
        apart = start * np.exp(min(logs[0], 0.0)) / least
        kappa_W = max(given.first, _smallest(given.plus, given.first_target - apart))
        kappa_V = max(given.head, _smallest(given.minus, given.head_target - apart))
        v_most = 0.5 * (given.plus + np.hypot(given.plus, 2 * (given.largest + apart)))
        return np.array([-(least**2) * (kappa_W + kappa_V), -(most**2) * (2 * v_most + given.minus)])

    solved = solve_ivp(
        patient(rate), (0.0, float(t.max())), np.zeros(2), "DOP853", rtol=1e-10, atol=1e-12, dense_output=True
    )
    logs = solved.sol(t) if solved.success else np.stack([0 * t, -np.inf + 0 * t])
    high, low = logs[0] + PAD * (1 + np.abs(logs[0])), logs[1] - PAD * (1 + np.abs(logs[1]))
    return 0.5 * (start * np.exp(low)) ** 2, 0.5 * (start * np.exp(high)) ** 2, floor


def _smallest(excess: float, size: float) -> float:
    """Return the ``x >= 0`` with ``x^2 + excess x = size^2``, 0 if ``size`` is negative."""
    return 0.5 * (-excess + float(np.hypot(excess, 2 * max(size, 0.0))))
