"""The residual of one sample with K outputs, in double precision, to the accuracy of an adaptive method."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

from langevin.engine.kernels.calls import call_scalar
from langevin.engine.kernels.jit import INNER, njit
from langevin.engine.kernels.outputs.types import LOGISTIC, SOFTMAX, SQUARE


@njit(**INNER)
def _softmax_residual(f, y, r):
    """``p - y`` for a one-hot ``y``, without cancellation."""
    largest, total, others = f[0], 0.0, 0.0
    for k in range(1, f.size):
        # a NaN stays: nothing exceeds it, and its own exponential below is NaN
        largest = f[k] if f[k] > largest else largest
    for k in range(f.size):
        r[k] = math.exp(f[k] - largest)
        total += r[k]
        others += r[k] * (1.0 - y[k])
    for k in range(f.size):
        r[k] = r[k] / total * (1.0 - y[k]) - others / total * y[k]


@njit(**INNER)
def sample_residual(f, y, r, data):
    """Write the residual of one sample to ``r``, shape (K,)."""
    if data.loss == SOFTMAX:
        _softmax_residual(f, y, r)
        return
    for k in range(f.size):
        if data.loss == LOGISTIC:
            r[k] = -y[k] / (1.0 + math.exp(y[k] * f[k]))
        elif data.loss == SQUARE:
            r[k] = f[k] - y[k]
        else:
            r[k] = call_scalar(data.residual, f[k], y[k])
