"""Intervals for the expected loss of the diffusion or its chain, through the zeroth-order loss (1d, 1d')."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bounds.band import Band, nowhere
from bounds.distance.approximation import COVERS as ERROR
from bounds.distance.approximation import approximation_error, reasons
from bounds.distance.flow import span
from bounds.distance.parts import Part, parts
from bounds.distance.path import path
from bounds.loss.enclosure import enclose
from bounds.loss.enclosures.clocked import Enclosed
from bounds.loss.norms import expected_norm
from bounds.support.clock import Clock, clock
from bounds.support.covers import declares
from bounds.support.ranges import require_moderate
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from langevin.support import validate
from langevin.support.validate import FloatArray

Base = Literal["flow", "sandwich"]

BASES = ("flow", "sandwich")
COVERS = {"flow": ERROR["ode"], "sandwich": replace(ERROR["ode"], chain=False)}
SOURCE = "new (1d)"
SOURCE_OUTPUTS = "new (1d')"
FOURTH = (
    "full fine-tuning with the square loss is not covered after Poisson batches, the fourth moment of whose "
    "sampling noise has no bound here"
)


@declares(COVERS)
def certified_loss(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    times: ArrayLike | None = None,
    *,
    base: Base = "flow",
    dt: float | None = None,
) -> Band:
    r"""Enclose ``E L(theta_t)`` of the diffusion, or of its chain in steps of ``dt``, around ``L~``.

    New (1d, 1d'). ``L~`` is the loss of the zeroth-order approximation, ``R~`` its residuals, ``A^2 >= E
    ||Delta||^2`` from 1a and 1b, ``Delta = theta - theta~`` in coordinates that have a drift. With ``||r_i||
    <= rho``, 1 for the logistic loss, ``sqrt(2)`` for softmax, ``sqrt(K)`` for one-vs-rest, and the largest
    curvature ``s`` of the loss, 1/4, 1/2, 1/4:

    - Linear probing: ``-A ||F^T R~|| <= E L - L~ <= min{A ||F^T R~|| + s lambda_max(F F^T) A^2 / 2, rho A
      sum_i ||F_i||}`` with the features ``F``. Square loss: ``s = 1``, without the second form.
    - Full fine-tuning: ``|E L - L~| <= rho sum_i ||x_i|| (||theta~|| A + A^2 / 2)``, ``theta~ = (W~, v~)``;
      the same for any loss with bounded slope. Square loss: ``sum ||r~_i|| ||x_i|| (||theta~|| A + A^2 / 2) +
      sum ||x_i||^2 (||theta~|| B + B^2 / 2)^2 / 2`` with ``B = 2 n C t + sigma sqrt(2 t) (p (p + 2))^(1/4)``.
      The last term is above only: the lower bound does without.

    Parameters
    ----------
    problem, weights, schedule
        What is trained, from where, and how.
    times : array_like, shape (m,), optional
        With ``dt`` each moves to the nearest step.
    base : {"flow", "sandwich"}
        Where ``L~``, ``R~`` and ``||theta~||`` come from: the zeroth-order flow, integrated here for any
        problem, or `sandwich` and the growth of the norm, without integration of the network.
    dt : float, optional
        Step of the chain, whose approximation is the noise-free chain on full batches (8'd); None for the
        diffusion, which has full batches.

    Returns
    -------
    Band
        Not valid from the first phase that is not covered, or where the sandwich is not.

    Examples
    --------
    >>> problem, weights = Problem([[1.0], [-1.0]], [1, -1]), Weights([[1.0], [-1.0]], [0.1, 0.1])
    >>> schedule = Schedule.lp_fft(lp_time=1.0, fft_time=0.1, sigma=0.02, clip=0.1)
    >>> band = certified_loss(problem, weights, schedule, [0.0, 1.0, 1.1])
    >>> bool((band.lower <= band.upper).all()), bool(band.valid.all())
    (True, True)
    """
    require_moderate(problem, weights, schedule)
    validate.choice("base", base, BASES)
    if dt is not None and base == "sandwich":
        raise ValueError("base must be 'flow' with dt, got 'sandwich', which encloses no loss of a chain")
    at, covers = clock(schedule, times, dt), COVERS[base].at(dt)
    source = SOURCE if problem.outputs_dim == 1 else SOURCE_OUTPUTS
    reason = covers.refuses(problem)
    if reason:
        return nowhere(at.times, reason, source)
    known = parts(problem, weights, schedule, dt)
    against = reasons("ode", covers, schedule, known)
    if LOSSES[problem.loss].steepest() is None:
        against = [why or _unbounded_fourth(known[: k + 1]) for k, why in enumerate(against)]
    count, valid, reason = at.lead(against, start=True)
    if not valid.any():
        return nowhere(at.times, reason, source)
    if base == "flow":
        centre = _along_flow(problem, weights, known[:count], at)
    else:
        found = enclose(problem, weights, schedule, at.times)
        if isinstance(found, str):
            return nowhere(at.times, found, source)
        if not found.valid.all():
            valid, reason = valid & found.valid, found.reason
        # valid times come first
        count = int(valid.sum())
        centre = _in_sandwich(problem, weights, schedule, at.times[:count], found)
    above, below = _widths(problem, weights, known, at, centre)
    up, down = np.zeros((2, len(at.times)))
    up[: len(above)], down[: len(below)] = centre.high + above, np.maximum(centre.low - below, 0.0)
    finite = np.isfinite(up)
    return Band(at.times, down, up, valid & finite, reason if finite.all() else "the bound overflows", source)


class _Centre(NamedTuple):
    """The zeroth-order approximation at the leading valid times.

    Attributes
    ----------
    low, high : ndarray, shape (m,)
        Enclosure of ``L~``.
    residual : ndarray, shape (m, n)
        Bounds of ``||r~_i||``.
    slope : ndarray, shape (m,)
        Bounds of ``||F^T R~||``, in linear probing before any full fine-tuning.
    squared_size : ndarray, shape (m,)
        Bounds of ``||theta~||^2``, in coordinates that have a drift.
    e : ndarray, shape (m,)
        Bounds of ``E ||Delta||^2``.
    """

    low: FloatArray
    high: FloatArray
    residual: FloatArray
    slope: FloatArray
    squared_size: FloatArray
    e: FloatArray


def _along_flow(problem: Problem, weights: Weights, known: Sequence[Part], at: Clock) -> _Centre:
    states, e, _ = path(problem, weights, known, at)
    outputs = np.array([state.outputs for state in states])
    loss = problem.losses(outputs).sum(1)
    R = problem.residuals(outputs).reshape(len(states), problem.samples, -1)
    slope = np.zeros(len(states))
    probing = _probing(known, at, len(states))
    if probing.any():
        A = problem.features(weights.W)
        slope[probing] = [np.linalg.norm(A.T @ residuals) for residuals in R[probing]]
    sizes = np.array([state.squared_norm - state.rest for state in states])
    return _Centre(loss, loss, np.linalg.norm(R, axis=2), slope, sizes, e)


def _in_sandwich(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    t: FloatArray,
    found: Enclosed,
) -> _Centre:
    """The same from enclosures of the losses."""
    low, high, residual = (of[: len(t)] for of in (found.lower, found.upper, found.residual))
    low, high = low.sum(1), high.sum(1)
    slope = residual @ np.linalg.norm(problem.features(weights.W), axis=1)
    still = Schedule([Phase(p.method, p.time, 0.0, p.clip) for p in schedule])
    sizes = expected_norm(problem, weights, still, t).upper
    e = approximation_error(problem, weights, schedule, t, kind="lambert").upper
    # at time 0 they differ by roundoff
    return _Centre(np.minimum(low, high), high, residual, slope, sizes, e)


def _probing(known: Sequence[Part], at: Clock, count: int) -> NDArray[np.bool_]:
    """Whether each of the first ``count`` times is in linear probing before any full fine-tuning."""
    shared = np.array([part.features is not None for part in known] or [False])
    return shared[at.phase()[:count]]


def _widths(
    problem: Problem, weights: Weights, known: Sequence[Part], at: Clock, centre: _Centre
) -> tuple[FloatArray, FloatArray]:
    """Return how far ``E L`` may lie above and below ``L~``."""
    steepest = LOSSES[problem.loss].steepest(problem.outputs_dim)
    norms, root, size = np.sqrt(problem.squared_norms), np.sqrt(centre.e), np.sqrt(centre.squared_size)
    reach = size * root + centre.e / 2
    if steepest is not None:
        above = below = steepest * norms.sum() * reach
    else:
        # the last term is that of a second derivative of at most 1
        below = centre.residual @ norms * reach
        B = _fourth(problem, weights, known, at)[: len(reach)]
        above = below + 0.5 * float(problem.squared_norms.sum()) * (size * B + B**2 / 2) ** 2
    features = known[0].features
    if features is None:
        return above, below
    head = root * centre.slope
    bent = head + 0.5 * LOSSES[problem.loss].smoothness * features.largest * centre.e
    if steepest is not None:
        bent = np.minimum(bent, root * features.steepest.sum())
    probing = _probing(known, at, len(reach))
    return np.where(probing, bent, above), np.where(probing, head, below)


def _unbounded_fourth(known: Sequence[Part]) -> str:
    """Why the last of these phases has no bound of ``E ||Delta||^4``, where one is needed; or ''."""
    sampled = any(part.phase.sample_rate < 1 for part in known)
    return FOURTH if sampled and known[-1].features is None else ""


def _fourth(problem: Problem, weights: Weights, known: Sequence[Part], at: Clock) -> FloatArray:
    """Bound of ``(E ||Delta||^4)^(1/4)`` in span coordinates, on full batches."""
    k = span(problem, weights).X.shape[1]
    total = np.zeros(len(at.times))
    for part, time in zip(known, at.spent, strict=False):
        phase, K = part.phase, problem.outputs_dim
        p = weights.width * (k + K if phase.method == "fft" else K)
        total += phase.sigma * np.sqrt(2 * time) * (p * (p + 2)) ** 0.25
        if part.spread is None or part.spread.rate > 0:
            total += 2 * problem.samples * (phase.clip or 0.0) * time
    return total
