"""Residuals, clip factors and what pulls each neuron."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np

from langevin.engine.kernels.jit import INNER, njit
from langevin.engine.kernels.sliding.residuals import sample_residual
from langevin.engine.kernels.sliding.state import HEAVIEST, MEAN, OUTPUT, PULL, RESIDUAL, THIRD, VARIANCE
from langevin.engine.kernels.types import NORMALISED, UNCLIPPED


@njit(**INNER)
def _factor(squared, residual, net):
    """``c_i`` at a gradient of norm ``residual sqrt(squared)``."""
    if net.clipping == UNCLIPPED:
        return 1.0
    norm = residual * math.sqrt(max(squared, 0.0))
    if net.clipping == NORMALISED:
        return net.clip / (norm + net.stabiliser)
    return net.clip / norm if norm > net.clip else 1.0


@njit(**INNER)
def _rest_factor(mean, variance, third, residual, net):
    """Mean of ``c_i`` over squared norms with these central moments, by the two-point Gauss rule."""
    if not variance > 1e-24 * mean * mean:
        return _factor(mean, residual, net)
    deviation = math.sqrt(variance)
    half = 0.5 * third / (variance * deviation)
    root = math.sqrt(1.0 + half * half)
    high = 0.5 * (1.0 - half / root)
    return high * _factor(mean + deviation * (half + root), residual, net) + (1.0 - high) * _factor(
        mean + deviation * (half - root), residual, net
    )


@njit(**INNER)
def _mean_factor(i, own, mean, variance, third, net, room):
    """Mean of ``c_i`` over all slopes but that of neuron ``own``, which is 1; -1: over all."""
    total = 0.0
    for code in range(1 << room.heavies[i]):
        chance, norm = 1.0, mean
        for a in range(room.heavies[i]):
            odds = 1.0 if room.whose[a, i] == own else room.odds[a, i]
            on = (code >> a) & 1
            chance *= odds if on else 1.0 - odds
            norm += room.heavy[a, i] * on
        if chance > 0.0:
            total += chance * _rest_factor(norm, variance, third, room.samples[RESIDUAL, i], net)
    return total


@njit(**INNER)
def _set_aside(i, j, weight, slope, room):
    """Add a slope between 0 and 1 to the squared norms of sample ``i``: to its heaviest, or to the rest."""
    samples = room.samples
    for a in range(HEAVIEST):
        if a == room.heavies[i]:
            room.heavies[i] += 1
            room.heavy[a, i], room.odds[a, i], room.whose[a, i] = weight, slope, j
            return
        if weight > room.heavy[a, i]:
            room.heavy[a, i], weight = weight, room.heavy[a, i]
            room.odds[a, i], slope = slope, room.odds[a, i]
            room.whose[a, i], j = j, room.whose[a, i]
    spread = weight * weight * slope * (1.0 - slope)
    samples[MEAN, i] += weight * slope
    samples[VARIANCE, i] += spread
    samples[THIRD, i] += weight * spread * (1.0 - 2.0 * slope)


@njit(**INNER)
def mean_outputs(head, room, f):
    """``f_i``, shape (K, n), from mean features."""
    for k in range(f.shape[0]):
        row = f[k]
        for i in range(row.size):
            row[i] = 0.0
        for j in range(head.shape[0]):
            weight, features = head[j, k], room.features[j]
            for i in range(row.size):
                row[i] += weight * features[i]


@njit(**INNER)
def _residuals(net, room):
    """Residuals from mean outputs: their norms and directions."""
    f, r, y = room.sample[0], room.sample[1], room.sample[2]
    for i in range(net.y.shape[0]):
        for k in range(f.size):
            f[k], y[k] = room.outputs[OUTPUT, k, i], net.y[i, k]
        sample_residual(f, y, r, net)
        total = 0.0
        for k in range(r.size):
            total += r[k] * r[k]
        size = math.sqrt(total)
        room.samples[RESIDUAL, i] = size
        for k in range(r.size):
            room.directions[k, i] = r[k] / size if size != 0.0 else 0.0


@njit(**INNER)
def drive_of(j, room):
    """Row of ``drive`` that belongs to neuron ``j``."""
    return room.drive[j if room.drive.shape[0] > 1 else 0]


@njit(**INNER)
def pulls(head, slopes, net, room):
    """Residuals, what the squared norms are, and mean pulls, from mean outputs and slopes."""
    samples, A = room.samples, room.features
    mean = samples[MEAN]
    _residuals(net, room)
    if head.shape[1] == 1:
        room.scale[:] = head[:, 0]
        room.drive[0] = room.directions[0]
    else:
        np.dot(head, room.directions, room.drive)
    for i in range(mean.size):
        mean[i], samples[VARIANCE, i], samples[THIRD, i], room.heavies[i] = 0.0, 0.0, 0.0, 0
    if net.clipping != UNCLIPPED:
        for j in range(head.shape[0]):
            drive = drive_of(j, room)
            for i in range(mean.size):
                mean[i] += A[j, i] * A[j, i]
                if slopes[j, i] > 0.0:
                    weight = net.squared[i] * (room.scale[j] * drive[i]) ** 2
                    if slopes[j, i] == 1.0:
                        mean[i] += weight
                    else:
                        _set_aside(i, j, weight, slopes[j, i], room)
    for i in range(mean.size):
        factor = _mean_factor(i, -1, mean[i], samples[VARIANCE, i], samples[THIRD, i], net, room)
        samples[PULL, i] = samples[RESIDUAL, i] * factor
    for k in range(head.shape[1]):
        for i in range(mean.size):
            room.pulls[k, i] = room.directions[k, i] * samples[PULL, i]


@njit(**INNER)
def own_pull(i, j, slope, net, room):
    """``c_i ||r_i||`` as neuron ``j`` sees it: while it is active."""
    samples = room.samples
    if net.clipping == UNCLIPPED or slope == 0.0 or slope == 1.0:
        return samples[PULL, i]
    mean, variance, third = samples[MEAN, i], samples[VARIANCE, i], samples[THIRD, i]
    for a in range(room.heavies[i]):
        if room.whose[a, i] == j:
            return samples[RESIDUAL, i] * _mean_factor(i, j, mean, variance, third, net, room)
    weight = net.squared[i] * (room.scale[j] * drive_of(j, room)[i]) ** 2
    spread = weight * weight * slope * (1.0 - slope)
    mean, variance = mean + weight * (1.0 - slope), variance - spread
    third -= weight * spread * (1.0 - 2.0 * slope)
    return samples[RESIDUAL, i] * _mean_factor(i, -1, mean, variance, third, net, room)
