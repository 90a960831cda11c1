"""The epsilon and delta of a history."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from bounds.privacy.gaussian import gdp_delta, gdp_epsilon
from bounds.privacy.subsampled import pld_delta, pld_epsilon, total_variation
from empirical.privacy.history import History, Mechanism
from empirical.privacy.prv import prv
from langevin.support import validate

Accountant = Literal["prv", "pld", "gdp"]

ACCOUNTANTS = ("prv", "pld", "gdp")
# error of the PRV accountant in epsilon, which its upper bound includes
EPS_ERROR = 1e-3


def _noise(history: History) -> list[tuple[Mechanism, float]]:
    """Return the mechanisms with their noise multipliers, which must be given."""
    found = []
    for m in validate.instance("history", history, History).mechanisms:
        if m.noise_multiplier is None:
            raise ValueError(f"noise_multiplier must be given, got None in {m.name!r}: calibrate the history")
        found.append((m, m.noise_multiplier))
    return found


def mu_of(history: History) -> float:
    """``mu`` of the history with full batches: a bound, and exact if all batches are full.

    A sampled step is a random function of a full one, so it spends no more.
    """
    mu = [math.sqrt(m.steps) / nu if nu else math.inf for m, nu in _noise(history)]
    # one replaced sample moves the sum by two clips
    return math.hypot(*mu) * (1.0 if history.neighbours == "add-remove" else 2.0)


def _sampled(history: History, accountant: Accountant) -> bool:
    """Tell whether any batch is sampled, which the closed form does not cover."""
    rates = [m.sample_rate for m in history.mechanisms if m.sample_rate < 1]
    if rates and accountant == "gdp":
        raise ValueError(
            f"accountant must be 'prv' or 'pld' with Poisson sampling, got 'gdp' at sample_rate={rates[0]:g}"
        )
    return bool(rates)


def events_of(history: History) -> dict[tuple[float, float], int]:
    """Return steps by (noise multiplier, rate); full-batch Gaussians are merged into one, exactly."""
    events: dict[tuple[float, float], int] = {}
    for m, nu in _noise(history):
        if m.sample_rate < 1.0:
            events[nu, m.sample_rate] = events.get((nu, m.sample_rate), 0) + m.steps
    mu = mu_of(replace(history, mechanisms=[m for m in history.mechanisms if m.sample_rate == 1.0]))
    return events | ({(1 / mu, 1.0): 1} if mu > 0 else {})


def epsilon(history: History, *, accountant: Accountant = "prv", eps_error: float = EPS_ERROR) -> float:
    """``epsilon`` at which a history is ``(epsilon, delta)``-differentially private, as an upper bound.

    Full batches have a closed form, `bounds.gdp_epsilon`, which is exact and answers for every accountant.
    With sampling, epsilon is 0 where delta is at least a bound on the total variation distance of neighbours,
    and never more than full batches would spend.

    Parameters
    ----------
    history : History
        With every noise multiplier given. Infinite if one of them is 0, 0 without mechanisms.
    accountant : {"prv", "pld", "gdp"}
        Opacus's PRV, Google's PLD, or the closed form, for full batches alone. PRV looks at a sample's
        removal only, which is the worse direction in all that is known; PLD at both. Where delta is so small
        that rounding decides, below 2e-15 per step, "pld" falls back on a bound from Renyi divergences.
    eps_error : float
        Error that "prv" allows itself and adds to its answer, which is 0 or at least it. Time and memory
        grow as its inverse, as the square root of the number of steps, and with epsilon.

    Raises
    ------
    ValueError
        If a multiplier is None, for "gdp" with Poisson sampling, or where "prv" cannot answer: delta is too
        small for it, or it would take more than about ten seconds.
    MemoryError
        Where an accountant's grid does not fit, before it is made.

    Examples
    --------
    >>> two = History([Mechanism("lp", 0.1, 50, 2.0), Mechanism("fft", 0.1, 50, 2.0)], delta=1e-5)
    >>> round(epsilon(two), 2), round(epsilon(two, accountant="pld"), 2)
    (2.34, 2.34)
    >>> half = History([Mechanism("lp", 0.1, 50, 2.0)], delta=1e-5)
    >>> round(2 * epsilon(half), 2)  # shares of epsilon do not add up
    3.31
    """
    validate.choice("accountant", accountant, ACCOUNTANTS)
    eps_error = validate.positive("eps_error", eps_error)
    mu, sampled = mu_of(history), _sampled(history, accountant)
    if mu == math.inf or not sampled:
        return gdp_epsilon(mu, history.delta)
    events = events_of(history)
    if total_variation(events) <= history.delta:
        return 0.0
    if accountant == "prv":
        found = prv(events, history.delta, eps_error)
    else:
        found = pld_epsilon(events, history.delta)
    return min(found, gdp_epsilon(mu, history.delta))


def delta(history: History, epsilon: float, *, accountant: Literal["pld", "gdp"] = "pld") -> float:
    """``delta`` at which a history is ``(epsilon, delta)``-private; its own ``delta`` is ignored.

    An upper bound by Google's PLD, and by Renyi divergences where delta is so small that rounding decides;
    exact for full batches, by `bounds.gdp_delta`; 1 without noise.

    Examples
    --------
    >>> history = History([Mechanism("fft", 0.1, 100, 2.0)], delta=1e-5)
    >>> f"{delta(history, epsilon=2.0):.1e}"
    '8.2e-05'
    """
    validate.choice("accountant", accountant, ("pld", "gdp"))
    epsilon = validate.non_negative("epsilon", epsilon)
    mu, sampled = mu_of(history), _sampled(history, accountant)
    exact = gdp_delta(mu, epsilon)
    if mu == math.inf or not sampled:
        return exact
    events = events_of(history)
    return min(exact, total_variation(events), pld_delta(events, epsilon))
