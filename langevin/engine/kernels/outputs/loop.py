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

import math

import numpy as np

from langevin.engine.kernels.blas import address
from langevin.engine.kernels.jit import JIT, LINKED, njit
from langevin.engine.kernels.outputs.batches import block_rows, take_batch
from langevin.engine.kernels.outputs.descend import (
    add_head_gradient,
    add_layer_gradient,
    apply_head,
    apply_layer,
    pull_back,
    scale_inputs,
)
from langevin.engine.kernels.outputs.forward import freeze, frozen, hidden, outputs
from langevin.engine.kernels.outputs.gram import fold_outputs
from langevin.engine.kernels.outputs.neurons import observe_neurons, own_means
from langevin.engine.kernels.outputs.observe import is_finite, observe
from langevin.engine.kernels.outputs.residuals import clip_factors, residuals
from langevin.engine.kernels.outputs.types import CHECKED_STEPS, PULLBACK, START
from langevin.engine.kernels.types import LP, UNCLIPPED, borrow


@njit(**LINKED)
def take_step(thetas, diverged, step, first_path, k0, k1, data, rule, scratch):
    """Take a step of the paths that have not diverged: of one, or of several that step together.

    A path with an output of its batch that is not finite is left as it is, and its step goes to ``diverged``.
    """
    probing, gathered, clipped = rule.method == LP, rule.sample_rate < 1, rule.clipping != UNCLIPPED
    rows = take_batch(step, first_path, k0, k1, data, rule, scratch)
    size = block_rows(rows, data.frozen_rows if probing else data.rows)
    X = last = count = np.int64(0)
    for first in range(0, rows, size):
        last, count = first, min(size, rows - first)
        if probing:
            frozen(first, count, data, scratch)
        for p in range(thetas.shape[0]):
            if diverged[p] >= 0:
                continue
            theta = thetas[p]
            if not probing:
                X = hidden(theta, first, count, gathered, data, scratch)
            outputs(theta, count, data, scratch)
            check = residuals(first, count, data, rule, scratch)
            if not probing:
                pull_back(theta, count, data, scratch)
                for i in range(count if clipped else 0):
                    check += scratch.samples[PULLBACK, i]
            clip_factors(first, count, data, rule, scratch)
            if not probing and clipped:
                scale_inputs(first, count, gathered, data, scratch)
                X = address(scratch.X)
            add_head_gradient(count, scratch.heads[p], data, scratch, first > 0)
            if not math.isfinite(check):
                diverged[p] = step
            elif not probing and first + count < rows:
                add_layer_gradient(X, first, count, data, scratch)
    rate = thetas.dtype.type(rule.dt / rule.sample_rate)
    for p in range(thetas.shape[0]):
        if diverged[p] < 0:
            path = np.int64(first_path + p)
            apply_head(thetas[p], rate, scratch.heads[p], rows > 0, step, path, k0, k1, data, rule, scratch)
            if not probing:
                apply_layer(thetas[p], rate, X, last, count, step, path, k0, k1, data, rule, scratch)


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

    In linear probing on all samples paths can have the same batch and features. Then they take each step
    together, so that a block of features is read once for all of them.
    """
    data, scratch, records = borrow(data), borrow(scratch), borrow(records)
    if records.own.size > 0:
        own_means(
            records.origin[data.head :], records.own, records.means, data.outputs, scratch.neurons[START]
        )
    own_features = rule.method == LP and data.features.shape[0] == 0
    together = rule.method == LP and rule.sample_rate == 1 and not own_features
    group = scratch.heads.shape[0] if together else 1
    for p in range(0, thetas.shape[0], group):
        q = min(p + group, thetas.shape[0])
        if own_features and diverged[p] < 0:
            freeze(thetas[p], data, scratch)
        r = np.searchsorted(records.steps, first)
        for step in range(first, stop + last):
            recording = r < records.steps.size and records.steps[r] == step
            if step == stop and not recording:
                break
            draw = step * rule.draws
            for i in range(p, q):
                if diverged[i] >= 0:
                    continue
                theta, complement, path = thetas[i], complements[i], first_path + i
                finite = step % CHECKED_STEPS > 0 or is_finite(theta, data, scratch.A.shape[1])
                if finite and recording:
                    finite = observe(
                        r, draw, theta, complement, path, k0, k1, data, rule, scratch, records, scalars[i]
                    )
                    if finite and records.own.size > 0:
                        observe_neurons(r, theta, complement, data, scratch, records, scalars[i], neurons[i])
                if not finite:
                    diverged[i] = step
            r += recording
            if step < stop:
                take_step(thetas[p:q], diverged[p:q], step, first_path + p, k0, k1, data, rule, scratch)
                for i in range(p, q if rule.folded > 0 else p):
                    if diverged[i] < 0:
                        fold_outputs(thetas[i], draw, first_path + i, k0, k1, data, rule, scratch)
