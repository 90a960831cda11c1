"""Privacy of Poisson-sampled DP-SGD in phases: what a history spends, the noise that a budget needs.

Opacus's PRV accountant [1]_ says what is spent, as an upper bound; Google's PLD accountant [2]_ checks it, in
both directions (a sample added, a sample removed). Both read the same `History`: exactly the sampling rates
and the numbers of steps that it names. They are imported where they are used.

References
----------
.. [1] Gopi, Lee, Wutschitz, "Numerical composition of differential privacy", arXiv:2106.02848.
.. [2] Doroshenko, Ghazi, Kamath, Kumar, Manurangsi, "Connect the dots: tighter discrete approximations of
   privacy loss distributions", arXiv:2207.04380.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Literal

from empirical.history import History, Mechanism
from langevin import _validate

Accountant = Literal["prv", "pld", "gdp"]

ACCOUNTANTS = ("prv", "pld", "gdp")
# error of the PRV accountant in epsilon, which its upper bound includes
EPS_ERROR = 1e-3
# step of the PLD accountant's grid of privacy losses
_INTERVAL = 1e-4
# share of the target that a calibrated history spends at least
USED = 0.995
_LARGEST_EPSILON = 100.0
_LARGEST_NOISE = 1e6


def _events(history: History) -> dict[tuple[float, float], int]:
    """Steps by (noise multiplier, rate); all full-batch Gaussians are one, which is exact."""
    events: dict[tuple[float, float], int] = {}
    precision = 0.0
    for m in _validate.instance("history", history, History).mechanisms:
        nu = m.noise_multiplier
        if nu is None:
            raise ValueError(f"noise_multiplier must be given, got None in {m.name!r}: calibrate the history")
        if nu == 0.0:
            return {(0.0, m.sample_rate): m.steps}
        if m.sample_rate == 1.0:
            precision += m.steps / nu**2
        else:
            events[nu, m.sample_rate] = events.get((nu, m.sample_rate), 0) + m.steps
    if precision > 0:
        # one replaced sample moves the sum by two clips
        events[(1 if history.neighbours == "add-remove" else 0.5) / math.sqrt(precision), 1.0] = 1
    return events


def _gdp(history: History) -> float:
    """``mu`` of a full-batch history."""
    events = _events(history)
    rates = [rate for _, rate in events if rate < 1]
    if rates:
        raise ValueError(
            f"accountant must be 'prv' or 'pld' with Poisson sampling, got 'gdp' at sample_rate={rates[0]:g}"
        )
    return sum(1 / nu if nu else math.inf for nu, _ in events)


def _prv(events: Mapping[tuple[float, float], int], delta: float, eps_error: float) -> float:
    import numpy as np
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV, compute_safe_domain_size

    accountant = PRVAccountant()
    accountant.history = [(nu, rate, steps) for (nu, rate), steps in events.items()]
    steps, error = list(events.values()), delta / 1000
    # limits of the logarithm at rate 1, overflow far out in the tails, and hints on orders of RDP, which only
    # sets the width of the grid: all harmless where the answer is finite
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        width = compute_safe_domain_size(
            [PoissonSubsampledGaussianPRV(rate, nu) for nu, rate in events], steps, eps_error, error
        )
        # 23 arrays were measured at the peak for one mechanism, each further one keeps two
        points = 2 * width * math.sqrt(sum(steps) * math.log(12 / error) / 2) / eps_error
        _validate.memory(
            8 * points * (22 + 2 * len(steps)),
            f"the PRV accountant on {points:.2g} points",
            "take a larger eps_error or more noise",
        )
        try:
            result = float(accountant.get_epsilon(delta, eps_error=eps_error, delta_error=error))
        except (ValueError, RuntimeError, OverflowError) as failure:
            raise ValueError(
                f"delta={delta:g} with eps_error={eps_error:g} is out of the PRV accountant's reach "
                f"({failure}): take a larger delta or eps_error"
            ) from failure
    if not math.isfinite(result):
        raise ValueError(
            f"noise_multiplier={min(nu for nu, _ in events):g} is too small for the PRV accountant, whose "
            "answer is not finite: take more noise, or accountant='pld'"
        )
    return max(result, 0.0)


def _pld(events: Mapping[tuple[float, float], int], interval: float = _INTERVAL) -> Any:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    # the grid of one step, eight standard deviations into the tails: composing only adds to it
    points = max((16 / nu + 1 / nu**2) / interval for nu, _ in events)
    remedy = "take more noise; so little protects nothing"
    _validate.memory(80 * points, f"the PLD accountant on {points:.2g} points", remedy)
    accountant = PLDAccountant(value_discretization_interval=interval)
    for (nu, rate), steps in events.items():
        gaussian = GaussianDpEvent(nu)
        accountant.compose(gaussian if rate == 1.0 else PoissonSampledDpEvent(rate, gaussian), steps)
    return accountant


def epsilon(history: History, *, accountant: Accountant = "prv", eps_error: float = EPS_ERROR) -> float:
    """``epsilon`` at which a history is ``(epsilon, delta)``-differentially private, as an upper bound.

    Parameters
    ----------
    history : History
        With every noise multiplier given. Infinite if one of them is 0, 0 without mechanisms.
    accountant : {"prv", "pld", "gdp"}
        Opacus's PRV, Google's PLD, or for full batches the closed form `bounds.gdp_epsilon`, which is exact.
        PRV looks at a sample's removal only, which is the worse direction in all that is known; PLD at both.
    eps_error : float
        Error that "prv" allows itself and adds to its answer. Time and memory grow as its inverse, as the
        square root of the number of steps, and with epsilon.

    Raises
    ------
    ValueError
        If a multiplier is None, for "gdp" with Poisson sampling, or where PRV fails.
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
    if accountant == "gdp":
        from bounds import gdp_epsilon

        return gdp_epsilon(_gdp(history), history.delta)
    events = _events(history)
    if not events:
        return 0.0
    if any(nu == 0.0 for nu, _ in events):
        return math.inf
    if accountant == "prv":
        return _prv(events, history.delta, eps_error)
    return float(_pld(events).get_epsilon(history.delta))


