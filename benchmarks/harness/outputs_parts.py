"""Measure the time of each part of a step with K outputs."""

# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.harness.outputs import OursOutputs
from langevin.engine.kernels import jit, types
from langevin.engine.kernels.blas import address
from langevin.engine.kernels.jit import njit
from langevin.engine.kernels.normals import TILE, add_tiles
from langevin.engine.kernels.outputs import batches, descend, forward, residuals
from langevin.engine.kernels.outputs.types import FEATURE
from langevin.engine.kernels.types import LP

_BATCH, _FORWARD, _ACTIVATE, _OUTPUTS, _RESIDUALS, _PULL_BACK, _HEAD, _LAYER, _NOISE = range(9)
# in linear probing these start from features that were read into the cache
_READING = (_ACTIVATE, _OUTPUTS, _HEAD)
_NAMES = (
    "batch",
    "first layer",
    "activations, or features read",
    "outputs",
    "residuals and clipping",
    "pull-back",
    "head's gradient",
    "first layer's gradient",
    "noise",
)


@njit(**jit.JIT)
def _repeat(part, times, theta, data, rule, still, scratch):
    """Go through steps like the compiled loop, but do one part of each alone, after its batch.

    ``still`` is ``rule`` without noise.
    """
    data, scratch = types.borrow(data), types.borrow(scratch)
    probing, gathered = rule.method == LP, rule.sample_rate < 1
    one, path = np.uint64(1), np.int64(0)
    # not 0, at which no product would be computed
    rate = theta.dtype.type(1e-12)
    for step in range(times):
        rows = batches.take_batch(step, path, one, one, data, rule, scratch)
        block = batches.block_rows(rows, data.frozen_rows if probing else data.rows)
        last, count = np.int64(0), np.int64(0)
        for first in range(0, rows, block):
            last, count = first, min(block, rows - first)
            if probing and part in _READING:
                forward.frozen(first, count, data, scratch)
            elif not probing:
                forward.locate_block(count, scratch)
            if part == _FORWARD and not probing:
                _first_layer(theta, first, count, gathered, data, scratch)
            elif part == _ACTIVATE and not probing:
                forward.activate(count, scratch.A, scratch.D, scratch.samples[FEATURE], data)
            elif part == _OUTPUTS:
                forward.outputs(theta, count, data, scratch)
            elif part == _RESIDUALS:
                residuals.residuals(first, count, data, rule, scratch)
                residuals.clip_factors(first, count, data, rule, scratch)
            elif part == _PULL_BACK and not probing:
                descend.pull_back(theta, count, data, scratch)
            elif part == _HEAD:
                descend.add_head_gradient(count, scratch.heads[0], data, scratch, first > 0)
            elif part == _LAYER and not probing:
                descend.scale_inputs(first, count, gathered, data, scratch)
                if first + count < rows:
                    descend.add_layer_gradient(address(scratch.X), first, count, data, scratch)
        if part == _LAYER and not probing:
            descend.apply_layer(
                theta, rate, address(scratch.X), last, count, step, path, one, one, data, still, scratch
            )
        elif part == _NOISE:
            tiles = (data.head if probing else theta.size) // TILE
            add_tiles(theta, 0, tiles, rule.noise, step, path, 0, one, one, scratch.words)


@njit(**jit.LINKED)
def _first_layer(theta, first, count, gathered, data, scratch):
    """`forward.hidden` before the activation."""
    X = address(data.X) + first * data.X.shape[1] * theta.itemsize
    if gathered:
        forward.gather(data.X, scratch.batch, first, count, scratch.X)
        X = address(scratch.X)
    W = address(theta) + data.head * theta.itemsize
    forward.preactivate(W, X, first, count, address(scratch.A), data, scratch)


def split(ours: OursOutputs, seconds: float, rounds: int) -> dict[str, float]:
    """Return the seconds of each part of a step of one path (medians over rounds)."""
    chain = ours.chain
    rule: Any = chain.rule(chain.schedule.phases[0])
    still = rule._replace(noise=chain.layout.dtype(0))
    theta, data = ours.chunk.thetas[0].copy(), chain.probed or chain.data
    times = max(1, round(seconds / 2 / ours.advance(1) * ours.paths))
    measured = np.zeros((len(_NAMES), rounds))
    for r in range(-1, rounds):  # the first round is a warm-up
        for part in range(len(_NAMES)):
            start = time.process_time()
            _repeat(part, times if r >= 0 else 1, theta, data, rule, still, ours.scratch)
            if r >= 0:
                measured[part, r] = (time.process_time() - start) / times
    medians = np.median(measured, axis=1)
    if rule.method == LP:
        medians[[_OUTPUTS, _HEAD]] -= medians[_ACTIVATE] - medians[_BATCH]
    medians[1:] = np.maximum(0.0, medians[1:] - medians[_BATCH])
    return dict(zip(_NAMES, medians.tolist(), strict=True))
