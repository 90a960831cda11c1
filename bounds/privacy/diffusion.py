"""Privacy of the clipped Langevin diffusion (section 2), which depends only on time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from numpy.typing import ArrayLike

from bounds.privacy.gaussian import gdp_delta, gdp_epsilon, gdp_mu, validate_delta
from bounds.privacy.neighbours import Neighbours, sensitivity
from langevin.model.schedule import Phase, Schedule
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
        If a phase does not clip, or has a sample rate below 1: the subsampled chain needs an accountant.

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


def delta(schedule: Schedule, epsilon: float, *, neighbours: Neighbours = "add-remove") -> float:
    """``delta`` at which the path is ``(epsilon, delta)``-differentially private.

    Re-derived; replaces Theorem 4.1 of [1]_: `gdp`, then `gdp_delta`; tight in the worst case.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> round(delta(Schedule.fft(time=2.0, sigma=1.0, clip=1.0), 1.0), 6)
    0.126937
    """
    return gdp_delta(gdp(schedule, neighbours=neighbours), epsilon)


def epsilon(schedule: Schedule, delta: float, *, neighbours: Neighbours = "add-remove") -> float:
    """``epsilon`` at which the path is ``(epsilon, delta)``-differentially private.

    Re-derived; replaces Theorem 4.1 of [1]_: `gdp`, then `gdp_epsilon`; tight in the worst
    case.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> round(epsilon(Schedule.fft(time=2.0, sigma=5.0, clip=1.0), 1e-5), 3)
    0.726
    """
    return gdp_epsilon(gdp(schedule, neighbours=neighbours), delta)


def calibrate(
    schedule: Schedule,
    solve: Literal["sigma", "time", "clip"],
    *,
    epsilon: float,
    delta: float,
    neighbours: Neighbours = "add-remove",
) -> Schedule:
    """Scale one quantity of all phases so that the path spends exactly ``(epsilon, delta)``.

    Re-derived; replaces Theorem 4.1 of [1]_, solved backwards: ``mu`` is proportional to
    ``1/sigma``, to ``clip`` and to the square root of ``time`` (`gdp`), so one common factor solves each;
    it is rounded to the private side.

    Parameters
    ----------
    schedule : Schedule
        Gives the ratios between the phases and all that is not solved for. Each phase must clip and,
        whatever is solved for, have ``sigma > 0``.
    solve : {"sigma", "time", "clip"}
        What to scale.
    epsilon, delta : float
        The target; both positive.

    Returns
    -------
    Schedule
        With ``bounds.epsilon(result, delta) <= epsilon``, equal to a relative 1e-8 unless delta is next to 0
        or 1, or epsilon huge.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> target = calibrate(Schedule.fft(time=2.0, sigma=1.0, clip=1.0), "sigma", epsilon=1.0, delta=1e-5)
    >>> round(target.phases[0].sigma, 3)
    3.731
    """
    validate.choice("solve", solve, ("sigma", "time", "clip"))
    epsilon = validate.positive("epsilon", epsilon)
    delta = validate_delta(delta)
    mu = gdp(schedule, neighbours=neighbours)
    if math.isinf(mu):
        raise ValueError("sigma must be positive in every phase to calibrate it, got 0.0")
    # stay on the private side of the root
    wanted, slack = gdp_mu(epsilon, delta), 1e-10
    while True:
        factor = wanted / mu * (1 - slack)
        scale = {"sigma": 1 / factor, "time": factor**2, "clip": factor}[solve]
        found = Schedule([_scaled(phase, solve, scale) for phase in schedule])
        # the root is less certain where delta is next to 0 or 1, or epsilon huge
        if slack > 0.1 or gdp_epsilon(gdp(found, neighbours=neighbours), delta) <= epsilon:
            return found
        slack *= 2


def _scaled(phase: Phase, name: str, factor: float) -> Phase:
    return replace(phase, **{name: getattr(phase, name) * factor})
