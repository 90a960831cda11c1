"""The net that a plan is tried on: two layers on frozen features, in place of the network to fine-tune."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from langevin._validate import FloatArray
from langevin.problem import Activation, Method, Problem, Weights
from langevin.schedule import Phase, Schedule


class Outcome(NamedTuple):
    """Where a run ends: held-out accuracy, and the mean loss over the training samples.

    A run that leaves the range of its numbers is right nowhere, and its loss is infinite.
    """

    accuracy: float
    loss: float


DIVERGED = Outcome(0.0, math.inf)


@dataclass(frozen=True)
class Settings:
    """Noise and length of DP-SGD, whatever its split.

    Attributes
    ----------
    steps : int
        Of both phases together.
    batch : float
        Expected batch.
    noise_multiplier, clip : float
    """

    steps: int
    batch: float
    noise_multiplier: float
    clip: float

    def phases(self, lp_steps: int, lp_lr: float, lr: float, samples: int) -> list[Phase]:
        """The phases of Langevin diffusion with the same mean drift and the same DP noise.

        Those of `langevin.DPSGD.phase` if ``samples``, the rows at hand, are all there are. With fewer rows
        the noise beside the mean gradient is still that of the whole. Privacy is not to be read off them.
        """
        phases: list[Phase] = []
        lengths: tuple[tuple[Method, int, float], ...] = (
            ("lp", lp_steps, lp_lr),
            ("fft", self.steps - lp_steps, lr),
        )
        for method, steps, rate in lengths:
            if steps:
                sigma = self.noise_multiplier * self.clip * math.sqrt(rate * samples / 2) / self.batch
                phases.append(Phase(method, steps * rate / samples, sigma, self.clip))
        return phases


@dataclass(frozen=True, eq=False)
class StandIn:
    """A two-layer net, its data, and how runs of it end.

    Two classes: the net and the clipped Langevin diffusion of the theory, ``f(x) = v . phi(W x)``, logistic
    loss, by `langevin.euler_maruyama` with its exact reductions. More classes: one output each, softmax, and
    DP-SGD itself with its Poisson batches, in single precision.

    Parameters
    ----------
    X, X_test : ndarray, shapes (n, k) and (m, k)
        Inputs of the first layer.
    labels, labels_test : ndarray of int
        From 0 to ``classes - 1``.
    W : ndarray, shape (h, k)
        First layer at the start.
    v : ndarray, shape (h,) or (classes, h), or None
        Head at the start; None: each draw has its own, Gaussian of scale ``1 / sqrt(h)``.
    classes : int
    activation : {"relu", "linear"}
    """

    X: FloatArray
    labels: NDArray[np.int64]
    X_test: FloatArray
    labels_test: NDArray[np.int64]
    W: FloatArray
    v: FloatArray | None
    classes: int
    activation: Activation = "relu"

    @property
    def method(self) -> str:
        """What is run, in words."""
        net = f"a {self.activation} net of {self.X.shape[1]} inputs and {len(self.W)} neurons"
        rows = f"{len(self.X)} samples, {len(self.X_test)} held out"
        if self.classes == 2:
            return f"clipped Langevin diffusion of {net}, logistic loss, on {rows}"
        return f"DP-SGD with Poisson batches of {net} and {self.classes} outputs, softmax, on {rows}"

    def problem(self, positive: int, rows: NDArray[np.int64] | None = None) -> Problem:
        """One class, +1, against the rest, -1; of all training samples, or of some ``rows``."""
        at = slice(None) if rows is None else rows
        y, y_test = (np.where(part == positive, 1.0, -1.0) for part in (self.labels, self.labels_test))
        return Problem(self.X[at], y[at], self.activation, "logistic", self.X_test, y_test)

    def head(self, random: np.random.Generator) -> FloatArray:
        """The head that a draw starts from."""
        if self.v is not None:
            return self.v
        shape = (len(self.W),) if self.classes == 2 else (self.classes, len(self.W))
        return random.standard_normal(shape) / len(self.W) ** 0.5

    def run(
        self, how: Settings, lp_steps: int, lp_lr: float, lr: float, draws: Sequence[np.random.SeedSequence]
    ) -> list[Outcome]:
        """Probe for ``lp_steps``, fine-tune for the rest; the same draw has the same head and noise.

        Parameters
        ----------
        how : Settings
        lp_steps : int
            From 0 to all.
        lp_lr, lr : float
            Learning rates of the phases, for mean gradients; two classes: whole multiples of the smaller one,
            as the diffusion's steps are that long in both.
        draws : sequence of SeedSequence
        """
        streams = [
            [np.random.SeedSequence(draw.entropy, spawn_key=(*draw.spawn_key, i)) for i in range(4)]
            for draw in draws
        ]
        heads = [self.head(np.random.default_rng(head)) for head, *_ in streams]
        if self.classes == 2:
            noises = [noise for _, noise, *_ in streams]
            return [
                self._diffuse(how, lp_steps, lp_lr, lr, head, noise)
                for head, noise in zip(heads, noises, strict=True)
            ]
        return self._descend(how, lp_steps, (lp_lr, lr), heads, [rest for _, *rest in streams])

    def _diffuse(
        self,
        how: Settings,
        lp_steps: int,
        lp_lr: float,
        lr: float,
        head: FloatArray,
        noise: np.random.SeedSequence,
    ) -> Outcome:
        from langevin import Diverged, euler_maruyama

        rates = [lp_lr] * (lp_steps > 0) + [lr] * (lp_steps < how.steps)
        schedule = Schedule(how.phases(lp_steps, lp_lr, lr, len(self.X)))
        try:
            run = euler_maruyama(
                self.problem(1),
                Weights(self.W, head),
                schedule,
                dt=min(rates) / len(self.X),
                rng=noise,
                times=[schedule.duration],
                observables=["test_accuracy"],
                threads=1,
            )
        except Diverged:
            return DIVERGED
        return Outcome(float(run.test_accuracy[0, -1]), float(run.loss[0, -1]) / len(self.X))

    def _descend(
        self,
        how: Settings,
        lp_steps: int,
        rates: tuple[float, float],
        heads: Sequence[FloatArray],
        streams: Sequence[Sequence[np.random.SeedSequence]],
    ) -> list[Outcome]:
        """All draws together, the first axis: fewer calls."""
        with np.errstate(all="ignore"):
            ends = self._ends(how, lp_steps, rates, heads, streams)
        return [end if math.isfinite(end.loss) else DIVERGED for end in ends]

    def _ends(
        self,
        how: Settings,
        lp_steps: int,
        rates: tuple[float, float],
        heads: Sequence[FloatArray],
        streams: Sequence[Sequence[np.random.SeedSequence]],
    ) -> list[Outcome]:
        head_noises, body_noises, batches = (
            [np.random.default_rng(stream) for stream in part] for part in zip(*streams, strict=True)
        )
        X, first = self.X.astype(np.float32), self.W.astype(np.float32)
        W, V = np.repeat(first[None], len(heads), 0), np.array(heads, np.float32)
        targets = np.eye(self.classes, dtype=np.float32)[self.labels]
        squared = np.einsum("ij,ij->i", X, X)
        relu, n = self.activation == "relu", len(X)
        frozen = self._features(X, first)
        rate = min(1.0, how.batch / n)
        noise = how.noise_multiplier * how.clip / how.batch
        for step in range(how.steps):
            probing = step < lp_steps
            lr = np.float32(rates[0] if probing else rates[1])
            rows, there = _padded([np.flatnonzero(random.random(n) < rate) for random in batches])
            x = X[rows]
            A = frozen[rows] if probing else self._features(x, W)
            delta = _softmax(A @ _transposed(V)) - targets[rows]
            norms = np.einsum("dij,dij->di", delta, delta) * np.einsum("dij,dij->di", A, A)
            back = delta
            if not probing:
                back = delta @ V
                if relu:
                    back *= A > 0
                norms += squared[rows] * np.einsum("dij,dij->di", back, back)
            # a sample without a gradient stays as it is
            cut = there * np.minimum(1, how.clip / np.sqrt(np.maximum(norms, 1e-30))) / (rate * n)
            V = V - lr * (
                _transposed(cut[..., None] * delta) @ A + noise * _normals(head_noises, V.shape[1:])
            )
            if not probing:
                move = _transposed(cut[..., None] * back) @ x
                W = W - lr * (move + noise * _normals(body_noises, first.shape))
        X_test = self.X_test.astype(np.float32)
        found = []
        for layer, head in zip(W, V, strict=True):
            outputs, held_out = (self._features(part, layer) @ head.T for part in (X, X_test))
            loss = np.asarray(logsumexp(outputs, axis=1)) - outputs[np.arange(n), self.labels]
            right = held_out.argmax(1) == self.labels_test
            found.append(Outcome(float(right.mean()), float(loss.mean())))
        return found

    def _features(self, x: NDArray, W: NDArray) -> NDArray:
        z = x @ _transposed(W)
        return np.maximum(z, 0, out=z) if self.activation == "relu" else z


def _transposed(matrices: NDArray) -> NDArray:
    return np.swapaxes(matrices, -1, -2)


def _padded(batches: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Batches of any sizes as one array, and 1 where it holds a row, 0 where it is filled up."""
    sizes = np.array([len(batch) for batch in batches])
    there = np.arange(max(1, sizes.max())) < sizes[:, None]
    rows = np.zeros(there.shape, np.int64)
    rows[there] = np.concatenate(batches)
    return rows, there.astype(np.float32)


def _normals(streams: Sequence[np.random.Generator], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.array([stream.standard_normal(shape, np.float32) for stream in streams])


def _softmax(outputs: NDArray) -> NDArray:
    powers = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
