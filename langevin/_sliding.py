"""The zeroth-order flow of a ReLU net where neurons meet the hyperplanes ``w_j . x_i = 0`` of samples.

There the drift jumps, and a solution is one in Filippov's sense: on a hyperplane it is a convex combination
of the drifts on both sides. It crosses, or it *slides*: the slope ``phi'(z_ij)`` then takes the value in
[0, 1] that keeps ``z_ij = w_j . x_i`` at 0. Between all neurons the pulls ``s_i = c_i r_i`` of the samples
are all that is shared. So a step freezes ``s`` and ``v`` at their means over the step; the pre-activations of
each neuron are then piecewise linear in time, and are followed *exactly* from one hyperplane to the next.
Slopes on several hyperplanes at once solve a linear complementarity problem with bounds. Two stages (Heun)
make a method of order 2; crossings and slides cost it no order, since none is stepped over.

A clipping factor depends on all slopes of its sample. Its mean is taken over slopes that are on or off
independently of each other: for one sliding neuron this is Filippov's definition; for several on the same
sample the definition leaves a choice. The heaviest are combined one by one, the rest by a Gauss rule.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from langevin._jit import njit
from langevin._kernels import JIT, LOGISTIC, NORMALISED, SQUARE, UNCLIPPED, call_scalar

# |z_ij| up to this share of max(||w_j||, |v_j|) ||x_i|| is rounding: the neuron is on the hyperplane
ON_PLANE = 1e-13
# rounds in which slopes on hyperplanes are sought, and sweeps a round
_ROUNDS, _SWEEPS = 50, 8
# slopes between 0 and 1 of a sample whose combinations are all taken into account
HEAVIEST = 4
# times that a step's clipping factors and slopes are matched
_MATCHES = 6

STEPS, CROSSINGS, SLIDES, FORCED = range(4)
REACHED, PAUSED, LOST = range(3)


class Net(NamedTuple):
    """What all steps read."""

    X: np.ndarray  # (n, k)
    XT: np.ndarray  # (k, n)
    y: np.ndarray  # (n,)
    squared: np.ndarray  # (n,): ||x_i||^2
    lengths: np.ndarray  # (n,)
    lead: np.ndarray  # (n,), int64: the first sample with the same hyperplane
    ratio: np.ndarray  # (n,): x_i over that sample
    parallel: bool  # whether any two samples share a hyperplane
    loss: int  # as in `langevin._kernels.Data`, with the address of its residual
    residual: int
    clipping: int
    clip: float
    stabiliser: float


class State(NamedTuple):
    """Where a path stands."""

    W: np.ndarray  # (h, k)
    v: np.ndarray  # (h,)
    slopes: np.ndarray  # (h, n): mean slopes of the last step, a first guess on hyperplanes


class Damping(NamedTuple):
    """Minus the outputs' Jacobian, ``K D`` at frozen slopes; ``Q`` diagonalises ``D^1/2 K D^1/2``."""

    right: np.ndarray  # (n, m): K D^1/2 Q
    left: np.ndarray  # (n, m): D^1/2 Q
    values: np.ndarray  # (m,)


class Room(NamedTuple):
    """Work space."""

    Z: np.ndarray  # (h, n): pre-activations at the start
    on: np.ndarray  # (h, n): slopes at the start
    features: np.ndarray  # (h, n): mean over the step
    products: np.ndarray  # (h, n)
    pulled: np.ndarray  # (h, k)
    scaled: np.ndarray  # (n, k)
    samples: np.ndarray  # (8, n)
    neuron: np.ndarray  # (8, n)
    plane: np.ndarray  # (n,), int64
    # of each sample: how many slopes between 0 and 1 are told apart, their weights, values and neurons
    heavies: np.ndarray  # (n,), int64
    heavy: np.ndarray  # (HEAVIEST, n)
    odds: np.ndarray  # (HEAVIEST, n)
    whose: np.ndarray  # (HEAVIEST, n), int64
    inputs: np.ndarray  # (k,)
    head: np.ndarray  # (h,)
    W: np.ndarray  # (h, k): the first stage's
    v: np.ndarray  # (h,)


MEAN, VARIANCE, THIRD, RESIDUAL, PULL, OUTPUT, START, PREDICTED = range(8)
Z, RATE, SLOPE, OWN, FORCE, PLANE_FORCE, SHARE, AREA = range(8)


