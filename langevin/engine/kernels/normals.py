"""Normal and chi-square draws, as functions of a counter."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from langevin.engine.kernels.jit import FAST, JIT, MATH, njit

# Philox lanes in a batch, and normals that a batch gives
LANES = 32
TILE = 4 * LANES

# streams of a path
STATE_STREAM, COMPLEMENT_STREAM, WISHART_STREAM, BATCH_STREAM = 0, 1, 2, 3

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_LN2 = 0.6931471805599453
_QUARTER_TURN = math.pi / 2 * 2.0**-30


@njit(**JIT, forceinline=True)
def philox(a, b, c, d, k0, k1):
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
        a, b, c, d = philox((first + np.uint64(lane)) & _LOW, c1, c2, c3, k0, k1)
        words[0, lane], words[1, lane], words[2, lane], words[3, lane] = a, b, c, d


@njit(**FAST, forceinline=True)
def radius64(word):
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
def sincos64(word):
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
        radius = scale * radius64(w0)
        x, y = sincos64(w1)
        return radius * x, radius * y

    return double


@njit(**FAST)
def add_tiles(x, first, stop, scale, step, path, stream, k0, k1, words):
    """`add_normals` on the tiles from ``first`` to ``stop`` alone."""
    c1, c2, c3 = np.uint64(step), np.uint64(path), np.uint64(stream)
    for tile in range(first, stop):
        philox_batch(words, np.uint64(tile * LANES), c1, c2, c3, k0, k1)
        # a view: indices that cannot be negative, so that the loop is vectorised
        part = x[tile * TILE : (tile + 1) * TILE]
        for lane in range(LANES):
            a, b = _box_muller(words[0, lane], words[1, lane], scale)
            c, d = _box_muller(words[2, lane], words[3, lane], scale)
            part[lane] += a
            part[LANES + lane] += b
            part[2 * LANES + lane] += c
            part[3 * LANES + lane] += d


@njit(**FAST)
def add_normals(x, size, scale, step, path, stream, k0, k1, words):
    """Add ``scale`` times the standard normals of ``(path, step)`` to ``x[:size]``.

    ``size`` must be a multiple of `TILE`. Normal ``e`` of a step depends on ``(key, path, stream, step, e)``
    alone.
    """
    add_tiles(x, 0, size // TILE, scale, step, path, stream, k0, k1, words)


@njit(**FAST)
def chi_square(degrees, counter, step, path, stream, k0, k1):
    """One chi-square draw, by Marsaglia and Tsang's method; ``degrees >= 0`` a whole number."""
    if degrees == 0:
        return 0.0
    c0, c1, c2 = np.uint64(counter), np.uint64(step), np.uint64(path)
    shape = 0.5 * degrees - 1.0 / 3.0
    attempt = 1
    while True:
        w0, w1, w2, w3 = philox(c0, c1, c2, np.uint64(stream | (attempt << 8)), k0, k1)
        x = radius64(w0) * sincos64(w1)[0]
        if degrees == 1:
            return x * x
        cube = 1.0 + x / math.sqrt(9.0 * shape)
        u = (np.float64(np.int64((w2 << np.uint64(20)) ^ (w3 >> np.uint64(12)))) + 0.5) * 2.0**-52
        if cube > 0.0:
            cube = cube * cube * cube
            if math.log(u) < 0.5 * x * x + shape * (1.0 - cube + math.log(cube)):
                return 2.0 * shape * cube
        attempt += 1
