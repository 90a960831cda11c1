"""All compiled code: GEMM, counter-based normal draws, clipped drift, observables, the step loops.

Layout of one path's state ``theta``, a flat buffer: the head in ``theta[:h]`` of a slot of ``head``
elements, then the first layer transposed, ``(k, ld)`` row by row, neuron ``j`` in column ``j``. Both
slots are multiples of `TILE`, so that noise is added in whole tiles; what lies beyond the ``h``-th
column is never read. ``Z`` is ``(n, ld)`` likewise: all inner loops run over neurons, contiguously.

The exact reductions of `langevin.reduced` use the same code: a linear net's Gram matrix is carried as a
narrow net with the same one, into whose last neurons `_fold` brings the noise of all others.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg.cython_blas as cython_blas
import scipy.linalg.cython_lapack as cython_lapack
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from langevin._jit import njit

# no nnan and no ninf: a diverging path has to show as one
MATH = {"reassoc", "contract", "nsz"}
JIT: dict[str, Any] = dict(nogil=True, error_model="numpy")
FAST: dict[str, Any] = dict(JIT, fastmath=MATH)

# columns of a triangle up to which our reflections are faster than LAPACK's, which take so many at once
HOUSEHOLDER, REFLECTORS = 48, 16

# Philox lanes in a batch, and normals that a batch gives
LANES = 32
TILE = 4 * LANES

LP, FFT = 0, 1
UNCLIPPED, FLAT, NORMALISED = 0, 1, 2
# activations and losses that have code here; all others are called by their address
RELU, LINEAR, LOGISTIC, SQUARE, CALLED = range(5)
CODES = {"relu": RELU, "linear": LINEAR, "logistic": LOGISTIC, "square": SQUARE}

# streams of a path
STATE_STREAM, COMPLEMENT_STREAM, WISHART_STREAM = 0, 1, 2

# rows of the scalar observables
LOSS, ACCURACY, DISPLACEMENT, DISTANCE, MISALIGNED, DISTORTED, DEAD = range(7)
SCALARS = 7
# rows of the per-neuron observables
ALIGNMENT, PREACTIVATION, HEAD_ALIGNMENT = range(3)
NEURON_ROWS = 3


# --- matrix products -------------------------------------------------------------------------


def _routine(module: Any, name: str, arguments: int) -> types.ExternalFunction:
    """Make a routine of SciPy's BLAS or LAPACK callable from compiled code; all arguments are addresses."""
    capsule = module.__pyx_capi__[name]
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    symbol = f"langevin_{name}"
    binding.add_symbol(symbol, get_pointer(capsule, get_name(capsule)))
    return types.ExternalFunction(symbol, types.void(*[types.uintp] * arguments))


_DGEMM, _SGEMM = (_routine(cython_blas, name, 13) for name in ("dgemm", "sgemm"))
_DTPQRT, _STPQRT = (_routine(cython_lapack, name, 12) for name in ("dtpqrt", "stpqrt"))


def _gemm(trans, m, n, k, a, lda, b, ldb, c, ldc, ints, scalars):
    raise NotImplementedError("compiled code only")


@overload(_gemm)
def _gemm_overload(trans, m, n, k, a, lda, b, ldb, c, ldc, ints, scalars):
    routine = _DGEMM if scalars.dtype == types.float64 else _SGEMM

    def gemm(trans, m, n, k, a, lda, b, ldb, c, ldc, ints, scalars):
        ints[0], ints[1], ints[2], ints[3], ints[4], ints[5] = m, n, k, lda, ldb, ldc
        ints[6] = 78  # "N"
        ints[7] = 84 if trans else 78  # "T"
        at = ints.ctypes.data
        alpha = scalars.ctypes.data
        beta = alpha + scalars.itemsize
        routine(at + 24, at + 28, at, at + 4, at + 8, alpha, a, at + 12, b, at + 16, beta, c, at + 20)

    return gemm


# --- calls by address ------------------------------------------------------------------------


def _call(builder, address, result, arguments):
    """Call code that takes ``arguments`` at an integer ``address``."""
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(builder.inttoptr(address, function.as_pointer()), arguments)


@intrinsic
def _call_rows(typing_context, address, z, a, slope, count):
    """Write ``phi(z)`` to ``a`` and ``phi'(z)`` to ``slope``; these are addresses of ``count`` numbers."""

    def codegen(context, builder, signature, args):
        _call(builder, args[0], ir.VoidType(), args[1:])
        return context.get_dummy_value()

    return types.void(address, z, a, slope, count), codegen


@intrinsic
def call_scalar(typing_context, address, f, y):
    """A loss or residual at ``f`` and ``y``, in double precision."""

    def codegen(context, builder, signature, args):
        return _call(builder, args[0], ir.DoubleType(), args[1:])

    return types.float64(address, types.float64, types.float64), codegen


# --- normal draws ----------------------------------------------------------------------------

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_LN2 = 0.6931471805599453
_QUARTER_TURN = math.pi / 2 * 2.0**-30


@njit(**JIT, forceinline=True)
def _philox(a, b, c, d, k0, k1):
    """Philox 4x32-10 (Salmon et al. 2011) on 32-bit words held in 64-bit lanes."""
    for r in range(10):
        if r > 0:
            k0 = (k0 + _W0) & _LOW
            k1 = (k1 + _W1) & _LOW
        p = a * _M0
        q = c * _M1
        a, b, c, d = (q >> _SHIFT) ^ b ^ k0, q & _LOW, (p >> _SHIFT) ^ d ^ k1, p & _LOW
    return a, b, c, d


