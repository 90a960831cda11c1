"""The noise multiplier for a budget."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bounds.privacy.noise import LARGEST_EPSILON, USED, normal_epsilon, require_reach, search_noise
from bounds.privacy.subsampled import pld_epsilon, spent_epsilon
from empirical.privacy.history import History, Mechanism
from empirical.privacy.report import account
from empirical.privacy.spent import EPS_ERROR, events
from langevin.support import validate


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
    >>> from empirical import epsilon, plan
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
        exact = search_noise(
            lambda nu: spent_epsilon(events(with_noise(nu)), history.delta), start, USED * epsilon, epsilon
        )
        return with_noise(exact)
    require_reach(events(with_noise(1.0)), history.delta)
    goal = (epsilon - eps_error) * (1 - 5e-4)
    limit = search_noise(
        lambda nu: normal_epsilon(events(with_noise(nu)), history.delta), start, 0.9 * goal, goal
    )
    near = search_noise(
        lambda nu: pld_epsilon(events(with_noise(nu)), history.delta, 1e-3 * goal),
        limit,
        goal * (1 - 1e-3),
        goal,
    )
    found = search_noise(
        lambda nu: account(with_noise(nu), eps_error=eps_error).epsilon, near, USED * epsilon, epsilon
    )
    return with_noise(found)


def _require_attainable(history: History, epsilon: float, eps_error: float) -> None:
    """Refuse a target out of range, or one that the mechanisms with a given multiplier spend alone."""
    validate.positive("epsilon", epsilon)
    validate.positive("eps_error", eps_error)
    if epsilon < 10 * eps_error:
        raise ValueError(
            f"epsilon must be at least {10 * eps_error:g}, ten times the accountant's eps_error, got "
            f"{epsilon:g}: use a larger epsilon (or in Python a smaller eps_error)"
        )
    if epsilon > LARGEST_EPSILON:
        raise ValueError(
            f"epsilon must be at most {LARGEST_EPSILON:g} or infinite, got {epsilon:g}: a larger one "
            "protects nothing; pass math.inf for no noise"
        )
    fixed = replace(history, mechanisms=[m for m in history.mechanisms if m.noise_multiplier is not None])
    spent = account(fixed, eps_error=eps_error).epsilon if fixed.mechanisms else 0.0
    if spent >= epsilon:
        raise ValueError(
            f"epsilon must exceed {spent:.4g}, which the mechanisms with a given noise_multiplier spend "
            f"alone, got {epsilon:g}: give them more noise, or set their noise_multiplier to None"
        )


def _weights(free: Sequence[Mechanism], shares: Mapping[str, float] | None) -> dict[str, float]:
    """Return the ratios of the unknown noise multipliers; the first is 1."""
    names = [m.name for m in free]
    if shares is None:
        return dict.fromkeys(names, 1.0)
    if set(shares) != set(names):
        raise ValueError(f"shares must name the mechanisms to calibrate, {names}, got {sorted(shares)}")
    for name, share in shares.items():
        validate.positive(f"shares[{name!r}]", share)
    total = math.fsum(shares.values())
    if abs(total - 1) > 1e-9:
        raise ValueError(f"shares must sum to 1, got {total:g}: divide by their sum")
    raw = {m.name: m.sample_rate * math.sqrt(m.steps / shares[m.name]) for m in free}
    return {name: value / raw[names[0]] for name, value in raw.items()}
