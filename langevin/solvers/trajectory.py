"""Where single neurons go along one path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from langevin.engine import chain as engine_chain
from langevin.engine import noise
from langevin.engine.reductions.request import Request
from langevin.model.observables import requested
from langevin.model.problem import Problem, require_compatible
from langevin.model.schedule import Schedule
from langevin.model.steps import grid
from langevin.model.weights import GramWeights, Weights
from langevin.solvers.prepare import build_chain
from langevin.support.rng import RNG
from langevin.support.validate import FloatArray


def trajectory(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    *,
    dt: float,
    times: ArrayLike | None = None,
    rng: RNG = None,
    observables: Sequence[str] | None = None,
    noisy: bool = True,
) -> tuple[FloatArray, FloatArray]:
    """Return the weights along path 0 of `euler_maruyama` with ``reduce="span"``, in the span of the data.

    Parameters
    ----------
    problem, weights, schedule, dt, times, rng, observables
        As in `euler_maruyama`; the same ones give the same path. Held-out data belong to the span of the data
        if an observable needs them.
    noisy : bool
        False: the zeroth-order path on the same grid, on full batches.

    Returns
    -------
    tuple of ndarray, shapes (m, h, d) and (m, h) or (m, h, K)
        First layer and head at each time, NaN from where the path is no longer finite. What the noise adds to
        the first layer outside the span of the data, which no output depends on, is left out.

    Raises
    ------
    ValueError
        On bad arguments, and on weights without single neurons.

    Examples
    --------
    >>> from langevin import collapsed_features, orthogonally_separable
    >>> problem = orthogonally_separable(samples=8, dim=3, rng=0)
    >>> weights = collapsed_features(problem, width=4, rng=0)
    >>> W, v = trajectory(problem, weights, Schedule.lp(time=0.1, sigma=0.1), dt=0.01, times=[0, 0.1], rng=0)
    >>> W.shape, bool((W[1] == W[0]).all()), bool((v[1] == v[0]).any())
    ((2, 4, 3), True, False)
    """
    require_compatible(problem, weights, schedule)
    if isinstance(weights, GramWeights):
        raise ValueError("weights must hold single neurons, got GramWeights: take Weights")
    if not noisy:
        schedule = Schedule([replace(phase, sigma=0.0, sample_rate=1.0) for phase in schedule])
    cut = grid(schedule, dt, times)
    asked = requested(problem, observables)
    request = Request(problem, weights, schedule, cut, asked, any(phase.sigma > 0 for phase in schedule))
    chain = build_chain(request, "span", "double", noise.key(rng))
    states = [chain.layout.unpack(state) for state in engine_chain.reference_path(chain)]
    span = chain.reduction.span
    moves = np.array([W for W, _ in states]) - span.coordinates(weights.W)
    return weights.W + span.embed(moves), np.array([v for _, v in states])
