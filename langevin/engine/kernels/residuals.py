"""Clipped residuals, loss and accuracy."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np

from langevin.engine.kernels.calls import call_scalar
from langevin.engine.kernels.jit import INNER, INNER_FAST, njit
from langevin.engine.kernels.types import FLAT, LOGISTIC, NORM, NORMALISED, OUTPUT, RESIDUAL, SQUARE


@njit(**INNER)
def _call_residuals(data, f, s):
    for i in range(data.y.size):
        s[i] = call_scalar(data.residual, f[i], data.y[i])


@njit(**INNER_FAST)
def clip_residuals(data, rule, scratch):
    """From outputs and squared norms to the clipped residuals ``s_i = c_i r_i``; 0 on padding."""
    f, norm, s = scratch.samples[OUTPUT], scratch.samples[NORM], scratch.samples[RESIDUAL]
    y, one = data.y, data.y.dtype.type(1)
    if data.loss == LOGISTIC:
        for i in range(y.size):
            s[i] = -y[i] / (one + math.exp(y[i] * f[i]))
    elif data.loss == SQUARE:
        for i in range(y.size):
            s[i] = f[i] - y[i]
    else:
        _call_residuals(data, f, s)
    clip, stabiliser = y.dtype.type(rule.clip), y.dtype.type(rule.stabiliser)
    if rule.clipping == FLAT:
        for i in range(y.size):
            g = abs(s[i]) * math.sqrt(norm[i])
            s[i] *= clip / g if g > clip else one
    elif rule.clipping == NORMALISED:
        for i in range(y.size):
            s[i] *= clip / (abs(s[i]) * math.sqrt(norm[i]) + stabiliser)
    for i in range(y.size, s.size):
        s[i] = 0


@njit(**INNER)
def loss_and_accuracy(data, scratch):
    """Sum of the losses, and share of outputs with the sign of their label."""
    loss, correct = 0.0, 0
    for i in range(data.y.size):
        f, y = np.float64(scratch.samples[OUTPUT, i]), np.float64(data.y[i])
        if data.loss == LOGISTIC:
            loss += max(-y * f, 0.0) + math.log1p(math.exp(-abs(f)))
        elif data.loss == SQUARE:
            loss += 0.5 * (f - y) ** 2
        else:
            loss += call_scalar(data.value, f, y)
        correct += y * f > 0
    return loss, correct / data.y.size
