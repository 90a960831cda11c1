"""The step loop of a collapsed linear network."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np

from langevin.engine.kernels.calls import call_scalar
from langevin.engine.kernels.jit import JIT, njit
from langevin.engine.kernels.normals import (
    STATE_STREAM,
    WISHART_STREAM,
    chi_square,
    philox,
    radius64,
    sincos64,
)
from langevin.engine.kernels.observe import move_complement
from langevin.engine.kernels.types import (
    ACCURACY,
    DISPLACEMENT,
    DISTANCE,
    FLAT,
    LOGISTIC,
    LOSS,
    NORMALISED,
    SQUARE,
)


@njit(**JIT)
def advance_collapsed(
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
    """`advance` for a linear net in full fine-tuning whose samples all have the same ``y_i x_i``.

    With ``u = W x / ||x||``, ``p = (v + u) / sqrt(2)`` and ``m = (v - u) / sqrt(2)`` grow and shrink alone
    (theory, section 7e). A state is ``(p along its start, norm of p across it, the same of m)``.
    """
    samples, gamma = data.y.size, np.float64(data.squared_norms[0])
    dt, noise = np.float64(rule.dt), np.float64(rule.noise)
    start_record = np.searchsorted(records.steps, first)
    for p in range(thetas.shape[0]):
        if diverged[p] >= 0:
            continue
        theta, complement, path = thetas[p], complements[p], first_path + p
        r = start_record
        for step in range(first, stop + last):
            recording = r < records.steps.size and records.steps[r] == step
            if step == stop and not recording:
                break
            a, b, c, d = (
                np.float64(theta[0]),
                np.float64(theta[1]),
                np.float64(theta[2]),
                np.float64(theta[3]),
            )
            plus, minus = a * a + b * b, c * c + d * d
            margin = 0.5 * math.sqrt(gamma) * (plus - minus)
            if not math.isfinite(plus + minus):
                diverged[p] = step
                break
            if recording:
                _observe_collapsed(
                    r, step, margin, theta, complement, path, k0, k1, data, records, scalars[p]
                )
                r += 1
            if step == stop:
                break
            if data.loss == LOGISTIC:
                pull = 1.0 / (1.0 + math.exp(margin))
            elif data.loss == SQUARE:
                pull = 1.0 - margin
            else:
                pull = -call_scalar(data.residual, margin, 1.0)
            norm = abs(pull) * math.sqrt(gamma * (plus + minus))
            if rule.clipping == FLAT:
                pull *= rule.clip / norm if norm > rule.clip else 1.0
            elif rule.clipping == NORMALISED:
                pull *= rule.clip / (norm + rule.stabiliser)
            growth = samples * math.sqrt(gamma) * pull * dt
            a, b, c, d = a * (1.0 + growth), b * (1.0 + growth), c * (1.0 - growth), d * (1.0 - growth)
            if noise > 0:
                w0, w1, w2, w3 = philox(
                    np.uint64(0), np.uint64(step), np.uint64(path), np.uint64(STATE_STREAM), k0, k1
                )
                x0, x1 = sincos64(w1)
                x2, x3 = sincos64(w3)
                first_radius, second_radius = noise * radius64(w0), noise * radius64(w2)
                a += first_radius * x0
                c += second_radius * x2
                b = _across(b + first_radius * x1, noise, rule.folded, 0, step, path, k0, k1)
                d = _across(d + second_radius * x3, noise, rule.folded, 1, step, path, k0, k1)
            theta[0], theta[1], theta[2], theta[3] = a, b, c, d


@njit(**JIT)
def _across(x, noise, degrees, counter, step, path, k0, k1):
    """Norm of ``(x, noise xi)`` for ``degrees`` standard normals ``xi``."""
    rest = chi_square(degrees, np.int64(counter), step, path, WISHART_STREAM, k0, k1)
    return math.sqrt(x * x + noise * noise * rest)


@njit(**JIT)
def _observe_collapsed(r, step, margin, theta, complement, path, k0, k1, data, records, scalars):
    """Write the observables of record ``r`` of a collapsed net."""
    if data.loss == LOGISTIC:
        loss = max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))
    elif data.loss == SQUARE:
        loss = 0.5 * (1.0 - margin) ** 2
    else:
        loss = call_scalar(data.value, margin, 1.0)
    outside = 0.0
    if records.complement_dims.size > 0:
        scales, dims = records.complement_scales[:, r], records.complement_dims
        outside = move_complement(complement, scales, dims, step, path, k0, k1)
    scalars[LOSS, r], scalars[ACCURACY, r] = data.y.size * loss, margin > 0
    displacement, distance = outside, outside
    for i in range(4):
        displacement += np.float64(theta[i] - records.origin[i]) ** 2
        if records.reference.shape[0] > 0:
            distance += np.float64(theta[i] - records.reference[r, i]) ** 2
    scalars[DISPLACEMENT, r] = displacement
    if records.reference.shape[0] > 0:
        scalars[DISTANCE, r] = distance
