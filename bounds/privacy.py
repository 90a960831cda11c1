"""Privacy of the clipped Langevin diffusion (section 2): the budget is spent by time alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from numpy.typing import ArrayLike
from scipy.special import erfcx, log_ndtr, ndtri

from bounds.support.numeric import root
from langevin import _validate
from langevin._validate import FloatArray
from langevin.schedule import DPSGD, Phase, Schedule

Neighbours = Literal["add-remove", "replace"]

NEIGHBOURS = ("add-remove", "replace")
# below it, the two terms of a Gaussian mechanism's delta cancel to fewer than ten digits
_SMALL = 1e-3


def sensitivity(phase: Phase, neighbours: Neighbours = "add-remove") -> float:
    """Largest distance between the drifts of two neighbouring data sets.

    ``C`` if neighbours differ by one sample more or less, ``2C`` if one sample is replaced; flat and
    normalised clipping both bound a sample's part by ``C``.

    Raises
    ------
    ValueError
        Without clipping: the sensitivity is infinite, no noise gives privacy.
    """
    _validate.choice("neighbours", neighbours, NEIGHBOURS)
    if phase.clip is None:
        raise ValueError(
            f"clip must be positive for privacy, got None in the phase '{phase}': "
            "without clipping one sample can move the drift without limit"
        )
    return phase.clip if neighbours == "add-remove" else 2 * phase.clip


def zcdp(schedule: Schedule, *, neighbours: Neighbours = "add-remove") -> float:
    r"""``rho`` of the zero-concentrated differential privacy of the whole path.

    Re-derived; in the place of Theorem 4.1 of [1]_: releasing the path of phases ``k`` is
    ``sum_k Delta_k^2 T_k / (4 sigma_k^2)``-zCDP (Girsanov), ``Delta`` the `sensitivity`. It does not
    depend on the data, the network or the method, and is the same for every chain of full-batch
    Euler-Maruyama steps.

    Parameters
    ----------
    schedule : Schedule
        Phases; each must clip. With ``sigma = 0`` the answer is infinite.
    neighbours : {"add-remove", "replace"}
        Neighbouring data sets differ by one sample more or less, or in one sample's value.

    Raises
    ------
    ValueError
        If a phase does not clip.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> round(zcdp(Schedule.lp_fft(lp_time=0.5, fft_time=1.5, sigma=5.0, clip=1.0)), 6)
    0.02
    """
    total = 0.0
    for phase in _validate.original("schedule", schedule, Schedule):
        gap = sensitivity(phase, neighbours)
        if phase.sigma == 0.0:
            return math.inf
        ratio = gap / phase.sigma
        # infinite beyond the range of doubles
        total += ratio * ratio * phase.time / 4
    return total


def gdp(schedule: Schedule, *, neighbours: Neighbours = "add-remove") -> float:
    r"""``mu`` of the Gaussian differential privacy of the whole path.

    Re-derived; in the place of Theorem 4.1 of [1]_: ``mu^2 = sum_k Delta_k^2 T_k / (2 sigma_k^2)``,
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

    Re-derived; in the place of Theorem 4.1 of [1]_: the same as ``alpha rho`` with `zcdp`'s ``rho``.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> renyi(Schedule.fft(time=2.0, sigma=5.0, clip=1.0), [2, 16])
    array([0.04, 0.32])
    """
    alpha = _validate.array("orders", orders, 1)
    if not (alpha > 1).all():
        raise ValueError(f"orders must all exceed 1, got {alpha.min()}")
    return alpha * zcdp(schedule, neighbours=neighbours)


def gdp_delta(mu: float, epsilon: float) -> float:
    r"""``delta(epsilon)`` of a ``mu``-GDP mechanism.

    ``Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2)`` [2]_, exact for the Gaussian mechanism.

    References
    ----------
    .. [2] Dong, Roth, Su, "Gaussian differential privacy", arXiv:1905.02383, corollary 2.13.

    Examples
    --------
    >>> round(gdp_delta(1.0, 1.0), 6)
    0.126937
    """
    epsilon, mu = _validate.non_negative("epsilon", epsilon), _mu(mu)
    if mu == 0.0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    if mu < _SMALL:
        return _small_gdp_delta(mu, epsilon)
    high = float(log_ndtr(-epsilon / mu + mu / 2))
    if high == -math.inf:
        return 0.0
    low = epsilon + float(log_ndtr(-epsilon / mu - mu / 2))
    # the difference of the logarithms is negative but can round to 0
    return -math.exp(high) * math.expm1(min(low - high, 0.0))


def _small_gdp_delta(mu: float, epsilon: float) -> float:
    """`gdp_delta` where its two terms nearly cancel.

    ``e^(-(eps/mu - mu/2)^2 / 2) / 2`` times the integral of ``-erfcx'`` over ``(eps/mu -+ mu/2) / sqrt(2)``,
    by Gauss's rule of two points, whose relative error is of order ``mu^4``.
    """
    far = epsilon / mu - mu / 2
    if far > 40:
        return 0.0  # below the least double
    middle, half = epsilon / mu / math.sqrt(2), mu / math.sqrt(8)
    nodes = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    slopes = (2 / math.sqrt(math.pi) - 2 * x * float(erfcx(x)) for x in nodes)
    return 0.5 * math.exp(-far * far / 2) * half * math.fsum(slopes)


def gdp_epsilon(mu: float, delta: float) -> float:
    """Smallest ``epsilon >= 0`` at which a ``mu``-GDP mechanism is ``(epsilon, delta)``-private.

    The inverse of `gdp_delta` [2]_, rounded up by the root finder's tolerance (a relative 1e-12).

    References
    ----------
    .. [2] Dong, Roth, Su, "Gaussian differential privacy", arXiv:1905.02383, corollary 2.13.

    Examples
    --------
    >>> round(gdp_epsilon(1.0, 0.126937), 4)
    1.0
    """
    delta, mu = _validate_delta(delta), _mu(mu)
    if math.isinf(mu):
        return math.inf
    if mu == 0.0 or gdp_delta(mu, 0.0) <= delta:
        return 0.0
    # delta(eps) <= Phi(-eps/mu + mu/2), so this end is private enough
    top = mu * (mu / 2 - float(ndtri(delta)) + 1.0)
    # but for rounding, where mu is huge
    while math.isfinite(top) and gdp_delta(mu, top) > delta:
        top *= 2
    if math.isinf(top):
        return top
    # in units of mu, which may be small
    result = mu * root(lambda a: gdp_delta(mu, a * mu) - delta, 0.0, top / mu)
    step = 1e-13 * max(min(mu, 1.0), result)
    while gdp_delta(mu, result) > delta and result < top:
        result, step = result + step, 2 * step
    return result


def _mu(mu: float) -> float:
    """Return ``mu`` as a number from 0 to infinity."""
    return math.inf if isinstance(mu, float) and mu == math.inf else _validate.non_negative("mu", mu)


def _validate_delta(delta: float) -> float:
    delta = _validate.positive("delta", delta)
    if delta >= 1:
        raise ValueError(f"delta must be below 1, got {delta}")
    return delta


def delta(schedule: Schedule, epsilon: float, *, neighbours: Neighbours = "add-remove") -> float:
    """``delta`` at which the path is ``(epsilon, delta)``-differentially private.

    Re-derived; in the place of Theorem 4.1 of [1]_: `gdp`, then `gdp_delta`; tight in the worst case.

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

    Re-derived; in the place of Theorem 4.1 of [1]_: `gdp`, then `gdp_epsilon`; tight in the worst
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

    Re-derived; in the place of Theorem 4.1 of [1]_, solved backwards: ``mu`` is proportional to
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
    _validate.choice("solve", solve, ("sigma", "time", "clip"))
    epsilon = _validate.positive("epsilon", epsilon)
    delta = _validate_delta(delta)
    mu = gdp(schedule, neighbours=neighbours)
    if math.isinf(mu):
        raise ValueError("sigma must be positive in every phase to calibrate it, got 0.0")
    low = 1.0
    while gdp_delta(low, epsilon) >= delta:
        low /= 2
        if low < 1e-300:
            raise ValueError(
                f"delta must be larger to be met, got {delta:g}: less protects from nothing more"
            )
    while gdp_delta(2 * low, epsilon) < delta:
        low *= 2
    # delta increases with mu; stay on the private side of the root
    wanted, slack = low * (1 + root(lambda x: gdp_delta(low * (1 + x), epsilon) - delta, 0.0, 1.0)), 1e-10
    while True:
        factor = wanted / mu * (1 - slack)
        scale = {"sigma": 1 / factor, "time": factor**2, "clip": factor}[solve]
        found = Schedule([_scaled(phase, solve, scale) for phase in schedule])
        # the root is less certain where delta is next to 0 or 1, or epsilon huge
        if slack > 0.1 or gdp_epsilon(gdp(found, neighbours=neighbours), delta) <= epsilon:
            return found
        slack *= 2


