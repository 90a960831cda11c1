"""Distance of the diffusion, or its chain, from the zeroth-order approximation (sections 1, 1' and 8'd)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from bounds.band import Band, nowhere
from bounds.distance.parts import Part, parts
from bounds.distance.path import path
from bounds.support.clock import Clock, clock
from bounds.support.covers import ALL, ANY, CLIPPED, PROBING, Covers, declares
from bounds.support.ranges import require_moderate
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from langevin.support import validate
from langevin.support.validate import FloatArray

Kind = Literal["paper", "monotone", "lambert", "ode"]

SOURCES = {
    "paper": "Theorem 2.2 of [1]",
    "monotone": "new (1a): Theorem 2.2 of [1] with the LP drift's monotonicity",
    "lambert": "new (1b), data-free",
    "ode": "new (1b)",
}
CONVEX = ("logistic", "square", "huber", "softmax", "ovr")
_PROVED = ("flat", *PROBING)
_MONOTONE = Covers(
    CONVEX,
    ANY,
    lp=(*ALL, *PROBING),
    fft=CLIPPED,
    late_lp=(*CLIPPED, *PROBING),
    outputs=True,
    chain=True,
)
COVERS = {
    "paper": Covers(ANY, ANY, lp=(*CLIPPED, *PROBING), fft=CLIPPED, outputs=True, chain=True),
    "monotone": _MONOTONE,
    # of the drift, both use its bound alone: |b| <= n C
    "lambert": _MONOTONE,
    "ode": Covers(
        CONVEX,
        ("relu", "linear"),
        lp=(*ALL, *PROBING),
        fft=("flat",),
        late_lp=_PROVED,
        outputs=True,
        chain=True,
    ),
}
KINDS = ("paper", "monotone", "lambert", "ode")


@declares(COVERS)
def approximation_error(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    times: ArrayLike | None = None,
    kind: Kind = "paper",
    dt: float | None = None,
) -> Band:
    r"""Bound ``E ||theta_t - theta~_t||^2`` between diffusion and zeroth-order approximation.

    Statement
        - ``"paper"``, Theorem 2.2 of [1]_: ``(sigma sqrt(2 p t) + 2 n C t)^2``; over phases
          ``(sqrt(2 sum_k sigma_k^2 p_k t_k) + 2 n sum_k C_k t_k)^2``.
        - ``"monotone"``, new (1a): as above, but a linear-probing phase before any full fine-tuning
          adds nothing to the second term, since its clipped drift is minus the gradient of a convex
          function. With LP alone ``2 h sigma^2 t``, clipped or not.
        - ``"lambert"``, new (1b) without data: ``e' <= 2 sigma^2 p + 4 n C sqrt(e)``, solved by
          Lambert's W; never above ``"monotone"``.
        - ``"ode"``, new (1b): in coordinates of the data's span
          ``e' <= 2 sigma^2 p_s + 2 min{(n C + beta) sqrt(e), k_0 + n C ||theta~|| + beta sqrt(e)}``,
          ``p_s = h (k + 1)``, ``beta`` the norm of the drift at ``theta~_t``, ``k_0`` twice the sum of
          the largest ``-f r_i``: ``2 n Omega`` (logistic) or ``||y||^2 / 2`` (square), plus ``2 sigma^2 h
          (d - k) t`` for the rest. Needs the zeroth-order path, which it integrates.

    K outputs
        New (2.2', 1a', 1b'). The same with ``p = h K`` in LP and ``h d + h K`` in full fine-tuning; ``p_s =
        h (k + K)`` and ``k_0 = 2 n Omega_K``, ``Omega_K = W_0((K - 1) / e)`` (softmax), ``2 n K Omega``
        (one-vs-rest), ``||Y||^2 / 2`` (square). The softmax loss does not see a number added to all outputs:
        these ``h`` coordinates only add ``2 sigma^2 h t``, and leave ``p`` and ``p_s``.

        The drift of linear probing is monotone for the square loss; for softmax and one-vs-rest if clipping
        cannot act (``C >= sqrt(2) max ||A_i||`` and ``sqrt(K) max ||A_i||``), for softmax also with K = 2 or
        margin clipping, for one-vs-rest with column clipping. With flat clipping they are only nearly
        monotone: ``(b(V) - b(V')) . (V - V') <= Lambda ||V - V'||^2``, ``Lambda = lambda C lambda_max(A^T
        diag(1 / ||A_i||) A)`` over samples that can be clipped, with ``lambda = .01423`` (softmax) or ``1/4``
        (one-vs-rest). LP then has the least of Theorem 2.2's form and ``p sigma^2 (exp(2 Lambda t) - 1) /
        Lambda``. For anything else ``"monotone"`` gives no bound.

    The chain itself
        New (8'd), with ``dt``, at any sampling rate ``q``: of `langevin.euler_maruyama` in steps of ``dt``,
        against the noise-free chain in the same steps on full batches. ``2 sigma^2 p`` becomes ``s^2 = 2
        sigma^2 p + dt (1 - q) / q sum_i G_i^2`` where ``G_i <= C`` bounds the gradients, in LP also by
        ``||r_i|| ||A_i||``. ``"monotone"`` needs ``dt times s lambda_max(A A^T) <= 2``, with the loss's
        largest curvature ``s``: 1 (square), 1/4 (logistic, one-vs-rest) or 1/2 (softmax); normalised clipping
        multiplies it by ``C / stabiliser``. ``Lambda`` grows by the factor ``1 / (1 - dt s lambda_max / 2)``.
        ``"ode"`` becomes a recursion, to which a step adds ``dt^2 (n C + beta)^2``.

    Parameters
    ----------
    problem, weights, schedule
        What is trained, from where, and how. ``theta`` holds all of ``(W, v)``; LP leaves ``W``.
    times : array_like, shape (m,), optional
        Times of the diffusion, within the schedule. With ``dt`` each moves to the nearest step.
    kind : {"paper", "monotone", "lambert", "ode"}
        The bound, from the loosest to the tightest.
    dt : float, optional
        Step of the chain; None for the diffusion, which has full batches.

    Returns
    -------
    Band
        ``upper`` is the bound, ``lower`` 0. Not valid from the first phase that is not covered.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem, weights = Problem([[1.0], [-1.0]], [1, -1]), Weights([[1.0], [-1.0]], [0.1, 0.1])
    >>> schedule = Schedule.fft(time=2.0, sigma=0.5, clip=1.0)
    >>> approximation_error(problem, weights, schedule, [0.0, 2.0]).upper
    array([  0., 100.])
    >>> tight = approximation_error(problem, weights, schedule, [0.0, 2.0], kind="ode")
    >>> bool(tight.upper[1] < 30)
    True

    Of DP-SGD on Poisson batches, with three classes:

    >>> problem = Problem([[1.0], [-1.0], [2.0]], [0, 1, 2], loss="softmax")
    >>> weights = Weights([[1.0]], [[0.0, 0.0, 0.0]])
    >>> schedule = Schedule.lp(time=1.0, sigma=0.5, clip=1.0, clipping="margin", sample_rate=0.5)
    >>> approximation_error(problem, weights, schedule, [1.0], kind="monotone", dt=0.1).upper.round(4)
    array([1.7])
    """
    require_moderate(problem, weights, schedule)
    validate.choice("kind", kind, KINDS)
    at = clock(schedule, times, dt)
    covers, source = COVERS[kind].at(dt), _source(kind, problem, dt)
    reason = covers.refuses(problem)
    if reason:
        return nowhere(at.times, reason, source)
    known = parts(problem, weights, schedule, dt)
    count, valid, reason = at.lead(reasons(kind, covers, schedule, known), start=True)
    if kind == "ode":
        _, moving, rest = path(problem, weights, known[:count], at)
        upper = np.full(len(at.times), np.nan)
        upper[valid] = moving + rest
    else:
        upper = _closed_form(problem, known[:count], at, kind)
    return Band(at.times, 0.0, upper, valid, reason, source)


def reasons(kind: Kind, covers: Covers, schedule: Schedule, known: Sequence[Part]) -> list[str]:
    """Why each phase has no bound of a kind, or ''."""
    uncovered = covers.reasons(schedule)
    return [why or _obstacle(kind, part) for why, part in zip(uncovered, known, strict=True)]


def _obstacle(kind: Kind, part: Part) -> str:
    """Why a phase has no bound, although its clipping is covered; or ''."""
    if part.unbounded_sampling or kind == "paper" or part.spread is None:
        return part.unbounded_sampling
    if np.isfinite(part.spread.rate):
        return ""
    # the drift's bound is left; with normalised clipping it may add more than k_0
    other = kind == "lambert" or (kind == "ode" and part.phase.clipping != "normalised")
    return "" if other and np.isfinite(part.reach) else part.spread.reason


def _source(kind: Kind, problem: Problem, dt: float | None) -> str:
    if dt is not None:
        return f"new (8'd), {kind!r}, of the chain with dt={dt:g}"
    if problem.outputs_dim == 1:
        return SOURCES[kind]
    return {"paper": "new (2.2'), of the form of Theorem 2.2 of [1]", "monotone": "new (1a')"}.get(
        kind, f"new (1b'), {kind!r}"
    )


def _closed_form(problem: Problem, known: Sequence[Part], at: Clock, kind: Kind) -> FloatArray:
    """Bound at all times, of which those beyond the ``known`` phases do not count."""
    # the bound is free + (sqrt(e) + root)^2
    free, e, root = np.zeros((3, len(at.times)))
    for part, time in zip(known, at.spent[: len(known)], strict=True):
        free += part.free_rate * time
        drifts = _lambert if kind == "lambert" else _minkowski
        if kind != "paper" and part.spread is not None:
            e = np.minimum(_grown(e, part, time, at.dt), drifts(e, part, time))
        elif kind == "lambert":
            e = _lambert(e, part, time)
        else:
            e = e + part.noise_rate * time
            root = root + 2 * problem.samples * (part.phase.clip or 0.0) * time
    return free + (np.sqrt(e) + root) ** 2


def _grown(e: FloatArray, part: Part, time: FloatArray, dt: float | None) -> FloatArray:
    """Solution of ``e' = noise + spread e``, in steps of ``dt`` for the chain."""
    rate = 0.0 if part.spread is None else part.spread.rate
    if rate == 0:
        return e + part.noise_rate * time
    if not np.isfinite(rate):
        return np.where(time > 0, np.inf, e)
    exponent = time * (rate if dt is None else np.log1p(rate * dt) / dt)
    with np.errstate(over="ignore", invalid="ignore"):
        grown = e * np.exp(exponent) + part.noise_rate * np.expm1(exponent) / rate
    # zero times an overflow
    return np.where(np.isnan(grown), np.inf, grown)


def _minkowski(e: FloatArray, part: Part, time: FloatArray) -> FloatArray:
    """Theorem 2.2's form from ``e``; infinite where the drift has no bound."""
    if not np.isfinite(part.reach):
        return np.where(time > 0, np.inf, e)
    return (np.sqrt(e + part.noise_rate * time) + 2 * part.reach * time) ** 2


def _lambert(e: FloatArray, part: Part, time: FloatArray) -> FloatArray:
    """Solution of ``e' = noise + 4 reach sqrt(e)``, which no step of the chain exceeds either."""
    rate, reach = part.noise_rate, 2 * part.reach
    if not np.isfinite(reach):
        return np.where(time > 0, np.inf, e)
    if reach == 0.0:
        return e + rate * time
    if rate == 0.0:
        return (np.sqrt(e) + reach * time) ** 2
    unit = rate / (2 * reach)
    # x = sqrt(e)/unit solves x - log(1 + x) = const + reach t / unit
    start = np.sqrt(e) / unit
    goal = start - np.log1p(start) + reach * time / unit
    # Newton from above on a convex function: every iterate is an upper bound
    x = goal + np.sqrt(2 * goal) + np.log1p(goal)
    for _ in range(60):
        positive = x > 0
        step = np.where(positive, (x - np.log1p(x) - goal) * (1 + x) / np.where(positive, x, 1.0), 0.0)
        x = np.maximum(x - step, 0.0)
        if (np.abs(step) <= 1e-14 * (1 + x)).all():
            break
    return (unit * x) ** 2
