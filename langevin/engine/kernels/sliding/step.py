"""The zeroth-order flow of a ReLU network whose neurons meet hyperplanes ``w_j . x_i = 0`` of samples.

There the drift jumps, and a solution is one in Filippov's sense: on a hyperplane it is a convex combination
of the drifts on both sides. It crosses, or it *slides*: the slope ``phi'(z_ij)`` then takes the value in
[0, 1] that keeps ``z_ij = w_j . x_i`` at 0. Between all neurons the pulls ``s_i = c_i r_i`` of the samples, K
numbers each, are all that is shared. So a step freezes ``s`` and ``V`` at their means over the step; the
pre-activations of each neuron are then piecewise linear in time, with the forces ``V_j . s_i``, and are
followed *exactly* from one hyperplane to the next.
Slopes on several hyperplanes at once solve a linear complementarity problem with bounds. Two stages (Heun)
make a method of order 2; crossings and slides cost it no order, since none is stepped over.

A clipping factor depends on all slopes of its sample, weighted by ``(V_j . r_i)^2``. Its mean is taken over
slopes that are on or off independently of each other: for one sliding neuron this is Filippov's definition;
for several on the same sample the definition leaves a choice. The heaviest are combined one by one, the rest
by a Gauss rule.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np

from langevin.engine.kernels.jit import INNER, JIT, njit
from langevin.engine.kernels.sliding.forces import drive_of, mean_outputs, own_pull, pulls
from langevin.engine.kernels.sliding.planes import follow_neuron
from langevin.engine.kernels.sliding.state import (
    AREA,
    COUNTS,
    CROSSINGS,
    FORCE,
    FORCED,
    LOST,
    MATCHES,
    ON_PLANE,
    ORIGINS,
    OUTPUT,
    OWN,
    PAUSED,
    PREDICTED,
    PULL,
    RATE,
    REACHED,
    SHARE,
    SLIDES,
    SLOPE,
    START,
    STEPS,
    Z,
    copy,
    copy_state,
    length,
    state_norm,
)
from langevin.engine.kernels.types import UNCLIPPED, borrow


@njit(**INNER)
def _start(state, net, room):
    """Pre-activations, features and slopes at the start of a step."""
    np.dot(state.W, net.XT, room.Z)
    for j in range(state.V.shape[0]):
        size = max(length(state.W, j), length(state.V, j))
        for i in range(net.lead.size):
            if net.lead[i] != i:
                room.Z[j, i] = net.ratio[i] * room.Z[j, net.lead[i]]
            z, floor = room.Z[j, i], ON_PLANE * size * net.lengths[i]
            room.features[j, i] = max(z, 0.0)
            room.on[j, i] = 1.0 if z > floor else (0.0 if z < -floor else state.slopes[j, i])


@njit(**INNER)
def _pull_all(net, room):
    """What pulls each neuron, over its scale, and minus the rates of its pre-activations over it."""
    on, pull = room.on, room.samples[PULL]
    if room.pulls.shape[0] == 1:
        for i in range(pull.size):
            for c in range(room.scaled.shape[1]):
                room.scaled[i, c] = room.pulls[0, i] * net.X[i, c]
        np.dot(on, room.scaled, room.pulled)
    else:
        for j in range(on.shape[0]):
            for i in range(pull.size):
                room.products[j, i] = on[j, i] * room.drive[j, i] * pull[i]
        np.dot(room.products, net.X, room.pulled)
    np.dot(room.pulled, net.XT, room.products)


@njit(**INNER)
def _stage(state, h, new, net, room, counts):
    """One stage: from mean outputs, features and slopes to those of the step, and to where the step ends.

    Returns whether all neurons could be followed, and whether any slope was between 0 and 1.
    """
    slopes, row, pull = new.slopes, room.neuron, room.samples[PULL]
    pulls(room.head, slopes, net, room)
    _pull_all(net, room)
    n, inputs = net.X.shape
    good, partial = True, False
    for j in range(new.V.shape[0]):
        scale, drive = room.scale[j], drive_of(j, room)
        size = length(state.W, j)
        size = max(size, length(state.V, j)) if size > 0.0 else 0.0
        meets = False
        for i in range(n):
            z, end = room.Z[j, i], room.Z[j, i] - h * scale * room.products[j, i]
            meets |= z * end <= 0.0 or abs(z) <= ON_PLANE * size * net.lengths[i]
            meets |= slopes[j, i] != room.on[j, i]
        if meets:
            y = room.inputs
            for c in range(inputs):
                y[c] = 0.0
            for i in range(n):
                own = own_pull(i, j, slopes[j, i], net, room)
                row[FORCE, i] = scale * (drive[i] * own)
                row[Z, i], row[SLOPE, i] = room.Z[j, i], room.on[j, i]
                extra = drive[i] * (own - pull[i]) * room.on[j, i]
                if extra != 0.0:
                    for c in range(inputs):
                        y[c] += extra * net.X[i, c]
            for i in range(n):
                total = room.products[j, i]
                for c in range(inputs):
                    total += y[c] * net.X[i, c]
                row[RATE, i] = -scale * total
            good &= follow_neuron(net, row, room.plane, y, size, h, counts)
            for c in range(inputs):
                room.pulled[j, c] = 0.0
            for i in range(n):
                own = own_pull(i, j, slopes[j, i], net, room)
                slope = row[SHARE, i] / h
                # rounding must not make a neuron active that has come to rest
                slopes[j, i] = min(slope, 1.0) if slope > 1e-12 else 0.0
                room.features[j, i] = row[AREA, i] / h
                partial |= 0.0 < slopes[j, i] < 1.0
                row[OWN, i] = own
                if slopes[j, i] > 0.0:
                    weight = drive[i] * own * slopes[j, i]
                    for c in range(inputs):
                        room.pulled[j, c] += weight * net.X[i, c]
            for k in range(new.V.shape[1]):
                turn = 0.0
                for i in range(n):
                    turn += room.directions[k, i] * row[OWN, i] * row[AREA, i]
                new.V[j, k] = state.V[j, k] - turn
        else:
            for i in range(n):
                mean = room.Z[j, i] - 0.5 * h * scale * room.products[j, i]
                slopes[j, i] = room.on[j, i]
                room.features[j, i] = max(mean, 0.0)
            for k in range(new.V.shape[1]):
                turn = 0.0
                for i in range(n):
                    turn += room.pulls[k, i] * room.features[j, i] * h
                new.V[j, k] = state.V[j, k] - turn
        for c in range(inputs):
            new.W[j, c] = state.W[j, c] - h * scale * room.pulled[j, c]
    return good, partial


@njit(**INNER)
def _distance(new, room):
    """How far the stage has moved the step's end from the one before, which it replaces."""
    total = 0.0
    for j in range(new.V.shape[0]):
        for k in range(new.V.shape[1]):
            total += (new.V[j, k] - room.V[j, k]) ** 2
            room.V[j, k] = new.V[j, k]
        for c in range(new.W.shape[1]):
            total += (new.W[j, c] - room.W[j, c]) ** 2
            room.W[j, c] = new.W[j, c]
    return math.sqrt(total)


