"""From the blocks of a batch to a step of the parameters."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import numpy as np

from langevin.engine.kernels.blas import address, gemm
from langevin.engine.kernels.jit import LINKED, LINKED_FAST, njit
from langevin.engine.kernels.normals import STATE_STREAM, TILE, add_tiles
from langevin.engine.kernels.outputs.forward import (
    neurons_per_product,
    squared_rows,
)
from langevin.engine.kernels.outputs.narrow import (
    COLUMNS,
    TILE_BYTES,
    VECTOR_BYTES,
    add_gradient,
    add_gradient_edge,
)
from langevin.engine.kernels.outputs.types import FACTOR, PULLBACK
from langevin.engine.kernels.types import CALLED, RELU

# columns and rows of a product with the inputs
COLUMNS_A_PRODUCT, ROWS_A_PRODUCT = 32, 128


@njit(**LINKED_FAST)
def _masked_rows(first, count, width, A, D, squared):
    """Multiply rows of ``D`` by ``phi'`` of the ReLU, and write their squared norms."""
    for i in range(first, first + count):
        zero = D.dtype.type(0)
        q = zero
        for j in range(width):
            # features, not pre-activations: positive, 0 or NaN
            g = zero if A[i, j] <= zero else D[i, j]
            D[i, j] = g
            q += g * g
        squared[i] = q


@njit(**LINKED_FAST)
def _sloped_rows(first, count, width, G, D, squared):
    """`_masked_rows` of an activation that is called: ``phi'`` is in ``D``, and ``R V^T`` in ``G``."""
    for i in range(count):
        q = G.dtype.type(0)
        for j in range(width):
            g = G[i, j] * D[first + i, j]
            D[first + i, j] = g
            q += g * g
        squared[first + i] = q


@njit(**LINKED)
def pull_back(theta, count, data, scratch):
    """``D = (R V^T) phi'`` of a block, and its squared norms, a few rows at a time."""
    K, ld, size, b = data.outputs, scratch.A.shape[1], theta.itemsize, scratch.R.shape[1]
    D, squared = scratch.D, scratch.samples[PULLBACK]
    V, R = address(theta), address(scratch.R)
    scratch.scalars[0], scratch.scalars[1] = 1, 0
    for i in range(0, count, data.pulled):
        n = min(data.pulled, count - i)
        out = address(scratch.G) if data.activation == CALLED else address(D) + i * ld * size
        gemm(True, data.width, n, K, V, ld, R + i * size, b, out, ld, scratch.ints, scratch.scalars)
        if data.activation == RELU:
            _masked_rows(i, n, data.width, scratch.A, D, squared)
        elif data.activation == CALLED:
            _sloped_rows(i, n, data.width, scratch.G, D, squared)
        else:
            squared_rows(n, data.width, D[i : i + n], squared[i : i + n])


@njit(**LINKED)
def add_head_gradient(count, gradient, data, scratch, more):
    """Add ``A^T R`` of the block at ``scratch.lines`` to a ``gradient (K, ld)``, or start it."""
    size = gradient.itemsize
    ld, b = gradient.shape[1] * size, scratch.R.shape[1] * size
    R, G, lines = address(scratch.R), address(gradient), address(scratch.lines)
    whole = ld // TILE_BYTES * TILE_BYTES
    for k in range(0, data.outputs, COLUMNS):
        columns = min(COLUMNS, data.outputs - k)
        r, g = R + k * b, G + k * ld
        for at in range(0, whole, TILE_BYTES):
            add_gradient(gradient, columns, lines, at, r, b, g + at, ld, count, more)
        for at in range(whole, ld, VECTOR_BYTES):
            add_gradient_edge(gradient, columns, lines, at, r, b, g + at, ld, count, more)


@njit(**LINKED)
def scale_inputs(first, count, gathered, data, scratch):
    """Multiply the inputs of a block by their clip factors; what is not gathered stays as it is."""
    X, factor = scratch.X, scratch.samples[FACTOR]
    for i in range(count):
        if gathered:
            for c in range(X.shape[1]):
                X[i, c] *= factor[i]
        else:
            for c in range(X.shape[1]):
                X[i, c] = factor[i] * data.X[first + i, c]