def delta(history: History, epsilon: float, *, accountant: Literal["pld", "gdp"] = "pld") -> float:
    """``delta`` at which a history is ``(epsilon, delta)``-private; its own ``delta`` plays no part.

    An upper bound by Google's PLD, or for full batches by `bounds.gdp_delta`; 1 without noise.

    Examples
    --------
    >>> history = History([Mechanism("fft", 0.1, 100, 2.0)], delta=1e-5)
    >>> f"{delta(history, epsilon=2.0):.1e}"
    '8.2e-05'
    """
    _validate.choice("accountant", accountant, ("pld", "gdp"))
    epsilon = _validate.non_negative("epsilon", epsilon)
    if accountant == "gdp":
        from bounds import gdp_delta

        return gdp_delta(_gdp(history), epsilon)
    events = _events(history)
    if not events:
        return 0.0
    if any(nu == 0.0 for nu, _ in events):
        return 1.0
    return float(_pld(events).get_delta(epsilon))


def calibrate(
    history: History,
    epsilon: float,
    *,
    shares: Mapping[str, float] | None = None,
    eps_error: float = EPS_ERROR,
) -> History:
    """Find the smallest noise multiplier at which the *whole* history keeps within ``epsilon``.

    By bracketing the total, over all mechanisms at once: first by PLD, which is fast, then by both. The
    result never spends more than ``epsilon`` by PRV or by PLD, and at least 99.5 % of it by one of them.

    Parameters
    ----------
    history : History
        Mechanisms with a multiplier of None share the one found; the others keep theirs, and pay first.
    epsilon : float
        From ``10 eps_error`` to 100; infinite: the multipliers are 0, the run is not private.
    shares : mapping of str to float, optional
        Separate multipliers for those with None: their shares of the zCDP, summing to 1. ``nu_k`` is
        proportional to ``q_k sqrt(steps_k / share_k)``: exact shares for full batches, to leading order in
        ``q_k^2 / nu_k^2`` with sampling. The total is exact either way.
    eps_error : float
        See `epsilon`.

    Returns
    -------
    History
        With every multiplier given.

    Warns
    -----
    UserWarning
        If ``delta >= 1 / samples``: publishing one sample at random would pass.

    Raises
    ------
    ValueError
        If the target is out of range, or the fixed mechanisms alone spend it.

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
    epsilon, eps_error = _validate.positive("epsilon", epsilon), _validate.positive("eps_error", eps_error)
    if epsilon < 10 * eps_error:
        raise ValueError(
            f"epsilon must be at least {10 * eps_error:g}, ten times the accountant's eps_error, got "
            f"{epsilon:g}: take a larger one (or in Python a smaller eps_error)"
        )
    if epsilon > _LARGEST_EPSILON:
        raise ValueError(
            f"epsilon must be at most {_LARGEST_EPSILON:g} or infinite, got {epsilon:g}: beyond that it "
            "protects nothing; give math.inf for no noise"
        )
    fixed = replace(history, mechanisms=[m for m in history.mechanisms if m.noise_multiplier is not None])
    spent = max(_both(fixed, eps_error)) if fixed.mechanisms else 0.0
    if spent >= epsilon:
        raise ValueError(
            f"epsilon must exceed {spent:.4g}, what the mechanisms with a given noise_multiplier "
            f"spend alone, got {epsilon:g}: give them more noise, or None"
        )
    # full batches spend more than sampled ones: from there, the noise can only come down
    start = math.sqrt(sum(m.steps / weights[m.name] ** 2 for m in free)) * max(1.0, 3 / epsilon)
    goal = (epsilon - eps_error) * (1 - 5e-4)
    # near it on a coarser grid of losses, then by both accountants
    grid = max(_INTERVAL, 1e-3 * goal)
    near = _search(
        lambda nu: float(_pld(_events(with_noise(nu)), grid).get_epsilon(history.delta)),
        start,
        goal * (1 - 1e-3),
        goal,
    )
    found = _search(lambda nu: max(_both(with_noise(nu), eps_error)), near, USED * epsilon, epsilon)
    return with_noise(found)


def _both(history: History, eps_error: float) -> tuple[float, float]:
    """Epsilon by PRV and by PLD."""
    return epsilon(history, eps_error=eps_error), epsilon(history, accountant="pld")


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
        f"which is spent at no multiplier near {nu:g}: take a larger epsilon or fewer steps"
    )


@dataclass(frozen=True)
class Report:
    """What a history spends, in the terms that make the claim checkable.

    Attributes
    ----------
    history : History
    epsilon_prv, epsilon_pld : float
        Upper bounds by Opacus's PRV, at error ``eps_error``, and by Google's PLD.
    eps_error : float
    versions : dict
        Of the accountants.
    """

    history: History
    epsilon_prv: float
    epsilon_pld: float
    eps_error: float
    versions: dict[str, str]

    @property
    def neighbours(self) -> str:
        """The neighbouring relation in words."""
        if self.history.neighbours == "replace":
            return "replace: data sets that differ in one sample's value"
        return "add-remove: data sets that differ by one sample more or less"

    @property
    def sampling(self) -> str:
        """The sampling scheme in words."""
        if all(m.sample_rate == 1.0 for m in self.history.mechanisms):
            return "none: all samples in every step"
        return "Poisson: each sample independently with probability sample_rate, afresh in every step"

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
        lines = [
            f"epsilon {self.epsilon_prv:.4f} (PRV, error {self.eps_error:g}), {self.epsilon_pld:.4f} (PLD), "
            f"at delta {h.delta:g}"
        ]
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
    """Account for a history by both accountants.

    Parameters
    ----------
    history : History
        With every noise multiplier given: a calibrated plan, or what a `empirical.ledger.Ledger` has claimed.
    eps_error : float
        See `epsilon`.

    Examples
    --------
    >>> from empirical.history import plan
    >>> print(account(plan(1000, 100, delta=1e-4, steps=100, noise_multiplier=4.0, clip=1.0)))
    epsilon 0.8164 (PRV, error 0.001), 0.8154 (PLD), at delta 0.0001
    1000 samples
    fft: 100 step(s), sample rate 0.1, noise multiplier 4, clip 1
    neighbours: add-remove: data sets that differ by one sample more or less
    sampling: Poisson: each sample independently with probability sample_rate, afresh in every step
    accountants: opacus ..., dp-accounting ...
    """
    prv, pld = _both(history, eps_error)
    return Report(history, prv, pld, eps_error, {name: version(name) for name in ("opacus", "dp-accounting")})
