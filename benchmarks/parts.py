"""Measure the time of each part of a step."""

# pyright: reportCallIssue=false

from __future__ import annotations

import time

import numpy as np

from benchmarks.contestants import Ours
from langevin import _kernels as kernels
from langevin._jit import njit

_PRODUCT, _EVALUATE, _PULL_BACK, _DESCEND, _NOISE = range(5)


@njit(**kernels.JIT)
def _repeat(part, times, theta, data, rule, scratch):
    data, scratch = kernels._borrow(data), kernels._borrow(scratch)
    for turn in range(times):
        if part == _PRODUCT:
            for block in range(data.rows.shape[0]):
                kernels._preactivate(theta, block, data, scratch)
        elif part == _EVALUATE:
            kernels._evaluate(theta, data, rule, scratch, False)
        elif part == _PULL_BACK:
            for block in range(data.columns.shape[0]):
                kernels._pull_back(block, data, scratch)
        elif part == _DESCEND:
            kernels._descend(theta, rule.dt, data, rule, scratch)
        else:
            kernels.add_normals(
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
