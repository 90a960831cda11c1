"""From the state to pre-activations, outputs, gradient norms and clipped residuals."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np
from numba.extending import overload

from langevin.engine.kernels.blas import gemm
from langevin.engine.kernels.calls import call_rows
from langevin.engine.kernels.jit import INNER, INNER_FAST, njit
from langevin.engine.kernels.residuals import clip_residuals
from langevin.engine.kernels.types import (
    ACTIVE,
    LP,
    NORM,
    OUTPUT,
    PROJECTION,
    RELU,
    UNCLIPPED,
    Called,
    Linear,
    Relu,
    activation_of,
)


@njit(**INNER)
def first_layer(theta, data, scratch):
    """The first layer in a state, shape (k, ld)."""
    k, ld = data.inputs, scratch.Z.shape[1]
    return theta[data.head : data.head + k * ld].reshape(k, ld)


@njit(**INNER)
def _preactivate(theta, block, data, scratch):
    """``Z = X W^T`` on one block of samples."""
    first, count, inputs, neurons = data.rows[block]
    k, ld, size = data.X.shape[1], scratch.Z.shape[1], theta.itemsize
    W = theta.ctypes.data + data.head * size
    X = data.X.ctypes.data + first * k * size
    Z = scratch.Z.ctypes.data + first * ld * size
    scratch.scalars[0], scratch.scalars[1] = 1, 0
    for j in range(0, data.width, neurons):
        m = min(neurons, data.width - j)
        gemm(False, m, count, inputs, W + j * size, ld, X, k, Z + j * size, ld, scratch.ints, scratch.scalars)


@njit(**INNER_FAST)
def _relu_rows(first, count, theta, data, scratch):
    """Go from pre-activations to outputs and squared norms on a block; overwrite ``Z`` by ``phi'(Z)``."""
    v, Z, zero, one = theta, scratch.Z, theta.dtype.type(0), theta.dtype.type(1)
    f, norm, x = scratch.samples[OUTPUT], scratch.samples[NORM], data.squared_norms
    # two rows at a time: with more, the compiler gives up proving that they do not overlap
    for i in range(first, first + count, 2):
        f0, f1, q0, q1, m0, m1 = zero, zero, zero, zero, zero, zero
        for j in range(data.width):
            # z <= 0, not z > 0: a NaN has to pass
            dead0, dead1 = Z[i, j] <= zero, Z[i + 1, j] <= zero
            a0 = zero if dead0 else Z[i, j]
            a1 = zero if dead1 else Z[i + 1, j]
            squared = v[j] * v[j]
            f0 += v[j] * a0
            f1 += v[j] * a1
            q0 += a0 * a0
            q1 += a1 * a1
            m0 += zero if dead0 else squared
            m1 += zero if dead1 else squared
            Z[i, j] = zero if dead0 else one
            Z[i + 1, j] = zero if dead1 else one
        f[i], norm[i] = f0, q0 + x[i] * m0
        f[i + 1], norm[i + 1] = f1, q1 + x[i + 1] * m1


@njit(**INNER_FAST)
def _called_rows(first, count, theta, data, scratch):
    """`_relu_rows` of an activation that is called; leave ``phi(Z)`` in ``A``."""
    v, Z, A, zero = theta, scratch.Z, scratch.A, theta.dtype.type(0)
    f, norm, x = scratch.samples[OUTPUT], scratch.samples[NORM], data.squared_norms
    for i in range(first, first + count):
        z, a = Z[i].ctypes.data, A[i].ctypes.data
        call_rows(data.activation.phi, z, a, z, data.width)
        output, q, m = zero, zero, zero
        for j in range(data.width):
            output += v[j] * A[i, j]
            q += A[i, j] * A[i, j]
            m += v[j] * v[j] * Z[i, j] * Z[i, j]
        f[i], norm[i] = output, q + x[i] * m


@njit(**INNER_FAST)
def _feature_outputs(theta, data, scratch):
    """``f = A v`` on the frozen features in ``Z``."""
    v, A, f, zero = theta, scratch.Z, scratch.samples[OUTPUT], theta.dtype.type(0)
    for i in range(0, A.shape[0], 4):
        f0, f1, f2, f3 = zero, zero, zero, zero
        for j in range(data.width):
            f0 += v[j] * A[i, j]
            f1 += v[j] * A[i + 1, j]
            f2 += v[j] * A[i + 2, j]
            f3 += v[j] * A[i + 3, j]
        f[i], f[i + 1], f[i + 2], f[i + 3] = f0, f1, f2, f3