@njit(**JIT)
def _length(W, j):
    total = 0.0
    for c in range(W.shape[1]):
        total += W[j, c] * W[j, c]
    return math.sqrt(total)


@njit(**JIT)
def _copy(source, target):
    for a in range(source.shape[0]):
        for b in range(source.shape[1]):
            target[a, b] = source[a, b]


@njit(**JIT)
def _copy_state(source, target):
    _copy(source.W, target.W)
    _copy(source.slopes, target.slopes)
    for j in range(source.v.size):
        target.v[j] = source.v[j]


@njit(**JIT)
def _norm(state):
    """Of all weights."""
    total = 0.0
    for j in range(state.v.size):
        total += state.v[j] * state.v[j]
        for c in range(state.W.shape[1]):
            total += state.W[j, c] * state.W[j, c]
    return math.sqrt(total)


# --- clipping ---------------------------------------------------------------------------------


@njit(**JIT)
def _factor(squared, residual, net):
    """``c_i`` at a gradient of norm ``|residual| sqrt(squared)``."""
    if net.clipping == UNCLIPPED:
        return 1.0
    norm = abs(residual) * math.sqrt(max(squared, 0.0))
    if net.clipping == NORMALISED:
        return net.clip / (norm + net.stabiliser)
    return net.clip / norm if norm > net.clip else 1.0


@njit(**JIT)
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


@njit(**JIT)
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


@njit(**JIT)
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


@njit(**JIT)
def _outputs(head, room, f):
    """``f_i`` from mean features."""
    for i in range(f.size):
        f[i] = 0.0
    for j in range(head.size):
        for i in range(f.size):
            f[i] += head[j] * room.features[j, i]


@njit(**JIT)
def _pulls(head, slopes, net, room):
    """What the squared norms are, residuals and mean pulls ``s_i``, from mean outputs and slopes."""
    samples, A = room.samples, room.features
    mean = samples[MEAN]
    for i in range(net.y.size):
        mean[i], samples[VARIANCE, i], samples[THIRD, i], room.heavies[i] = 0.0, 0.0, 0.0, 0
    if net.clipping != UNCLIPPED:
        for j in range(head.size):
            square = head[j] * head[j]
            for i in range(net.y.size):
                mean[i] += A[j, i] * A[j, i]
                if slopes[j, i] == 1.0:
                    mean[i] += net.squared[i] * square
                elif slopes[j, i] > 0.0:
                    _set_aside(i, j, net.squared[i] * square, slopes[j, i], room)
    for i in range(net.y.size):
        y, f = net.y[i], samples[OUTPUT, i]
        if net.loss == LOGISTIC:
            samples[RESIDUAL, i] = -y / (1.0 + math.exp(y * f))
        elif net.loss == SQUARE:
            samples[RESIDUAL, i] = f - y
        else:
            samples[RESIDUAL, i] = call_scalar(net.residual, f, y)
        factor = _mean_factor(i, -1, mean[i], samples[VARIANCE, i], samples[THIRD, i], net, room)
        samples[PULL, i] = samples[RESIDUAL, i] * factor


@njit(**JIT)
def _own_pull(i, j, head, slope, net, room):
    """``s_i`` as neuron ``j`` sees it: while it is active."""
    samples = room.samples
    if net.clipping == UNCLIPPED or slope == 0.0 or slope == 1.0:
        return samples[PULL, i]
    mean, variance, third = samples[MEAN, i], samples[VARIANCE, i], samples[THIRD, i]
    for a in range(room.heavies[i]):
        if room.whose[a, i] == j:
            return samples[RESIDUAL, i] * _mean_factor(i, j, mean, variance, third, net, room)
    weight = net.squared[i] * head * head
    spread = weight * weight * slope * (1.0 - slope)
    mean, variance = mean + weight * (1.0 - slope), variance - spread
    third -= weight * spread * (1.0 - 2.0 * slope)
    return samples[RESIDUAL, i] * _mean_factor(i, -1, mean, variance, third, net, room)


# --- one neuron --------------------------------------------------------------------------------


