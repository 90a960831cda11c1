"""Privacy of full-batch DP-SGD."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bounds.privacy.gaussian import gdp_delta, gdp_epsilon
from bounds.privacy.neighbours import NEIGHBOURS, Neighbours
from langevin.model.dpsgd import DPSGD
from langevin.support import validate


def dpsgd_gdp(phases: DPSGD | Sequence[DPSGD], *, neighbours: Neighbours = "add-remove") -> float:
    """``mu`` of full-batch DP-SGD: ``sqrt(K)/nu`` per phase, twice that if a sample is replaced.

    Exact, by composition of Gaussian mechanisms [2]_, and what `gdp` says of the phase that a
    `langevin.model.dpsgd.DPSGD` maps to.

    Raises
    ------
    ValueError
        With Poisson sampling: the diffusion's guarantee *understates* the subsampled mechanism's
        loss, so it is not carried through the map. Use `epsilon` of its phase with its ``dt``, which asks
        an accountant for the subsampled Gaussian mechanism.

    References
    ----------
    .. [2] Dong, Roth, Su, "Gaussian differential privacy", arXiv:1905.02383, corollary 3.3.

    Examples
    --------
    >>> dpsgd_gdp(DPSGD(learning_rate=0.02, noise_multiplier=50.0, clip=1.0, steps=100))
    0.2
    >>> dpsgd_gdp(DPSGD(0.02, 5.0, 1.0, 100, sample_rate=0.1, samples=1000))
    Traceback (most recent call last):
    ...
    ValueError: sample_rate must be None to read privacy off the diffusion, got 0.1: ...
    """
    validate.choice("neighbours", neighbours, NEIGHBOURS)
    mu = []
    for phase in [phases] if isinstance(phases, DPSGD) else validate.sequence("phases", phases, DPSGD):
        if not phase.privacy_carries_over:
            raise ValueError(
                f"sample_rate must be None to read privacy off the diffusion, got {phase.sample_rate}: "
                "the map keeps drift and noise but understates the privacy loss of Poisson sampling; "
                "use an accountant: bounds.epsilon of its phase, with its dt"
            )
        mu.append(math.sqrt(phase.steps) / phase.noise_multiplier if phase.noise_multiplier else math.inf)
    return math.hypot(*mu) * (1.0 if neighbours == "add-remove" else 2.0)


def dpsgd_epsilon(
    phases: DPSGD | Sequence[DPSGD], delta: float, *, neighbours: Neighbours = "add-remove"
) -> float:
    """``epsilon`` of full-batch DP-SGD at ``delta``; refuses Poisson sampling.

    Exact: `dpsgd_gdp`, then `gdp_epsilon` [2]_.

    References
    ----------
    .. [2] Dong, Roth, Su, "Gaussian differential privacy", arXiv:1905.02383.

    Examples
    --------
    >>> round(dpsgd_epsilon(DPSGD(0.02, 50.0, 1.0, 100), 1e-5), 3)
    0.726
    """
    return gdp_epsilon(dpsgd_gdp(phases, neighbours=neighbours), delta)


def dpsgd_delta(
    phases: DPSGD | Sequence[DPSGD], epsilon: float, *, neighbours: Neighbours = "add-remove"
) -> float:
    """``delta`` of full-batch DP-SGD at ``epsilon``; refuses Poisson sampling.

    Exact: `dpsgd_gdp`, then `gdp_delta` [2]_.

    References
    ----------
    .. [2] Dong, Roth, Su, "Gaussian differential privacy", arXiv:1905.02383.

    Examples
    --------
    >>> round(dpsgd_delta(DPSGD(0.02, 10.0, 1.0, 100), 1.0), 6)
    0.126937
    """
    return gdp_delta(dpsgd_gdp(phases, neighbours=neighbours), epsilon)
