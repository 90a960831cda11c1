"""The observables of a state."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np

from langevin.engine.kernels.forward import first_layer
from langevin.engine.kernels.jit import INNER, INNER_FAST, JIT, njit
from langevin.engine.kernels.normals import COMPLEMENT_STREAM, chi_square, philox, radius64, sincos64
from langevin.engine.kernels.residuals import loss_and_accuracy
from langevin.engine.kernels.types import (
    ACCURACY,
    ACTIVE,
    ALIGNMENT,
    DEAD,
    DISPLACEMENT,
    DISTANCE,
    DISTORTED,
    HEAD_ALIGNMENT,
    LOSS,
    MISALIGNED,
    NEGATIVE_MEAN,
    POSITIVE_MEAN,
    PREACTIVATION,
    RELU,
    SQUARED,
    START,
)


@njit(**INNER_FAST)
def class_means(theta, data, scratch, means):
    """Mean pre-activation of each neuron on each class, and its squared norm in the span."""
    W = first_layer(theta, data, scratch)
    negative, positive = scratch.neurons[NEGATIVE_MEAN], scratch.neurons[POSITIVE_MEAN]
    squared = scratch.neurons[SQUARED]
    negative[:], positive[:], squared[:] = 0, 0, 0
    for c in range(W.shape[0]):
        a, b = means[0, c], means[1, c]
        for j in range(data.width):
            negative[j] += a * W[c, j]
        for j in range(data.width):
            positive[j] += b * W[c, j]
        for j in range(data.width):
            squared[j] += W[c, j] * W[c, j]


@njit(**INNER_FAST)
def _squared_distance(theta, other, data, scratch):
    W, V = first_layer(theta, data, scratch), first_layer(other, data, scratch)
    total = 0.0
    for c in range(W.shape[0]):
        part = theta.dtype.type(0)
        for j in range(data.width):
            part += (W[c, j] - V[c, j]) * (W[c, j] - V[c, j])
        total += np.float64(part)
    for j in range(data.width):
        total += np.float64(theta[j] - other[j]) ** 2
    return total


@njit(**INNER_FAST)
def move_complement(complement, scales, dims, step, path, k0, k1):
    """Move what is outside the state, Brownian, over one record interval, in law.

    ``complement (2, processes)`` holds each process's move along its starting direction and the squared norm
    across it, a squared Bessel process of dimension ``dim - 1``; ``scales`` and ``dims``, shape (kinds,), are
    as in `Records`. Returns the squared displacement.
    """
    total = 0.0
    for j in range(complement.shape[1]):
        kind = min(j, dims.size - 1)
        scale, dim = scales[kind], dims[kind]
        w0, w1, _, _ = philox(
            np.uint64(j), np.uint64(step), np.uint64(path), np.uint64(COMPLEMENT_STREAM), k0, k1
        )
        a, b = sincos64(w1)
        radius = radius64(w0)
        complement[0, j] += scale * radius * a
        if dim > 1:
            across = math.sqrt(complement[1, j]) + scale * radius * b
            rest = chi_square(dim - 2, j, step, path, COMPLEMENT_STREAM, k0, k1)
            complement[1, j] = across * across + scale * scale * rest
        total += complement[0, j] ** 2 + complement[1, j]
    return total


@njit(**JIT)
def move_complements(complements, diverged, scales, dims, draw, first_path, k0, k1, moved):
    """Move what lies outside the span on all paths that are finite; ``moved (paths,)`` as it returns."""
    for p in range(complements.shape[0]):
        if diverged[p] < 0:
            moved[p] = move_complement(complements[p], scales, dims, draw, first_path + p, k0, k1)


@njit(**INNER)
def observe(r, draw, theta, complement, path, k0, k1, data, scratch, records, scalars, neurons):
    """Write the observables of record ``r``: ``scalars (SCALARS, m)``, ``neurons (3, m, h)`` or empty.

    ``draw`` counts draws on the noise's own grid: what lies outside the span moves by its stream there.
    """
    loss, accuracy = loss_and_accuracy(data, scratch)
    outside = 0.0
    if records.complement_dims.size > 0:
        scales, dims = records.complement_scales[:, r], records.complement_dims
        outside = move_complement(complement, scales, dims, draw, path, k0, k1)
    scalars[LOSS, r], scalars[ACCURACY, r] = loss, accuracy
    scalars[DISPLACEMENT, r] = _squared_distance(theta, records.origin, data, scratch) + outside
    if records.reference.shape[0] > 0:
        scalars[DISTANCE, r] = _squared_distance(theta, records.reference[r], data, scratch) + outside
    if records.own.size == 0:
        return
    class_means(theta, data, scratch, records.means)
    misaligned, distorted, dead = 0, 0, 0
    start = scratch.neurons[START]
    for j in range(data.width):
        positive = records.own[j] > 0
        preactivation = scratch.neurons[POSITIVE_MEAN if positive else NEGATIVE_MEAN, j]
        head = records.own[j] * theta[j]
        misaligned += head < 0
        distorted += preactivation < start[j]
        dead += data.activation.code == RELU and not scratch.neurons[ACTIVE, j] > 0
        if neurons.size > 0:
            outside = records.complement_norms[j]
            squared = np.float64(scratch.neurons[SQUARED, j])
            if records.complement_dims.size > 0:
                outside += complement[0, j]
                squared += complement[1, j]
            squared += outside * outside
            norm = math.sqrt(squared) * records.mean_norms[1 if positive else 0]
            neurons[ALIGNMENT, r, j] = preactivation / norm if norm > 0 else 0.0
            neurons[PREACTIVATION, r, j] = preactivation
            neurons[HEAD_ALIGNMENT, r, j] = head
    scalars[MISALIGNED, r] = misaligned / data.width
    scalars[DISTORTED, r] = distorted / data.width
    scalars[DEAD, r] = dead / data.width
