"""From a state and rows of a batch to features and outputs."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from langevin.engine.kernels.blas import address, gemm
from langevin.engine.kernels.calls import call_rows
from langevin.engine.kernels.jit import LINKED, LINKED_FAST, njit
from langevin.engine.kernels.outputs.batches import take_all
from langevin.engine.kernels.outputs.narrow import COLUMNS, ROWS, STRIP_BYTES, add_outputs
from langevin.engine.kernels.outputs.types import FEATURE
from langevin.engine.kernels.types import CALLED, NEURONS_A_PRODUCT, RELU, SMALL_PRODUCT

# fewer neurons per product cost more than packing
FEWEST_NEURONS = 32


@njit(**LINKED)
def neurons_per_product(width, rows, depth):
    """Neurons of a product of so many rows over ``depth``: all, or few enough that nothing is packed."""
    fitting = SMALL_PRODUCT // max(rows * depth, 1) // FEWEST_NEURONS * FEWEST_NEURONS
    return min(fitting, NEURONS_A_PRODUCT) if fitting > 0 else width


@njit(**LINKED)
def rows_per_product(depth, rows):
    """Rows of a product over ``depth``: some 4096 elements stay in the first cache, and nothing is packed."""
    fitting = min(max(4096 // max(depth, 1) // 8 * 8, 24), 128)
    unpacked = SMALL_PRODUCT // (FEWEST_NEURONS * max(depth, 1)) // 8 * 8
    return min(fitting, unpacked, rows) if unpacked > 0 else rows


@njit(**LINKED)
def gather(source, batch, first, count, out):
    """Copy rows ``batch[first : first + count]`` of ``source`` to ``out``."""
    for i in range(count):
        row = batch[first + i]
        for c in range(out.shape[1]):
            out[i, c] = source[row, c]


@njit(**LINKED)
def preactivate(W, X, first, count, Z, data, scratch):
    """``Z = X W^T`` on ``count`` rows of the batch, by addresses of ``W (k, ld)``, their inputs and ``Z``.

    A few neurons on a few rows at a time, on the columns that those rows reach.
    """
    k, ld, size = data.X.shape[1], scratch.A.shape[1], scratch.A.itemsize
    rows = rows_per_product(data.inputs, count)
    neurons = neurons_per_product(data.width, rows, data.inputs)
    scratch.scalars[0], scratch.scalars[1] = 1, 0
    for j in range(0, data.width, neurons):
        m = min(neurons, data.width - j)
        for i in range(0, count, rows):
            n = min(rows, count - i)
            gemm(
                False,
                m,
                n,
                data.reach[scratch.batch[first + i + n - 1]],
                W + j * size,
                ld,
                X + i * k * size,
                k,
                Z + (i * ld + j) * size,
                ld,
                scratch.ints,
                scratch.scalars,
            )


@njit(**LINKED_FAST)
def _relu_rows(count, width, A, squared):
    for i in range(count):
        zero = A.dtype.type(0)
        q = zero
        for j in range(width):
            # z <= 0, not z > 0: a NaN has to pass
            a = zero if A[i, j] <= zero else A[i, j]
            A[i, j] = a
            q += a * a
        squared[i] = q


@njit(**LINKED_FAST)
def squared_rows(count, width, A, squared):
    """Squared norms of rows."""
    for i in range(count):
        q = A.dtype.type(0)
        for j in range(width):
            q += A[i, j] * A[i, j]
        squared[i] = q


@njit(**LINKED)
def activate(count, A, slope, squared, data):
    """Replace ``A (count, ld)`` by ``phi(A)``, with squared norms; ``phi'`` goes to ``slope`` if called."""
    if data.activation == RELU:
        _relu_rows(count, data.width, A, squared)
        return
    if data.activation == CALLED:
        for i in range(count):
            a = A[i].ctypes.data
            call_rows(data.phi, a, a, slope[i].ctypes.data, data.width)
    squared_rows(count, data.width, A, squared)


