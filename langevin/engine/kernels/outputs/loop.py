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
from langevin.engine.kernels.outputs.batches import block_rows, take_batch
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
from langevin.engine.kernels.outputs.probe import probe, together
from langevin.engine.kernels.outputs.types import CHECKED_STEPS, START
from langevin.engine.kernels.types import LP, borrow


@njit(**INNER)
def _tune(theta, step, path, k0, k1, data, rule, scratch):
    """Take a step of full fine-tuning; False, with ``theta`` left as it is, if an output is not finite."""
    rows = take_batch(step, path, k0, k1, data, rule, scratch)
    size = block_rows(rows, data.rows)
    X, last, count = np.int64(0), np.int64(0), np.int64(0)
    for first in range(0, rows, size):
        last, count = first, min(size, rows - first)
        X, finite = gradient_block(theta, first, count, rule.sample_rate < 1, data, rule, scratch)
        if not finite:
            return False
        if first + count < rows:
            add_layer_gradient(X, first, count, data, scratch)
    rate = theta.dtype.type(rule.dt / rule.sample_rate)
    apply_head(theta, rate, scratch.heads[0], rows > 0, step, path, k0, k1, data, rule, scratch)
    apply_layer(theta, rate, X, last, count, step, path, k0, k1, data, rule, scratch)
    return True


@njit(**INNER)
def take_step(thetas, diverged, step, first_path, k0, k1, data, rule, scratch):
    """Take one step of all paths that have not diverged; of one path, unless paths can go `together`.

    A path with an output of the batch that is not finite is left as it is, and its step goes to ``diverged``.
    """
    if rule.method == LP:
        probe(thetas, diverged, step, first_path, k0, k1, data, rule, scratch)
    elif diverged[0] < 0 and not _tune(thetas[0], step, first_path, k0, k1, data, rule, scratch):
        diverged[0] = step


@njit(**INNER)
def _record(r, theta, complement, step, path, k0, k1, data, rule, scratch, records, scalars, neurons):
    """Write record ``r`` of a path; False if it is not finite."""
    draw = step * rule.draws
    finite = observe(r, draw, theta, complement, path, k0, k1, data, rule, scratch, records, scalars)
    if finite and records.own.size > 0:
        observe_neurons(r, theta, complement, data, scratch, records, scalars, neurons)
    return finite


@njit(**INNER)
def _advance(
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
    """`advance_outputs` of paths that take their steps together, or of one."""
    if rule.method == LP and data.features.shape[0] == 0 and diverged[0] < 0:
        freeze(thetas[0], data, scratch)
    r = np.searchsorted(records.steps, first)
    for step in range(first, stop + last):
        recording = r < records.steps.size and records.steps[r] == step
        if step == stop and not recording:
            break
        for p in range(thetas.shape[0]):
            theta, path = thetas[p], first_path + p
            finite = step % CHECKED_STEPS > 0 or is_finite(theta, data, scratch.A.shape[1])
            if finite and recording and diverged[p] < 0:
                finite = _record(
                    r,
                    theta,
                    complements[p],
                    step,
                    path,
                    k0,
                    k1,
                    data,
                    rule,
                    scratch,
                    records,
                    scalars[p],
                    neurons[p],
                )
            if diverged[p] < 0 and not finite:
                diverged[p] = step
        r += recording
        if step < stop:
            take_step(thetas, diverged, step, first_path, k0, k1, data, rule, scratch)
            for p in range(thetas.shape[0] if rule.folded > 0 else 0):
                if diverged[p] < 0:
                    draw, path = step * rule.draws, first_path + p
                    fold_outputs(thetas[p], draw, path, k0, k1, data, rule, scratch)


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

    A path has diverged at the step at which an output of its batch is not finite, or of any sample at a
    record, or the state itself at a step that is a multiple of `CHECKED_STEPS`.
    """
    data, scratch, records = borrow(data), borrow(scratch), borrow(records)
    if records.own.size > 0:
        own_means(
            records.origin[data.head :], records.own, records.means, data.outputs, scratch.neurons[START]
        )
    group = scratch.heads.shape[0] if rule.method == LP and together(data, rule) else 1
    for p in range(0, thetas.shape[0], group):
        q = min(p + group, thetas.shape[0])
        _advance(
            thetas[p:q],
            complements[p:q],
            diverged[p:q],
            first_path + p,
            first,
            stop,
            last,
            k0,
            k1,
            data,
            rule,
            scratch,
            records,
            scalars[p:q],
            neurons[p:q],
        )
