"""Expected loss of noisy full fine-tuning of linear nets, without the approximation (section 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bounds.band import Band, nowhere
from bounds.distance.flow import span
from bounds.loss.rates import imbalance
from bounds.support.covers import Covers, declares
from bounds.support.ranges import SMALLEST, require_moderate
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.steps import record_times
from langevin.model.weights import Weights
from langevin.support import validate
from langevin.support.validate import FloatArray

LOCALISED = "re-derived, localised (5b); replaces Section 5.2 of [1]"
LOCALISED_OUTPUTS = "new (5b')"
FFT = "new (5c, with the floor of 5c'(ii))"
FFT_OUTPUTS = "new (5c')"
NOISY = Covers(("square",), ("linear",), lp=(), fft=("none", "flat"), outputs=True)
KNOTS = 40
KAPPAS = np.concatenate([np.geomspace(0.02, 0.5, 8), np.linspace(0.55, 0.97, 9)])
LEVELS = np.geomspace(0.5, 60.0, 18)
POWERS = np.geomspace(0.02, 2e3, 60)


def _single(problem: Problem, schedule: Schedule) -> str:
    """Return why the bounds of noisy full fine-tuning of a linear network do not apply, or ''."""
    reason = NOISY.refuses(problem) or NOISY.refuses_phases(schedule)
    if reason:
        return reason
    if len({(p.sigma, p.clip) for p in schedule}) > 1:
        return "the schedule does not keep one sigma and one clip throughout"
    if not problem.X.any():
        return "all inputs are 0: nothing is learnt"
    return ""


@declares(NOISY)
def localised_loss(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    times: ArrayLike | None = None,
    *,
    kappa: float | None = None,
    trace: float | None = None,
) -> Band:
    r"""Bound ``E[(L_t - L_perp) 1{tau > t}]`` of noisy full fine-tuning of a linear network.

    Re-derived, localised (5b); replaces Section 5.2 of [1]_. With ``K = X (W^T W + ||v||^2 I)
    X^T`` and ``tau`` the first time that ``lambda_min(W^T W) + ||v||^2 < kappa`` (in span coordinates),
    ``tr K > trace`` or, with clipping, the gradient of some sample exceeds ``C``: at most ``exp(-2 lambda
    t) (L_0 - L_perp) + sigma^2 trace (1 - exp(-2 lambda t)) / (2 lambda)``, ``lambda = sigma_min^2(X)
    kappa``. It does *not* bound ``E L`` alone; `fft_expected_loss` does.

    K outputs, new (5b'): ``lambda_min(V^T V)`` replaces ``||v||^2`` in ``tau``, and the trace of the kernel
    is ``K ||X W^T||^2 + ||X||^2 ||V||^2``.

    Assumptions
        One sigma and one clip, or none, throughout.

    Parameters
    ----------
    problem, weights, schedule
        What is trained, from where, and how.
    times : array_like, shape (m,), optional
    kappa, trace : float, optional
        The levels that define ``tau``; half of and twice their initial values by default.

    Returns
    -------
    Band
        ``lower`` is 0. Nowhere valid if an assumption fails or the start is already beyond a level.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1], "linear", "square")
    >>> weights = Weights([[2.0, 0.0], [0.0, 2.0]], [0.0, 0.0])
    >>> localised_loss(problem, weights, Schedule.fft(time=1.0, sigma=0.1), [0.0, 1.0]).upper.round(4)
    array([1.    , 0.0576])
    """
    require_moderate(problem, weights, schedule)
    t = record_times(schedule, times)
    source = LOCALISED if problem.outputs_dim == 1 else LOCALISED_OUTPUTS
    reason = _single(problem, schedule)
    if reason:
        return nowhere(t, reason, source)
    inside = span(problem, weights)
    X, W, s = inside.X, inside.W, inside.singular
    V = weights.v.reshape(len(weights.v), -1)
    least = float(np.linalg.eigvalsh(W.T @ W)[0]) + max(float(np.linalg.eigvalsh(V.T @ V)[0]), 0.0)
    total = problem.outputs_dim * float(((W * s) ** 2).sum()) + float((s**2).sum() * (V**2).sum())
    kappa = least / 2 if kappa is None else validate.positive("kappa", kappa)
    trace = 2 * total if trace is None else validate.positive("trace", trace)
    phase = schedule.phases[0]
    if least < kappa or total > trace or kappa <= 0:
        return nowhere(t, f"the start is beyond the levels kappa={kappa:g}, trace={trace:g}", source)
    if phase.clip is not None and (problem.gradient_norms(weights, "fft") > phase.clip).any():
        return nowhere(t, "a sample is clipped from the start", source)
    r = X @ (W.T @ V) - problem.targets
    start = 0.5 * float(((inside.left.T @ r) ** 2).sum())
    rate = float(s[-1]) ** 2 * kappa
    lost = -np.expm1(-2 * rate * t)
    upper = np.exp(-2 * rate * t) * start + phase.sigma**2 * trace * lost / (2 * rate)
    return Band(t, 0.0, upper, True, "", source)


def _fourth_moment(start: float, dimension: float, variance: FloatArray) -> FloatArray:
    """``E Z^4`` of ``Z = variance chi'^2_dimension(start / variance)``."""
    shift = start / variance
    k1, k2 = dimension + shift, 2 * (dimension + 2 * shift)
    k3, k4 = 8 * (dimension + 3 * shift), 48 * (dimension + 4 * shift)
    return variance**4 * (k4 + 4 * k3 * k1 + 3 * k2**2 + 6 * k2 * k1**2 + k1**4)


