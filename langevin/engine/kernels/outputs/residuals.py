"""Residuals, clip factors, loss and accuracy of K outputs.

Outputs and residuals of a block lie output by output, ``(K, b)``, so that loops over its samples vectorise.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np

from langevin.engine.kernels.calls import call_scalar
from langevin.engine.kernels.exponential import exponential
from langevin.engine.kernels.jit import LINKED, LINKED_FAST, njit
from langevin.engine.kernels.outputs.gauge import lift, lower
from langevin.engine.kernels.outputs.types import (
    COLUMN,
    FACTOR,
    FEATURE,
    LARGEST,
    LOGISTIC,
    MARGIN,
    OTHERS,
    PULLBACK,
    RESIDUAL,
    SOFTMAX,
    SQUARE,
)
from langevin.engine.kernels.types import FLAT, LP, NORMALISED, UNCLIPPED


@njit(**LINKED_FAST)
def _softmax_residuals(first, count, f, r, data, scratch):
    """``p - y``, without cancellation, and ``1 - p_y`` in `OTHERS`; shapes (K, b)."""
    zero, one = r.dtype.type(0), r.dtype.type(1)
    largest, others = scratch.samples[LARGEST], scratch.samples[OTHERS]
    for i in range(count):
        largest[i], others[i] = f[0, i], zero
    for k in range(1, f.shape[0]):
        for i in range(count):
            # a NaN stays: nothing exceeds it, and its own exponential below is NaN
            largest[i] = f[k, i] if f[k, i] > largest[i] else largest[i]
    for k in range(f.shape[0]):
        for i in range(count):
            r[k, i] = exponential(f[k, i] - largest[i])
    total = largest
    for i in range(count):
        label = data.labels[scratch.batch[first + i]]
        total[i], r[label, i] = r[label, i], zero
    for k in range(f.shape[0]):
        for i in range(count):
            others[i] += r[k, i]
    for i in range(count):
        total[i] = one / (total[i] + others[i])
        others[i] *= total[i]
    for k in range(f.shape[0]):
        for i in range(count):
            r[k, i] *= total[i]
    for i in range(count):
        r[data.labels[scratch.batch[first + i]], i] = -others[i]


@njit(**LINKED_FAST)
def _residuals(first, count, f, r, data, scratch):
    """``r`` elementwise, shape (K, b)."""
    one = r.dtype.type(1)
    for k in range(f.shape[0]):
        for i in range(count):
            y = data.Y[scratch.batch[first + i], k]
            if data.loss == LOGISTIC:
                r[k, i] = -y / (one + exponential(y * f[k, i]))
            elif data.loss == SQUARE:
                r[k, i] = f[k, i] - y
            else:
                r[k, i] = call_scalar(data.residual, f[k, i], y)


@njit(**LINKED_FAST)
def _clip_margins(count, clip, r, samples):
    """Clip residuals of softmax by a bound of their norms."""
    one, two = r.dtype.type(1), r.dtype.type(2)
    factor = samples[FACTOR]
    for i in range(count):
        g = samples[OTHERS, i] * math.sqrt(two * samples[FEATURE, i])
        factor[i] = clip / g if g > clip else one
    for k in range(r.shape[0]):
        for i in range(count):
            r[k, i] *= factor[i]


@njit(**LINKED_FAST)
def _clip_columns(count, clip, r, samples):
    """Clip the residual of each output on its own."""
    one = r.dtype.type(1)
    limit = clip / math.sqrt(r.dtype.type(r.shape[0]))
    for k in range(r.shape[0]):
        for i in range(count):
            g = abs(r[k, i]) * math.sqrt(samples[FEATURE, i])
            r[k, i] *= limit / g if g > limit else one


@njit(**LINKED_FAST)
def _squared_columns(count, r, squared):
    """Square norms of the columns of ``r (K, b)``."""
    squared[:count] = 0
    for k in range(r.shape[0]):
        for i in range(count):
            squared[i] += r[k, i] * r[k, i]


@njit(**LINKED_FAST)
def _finite_sum(count, f):
    """A number that is finite if all of ``f (K, b)`` is."""
    total = 0.0
    for k in range(f.shape[0]):
        for i in range(count):
            total += np.float64(f[k, i]) * np.float64(f[k, i])
    return total


@njit(**LINKED)
def residuals(first, count, data, rule, scratch):
    """Residuals of a block and their squared norms; returns a number that is finite if all outputs are.

    The clips that linear probing alone has are applied here.
    """
    samples, f, r = scratch.samples, scratch.F, scratch.R
    clip = r.dtype.type(rule.clip)
    if data.gauge:
        f, r = scratch.lifted[0], scratch.lifted[1]
        lift(scratch.F, count, f, samples[RESIDUAL])
    check = _finite_sum(count, f)
    if data.loss == SOFTMAX:
        _softmax_residuals(first, count, f, r, data, scratch)
    else:
        _residuals(first, count, f, r, data, scratch)
    if rule.clipping == MARGIN:
        _clip_margins(count, clip, r, samples)
    elif rule.clipping == COLUMN:
        _clip_columns(count, clip, r, samples)
    _squared_columns(count, r, samples[RESIDUAL])
    if data.gauge:
        lower(r, count, scratch.R, samples[OTHERS])
    if rule.clipping != UNCLIPPED:
        for i in range(count):
            check += np.float64(samples[FEATURE, i])
    return check


@njit(**LINKED_FAST)
def clip_factors(first, count, data, rule, scratch):
    """Factors ``c_i`` from the squared norms of a block's gradients; multiply the residuals by them."""
    samples, R = scratch.samples, scratch.R
    clip, stabiliser, one = R.dtype.type(rule.clip), R.dtype.type(rule.stabiliser), R.dtype.type(1)
    factor = samples[FACTOR]
    for i in range(count):
        squared = samples[RESIDUAL, i] * samples[FEATURE, i]
        if rule.method != LP:
            squared += data.squared_norms[scratch.batch[first + i]] * samples[PULLBACK, i]
        g = math.sqrt(squared)
        if rule.clipping == FLAT:
            factor[i] = clip / g if g > clip else one
        elif rule.clipping == NORMALISED:
            factor[i] = clip / (g + stabiliser)
        else:
            factor[i] = one
    for k in range(R.shape[0]):
        for i in range(count):
            R[k, i] *= factor[i]


@njit(**LINKED)
def _largest(f):
    """Place of the first largest number, without the passes of NumPy's, which are slow to compile."""
    found = 0
    for k in range(1, f.size):
        found = k if f[k] > f[found] else found
    return found


@njit(**LINKED)
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


@njit(**LINKED)
def loss_and_correct(first, count, data, scratch):
    """Sum of the losses of a block and its number of right outputs; returns what is finite if outputs are."""
    loss, correct, outputs, f = 0.0, 0, scratch.F, scratch.row
    if data.gauge:
        outputs = scratch.lifted[0]
        lift(scratch.F, count, outputs, scratch.samples[RESIDUAL])
    for i in range(count):
        y = data.Y[first + i]
        for k in range(f.size):
            f[k] = outputs[k, i]
        loss += _losses(f, y, data)
        if f.size == 1:
            correct += y[0] * f[0] > 0
        else:
            correct += _largest(f) == _largest(y)
    return loss, correct, _finite_sum(count, outputs)
