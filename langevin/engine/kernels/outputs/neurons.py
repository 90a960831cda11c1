"""Neurons of a state with K outputs: their own-class pre-activation, activity, and distance to their cone.

The aligned cones are those of `langevin.model.alignment`.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np

from langevin.engine.kernels.jit import LINKED, njit
from langevin.engine.kernels.outputs.types import (
    ACTIVE,
    MEAN,
    SOFTMAX,
    START,
    WHOLLY_MISALIGNED,
)
from langevin.engine.kernels.types import (
    ALIGNMENT,
    DEAD,
    DISTORTED,
    HEAD_ALIGNMENT,
    MISALIGNED,
    PREACTIVATION,
    RELU,
)


@njit(**LINKED)
def mark_active(A, first, count, active):
    """Keep each neuron's largest activation: a neuron is dead if it is not positive."""
    for i in range(first, first + count):
        for j in range(active.size):
            active[j] = A[i, j] if A[i, j] > active[j] else active[j]


@njit(**LINKED)
def _row(own, outputs):
    """The row of `Records.means` of an own class."""
    return np.int64(own > 0 if outputs == 1 else own)


@njit(**LINKED)
def own_means(layer, own, means, outputs, out):
    """Mean pre-activation of each neuron on its own class; ``layer (k, ld)`` lies flat.

    Not by a fast mode: it is compared with its start, and what has not moved must be equal to the last bit.
    """
    out[:] = 0
    for c in range(means.shape[1]):
        for j in range(own.size):
            out[j] += means[_row(own[j], outputs), c] * layer[c * out.size + j]


@njit(**LINKED)
def _excess(v, own, k, softmax):
    """How far a head ``v (K,)`` exceeds the condition on output ``k`` of its own class's aligned cone."""
    if softmax:
        return np.float64(v[k]) - np.float64(v[own])
    if v.size == 1:
        return np.float64(-v[k] if own == 1 else v[k])
    return np.float64(-v[k] if k == own else v[k])


@njit(**LINKED)
def _exceeded(v, own, softmax):
    """Number of conditions that a head exceeds."""
    exceeded = 0
    for k in range(v.size):
        exceeded += _excess(v, own, k, softmax) > 0
    return exceeded


@njit(**LINKED)
def _cone_distance(v, own, softmax):
    """Distance of a head to the aligned cone.

    With softmax the nearest head of the cone has the output of the own class raised, and all above it
    lowered, to their mean. Raising it step by step to the mean of those still above never overshoots.
    """
    rise = 0.0
    while softmax:
        total, count = 0.0, 1
        for k in range(v.size):
            excess = _excess(v, own, k, softmax)
            if excess > rise:
                total += excess
                count += 1
        if not total / count > rise:
            break
        rise = total / count
    squared = rise * rise
    for k in range(v.size):
        above = _excess(v, own, k, softmax) - rise
        squared += above * above if above > 0 else 0.0
    return math.sqrt(squared)


@njit(**LINKED)
def observe_neurons(r, theta, complement, data, scratch, records, scalars, neurons):
    """Write the shares of neurons of record ``r``, and their rows unless ``neurons`` is empty.

    `ACTIVE` must have been marked, and `START` be known.
    """
    ld, softmax, width = scratch.A.shape[1], data.loss == SOFTMAX, data.width
    mean, start, active = scratch.neurons[MEAN], scratch.neurons[START], scratch.neurons[ACTIVE]
    own_means(theta[data.head :], records.own, records.means, data.outputs, mean)
    misaligned, wholly, distorted, dead = 0, 0, 0, 0
    for j in range(width):
        own = _row(records.own[j], data.outputs)
        head = theta[j : data.outputs * ld : ld]
        exceeded = _exceeded(head, own, softmax)
        misaligned += exceeded > 0
        wholly += exceeded == data.outputs - softmax
        distorted += mean[j] < start[j]
        dead += data.activation == RELU and not active[j] > 0
        if neurons.size > 0:
            squared, outside = 0.0, records.complement_norms[j]
            for c in range(data.inputs):
                squared += np.float64(theta[data.head + c * ld + j]) ** 2
            if records.complement_dims.size > 0:
                outside += complement[0, j]
                squared += complement[1, j]
            norm = math.sqrt(squared + outside * outside) * records.mean_norms[own]
            neurons[ALIGNMENT, r, j] = mean[j] / norm if norm > 0 else 0.0
            neurons[PREACTIVATION, r, j] = mean[j]
            if head.size == 1:
                neurons[HEAD_ALIGNMENT, r, j] = head[0] if own == 1 else -head[0]
            else:
                neurons[HEAD_ALIGNMENT, r, j] = _cone_distance(head, own, softmax)
    scalars[MISALIGNED, r] = misaligned / width
    scalars[WHOLLY_MISALIGNED, r] = wholly / width
    scalars[DISTORTED, r] = distorted / width
    scalars[DEAD, r] = dead / width