@njit(**JIT)
def philox_batch(words, first, c1, c2, c3, k0, k1):
    """Fill ``words (4, LANES)`` from the counters ``(first + lane, c1, c2, c3)``."""
    for lane in range(LANES):
        a, b, c, d = _philox((first + np.uint64(lane)) & _LOW, c1, c2, c3, k0, k1)
        words[0, lane], words[1, lane], words[2, lane], words[3, lane] = a, b, c, d


@njit(**FAST, forceinline=True)
def _radius64(word):
    """``sqrt(-2 log u)`` at ``u = (word + 1/2) / 2^32``; the logarithm by FreeBSD's polynomial."""
    bits = np.float64(np.float64(np.int64(word)) + 0.5).view(np.int64)
    e = (bits - np.int64(0x3FE6A09E667F3BCD)) >> np.int64(52)
    f = np.int64(bits - (e << np.int64(52))).view(np.float64) - 1.0
    s = f / (2.0 + f)
    z = s * s
    p = z * 1.479819860511658591e-01 + 1.531383769920937332e-01
    p = z * p + 1.818357216161805012e-01
    p = z * p + 2.222219843214978396e-01
    p = z * p + 2.857142874366239149e-01
    p = z * p + 3.999999999940941908e-01
    p = z * (z * p + 6.666666666666735130e-01)
    half = 0.5 * f * f
    return math.sqrt(-2.0 * (f - (half - s * (half + p)) + np.float64(e - np.int64(32)) * _LN2))


@njit(**FAST, forceinline=True)
def _sincos64(word):
    """``cos`` and ``sin`` of the angle ``2 pi word / 2^32``."""
    quadrant = (word + np.uint64(1 << 29)) >> np.uint64(30)
    r = np.float64(np.int64(word) - np.int64(quadrant << np.uint64(30))) * _QUARTER_TURN
    z = r * r
    p = z * 1.58969099521155010221e-10 - 2.50507602534068634195e-08
    p = z * p + 2.75573137070700676789e-06
    p = z * p - 1.98412698298579493134e-04
    p = z * p + 8.33333333332248946124e-03
    p = z * p - 1.66666666666666324348e-01
    sin = r + r * z * p
    p = z * -1.13596475577881948265e-11 + 2.08757232129817482790e-09
    p = z * p - 2.75573143513906633035e-07
    p = z * p + 2.48015872894767294178e-05
    p = z * p - 1.38888888888741095749e-03
    p = z * p + 4.16666666666666019037e-02
    cos = 1.0 - 0.5 * z + z * z * p
    odd = (quadrant & np.uint64(1)) != 0
    x = sin if odd else cos
    y = cos if odd else sin
    x = -x if ((quadrant + np.uint64(1)) & np.uint64(2)) != 0 else x
    y = -y if (quadrant & np.uint64(2)) != 0 else y
    return x, y


@njit(**FAST, forceinline=True)
def _radius32(word):
    """`_radius64` in single precision; the logarithm by the Cephes polynomial."""
    w = np.uint32(word)
    u = np.float32(np.int32(w >> np.uint32(1))) * np.float32(2.0**-31) + np.float32(2.0**-33)
    bits = np.float32(u).view(np.int32)
    e = (bits - np.int32(0x3F3504F3)) >> np.int32(23)
    f = np.int32(bits - (e << np.int32(23))).view(np.float32) - np.float32(1.0)
    z = f * f
    p = f * np.float32(7.0376836292e-2) - np.float32(1.1514610310e-1)
    p = f * p + np.float32(1.1676998740e-1)
    p = f * p - np.float32(1.2420140846e-1)
    p = f * p + np.float32(1.4249322787e-1)
    p = f * p - np.float32(1.6668057665e-1)
    p = f * p + np.float32(2.0000714765e-1)
    p = f * p - np.float32(2.4999993993e-1)
    p = f * p + np.float32(3.3333331174e-1)
    log = f * z * p - np.float32(0.5) * z + f + np.float32(e) * np.float32(_LN2)
    return np.float32(math.sqrt(np.float32(-2.0) * log))


@njit(**FAST, forceinline=True)
def _sincos32(word):
    """`_sincos64` in single precision."""
    w = np.uint32(word)
    quadrant = np.uint32(w + np.uint32(1 << 29)) >> np.uint32(30)
    r = np.float32(np.int32(np.uint32(w - np.uint32(quadrant << np.uint32(30))))) * np.float32(_QUARTER_TURN)
    z = r * r
    p = z * np.float32(-1.9515295891e-4) + np.float32(8.3321608736e-3)
    p = z * p - np.float32(1.6666654611e-1)
    sin = r + r * z * p
    p = z * np.float32(2.443315711809948e-5) - np.float32(1.388731625493765e-3)
    p = z * p + np.float32(4.166664568298827e-2)
    cos = np.float32(1.0) - np.float32(0.5) * z + z * z * p
    odd = (quadrant & np.uint32(1)) != 0
    x = sin if odd else cos
    y = cos if odd else sin
    x = -x if ((quadrant + np.uint32(1)) & np.uint32(2)) != 0 else x
    y = -y if (quadrant & np.uint32(2)) != 0 else y
    return x, y


