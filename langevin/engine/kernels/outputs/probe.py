"""Steps of linear probing with K outputs, of paths that share their features."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np

from langevin.engine.kernels.jit import INNER, njit
from langevin.engine.kernels.outputs.batches import block_rows, take_batch
from langevin.engine.kernels.outputs.descend import add_head_gradient, apply_head
from langevin.engine.kernels.outputs.forward import frozen, outputs
from langevin.engine.kernels.outputs.residuals import clip_factors, residuals


@njit(**INNER)
def together(data, rule):
    """Whether paths can take a step together: their batches and features are the same."""
    return rule.sample_rate == 1 and data.features.shape[0] > 0


@njit(**INNER)
def probe(thetas, diverged, step, first_path, k0, k1, data, rule, scratch):
    """Take a step on all paths, or on one if its batch or features are its own.

    A block of features is read once for all paths. A path with an output of the batch that is not finite is
    left as it is, and its step goes to ``diverged``.
    """
    rows = take_batch(step, first_path, k0, k1, data, rule, scratch)
    size = block_rows(rows, data.frozen_rows)
    for first in range(0, rows, size):
        count = min(size, rows - first)
        A = frozen(first, count, rule.sample_rate < 1, data, scratch)
        for p in range(thetas.shape[0]):
            if diverged[p] < 0:
                outputs(thetas[p], A, count, data, scratch)
                check = residuals(first, count, data, rule, scratch)
                clip_factors(first, count, data, rule, scratch)
                add_head_gradient(A, count, scratch.heads[p], data, scratch, first > 0)
                if not math.isfinite(check):
                    diverged[p] = step
    rate = thetas.dtype.type(rule.dt / rule.sample_rate)
    for p in range(thetas.shape[0]):
        if diverged[p] < 0:
            path = np.int64(first_path + p)
            apply_head(thetas[p], rate, scratch.heads[p], rows > 0, step, path, k0, k1, data, rule, scratch)