@njit(**JIT)
def _choose(rate, slope, force, square):
    """Slope on one hyperplane: the pre-activation's rate is ``rate`` at the present ``slope``.

    ``force * square`` is what the rate loses where the neuron is active. If it is positive, the slope is
    unique; otherwise the hyperplane repels, and the neuron stays on the side where it is, unless it cannot.
    """
    if force > 0.0:
        return min(max(slope + rate / (force * square), 0.0), 1.0)
    if slope >= 0.5:
        return 1.0 if rate + (slope - 1.0) * force * square >= 0.0 else 0.0
    return 1.0 if rate + slope * force * square > 0.0 else 0.0


@njit(**JIT)
def _solve_free(G, rate, free, count, change):
    """Solve ``G change = rate`` on the first ``count`` indices in ``free``; dependent ones do not change."""
    L = np.zeros((count, count))
    for a in range(count):
        for b in range(a):
            if L[b, b] > 0.0:
                total = G[free[a], free[b]]
                for c in range(b):
                    total -= L[a, c] * L[b, c]
                L[a, b] = total / L[b, b]
        total = G[free[a], free[a]]
        for c in range(a):
            total -= L[a, c] * L[a, c]
        # 0 marks a sample that depends on those before
        L[a, a] = math.sqrt(total) if total > 1e-10 * G[free[a], free[a]] else 0.0
    for a in range(count):
        total = rate[free[a]]
        for c in range(a):
            total -= L[a, c] * change[c]
        change[a] = total / L[a, a] if L[a, a] > 0.0 else 0.0
    for a in range(count - 1, -1, -1):
        total = change[a]
        for c in range(a + 1, count):
            total -= L[c, a] * change[c]
        change[a] = total / L[a, a] if L[a, a] > 0.0 else 0.0


@njit(**JIT)
def _settled(rate, slope, force, scale):
    """Whether a slope and a rate on a hyperplane fit each other."""
    slack = 1e-12 * scale
    if slope <= 0.0:
        return rate <= slack
    if slope >= 1.0:
        return rate >= -slack
    return force > 0.0 and abs(rate) <= slack


@njit(**JIT)
def _turn(net, rate, y):
    """Take the pull ``y`` from the rates of the pre-activations."""
    for i in range(rate.size):
        total = 0.0
        for c in range(y.size):
            total += net.X[i, c] * y[c]
        rate[i] -= total


@njit(**JIT)
def _join(net, row, i, y):
    """Bring samples with the hyperplane of sample ``i`` to its side, and add up what they do there."""
    slope, force, total = row[SLOPE], row[FORCE], 0.0
    for c in range(y.size):
        y[c] = 0.0
    for m in range(slope.size):
        if net.lead[m] == i:
            side = slope[i] if net.ratio[m] > 0.0 else 1.0 - slope[i]
            for c in range(y.size):
                y[c] += force[m] * (side - slope[m]) * net.X[m, c]
            slope[m] = side
            total += force[m] * abs(net.ratio[m])
    _turn(net, row[RATE], y)
    row[PLANE_FORCE, i] = total


