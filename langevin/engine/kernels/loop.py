"""The step loop: noise, clipped drift and observables of a chunk of paths.

Layout of one path's state ``theta``, a flat buffer: the head in ``theta[:h]`` of a slot of ``head``
elements, then the first layer transposed, ``(k, ld)`` row by row, neuron ``j`` in column ``j``. Both
slots are multiples of `TILE`, so that noise is added in whole tiles; what lies beyond the ``h``-th
column is never read. ``Z`` is ``(n, ld)`` likewise: all inner loops run over neurons, contiguously.

The exact reductions of `langevin.engine.reductions` use the same code: a linear net's Gram matrix is
carried as a narrow net with the same one, into whose last neurons `fold` brings the noise of all others.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import numpy as np

from langevin.engine.kernels.descend import descend
from langevin.engine.kernels.forward import evaluate, freeze
from langevin.engine.kernels.gram import fold
from langevin.engine.kernels.jit import JIT, njit
from langevin.engine.kernels.normals import STATE_STREAM, add_normals
from langevin.engine.kernels.observe import class_means, observe
from langevin.engine.kernels.types import LP, NEGATIVE_MEAN, POSITIVE_MEAN, START, borrow


@njit(**JIT)
def advance(
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
    """Run the paths of a chunk from step ``first`` to ``stop``, within one phase.

    Parameters
    ----------
    thetas : ndarray, shape (paths, size)
        States, advanced in place.
    complements : ndarray, shape (paths, 2, h) or (paths, 2, 0)
        Parts outside the span, see `_move_complement`.
    diverged : ndarray of int64, shape (paths,)
        -1, or the step at which a path was no longer finite; such a path is left alone.
    first_path : int
        Index of the chunk's first path: its stream of noise.
    last : bool
        Whether ``stop`` ends the run, so that a record at ``stop`` is taken here.
    k0, k1 : uint64
        Key of the noise, two 32-bit words.
    scalars, neurons : ndarray, shapes (paths, SCALARS, m) and (paths, 3, m, h) or (paths, 3, 0, 0)
        Where observables go.
    """
    data, scratch, records = borrow(data), borrow(scratch), borrow(records)
    start_record = np.searchsorted(records.steps, first)
    if records.own.size > 0:
        class_means(records.origin, data, scratch, records.means)
        for j in range(data.width):
            scratch.neurons[START, j] = scratch.neurons[
                POSITIVE_MEAN if records.own[j] > 0 else NEGATIVE_MEAN, j
            ]
    for p in range(thetas.shape[0]):
        if diverged[p] >= 0:
            continue
        theta, complement, path = thetas[p], complements[p], first_path + p
        trained = data.head if rule.method == LP else theta.size
        if rule.method == LP:
            freeze(theta, data, scratch)
        r = start_record
        for step in range(first, stop + last):
            recording = r < records.steps.size and records.steps[r] == step
            if step == stop and not recording:
                break
            if not evaluate(theta, data, rule, scratch, recording):
                diverged[p] = step
                break
            if recording:
                draw = step * rule.draws
                observe(
                    r, draw, theta, complement, path, k0, k1, data, scratch, records, scalars[p], neurons[p]
                )
                r += 1
            if step == stop:
                break
            descend(theta, rule.dt, data, rule, scratch)
            for draw in range(step * rule.draws, (step + 1) * rule.draws):
                if rule.noise > 0:
                    add_normals(theta, trained, rule.noise, draw, path, STATE_STREAM, k0, k1, scratch.words)
                if rule.folded > 0:
                    fold(theta, draw, path, k0, k1, data, rule, scratch)