@njit(**LINKED)
def freeze(theta, data, scratch):
    """Leave the features of all samples in ``scratch``, for linear probing."""
    A, size = scratch.features, theta.itemsize
    take_all(scratch.batch, data.Y.shape[0])
    W = address(theta) + data.head * size
    for first in range(0, data.Y.shape[0], data.rows):
        count = min(data.rows, data.Y.shape[0] - first)
        X = address(data.X) + first * data.X.shape[1] * size
        block = A[first : first + count]
        preactivate(W, X, first, count, address(block), data, scratch)
        activate(count, block, scratch.D, scratch.samples[FEATURE], data)


@njit(**LINKED)
def locate_block(count, scratch):
    """Write the addresses of the rows of ``scratch.A`` to ``scratch.lines``; the last one up to `ROWS`."""
    start, stride = address(scratch.A), scratch.A.shape[1] * scratch.A.itemsize
    for i in range((count + ROWS - 1) // ROWS * ROWS):
        scratch.lines[i] = start + min(i, count - 1) * stride


@njit(**LINKED)
def locate_rows(features, first, count, scratch):
    """`locate_block` for rows ``batch[first : first + count]`` of features."""
    start, stride = address(features), features.shape[1] * features.itemsize
    for i in range((count + ROWS - 1) // ROWS * ROWS):
        scratch.lines[i] = start + scratch.batch[first + min(i, count - 1)] * stride


@njit(**LINKED)
def hidden(theta, first, count, gathered, data, scratch):
    """Features of a block in ``scratch.A``, at ``scratch.lines``; return the address of its inputs."""
    size = theta.itemsize
    X = address(data.X) + first * data.X.shape[1] * size
    if gathered:
        gather(data.X, scratch.batch, first, count, scratch.X)
        X = address(scratch.X)
    preactivate(address(theta) + data.head * size, X, first, count, address(scratch.A), data, scratch)
    activate(count, scratch.A, scratch.D, scratch.samples[FEATURE], data)
    locate_block(count, scratch)
    return X


@njit(**LINKED)
def probed(data, scratch):
    """Features in linear probing, shape (n, ld)."""
    return data.features if data.features.shape[0] > 0 else scratch.features


@njit(**LINKED_FAST)
def _squared_norms(features, batch, first, count, squared):
    """Squared norms of rows of a batch, four at a time, which reads ahead in memory by more than one does.

    Nothing else fills the cache so fast: products read these rows from there.
    """
    last = first + count - 1
    for i in range(first, first + count, 4):
        a, b = features[batch[i]], features[batch[min(i + 1, last)]]
        c, d = features[batch[min(i + 2, last)]], features[batch[min(i + 3, last)]]
        q = r = s = t = squared.dtype.type(0)
        for j in range(a.size):
            q += a[j] * a[j]
            r += b[j] * b[j]
            s += c[j] * c[j]
            t += d[j] * d[j]
        # of a row that is missing it is that of the last one, which nothing reads
        squared[i - first], squared[i - first + 1] = q, r
        squared[i - first + 2], squared[i - first + 3] = s, t


@njit(**LINKED)
def frozen(first, count, data, scratch):
    """Locate the features of a block in linear probing; their squared norms go to ``FEATURE``."""
    features = probed(data, scratch)
    _squared_norms(features, scratch.batch, first, count, scratch.samples[FEATURE])
    locate_rows(features, first, count, scratch)


@njit(**LINKED)
def outputs(theta, count, data, scratch):
    """``F = A V`` on the ``count`` rows at ``scratch.lines``.

    Some neurons at a time, whose part of the head stays in the first cache.
    """
    ld, b = scratch.A.shape[1] * theta.itemsize, scratch.F.shape[1] * theta.itemsize
    V, F, lines = address(theta), address(scratch.F), address(scratch.lines)
    for at in range(0, ld, STRIP_BYTES):
        size = min(STRIP_BYTES, ld - at)
        for k in range(0, data.outputs, COLUMNS):
            columns = min(COLUMNS, data.outputs - k)
            for i in range(0, count, ROWS):
                out = F + k * b + i * theta.itemsize
                add_outputs(theta, columns, lines + 8 * i, at, V + k * ld + at, ld, out, b, size, at)
