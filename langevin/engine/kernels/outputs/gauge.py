"""K outputs and K - 1 gauge coordinates: `langevin.model.gauge` in compiled code."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

from langevin.engine.kernels.jit import INNER, njit


@njit(**INNER)
def lift(z, f):
    """``f = E z``."""
    last, total = f.size - 1, f.dtype.type(0)
    for k in range(last):
        total += z[k]
    root = math.sqrt(f.size)
    shift = total * f.dtype.type(1 / (root * (root - 1)))
    for k in range(last):
        f[k] = z[k] - shift
    f[last] = total * f.dtype.type(1 / root)


@njit(**INNER)
def lower(r, z):
    """``z = E^T r`` for an ``r`` that sums to zero."""
    last, total = r.size - 1, r.dtype.type(0)
    for k in range(last):
        total += r[k]
    shift = total * r.dtype.type(1 / (math.sqrt(r.size) - 1))
    for k in range(last):
        z[k] = r[k] - shift
