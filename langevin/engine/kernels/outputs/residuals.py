"""Residuals, clip factors, loss and accuracy of K outputs."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np

from langevin.engine.kernels.calls import call_scalar
from langevin.engine.kernels.jit import INNER, INNER_FAST, njit
from langevin.engine.kernels.outputs.gauge import lift, lower
from langevin.engine.kernels.outputs.types import (
    COLUMN,
    FACTOR,
    FEATURE,
    LOGISTIC,
    MARGIN,
    PULLBACK,
    RESIDUAL,
    SOFTMAX,
    SQUARE,
)
from langevin.engine.kernels.types import FLAT, NORMALISED, UNCLIPPED


@njit(**INNER)
def _softmax_residuals(f, y, r):
    """``p - y`` for a one-hot ``y``, without cancellation; returns ``1 - p_y``."""
    largest = f[0]
    for k in range(1, f.size):
        # a NaN stays: nothing exceeds it, and its own exponential below is NaN
        largest = f[k] if f[k] > largest else largest
    total, others, one = f.dtype.type(0), f.dtype.type(0), f.dtype.type(1)
    for k in range(f.size):
        e = math.exp(f[k] - largest)
        total += e
        others += e * (one - y[k])
        r[k] = e
    others /= total
    for k in range(f.size):
        r[k] = r[k] / total * (one - y[k]) - others * y[k]
    return others


@njit(**INNER)
def sample_residual(f, y, r, data):
    """Write the residual of one sample to ``r``, shape (K,); with softmax, return ``1 - p_y``."""
    one = f.dtype.type(1)
    if data.loss == SOFTMAX:
        return _softmax_residuals(f, y, r)
    for k in range(f.size):
        if data.loss == LOGISTIC:
            r[k] = -y[k] / (one + math.exp(y[k] * f[k]))
        elif data.loss == SQUARE:
            r[k] = f[k] - y[k]
        else:
            r[k] = call_scalar(data.residual, f[k], y[k])
    return one


@njit(**INNER)
def _clip_columns(r, norm, limit):
    """Clip the residual of each output on its own."""
    one = r.dtype.type(1)
    for k in range(r.size):
        g = abs(r[k]) * norm
        r[k] *= limit / g if g > limit else one


@njit(**INNER)
def residuals(first, count, data, rule, scratch):
    """Residuals of a block and their squared norms; returns a number that is finite if all outputs are.

    The clips that linear probing alone has are applied here.
    """
    clip = scratch.R.dtype.type(rule.clip)
    check = 0.0
    for i in range(count):
        f, r, y = scratch.F[i], scratch.R[i], data.Y[scratch.batch[first + i]]
        if data.gauge:
            f, r = scratch.row[0], scratch.row[1]
            lift(scratch.F[i], f)
        others = sample_residual(f, y, r, data)
        if rule.clipping == MARGIN:
            g = others * math.sqrt(scratch.R.dtype.type(2) * scratch.samples[FEATURE, i])
            if g > clip:
                for k in range(r.size):
                    r[k] *= clip / g
        elif rule.clipping == COLUMN:
            limit = clip / math.sqrt(scratch.R.dtype.type(r.size))
            _clip_columns(r, math.sqrt(scratch.samples[FEATURE, i]), limit)
        total = r.dtype.type(0)
        for k in range(r.size):
            total += r[k] * r[k]
            check += np.float64(f[k]) * np.float64(f[k])
        scratch.samples[RESIDUAL, i] = total
        if data.gauge:
            lower(r, scratch.R[i])
        if rule.clipping != UNCLIPPED:
            check += np.float64(scratch.samples[FEATURE, i])
    return check


@njit(**INNER_FAST)
def clip_factors(first, count, trained_layer, data, rule, scratch):
    """Factors ``c_i`` from the squared norms of a block's gradients; multiply the residuals by them."""
    samples, R = scratch.samples, scratch.R
    clip, stabiliser, one = R.dtype.type(rule.clip), R.dtype.type(rule.stabiliser), R.dtype.type(1)
    for i in range(count):
        squared = samples[RESIDUAL, i] * samples[FEATURE, i]
        if trained_layer:
            squared += data.squared_norms[scratch.batch[first + i]] * samples[PULLBACK, i]
        g = math.sqrt(squared)
        if rule.clipping == FLAT:
            factor = clip / g if g > clip else one
        elif rule.clipping == NORMALISED:
            factor = clip / (g + stabiliser)
        else:
            factor = one
        samples[FACTOR, i] = factor
        for k in range(R.shape[1]):
            R[i, k] *= factor


@njit(**INNER)
def _largest(f):
    """Place of the first largest number, without the passes of NumPy's, which are slow to compile."""
    found = 0
    for k in range(1, f.size):
        found = k if f[k] > f[found] else found
    return found


@njit(**INNER)
def _losses(f, y, data):
    """Loss of one sample, from ``f (K,)``."""
    loss = 0.0
    if data.loss == SOFTMAX:
        at, largest = f[_largest(y)], f[_largest(f)]
        for k in range(f.size):
            loss += math.exp(np.float64(f[k]) - largest)
        return math.log(loss) + (np.float64(largest) - at)
    for k in range(f.size):
        if data.loss == LOGISTIC:
            margin = np.float64(y[k]) * np.float64(f[k])
            loss += max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))
        elif data.loss == SQUARE:
            loss += 0.5 * (np.float64(f[k]) - np.float64(y[k])) ** 2
        else:
            loss += call_scalar(data.value, f[k], y[k])
    return loss


@njit(**INNER)
def loss_and_correct(first, count, data, scratch):
    """Sum of the losses of a block and its number of right outputs; returns what is finite if outputs are."""
    loss, correct, check = 0.0, 0, 0.0
    for i in range(count):
        f, y = scratch.F[i], data.Y[first + i]
        if data.gauge:
            f = scratch.row[0]
            lift(scratch.F[i], f)
        loss += _losses(f, y, data)
        if f.size == 1:
            correct += y[0] * f[0] > 0
        else:
            correct += _largest(f) == _largest(y)
        for k in range(f.size):
            check += np.float64(f[k]) * np.float64(f[k])
    return loss, correct, check
