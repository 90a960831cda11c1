"""The epsilon and delta of a history."""

from __future__ import annotations

from typing import Literal

from bounds.privacy.subsampled import Events, events_of, pld_epsilon, spent_delta, spent_epsilon
from empirical.privacy.history import History
from empirical.privacy.prv import prv
from langevin.support import validate

Accountant = Literal["prv", "pld", "gdp"]

ACCOUNTANTS = ("prv", "pld", "gdp")
# error of the PRV accountant in epsilon, which its upper bound includes
EPS_ERROR = 1e-3


def events(history: History) -> Events:
    """Return the steps by (noise multiplier, rate); every multiplier must be given."""
    found = []
    # one replaced sample moves the sum by two clips
    moved = 1.0 if validate.instance("history", history, History).neighbours == "add-remove" else 2.0
    for m in history.mechanisms:
        if m.noise_multiplier is None:
            raise ValueError(f"noise_multiplier must be given, got None in {m.name!r}: calibrate the history")
        found.append((m.noise_multiplier / moved, m.sample_rate, m.steps))
    return events_of(found)


def _require_covered(history: History, accountant: Accountant) -> None:
    """Refuse the closed form where any batch is sampled."""
    mechanisms = validate.instance("history", history, History).mechanisms
    rates = [m.sample_rate for m in mechanisms if m.sample_rate < 1]
    if rates and accountant == "gdp":
        raise ValueError(
            f"accountant must be 'prv' or 'pld' with Poisson sampling, got 'gdp' at sample_rate={rates[0]:g}"
        )


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
    >>> from empirical import Mechanism
    >>> two = History([Mechanism("lp", 0.1, 50, 2.0), Mechanism("fft", 0.1, 50, 2.0)], delta=1e-5)
    >>> round(epsilon(two), 2), round(epsilon(two, accountant="pld"), 2)
    (2.34, 2.34)
    >>> half = History([Mechanism("lp", 0.1, 50, 2.0)], delta=1e-5)
    >>> round(2 * epsilon(half), 2)  # shares of epsilon do not add up
    3.31
    """
    validate.choice("accountant", accountant, ACCOUNTANTS)
    eps_error = validate.positive("eps_error", eps_error)
    _require_covered(history, accountant)

    def by_prv(found: Events, delta: float) -> float:
        return prv(found, delta, eps_error)

    return spent_epsilon(events(history), history.delta, by_prv if accountant == "prv" else pld_epsilon)


def delta(history: History, epsilon: float, *, accountant: Literal["pld", "gdp"] = "pld") -> float:
    """``delta`` at which a history is ``(epsilon, delta)``-private; its own ``delta`` is ignored.

    An upper bound by Google's PLD, and by Renyi divergences where delta is so small that rounding decides;
    exact for full batches, by `bounds.gdp_delta`; 1 without noise.

    Examples
    --------
    >>> from empirical import Mechanism
    >>> history = History([Mechanism("fft", 0.1, 100, 2.0)], delta=1e-5)
    >>> f"{delta(history, epsilon=2.0):.1e}"
    '8.2e-05'
    """
    validate.choice("accountant", accountant, ("pld", "gdp"))
    epsilon = validate.non_negative("epsilon", epsilon)
    _require_covered(history, accountant)
    return spent_delta(events(history), epsilon)
