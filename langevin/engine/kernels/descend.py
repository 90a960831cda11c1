"""From clipped residuals to a step of the parameters."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from numba.extending import overload

from langevin.engine.kernels.blas import gemm
from langevin.engine.kernels.forward import evaluate, first_layer, freeze
from langevin.engine.kernels.jit import INNER, INNER_FAST, JIT, njit
from langevin.engine.kernels.types import (
    GRADIENT,
    HEAD,
    LP,
    PULLBACK,
    RESIDUAL,
    Linear,
    Relu,
    activation_of,
    borrow,
)


@njit(**INNER)
def _pull_back(block, data, scratch):
    """``P = X^T diag(s) phi'(Z)`` on one block of inputs."""
    column, columns, row, rows, neurons = data.columns[block]
    k, ld, size = data.X.shape[1], scratch.Z.shape[1], scratch.Z.itemsize
    P = scratch.P.ctypes.data
    X = scratch.X.ctypes.data + (row * k + column) * size
    Z = scratch.Z.ctypes.data + row * ld * size
    scratch.scalars[0], scratch.scalars[1] = 1, 0
    for j in range(0, data.width, neurons):
        m = min(neurons, data.width - j)
        gemm(True, m, columns, rows, Z + j * size, ld, X, k, P + j * size, ld, scratch.ints, scratch.scalars)


@njit(**INNER_FAST)
def _descend_head(theta, rate, A, data, scratch):
    """``v -= rate A^T s``."""
    s, gradient = scratch.samples[RESIDUAL], scratch.neurons[GRADIENT]
    gradient[:] = 0
    for i in range(0, A.shape[0], 4):
        s0, s1, s2, s3 = s[i], s[i + 1], s[i + 2], s[i + 3]
        for j in range(data.width):
            gradient[j] += s0 * A[i, j] + s1 * A[i + 1, j] + s2 * A[i + 2, j] + s3 * A[i + 3, j]
    for j in range(data.width):
        theta[j] -= rate * gradient[j]


@njit(**INNER_FAST)
def _descend_relu(theta, rate, data, scratch):
    """``w_j -= rate v_j p_j`` and ``v_j -= rate w_j . p_j``, with ``p_j = sum_i s_i phi'(z_ij) x_i``.

    By homogeneity ``sum_i s_i phi(z_ij) = w_j . p_j``, so the features themselves are not needed.
    """
    s, scaled, X = scratch.samples[RESIDUAL], scratch.X, data.X
    for i in range(X.shape[0]):
        for c in range(X.shape[1]):
            scaled[i, c] = s[i] * X[i, c]
    W, P = first_layer(theta, data, scratch), scratch.P
    v, gradient = scratch.neurons[HEAD], scratch.neurons[GRADIENT]
    gradient[:] = 0
    for j in range(data.width):
        v[j] = rate * theta[j]
    for block in range(data.columns.shape[0]):
        _pull_back(block, data, scratch)
        first = data.columns[block, 0]
        for c in range(data.columns[block, 1]):
            for j in range(data.width):
                gradient[j] += W[first + c, j] * P[c, j]
                W[first + c, j] -= v[j] * P[c, j]
    for j in range(data.width):
        theta[j] -= rate * gradient[j]


@njit(**INNER_FAST)
def _descend_called(theta, rate, data, scratch):
    """``w_j -= rate v_j sum_i s_i phi'(z_ij) x_i`` and ``v -= rate A^T s``."""
    s, scaled, X = scratch.samples[RESIDUAL], scratch.X, data.X
    for i in range(X.shape[0]):
        for c in range(X.shape[1]):
            scaled[i, c] = s[i] * X[i, c]
    W, P, v = first_layer(theta, data, scratch), scratch.P, scratch.neurons[HEAD]
    for j in range(data.width):
        v[j] = rate * theta[j]
    for block in range(data.columns.shape[0]):
        _pull_back(block, data, scratch)
        first = data.columns[block, 0]
        for c in range(data.columns[block, 1]):
            for j in range(data.width):
                W[first + c, j] -= v[j] * P[c, j]
    _descend_head(theta, rate, scratch.A, data, scratch)


@njit(**INNER_FAST)
def _descend_linear(theta, rate, data, scratch):
    """``W -= rate v u^T`` and ``v -= rate W u`` with ``u = X^T s``."""
    s, X, u, W = (
        scratch.samples[RESIDUAL],
        data.X,
        scratch.inputs[PULLBACK],
        first_layer(theta, data, scratch),
    )
    v, gradient = scratch.neurons[HEAD], scratch.neurons[GRADIENT]
    u[:], gradient[:] = 0, 0
    for i in range(data.y.size):
        for c in range(u.size):
            u[c] += s[i] * X[i, c]
    for j in range(data.width):
        v[j] = rate * theta[j]
    for c in range(W.shape[0]):
        for j in range(data.width):
            gradient[j] += u[c] * W[c, j]
            W[c, j] -= u[c] * v[j]
    for j in range(data.width):
        theta[j] -= rate * gradient[j]


def _descend_all(theta, rate, data, scratch):
    """A step of full fine-tuning."""
    raise NotImplementedError("compiled code only")


@overload(_descend_all, jit_options=INNER)
def _descend_all_overload(theta, rate, data, scratch):
    if activation_of(data) is Relu:
        return lambda theta, rate, data, scratch: _descend_relu(theta, rate, data, scratch)
    if activation_of(data) is Linear:
        return lambda theta, rate, data, scratch: _descend_linear(theta, rate, data, scratch)
    return lambda theta, rate, data, scratch: _descend_called(theta, rate, data, scratch)


@njit(**INNER)
def descend(theta, rate, data, rule, scratch):
    """``theta -= rate * gradient`` at what `evaluate` left in ``scratch``."""
    if rule.method == LP:
        _descend_head(theta, rate, scratch.Z, data, scratch)
    else:
        _descend_all(theta, rate, data, scratch)


@njit(**JIT)
def drift(theta, out, data, rule, scratch):
    """Write the clipped drift at ``theta`` to ``out``, laid out like ``theta``.

    In linear probing the features must have been frozen, and the head's slot alone will do.
    """
    data, scratch = borrow(data), borrow(scratch)
    evaluate(theta, data, rule, scratch, False)
    out[:] = theta
    descend(out, theta.dtype.type(1), data, rule, scratch)
    out -= theta


@njit(**JIT)
def freeze_features(theta, data, scratch):
    """Leave the features at ``theta`` in ``scratch``, for `drift` in linear probing."""
    freeze(theta, borrow(data), borrow(scratch))
