"""Small numerical helpers of the bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
from scipy.optimize import brentq

from langevin.support.validate import FloatArray


def root(function: Callable[[float], float], low: float, high: float, xtol: float = 1e-15) -> float:
    """Return a root of ``function`` between ``low`` and ``high``, which have values of opposite sign."""
    return float(cast(float, brentq(function, low, high, xtol=xtol, rtol=np.float64(1e-14))))


def patient(rate: Callable[..., FloatArray], most: int = 300_000) -> Callable[..., FloatArray]:
    """Return a right-hand side that raises an error after ``most`` evaluations.

    Raises
    ------
    ArithmeticError
        Then: the equation is too stiff for an explicit method.
    """
    done = 0

    def counted(t: float, y: FloatArray) -> FloatArray:
        nonlocal done
        done += 1
        if done > most:
            raise ArithmeticError(
                f"the flow is too stiff to integrate beyond time {t:g} of a phase: take less time, a clip, "
                "or smaller inputs or weights"
            )
        return rate(t, y)

    return counted