@njit(**INNER_FAST)
def _projected_outputs(theta, data, rule, scratch):
    """Outputs and squared norms of a linear net, through ``W^T v``."""
    v, W, X, Z = theta, first_layer(theta, data, scratch), data.X, scratch.Z
    f, norm, beta = scratch.samples[OUTPUT], scratch.samples[NORM], scratch.inputs[PROJECTION]
    zero = theta.dtype.type(0)
    head = zero
    for j in range(data.width):
        head += v[j] * v[j]
    for c in range(W.shape[0]):
        total = zero
        for j in range(data.width):
            total += W[c, j] * v[j]
        beta[c] = total
    for i in range(data.y.size):
        output, q = zero, zero
        for c in range(beta.size):
            output += X[i, c] * beta[c]
        if rule.clipping != UNCLIPPED:
            for j in range(data.width):
                q += Z[i, j] * Z[i, j]
        f[i], norm[i] = output, q + data.squared_norms[i] * head


@njit(**INNER_FAST)
def _mark_active(first, count, data, scratch):
    """Keep each neuron's largest (pre-)activation: a neuron is dead if it is not positive."""
    Z, active = scratch.Z, scratch.neurons[ACTIVE]
    for i in range(first, min(first + count, data.y.size)):
        for j in range(data.width):
            active[j] = Z[i, j] if Z[i, j] > active[j] else active[j]


@njit(**INNER)
def _call_features(data, scratch):
    """Overwrite ``Z`` by ``phi(Z)``; what ``A`` holds is lost."""
    Z, A = scratch.Z, scratch.A
    for i in range(Z.shape[0]):
        z = Z[i].ctypes.data
        call_rows(data.activation.phi, z, z, A[i].ctypes.data, data.width)


def _activate_frozen(data, scratch):
    """Go from pre-activations to features, without those that the loop of `freeze` computes."""
    raise NotImplementedError("compiled code only")


@overload(_activate_frozen, jit_options=INNER)
def _activate_frozen_overload(data, scratch):
    if activation_of(data) is Called:
        return lambda data, scratch: _call_features(data, scratch)
    return lambda data, scratch: None


@njit(**INNER_FAST)
def freeze(theta, data, scratch):
    """Leave the hidden features in ``Z`` and their squared norms in `NORM`, for linear probing."""
    for block in range(data.rows.shape[0]):
        _preactivate(theta, block, data, scratch)
    Z, zero = scratch.Z, theta.dtype.type(0)
    for i in range(data.features.shape[0]):
        for j in range(data.width):
            Z[i, j] = data.features[i, j]
    _activate_frozen(data, scratch)
    for i in range(Z.shape[0]):
        q = zero
        for j in range(data.width):
            if data.activation.code == RELU:
                Z[i, j] = zero if Z[i, j] <= zero else Z[i, j]
            q += Z[i, j] * Z[i, j]
        scratch.samples[NORM, i] = q


def _relu_outputs(theta, data, rule, scratch, mark):
    for block in range(data.rows.shape[0]):
        _preactivate(theta, block, data, scratch)
        first, count = data.rows[block, 0], data.rows[block, 1]
        if mark:
            _mark_active(first, count, data, scratch)
        _relu_rows(first, count, theta, data, scratch)


def _called_outputs(theta, data, rule, scratch, mark):
    for block in range(data.rows.shape[0]):
        _preactivate(theta, block, data, scratch)
        _called_rows(data.rows[block, 0], data.rows[block, 1], theta, data, scratch)


def _linear_outputs(theta, data, rule, scratch, mark):
    for block in range(data.rows.shape[0]):
        if rule.clipping != UNCLIPPED:
            _preactivate(theta, block, data, scratch)
    _projected_outputs(theta, data, rule, scratch)


_HIDDEN = {Relu: _relu_outputs, Linear: _linear_outputs, Called: _called_outputs}


def _hidden_outputs(theta, data, rule, scratch, mark):
    """Outputs and squared norms in full fine-tuning; ``mark``: also which neurons of ReLU are active."""
    raise NotImplementedError("compiled code only")


@overload(_hidden_outputs, jit_options=INNER)
def _hidden_outputs_overload(theta, data, rule, scratch, mark):
    return _HIDDEN[activation_of(data)]


@njit(**INNER)
def evaluate(theta, data, rule, scratch, mark):
    """Outputs and clipped residuals at ``theta``; False if anything is not finite."""
    if mark:
        scratch.neurons[ACTIVE, :] = 0
    if rule.method == LP:
        if mark:
            _mark_active(np.int64(0), scratch.Z.shape[0], data, scratch)
        _feature_outputs(theta, data, scratch)
    else:
        _hidden_outputs(theta, data, rule, scratch, mark)
    check = 0.0
    for i in range(data.y.size):
        f = np.float64(scratch.samples[OUTPUT, i])
        check += f * f + np.float64(scratch.samples[NORM, i])
    clip_residuals(data, rule, scratch)
    return math.isfinite(check)
