"""Privacy of the clipped Langevin diffusion (section 2), which depends only on time."""

from __future__ import annotations

import math

from numpy.typing import ArrayLike

from bounds.privacy.neighbours import Neighbours, sensitivity
from langevin.model.schedule import Schedule
from langevin.support import validate
from langevin.support.validate import FloatArray


def zcdp(schedule: Schedule, *, neighbours: Neighbours = "add-remove") -> float:
    r"""``rho`` of the zero-concentrated differential privacy of the whole path.

    Re-derived; replaces Theorem 4.1 of [1]_: releasing the path of phases ``k`` is
    ``sum_k Delta_k^2 T_k / (4 sigma_k^2)``-zCDP (Girsanov), ``Delta`` the `sensitivity`. It does not
    depend on the data, the network or the method, and is the same for every chain of full-batch
    Euler-Maruyama steps.

    Parameters
    ----------
    schedule : Schedule
        Phases; each must clip, and none sample batches. With ``sigma = 0`` the answer is infinite.
    neighbours : {"add-remove", "replace"}
        Neighbouring data sets differ by one sample more or less, or in one sample's value.

    Raises
    ------
    ValueError
        If a phase does not clip, or has a sample rate below 1: the subsampled chain needs an accountant,
        see `epsilon`.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> round(zcdp(Schedule.lp_fft(lp_time=0.5, fft_time=1.5, sigma=5.0, clip=1.0)), 6)
    0.02
    """
    total = 0.0
    for phase in validate.original("schedule", schedule, Schedule):
        gap = sensitivity(phase, neighbours)
        if phase.sigma == 0.0:
            return math.inf
        ratio = gap / phase.sigma
        # infinite beyond the range of doubles
        total += ratio * ratio * phase.time / 4
    return total


def gdp(schedule: Schedule, *, neighbours: Neighbours = "add-remove") -> float:
    r"""``mu`` of the Gaussian differential privacy of the whole path.

    Re-derived; replaces Theorem 4.1 of [1]_: ``mu^2 = sum_k Delta_k^2 T_k / (2 sigma_k^2)``,
    tight in the worst case over data. See `zcdp` for arguments, conditions and errors.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> round(gdp(Schedule.fft(time=2.0, sigma=5.0, clip=1.0)), 6)
    0.2
    """
    return math.sqrt(2 * zcdp(schedule, neighbours=neighbours))


def renyi(schedule: Schedule, orders: ArrayLike, *, neighbours: Neighbours = "add-remove") -> FloatArray:
    """Renyi divergence ``alpha Delta^2 T / (4 sigma^2)`` at each order ``alpha > 1`` of ``orders``.

    Re-derived; replaces Theorem 4.1 of [1]_: the same as ``alpha rho`` with `zcdp`'s ``rho``.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> renyi(Schedule.fft(time=2.0, sigma=5.0, clip=1.0), [2, 16])
    array([0.04, 0.32])
    """
    alpha = validate.array("orders", orders, 1)
    if not (alpha > 1).all():
        raise ValueError(f"orders must all exceed 1, got {alpha.min()}")
    return alpha * zcdp(schedule, neighbours=neighbours)