@njit(**JIT)
def _settle(net, row, plane, count, y):
    """Find the slopes on the hyperplanes ``plane[:count]``, on all of which the neuron is, and the rates."""
    X, rate, slope, force = net.X, row[RATE], row[SLOPE], row[PLANE_FORCE]
    fits = True
    for a in range(count):
        if net.parallel:
            _join(net, row, plane[a], y)
        else:
            force[plane[a]] = row[FORCE, plane[a]]
    for a in range(count):
        i = plane[a]
        fits &= _settled(rate[i], slope[i], force[i], abs(rate[i]) + abs(force[i]) * net.squared[i])
    if not fits:
        G, r, p = np.empty((count, count)), np.empty(count), np.empty(count)
        free, change = np.empty(count, np.int64), np.empty(count)
        scale = 0.0
        for a in range(count):
            i = plane[a]
            r[a], p[a] = rate[i], slope[i]
            scale = max(scale, abs(rate[i]) + abs(force[i]) * net.squared[i])
            for b in range(a + 1):
                total = 0.0
                for c in range(X.shape[1]):
                    total += X[i, c] * X[plane[b], c]
                G[a, b], G[b, a] = total, total
        for _ in range(_ROUNDS):
            # one hyperplane after the other: coordinate descent where all of them attract
            for _ in range(_SWEEPS):
                moved = False
                for a in range(count):
                    i = plane[a]
                    if G[a, a] > 0.0:
                        move = _choose(r[a], p[a], force[i], G[a, a]) - p[a]
                        if move != 0.0:
                            moved |= abs(move * force[i]) * G[a, a] > 1e-14 * scale
                            p[a] += move
                            for b in range(count):
                                r[b] -= force[i] * move * G[a, b]
                if not moved:
                    break
            # then all that slide at once
            slides = np.int64(0)
            for a in range(count):
                if 0.0 < p[a] < 1.0:
                    free[slides] = a
                    slides += 1
            _solve_free(G, r, free, slides, change)
            inside = True
            for a in range(slides):
                now = p[free[a]] + change[a] / force[plane[free[a]]]
                inside &= 0.0 <= now <= 1.0
            if inside:
                for a in range(slides):
                    p[free[a]] += change[a] / force[plane[free[a]]]
                    for b in range(count):
                        r[b] -= change[a] * G[free[a], b]
            fits = True
            for a in range(count):
                fits &= _settled(r[a], p[a], force[plane[a]], scale)
            if fits:
                break
        for c in range(y.size):
            y[c] = 0.0
        for a in range(count):
            i = plane[a]
            for c in range(X.shape[1]):
                y[c] += force[i] * (p[a] - slope[i]) * X[i, c]
            slope[i] = p[a]
        _turn(net, rate, y)
    for a in range(count):
        i = plane[a]
        # rounding must not take a neuron off a hyperplane
        if abs(rate[i]) <= 1e-12 * (abs(force[i]) * net.squared[i]) or 0.0 < slope[i] < 1.0:
            rate[i] = 0.0
    if net.parallel:
        for m in range(rate.size):
            i = net.lead[m]
            rate[m] = net.ratio[m] * rate[i]
            for a in range(count):
                if plane[a] == i:
                    slope[m] = slope[i] if net.ratio[m] > 0.0 else 1.0 - slope[i]
    return fits


@njit(**JIT)
def _follow_neuron(net, row, plane, y, size, h, counts):
    """Follow one neuron's pre-activations over a step; leave mean slopes and mean features.

    Returns whether it got to the end: there are flows with infinitely many events.
    """
    z, rate, slope = row[Z], row[RATE], row[SLOPE]
    share, area, n = row[SHARE], row[AREA], row.shape[1]
    for i in range(n):
        share[i], area[i] = 0.0, 0.0
    left, fits = h, True
    for event in range(10 * n + 100):
        count = np.int64(0)
        # at the origin a neuron without active samples stays: the ReLU's derivative at 0 is 0
        for i in range(n if size > 0.0 else 0):
            if net.lead[i] != i:
                z[i] = net.ratio[i] * z[net.lead[i]]
            elif abs(z[i]) <= ON_PLANE * size * net.lengths[i]:
                z[i] = 0.0
                if net.squared[i] > 0.0:
                    plane[count] = i
                    count += 1
        if count > 0:
            for a in range(count):
                row[OWN, plane[a]] = slope[plane[a]]
            fits &= _settle(net, row, plane, count, y)
            for a in range(count):
                i = plane[a]
                before = row[OWN, i]
                if event > 0 and (before == 0.0 or before == 1.0) and slope[i] != before:
                    counts[CROSSINGS if slope[i] == 0.0 or slope[i] == 1.0 else SLIDES] += 1
        until = left
        for i in range(n):
            if z[i] * rate[i] < 0.0 and net.lead[i] == i:
                until = min(until, -z[i] / rate[i])
        for i in range(n):
            end = z[i] + until * rate[i]
            share[i] += until * slope[i]
            area[i] += 0.5 * until * (max(z[i], 0.0) + max(end, 0.0))
            z[i] = end
        if until >= left:
            return fits
        left -= until
    for i in range(n):
        share[i] += left * slope[i]
        area[i] += left * max(z[i], 0.0)
    return False


# --- a step ------------------------------------------------------------------------------------


@njit(**JIT)
def _start(state, net, room):
    """Pre-activations, features and slopes at the start of a step."""
    np.dot(state.W, net.XT, room.Z)
    for j in range(state.v.size):
        size = max(_length(state.W, j), abs(state.v[j]))
        for i in range(net.y.size):
            if net.lead[i] != i:
                room.Z[j, i] = net.ratio[i] * room.Z[j, net.lead[i]]
            z, floor = room.Z[j, i], ON_PLANE * size * net.lengths[i]
            room.features[j, i] = max(z, 0.0)
            room.on[j, i] = 1.0 if z > floor else (0.0 if z < -floor else state.slopes[j, i])


