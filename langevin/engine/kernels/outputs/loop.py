"""The step loop of a two-layer network with K outputs, on all samples or on Poisson batches.

Layout of one path's state ``theta``: the head transposed, ``(K, ld)`` row by row, in a slot of ``head``
elements, then the first layer transposed, ``(k, ld)``; neuron ``j`` in column ``j``. With one output this is
the layout of `langevin.engine.kernels.loop`.

A step goes through its batch in blocks of rows whose features stay in the cache. The gradient of the head is
summed over the blocks; so is that of the first layer, except that the last block's goes straight into the
state. No gradient of a single sample is formed: their norms follow from those of features, residuals and
inputs.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import numpy as np

from langevin.engine.kernels.jit import INNER, JIT, njit
from langevin.engine.kernels.outputs.batches import draw_batch, sort_rows, take_all
from langevin.engine.kernels.outputs.descend import (
    add_layer_gradient,
    apply_head,
    apply_layer,
    gradient_block,
)
from langevin.engine.kernels.outputs.forward import freeze
from langevin.engine.kernels.outputs.gram import fold_outputs
from langevin.engine.kernels.outputs.neurons import observe_neurons, own_means
from langevin.engine.kernels.outputs.observe import is_finite, observe
from langevin.engine.kernels.outputs.types import CHECKED_STEPS, START
from langevin.engine.kernels.types import LP, borrow


@njit(**INNER)
def take_step(theta, step, path, k0, k1, data, rule, scratch):
    """Take one step; False, with ``theta`` left as it is, if an output of the batch is not finite."""
    gathered = rule.sample_rate < 1
    if gathered:
        rows = draw_batch(scratch.batch, data.position, rule.threshold, step, path, k0, k1, scratch.words)
        if data.permuted:
            sort_rows(scratch.batch, rows, scratch.marks)
    else:
        rows = take_all(scratch.batch, data.Y.shape[0])
    # blocks of about the same size, in multiples of eight rows
    largest = data.frozen_rows if rule.method == LP else data.rows
    blocks = max((rows + largest - 1) // largest, 1)
    size = max(min(((rows + blocks - 1) // blocks + 7) // 8 * 8, largest), 1)
    X, last, count = np.int64(0), np.int64(0), np.int64(0)
    for first in range(0, rows, size):
        last = first
        count = min(size, rows - first)
        X, finite = gradient_block(theta, first, count, gathered, data, rule, scratch)
        if not finite:
            return False
        if rule.method != LP and first + count < rows:
            add_layer_gradient(X, first, count, data, scratch)
    rate = theta.dtype.type(rule.dt / rule.sample_rate)
    apply_head(theta, rate, rows > 0, step, path, k0, k1, data, rule, scratch)
    if rule.method != LP:
        apply_layer(theta, rate, X, last, count, step, path, k0, k1, data, rule, scratch)
    return True


@njit(**JIT)
def advance_outputs(
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
    """Run the paths of a chunk from step ``first`` to ``stop``, see `langevin.engine.kernels.loop.advance`.

    A path has diverged at the step at which an output of its batch is not
    finite, or of any sample at a record, or the state itself at a step that is a multiple of
    `CHECKED_STEPS`.
    """
    data, scratch, records = borrow(data), borrow(scratch), borrow(records)
    start_record = np.searchsorted(records.steps, first)
    if records.own.size > 0:
        own_means(
            records.origin[data.head :], records.own, records.means, data.outputs, scratch.neurons[START]
        )
    for p in range(thetas.shape[0]):
        if diverged[p] >= 0:
            continue
        theta, complement, path = thetas[p], complements[p], first_path + p
        if rule.method == LP and data.features.shape[0] == 0:
            freeze(theta, data, scratch)
        r = start_record
        for step in range(first, stop + last):
            recording = r < records.steps.size and records.steps[r] == step
            if step == stop and not recording:
                break
            finite = step % CHECKED_STEPS > 0 or is_finite(theta, data, scratch.A.shape[1])
            if finite and recording:
                draw = step * rule.draws
                finite = observe(
                    r, draw, theta, complement, path, k0, k1, data, rule, scratch, records, scalars[p]
                )
                if finite and records.own.size > 0:
                    observe_neurons(r, theta, complement, data, scratch, records, scalars[p], neurons[p])
                r += 1
            if finite and step < stop:
                finite = take_step(theta, step, path, k0, k1, data, rule, scratch)
                if finite and rule.folded > 0:
                    fold_outputs(theta, step * rule.draws, path, k0, k1, data, rule, scratch)
            if not finite:
                diverged[p] = step
                break
