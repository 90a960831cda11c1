"""Poisson batches, as functions of a counter."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import numpy as np

from langevin.engine.kernels.jit import JIT, LINKED, njit
from langevin.engine.kernels.normals import BATCH_STREAM, LANES, philox_batch


@njit(**JIT)
def draw_batch(batch, position, threshold, step, path, k0, k1, words):
    """Write the rows of the batch of ``(path, step)`` to ``batch``, and return how many there are.

    Sample ``i`` has word ``i % 4`` of the counter ``(i // 4, step, path)`` and is in the batch if the word is
    below ``threshold``, ``sample_rate 2^32`` rounded up: its probability exceeds the rate by less than
    ``2^-32``. Rows come in the order of the samples. ``batch`` must have room for one more than all rows.
    """
    samples, count = position.size, 0
    c1, c2, c3 = np.uint64(step), np.uint64(path), np.uint64(BATCH_STREAM)
    for first in range(0, samples, 4 * LANES):
        philox_batch(words, np.uint64(first // 4), c1, c2, c3, k0, k1)
        for i in range(first, min(first + 4 * LANES, samples)):
            # without a branch, which no processor could predict
            batch[count] = position[i]
            count += np.uint64(words[i % 4, (i - first) // 4]) < np.uint64(threshold)
    return count


@njit(**LINKED)
def take_all(batch, samples):
    """Write all rows to ``batch``, in their order, and return how many there are."""
    for i in range(samples):
        batch[i] = i
    return samples


@njit(**LINKED)
def _sort_rows(batch, count, marks):
    """Sort the rows of a batch; ``marks``, of all rows, are 0 before and after."""
    for i in range(count):
        marks[batch[i]] = 1
    found = 0
    for row in range(marks.size):
        batch[found] = row
        found += marks[row]
        marks[row] = 0


@njit(**LINKED)
def take_batch(step, path, k0, k1, data, rule, scratch):
    """Write the rows of a step to ``scratch.batch``, in their order, and return how many there are."""
    if rule.sample_rate == 1:
        return take_all(scratch.batch, data.Y.shape[0])
    rows = draw_batch(scratch.batch, data.position, rule.threshold, step, path, k0, k1, scratch.words)
    if data.permuted:
        _sort_rows(scratch.batch, rows, scratch.marks)
    return rows


@njit(**LINKED)
def block_rows(rows, largest):
    """Rows of a block: blocks are of about the same size, in multiples of eight."""
    blocks = max((rows + largest - 1) // largest, 1)
    return max(min(((rows + blocks - 1) // blocks + 7) // 8 * 8, largest), 1)
