"""Upper bounds on the privacy loss of composed Poisson-sampled Gaussian mechanisms, by several methods.

All read the steps by ``(noise multiplier, sample rate)``, with positive multipliers. `pld` composes
numerically [1]_; `renyi_epsilon` and `renyi_delta` hold at every delta, however small [2]_;
`total_variation` says when epsilon is 0 (re-derived). `spent_epsilon` and `spent_delta` return the smallest
of what they say.

Composing by Fourier transforms in double precision moves delta by up to a machine epsilon a step, measured
against the closed form of the Gaussian mechanism, in either direction. `rounding` allows for it, and
`least_delta` is where it stops being small.

References
----------
.. [1] Doroshenko, Ghazi, Kamath, Kumar, Manurangsi, "Connect the dots: tighter discrete approximations of
   privacy loss distributions", arXiv:2207.04380.
.. [2] Mironov, Talwar, Zhang, "Renyi differential privacy of the sampled Gaussian mechanism",
   arXiv:1908.10530; conversion: Canonne, Kamath, Steinke, arXiv:2004.00010, proposition 12.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from bounds.privacy.gaussian import gdp_delta, gdp_epsilon
from langevin.support import validate
from langevin.support.validate import FloatArray

Events = Mapping[tuple[float, float], int]

# largest step of the PLD accountant's grid of losses, up to losses of `_POINTS` such steps
_INTERVAL = 1e-4
# and beyond them
_COARSEST = 0.1
# of PLD's grid where its step is free
_POINTS = 2**21
# of a numerical accountant's grid, above which it takes more than about ten seconds
MOST_POINTS = 2**23
# orders of Renyi divergence: whole numbers, for which the divergence is a finite sum
_ORDERS = [*range(2, 64), *(round(64 * 2 ** (i / 4)) for i in range(20))]


class OutOfReachError(ValueError):
    """The accountant has no answer; another one may."""


def rounding(events: Events) -> float:
    """Bound the rounding error of delta in numerical composition."""
    return (4 + sum(events.values())) * sys.float_info.epsilon


def least_delta(events: Events) -> float:
    """Return the smallest delta at which the rounding error is at most a tenth."""
    return 10 * rounding(events)


def chi_squared(nu: float, rate: float) -> float:
    """``chi^2`` of one step: ``q^2 (exp(1/nu^2) - 1)``, infinite beyond the range of doubles."""
    inverse = 1 / nu / nu
    return rate * rate * math.expm1(inverse) if inverse < 700 else math.inf


def total_variation(events: Events) -> float:
    r"""Bound on the total variation distance, which is the delta at which epsilon is 0.

    Re-derived: half the root of the composition's ``chi^2``, ``prod_i (1 + chi_i^2)^(T_i) - 1``, and the sum
    of the steps' own distances, ``T q (2 Phi(1 / (2 nu)) - 1)``; the smaller of the two.
    """
    total = math.fsum(steps * math.log1p(chi_squared(nu, rate)) for (nu, rate), steps in events.items())
    by_chi = 0.5 * math.sqrt(math.expm1(total)) if total < 2 else 1.0
    by_steps = math.fsum(
        steps * rate * math.erf(0.5 / nu / math.sqrt(2)) for (nu, rate), steps in events.items()
    )
    return min(min(by_chi, by_steps) * (1 + 1e-12), 1.0)


def _grid(events: Events, coarsest: float) -> tuple[float, float]:
    """Return the step of PLD's grid of losses, and the number of its points.

    Losses far below the step are rounded up to it, which would leave the composition's standard deviation at
    the geometric mean of the two; so the step is at most the standard deviation of one mechanism's loss.
    """
    chi = {event: chi_squared(*event) for event in events}
    squares = math.fsum(steps * chi[event] for event, steps in events.items())
    sizes = math.fsum(steps * math.sqrt(chi[event]) for event, steps in events.items())
    spread = squares / sizes if 0 < squares < math.inf else math.inf
    # bounds on the mean, and ten standard deviations of losses that are rare and large
    mean, square = 0.0, 0.0
    for (nu, rate), steps in events.items():
        drawn = 0.5 / nu / nu
        kl = steps * min(math.log1p(chi[nu, rate]), rate * drawn)
        mean, square = mean + kl, square + kl * (2 + drawn)
    reach = max(mean + 10 * math.sqrt(square), *(2 * _largest_loss(*event) for event in events))
    interval = max(min(_INTERVAL, spread), min(reach / _POINTS, _COARSEST), coarsest)
    return interval, reach / interval


def _largest_loss(nu: float, rate: float) -> float:
    """Return the privacy loss of one step at ten standard deviations."""
    exponent = 10 / nu + 0.5 / nu / nu
    return math.log1p(rate * math.expm1(exponent)) if exponent < 700 else exponent + math.log(rate)


def pld(events: Events, interval: float = 0.0) -> Any:
    """Google's PLD accountant of these events, on a grid of step ``interval`` at least.

    Raises
    ------
    MemoryError, OutOfReachError
        If its grid does not fit into memory, or is beyond a minute's work.
    """
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    interval, points = _grid(events, interval)
    what, remedy = f"the PLD accountant on {points:.2g} points", "use more noise; so little protects nothing"
    validate.memory(80 * points, what, remedy)
    if points > MOST_POINTS:
        raise OutOfReachError(f"noise_multiplier={min(nu for nu, _ in events):g} would take {what}: {remedy}")
    accountant = PLDAccountant(value_discretization_interval=interval)
    for (nu, rate), steps in events.items():
        gaussian = GaussianDpEvent(nu)
        accountant.compose(gaussian if rate == 1.0 else PoissonSampledDpEvent(rate, gaussian), steps)
    return accountant


def pld_epsilon(events: Events, delta: float, interval: float = 0.0) -> float:
    """Return epsilon by `pld`, or by `renyi_epsilon` if that is smaller and rounding matters."""
    error = rounding(events)
    found = renyi_epsilon(events, delta) if delta < least_delta(events) else math.inf
    if delta > error:
        found = min(found, float(pld(events, interval).get_epsilon(delta - error)))
    return found


def pld_delta(events: Events, epsilon: float) -> float:
    """Return delta by `pld`, or by `renyi_delta` if that is smaller and rounding matters."""
    found = float(pld(events).get_delta(epsilon)) + rounding(events)
    return min(found, renyi_delta(events, epsilon) if found < least_delta(events) else 1.0)


def _renyi(events: Events) -> tuple[FloatArray, FloatArray]:
    """Orders, and the Renyi divergences of the composition by Google's accountant, with their rounding."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(_ORDERS)
    for (nu, rate), steps in events.items():
        gaussian = GaussianDpEvent(nu)
        accountant.compose(gaussian if rate == 1.0 else PoissonSampledDpEvent(rate, gaussian), steps)
    orders = np.array(_ORDERS, dtype=np.float64)
    # terms of the sums come from logarithms of factorials
    slack = 8 * sys.float_info.epsilon * sum(events.values()) * orders * np.log(orders) / (orders - 1)
    divergence = np.nan_to_num(np.asarray(accountant.rdp), nan=np.inf)
    return orders, np.maximum(divergence, 0.0) * (1 + 1e-12) + slack