def _box_muller(w0, w1, scale):
    raise NotImplementedError("compiled code only")


@overload(_box_muller, jit_options=dict(nogil=True, error_model="numpy", fastmath=MATH, forceinline=True))
def _box_muller_overload(w0, w1, scale):
    if scale == types.float32:

        def single(w0, w1, scale):
            radius = scale * _radius32(w0)
            x, y = _sincos32(w1)
            return radius * x, radius * y

        return single

    def double(w0, w1, scale):
        radius = scale * _radius64(w0)
        x, y = _sincos64(w1)
        return radius * x, radius * y

    return double


@njit(**FAST)
def add_normals(x, size, scale, step, path, stream, k0, k1, words):
    """Add ``scale`` times the standard normals of ``(path, step)`` to ``x[:size]``.

    ``size`` must be a multiple of `TILE`. Normal ``e`` of a step depends on ``(key, path, stream, step, e)``
    alone.
    """
    c1, c2, c3 = np.uint64(step), np.uint64(path), np.uint64(stream)
    for tile in range(size // TILE):
        philox_batch(words, np.uint64(tile * LANES), c1, c2, c3, k0, k1)
        at = tile * TILE
        for lane in range(LANES):
            a, b = _box_muller(words[0, lane], words[1, lane], scale)
            c, d = _box_muller(words[2, lane], words[3, lane], scale)
            x[at + lane] += a
            x[at + LANES + lane] += b
            x[at + 2 * LANES + lane] += c
            x[at + 3 * LANES + lane] += d


@njit(**FAST)
def _chi_square(degrees, counter, step, path, stream, k0, k1):
    """One chi-square draw, by Marsaglia and Tsang's method; ``degrees >= 0`` a whole number."""
    if degrees == 0:
        return 0.0
    c0, c1, c2 = np.uint64(counter), np.uint64(step), np.uint64(path)
    shape = 0.5 * degrees - 1.0 / 3.0
    attempt = 1
    while True:
        w0, w1, w2, w3 = _philox(c0, c1, c2, np.uint64(stream | (attempt << 8)), k0, k1)
        x = _radius64(w0) * _sincos64(w1)[0]
        if degrees == 1:
            return x * x
        cube = 1.0 + x / math.sqrt(9.0 * shape)
        u = (np.float64(np.int64((w2 << np.uint64(20)) ^ (w3 >> np.uint64(12)))) + 0.5) * 2.0**-52
        if cube > 0.0:
            cube = cube * cube * cube
            if math.log(u) < 0.5 * x * x + shape * (1.0 - cube + math.log(cube)):
                return 2.0 * shape * cube
        attempt += 1


# --- what a step works on --------------------------------------------------------------------


class Data(NamedTuple):
    """A problem in span coordinates, its rows padded by zeros to a multiple of four.

    ``rows`` lists the blocks of samples ``(first row, rows, columns, neurons)`` and ``columns`` the
    blocks of inputs ``(first column, columns, first row, rows, neurons)`` whose products are taken at
    once, ``neurons`` at a time; columns or rows that are zero throughout a block are left out.
    """

    X: np.ndarray  # (n padded, k padded)
    y: np.ndarray  # (n,)
    squared_norms: np.ndarray  # (n,)
    rows: np.ndarray  # (blocks, 4), int64
    columns: np.ndarray  # (blocks, 5), int64
    features: np.ndarray  # (n padded, ld): where only the head is simulated, the features; else (0, 0)
    inputs: int  # k
    width: int
    head: int  # slot of the head in theta
    activation: int  # RELU, LINEAR or CALLED
    loss: int  # LOGISTIC, SQUARE or CALLED
    # addresses, for those that are called: see `langevin._elementwise`
    phi: int
    value: int
    residual: int


class Rule(NamedTuple):
    """What one phase does in a step."""

    method: int
    clipping: int
    clip: float
    stabiliser: float
    dt: Any  # in the state's precision, like noise
    noise: Any  # standard deviation of what one draw adds
    draws: int  # draws a step: more than one where a finer grid's Brownian path is followed
    folded: int  # neurons that are not simulated but folded into the last ones, see `_fold`


class Scratch(NamedTuple):
    """Work space of one thread."""

    Z: np.ndarray  # (n padded, ld): pre-activations, then phi'; in linear probing the features
    A: np.ndarray  # (n padded, ld): phi, where it is called; else (0, 0)
    P: np.ndarray  # (columns of a block, ld): X^T diag(s) phi', unless the net is linear
    X: np.ndarray  # like Data.X: its rows times s
    samples: np.ndarray  # (3, n padded): outputs, squared norms of gradient / residual, clipped residuals
    neurons: np.ndarray  # (7, ld)
    inputs: np.ndarray  # (2, k padded)
    words: np.ndarray  # (4, LANES), uint32
    ints: np.ndarray  # (8,), int32
    scalars: np.ndarray  # (2,): alpha and beta of a product
    # only where neurons are folded: a type of its own, so that other runs do not wait for its compilation
    triangle: np.ndarray | None  # (q, ld), q = k + 1, by columns
    stack: np.ndarray | None  # (q, ld), by columns
    bartlett: np.ndarray | None  # (at least q (q - 1) / 2,)
    reflectors: np.ndarray | None  # (2, at least REFLECTORS q)


OUTPUT, NORM, RESIDUAL = range(3)
GRADIENT, HEAD, ACTIVE, NEGATIVE_MEAN, POSITIVE_MEAN, SQUARED, START = range(7)
PROJECTION, PULLBACK = range(2)


class Records(NamedTuple):
    """What is observed, and when."""

    steps: np.ndarray  # (m,), int64
    origin: np.ndarray  # theta at time 0
    reference: np.ndarray  # (m, size): the zeroth-order path; (0, 0): no distance is wanted
    own: np.ndarray  # (h,): own class of each neuron, -1 or +1; (0,): the labels are no classes
    means: np.ndarray  # (2, k): mean input of the classes -1 and +1
    mean_norms: np.ndarray  # (2,)
    complement_norms: np.ndarray  # (h,): norm of w_j outside the span at time 0
    complement_dim: int
    complement_scale: np.ndarray  # (m,): standard deviation of a coordinate's move since the last record


# --- drift -----------------------------------------------------------------------------------


@intrinsic
def _borrow(typing_context, value):
    """The same named tuple, its arrays without an owner: counting references costs a quarter of a step."""

    def codegen(context, builder, signature, args):
        result = args[0]
        for i, kind in enumerate(value):
            if isinstance(kind, types.Array):
                array = context.make_array(kind)(context, builder, builder.extract_value(result, i))
                array.meminfo = cgutils.get_null_value(array.meminfo.type)
                array.parent = cgutils.get_null_value(array.parent.type)
                result = builder.insert_value(result, array._getvalue(), i)
        return result

    return value(value), codegen


@njit(**JIT)
def _first_layer(theta, data, scratch):
    k, ld = data.inputs, scratch.Z.shape[1]
    return theta[data.head : data.head + k * ld].reshape(k, ld)


@njit(**JIT)
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
        _gemm(
            False, m, count, inputs, W + j * size, ld, X, k, Z + j * size, ld, scratch.ints, scratch.scalars
        )


@njit(**JIT)
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
        _gemm(True, m, columns, rows, Z + j * size, ld, X, k, P + j * size, ld, scratch.ints, scratch.scalars)


@njit(**FAST)
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


@njit(**FAST)
def _called_rows(first, count, theta, data, scratch):
    """`_relu_rows` of an activation that is called; leave ``phi(Z)`` in ``A``."""
    v, Z, A, zero = theta, scratch.Z, scratch.A, theta.dtype.type(0)
    f, norm, x = scratch.samples[OUTPUT], scratch.samples[NORM], data.squared_norms
    for i in range(first, first + count):
        z, a = Z[i].ctypes.data, A[i].ctypes.data
        _call_rows(data.phi, z, a, z, data.width)
        output, q, m = zero, zero, zero
        for j in range(data.width):
            output += v[j] * A[i, j]
            q += A[i, j] * A[i, j]
            m += v[j] * v[j] * Z[i, j] * Z[i, j]
        f[i], norm[i] = output, q + x[i] * m


@njit(**JIT)
def _call_residuals(data, f, s):
    for i in range(data.y.size):
        s[i] = call_scalar(data.residual, f[i], data.y[i])


@njit(**FAST)
def _clip_residuals(data, rule, scratch):
    """From outputs and squared norms to the clipped residuals ``s_i = c_i r_i``; 0 on padding."""
    f, norm, s = scratch.samples[OUTPUT], scratch.samples[NORM], scratch.samples[RESIDUAL]
    y, one = data.y, data.y.dtype.type(1)
    if data.loss == LOGISTIC:
        for i in range(y.size):
            s[i] = -y[i] / (one + math.exp(y[i] * f[i]))
    elif data.loss == SQUARE:
        for i in range(y.size):
            s[i] = f[i] - y[i]
    else:
        _call_residuals(data, f, s)
    clip, stabiliser = y.dtype.type(rule.clip), y.dtype.type(rule.stabiliser)
    if rule.clipping == FLAT:
        for i in range(y.size):
            g = abs(s[i]) * math.sqrt(norm[i])
            s[i] *= clip / g if g > clip else one
    elif rule.clipping == NORMALISED:
        for i in range(y.size):
            s[i] *= clip / (abs(s[i]) * math.sqrt(norm[i]) + stabiliser)
    for i in range(y.size, s.size):
        s[i] = 0


@njit(**FAST)
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


@njit(**FAST)
def _linear_outputs(theta, data, rule, scratch):
    """Outputs and squared norms of a linear net, through ``W^T v``."""
    v, W, X, Z = theta, _first_layer(theta, data, scratch), data.X, scratch.Z
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


@njit(**FAST)
def _mark_active(first, count, data, scratch):
    """Keep each neuron's largest (pre-)activation: a neuron is dead if it is not positive."""
    Z, active = scratch.Z, scratch.neurons[ACTIVE]
    for i in range(first, min(first + count, data.y.size)):
        for j in range(data.width):
            active[j] = Z[i, j] if Z[i, j] > active[j] else active[j]


@njit(**JIT)
def _call_features(data, scratch):
    """Overwrite ``Z`` by ``phi(Z)``; what ``A`` holds is lost."""
    Z, A = scratch.Z, scratch.A
    for i in range(Z.shape[0]):
        z = Z[i].ctypes.data
        _call_rows(data.phi, z, z, A[i].ctypes.data, data.width)


@njit(**FAST)
def freeze(theta, data, scratch):
    """Leave the hidden features in ``Z`` and their squared norms in `NORM`, for linear probing."""
    for block in range(data.rows.shape[0]):
        _preactivate(theta, block, data, scratch)
    Z, zero = scratch.Z, theta.dtype.type(0)
    for i in range(data.features.shape[0]):
        for j in range(data.width):
            Z[i, j] = data.features[i, j]
    if data.activation == CALLED:
        _call_features(data, scratch)
    for i in range(Z.shape[0]):
        q = zero
        for j in range(data.width):
            if data.activation == RELU:
                Z[i, j] = zero if Z[i, j] <= zero else Z[i, j]
            q += Z[i, j] * Z[i, j]
        scratch.samples[NORM, i] = q


@njit(**JIT)
def _evaluate(theta, data, rule, scratch, mark):
    """Outputs and clipped residuals at ``theta``; False if anything is not finite."""
    if mark:
        scratch.neurons[ACTIVE, :] = 0
    if rule.method == LP:
        if mark:
            _mark_active(np.int64(0), scratch.Z.shape[0], data, scratch)
        _feature_outputs(theta, data, scratch)
    else:
        for block in range(data.rows.shape[0]):
            if data.activation != LINEAR or rule.clipping != UNCLIPPED:
                _preactivate(theta, block, data, scratch)
            first, count = data.rows[block, 0], data.rows[block, 1]
            if data.activation == RELU:
                if mark:
                    _mark_active(first, count, data, scratch)
                _relu_rows(first, count, theta, data, scratch)
            elif data.activation == CALLED:
                _called_rows(first, count, theta, data, scratch)
        if data.activation == LINEAR:
            _linear_outputs(theta, data, rule, scratch)
    check = 0.0
    for i in range(data.y.size):
        f = np.float64(scratch.samples[OUTPUT, i])
        check += f * f + np.float64(scratch.samples[NORM, i])
    _clip_residuals(data, rule, scratch)
    return math.isfinite(check)


@njit(**FAST)
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


@njit(**FAST)
def _descend_relu(theta, rate, data, scratch):
    """``w_j -= rate v_j p_j`` and ``v_j -= rate w_j . p_j``, with ``p_j = sum_i s_i phi'(z_ij) x_i``.

    By homogeneity ``sum_i s_i phi(z_ij) = w_j . p_j``, so the features themselves are not needed.
    """
    s, scaled, X = scratch.samples[RESIDUAL], scratch.X, data.X
    for i in range(X.shape[0]):
        for c in range(X.shape[1]):
            scaled[i, c] = s[i] * X[i, c]
    W, P = _first_layer(theta, data, scratch), scratch.P
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


@njit(**FAST)
def _descend_called(theta, rate, data, scratch):
    """``w_j -= rate v_j sum_i s_i phi'(z_ij) x_i`` and ``v -= rate A^T s``."""
    s, scaled, X = scratch.samples[RESIDUAL], scratch.X, data.X
    for i in range(X.shape[0]):
        for c in range(X.shape[1]):
            scaled[i, c] = s[i] * X[i, c]
    W, P, v = _first_layer(theta, data, scratch), scratch.P, scratch.neurons[HEAD]
    for j in range(data.width):
        v[j] = rate * theta[j]
    for block in range(data.columns.shape[0]):
        _pull_back(block, data, scratch)
        first = data.columns[block, 0]
        for c in range(data.columns[block, 1]):
            for j in range(data.width):
                W[first + c, j] -= v[j] * P[c, j]
    _descend_head(theta, rate, scratch.A, data, scratch)


@njit(**FAST)
def _descend_linear(theta, rate, data, scratch):
    """``W -= rate v u^T`` and ``v -= rate W u`` with ``u = X^T s``."""
    s, X, u, W = (
        scratch.samples[RESIDUAL],
        data.X,
        scratch.inputs[PULLBACK],
        _first_layer(theta, data, scratch),
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


@njit(**JIT)
def _descend(theta, rate, data, rule, scratch):
    """``theta -= rate * gradient`` at what `_evaluate` left in ``scratch``."""
    if rule.method == LP:
        _descend_head(theta, rate, scratch.Z, data, scratch)
    elif data.activation == RELU:
        _descend_relu(theta, rate, data, scratch)
    elif data.activation == LINEAR:
        _descend_linear(theta, rate, data, scratch)
    else:
        _descend_called(theta, rate, data, scratch)


@njit(**JIT)
def drift(theta, out, data, rule, scratch):
    """Write the clipped drift at ``theta`` to ``out``, laid out like ``theta``.

    In linear probing the features must have been frozen, and the head's slot alone will do.
    """
    data, scratch = _borrow(data), _borrow(scratch)
    _evaluate(theta, data, rule, scratch, False)
    out[:] = theta
    _descend(out, theta.dtype.type(1), data, rule, scratch)
    out -= theta


# --- observables -----------------------------------------------------------------------------


@njit(**JIT)
def _loss_and_accuracy(data, scratch):
    loss, correct = 0.0, 0
    for i in range(data.y.size):
        f, y = np.float64(scratch.samples[OUTPUT, i]), np.float64(data.y[i])
        if data.loss == LOGISTIC:
            loss += max(-y * f, 0.0) + math.log1p(math.exp(-abs(f)))
        elif data.loss == SQUARE:
            loss += 0.5 * (f - y) ** 2
        else:
            loss += call_scalar(data.value, f, y)
        correct += y * f > 0
    return loss, correct / data.y.size


@njit(**FAST)
def _class_means(theta, data, scratch, means):
    """Mean pre-activation of each neuron on each class, and its squared norm in the span."""
    W = _first_layer(theta, data, scratch)
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


# in line: a copy of its own, and the caller's from the cache, might add in different orders
@njit(**FAST, forceinline=True)
def _squared_distance(theta, other, data, scratch):
    W, V = _first_layer(theta, data, scratch), _first_layer(other, data, scratch)
    total = 0.0
    for c in range(W.shape[0]):
        part = theta.dtype.type(0)
        for j in range(data.width):
            part += (W[c, j] - V[c, j]) * (W[c, j] - V[c, j])
        total += np.float64(part)
    for j in range(data.width):
        total += np.float64(theta[j] - other[j]) ** 2
    return total


@njit(**FAST)
def _move_complement(complement, scale, dim, step, path, k0, k1):
    """Move the part of ``W`` outside the data's span, Brownian, over one record interval, in law.

    ``complement (2, h)`` holds each neuron's move along its starting direction and the squared norm
    across it, a squared Bessel process of dimension ``dim - 1``. Returns the squared displacement.
    """
    total = 0.0
    for j in range(complement.shape[1]):
        w0, w1, _, _ = _philox(
            np.uint64(j), np.uint64(step), np.uint64(path), np.uint64(COMPLEMENT_STREAM), k0, k1
        )
        a, b = _sincos64(w1)
        radius = _radius64(w0)
        complement[0, j] += scale * radius * a
        if dim > 1:
            across = math.sqrt(complement[1, j]) + scale * radius * b
            rest = _chi_square(dim - 2, j, step, path, COMPLEMENT_STREAM, k0, k1)
            complement[1, j] = across * across + scale * scale * rest
        total += complement[0, j] ** 2 + complement[1, j]
    return total


@njit(**JIT)
def move_complements(complements, diverged, scale, dim, draw, first_path, k0, k1, moved):
    """Move what lies outside the span on all paths that are finite; ``moved (paths,)`` as it returns."""
    for p in range(complements.shape[0]):
        if diverged[p] < 0:
            moved[p] = _move_complement(complements[p], scale, dim, draw, first_path + p, k0, k1)


@njit(**JIT)
def _observe(r, draw, theta, complement, path, k0, k1, data, scratch, records, scalars, neurons):
    """Write the observables of record ``r``: ``scalars (SCALARS, m)``, ``neurons (3, m, h)`` or empty.

    ``draw`` counts draws on the noise's own grid: what lies outside the span moves by its stream there.
    """
    loss, accuracy = _loss_and_accuracy(data, scratch)
    outside = 0.0
    if records.complement_dim > 0:
        outside = _move_complement(
            complement,
            records.complement_scale[r],
            records.complement_dim,
            draw,
            path,
            k0,
            k1,
        )
    scalars[LOSS, r], scalars[ACCURACY, r] = loss, accuracy
    scalars[DISPLACEMENT, r] = _squared_distance(theta, records.origin, data, scratch) + outside
    if records.reference.shape[0] > 0:
        scalars[DISTANCE, r] = _squared_distance(theta, records.reference[r], data, scratch) + outside
    if records.own.size == 0:
        return
    _class_means(theta, data, scratch, records.means)
    misaligned, distorted, dead = 0, 0, 0
    start = scratch.neurons[START]
    for j in range(data.width):
        positive = records.own[j] > 0
        preactivation = scratch.neurons[POSITIVE_MEAN if positive else NEGATIVE_MEAN, j]
        head = records.own[j] * theta[j]
        misaligned += head < 0
        distorted += preactivation < start[j]
        dead += data.activation == RELU and not scratch.neurons[ACTIVE, j] > 0
        if neurons.size > 0:
            outside = records.complement_norms[j]
            squared = np.float64(scratch.neurons[SQUARED, j])
            if records.complement_dim > 0:
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


# --- the Gram matrix of a linear net ---------------------------------------------------------


@njit(**FAST)
def _householder(triangle, stack, rows):
    """Bring ``stack`` below an upper triangular ``triangle`` into it; columns lie contiguously."""
    for j in range(triangle.shape[0]):
        b, corner, squared = stack[j], triangle[j, j], triangle.dtype.type(0)
        for i in range(rows):
            squared += b[i] * b[i]
        if squared == 0:
            continue
        norm = math.copysign(math.sqrt(corner * corner + squared), -corner)
        triangle[j, j] = norm
        for i in range(rows):
            b[i] /= corner - norm
        rate = (norm - corner) / norm
        for c in range(j + 1, triangle.shape[0]):
            x, t = stack[c], triangle[c, j]
            for i in range(rows):
                t += b[i] * x[i]
            t *= rate
            triangle[c, j] -= t
            for i in range(rows):
                x[i] -= t * b[i]


def _tpqrt(triangle, stack, rows, reflectors, ints):
    raise NotImplementedError("compiled code only")


@overload(_tpqrt)
def _tpqrt_overload(triangle, stack, rows, reflectors, ints):
    """`_householder` by LAPACK."""
    routine = _DTPQRT if triangle.dtype == types.float64 else _STPQRT

    def tpqrt(triangle, stack, rows, reflectors, ints):
        ints[0], ints[1], ints[2], ints[3] = rows, triangle.shape[0], 0, REFLECTORS
        ints[4], ints[5], ints[6] = triangle.shape[1], stack.shape[1], REFLECTORS
        at, t, work = ints.ctypes.data, reflectors[0].ctypes.data, reflectors[1].ctypes.data
        a, b = triangle.ctypes.data, stack.ctypes.data
        routine(at, at + 4, at + 8, at + 12, a, at + 16, b, at + 20, t, at + 24, work, at + 28)

    return tpqrt


def _fold(theta, draw, path, k0, k1, data, rule, scratch):
    raise NotImplementedError("compiled code only")


@overload(_fold)
def _fold_overload(theta, draw, path, k0, k1, data, rule, scratch):
    if isinstance(scratch.types[scratch.fields.index("triangle")], types.NoneType):
        return lambda theta, draw, path, k0, k1, data, rule, scratch: None
    return lambda theta, draw, path, k0, k1, data, rule, scratch: _fold_neurons(
        theta, draw, path, k0, k1, data, rule, scratch
    )


@njit(**FAST)
def _fold_neurons(theta, draw, path, k0, k1, data, rule, scratch):
    """Give the last ``q + 1`` neurons of a linear net the noise of ``folded`` others, in law.

    Full fine-tuning: the others are zero before the step and Gaussian after it, so their Gram matrix is a
    Wishart; Bartlett's triangular factor of it and the last neurons are brought to ``q`` neurons and a zero
    one. Linear probing: the others have a head only, like the last neuron, which takes their norm.
    """
    q = data.inputs + 1
    first = data.width - (q + 1)
    if rule.method == LP:
        tail = np.float64(theta[first + q])
        rest = _chi_square(rule.folded, np.int64(0), draw, path, WISHART_STREAM, k0, k1)
        theta[first + q] = math.sqrt(tail * tail + np.float64(rule.noise) ** 2 * rest)
        return
    W, triangle, stack, normals = (
        _first_layer(theta, data, scratch),
        scratch.triangle,
        scratch.stack,
        scratch.bartlett,
    )
    triangle[:] = 0
    if rule.noise > 0:
        normals[:] = 0
        add_normals(normals, normals.size, rule.noise, draw, path, WISHART_STREAM, k0, k1, scratch.words)
        at = 0
        for c in range(q):
            for i in range(min(c, rule.folded)):
                triangle[c, i] = normals[at + i]
            at += c
            if c < rule.folded:
                squared = _chi_square(rule.folded - c, c, draw, path, WISHART_STREAM, k0, k1)
                triangle[c, c] = rule.noise * math.sqrt(squared)
    for i in range(q + 1):
        stack[q - 1, i] = theta[first + i]
        for c in range(q - 1):
            stack[c, i] = W[c, first + i]
    if q <= HOUSEHOLDER:
        _householder(triangle, stack, q + 1)
    else:
        _tpqrt(triangle, stack, q + 1, scratch.reflectors, scratch.ints)
    # beyond the diagonal both leave the triangle as it was: zero
    for i in range(q + 1):
        theta[first + i] = triangle[q - 1, i]
        for c in range(q - 1):
            W[c, first + i] = triangle[c, i]


# --- the step loops --------------------------------------------------------------------------


@njit(**JIT)
def advance(
    thetas,
    complements,
    diverged,
    first_path,
    first,
    stop,
    last,
    k0,
    k1,
    data,
    rule,
    scratch,
    records,
    scalars,
    neurons,
):
    """Run the paths of a chunk from step ``first`` to ``stop``, within one phase.

    Parameters
    ----------
    thetas : ndarray, shape (paths, size)
        States, advanced in place.
    complements : ndarray, shape (paths, 2, h) or (paths, 2, 0)
        Parts outside the span, see `_move_complement`.
    diverged : ndarray of int64, shape (paths,)
        -1, or the step at which a path was no longer finite; such a path is left alone.
    first_path : int
        Index of the chunk's first path: its stream of noise.
    last : bool
        Whether ``stop`` ends the run, so that a record at ``stop`` is taken here.
    k0, k1 : uint64
        Key of the noise, two 32-bit words.
    scalars, neurons : ndarray, shapes (paths, SCALARS, m) and (paths, 3, m, h) or (paths, 3, 0, 0)
        Where observables go.
    """
    data, scratch, records = _borrow(data), _borrow(scratch), _borrow(records)
    start_record = np.searchsorted(records.steps, first)
    if records.own.size > 0:
        _class_means(records.origin, data, scratch, records.means)
        for j in range(data.width):
            scratch.neurons[START, j] = scratch.neurons[
                POSITIVE_MEAN if records.own[j] > 0 else NEGATIVE_MEAN, j
            ]
    for p in range(thetas.shape[0]):
        if diverged[p] >= 0:
            continue
        theta, complement, path = thetas[p], complements[p], first_path + p
        trained = data.head if rule.method == LP else theta.size
        if rule.method == LP:
            freeze(theta, data, scratch)
        r = start_record
        for step in range(first, stop + last):
            recording = r < records.steps.size and records.steps[r] == step
            if step == stop and not recording:
                break
            if not _evaluate(theta, data, rule, scratch, recording):
                diverged[p] = step
                break
            if recording:
                draw = step * rule.draws
                _observe(
                    r, draw, theta, complement, path, k0, k1, data, scratch, records, scalars[p], neurons[p]
                )
                r += 1
            if step == stop:
                break
            _descend(theta, rule.dt, data, rule, scratch)
            for draw in range(step * rule.draws, (step + 1) * rule.draws):
                if rule.noise > 0:
                    add_normals(theta, trained, rule.noise, draw, path, STATE_STREAM, k0, k1, scratch.words)
                if rule.folded > 0:
                    _fold(theta, draw, path, k0, k1, data, rule, scratch)


@njit(**JIT)
def advance_collapsed(
    thetas,
    complements,
    diverged,
    first_path,
    first,
    stop,
    last,
    k0,
    k1,
    data,
    rule,
    scratch,
    records,
    scalars,
    neurons,
):
    """`advance` for a linear net in full fine-tuning whose samples all have the same ``y_i x_i``.

    With ``u = W x / ||x||``, ``p = (v + u) / sqrt(2)`` and ``m = (v - u) / sqrt(2)`` grow and shrink alone
    (theory, section 7e). A state is ``(p along its start, norm of p across it, the same of m)``.
    """
    samples, gamma = data.y.size, np.float64(data.squared_norms[0])
    dt, noise = np.float64(rule.dt), np.float64(rule.noise)
    start_record = np.searchsorted(records.steps, first)
    for p in range(thetas.shape[0]):
        if diverged[p] >= 0:
            continue
        theta, complement, path = thetas[p], complements[p], first_path + p
        r = start_record
        for step in range(first, stop + last):
            recording = r < records.steps.size and records.steps[r] == step
            if step == stop and not recording:
                break
            a, b, c, d = (
                np.float64(theta[0]),
                np.float64(theta[1]),
                np.float64(theta[2]),
                np.float64(theta[3]),
            )
            plus, minus = a * a + b * b, c * c + d * d
            margin = 0.5 * math.sqrt(gamma) * (plus - minus)
            if not math.isfinite(plus + minus):
                diverged[p] = step
                break
            if recording:
                _observe_collapsed(
                    r, step, margin, theta, complement, path, k0, k1, data, records, scalars[p]
                )
                r += 1
            if step == stop:
                break
            if data.loss == LOGISTIC:
                pull = 1.0 / (1.0 + math.exp(margin))
            elif data.loss == SQUARE:
                pull = 1.0 - margin
            else:
                pull = -call_scalar(data.residual, margin, 1.0)
            norm = abs(pull) * math.sqrt(gamma * (plus + minus))
            if rule.clipping == FLAT:
                pull *= rule.clip / norm if norm > rule.clip else 1.0
            elif rule.clipping == NORMALISED:
                pull *= rule.clip / (norm + rule.stabiliser)
            growth = samples * math.sqrt(gamma) * pull * dt
            a, b, c, d = a * (1.0 + growth), b * (1.0 + growth), c * (1.0 - growth), d * (1.0 - growth)
            if noise > 0:
                w0, w1, w2, w3 = _philox(
                    np.uint64(0), np.uint64(step), np.uint64(path), np.uint64(STATE_STREAM), k0, k1
                )
                x0, x1 = _sincos64(w1)
                x2, x3 = _sincos64(w3)
                first_radius, second_radius = noise * _radius64(w0), noise * _radius64(w2)
                a += first_radius * x0
                c += second_radius * x2
                b = _across(b + first_radius * x1, noise, rule.folded, 0, step, path, k0, k1)
                d = _across(d + second_radius * x3, noise, rule.folded, 1, step, path, k0, k1)
            theta[0], theta[1], theta[2], theta[3] = a, b, c, d


@njit(**JIT)
def _across(x, noise, degrees, counter, step, path, k0, k1):
    """Norm of ``(x, noise xi)`` for ``degrees`` standard normals ``xi``."""
    rest = _chi_square(degrees, np.int64(counter), step, path, WISHART_STREAM, k0, k1)
    return math.sqrt(x * x + noise * noise * rest)


@njit(**JIT)
def _observe_collapsed(r, step, margin, theta, complement, path, k0, k1, data, records, scalars):
    """Write the observables of record ``r`` of a collapsed net."""
    if data.loss == LOGISTIC:
        loss = max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))
    elif data.loss == SQUARE:
        loss = 0.5 * (1.0 - margin) ** 2
    else:
        loss = call_scalar(data.value, margin, 1.0)
    outside = 0.0
    if records.complement_dim > 0:
        outside = _move_complement(
            complement, records.complement_scale[r], records.complement_dim, step, path, k0, k1
        )
    scalars[LOSS, r], scalars[ACCURACY, r] = data.y.size * loss, margin > 0
    displacement, distance = outside, outside
    for i in range(4):
        displacement += np.float64(theta[i] - records.origin[i]) ** 2
        if records.reference.shape[0] > 0:
            distance += np.float64(theta[i] - records.reference[r, i]) ** 2
    scalars[DISPLACEMENT, r] = displacement
    if records.reference.shape[0] > 0:
        scalars[DISTANCE, r] = distance
