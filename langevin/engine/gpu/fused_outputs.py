"""The passes of `langevin.engine.gpu.passes_outputs`, as kernels for a GPU.

They mirror the plain forms there; scalars come in device arrays, as in `langevin.engine.gpu.fused`.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from langevin.engine.gpu.outputs import Block
from langevin.engine.gpu.passes_outputs import add_head_gradient, outputs
from langevin.engine.kernels.outputs.types import COLUMN, LOGISTIC, MARGIN, SOFTMAX
from langevin.engine.kernels.types import FLAT, LP, NORMALISED, RELU, UNCLIPPED

_FLAT, _NORMALISED, _UNCLIPPED = tl.constexpr(FLAT), tl.constexpr(NORMALISED), tl.constexpr(UNCLIPPED)
_MARGIN, _COLUMN = tl.constexpr(MARGIN), tl.constexpr(COLUMN)
_SOFTMAX, _LOGISTIC = tl.constexpr(SOFTMAX), tl.constexpr(LOGISTIC)

# tiles that leave registers to two programs at once: most rows, and neurons, of those that run along rows; by
# bytes of a number, rows and neurons of those that run along columns
_ROWS, _COLUMNS = (64, 32), {4: (16, 64), 8: (32, 64)}


# --- passes --------------------------------------------------------------------------------------------


@triton.jit
def _rows(
    Z,
    z_path,
    theta,
    size,
    ld,
    Y,
    squared_norms,
    feature_norms,
    norms_path,
    index,
    members,
    R,
    r_path,
    r_row,
    r_output,
    diverged,
    numbers,
    clock,
    b,
    n,
    h,
    K: tl.constexpr,
    PROBING: tl.constexpr,
    RELU: tl.constexpr,
    LOSS: tl.constexpr,
    CLIPPING: tl.constexpr,
    LISTED: tl.constexpr,
    WEIGHED: tl.constexpr,
    GIVEN: tl.constexpr,
    ROWS: tl.constexpr,
    NEURONS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    path = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, OUTPUTS)
    real = (i < b)[:, None] & (k < K)[None, :]
    row = i.to(tl.int64)
    there = i < b
    if LISTED:
        row = tl.load(index + path * b + i, there, other=n)
        there = row < n
    if WEIGHED:
        there = there & (tl.load(members + path * n + i, there, other=0) != 0)
    valid = there[:, None] & (k < K)[None, :]
    dtype = R.dtype.element_ty
    # nothing to read where a program has padding alone
    stop = tl.where(tl.max(there.to(tl.int32), 0) > 0, h, 0)
    at = (row if PROBING else i.to(tl.int64))[:, None] * h
    feature = tl.zeros([ROWS], dtype)
    if PROBING:
        feature += tl.load(feature_norms + path * norms_path + row, there, other=0.0)
    f = tl.zeros([ROWS, OUTPUTS], dtype)
    to = R + path * r_path + i.to(tl.int64)[:, None] * r_row + k[None, :] * r_output
    if GIVEN:
        f += tl.load(to, valid, other=0.0)
    else:
        for first in range(0, stop, NEURONS):
            j = first + tl.arange(0, NEURONS)
            a = tl.load(Z + path * z_path + at + j[None, :], there[:, None] & (j < h)[None, :], other=0.0)
            head = theta + path * size + k[None, :] * ld + j[:, None]
            v = tl.load(head, (k < K)[None, :] & (j < h)[:, None], other=0.0)
            if not PROBING:
                if RELU:
                    # z <= 0, not z > 0: a NaN has to pass
                    a = tl.where(a <= 0, 0.0, a)
                feature += tl.sum(a * a, 1)
            f = tl.dot(a, v, f, input_precision="ieee", out_dtype=dtype)
    y = tl.load(Y + row[:, None] * K + k[None, :], valid, other=0.0)
    clip = tl.load(numbers).to(dtype)
    others = tl.zeros([ROWS], dtype)
    if LOSS == _SOFTMAX:
        # without cancellation, as on the processor
        shifted = tl.where((k < K)[None, :], f, -float("inf"))
        e = tl.exp(shifted - tl.max(shifted, 1)[:, None])
        total = tl.sum(e, 1)
        others = tl.sum(e * (1.0 - y), 1) / total
        r = e / total[:, None] * (1.0 - y) - others[:, None] * y
    elif LOSS == _LOGISTIC:
        r = -y / (1.0 + tl.exp(y * f))
    else:
        r = f - y
    r = tl.where(valid, r, 0.0)
    wide = tl.where(valid, f, 0.0).to(tl.float64)
    check = tl.sum(wide * wide, 1)
    if CLIPPING != _UNCLIPPED:
        check += tl.where(there, feature, 0.0).to(tl.float64)
    if CLIPPING == _MARGIN:
        g = others * tl.sqrt(2.0 * feature)
        r *= tl.where(g > clip, clip / g, 1.0)[:, None]
    elif CLIPPING == _COLUMN:
        g = tl.abs(r) * tl.sqrt(feature)[:, None]
        limit = clip / tl.sqrt(tl.full([], K, dtype))
        r *= tl.where(g > limit, limit / g, 1.0)
    elif CLIPPING != _UNCLIPPED:
        squared = tl.sum(r * r, 1) * feature
        if not PROBING:
            pulled = tl.zeros([ROWS], dtype)
            for first in range(0, stop, NEURONS):
                j = first + tl.arange(0, NEURONS)
                head = theta + path * size + k[:, None] * ld + j[None, :]
                v = tl.load(head, (k < K)[:, None] & (j < h)[None, :], other=0.0)
                d = tl.dot(r, v, input_precision="ieee")
                if RELU:
                    mask = there[:, None] & (j < h)[None, :]
                    z = tl.load(Z + path * z_path + at + j[None, :], mask, other=0.0)
                    d = tl.where(z <= 0, 0.0, d)
                pulled += tl.sum(d * d, 1)
            squared += tl.load(squared_norms + row, there, other=0.0) * pulled
            check += tl.where(there, pulled, 0.0).to(tl.float64)
        g = tl.sqrt(squared)
        if CLIPPING == _FLAT:
            factor = tl.where(g > clip, clip / g, 1.0)
        else:
            factor = clip / (g + tl.load(numbers + 1).to(dtype))
        # not where nothing is: the factor of an infinite norm is no number there
        r = tl.where(valid, r * factor[:, None], 0.0)
    tl.store(to, r, real)
    lost = tl.sum(tl.where(check < float("inf"), 0, 1), 0) > 0
    alive = tl.load(diverged + path) < 0
    # all programs of a path write the same
    tl.store(diverged + path, tl.load(clock), lost & alive)


@triton.jit
def _columns(
    Z,
    z_path,
    theta,
    size,
    ld,
    R,
    index,
    numbers,
    clock,
    b,
    n,
    h,
    K: tl.constexpr,
    PROBING: tl.constexpr,
    RELU: tl.constexpr,
    LISTED: tl.constexpr,
    STORE: tl.constexpr,
    ROWS: tl.constexpr,
    NEURONS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    path = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * NEURONS + tl.arange(0, NEURONS)
    k = tl.arange(0, OUTPUTS)
    head = theta + path * size + k[:, None] * ld + j[None, :]
    own = (k < K)[:, None] & (j < h)[None, :]
    v = tl.load(head, own, other=0.0)
    dtype = Z.dtype.element_ty
    gradient = tl.zeros([OUTPUTS, NEURONS], dtype)
    for first in range(0, b, ROWS):
        i = first + tl.arange(0, ROWS)
        row, there = i.to(tl.int64), i < b
        if LISTED:
            row = tl.load(index + path * b + i, there, other=n)
            there = row < n
        at = Z + path * z_path + (row if PROBING else i.to(tl.int64))[:, None] * h + j[None, :]
        # padding counts as zero, whatever a state that is not finite has made of it
        z = tl.load(at, there[:, None] & (j < h)[None, :], other=0.0)
        a = tl.where(z <= 0, 0.0, z) if RELU else z
        r = tl.load(
            R + (path * b + i)[:, None] * K + k[None, :], (i < b)[:, None] & (k < K)[None, :], other=0.0
        )
        gradient = tl.dot(tl.trans(r), a, gradient, input_precision="ieee", out_dtype=dtype)
        if STORE:
            d = tl.dot(r, v, input_precision="ieee")
            if RELU:
                d = tl.where(z <= 0, 0.0, d)
            tl.store(at, d, (i < b)[:, None] & (j < h)[None, :])
    length = tl.load(numbers + 2).to(dtype)
    tl.store(head, v - length * gradient, own)
    tl.store(clock, tl.load(clock) + 1, (tl.program_id(0) == 0) & (tl.program_id(1) == 0))


# --- as `langevin.engine.gpu.outputs` calls them -------------------------------------------------------


def _tile(e: Any, rows: int, neurons: int, warps: int) -> dict[str, int]:
    """Shape of a program's tiles: none that a product of tiles finds too small."""
    h, K = (max(triton.next_power_of_2(count), 16) for count in (e.V.shape[2], e.V.shape[1]))
    return dict(ROWS=rows, NEURONS=min(neurons, h), OUTPUTS=K, num_warps=warps, num_stages=2)


