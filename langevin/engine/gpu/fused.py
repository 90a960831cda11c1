"""The passes of `langevin.engine.gpu.chain` over activations and states, as kernels for a GPU.

They mirror the plain forms there, line by line; scalars come in device arrays, since Triton would round
a float argument to single precision.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language.random import philox_impl

from langevin.engine.kernels.normals import LANES
from langevin.engine.kernels.types import FLAT, LP, NORMALISED, Rule

_LANES = tl.constexpr(LANES)
_FLAT, _NORMALISED = tl.constexpr(FLAT), tl.constexpr(NORMALISED)
_LN2 = tl.constexpr(0.6931471805599453)
_QUARTER_TURN = tl.constexpr(1.5707963267948966 * 2.0**-30)

# of a program: Philox counters and warps; bytes of a block, most bytes of its rows, and warps
_NOISE = (128, 2)
_ROWS = (2048, 2048, 1)
_COLUMNS = (8192, 256, 4)


@triton.jit
def _radius64(word):
    """As in `langevin.engine.kernels.loop`, like the functions below."""
    bits = (word.to(tl.float64) + 0.5).to(tl.int64, bitcast=True)
    e = (bits - 0x3FE6A09E667F3BCD) >> 52
    f = (bits - (e << 52)).to(tl.float64, bitcast=True) - 1.0
    s = f / (2.0 + f)
    z = s * s
    p = z * 1.479819860511658591e-01 + 1.531383769920937332e-01
    p = z * p + 1.818357216161805012e-01
    p = z * p + 2.222219843214978396e-01
    p = z * p + 2.857142874366239149e-01
    p = z * p + 3.999999999940941908e-01
    p = z * (z * p + 6.666666666666735130e-01)
    half = 0.5 * f * f
    return tl.sqrt(-2.0 * (f - (half - s * (half + p)) + (e - 32).to(tl.float64) * _LN2))


@triton.jit
def _turn(word):
    """Quadrant, and the rest of the angle as a signed fraction of a turn times 2^32."""
    quadrant = (word + (1 << 29)) >> 30
    return quadrant, (word - (quadrant << 30)).to(tl.int32, bitcast=True)


@triton.jit
def _rotate(quadrant, sin, cos):
    odd = (quadrant & 1) != 0
    x, y = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    x = tl.where(((quadrant + 1) & 2) != 0, -x, x)
    return x, tl.where((quadrant & 2) != 0, -y, y)


@triton.jit
def _sincos64(word):
    quadrant, rest = _turn(word)
    r = rest.to(tl.float64) * _QUARTER_TURN
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
    return _rotate(quadrant, sin, 1.0 - 0.5 * z + z * z * p)


@triton.jit
def _radius32(word):
    u = (word >> 1).to(tl.int32, bitcast=True).to(tl.float32) * 2.0**-31 + 2.0**-33
    bits = u.to(tl.int32, bitcast=True)
    e = (bits - 0x3F3504F3) >> 23
    f = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    z = f * f
    p = f * 7.0376836292e-2 - 1.1514610310e-1
    p = f * p + 1.1676998740e-1
    p = f * p - 1.2420140846e-1
    p = f * p + 1.4249322787e-1
    p = f * p - 1.6668057665e-1
    p = f * p + 2.0000714765e-1
    p = f * p - 2.4999993993e-1
    p = f * p + 3.3333331174e-1
    return tl.sqrt_rn(-2.0 * (f * z * p - 0.5 * z + f + e.to(tl.float32) * _LN2))


@triton.jit
def _sincos32(word):
    quadrant, rest = _turn(word)
    r = rest.to(tl.float32) * _QUARTER_TURN
    z = r * r
    p = z * -1.9515295891e-4 + 8.3321608736e-3
    p = z * p - 1.6666654611e-1
    sin = r + r * z * p
    p = z * 2.443315711809948e-5 - 1.388731625493765e-3
    p = z * p + 4.166664568298827e-2
    return _rotate(quadrant, sin, 1.0 - 0.5 * z + z * z * p)


@triton.jit
def _box_muller(w0, w1, scale):
    if scale.dtype == tl.float64:
        radius = scale * _radius64(w0)
        x, y = _sincos64(w1)
    else:
        radius = scale * _radius32(w0)
        x, y = _sincos32(w1)
    return radius * x, radius * y


@triton.jit
def _add_normals(theta, size, counters, numbers, clock, draws, draw, BLOCK: tl.constexpr):
    path = tl.program_id(0)
    counter = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = counter < counters
    zero = tl.zeros([BLOCK], tl.uint32)
    step, first_path = tl.load(clock), tl.load(clock + 1)
    k0, k1 = tl.load(clock + 2).to(tl.uint32), tl.load(clock + 3).to(tl.uint32)
    w0, w1, w2, w3 = philox_impl(
        counter.to(tl.uint32),
        zero + ((step - 1) * draws + draw).to(tl.uint32),
        zero + (first_path + path).to(tl.uint32),
        zero,
        zero + k0,
        zero + k1,
        10,
    )
    at = theta + path.to(tl.int64) * size + counter // _LANES * (4 * _LANES) + counter % _LANES
    # all loads before the stores, so that none waits for the previous one
    x0, x1 = tl.load(at, mask), tl.load(at + _LANES, mask)
    x2, x3 = tl.load(at + 2 * _LANES, mask), tl.load(at + 3 * _LANES, mask)
    scale = tl.load(numbers + 3).to(theta.dtype.element_ty)
    a, b = _box_muller(w0, w1, scale)
    c, d = _box_muller(w2, w3, scale)
    tl.store(at, x0 + a, mask)
    tl.store(at + _LANES, x1 + b, mask)
    tl.store(at + 2 * _LANES, x2 + c, mask)
    tl.store(at + 3 * _LANES, x3 + d, mask)


@triton.jit
def _rows(
    Z,
    theta,
    size,
    y,
    squared_norms,
    f_out,
    s_out,
    diverged,
    numbers,
    clock,
    n,
    h,
    PROBING: tl.constexpr,
    RELU: tl.constexpr,
    LOGISTIC: tl.constexpr,
    CLIPPING: tl.constexpr,
    ROWS: tl.constexpr,
    NEURONS: tl.constexpr,
):
    path = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = i < n
    dtype = Z.dtype.element_ty
    f = tl.zeros([ROWS], dtype)
    norm = tl.zeros([ROWS], dtype)
    heads = tl.zeros([ROWS], dtype)
    for first in range(0, h, NEURONS):
        j = first + tl.arange(0, NEURONS)
        mask = inside[:, None] & (j < h)[None, :]
        z = tl.load(Z + path * n * h + i[:, None] * h + j[None, :], mask, other=0.0)
        v = tl.load(theta + path * size + j, j < h, other=0.0)[None, :]
        a, squared = z, tl.broadcast_to(v * v, [ROWS, NEURONS])
        if RELU:
            # z <= 0, not z > 0: a NaN has to pass
            a = tl.where(z <= 0, 0.0, z)
            squared = tl.where(z <= 0, 0.0, v * v)
        f += tl.sum(v * a, 1)
        norm += tl.sum(a * a, 1)
        heads += tl.sum(squared, 1)
    if not PROBING:
        norm += tl.load(squared_norms + i, inside, other=0.0) * heads
    target = tl.load(y + i, inside, other=0.0)
    s = -target / (1.0 + tl.exp(target * f)) if LOGISTIC else f - target
    clip, stabiliser = tl.load(numbers).to(dtype), tl.load(numbers + 1).to(dtype)
    if CLIPPING == _FLAT:
        g = tl.abs(s) * tl.sqrt(norm)
        s = tl.where(g > clip, s * (clip / g), s)
    elif CLIPPING == _NORMALISED:
        s *= clip / (tl.abs(s) * tl.sqrt(norm) + stabiliser)
    tl.store(f_out + path * n + i, f, inside)
    tl.store(s_out + path * n + i, s, inside)
    check = f.to(tl.float64) * f.to(tl.float64) + norm.to(tl.float64)
    lost = tl.sum(tl.where((check < float("inf")) | (i >= n), 0, 1), 0) > 0
    alive = tl.load(diverged + path) < 0
    # all programs of a path write the same
    tl.store(diverged + path, tl.load(clock), lost & alive)


@triton.jit
def _columns(
    Z,
    theta,
    size,
    s,
    numbers,
    clock,
    n,
    h,
    RELU: tl.constexpr,
    STORE: tl.constexpr,
    ROWS: tl.constexpr,
    NEURONS: tl.constexpr,
):
    path = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * NEURONS + tl.arange(0, NEURONS)
    dtype = Z.dtype.element_ty
    head = theta + path * size + j
    v = tl.load(head, j < h, other=0.0)
    gradient = tl.zeros([ROWS, NEURONS], dtype)
    for first in range(0, n, ROWS):
        i = first + tl.arange(0, ROWS)
        mask = (i < n)[:, None] & (j < h)[None, :]
        at = Z + path * n * h + i[:, None] * h + j[None, :]
        z = tl.load(at, mask, other=0.0)
        residual = tl.load(s + path * n + i, i < n, other=0.0)[:, None]
        gradient += residual * (tl.where(z <= 0, 0.0, z) if RELU else z)
        if STORE:
            tl.store(at, tl.where(z <= 0, 0.0, residual * v[None, :]), mask)
    dt = tl.load(numbers + 2).to(dtype)
    tl.store(head, v - dt * tl.sum(gradient, 0), j < h)
    tl.store(clock, tl.load(clock) + 1, (tl.program_id(0) == 0) & (tl.program_id(1) == 0))


# --- as `langevin.engine.gpu.chain` calls them --------------------------------------------------------


def _block(Z: Any, size: int, longest: int, warps: int) -> dict[str, int]:
    """Shape of a program's block of activations."""
    width, itemsize = Z.shape[2], Z.element_size()
    neurons = min(triton.next_power_of_2(width), longest // itemsize)
    return dict(ROWS=max(1, size // itemsize // neurons), NEURONS=neurons, num_warps=warps)


def add_normals(e: Any, trained: int, rule: Rule, draw: int) -> None:
    """See `langevin.engine.gpu.chain`."""
    counters, (block, warps) = trained // 4, _NOISE
    _add_normals[len(e.theta), triton.cdiv(counters, block)](
        e.theta,
        e.theta.shape[1],
        counters,
        e.numbers,
        e.clock,
        rule.draws,
        draw,
        BLOCK=block,
        num_warps=warps,
    )


def rows(e: Any, rule: Rule) -> None:
    """See `langevin.engine.gpu.chain`."""
    paths, n, h = e.Z.shape
    block = _block(e.Z, *_ROWS)
    _rows[paths, triton.cdiv(n, block["ROWS"])](
        e.Z,
        e.theta,
        e.theta.shape[1],
        e.y,
        e.squared_norms,
        e.f,
        e.s,
        e.diverged,
        e.numbers,
        e.clock,
        n,
        h,
        PROBING=rule.method == LP,
        RELU=e.activation.name == "relu",
        LOGISTIC=e.loss.name == "logistic",
        CLIPPING=rule.clipping,
        **block,
    )


def columns(e: Any, store: bool) -> None:
    """See `langevin.engine.gpu.chain`."""
    paths, n, h = e.Z.shape
    block, relu = _block(e.Z, *_COLUMNS), e.activation.name == "relu"
    _columns[paths, triton.cdiv(h, block["NEURONS"])](
        e.Z, e.theta, e.theta.shape[1], e.s, e.numbers, e.clock, n, h, RELU=relu, STORE=store, **block
    )
