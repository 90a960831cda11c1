"""Privacy of a schedule's chain of Poisson batches, by the accountants, and the noise for a budget."""

from __future__ import annotations

from dataclasses import replace

from empirical.privacy.calibrate import calibrate
from empirical.privacy.history import History, Mechanism
from empirical.privacy.report import Report, account
from langevin.model.dpsgd import DPSGD
from langevin.model.schedule import Phase, Schedule


def _dpsgd(phase: Phase, dt: float, samples: int) -> DPSGD:
    # the sensitivity is C in every form of clipping
    return DPSGD.from_phase(replace(phase, clipping="flat"), dt=dt, samples=samples)


def account_schedule(schedule: Schedule, *, dt: float, samples: int, delta: float) -> Report:
    """Account for the Euler-Maruyama chain of a schedule, whose batches may be Poisson samples.

    Parameters
    ----------
    schedule : Schedule
        Every phase must clip.
    dt : float
        Step of the chain, in units of diffusion time.
    samples : int
        ``n``.
    delta : float

    Examples
    --------
    >>> from langevin import Schedule
    >>> schedule = Schedule.lp(time=0.1, sigma=2.0, clip=1.0, sample_rate=0.1)
    >>> print(account_schedule(schedule, dt=0.001, samples=1000, delta=1e-4).history.steps)
    100
    """
    return account(History.from_dpsgd([_dpsgd(phase, dt, samples) for phase in schedule], delta))


def calibrate_schedule(
    schedule: Schedule, *, dt: float, samples: int, epsilon: float, delta: float
) -> Schedule:
    """Return a schedule with the noise at which its chain spends ``epsilon``, by both accountants.

    All phases get the same noise multiplier ``nu``, and ``sigma = nu C sqrt(dt) / (q sqrt(2))``. See
    `calibrate` for what is spent at least, and for the errors.

    Examples
    --------
    >>> from langevin import Schedule
    >>> schedule = Schedule.lp(time=0.1, clip=1.0, sample_rate=0.1)
    >>> given = dict(dt=0.001, samples=1000, delta=1e-4)
    >>> found = calibrate_schedule(schedule, epsilon=1.0, **given)
    >>> 0.99 < account_schedule(found, **given).epsilon <= 1
    True
    """
    chains = [_dpsgd(phase, dt, samples) for phase in schedule]
    free = [
        Mechanism(f"phase {i}", chain.sample_rate or 1.0, chain.steps, clip=chain.clip)
        for i, chain in enumerate(chains)
    ]
    found = calibrate(History(free, delta, samples), epsilon).mechanisms
    noisy = [
        replace(chain, noise_multiplier=mechanism.noise_multiplier)
        for chain, mechanism in zip(chains, found, strict=True)
    ]
    return Schedule(
        [
            replace(phase, sigma=chain.phase(phase.method).sigma)
            for phase, chain in zip(schedule, noisy, strict=True)
        ]
    )
