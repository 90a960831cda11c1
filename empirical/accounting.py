"""Privacy of Poisson-sampled DP-SGD in phases: what a history spends, the noise that a budget needs.

Opacus's PRV accountant says what is spent, as an upper bound; Google's PLD accountant checks it, in both
directions (a sample added, a sample removed). Both read the same `History`: exactly the sampling rates and
the numbers of steps that it names. `empirical.accountants` has the methods, and the bounds for their edges.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Literal

from bounds.privacy.gaussian import gdp_delta, gdp_epsilon
from empirical.accountants import (
    OutOfReachError,
    chi_squared,
    least_delta,
    pld_delta,
    pld_epsilon,
    prv,
    total_variation,
)
from empirical.history import History, Mechanism
from langevin import _validate

Accountant = Literal["prv", "pld", "gdp"]

ACCOUNTANTS = ("prv", "pld", "gdp")
# error of the PRV accountant in epsilon, which its upper bound includes
EPS_ERROR = 1e-3
# and relative to a large epsilon
_RELATIVE_ERROR = 1e-4
# share of the target that a calibrated history spends at least
USED = 0.995
_LARGEST_EPSILON = 100.0
_LARGEST_NOISE = 1e6


def _noise(history: History) -> list[tuple[Mechanism, float]]:
    """Mechanisms with their multipliers, which must be given."""
    found = []
    for m in _validate.instance("history", history, History).mechanisms:
        if m.noise_multiplier is None:
            raise ValueError(f"noise_multiplier must be given, got None in {m.name!r}: calibrate the history")
        found.append((m, m.noise_multiplier))
    return found


def mu_of(history: History) -> float:
    """``mu`` of the history, were all its batches full: a bound, and exact where they are.

    A sampled step is a random function of a full one, so it spends no more.
    """
    mu = [math.sqrt(m.steps) / nu if nu else math.inf for m, nu in _noise(history)]
    # one replaced sample moves the sum by two clips
    return math.hypot(*mu) * (1.0 if history.neighbours == "add-remove" else 2.0)


def _sampled(history: History, accountant: Accountant) -> bool:
    """Whether a batch is sampled, which the closed form does not cover."""
    rates = [m.sample_rate for m in history.mechanisms if m.sample_rate < 1]
    if rates and accountant == "gdp":
        raise ValueError(
            f"accountant must be 'prv' or 'pld' with Poisson sampling, got 'gdp' at sample_rate={rates[0]:g}"
        )
    return bool(rates)


def events_of(history: History) -> dict[tuple[float, float], int]:
    """Steps by (noise multiplier, rate); all full-batch Gaussians are one, which is exact."""
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
    _validate.choice("accountant", accountant, ACCOUNTANTS)
    eps_error = _validate.positive("eps_error", eps_error)
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
    """``delta`` at which a history is ``(epsilon, delta)``-private; its own ``delta`` plays no part.

    An upper bound by Google's PLD, and by Renyi divergences where delta is so small that rounding decides;
    exact for full batches, by `bounds.gdp_delta`; 1 without noise.

    Examples
    --------
    >>> history = History([Mechanism("fft", 0.1, 100, 2.0)], delta=1e-5)
    >>> f"{delta(history, epsilon=2.0):.1e}"
    '8.2e-05'
    """
    _validate.choice("accountant", accountant, ("pld", "gdp"))
    epsilon = _validate.non_negative("epsilon", epsilon)
    mu, sampled = mu_of(history), _sampled(history, accountant)
    exact = gdp_delta(mu, epsilon)
    if mu == math.inf or not sampled:
        return exact
    events = events_of(history)
    return min(exact, total_variation(events), pld_delta(events, epsilon))


def calibrate(
    history: History,
    epsilon: float,
    *,
    shares: Mapping[str, float] | None = None,
    eps_error: float = EPS_ERROR,
) -> History:
    """Find the smallest noise multiplier at which the *whole* history stays within ``epsilon``.

    By bracketing the total, over all mechanisms at once: first by a normal limit and by PLD on a coarse grid,
    which are fast, then by both accountants. The result never spends more than ``epsilon`` by PRV or by PLD,
    and at least 99.5 % of it by one of them. Where PRV is out of reach (see `epsilon`), PLD answers alone.

    Parameters
    ----------
    history : History
        Mechanisms with a multiplier of None share the one found; the others keep theirs, and count first.
    epsilon : float
        From ``10 eps_error`` to 100; infinite: the multipliers are 0, the run is not private.
    shares : mapping of str to float, optional
        Separate multipliers for those with None: their shares of the zCDP, summing to 1. ``nu_k`` is
        proportional to ``q_k sqrt(steps_k / share_k)``: exact shares for full batches, to leading order in
        ``q_k^2 / nu_k^2`` with sampling. The total is exact either way.
    eps_error : float
        See `epsilon`; PRV's error is at least a ten-thousandth of what is spent.

    Returns
    -------
    History
        With every multiplier given.

    Warns
    -----
    UserWarning
        If ``delta >= 1 / samples``: publishing one sample at random would satisfy it.

    Raises
    ------
    ValueError
        If the target is out of range, or the fixed mechanisms alone spend it; with sampling, if delta is
        below 2e-15 per step, where rounding decides, or at least the chance that a sample is ever drawn.

    Examples
    --------
    >>> from empirical.history import plan
    >>> found = calibrate(plan(1000, 100, delta=1e-4, epochs=10, lp_share=0.25), epsilon=1.0)
    >>> 0.995 <= epsilon(found) <= 1.0
    True
    >>> found["lp"].noise_multiplier == found["fft"].noise_multiplier
    True
    """
    free = [m for m in history.mechanisms if m.noise_multiplier is None]
    if not free:
        raise ValueError("noise_multiplier must be None in the mechanisms to calibrate, got none of them")
    weights = _weights(free, shares)
    if history.samples is not None and history.delta >= 1 / history.samples:
        warnings.warn(
            f"delta should be below 1 / samples = {1 / history.samples:g}, got {history.delta:g}: "
            "publishing a sample at random would be as private",
            stacklevel=2,
        )

    def with_noise(nu: float) -> History:
        return replace(
            history,
            mechanisms=[
                m if m.noise_multiplier is not None else replace(m, noise_multiplier=nu * weights[m.name])
                for m in history.mechanisms
            ],
        )

    if epsilon == math.inf:
        return with_noise(0.0)
    _require_attainable(history, epsilon, eps_error)
    start = math.sqrt(sum(m.steps / weights[m.name] ** 2 for m in free)) * max(1.0, 3 / epsilon)
    if all(m.sample_rate == 1.0 for m in history.mechanisms):
        exact = _search(lambda nu: _exact(with_noise(nu)), start, USED * epsilon, epsilon)
        return with_noise(exact)
    _require_reach(with_noise(1.0))
    goal = (epsilon - eps_error) * (1 - 5e-4)
    limit = _search(lambda nu: _normal_limit(with_noise(nu)), start, 0.9 * goal, goal)
    near = _search(
        lambda nu: pld_epsilon(events_of(with_noise(nu)), history.delta, 1e-3 * goal),
        limit,
        goal * (1 - 1e-3),
        goal,
    )
    found = _search(
        lambda nu: account(with_noise(nu), eps_error=eps_error).epsilon, near, USED * epsilon, epsilon
    )
    return with_noise(found)


def _require_attainable(history: History, epsilon: float, eps_error: float) -> None:
    """Refuse a target out of range, or one that the mechanisms with a given multiplier spend alone."""
    _validate.positive("epsilon", epsilon)
    _validate.positive("eps_error", eps_error)
    if epsilon < 10 * eps_error:
        raise ValueError(
            f"epsilon must be at least {10 * eps_error:g}, ten times the accountant's eps_error, got "
            f"{epsilon:g}: use a larger epsilon (or in Python a smaller eps_error)"
        )
    if epsilon > _LARGEST_EPSILON:
        raise ValueError(
            f"epsilon must be at most {_LARGEST_EPSILON:g} or infinite, got {epsilon:g}: a larger one "
            "protects nothing; pass math.inf for no noise"
        )
    fixed = replace(history, mechanisms=[m for m in history.mechanisms if m.noise_multiplier is not None])
    spent = account(fixed, eps_error=eps_error).epsilon if fixed.mechanisms else 0.0
    if spent >= epsilon:
        raise ValueError(
            f"epsilon must exceed {spent:.4g}, which the mechanisms with a given noise_multiplier spend "
            f"alone, got {epsilon:g}: give them more noise, or set their noise_multiplier to None"
        )


def _require_reach(history: History) -> None:
    """Refuse a delta at which no multiplier of these sampled steps has an epsilon that can be computed."""
    events, delta = events_of(history), history.delta
    least = least_delta(events)
    if delta < least:
        raise ValueError(
            f"delta must be at least {least:.2g} to calibrate {history.steps} step(s) with Poisson sampling, "
            f"got {delta:g}: below it the accountants' rounding errors decide; use a larger delta"
        )
    never = math.fsum(steps * (math.log1p(-q) if q < 1 else -math.inf) for (_, q), steps in events.items())
    if delta >= -math.expm1(never):
        raise ValueError(
            f"delta must be below {-math.expm1(never):.3g}, the chance that a sample is ever drawn, got "
            f"{delta:g}: epsilon is 0 at every noise_multiplier; use a smaller delta"
        )


def _exact(history: History) -> float:
    """Epsilon of full batches."""
    return gdp_epsilon(mu_of(history), history.delta)


def _normal_limit(history: History) -> float:
    """Epsilon were the losses normal, as those of many small steps nearly are: where a search may start."""
    squares = math.fsum(steps * chi_squared(*event) for event, steps in events_of(history).items())
    return gdp_epsilon(min(math.sqrt(squares), mu_of(history)), history.delta)


def _weights(free: Sequence[Mechanism], shares: Mapping[str, float] | None) -> dict[str, float]:
    """Ratios of the multipliers that are to be found, the first being 1."""
    names = [m.name for m in free]
    if shares is None:
        return dict.fromkeys(names, 1.0)
    if set(shares) != set(names):
        raise ValueError(f"shares must name the mechanisms to calibrate, {names}, got {sorted(shares)}")
    for name, share in shares.items():
        _validate.positive(f"shares[{name!r}]", share)
    total = math.fsum(shares.values())
    if abs(total - 1) > 1e-9:
        raise ValueError(f"shares must sum to 1, got {total:g}: divide by their sum")
    raw = {m.name: m.sample_rate * math.sqrt(m.steps / shares[m.name]) for m in free}
    return {name: value / raw[names[0]] for name, value in raw.items()}


def _search(spent: Callable[[float], float], start: float, least: float, most: float) -> float:
    """Return a multiplier that spends from ``least`` to ``most``.

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