@njit(**JIT)
def _stage(state, h, new, net, room, counts):
    """One stage: from mean outputs, features and slopes to those of the step, and to where the step ends.

    Returns whether all neurons could be followed, and whether any slope was between 0 and 1.
    """
    head, slopes = room.head, new.slopes
    _pulls(head, slopes, net, room)
    n, k, row = net.y.size, net.X.shape[1], room.neuron
    for i in range(n):
        for c in range(k):
            room.scaled[i, c] = room.samples[PULL, i] * net.X[i, c]
    np.dot(room.on, room.scaled, room.pulled)
    np.dot(room.pulled, net.XT, room.products)
    good, partial = True, False
    for j in range(head.size):
        size = _length(state.W, j)
        size = max(size, abs(state.v[j])) if size > 0.0 else 0.0
        meets = False
        for i in range(n):
            z, end = room.Z[j, i], room.Z[j, i] - h * head[j] * room.products[j, i]
            meets |= z * end <= 0.0 or abs(z) <= ON_PLANE * size * net.lengths[i]
            meets |= slopes[j, i] != room.on[j, i]
        turn = 0.0
        if meets:
            y = room.inputs
            for c in range(k):
                y[c] = 0.0
            for i in range(n):
                row[OWN, i] = _own_pull(i, j, head[j], slopes[j, i], net, room)
                row[FORCE, i] = head[j] * row[OWN, i]
                row[Z, i], row[SLOPE, i] = room.Z[j, i], room.on[j, i]
                extra = (row[OWN, i] - room.samples[PULL, i]) * room.on[j, i]
                if extra != 0.0:
                    for c in range(k):
                        y[c] += extra * net.X[i, c]
            for i in range(n):
                total = room.products[j, i]
                for c in range(k):
                    total += y[c] * net.X[i, c]
                row[RATE, i] = -head[j] * total
            good &= _follow_neuron(net, row, room.plane, y, size, h, counts)
            for c in range(k):
                room.pulled[j, c] = 0.0
            for i in range(n):
                own = _own_pull(i, j, head[j], slopes[j, i], net, room)
                slopes[j, i] = min(max(row[SHARE, i] / h, 0.0), 1.0)
                room.features[j, i] = row[AREA, i] / h
                turn += own * row[AREA, i]
                partial |= 0.0 < slopes[j, i] < 1.0
                if slopes[j, i] > 0.0:
                    for c in range(k):
                        room.pulled[j, c] += own * slopes[j, i] * net.X[i, c]
        else:
            for i in range(n):
                mean = room.Z[j, i] - 0.5 * h * head[j] * room.products[j, i]
                slopes[j, i] = room.on[j, i]
                room.features[j, i] = max(mean, 0.0)
                turn += room.samples[PULL, i] * room.features[j, i] * h
        new.v[j] = state.v[j] - turn
        for c in range(k):
            new.W[j, c] = state.W[j, c] - h * head[j] * room.pulled[j, c]
    return good, partial


@njit(**JIT)
def _distance(new, room):
    """How far the stage has moved the step's end from the one before, which it replaces."""
    total = 0.0
    for j in range(new.v.size):
        total += (new.v[j] - room.v[j]) ** 2
        room.v[j] = new.v[j]
        for c in range(new.W.shape[1]):
            total += (new.W[j, c] - room.W[j, c]) ** 2
            room.W[j, c] = new.W[j, c]
    return math.sqrt(total)


@njit(**JIT)
def _filter(start, predicted, h, damping, mean):
    """Outputs whose pulls keep a step stable: ``mean = start + B (predicted - start)``.

    With ``J`` minus the outputs' Jacobian, ``B = (1 + a h J)^-2 (1 + 2 a^2 h J)``, ``a = 1 - 2^-1/2``: the
    step is L-stable where ``J`` is right, and of order 2 whatever it is.
    """
    n, a = start.size, 1.0 - math.sqrt(0.5)
    inner = np.zeros(n)
    for m in range(damping.values.size):
        total = 0.0
        for i in range(n):
            total += damping.left[i, m] * (predicted[i] - start[i])
        z = h * damping.values[m]
        inner[m] = -h * total * (2.0 * a - 2.0 * a * a + a * a * z) / (1.0 + a * z) ** 2
    for i in range(n):
        total = predicted[i]
        for m in range(damping.values.size):
            total += damping.right[i, m] * inner[m]
        mean[i] = total


