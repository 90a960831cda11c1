"""Small numerical helpers of the bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
from scipy.optimize import brentq


def root(function: Callable[[float], float], low: float, high: float, xtol: float = 1e-15) -> float:
    """Return a root of ``function`` between ``low`` and ``high``, which have values of opposite sign."""
    return float(cast(float, brentq(function, low, high, xtol=xtol, rtol=np.float64(1e-14))))
