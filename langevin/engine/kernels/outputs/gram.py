"""The noise of neurons that are not simulated, folded into the last ones that are, for K outputs."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from numba import types
from numba.extending import overload

from langevin.engine.kernels.blas import householder, tpqrt
from langevin.engine.kernels.gram import bartlett
from langevin.engine.kernels.jit import LINKED_FAST, njit
from langevin.engine.kernels.types import HOUSEHOLDER, LP


def fold_outputs(theta, draw, path, k0, k1, data, rule, scratch):
    """Bring the noise of folded neurons into the last ones; nothing where none is folded."""
    raise NotImplementedError("compiled code only")


@overload(fold_outputs)
def _fold_overload(theta, draw, path, k0, k1, data, rule, scratch):
    if isinstance(scratch.types[scratch.fields.index("triangle")], types.NoneType):
        return lambda theta, draw, path, k0, k1, data, rule, scratch: None
    return lambda theta, draw, path, k0, k1, data, rule, scratch: _fold_neurons(
        theta, draw, path, k0, k1, data, rule, scratch
    )


@njit(**LINKED_FAST)
def _fold_neurons(theta, draw, path, k0, k1, data, rule, scratch):
    """Give the last neurons of a linear net the noise of ``folded`` others, in law.

    Full fine-tuning: the others are zero before the step and Gaussian after it, so their Gram matrix is a
    Wishart; its triangular factor and the last ``q + K`` neurons are brought to ``q = k + K`` neurons and K
    zero ones. Linear probing: the others have heads only, like the last K neurons, which take them up.
    """
    probing, ld = rule.method == LP, scratch.A.shape[1]
    columns = data.outputs if probing else data.inputs + data.outputs
    rows = data.outputs if probing else columns + data.outputs
    first, inputs = data.width - rows, columns - data.outputs
    triangle, stack = scratch.triangle[:columns], scratch.stack[:columns]
    bartlett(triangle, rule.folded, rule.noise, draw, path, k0, k1, scratch.bartlett, scratch.words)
    for c in range(columns):
        at = (data.head + c * ld if c < inputs else (c - inputs) * ld) + first
        for i in range(rows):
            stack[c, i] = theta[at + i]
    if columns <= HOUSEHOLDER:
        householder(triangle, stack, rows)
    else:
        tpqrt(triangle, stack, rows, scratch.reflectors, scratch.ints)
    # beyond the diagonal both leave the triangle as it was: zero
    for c in range(columns):
        at = (data.head + c * ld if c < inputs else (c - inputs) * ld) + first
        for i in range(rows):
            theta[at + i] = triangle[c, i]
