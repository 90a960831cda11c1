"""Measure the time of each part of a step."""

# pyright: reportCallIssue=false

from __future__ import annotations

import time

import numpy as np

from benchmarks.harness.contestants import Ours
from langevin.engine.kernels import descend as kernels_descend
from langevin.engine.kernels import forward, jit, normals, types
from langevin.engine.kernels.jit import njit

_PRODUCT, _EVALUATE, _PULL_BACK, _DESCEND, _NOISE = range(5)


@njit(**jit.JIT)
def _repeat(part, times, theta, data, rule, scratch):
    data, scratch = types.borrow(data), types.borrow(scratch)
    for turn in range(times):
        if part == _PRODUCT:
            for block in range(data.rows.shape[0]):
                forward._preactivate(theta, block, data, scratch)
        elif part == _EVALUATE:
            forward.evaluate(theta, data, rule, scratch, False)
        elif part == _PULL_BACK:
            for block in range(data.columns.shape[0]):
                kernels_descend._pull_back(block, data, scratch)
        elif part == _DESCEND:
            kernels_descend.descend(theta, rule.dt, data, rule, scratch)
        else:
            normals.add_normals(
                theta, theta.size, rule.noise, turn, 0, 0, np.uint64(1), np.uint64(2), scratch.words
            )


def split(ours: Ours, seconds: float, rounds: int) -> dict[str, float]:
    """Return the seconds of each part of a step of one path (medians over rounds); they add up to a step."""
    chain, rule = ours.chain, ours.chain.rule(ours.chain.schedule.phases[0])
    theta = ours.chunk.thetas[0].copy()
    measured = np.zeros((5, rounds))
    times = max(1, round(seconds / 2 / ours.advance(1) * ours.paths))
    for r in range(-1, rounds):  # the first round is a warm-up
        for part in range(5):
            start = time.process_time()
            _repeat(part, times if r >= 0 else 1, theta, chain.data, rule, ours.scratch)
            if r >= 0:
                measured[part, r] = (time.process_time() - start) / times
    product, evaluate, pull_back, descend, noise = np.median(measured, axis=1)
    return {
        "forward product": float(product),
        "activations": float(max(0.0, evaluate - product)),
        "pull-back product": float(pull_back),
        "update": float(max(0.0, descend - pull_back)),
        "noise": float(noise),
    }
