"""The noise at which composed Poisson-sampled Gaussian mechanisms spend a budget.

`normal_epsilon` and `normal_noise_multiplier` are the limit of many steps [1]_, an approximation.

References
----------
.. [1] Bu, Dong, Long, Su, "Deep learning with Gaussian differential privacy", arXiv:1911.11607.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from bounds.privacy.gaussian import gdp_epsilon, gdp_mu
from bounds.privacy.subsampled import Events, chi_squared, full_batch_mu, least_delta, pld_epsilon

# share of epsilon that calibrated noise spends at least
USED = 0.995
LARGEST_EPSILON = 100.0

_LARGEST_NOISE = 1e6


def noise_multiplier(epsilon: float, delta: float, *, sample_rate: float, steps: int) -> float:
    """Noise multiplier at which ``steps`` Poisson batches spend 99.5 to 100 % of ``epsilon``.

    By `pld`, which dp-accounting provides; of full batches by the exact formula, without it.

    Examples
    --------
    >>> round(noise_multiplier(1.0, 1e-5, sample_rate=1.0, steps=100), 2)
    37.31
    """
    if sample_rate == 1.0:
        return math.sqrt(steps) / gdp_mu(epsilon, delta) * (1 + 1e-9)

    def spent(nu: float) -> float:
        return pld_epsilon({(nu, sample_rate): steps}, delta, 1e-3 * epsilon)

    start = normal_noise_multiplier(epsilon, delta, sample_rate=sample_rate, steps=steps)
    return search_noise(spent, start, USED * epsilon, epsilon)


def normal_noise_multiplier(epsilon: float, delta: float, *, sample_rate: float, steps: int) -> float:
    """Approximate `noise_multiplier` by the limit of many steps, quickly; exact for full batches."""
    mu = gdp_mu(epsilon, delta)
    if sample_rate == 1.0:
        return math.sqrt(steps) / mu
    # mu^2 is the number of steps times chi^2
    return 1 / math.sqrt(math.log1p((mu / sample_rate) ** 2 / steps))


def search_noise(spent: Callable[[float], float], start: float, least: float, most: float) -> float:
    """Return a noise multiplier that spends between ``least`` and ``most``.

    ``spent`` falls with the multiplier, as its inverse or faster: first until the target is bracketed,
    then by interpolation of the logarithms, kept off the ends of the bracket.
    """
    low, high, nu = (0.0, math.inf), (math.inf, 0.0), start
    middle = math.sqrt(least * most)
    for _ in range(100):
        value = spent(nu)
        if least <= value <= most:
            return nu
        if value > most:
            low = nu, value
        else:
            high = nu, value
        if low[0] == 0:
            nu = high[0] * min(max(high[1] / middle, 0.4), 0.998)
        elif high[0] == math.inf:
            nu = low[0] * max(min(low[1] / middle, 2.5), 1.002)
        else:
            ratio = math.log(low[1] / high[1]) if high[1] > 0 else math.inf
            part = math.log(low[1] / middle) / ratio if 0 < ratio < math.inf else 0.5
            nu = low[0] * (high[0] / low[0]) ** min(max(part, 0.05), 0.95)
        if nu > _LARGEST_NOISE:
            break
    raise ValueError(
        f"epsilon must be attainable with a noise_multiplier up to {_LARGEST_NOISE:g}, got {most:g}, "
        f"which is spent at no multiplier near {nu:g}: use a larger epsilon or fewer steps"
    )


def normal_epsilon(events: Events, delta: float) -> float:
    """Approximate epsilon by normal privacy losses, quickly; exact for full batches."""
    squares = math.fsum(
        steps * (chi_squared(nu, rate) if rate < 1.0 else 1 / nu / nu) for (nu, rate), steps in events.items()
    )
    return gdp_epsilon(min(math.sqrt(squares), full_batch_mu(events)), delta)


def require_reach(events: Events, delta: float) -> None:
    """Refuse a delta at which epsilon cannot be computed for any noise, or is 0 for all."""
    least = least_delta(events)
    steps = sum(steps for (_, rate), steps in events.items() if rate < 1.0)
    if delta < least:
        raise ValueError(
            f"delta must be at least {least:.2g} to calibrate {steps} step(s) with Poisson sampling, "
            f"got {delta:g}: below it the accountants' rounding errors decide; use a larger delta"
        )
    never = math.fsum(steps * (math.log1p(-q) if q < 1 else -math.inf) for (_, q), steps in events.items())
    if delta >= -math.expm1(never):
        raise ValueError(
            f"delta must be below {-math.expm1(never):.3g}, the chance that a sample is ever drawn, got "
            f"{delta:g}: epsilon is 0 at every noise_multiplier; use a smaller delta"
        )