def _second_moment(start: float, dimension: float, variance: FloatArray) -> FloatArray:
    shift = start / variance
    k1 = dimension + shift
    return variance**2 * (2 * (dimension + 2 * shift) + k1**2)


@declares(NOISY)
def fft_expected_loss(
    problem: Problem, weights: Weights, schedule: Schedule, times: ArrayLike | None = None
) -> Band:
    r"""Unconditional bound of ``E L(theta_t)`` in noisy full fine-tuning of a linear network.

    New (5c). For levels ``kappa`` below the smallest of the top ``k`` eigenvalues of ``W_0 W_0^T - v_0
    v_0^T`` and ``u > 0``, on an event of probability at least ``1 - P`` the tangent kernel keeps a floor
    ``lambda = sigma_min^2(X) kappa``, which gives ``E L_t <= L_perp + exp(-2 lambda t) (L_0 - L_perp) +
    sigma^2 U (1 - exp(-2 lambda t)) / (2 lambda)`` plus ``sqrt(P)`` times a moment bound. Minimised over
    ``kappa`` and ``u`` at a grid of times; never above the moment bound that needs neither. The floor is
    that of 5c'(ii), for one output too: it needs ``h >= k`` and holds until ``t``, as ``P`` counts the
    paths on which ``||v||^2`` has left its bound by then.

    K outputs, new (5c'): ``V`` for ``v``, Frobenius norms, and ``K`` times the noise in ``U`` and
    ``||V||^2``.

    Assumptions
        One sigma > 0 and one clip, or none; where the clip is too low to stay inactive on that event, the
        moment bound remains.

    Parameters
    ----------
    problem, weights, schedule
        What is trained, from where, and how.
    times : array_like, shape (m,), optional

    Returns
    -------
    Band
        ``lower`` is ``L_perp``, the loss that no weights remove. Nowhere valid if an assumption fails.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1], "linear", "square")
    >>> weights = Weights([[2.0, 0.0], [0.0, 2.0]], [0.0, 0.0])
    >>> band = fft_expected_loss(problem, weights, Schedule.fft(time=1.0, sigma=0.01), [0.0, 1.0])
    >>> float(band.upper[0]), bool(band.upper[1] < 0.1)
    (1.0, True)
    """
    require_moderate(problem, weights, schedule)
    t = record_times(schedule, times)
    source = FFT if problem.outputs_dim == 1 else FFT_OUTPUTS
    reason = _single(problem, schedule)
    if not reason and schedule.phases[0].sigma < SMALLEST:
        reason = "sigma is 0, or next to it: conserved_rates covers that"
    if reason:
        return nowhere(t, reason, source)
    setting = _Setting(problem, weights, schedule)
    upper = np.empty(len(t))
    upper[t == 0] = setting.floor + setting.start
    later = t > 0
    upper[later] = setting.bound(t[later])
    valid = np.isfinite(upper)
    return Band(t, setting.floor, upper, valid, "the bound overflows", source)