@njit(**JIT)
def _step(state, new, h, tolerance, net, damping, room, counts):
    """One step; returns the change by its second stage over the weights' size, infinite where it failed."""
    _start(state, net, room)
    _copy(room.on, new.slopes)
    size, samples = _norm(state), room.samples
    for j in range(state.v.size):
        room.head[j] = state.v[j]
    _outputs(room.head, room, samples[START])
    for i in range(net.y.size):
        samples[OUTPUT, i] = samples[START, i]
    error, good, waste = 0.0, True, np.zeros(4, np.int64)
    for match in range(1 + _MATCHES):
        for a in range(waste.size):
            waste[a] = 0
        good, partial = _stage(state, h, new, net, room, waste)
        change = _distance(new, room)
        for j in range(room.head.size):
            room.head[j] = 0.5 * (state.v[j] + new.v[j])
        if match == 0:
            _outputs(room.head, room, samples[PREDICTED])
            _filter(samples[START], samples[PREDICTED], h, damping, samples[OUTPUT])
            continue
        if match == 1:
            error = change
        if not partial or net.clipping == UNCLIPPED or change <= 0.01 * tolerance * size:
            break
    for a in range(counts.size):
        counts[a] += waste[a]
    if not good:
        return np.inf
    return error / size if size > 0.0 else error


@njit(**JIT)
def advance(coarse, fine, spare, t, stop, h, shortest, tolerance, most, net, damping, room, counts):
    """Bring two paths from ``t`` to ``stop``: one in steps of ``h``, one in two halves of each.

    The first one's steps keep ``tolerance``. Returns the time, the next step, and how it ended.
    """
    starts, ends, found = (coarse, fine, spare[1]), (spare[0], spare[1], spare[2]), np.zeros(4, np.int64)
    for _ in range(most):
        if t >= stop:
            return t, h, REACHED
        last = t + h >= stop - 1e-9 * h
        now = stop - t if last else min(h, 0.5 * (stop - t) if t + 2.0 * h > stop else h)
        error, finite = 0.0, True
        for part in range(3):
            for a in range(found.size):
                found[a] = 0 if part < 2 else found[a]
            size = now if part == 0 else 0.5 * now
            change = _step(starts[part], ends[part], size, tolerance, net, damping, room, found)
            finite = math.isfinite(_norm(ends[part]))
            error = change if part == 0 else max(error, change)
            if not finite or (error > tolerance and now > shortest):
                break
        if not finite and now <= shortest:
            return t, h, LOST
        if finite and (error <= tolerance or now <= shortest):
            _copy_state(spare[0], coarse)
            _copy_state(spare[2], fine)
            t = stop if last else t + now
            counts[STEPS] += 1
            counts[CROSSINGS] += found[CROSSINGS]
            counts[SLIDES] += found[SLIDES]
            counts[FORCED] += error > tolerance
            grown = now * min(max(0.9 * math.sqrt(tolerance / error), 0.3), 3.0) if error > 0.0 else 3.0 * now
            # a step cut short by a record tells nothing of the next
            h = max(h, grown) if now < h else grown
        else:
            h = now * (max(0.2, 0.9 * math.sqrt(tolerance / error)) if math.isfinite(error) else 0.25)
        h = max(h, shortest)
    return t, h, PAUSED


def workspace(h: int, n: int, k: int) -> tuple[Room, tuple[State, State, State]]:
    """Work space of `advance`, and three states."""

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape)

    room = Room(
        Z=zeros(h, n),
        on=zeros(h, n),
        features=zeros(h, n),
        products=zeros(h, n),
        pulled=zeros(h, k),
        scaled=zeros(n, k),
        samples=zeros(8, n),
        neuron=zeros(8, n),
        plane=np.zeros(n, np.int64),
        heavies=np.zeros(n, np.int64),
        heavy=zeros(HEAVIEST, n),
        odds=zeros(HEAVIEST, n),
        whose=np.zeros((HEAVIEST, n), np.int64),
        inputs=zeros(k),
        head=zeros(h),
        W=zeros(h, k),
        v=zeros(h),
    )
    first, second, third = (State(zeros(h, k), zeros(h), zeros(h, n)) for _ in range(3))
    return room, (first, second, third)