@dataclass(frozen=True)
class Report:
    """What a history spends, with everything needed to check the claim.

    Attributes
    ----------
    history : History
    epsilon_prv : float or None
        Upper bound by Opacus's PRV, at error ``eps_error``; None where it cannot answer.
    epsilon_pld : float
        Upper bound by Google's PLD; see `epsilon`.
    eps_error : float
    versions : dict
        Of the accountants.
    reason : str
        Why PRV cannot answer.
    """

    history: History
    epsilon_prv: float | None
    epsilon_pld: float
    eps_error: float
    versions: dict[str, str]
    reason: str = ""

    @property
    def epsilon(self) -> float:
        """The larger of the answers."""
        return max(self.epsilon_pld, self.epsilon_prv or 0.0)

    @property
    def neighbours(self) -> str:
        """The neighbouring relation in words."""
        if self.history.neighbours == "replace":
            return "replace: data sets that differ in one sample's value"
        return "add-remove: data sets that differ by adding or removing one sample"

    @property
    def sampling(self) -> str:
        """The sampling scheme in words."""
        if all(m.sample_rate == 1.0 for m in self.history.mechanisms):
            return "none: all samples in every step"
        return "Poisson: each sample independently with probability sample_rate, in every step"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data; without noise the two epsilons are infinite."""
        return self.history.as_dict() | {
            "neighbours": self.neighbours,
            "sampling": self.sampling,
            "epsilon_prv": self.epsilon_prv,
            "epsilon_pld": self.epsilon_pld,
            "eps_error": self.eps_error,
            "versions": self.versions,
        }

    def __str__(self) -> str:
        h = self.history
        prv = ""
        if self.epsilon_prv is not None:
            prv = f"{self.epsilon_prv:.4f} (PRV, error {self.eps_error:g}), "
        lines = [f"epsilon {prv}{self.epsilon_pld:.4f} (PLD), at delta {h.delta:g}"]
        lines += [f"no PRV: {self.reason}"] if self.reason else []
        if h.samples is not None:
            size = f"{h.samples} samples"
            if h.delta >= 1 / h.samples:
                size += f"; delta is NOT below 1 / samples = {1 / h.samples:g}"
            lines.append(size)
        for m in h.mechanisms:
            clip = "not stated" if m.clip is None else f"{m.clip:g}"
            lines.append(
                f"{m.name}: {m.steps} step(s), sample rate {m.sample_rate:.6g}, "
                f"noise multiplier {m.noise_multiplier:.6g}, clip {clip}"
            )
        lines += [f"neighbours: {self.neighbours}", f"sampling: {self.sampling}"]
        lines.append("accountants: " + ", ".join(f"{name} {v}" for name, v in self.versions.items()))
        return "\n".join(lines)


def account(history: History, *, eps_error: float = EPS_ERROR) -> Report:
    """Account for a history with both accountants.

    Parameters
    ----------
    history : History
        With every noise multiplier given: a calibrated plan, or what a `empirical.ledger.Ledger` has claimed.
    eps_error : float
        See `epsilon`; at least a ten-thousandth of PLD's answer.

    Examples
    --------
    >>> from empirical.history import plan
    >>> print(account(plan(1000, 100, delta=1e-4, steps=100, noise_multiplier=4.0, clip=1.0)))
    epsilon 0.8164 (PRV, error 0.001), 0.8154 (PLD), at delta 0.0001
    1000 samples
    fft: 100 step(s), sample rate 0.1, noise multiplier 4, clip 1
    neighbours: add-remove: data sets that differ by adding or removing one sample
    sampling: Poisson: each sample independently with probability sample_rate, in every step
    accountants: opacus ..., dp-accounting ...
    """
    pld = epsilon(history, accountant="pld")
    found, reason = None, ""
    eps_error = max(eps_error, _RELATIVE_ERROR * pld) if pld < math.inf else eps_error
    try:
        found = epsilon(history, eps_error=eps_error)
    except (OutOfReachError, MemoryError) as error:
        reason = str(error)
    versions = {name: version(name) for name in ("opacus", "dp-accounting")}
    return Report(history, found, pld, eps_error, versions, reason)
