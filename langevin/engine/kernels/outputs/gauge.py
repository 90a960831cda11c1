"""K outputs and K - 1 gauge coordinates: `langevin.model.gauge` in compiled code."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

from langevin.engine.kernels.jit import LINKED_FAST, njit


@njit(**LINKED_FAST)
def lift(z, count, f, total):
    """``f = E z`` of ``count`` samples: ``z (K - 1, b)``, ``f (K, b)``, and ``total (b,)`` to work in."""
    last, number = f.shape[0] - 1, f.dtype.type
    root = math.sqrt(f.shape[0])
    total[:count] = 0
    for k in range(last):
        for i in range(count):
            total[i] += z[k, i]
    for k in range(last):
        for i in range(count):
            f[k, i] = z[k, i] - total[i] * number(1 / (root * (root - 1)))
    for i in range(count):
        f[last, i] = total[i] * number(1 / root)


@njit(**LINKED_FAST)
def lower(r, count, z, total):
    """``z = E^T r`` for an ``r`` that sums to zero, like `lift`."""
    last, number = r.shape[0] - 1, r.dtype.type
    total[:count] = 0
    for k in range(last):
        for i in range(count):
            total[i] += r[k, i]
    for k in range(last):
        for i in range(count):
            z[k, i] = r[k, i] - total[i] * number(1 / (math.sqrt(r.shape[0]) - 1))
