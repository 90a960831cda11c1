"""Opacus's PRV accountant of composed Poisson-sampled Gaussian mechanisms, next to those of `bounds`.

It composes numerically [1]_.

References
----------
.. [1] Gopi, Lee, Wutschitz, "Numerical composition of differential privacy", arXiv:2106.02848.
"""

from __future__ import annotations

import math
import warnings

import numpy as np

from bounds.privacy.subsampled import MOST_POINTS, Events, OutOfReachError, least_delta, rounding
from langevin.support import validate


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
        if points > MOST_POINTS:
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
