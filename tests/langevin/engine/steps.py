"""A step of networks with K outputs: compiled, and by a reference written apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import erf, expit, softmax

from langevin.engine.kernels.outputs.loop import advance_outputs
from langevin.engine.kernels.outputs.types import SCALARS
from langevin.engine.kernels.types import Records
from langevin.engine.layout import Layout, aligned_zeros
from langevin.engine.outputs import build_data, build_rule, build_scratch
from tests.langevin.engine.batches import KEY, members

PHI = {
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0),
    "linear": (lambda z: z, np.ones_like),
    "gelu": (
        lambda z: 0.5 * z * (1 + erf(z / np.sqrt(2))),
        lambda z: 0.5 * (1 + erf(z / np.sqrt(2))) + z * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi),
    ),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
}
RESIDUALS = {
    "softmax": lambda f, y: softmax(f, axis=-1) - y,
    "ovr": lambda f, y: expit(f) - y,
    "square": lambda f, y: f - y,
    "huber": lambda f, y: np.clip(f - y, -1, 1),
    "logistic": lambda f, y: -y * expit(-y * f),
}
FFT_CLIPPINGS = (None, "flat", "normalised")


@dataclass
class Net:
    """A small problem, and where its chain starts."""

    X: np.ndarray
    Y: np.ndarray
    W: np.ndarray
    V: np.ndarray
    loss: str
    activation: str = "relu"

    @classmethod
    def random(cls, loss: str, activation: str = "relu", n=21, d=7, h=37, K=3, seed=0) -> Net:
        g = np.random.default_rng(seed)
        Y = g.standard_normal((n, K))
        if loss in ("softmax", "ovr"):
            Y = np.eye(K)[g.integers(K, size=n)]
        elif loss == "logistic":
            Y = np.sign(Y)
        W, V = g.standard_normal((h, d)) / np.sqrt(d), g.standard_normal((h, K)) / np.sqrt(h / 4)
        return cls(g.standard_normal((n, d)), Y, W, V, loss, activation)


@dataclass
class Run:
    """A chain in the compiled code's form, at some step."""

    layout: Layout
    data: Any
    scratch: Any
    rule: Any
    thetas: np.ndarray
    records: Records
    scalars: np.ndarray
    diverged: np.ndarray
    first_path: int = 0

    def advance(self, first: int, stop: int, last: bool = False, key=KEY) -> Run:
        advance_outputs(
            self.thetas,
            np.zeros((len(self.thetas), 2, 0)),
            self.diverged,
            self.first_path,
            first,
            stop,
            last,
            *key,
            self.data,
            self.rule,
            self.scratch,
            self.records,
            self.scalars,
            np.zeros((len(self.thetas), 3, 0, 0)),
        )
        return self

    def net(self, path: int = 0) -> tuple[np.ndarray, np.ndarray]:
        W, V = self.layout.unpack(self.thetas[path])
        return W.copy(), V.reshape(len(W), -1).copy()


def records(origin: np.ndarray, steps=(), reference: np.ndarray | None = None) -> Records:
    dtype = origin.dtype
    none = np.zeros((0, 0), dtype) if reference is None else reference
    means, outside = np.zeros((2, 1), dtype), (np.zeros(0, np.int64), np.zeros((0, len(steps))))
    return Records(
        np.array(steps, np.int64), origin, none, np.zeros(0), means, np.zeros(2), np.zeros(0), *outside
    )


def start(
    net: Net, dtype=np.float64, *, steps=(), paths=1, order=None, features=None, rows=None, **rule: Any
):
    defaults: dict[str, Any] = dict(
        method="fft", clip=None, clipping="flat", stabiliser=0.1, sigma=0.0, dt=0.05
    )
    (h, d), K = net.W.shape, net.Y.shape[1]
    layout = Layout(d, h, dtype, K)
    classes = net.loss in ("softmax", "ovr", "logistic")
    X, Y = (net.X, net.Y) if order is None else (net.X[order], net.Y[order])
    data = build_data(
        layout,
        X,
        Y,
        activation=net.activation,
        loss=net.loss,
        classes=classes,
        order=order,
        features=features,
    )
    if rows is not None:
        data = data._replace(rows=rows, frozen_rows=rows)
    numbers = defaults | rule
    thetas = aligned_zeros((paths, layout.size), dtype)
    layout.pack(net.W, net.V if K > 1 else net.V[:, 0], thetas[0])
    thetas[1:] = thetas[0]
    return Run(
        layout,
        data,
        build_scratch(layout, data, probing=numbers["method"] == "lp"),
        build_rule(layout, **numbers),
        thetas,
        records(thetas[0].copy(), steps),
        np.full((paths, SCALARS, len(steps)), np.nan),
        np.full(paths, -1, np.int64),
    )


def factors(gradients: np.ndarray, clip: float | None, clipping: str, stabiliser: float) -> np.ndarray:
    norms = np.linalg.norm(gradients.reshape(len(gradients), -1), axis=1)
    if clip is None:
        return np.ones(len(norms))
    norms = np.maximum(norms, 1e-300)
    return np.minimum(1, clip / norms) if clipping == "flat" else clip / (norms + stabiliser)


def reference_step(net: Net, *, method="fft", clip=None, clipping="flat", rate=1.0, dt=0.05, weigh=True):
    """One step without noise, with a gradient per sample."""
    phi, slope = PHI[net.activation]
    Z = net.X @ net.W.T
    A = phi(Z)
    F = A @ net.V
    R = RESIDUALS[net.loss](F, net.Y)
    if clipping == "margin" and clip is not None:
        g = 1 - (softmax(F, axis=1) * net.Y).sum(axis=1)
        R = R * np.minimum(1, clip / (np.sqrt(2) * g * np.linalg.norm(A, axis=1)))[:, None]
        clip = None
    elif clipping == "column" and clip is not None:
        limit = clip / np.sqrt(R.shape[1])
        R = R * np.minimum(1, limit / (np.abs(R) * np.linalg.norm(A, axis=1)[:, None]))
        clip = None
    head = np.einsum("ij,ik->ijk", A, R)
    layer = np.einsum("ij,ic->ijc", (R @ net.V.T) * slope(Z), net.X)
    both = [head.reshape(len(R), -1)] + [layer.reshape(len(R), -1)] * (method == "fft")
    c = factors(np.hstack(both), clip, clipping, 0.1)
    weights = members(len(R), rate, 0, 0) / (rate if weigh else 1.0) * c
    V = net.V - dt * np.einsum("i,ijk->jk", weights, head)
    W = net.W - dt * np.einsum("i,ijc->jc", weights, layer) * (method == "fft")
    return W, V


def off(run: Run, expected: tuple[np.ndarray, np.ndarray]) -> float:
    """Largest difference from a step, in units of the largest number."""
    found = run.net()
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, expected, strict=True))
