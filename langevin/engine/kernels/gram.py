"""The noise of neurons that are not simulated, folded into the last ones that are."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from langevin.engine.kernels.blas import householder, tpqrt
from langevin.engine.kernels.forward import first_layer
from langevin.engine.kernels.jit import INNER_FAST, njit
from langevin.engine.kernels.normals import WISHART_STREAM, add_normals, chi_square
from langevin.engine.kernels.types import HOUSEHOLDER, LP


def fold(theta, draw, path, k0, k1, data, rule, scratch):
    """Bring the noise of folded neurons into the last ones; nothing where none is folded."""
    raise NotImplementedError("compiled code only")


@overload(fold)
def _fold_overload(theta, draw, path, k0, k1, data, rule, scratch):
    if isinstance(scratch.types[scratch.fields.index("triangle")], types.NoneType):
        return lambda theta, draw, path, k0, k1, data, rule, scratch: None
    return lambda theta, draw, path, k0, k1, data, rule, scratch: _fold_neurons(
        theta, draw, path, k0, k1, data, rule, scratch
    )


@njit(**INNER_FAST)
def bartlett(triangle, degrees, noise, draw, path, k0, k1, normals, words):
    """Write the triangular factor of a Wishart matrix, by columns, times ``noise``; zeros below it."""
    triangle[:] = 0
    if noise > 0:
        normals[:] = 0
        add_normals(normals, normals.size, noise, draw, path, WISHART_STREAM, k0, k1, words)
        at = 0
        for c in range(triangle.shape[0]):
            for i in range(min(c, degrees)):
                triangle[c, i] = normals[at + i]
            at += c
            if c < degrees:
                squared = chi_square(degrees - c, c, draw, path, WISHART_STREAM, k0, k1)
                triangle[c, c] = noise * math.sqrt(squared)


@njit(**INNER_FAST)
def _fold_neurons(theta, draw, path, k0, k1, data, rule, scratch):
    """Give the last ``q + 1`` neurons of a linear net the noise of ``folded`` others, in law.

    Full fine-tuning: the others are zero before the step and Gaussian after it, so their Gram matrix is a
    Wishart; Bartlett's triangular factor of it and the last neurons are brought to ``q`` neurons and a zero
    one. Linear probing: the others have a head only, like the last neuron, which takes their norm.
    """
    q = data.inputs + 1
    first = data.width - (q + 1)
    if rule.method == LP:
        tail = np.float64(theta[first + q])
        rest = chi_square(rule.folded, np.int64(0), draw, path, WISHART_STREAM, k0, k1)
        theta[first + q] = math.sqrt(tail * tail + np.float64(rule.noise) ** 2 * rest)
        return
    W, triangle, stack = first_layer(theta, data, scratch), scratch.triangle, scratch.stack
    bartlett(triangle, rule.folded, rule.noise, draw, path, k0, k1, scratch.bartlett, scratch.words)
    for i in range(q + 1):
        stack[q - 1, i] = theta[first + i]
        for c in range(q - 1):
            stack[c, i] = W[c, first + i]
    if q <= HOUSEHOLDER:
        householder(triangle, stack, q + 1)
    else:
        tpqrt(triangle, stack, q + 1, scratch.reflectors, scratch.ints)
    # beyond the diagonal both leave the triangle as it was: zero
    for i in range(q + 1):
        theta[first + i] = triangle[q - 1, i]
        for c in range(q - 1):
            W[c, first + i] = triangle[c, i]
