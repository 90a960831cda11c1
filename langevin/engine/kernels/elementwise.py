"""Code of the tables' activations and losses at addresses, which the compiled step loops call.

So one compilation of the loops serves all entries, including those registered at run time. Code made here is
never kept on disk.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import functools
import math
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core.errors import NumbaError
from numba.extending import overload

from langevin.model import activations
from langevin.model.activations import Activation
from langevin.model.losses import Loss

_JIT: dict[str, Any] = dict(nopython=True, error_model="numpy")


@overload(activations.erf)
def _erf(z):
    return lambda z: math.erf(z)


@functools.cache
def rows(activation: Activation, dtype: type) -> Any:
    """Code that writes ``phi(z)`` and ``phi'(z)`` of ``count`` numbers; its address is ``.address``."""
    value, slope = numba.njit(activation.value), numba.njit(activation.slope)
    number = types.CPointer(types.float64 if dtype is np.float64 else types.float32)

    def code(z: Any, a: Any, derivative: Any, count: Any) -> None:
        for j in range(count):
            x = z[j]
            a[j] = value(x)
            derivative[j] = slope(x)

    return _compile(code, types.void(number, number, number, types.intp), "activation", activation.name)


@functools.cache
def scalar(loss: Loss, derivative: bool) -> Any:
    """Code of ``loss.value(f, y)``, or of its ``derivative`` in ``f``, in double precision."""
    function = numba.njit(loss.residual if derivative else loss.value)
    number = types.float64
    return _compile(lambda f, y: function(f, y), number(number, number), "loss", loss.name)


def _compile(code: Any, signature: Any, kind: str, name: str) -> Any:
    try:
        return numba.cfunc(signature, **_JIT)(code)
    except NumbaError as error:
        raise TypeError(
            f"{kind} {name!r} must be written in elementwise functions that numba compiles for single "
            f"numbers, such as NumPy's: {str(error).strip().splitlines()[-1]}"
        ) from error