def _given(block: Block) -> bool:
    """Whether the outputs are products with features of all samples that paths share."""
    return block.Z.dim() == 2 and block.index is None


def _path_stride(tensor: torch.Tensor, dims: int) -> int:
    """Elements from one path to the next; 0 where paths share a tensor, of ``dims`` dimensions then."""
    return 0 if tensor.dim() == dims else tensor.stride(0)


def rows(e: Any, block: Block) -> None:
    """See `langevin.engine.gpu.passes_outputs`."""
    paths, b, K = block.R.shape
    if _given(block):
        outputs(e.V, block.Z[: e.samples], out=block.R)
    norms = e.squared_norms if e.feature_norms is None else e.feature_norms
    # batches are often small
    most = min(_ROWS[0], max(triton.next_power_of_2(b), 32))
    tile = _tile(e, most, _ROWS[1], most // 8)
    _rows[paths, triton.cdiv(b, tile["ROWS"])](
        block.Z,
        _path_stride(block.Z, 2),
        e.theta,
        e.theta.shape[1],
        e.chain.layout.ld,
        e.Y,
        e.squared_norms,
        norms,
        _path_stride(norms, 1),
        e.theta if block.index is None else block.index,
        e.theta if block.members is None else block.members.view(torch.int8),
        block.R,
        *block.R.stride(),
        e.diverged,
        e.numbers,
        e.clock,
        b,
        e.samples,
        e.V.shape[2],
        K=K,
        PROBING=e.rule.method == LP,
        RELU=e.chain.data.activation == RELU,
        LOSS=e.chain.data.loss,
        CLIPPING=e.rule.clipping,
        LISTED=block.index is not None,
        WEIGHED=block.members is not None,
        GIVEN=_given(block),
        **tile,
    )


def columns(e: Any, block: Block, store: bool) -> None:
    """See `langevin.engine.gpu.passes_outputs`; what goes to ``D`` there goes to ``Z``."""
    if _given(block):
        add_head_gradient(e.V, block.R, block.Z[: e.samples], -e.length())
        e.clock[0] += 1
        return
    paths, b, K = block.R.shape
    tile = _tile(e, *_COLUMNS[e.theta.element_size()], 8)
    probing = e.rule.method == LP
    _columns[paths, triton.cdiv(e.V.shape[2], tile["NEURONS"])](
        block.Z,
        _path_stride(block.Z, 2),
        e.theta,
        e.theta.shape[1],
        e.chain.layout.ld,
        block.R,
        e.theta if block.index is None else block.index,
        e.numbers,
        e.clock,
        b,
        e.samples,
        e.V.shape[2],
        K=K,
        PROBING=probing,
        # features, not pre-activations, in linear probing
        RELU=e.chain.data.activation == RELU and not probing,
        LISTED=block.index is not None,
        STORE=store,
        **tile,
    )