def floor_lost(
    top: FloatArray,
    kappa: FloatArray,
    reach: FloatArray,
    t: FloatArray,
    *,
    sigma: float,
    width: int,
    outputs: int,
) -> FloatArray:
    r"""Bound the chance that ``lambda_min(W^T W)`` falls to ``kappa`` by ``t``, before ``||V||^2 > reach``.

    New (5c'(ii)), for linear nets with ``h >= k``, any loss and clipping: with the ``k`` largest eigenvalues
    ``e_i`` of ``W_0 W_0^T - V_0 V_0^T``, the last above ``kappa``, at most ``inf_{q > 0} sum_i (kappa /
    e_i)^q exp{(sigma^2 q t / kappa) [(1 + 2 reach / kappa) (q + 1) (2 k + 2) - 2 (h - K)]_+}``.

    Where ``h - K >= (1 + 2 reach / kappa) (q + 1) (k + 1)`` it does not grow with ``t``. That says nothing
    beyond the exit of ``||V||^2`` from ``reach``, which noise alone forces: the floor fails or the exit
    comes after a time of mean at most ``reach / (2 sigma^2 K (h - k))``, the sooner the wider the net.

    Parameters
    ----------
    top : ndarray, shape (k,)
        ``e_i``.
    kappa, reach, t : ndarray
        Of one shape.
    sigma : float
    width, outputs : int
        ``h`` and ``K``.

    Returns
    -------
    ndarray
        May exceed 1.
    """
    k = len(top)
    eta = 2 * reach / kappa
    # sum_i (kappa / e_i)^q on the few distinct kappas
    levels, where = np.unique(kappa, return_inverse=True)
    logs = np.log(top[None, :] / levels[:, None])
    best = np.full(np.shape(kappa), np.inf)
    for q in POWERS:
        sums = np.log(np.maximum(np.exp(-q * logs).sum(1), 1e-300))[where.reshape(np.shape(kappa))]
        growth = np.maximum((1 + eta) * (q + 1) * (2 * k + 2) - 2 * (width - outputs), 0.0)
        best = np.minimum(best, sums + sigma**2 * q * t / kappa * growth)
    return np.exp(np.minimum(best, 700.0))


