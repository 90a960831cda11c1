"""Random problems, weights and schedules: seeded generators, and hypothesis strategies over their seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights

seeds = st.integers(0, 2**31 - 1)


def general(rng, activation=None, loss=None, n=None, d=None, h=None):
    """Gaussian data with random labels and random weights."""
    n, d, h = n or int(rng.integers(1, 7)), d or int(rng.integers(1, 5)), h or int(rng.integers(1, 6))
    activation = activation or rng.choice(["relu", "linear"])
    loss = loss or rng.choice(["logistic", "square"])
    names: Any = (str(activation), str(loss))
    X = rng.standard_normal((n, d)) * np.exp(rng.uniform(-0.7, 0.7))
    y = rng.choice([-1.0, 1.0], n)
    W = rng.standard_normal((h, d)) * np.exp(rng.uniform(-1, 0.5))
    v = rng.standard_normal(h) * np.exp(rng.uniform(-1, 0.5))
    return Problem(X, y, *names), Weights(W, v)


CLASSES = (2, 3, 5, 10)


def several(rng, K=None, loss=None, activation=None, n=None, d=None, h=None):
    """Gaussian data and random weights of K outputs; classes of unequal sizes, or Gaussian targets."""
    K = K or int(rng.choice(CLASSES))
    n, d, h = n or K + int(rng.integers(0, 6)), d or int(rng.integers(1, 5)), h or int(rng.integers(1, 6))
    names: Any = [
        str(activation or rng.choice(["relu", "linear"])),
        str(loss or rng.choice(["softmax", "ovr", "square"])),
    ]
    X = rng.standard_normal((n, d)) * np.exp(rng.uniform(-0.7, 0.7))
    shares = 0.5 ** np.arange(K)
    classes = np.concatenate([np.arange(K), rng.choice(K, n - K, p=shares / shares.sum())])
    y = rng.standard_normal((n, K)) if names[1] == "square" else classes
    W = rng.standard_normal((h, d)) * np.exp(rng.uniform(-1, 0.5))
    V = rng.standard_normal((h, K)) * np.exp(rng.uniform(-1, 0.5))
    return Problem(X, y, *names), Weights(W, V)


def clippings(problem, methods):
    """Clipping of each phase: in linear probing also those of the loss alone."""
    own = {"softmax": "margin", "ovr": "column"}.get(problem.loss)
    return [("flat", own) if method == "lp" and own else ("flat",) for method in methods]


def sampled(rng, problem, rates=(1.0,), **how):
    """A `schedule` for K outputs, at one of the sampling rates."""
    found = schedule(rng, **how)
    rate = float(rng.choice([rate for rate in rates if rate == 1 or rate * problem.samples >= 1]))
    kinds = clippings(problem, [phase.method for phase in found])
    return Schedule(
        [
            replace(phase, clipping=str(rng.choice(kind)) if phase.clip else "flat", sample_rate=rate)
            for phase, kind in zip(found, kinds, strict=True)
        ]
    )


def schedule(rng, clip: Any = "any", sigma=None, methods=None, duration=None):
    """LP, FFT, or LP then FFT."""
    sigma = np.exp(rng.uniform(-2.5, 0.3)) if sigma is None else sigma
    if clip == "any":
        clip = None if rng.random() < 0.3 else float(np.exp(rng.uniform(-1.5, 1.5)))
    elif clip == "on":
        clip = float(np.exp(rng.uniform(-1.5, 1.5)))
    methods = methods or [("lp",), ("fft",), ("lp", "fft")][rng.integers(3)]
    duration = duration or float(np.exp(rng.uniform(-1.0, 1.0)))
    # whole numbers of 1/64 of the duration, so that every step size used divides them
    cut = int(rng.integers(16, 49))
    parts = [64] if len(methods) == 1 else [cut, 64 - cut]
    return Schedule([Phase(m, p / 64 * duration, sigma, clip) for m, p in zip(methods, parts, strict=True)])


def separable(rng, n, d, spread=None):
    """Two classes, orthogonally separable: ``y_i x_i`` in one cone per class, the cones orthogonal.

    ``spread`` 0 collapses each class to one point; None draws positive data at random.
    """
    y = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    half = max(d // 2, 1)
    d = 2 * half
    X = np.zeros((n, d))
    for s, block in ((1.0, slice(0, half)), (-1.0, slice(half, d))):
        rows = y == s
        centre = rng.uniform(0.5, 1.5, half)
        noise = rng.uniform(0, 1, (int(rows.sum()), half))
        X[rows, block] = noise + 0.05 if spread is None else centre * (1 + spread * (noise - 0.5))
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    # a negative product across classes keeps separability
    shift = np.zeros(d)
    if rng.random() < 0.5:
        tilt = rng.uniform(0, 0.2)
        mean = [X[y == s].mean(0) if (y == s).any() else shift for s in (1.0, -1.0)]
        for s, other in ((1.0, mean[1]), (-1.0, mean[0])):
            X[y == s] -= tilt * other
    return X @ rotation, y, rotation


def row(rng, base, inside, outside):
    """A row strictly active on the first samples and inactive on the others, as ``base`` is; by rejection."""
    d, width = len(base), 1.0
    # as wide a perturbation as stays in the cone
    for _ in range(200):
        w = base + width * rng.standard_normal(d) / np.sqrt(d)
        if (inside @ w > 1e-3).all() and (not len(outside) or (outside @ w < -1e-3).all()):
            return w * np.exp(rng.uniform(-0.5, 0.5))
        width *= 0.9
    raise AssertionError("no row found in the cone")


def collapsed_weights(rng, X, y, h, head=None):
    """Rows strictly in the cone of one class each; heads Gaussian."""
    W = np.zeros((h, X.shape[1]))
    for j in range(h):
        s = 1.0 if rng.random() < 0.5 else -1.0
        if not (y == s).any():
            s = -s
        inside, outside = X[y == s], X[y == -s]
        base = inside.mean(0) / np.linalg.norm(inside.mean(0))
        if len(outside):
            base = base - 0.3 * outside.mean(0) / np.linalg.norm(outside.mean(0))
        W[j] = row(rng, base, inside, outside)
    v = rng.standard_normal(h) * (np.exp(rng.uniform(-2, 0.3)) if head is None else head)
    return Weights(W, v)


def decoupled(rng, loss=None, spread=None, n=None, h=None, head=None, d=None):
    """ReLU problem under 3.1 and 3.2."""
    n, h = n or int(rng.integers(2, 7)), h or int(rng.integers(1, 7))
    X, y, _ = separable(rng, n, d or int(rng.integers(2, 7)), spread)
    loss = loss or str(rng.choice(["logistic", "square"]))
    weights = collapsed_weights(rng, X, y, h, head)
    name: Any = loss
    problem = Problem(X, y, "relu", name)
    if loss == "square":
        # margins below 1: shrink the head
        m = np.abs(problem.outputs(weights)).max()
        if m > 0.5:
            weights = Weights(weights.W, weights.v * 0.5 / m)
    return problem, weights


def classes(rng, K=None, loss="softmax", spread=None, heads="any", h=None, head=None):
    """ReLU problem of K classes under 3.1' and 3.2'; classes are of unequal sizes, some without neurons.

    ``spread`` is that of `separable`; ``heads`` are "any", "symmetric" (softmax), "opposed" (one-vs-rest) or
    "zero", and ``head`` is their scale.
    """
    K, width = K or int(rng.choice(CLASSES)), int(rng.integers(1, 4))
    y = rng.permutation(np.repeat(np.arange(K), rng.integers(1, 5, K)))
    means = np.kron(np.eye(K), np.ones(width)) * rng.uniform(0.5, 1.5, K * width)
    noise = rng.uniform(0, 1, (len(y), K * width))
    X = means[y] * (1 + spread * (noise - 0.5)) if spread is not None else (means[y] > 0) * (noise + 0.05)
    if rng.random() < 0.5:
        # a negative product across classes
        sizes = X.sum(1, keepdims=True) / means[y].sum(1, keepdims=True)
        X -= rng.uniform(0, 0.2 / K) * sizes * (means.sum(0) - means[y])
    rotation = np.linalg.qr(rng.standard_normal((K * width,) * 2))[0]
    X, axes = X @ rotation, (means - 0.3 * (means.sum(0) - means)) @ rotation
    own = rng.choice(K, h or int(rng.integers(1, 2 * K + 3)))
    W = np.array([row(rng, axes[c] / np.linalg.norm(axes[c]), X[y == c], X[y != c]) for c in own])
    V = rng.standard_normal((len(own), K)) * (np.exp(rng.uniform(-2, 0.3)) if head is None else head)
    mine = np.arange(K) == own[:, None]
    if heads != "any":
        V = np.where(mine, V[:, :1], V[:, 1:2] if heads == "symmetric" else -V[:, :1]) * (heads != "zero")
    name: Any = loss
    return Problem(X, y, "relu", name), Weights(W, V)


def _drawn(make, **kwargs):
    """Hypothesis strategy over the seeds of a generator."""
    return seeds.map(lambda seed: make(np.random.default_rng(seed), **kwargs))


problems_and_weights = _drawn(general)
decoupled_problems_and_weights = st.sampled_from([None, 0.0, 0.05, 0.5]).flatmap(
    lambda spread: _drawn(decoupled, spread=spread)
)
schedules = st.builds(
    lambda lengths, clip, sigma: Schedule([Phase(method, time, sigma, clip) for method, time in lengths]),
    st.lists(st.tuples(st.sampled_from(["lp", "fft"]), st.floats(0.05, 2.0)), min_size=1, max_size=3),
    st.one_of(st.none(), st.floats(0.1, 5.0)),
    st.floats(0.0, 1.0),
)
