"""One neuron between and along hyperplanes."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np

from langevin.engine.kernels.jit import INNER, njit
from langevin.engine.kernels.sliding.state import (
    AREA,
    BEFORE,
    CROSSINGS,
    FORCE,
    ON_PLANE,
    ORIGINS,
    PLANE_FORCE,
    RATE,
    ROUNDS,
    SHARE,
    SLIDES,
    SLOPE,
    SWEEPS,
    Z,
)


@njit(**INNER)
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


@njit(**INNER)
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


@njit(**INNER)
def _settled(rate, slope, force, scale):
    """Whether a slope and a rate on a hyperplane fit each other."""
    slack = 1e-12 * scale
    if slope <= 0.0:
        return rate <= slack
    if slope >= 1.0:
        return rate >= -slack
    return force > 0.0 and abs(rate) <= slack


@njit(**INNER)
def _turn(net, rate, y):
    """Take the pull ``y`` from the rates of the pre-activations."""
    for i in range(rate.size):
        total = 0.0
        for c in range(y.size):
            total += net.X[i, c] * y[c]
        rate[i] -= total


@njit(**INNER)
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


@njit(**INNER)
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
        for _ in range(ROUNDS):
            # one hyperplane after the other: coordinate descent where all of them attract
            for _ in range(SWEEPS):
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


@njit(**INNER)
def follow_neuron(net, row, plane, y, size, h, counts):
    """Follow one neuron's pre-activations over a step; leave mean slopes and mean features.

    Returns whether it got to the end: there are flows with infinitely many events.
    """
    z, rate, slope = row[Z], row[RATE], row[SLOPE]
    share, area, n = row[SHARE], row[AREA], row.shape[1]
    for i in range(n):
        share[i], area[i] = 0.0, 0.0
    left, fits = h, True
    for event in range(10 * n + 100):
        count, off = np.int64(0), 0
        # at the origin a neuron without active samples stays: the ReLU's derivative at 0 is 0
        for i in range(n if size > 0.0 else 0):
            if net.lead[i] != i:
                z[i] = net.ratio[i] * z[net.lead[i]]
            elif abs(z[i]) <= ON_PLANE * size * net.lengths[i]:
                z[i] = 0.0
                if net.squared[i] > 0.0:
                    plane[count] = i
                    count += 1
            else:
                off += 1
        if count > 0:
            # all hyperplanes meet at the origin
            counts[ORIGINS] += event > 0 and count > 1 and off == 0
            for a in range(count):
                row[BEFORE, plane[a]] = slope[plane[a]]
            fits &= _settle(net, row, plane, count, y)
            for a in range(count):
                i = plane[a]
                before = row[BEFORE, i]
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
