"""Upper bounds on the privacy loss of composed Poisson-sampled Gaussian mechanisms, by several methods.

All read the steps by ``(noise multiplier, sample rate)``, with positive multipliers. `prv` and `pld` compose
numerically [1]_ [2]_; `renyi_epsilon` and `renyi_delta` hold at every delta, however small [3]_;
`total_variation` says when epsilon is 0 (re-derived).

Composing by Fourier transforms in double precision moves delta by up to a machine epsilon a step, measured
against the closed form of the Gaussian mechanism, in either direction. `rounding` allows for it, and
`least_delta` is where it stops being small.

References
----------
.. [1] Gopi, Lee, Wutschitz, "Numerical composition of differential privacy", arXiv:2106.02848.
.. [2] Doroshenko, Ghazi, Kamath, Kumar, Manurangsi, "Connect the dots: tighter discrete approximations of
   privacy loss distributions", arXiv:2207.04380.
.. [3] Mironov, Talwar, Zhang, "Renyi differential privacy of the sampled Gaussian mechanism",
   arXiv:1908.10530; conversion: Canonne, Kamath, Steinke, arXiv:2004.00010, proposition 12.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from langevin.support import validate
from langevin.support.validate import FloatArray

Events = Mapping[tuple[float, float], int]

# largest step of the PLD accountant's grid of losses, up to losses of `_POINTS` such steps
_INTERVAL = 1e-4
# and beyond them
_COARSEST = 0.1
# of PLD's grid where its step is free
_POINTS = 2**21
# of PRV's grid, above which it takes more than about ten seconds
_MOST_POINTS = 2**23
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


def prv(events: Events, delta: float, eps_error: float) -> float:
    """Return epsilon by Opacus's PRV accountant, including its error; it considers removal only.

    Raises
    ------
    OutOfReachError
        Where rounding, its grid or its own checks keep it from an answer.
    MemoryError
        If its grid does not fit into memory.
    """
    from empirical._opacus import PoissonSubsampledGaussianPRV, PRVAccountant, compute_safe_domain_size

    if delta < least_delta(events):
        raise OutOfReachError(
            f"delta={delta:g} is out of the PRV accountant's reach, whose rounding errors decide below "
            f"{least_delta(events):.2g} with {sum(events.values())} steps: use a larger delta, or "
            "accountant='pld'"
        )
    accountant = PRVAccountant()
    accountant.history = [(nu, rate, steps) for (nu, rate), steps in events.items()]
    # near the total variation distance, epsilon changes much with delta
    steps, error = list(events.values()), min(delta / 1000, 1e-6)
    # limits of the logarithm at rate 1, overflow far out in the tails, and hints on orders of RDP, which only
    # sets the width of the grid: all harmless where the answer is finite
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        width = compute_safe_domain_size(
            [PoissonSubsampledGaussianPRV(rate, nu) for nu, rate in events], steps, eps_error, error
        )
        # 23 arrays were measured at the peak for one mechanism, each further one keeps two
        points = 2 * width * math.sqrt(sum(steps) * math.log(12 / error) / 2) / eps_error
        validate.memory(
            8 * points * (22 + 2 * len(steps)),
            f"the PRV accountant on {points:.2g} points",
            "use a larger eps_error or more noise, or accountant='pld'",
        )
        if points > _MOST_POINTS:
            raise OutOfReachError(
                f"the PRV accountant would take {points:.2g} points, or about {2e-6 * points:.2g} s, at "
                f"eps_error={eps_error:g} and {sum(steps)} steps: use a larger eps_error, or "
                "accountant='pld'"
            )
        try:
            result = float(
                accountant.get_epsilon(delta - rounding(events), eps_error=eps_error, delta_error=error)
            )
        except (ValueError, RuntimeError, OverflowError) as failure:
            if str(failure) == "Cannot compute epsilon":
                return 0.0  # delta at its least loss, which is negative, is below the given one
            raise OutOfReachError(
                f"delta={delta:g} with eps_error={eps_error:g} is out of the PRV accountant's reach "
                f"({failure}): use a larger delta or eps_error, or accountant='pld'"
            ) from failure
    if not math.isfinite(result):
        raise OutOfReachError(
            f"noise_multiplier={min(nu for nu, _ in events):g} is too small for the PRV accountant, whose "
            "answer is not finite: use more noise, or accountant='pld'"
        )
    return max(result, 0.0)


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
    if points > _MOST_POINTS:
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