@njit(**LINKED)
def _product_columns(W, column, columns, X, first, count, data, scratch):
    """``W += alpha D^T X`` on some columns of ``W``, at the address of their first; ``alpha`` is set.

    A few columns and neurons at a time, on the rows of the batch from ``first`` on that reach them.
    """
    k, ld, size = data.X.shape[1], scratch.A.shape[1], scratch.A.itemsize
    D, row = address(scratch.D), 0
    scratch.scalars[1] = 1
    for c in range(column, column + columns, COLUMNS_A_PRODUCT):
        width = min(COLUMNS_A_PRODUCT, column + columns - c)
        while row < count and data.reach[scratch.batch[first + row]] <= c:
            row += 1
        parts = max((count - row + ROWS_A_PRODUCT - 1) // ROWS_A_PRODUCT, 1)
        rows = max((count - row + parts - 1) // parts, 1)
        neurons = neurons_per_product(data.width, rows, width)
        for j in range(0, data.width, neurons):
            m = min(neurons, data.width - j)
            for i in range(row, count, rows):
                gemm(
                    True,
                    m,
                    width,
                    min(rows, count - i),
                    D + (i * ld + j) * size,
                    ld,
                    X + (i * k + c) * size,
                    k,
                    W + ((c - column) * ld + j) * size,
                    ld,
                    scratch.ints,
                    scratch.scalars,
                )


@njit(**LINKED)
def add_layer_gradient(X, first, count, data, scratch):
    """Add ``D^T X`` of a block that is not the last to the first layer's gradient, or start it."""
    ld, size = scratch.A.shape[1], scratch.A.itemsize
    if first == 0:
        scratch.layer[:] = 0
    scratch.scalars[0] = 1
    for c in range(0, data.inputs, data.columns):
        columns = min(data.columns, data.inputs - c)
        _product_columns(address(scratch.layer) + c * ld * size, c, columns, X, first, count, data, scratch)


@njit(**LINKED_FAST)
def _subtract(theta, first, rate, gradient, rows, width):
    """``theta -= rate gradient`` on rows of ``ld`` elements from ``first`` on."""
    ld = gradient.shape[1]
    for c in range(rows):
        # a view: indices that cannot be negative, so that the loop is vectorised
        row = theta[first + c * ld : first + (c + 1) * ld]
        for j in range(width):
            row[j] -= rate * gradient[c, j]


@njit(**LINKED)
def _add_noise(theta, first, stop, step, path, k0, k1, rule, scratch):
    """Noise of a step on elements ``first`` to ``stop``, in whole tiles."""
    if rule.noise > 0:
        for draw in range(step * rule.draws, (step + 1) * rule.draws):
            add_tiles(
                theta,
                first // TILE,
                stop // TILE,
                rule.noise,
                draw,
                path,
                STATE_STREAM,
                k0,
                k1,
                scratch.words,
            )


@njit(**LINKED)
def apply_head(theta, rate, gradient, any_sample, step, path, k0, k1, data, rule, scratch):
    """Drift and noise of the head."""
    if any_sample:
        _subtract(theta, np.int64(0), rate, gradient, data.outputs, data.width)
    _add_noise(theta, np.int64(0), data.head, step, path, k0, k1, rule, scratch)


@njit(**LINKED)
def apply_layer(theta, rate, X, first, count, step, path, k0, k1, data, rule, scratch):
    """Drift and noise of the first layer, so many columns at a time that they stay in the cache.

    ``X``, ``first`` and ``count`` are of the last block, whose product goes straight into the state.
    """
    ld, size = scratch.A.shape[1], theta.itemsize
    for c in range(0, data.inputs, data.columns):
        columns = min(data.columns, data.inputs - c)
        at = data.head + c * ld
        if first > 0:
            _subtract(theta, at, rate, scratch.layer[c:], columns, data.width)
        if count > 0:
            scratch.scalars[0] = -rate
            _product_columns(address(theta) + at * size, c, columns, X, first, count, data, scratch)
        last = c + columns == data.inputs
        _add_noise(theta, at, theta.size if last else at + columns * ld, step, path, k0, k1, rule, scratch)
