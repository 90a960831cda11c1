"""Privacy of linear probing when only the last head is released (section 2b)."""

from __future__ import annotations

import math

from bounds.privacy.neighbours import Neighbours, sensitivity
from langevin.model.schedule import Phase
from langevin.support import validate


def last_iterate_gdp(
    *,
    weight_decay: float,
    sigma: float,
    clip: float,
    lp_time: float,
    fft_time: float = 0.0,
    dt: float | None = None,
    smoothness: float | None = None,
    neighbours: Neighbours = "add-remove",
) -> float:
    r"""``mu`` of linear probing with weight decay when only the last head is released.

    New here (2b), re-derived as the continuous limit of [2]_. For the head's drift ``-sum_i psi_i(A_i . v)
    A_i - lambda v`` (clipped gradients of convex losses, the decay outside of clipping)

    - diffusion: ``mu^2 = Delta^2 tanh(lambda T / 2) / (lambda sigma^2)``, attained: time ``T`` counts as
      ``(2 / lambda) tanh(lambda T / 2) <= min(T, 2 / lambda)``;
    - chain of ``N`` steps ``dt <= 2 / (lambda + M)``, ``c = 1 - lambda dt``: ``mu^2 = Delta^2 dt (1 - c^N)
      (1 + c) / (2 sigma^2 (1 + c^N)(1 - c))``;
    - full fine-tuning afterwards, path released: ``mu^2`` grows by ``Delta^2 T_ft / (2 sigma^2)``.

    Assumptions
        Features that do not depend on the private data; ``weight_decay > 0`` (without it, and in full
        fine-tuning, releasing only the end gains nothing: use `gdp`).

    Parameters
    ----------
    weight_decay : float
        ``lambda``, per unit time.
    sigma, clip : float
        Noise and flat clipping threshold of both phases.
    lp_time, fft_time : float
        Lengths of linear probing, and of full fine-tuning after it.
    dt : float, optional
        Step of the Euler-Maruyama chain; None: the diffusion.
    smoothness : float, optional
        ``M = lambda + sup psi' lambda_max(A^T A)`` over all data sets that are allowed, ``sup psi'`` 1 for
        the square and 1/4 for the logistic loss; needed with ``dt``.
    neighbours : {"add-remove", "replace"}

    Raises
    ------
    ValueError
        Where the statement does not hold: no weight decay, a step that is too long, or no clipping.

    References
    ----------
    .. [2] Bok, Su, Altschuler, "Shifted interpolation for differential privacy", arXiv:2403.00278.

    Examples
    --------
    >>> from bounds import gdp
    >>> from langevin import Schedule
    >>> settings = dict(sigma=5.0, clip=1.0, lp_time=100.0)
    >>> round(last_iterate_gdp(weight_decay=1.0, **settings), 3)
    0.2
    >>> round(gdp(Schedule.lp(time=100.0, sigma=5.0, clip=1.0)), 3)
    1.414
    """
    decay = validate.positive("weight_decay", weight_decay)
    sigma, lp_time = validate.positive("sigma", sigma), validate.positive("lp_time", lp_time)
    fft_time = validate.non_negative("fft_time", fft_time)
    gap = sensitivity(Phase("lp", lp_time, sigma, clip), neighbours)
    if dt is not None:
        dt = validate.positive("dt", dt)
        if smoothness is None:
            raise ValueError(
                "smoothness must be given with dt, got None: the chain needs dt <= 2/(lambda + M)"
            )
        smoothness = validate.positive("smoothness", smoothness)
        if smoothness < decay:
            raise ValueError(f"smoothness must be at least weight_decay={decay:g}, got {smoothness:g}")
        if dt > 2 / (decay + smoothness):
            raise ValueError(f"dt must be at most 2/(lambda + M) = {2 / (decay + smoothness):g}, got {dt:g}")
    # the limit of short steps, which differ by their product with the decay
    if dt is None or decay * dt < 1e-12:
        probing = math.tanh(decay * lp_time / 2) / decay
    else:
        steps = round(min(lp_time / dt, 2**63))
        c = 1 - decay * dt
        probing = dt / 2 * (1 - c**steps) * (1 + c) / ((1 + c**steps) * (1 - c))
    return gap / sigma * math.sqrt(probing + fft_time / 2)
