"""Times of a bound: of the diffusion, or whole steps of the chain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin.model.schedule import Schedule
from langevin.model.steps import grid, record_times
from langevin.support.validate import FloatArray


@dataclass(frozen=True, eq=False)
class Clock:
    """The times of a band, and how much of each phase they have behind them.

    Attributes
    ----------
    times : ndarray, shape (m,)
        With ``dt`` each at its nearest step, as in a run of `langevin.euler_maruyama`.
    spent : ndarray, shape (phases, m)
        Time in each phase.
    dt : float or None
        Step of the chain; None for the diffusion.
    steps : ndarray of int64, shape (phases, m)
        Steps in each phase; zeros for the diffusion.
    lengths : tuple of int
        Steps of each whole phase; zeros for the diffusion.

    Examples
    --------
    >>> schedule = Schedule.lp_fft(lp_time=0.2, fft_time=0.4)
    >>> clock(schedule, [0.0, 0.2, 0.3], dt=0.1).steps
    array([[0, 2, 2],
           [0, 0, 1]])
    >>> clock(schedule, [0.0, 0.2, 0.3]).until([True, False])
    array([ True,  True, False])
    """

    times: FloatArray
    spent: FloatArray
    dt: float | None
    steps: NDArray[np.int64]
    lengths: tuple[int, ...]

    def until(self, good: list[bool], *, start: bool = False) -> NDArray[np.bool_]:
        """Mark the times up to the end of the leading good phases, like `bounds.support.phases.until`."""
        if all(good):
            return np.ones(len(self.times), dtype=bool)
        lead = good.index(False)
        return (self.spent[lead] == 0) & (start or lead > 0)

    def lead(self, reasons: list[str], *, start: bool = False) -> tuple[int, NDArray[np.bool_], str]:
        """Number of leading phases without a reason against them, their times as in `until`, that reason."""
        reason = next(filter(None, reasons), "")
        count = reasons.index(reason) if reason else len(reasons)
        return count, self.until([not why for why in reasons], start=start), reason

    def phase(self) -> NDArray[np.int64]:
        """Number of the phase that each time is in, shape (m,); a phase's end belongs to it."""
        return np.maximum((self.spent > 0).sum(0) - 1, 0)


def clock(schedule: Schedule, times: ArrayLike | None, dt: float | None = None) -> Clock:
    """Read the times asked of a bound, of the diffusion or of the chain in steps of ``dt``."""
    if dt is None:
        t = record_times(schedule, times)
        spent = schedule.time_in(t)
        return Clock(t, spent, None, np.zeros(spent.shape, dtype=np.int64), (0,) * len(schedule))
    cut = grid(schedule, dt, times)
    starts, lengths = np.array(cut.phase_starts)[:, None], np.array(cut.phase_steps)[:, None]
    steps = np.clip(cut.record_steps - starts, 0, lengths)
    return Clock(cut.times, steps * cut.dt, cut.dt, steps, cut.phase_steps)
