"""The exponential function by polynomials, which loops over numbers vectorise."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

_LOG2E = 1.4426950408889634
# ln 2 in two parts, of which the first times a whole number is exact
_HIGH64, _LOW64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_HIGH32, _LOW32 = np.float32(0.693359375), np.float32(-2.12194440e-4)
# no reassoc, which would add up the two parts of ln 2
_JIT: dict[str, Any] = dict(nogil=True, error_model="numpy", fastmath={"contract", "nsz"}, forceinline=True)
_TAYLOR64 = tuple(1 / math.factorial(k) for k in range(14))
_TAYLOR32 = tuple(np.float32(1 / math.factorial(k)) for k in range(8))


def exponential(x):
    """``exp(x)`` to about a unit in the last place; NaN stays.

    Beyond the range of normal numbers it is the smallest or largest of them, up to a factor of two.
    """
    raise NotImplementedError("compiled code only")


@overload(exponential, jit_options=_JIT)
def _exponential_overload(x):
    if x == types.float32:

        def single(x):
            low, high = np.float32(-87.0), np.float32(88.0)
            # x < low, not x > low: a NaN has to pass
            x = low if x < low else x
            x = high if x > high else x
            n = np.float32(math.floor(x * np.float32(_LOG2E) + np.float32(0.5)))
            r = (x - n * _HIGH32) - n * _LOW32
            t = _TAYLOR32
            p = t[3] + r * (t[4] + r * (t[5] + r * (t[6] + r * t[7])))
            p = t[0] + r * (t[1] + r * (t[2] + r * p))
            return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)

        return single

    def double(x):
        x = -708.0 if x < -708.0 else x
        x = 709.0 if x > 709.0 else x
        n = np.float64(math.floor(x * _LOG2E + 0.5))
        r = (x - n * _HIGH64) - n * _LOW64
        t = _TAYLOR64
        p = t[8] + r * (t[9] + r * (t[10] + r * (t[11] + r * (t[12] + r * t[13]))))
        p = t[4] + r * (t[5] + r * (t[6] + r * (t[7] + r * p)))
        p = t[0] + r * (t[1] + r * (t[2] + r * (t[3] + r * p)))
        return p * np.int64((np.int64(n) + np.int64(1023)) << np.int64(52)).view(np.float64)

    return double
