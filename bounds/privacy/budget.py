"""Epsilon and delta of a schedule, on full batches in closed form and on Poisson batches by an accountant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from bounds.privacy.diffusion import gdp
from bounds.privacy.gaussian import gdp_delta, gdp_epsilon, gdp_mu, validate_delta
from bounds.privacy.neighbours import NEIGHBOURS, Neighbours, require_clip
from bounds.privacy.noise import LARGEST_EPSILON, USED, normal_epsilon, require_reach, search_noise
from bounds.privacy.subsampled import Events, events_of, spent_delta, spent_epsilon
from langevin.model.dpsgd import noise_multiplier
from langevin.model.schedule import Phase, Schedule
from langevin.model.steps import grid
from langevin.support import validate

Solve = Literal["sigma", "time", "clip"]

# of calibrated noise, below which the root finder may round up
_SAFE = 1 - 1e-9


def delta(
    schedule: Schedule, epsilon: float, dt: float | None = None, *, neighbours: Neighbours = "add-remove"
) -> float:
    """``delta`` at which everything that a schedule releases is ``(epsilon, delta)``-private.

    See `epsilon` for what is released, the arguments and the errors. On full batches re-derived, replaces
    Theorem 4.1 of [1]_: `gdp`, then `gdp_delta`; on Poisson batches an upper bound.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> round(delta(Schedule.fft(time=2.0, sigma=1.0, clip=1.0), 1.0), 6)
    0.126937
    >>> batches = Schedule.fft(time=1.0, sigma=2.0, clip=1.0, sample_rate=0.1)
    >>> f"{delta(batches, 2.0, dt=0.01):.1e}"
    '3.6e-08'
    """
    if not _sampled(schedule):
        return gdp_delta(_full(schedule, dt, neighbours), epsilon)
    epsilon = validate.non_negative("epsilon", epsilon)
    return spent_delta(events_of(_chain(schedule, dt, neighbours)), epsilon)


def epsilon(
    schedule: Schedule, delta: float, dt: float | None = None, *, neighbours: Neighbours = "add-remove"
) -> float:
    r"""``epsilon`` at which everything that a schedule releases is ``(epsilon, delta)``-private.

    - Full batches, re-derived, replaces Theorem 4.1 of [1]_: `gdp`, then `gdp_epsilon`; of the whole path,
      tight in the worst case.
    - Any phase with a ``sample_rate`` ``q < 1``: of the chain, every step released. A step of ``dt`` is the
      Poisson-subsampled Gaussian mechanism with noise multiplier ``nu = sigma q sqrt(2 / dt) / C``
      (8'a, new). Google's PLD accountant [2]_ composes all phases, those on full batches included, to an
      upper bound; see `empirical.epsilon` for its reach. The diffusion with this ``sigma`` would understate:
      its ``mu`` per step is ``q / nu``, that of the mechanism in the limit of many steps
      ``q sqrt(exp(1 / nu^2) - 1)``.

    Parameters
    ----------
    schedule : Schedule
        Each phase must clip. With ``sigma = 0`` in one of them the answer is infinite.
    delta : float
        Between 0 and 1.
    dt : float, optional
        Step of the Euler-Maruyama chain, in diffusion time: in DP-SGD the learning rate over the number of
        samples, see `langevin.DPSGD`. Needed with a sample rate below 1; without, it changes nothing.
    neighbours : {"add-remove", "replace"}
        Neighbouring data sets differ by one sample more or less, or in one sample's value. The divisor
        ``q n`` of a step is a public constant, the same for neighbours.

    Raises
    ------
    ValueError
        If a phase does not clip; with a sample rate below 1 also without ``dt``, and for "replace", for which
        the accountant has no dominating pair; or where it would take more than about a minute.
    MemoryError
        Where its grid does not fit, before it is made.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.
    .. [2] Doroshenko, Ghazi, Kamath, Kumar, Manurangsi, "Connect the dots: tighter discrete approximations of
       privacy loss distributions", arXiv:2207.04380.

    Examples
    --------
    >>> round(epsilon(Schedule.fft(time=2.0, sigma=5.0, clip=1.0), 1e-5), 3)
    0.726
    >>> batches = Schedule.fft(time=1.0, sigma=2.0, clip=1.0, sample_rate=0.1)
    >>> round(epsilon(batches, 1e-5, dt=0.01), 3)
    1.492
    """
    if not _sampled(schedule):
        return gdp_epsilon(_full(schedule, dt, neighbours), delta)
    delta = validate_delta(delta)
    return spent_epsilon(events_of(_chain(schedule, dt, neighbours)), delta)


def calibrate(
    schedule: Schedule,
    solve: Solve,
    *,
    epsilon: float,
    delta: float,
    dt: float | None = None,
    neighbours: Neighbours = "add-remove",
) -> Schedule:
    """Scale one quantity of all phases so that a schedule spends exactly ``(epsilon, delta)``.

    On full batches re-derived, replaces Theorem 4.1 of [1]_, solved backwards: ``mu`` is proportional to
    ``1/sigma``, to ``clip`` and to the square root of ``time`` (`gdp`), so one common factor solves each;
    it is rounded to the private side. With a ``sample_rate`` below 1 by a search, with the accountant of
    `epsilon`.

    Parameters
    ----------
    schedule : Schedule
        Gives the ratios between the phases and all that is not solved for. Each phase must clip and,
        whatever is solved for, have ``sigma > 0``.
    solve : {"sigma", "time", "clip"}
        What to scale. With a sample rate below 1 the time of each phase is a whole number of steps, which
        keeps the ratios of times only to a step.
    epsilon, delta : float
        The target; both positive.
    dt, neighbours
        As in `epsilon`.

    Returns
    -------
    Schedule
        With ``bounds.epsilon(result, delta, dt) <= epsilon``. Full batches: equal to a relative 1e-8 unless
        delta is next to 0 or 1, or epsilon huge. Otherwise at least 99.5 % of epsilon is spent, or a step
        more would exceed it.

    Raises
    ------
    ValueError
        As in `epsilon`; with a sample rate below 1 also for an epsilon above 100, and for noise where delta
        is below 2e-15 per step, where rounding decides, or at least the chance that a sample is ever drawn.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> target = calibrate(Schedule.fft(time=2.0, sigma=1.0, clip=1.0), "sigma", epsilon=1.0, delta=1e-5)
    >>> round(target.phases[0].sigma, 3)
    3.731
    >>> batches = Schedule.fft(time=1.0, sigma=2.0, clip=1.0, sample_rate=0.1)
    >>> target = calibrate(batches, "sigma", epsilon=1.0, delta=1e-5, dt=0.01)
    >>> round(target.phases[0].sigma, 1)
    2.8
    """
    validate.choice("solve", solve, ("sigma", "time", "clip"))
    epsilon = validate.positive("epsilon", epsilon)
    delta = validate_delta(delta)
    sampled = _sampled(schedule)
    mu = math.nan if sampled else _full(schedule, dt, neighbours)
    quietest = min(phase.sigma for phase in schedule)
    if quietest == 0 or math.isinf(mu):
        raise ValueError(f"sigma must be positive in every phase to calibrate it, got {quietest}")
    if not sampled:
        return _calibrate_full(schedule, solve, epsilon, delta, mu, neighbours)
    if epsilon > LARGEST_EPSILON:
        raise ValueError(
            f"epsilon must be at most {LARGEST_EPSILON:g} with a sample_rate below 1, got {epsilon:g}: a "
            "larger one protects nothing"
        )
    chain = _chain(schedule, dt, neighbours)
    if solve == "time":
        # not a multiple of the given time, which need not be one of dt
        step, counts = validate.positive("dt", dt), _most_steps(chain, epsilon, delta)
        return Schedule(
            [replace(phase, time=count * step) for phase, count in zip(schedule, counts, strict=True)]
        )
    require_reach(events_of(chain), delta)
    factor = _noise_factor(chain, epsilon, delta)
    scale = factor if solve == "sigma" else 1 / factor
    return Schedule([_scaled(phase, solve, scale) for phase in schedule])


def _sampled(schedule: Schedule) -> bool:
    return any(phase.sample_rate < 1 for phase in validate.original("schedule", schedule, Schedule))


def _full(schedule: Schedule, dt: float | None, neighbours: Neighbours) -> float:
    """``mu`` of full batches, which is the same for every step."""
    if dt is not None:
        validate.positive("dt", dt)
    return gdp(schedule, neighbours=neighbours)


def _chain(schedule: Schedule, dt: float | None, neighbours: Neighbours) -> list[tuple[float, float, int]]:
    """Noise multiplier, sample rate and number of steps of each phase."""
    validate.choice("neighbours", neighbours, NEIGHBOURS)
    for phase in schedule:
        require_clip(phase)
    first = next(phase for phase in schedule if phase.sample_rate < 1)
    if neighbours == "replace":
        raise ValueError(
            f"neighbours must be 'add-remove' with a sample_rate below 1, got 'replace' and "
            f"sample_rate={first.sample_rate:g} in the phase '{first}': the accountant has no dominating "
            "pair for it; state add-remove, or take sample_rate=1"
        )
    if dt is None:
        raise ValueError(
            f"dt must be given with a sample_rate below 1, got None and sample_rate={first.sample_rate:g} in "
            f"the phase '{first}': give the step of the chain, for the accountant to compose; the diffusion "
            "would understate what batches spend"
        )
    steps = grid(schedule, dt, None).phase_steps
    return [
        (noise_multiplier(phase, dt), phase.sample_rate, count)
        for phase, count in zip(schedule, steps, strict=True)
    ]


def _calibrate_full(
    schedule: Schedule, solve: Solve, epsilon: float, delta: float, mu: float, neighbours: Neighbours
) -> Schedule:
    # stay on the private side of the root
    wanted, slack = gdp_mu(epsilon, delta), 1e-10
    while True:
        factor = wanted / mu * (1 - slack)
        scale = {"sigma": 1 / factor, "time": factor**2, "clip": factor}[solve]
        found = Schedule([_scaled(phase, solve, scale) for phase in schedule])
        # the root is less certain where delta is next to 0 or 1, or epsilon huge
        if slack > 0.1 or gdp_epsilon(gdp(found, neighbours=neighbours), delta) <= epsilon:
            return found
        slack *= 2


def _scaled(phase: Phase, name: str, factor: float) -> Phase:
    return replace(phase, **{name: getattr(phase, name) * factor})


def _noise_factor(chain: list[tuple[float, float, int]], epsilon: float, delta: float) -> float:
    """By what to multiply all noise multipliers."""
    unit = chain[0][0]

    def scaled(nu: float) -> Events:
        return events_of([(each / unit * nu, rate, steps) for each, rate, steps in chain])

    near = search_noise(lambda nu: normal_epsilon(scaled(nu), delta), unit, 0.9 * epsilon, epsilon)
    most = epsilon * _SAFE
    return search_noise(lambda nu: spent_epsilon(scaled(nu), delta), near, USED * epsilon, most) / unit


def _most_steps(chain: list[tuple[float, float, int]], epsilon: float, delta: float) -> list[int]:
    """Return the largest numbers of steps, in the given ratios, that spend at most ``epsilon``."""
    total = sum(steps for _, _, steps in chain)

    def shared(count: int) -> list[int]:
        return [max(count * steps // total, 1) for _, _, steps in chain]

    def spent(count: int, by: Callable[[Events, float], float] = spent_epsilon) -> float:
        each = zip(chain, shared(count), strict=True)
        return by(events_of([(nu, rate, steps) for (nu, rate, _), steps in each]), delta)

    first = spent(1)
    if first > epsilon:
        raise ValueError(
            f"epsilon must be at least {first:.4g}, which one step of each phase spends, got {epsilon:g}: "
            "use more noise, or a larger epsilon"
        )
    start = _last_below(lambda count: spent(count, normal_epsilon), first, total, 0.9 * epsilon, epsilon)
    return shared(_last_below(spent, first, start, USED * epsilon, epsilon))


def _last_below(spent: Callable[[int], float], first: float, start: int, least: float, most: float) -> int:
    """Return a count that spends from ``least`` to ``most``, or the last one that spends at most ``most``.

    ``spent`` increases with the count, about as its square root, and 1 spends ``first``, at most ``most``.
    """
    low, high, count, middle = (1, first), (0, math.inf), max(start, 2), math.sqrt(least * most)
    while not high[0] or high[0] - low[0] > 1:
        value = spent(count)
        if least <= value <= most:
            return count
        if value > most:
            high = count, value
        else:
            low = count, value
        if not high[0]:
            growth = (middle / value) ** 2 if value > 0 else math.inf
            count = math.ceil(low[0] * min(max(growth, 1.01), 4.0))
        else:
            part = math.log(middle / low[1]) / math.log(high[1] / low[1]) if low[1] > 0 else 0.5
            count = round(low[0] * (high[0] / low[0]) ** min(max(part, 0.05), 0.95))
            count = min(max(count, low[0] + 1), high[0] - 1)
        if count >= 2**32:
            raise ValueError(
                f"epsilon must be at most what 2^32 steps spend, {value:g}, got {most:g}: use less noise, or "
                "a smaller epsilon"
            )
    return low[0]