def renyi_epsilon(events: Events, delta: float) -> float:
    """Return epsilon by Renyi divergences, valid at every delta but not tight."""
    orders, divergence = _renyi(events)
    found = divergence + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return max(float(found.min()), 0.0)


def renyi_delta(events: Events, epsilon: float) -> float:
    """Return delta by Renyi divergences, valid at every epsilon but not tight."""
    orders, divergence = _renyi(events)
    found = (orders - 1) * (divergence - epsilon + np.log1p(-1 / orders)) - np.log(orders)
    return math.exp(min(float(found.min()), 0.0))


def events_of(steps: Iterable[tuple[float, float, int]]) -> Events:
    """Gather ``(noise multiplier, rate, steps)``; full batches merge into one Gaussian, exactly."""
    events: dict[tuple[float, float], int] = {}
    full: list[float] = []
    for nu, rate, count in steps:
        if rate < 1.0:
            events[nu, rate] = events.get((nu, rate), 0) + count
        else:
            full.append(full_batch_mu({(nu, rate): count}))
    mu = math.hypot(*full)
    return events | ({(1 / mu, 1.0): 1} if mu > 0 else {})


def full_batch_mu(events: Events) -> float:
    """``mu`` of the same steps on full batches, which is exact for those and a bound for sampled ones.

    A sampled step is a random function of a full one, so it spends no more. Infinite without noise.
    """
    return math.hypot(*(math.sqrt(steps) / nu if nu else math.inf for (nu, _), steps in events.items()))


def _closed(events: Events, mu: float) -> bool:
    """Whether the closed form of Gaussian mechanisms is exact: on full batches, and without noise."""
    return mu == math.inf or all(rate == 1.0 for _, rate in events)


def spent_epsilon(
    events: Events, delta: float, accountant: Callable[[Events, float], float] = pld_epsilon
) -> float:
    """Return the smallest of the bounds on epsilon: by an accountant, by full batches, by total variation.

    The closed form of full batches is exact where there are no others. Multipliers may be 0: no noise.
    """
    mu = full_batch_mu(events)
    if _closed(events, mu):
        return gdp_epsilon(mu, delta)
    if total_variation(events) <= delta:
        return 0.0
    return min(accountant(events, delta), gdp_epsilon(mu, delta))


def spent_delta(events: Events, epsilon: float) -> float:
    """Return the smallest of the bounds on delta: by `pld_delta`, by full batches, by total variation."""
    mu = full_batch_mu(events)
    exact = gdp_delta(mu, epsilon)
    if _closed(events, mu):
        return exact
    return min(exact, total_variation(events), pld_delta(events, epsilon))
