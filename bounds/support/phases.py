"""Which times and phases a statement reaches."""

from __future__ import annotations

import numpy as np

from langevin.model.schedule import Schedule
from langevin.model.steps import Grid
from langevin.support.validate import FloatArray


def until(schedule: Schedule, t: FloatArray, good: list[bool], *, start: bool = False) -> np.ndarray:
    """Mark the times up to the end of the leading valid phases.

    Parameters
    ----------
    schedule, t
    good : list of bool
        One for each phase.
    start : bool
        Whether time 0 counts even where the first phase is not good: what is bounded is known there.
    """
    if all(good):
        return np.ones(len(t), dtype=bool)
    lead = good.index(False)
    return (t <= schedule.starts[lead]) & (start or lead > 0)


def probing_first(schedule: Schedule) -> list[bool]:
    """Tell whether each phase is linear probing before any full fine-tuning, with shared features."""
    methods = [phase.method for phase in schedule]
    first = methods.index("fft") if "fft" in methods else len(methods)
    return [k < first for k in range(len(methods))]


def steps_until(cut: Grid, good: list[bool]) -> np.ndarray:
    """Mark the record steps up to the end of the leading valid phases; see `until`."""
    if all(good):
        return np.ones(len(cut.record_steps), dtype=bool)
    lead = good.index(False)
    return (cut.record_steps <= cut.phase_starts[lead]) & (lead > 0)