@njit(**INNER)
def _filter(start, predicted, h, damping, mean):
    """Outputs whose pulls keep a step stable: ``mean = start + B (predicted - start)``.

    With ``J`` minus the outputs' Jacobian and ``z = h J``, ``B = (1 + z + z^2) / (1 + z + z^2 + z^3 / 2)``:
    decays shrink by ``(2 + z^2) / (2 + 2 z + 2 z^2 + z^3)``, so that the step is L-stable where ``J`` is
    right, and of order 2 whatever it is. Outputs that slow weights carry along do not decay: there
    ``1 - B`` is an error, of third order in ``z``.
    """
    n = start.size
    inner = np.zeros(n)
    for m in range(damping.values.size):
        total = 0.0
        for i in range(n):
            total += damping.left[i, m] * (predicted[i] - start[i])
        z = h * damping.values[m]
        inner[m] = -h * total * z * z / (2.0 + z * (2.0 + z * (2.0 + z)))
    for i in range(n):
        total = predicted[i]
        for m in range(damping.values.size):
            total += damping.right[i, m] * inner[m]
        mean[i] = total


@njit(**INNER)
def _step(state, new, h, tolerance, net, damping, room, counts):
    """One step; returns the change by its second stage over the weights' size, infinite where it failed."""
    _start(state, net, room)
    copy(room.on, new.slopes)
    size, outputs = state_norm(state), room.outputs
    copy(state.V, room.head)
    mean_outputs(room.head, room, outputs[START])
    copy(outputs[START], outputs[OUTPUT])
    error, good, waste = 0.0, True, np.zeros(COUNTS, np.int64)
    for match in range(1 + MATCHES):
        for a in range(waste.size):
            waste[a] = 0
        good, partial = _stage(state, h, new, net, room, waste)
        change = _distance(new, room)
        for j in range(new.V.shape[0]):
            for k in range(new.V.shape[1]):
                room.head[j, k] = 0.5 * (state.V[j, k] + new.V[j, k])
        if match == 0:
            mean_outputs(room.head, room, outputs[PREDICTED])
            flat = outputs.reshape((3, net.y.size))
            _filter(flat[START], flat[PREDICTED], h, damping, flat[OUTPUT])
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
    coarse, fine, net = borrow(coarse), borrow(fine), borrow(net)
    damping, room = borrow(damping), borrow(room)
    first, second, third = borrow(spare[0]), borrow(spare[1]), borrow(spare[2])
    starts, ends, found = (coarse, fine, second), (first, second, third), np.zeros(COUNTS, np.int64)
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
            finite = math.isfinite(state_norm(ends[part]))
            error = change if part == 0 else max(error, change)
            if not finite or (error > tolerance and now > shortest):
                break
        if not finite and now <= shortest:
            return t, h, LOST
        if finite and (error <= tolerance or now <= shortest):
            copy_state(first, coarse)
            copy_state(third, fine)
            t = stop if last else t + now
            counts[STEPS] += 1
            counts[CROSSINGS] += found[CROSSINGS]
            counts[SLIDES] += found[SLIDES]
            counts[ORIGINS] += found[ORIGINS]
            counts[FORCED] += error > tolerance
            grown = now * min(max(0.9 * math.sqrt(tolerance / error), 0.3), 3.0) if error > 0.0 else 3.0 * now
            # a step cut short by a record tells nothing of the next
            h = max(h, grown) if now < h else grown
        else:
            h = now * (max(0.2, 0.9 * math.sqrt(tolerance / error)) if math.isfinite(error) else 0.25)
        h = max(h, shortest)
    return t, h, PAUSED
