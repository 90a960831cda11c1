"""The drift of a network with K outputs on all samples, for flows."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np

from langevin.engine.kernels.jit import JIT, njit
from langevin.engine.kernels.outputs.forward import freeze
from langevin.engine.kernels.outputs.loop import take_step
from langevin.engine.kernels.types import borrow


@njit(**JIT)
def drift_outputs(theta, out, data, rule, scratch):
    """Write the clipped drift at ``theta`` to ``out``, laid out like ``theta``; NaN if it is not finite.

    ``rule`` is one of full batches, without noise and with ``dt = 1``. In linear probing the features must
    have been frozen, and the head's slot alone will do.
    """
    none, diverged = np.uint64(0), np.full(1, -1)
    out[:] = theta
    states = out.reshape(1, out.size)
    take_step(states, diverged, np.int64(0), np.int64(0), none, none, borrow(data), rule, borrow(scratch))
    if diverged[0] < 0:
        out -= theta
    else:
        out[:] = math.nan


@njit(**JIT)
def freeze_outputs(theta, data, scratch):
    """Leave the features at ``theta`` in ``scratch``, unless ``data`` holds them."""
    if data.features.shape[0] == 0:
        freeze(theta, borrow(data), borrow(scratch))
