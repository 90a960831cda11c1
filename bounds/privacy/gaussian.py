"""Gaussian differential privacy: ``delta`` and ``epsilon`` of a mechanism."""

from __future__ import annotations

import math

from scipy.special import erfcx, log_ndtr, ndtri

from bounds.support.numeric import root
from langevin.support import validate

# below it, the two terms of a Gaussian mechanism's delta cancel to fewer than ten digits
_SMALL = 1e-3


def gdp_delta(mu: float, epsilon: float) -> float:
    r"""``delta(epsilon)`` of a ``mu``-GDP mechanism.

    ``Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2)`` [2]_, exact for the Gaussian mechanism.

    References
    ----------
    .. [2] Dong, Roth, Su, "Gaussian differential privacy", arXiv:1905.02383, corollary 2.13.

    Examples
    --------
    >>> round(gdp_delta(1.0, 1.0), 6)
    0.126937
    """
    epsilon, mu = validate.non_negative("epsilon", epsilon), _mu(mu)
    if mu == 0.0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    if mu < _SMALL:
        return _small_gdp_delta(mu, epsilon)
    high = float(log_ndtr(-epsilon / mu + mu / 2))
    if high == -math.inf:
        return 0.0
    low = epsilon + float(log_ndtr(-epsilon / mu - mu / 2))
    # the difference of the logarithms is negative but can round to 0
    return -math.exp(high) * math.expm1(min(low - high, 0.0))


def _small_gdp_delta(mu: float, epsilon: float) -> float:
    """`gdp_delta` where its two terms nearly cancel.

    ``e^(-(eps/mu - mu/2)^2 / 2) / 2`` times the integral of ``-erfcx'`` over ``(eps/mu -+ mu/2) / sqrt(2)``,
    by Gauss's rule of two points, whose relative error is of order ``mu^4``.
    """
    far = epsilon / mu - mu / 2
    if far > 40:
        return 0.0  # below the least double
    middle, half = epsilon / mu / math.sqrt(2), mu / math.sqrt(8)
    nodes = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    slopes = (2 / math.sqrt(math.pi) - 2 * x * float(erfcx(x)) for x in nodes)
    return 0.5 * math.exp(-far * far / 2) * half * math.fsum(slopes)


def gdp_mu(epsilon: float, delta: float) -> float:
    """``mu`` at which `gdp_delta` is ``delta``, for positive ``epsilon`` and ``delta``.

    Raises
    ------
    ValueError
        If no ``mu`` in the range of doubles meets it.
    """
    low = 1.0
    while gdp_delta(low, epsilon) >= delta:
        low /= 2
        if low < 1e-300:
            raise ValueError(
                f"delta must be larger to be met, got {delta:g}: less protects from nothing more"
            )
    while gdp_delta(2 * low, epsilon) < delta:
        low *= 2
    return low * (1 + root(lambda x: gdp_delta(low * (1 + x), epsilon) - delta, 0.0, 1.0))


def gdp_epsilon(mu: float, delta: float) -> float:
    """Smallest ``epsilon >= 0`` at which a ``mu``-GDP mechanism is ``(epsilon, delta)``-private.

    The inverse of `gdp_delta` [2]_, rounded up by the root finder's tolerance (a relative 1e-12).

    References
    ----------
    .. [2] Dong, Roth, Su, "Gaussian differential privacy", arXiv:1905.02383, corollary 2.13.

    Examples
    --------
    >>> round(gdp_epsilon(1.0, 0.126937), 4)
    1.0
    """
    delta, mu = validate_delta(delta), _mu(mu)
    if math.isinf(mu):
        return math.inf
    if mu == 0.0 or gdp_delta(mu, 0.0) <= delta:
        return 0.0
    # delta(eps) <= Phi(-eps/mu + mu/2), so this end is private enough
    top = mu * (mu / 2 - float(ndtri(delta)) + 1.0)
    # except for rounding, if mu is huge
    while math.isfinite(top) and gdp_delta(mu, top) > delta:
        top *= 2
    if math.isinf(top):
        return top
    # in units of mu, which may be small
    result = mu * root(lambda a: gdp_delta(mu, a * mu) - delta, 0.0, top / mu)
    step = 1e-13 * max(min(mu, 1.0), result)
    while gdp_delta(mu, result) > delta and result < top:
        result, step = result + step, 2 * step
    return result


def _mu(mu: float) -> float:
    """Return ``mu`` as a number from 0 to infinity."""
    return math.inf if isinstance(mu, float) and mu == math.inf else validate.non_negative("mu", mu)


def validate_delta(delta: float) -> float:
    """Return ``delta`` if it lies between 0 and 1."""
    delta = validate.positive("delta", delta)
    if delta >= 1:
        raise ValueError(f"delta must be below 1, got {delta}")
    return delta
