"""The observables of a state with K outputs."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np

from langevin.engine.kernels.jit import LINKED, LINKED_FAST, njit
from langevin.engine.kernels.observe import move_complement
from langevin.engine.kernels.outputs.batches import take_all
from langevin.engine.kernels.outputs.forward import frozen, hidden, outputs, probed
from langevin.engine.kernels.outputs.neurons import mark_active
from langevin.engine.kernels.outputs.residuals import loss_and_correct
from langevin.engine.kernels.outputs.types import ACTIVE
from langevin.engine.kernels.types import ACCURACY, DISPLACEMENT, DISTANCE, LOSS, LP, RELU


@njit(**LINKED_FAST)
def _row_distance(a, b, first, count):
    total = a.dtype.type(0)
    a, b = a[first : first + count], b[first : first + count]
    for j in range(count):
        total += (a[j] - b[j]) * (a[j] - b[j])
    return np.float64(total)


@njit(**LINKED)
def _squared_distance(theta, other, data, ld):
    """Squared distance of two states, row by row."""
    total = 0.0
    for k in range(data.outputs):
        total += _row_distance(theta, other, k * ld, data.width)
    for c in range(data.inputs):
        total += _row_distance(theta, other, data.head + c * ld, data.width)
    return total


@njit(**LINKED_FAST)
def is_finite(theta, data, ld):
    """Whether the square norm of a state is finite."""
    total = 0.0
    for row in range(data.outputs + data.inputs):
        at = row * ld if row < data.outputs else data.head + (row - data.outputs) * ld
        part = theta[at : at + data.width]
        for j in range(data.width):
            total += np.float64(part[j]) * np.float64(part[j])
    return math.isfinite(total)


@njit(**LINKED)
def observe(r, draw, theta, complement, path, k0, k1, data, rule, scratch, records, scalars):
    """Write the observables of record ``r``; False if an output is not finite.

    They go to ``scalars (SCALARS, m)``, and of neurons to ``neurons (3, m, h)`` unless this is empty.
    """
    n, ld = data.Y.shape[0], scratch.A.shape[1]
    marking = records.own.size > 0 and data.activation == RELU
    active = scratch.neurons[ACTIVE]
    active[:] = 0
    take_all(scratch.batch, n)
    # typed, not a constant, for which the callees would be compiled once more
    gathered = np.bool_(False)
    loss, correct, check = 0.0, 0, 0.0
    for first in range(0, n, data.rows):
        count = min(data.rows, n - first)
        if rule.method == LP:
            frozen(first, count, data, scratch)
            if marking:
                mark_active(probed(data, scratch), first, count, active)
        else:
            hidden(theta, first, count, gathered, data, scratch)
            if marking:
                mark_active(scratch.A, np.int64(0), count, active)
        outputs(theta, count, data, scratch)
        part = loss_and_correct(first, count, data, scratch)
        loss += part[0]
        correct += part[1]
        check += part[2]
    if not math.isfinite(check):
        return False
    outside = 0.0
    if records.complement_dims.size > 0:
        scales, dims = records.complement_scales[:, r], records.complement_dims
        outside = move_complement(complement, scales, dims, draw, path, k0, k1)
    scalars[LOSS, r] = loss
    scalars[ACCURACY, r] = correct / n if data.classes or data.outputs == 1 else math.nan
    scalars[DISPLACEMENT, r] = _squared_distance(theta, records.origin, data, ld) + outside
    if records.reference.shape[0] > 0:
        scalars[DISTANCE, r] = _squared_distance(theta, records.reference[r], data, ld) + outside
    return True