class _Setting:
    """Constants of 5c and 5c'."""

    def __init__(self, problem: Problem, weights: Weights, schedule: Schedule) -> None:
        phase = schedule.phases[0]
        self.sigma = phase.sigma
        self.clip = phase.clip
        spanned = span(problem, weights)
        X, W, s, U = spanned.X, spanned.W, spanned.singular, spanned.left
        V, Y = weights.v.reshape(len(weights.v), -1), problem.targets
        self.h, self.k, self.K = weights.width, W.shape[1], V.shape[1]
        self.W2, self.v2 = float((W**2).sum()), float((V**2).sum())
        self.y2 = float((Y**2).sum())
        inside = U.T @ Y
        self.y_in = float(np.linalg.norm(inside))
        r_out = np.linalg.norm(Y - U @ inside, axis=1)
        self.floor = 0.5 * float(r_out @ r_out)
        self.start = 0.5 * float(((U.T @ (X @ (W.T @ V) - Y)) ** 2).sum())
        self.least, self.most, self.frobenius = float(s[-1]) ** 2, float(s[0]) ** 2, float((s**2).sum())
        self.norms, self.r_out = _outer(np.sqrt(problem.squared_norms), r_out)
        # fewer neurons than dimensions leave no floor
        values = imbalance(W, V)
        self.top = values[: self.k] if len(values) >= self.k else np.zeros(1)

    def moments(self, t: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Moment bound of ``E L`` alone, and the factor of ``sqrt(P)``."""
        variance = 2 * self.sigma**2 * t
        extra = self.y2 / (4 * self.sigma**2)
        W4 = _fourth_moment(self.W2, self.h * self.k + extra, variance)
        v4 = _fourth_moment(self.v2, self.h * self.K + extra, variance)
        factor = self.most * (W4 * v4) ** 0.25 + self.y2
        W2 = _second_moment(self.W2, self.h * self.k + extra, variance)
        v2 = _second_moment(self.v2, self.h * self.K + extra, variance)
        # ||W|| ||v|| <= ||theta||^2 / 2
        both = _second_moment(self.W2 + self.v2, self.h * (self.k + self.K) + 2 * extra, variance) / 4
        return self.most * np.minimum(np.sqrt(W2 * v2), both) + self.y2, factor

    def bound(self, t: FloatArray) -> FloatArray:
        """Bound at times ``t > 0``."""
        with np.errstate(over="ignore", invalid="ignore"):
            crude, factor = self.moments(t)
            if self.top[-1] <= 0:
                return crude
            knots = t if len(t) <= KNOTS else t[np.unique(np.linspace(0, len(t) - 1, KNOTS).astype(int))]
            kappa, u = np.meshgrid(KAPPAS * self.top[-1], LEVELS, indexing="ij")
            kappa, u = kappa.ravel(), u.ravel()
            values = self.good(knots[:, None], kappa, u, self.moments(knots)[1][:, None])
            best = values.argmin(1)
            # any level gives a bound: at each time the best of the two neighbouring knots
            right = np.minimum(np.searchsorted(knots, t), len(knots) - 1)
            both = np.stack([best[np.maximum(right - 1, 0)], best[right]], 1)
            found = self.good(t[:, None], kappa[both], u[both], factor[:, None]).min(1)
        return np.minimum(np.where(np.isnan(found), np.inf, found), crude)

    def good(self, t: FloatArray, kappa: FloatArray, u: FloatArray, factor: FloatArray) -> FloatArray:
        """Bound of ``E L_t`` at levels ``kappa``, ``u``; all broadcast."""
        sigma, h, k, K = self.sigma, self.h, self.k, self.K
        rate = self.least * kappa
        t, kappa, u, rate = np.broadcast_arrays(t, kappa, u, rate)
        cap = 0.5 * self.y_in**2 * t
        r0 = np.sqrt(2 * self.start)

        def closed(gain: FloatArray, start: float, count: int) -> FloatArray:
            # R = start + gain + 2 sigma^2 count t + 4 sigma sqrt(R t u)
            half = 2 * sigma * np.sqrt(t * u)
            return (half + np.sqrt(half**2 + start + gain + 2 * sigma**2 * count * t)) ** 2

        # from the cap down: every iterate satisfies R >= right-hand side of R
        gain = cap
        for _ in range(12):
            R_v, R_W = closed(gain, self.v2, h * K), closed(gain, self.W2, h * k)
            U = K * self.most * R_W + self.frobenius * R_v
            U_op = self.most * (R_W + R_v)
            integral = r0 + 1.1 * sigma * np.sqrt(rate * U) * t + 2 * sigma * np.sqrt(U_op * t * u)
            gain = np.minimum(gain, 2 * self.y_in * integral / rate)
        R_v, R_W = closed(gain, self.v2, h * K), closed(gain, self.W2, h * k)
        U, U_op = K * self.most * R_W + self.frobenius * R_v, self.most * (R_W + R_v)
        lost_floor = floor_lost(self.top, kappa, R_v, t, sigma=sigma, width=h, outputs=K)
        P = lost_floor + (3.0 if self.clip is None else 4.0) * np.exp(-u)
        if self.clip is not None:
            reach = r0 + 2 * sigma * np.sqrt(U * t) + 2 * sigma * np.sqrt(U_op * t * u)
            largest = np.max(self.norms * (reach[..., None] + self.r_out), axis=-1) * np.sqrt(R_W + R_v)
            P = np.where(largest <= self.clip, P, np.inf)
        lost = -np.expm1(-2 * rate * t)
        mean = (1 - lost) * self.start + sigma**2 * U * lost / (2 * rate)
        return self.floor + mean + np.sqrt(np.minimum(P, 1e300)) * factor


def _outer(norms: FloatArray, rest: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Keep the samples that may attain ``max_i norms_i (x + rest_i)`` at some ``x >= 0``; most are below."""
    order = np.lexsort((-rest, -norms))
    height = (norms * rest)[order]
    kept = order[height >= np.maximum.accumulate(height)]
    return norms[kept], rest[kept]
