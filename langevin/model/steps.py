"""A schedule cut into steps, and the times at which a run is recorded."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from langevin.model.schedule import Schedule
from langevin.support import validate
from langevin.support.validate import FloatArray


def record_times(schedule: Schedule, times: ArrayLike | None) -> FloatArray:
    """Validate the times requested of a run or a bound.

    Returns
    -------
    ndarray, shape (m,)
        Strictly increasing, within ``[0, schedule.duration]``; equidistant if ``times`` is None.
    """
    validate.original("schedule", schedule, Schedule)
    if times is None:
        return schedule.default_times()
    given: Any = [times] if np.isscalar(times) else times
    t = np.array(validate.array("times", given, 1))
    if (np.diff(t) <= 0).any():
        i = int(np.argmax(np.diff(t) <= 0))
        raise ValueError(f"times must increase strictly, got {t[i]} before {t[i + 1]}")
    end = schedule.duration
    slack = 1e-9 * end
    if t[0] < 0 or t[-1] > end + slack:
        raise ValueError(
            f"times must lie in [0, {end:g}], the schedule's duration, got {t[0]:g} to {t[-1]:g}"
        )
    return t


@dataclass(frozen=True)
class Grid:
    """A schedule and its record times in whole steps of ``dt``.

    Attributes
    ----------
    dt : float
        Step size.
    phase_steps : tuple of int
        Number of steps of each phase; a phase change falls on a step.
    record_steps : ndarray of int64, shape (m,)
        Steps at which observables are recorded, strictly increasing.
    times : ndarray, shape (m,)
        The requested times, each moved to the time of the nearest step.
    """

    dt: float
    phase_steps: tuple[int, ...]
    record_steps: np.ndarray
    times: FloatArray

    @property
    def steps(self) -> int:
        """Total number of steps."""
        return sum(self.phase_steps)

    # asked for at each call into compiled code
    @cached_property
    def phase_starts(self) -> tuple[int, ...]:
        """First step of each phase."""
        return tuple(int(s) for s in np.cumsum((0, *self.phase_steps))[:-1])


def grid(schedule: Schedule, dt: float, times: ArrayLike | None) -> Grid:
    """Divide a schedule into steps of ``dt``.

    A phase whose length is no multiple of ``dt`` is rounded to whole steps with a warning.

    Raises
    ------
    ValueError
        If a phase is shorter than half a step, or two record times fall on one step.
    """
    validate.original("schedule", schedule, Schedule)
    dt = validate.positive("dt", dt)
    phase_steps = []
    for phase in schedule:
        exact = phase.time / dt
        # which may be infinite
        if exact >= 2**32:
            raise ValueError(f"dt must give fewer than 2^32 steps a phase, got {dt:g}: take a larger dt")
        steps = round(exact)
        if steps < 1:
            raise ValueError(
                f"dt must be at most the length of each phase, got {dt:g} for a phase of time "
                f"{phase.time:g}: take dt <= {phase.time:g}"
            )
        if abs(steps - exact) > 1e-6 * max(1.0, exact):
            warnings.warn(
                f"a phase of time {phase.time:g} is no multiple of dt={dt:g}: "
                f"it runs {steps} steps, a time of {steps * dt:g}",
                stacklevel=3,
            )
        phase_steps.append(steps)
    total = sum(phase_steps)
    wanted = record_times(schedule, times)
    record_steps = np.minimum(np.rint(wanted / dt).astype(np.int64), total)
    if times is None:
        record_steps, kept = np.unique(record_steps, return_index=True)
        wanted = wanted[kept]
    repeated = np.diff(record_steps) == 0
    if repeated.any():
        i = int(np.argmax(repeated))
        raise ValueError(
            f"times must be at least one step apart, got {wanted[i]:g} and {wanted[i + 1]:g} with "
            f"dt={dt:g}: take fewer times or a smaller dt"
        )
    on_step = np.abs(wanted - record_steps * dt) <= 1e-6 * dt
    return Grid(dt, tuple(phase_steps), record_steps, np.where(on_step, wanted, record_steps * dt))
