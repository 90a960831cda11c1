"""Poisson batches of `langevin.engine.gpu.batches`, as kernels for a GPU."""

# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.random import philox_impl

from langevin.engine.kernels.normals import BATCH_STREAM

_STREAM = tl.constexpr(BATCH_STREAM)

# Philox counters and warps of a program
_WORDS = (256, 2)


@triton.jit
def _words(counter, step, first_path, path, clock):
    """The words of four samples each."""
    zero = tl.zeros_like(counter).to(tl.uint32)
    k0, k1 = tl.load(clock + 2).to(tl.uint32), tl.load(clock + 3).to(tl.uint32)
    return philox_impl(
        counter.to(tl.uint32),
        zero + step.to(tl.uint32),
        zero + (first_path + path).to(tl.uint32),
        zero + _STREAM,
        zero + k0,
        zero + k1,
        10,
    )


@triton.jit
def _member(word, sample, n, threshold):
    return ((word.to(tl.int64) < threshold) & (sample < n)).to(tl.int32)


@triton.jit
def _largest(found, clock, limit, n, paths, BLOCK: tl.constexpr):
    path, ahead = tl.program_id(0) % paths, tl.program_id(0) // paths
    step, first_path, threshold = tl.load(clock) + ahead, tl.load(clock + 1), tl.load(limit)
    total = tl.zeros([BLOCK], tl.int32)
    for first in range(0, (n + 3) // 4, BLOCK):
        counter = first + tl.arange(0, BLOCK)
        w0, w1, w2, w3 = _words(counter, step, first_path, path, clock)
        total += _member(w0, 4 * counter, n, threshold) + _member(w1, 4 * counter + 1, n, threshold)
        total += _member(w2, 4 * counter + 2, n, threshold) + _member(w3, 4 * counter + 3, n, threshold)
    tl.store(found + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def _append(index, count, word, sample, position, n, threshold):
    """Write the rows of samples that are in the batch after ``count`` others; return how many there are."""
    member = _member(word, sample, n, threshold)
    row = tl.load(position + sample, member != 0, other=0)
    tl.store(index + count + tl.cumsum(member, 0) - 1, row, member != 0)
    return count + tl.sum(member, 0)


@triton.jit
def _draw_rows(index, clock, limit, position, n, b, BLOCK: tl.constexpr):
    path = tl.program_id(0)
    step, first_path, threshold = tl.load(clock), tl.load(clock + 1), tl.load(limit)
    index += path.to(tl.int64) * b
    count = 0
    for first in range(0, (n + 3) // 4, BLOCK):
        counter = first + tl.arange(0, BLOCK)
        w0, w1, w2, w3 = _words(counter, step, first_path, path, clock)
        count = _append(index, count, w0, 4 * counter, position, n, threshold)
        count = _append(index, count, w1, 4 * counter + 1, position, n, threshold)
        count = _append(index, count, w2, 4 * counter + 2, position, n, threshold)
        count = _append(index, count, w3, 4 * counter + 3, position, n, threshold)
    for first in range(0, b, BLOCK):
        i = first + tl.arange(0, BLOCK)
        tl.store(index + i, tl.zeros([BLOCK], tl.int64) + n, (i >= count) & (i < b))


@triton.jit
def _mark(members, word, sample, position, n, threshold):
    """Write whether samples are in the batch, each at its row."""
    row = tl.load(position + sample, sample < n, other=0)
    tl.store(members + row, _member(word, sample, n, threshold).to(tl.int8), sample < n)


@triton.jit
def _draw_members(members, clock, limit, position, n, BLOCK: tl.constexpr):
    path = tl.program_id(0)
    step, first_path, threshold = tl.load(clock), tl.load(clock + 1), tl.load(limit)
    members += path.to(tl.int64) * n
    counter = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    w0, w1, w2, w3 = _words(counter, step, first_path, path, clock)
    _mark(members, w0, 4 * counter, position, n, threshold)
    _mark(members, w1, 4 * counter + 1, position, n, threshold)
    _mark(members, w2, 4 * counter + 2, position, n, threshold)
    _mark(members, w3, 4 * counter + 3, position, n, threshold)


# --- as `langevin.engine.gpu.outputs` calls them -------------------------------------------------------


def largest_batches(e: Any, steps: int) -> torch.Tensor:
    """See `langevin.engine.gpu.batches`."""
    paths, (block, warps) = len(e.theta), _WORDS
    found = torch.empty((steps, paths), dtype=torch.int32, device=e.device)
    _largest[paths * steps,](found, e.clock, e.threshold, e.samples, paths, BLOCK=block, num_warps=warps)
    return found.amax(1)


def draw_rows(e: Any, index: torch.Tensor) -> None:
    """See `langevin.engine.gpu.batches`."""
    (paths, b), (block, warps) = index.shape, _WORDS
    _draw_rows[paths,](index, e.clock, e.threshold, e.position, e.samples, b, BLOCK=block, num_warps=warps)


def draw_members(e: Any, members: torch.Tensor) -> None:
    """See `langevin.engine.gpu.batches`."""
    paths, (block, warps) = len(members), _WORDS
    grid = paths, triton.cdiv((e.samples + 3) // 4, block)
    _draw_members[grid](
        members.view(torch.int8), e.clock, e.threshold, e.position, e.samples, BLOCK=block, num_warps=warps
    )