def _scaled(phase: Phase, name: str, factor: float) -> Phase:
    fields = {
        "time": phase.time,
        "sigma": phase.sigma,
        "clip": phase.clip,
        "clipping": phase.clipping,
        "stabiliser": phase.stabiliser,
    }
    fields[name] = fields[name] * factor
    return Phase(phase.method, **fields)


def dpsgd_gdp(phases: DPSGD | Sequence[DPSGD], *, neighbours: Neighbours = "add-remove") -> float:
    """``mu`` of full-batch DP-SGD: ``sqrt(K)/nu`` a phase, twice that if a sample is replaced.

    Exact, by composition of Gaussian mechanisms [2]_, and what `gdp` says of the phase that a
    `langevin.schedule.DPSGD` maps to.

    Raises
    ------
    ValueError
        With Poisson sampling: the diffusion's guarantee *understates* the subsampled mechanism's
        loss, so it is not carried through the map. An accountant for the subsampled Gaussian
        mechanism (such as dp-accounting's PLD accountant) is what that needs.

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
    _validate.choice("neighbours", neighbours, NEIGHBOURS)
    mu = []
    for phase in [phases] if isinstance(phases, DPSGD) else _validate.sequence("phases", phases, DPSGD):
        if not phase.privacy_carries_over:
            raise ValueError(
                f"sample_rate must be None to read privacy off the diffusion, got {phase.sample_rate}: "
                "the map keeps drift and noise but understates the privacy loss of Poisson sampling; "
                "use an accountant for the subsampled Gaussian mechanism"
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
    >>> settings = dict(sigma=5.0, clip=1.0, lp_time=100.0)
    >>> round(last_iterate_gdp(weight_decay=1.0, **settings), 3)
    0.2
    >>> round(gdp(Schedule.lp(time=100.0, sigma=5.0, clip=1.0)), 3)
    1.414
    """
    decay = _validate.positive("weight_decay", weight_decay)
    sigma, lp_time = _validate.positive("sigma", sigma), _validate.positive("lp_time", lp_time)
    fft_time = _validate.non_negative("fft_time", fft_time)
    gap = sensitivity(Phase("lp", lp_time, sigma, clip), neighbours)
    if dt is not None:
        dt = _validate.positive("dt", dt)
        if smoothness is None:
            raise ValueError(
                "smoothness must be given with dt, got None: the chain needs dt <= 2/(lambda + M)"
            )
        smoothness = _validate.positive("smoothness", smoothness)
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
