"""The stand-in that a plan is simulated on: two layers on frozen features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

from empirical.planning.settings import Activation
from langevin.model.problem import Problem
from langevin.model.schedule import Phase
from langevin.model.weights import Method
from langevin.support.threads import available_threads
from langevin.support.validate import FloatArray

# draws that one thread takes on together: enough to spread the overhead of a call, few enough for its cache
_TOGETHER = 8


class Split(NamedTuple):
    """The division of the steps, and the learning rate of each part, for mean gradients."""

    lp_steps: int
    lp_lr: float
    lr: float


class Outcomes(NamedTuple):
    """Where runs end, by split and draw: held-out accuracy, and the mean loss over the training samples.

    A run that leaves the range of its numbers is right nowhere, and its loss is infinite.
    """

    accuracy: FloatArray
    loss: FloatArray


@dataclass(frozen=True)
class Settings:
    """Noise and length of DP-SGD, independent of the split.

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

    def phases(self, split: Split, samples: int) -> list[Phase]:
        """The phases of Langevin diffusion with the same mean drift and the same DP noise.

        Those of `langevin.DPSGD.phase` if ``samples``, the available rows, is all, but without their sample
        rate: the theory of full batches describes them, and leaves the sampling noise out. With fewer rows
        the noise relative to the mean gradient is that of the whole. Privacy is not to be read off them.
        """
        phases: list[Phase] = []
        lengths: tuple[tuple[Method, int, float], ...] = (
            ("lp", split.lp_steps, split.lp_lr),
            ("fft", self.steps - split.lp_steps, split.lr),
        )
        for method, steps, rate in lengths:
            if steps:
                sigma = self.noise_multiplier * self.clip * math.sqrt(rate * samples / 2) / self.batch
                phases.append(Phase(method, steps * rate / samples, sigma, self.clip))
        return phases


@dataclass(frozen=True, eq=False)
class StandIn:
    """A two-layer network, its data, and how its runs end.

    Runs are DP-SGD with Poisson batches and flat clipping, in single precision. Two classes: the net of the
    theory, ``f(x) = v . phi(W x)``, with its logistic loss. More: one output each, softmax.

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
        """Describe the run."""
        loss = "logistic loss" if self.classes == 2 else f"{self.classes} outputs, softmax"
        return (
            f"DP-SGD with Poisson batches of a {self.activation} net of {self.X.shape[1]} inputs and "
            f"{len(self.W)} neurons, {loss}, on {len(self.X)} samples, {len(self.X_test)} held out"
        )

    def problem(self, positive: int, rows: NDArray[np.int64] | None = None) -> Problem:
        """One class, +1, against the rest, -1; of all training samples, or of some ``rows``."""
        at = slice(None) if rows is None else rows
        y = np.where(self.labels == positive, 1.0, -1.0)
        return Problem(self.X[at], y[at], self.activation, "logistic")

    def head(self, random: np.random.Generator) -> FloatArray:
        """The head that a draw starts from."""
        if self.v is not None:
            return self.v
        shape = (len(self.W),) if self.classes == 2 else (self.classes, len(self.W))
        return random.standard_normal(shape) / len(self.W) ** 0.5

    def run(
        self, how: Settings, splits: Sequence[Split], draws: Sequence[np.random.SeedSequence]
    ) -> Outcomes:
        """Probe, then fine-tune, for each split; the same draw has the same head, batches and noise in all.

        Parameters
        ----------
        how : Settings
        splits : sequence of Split
        draws : sequence of SeedSequence
        """
        parts = [draws[k : k + _TOGETHER] for k in range(0, len(draws), _TOGETHER)]
        with ThreadPoolExecutor(available_threads()) as pool:
            found = list(pool.map(lambda part: self._descend(how, splits, part), parts))
        ends = np.concatenate(found, axis=-1)
        lost = ~np.isfinite(ends).all(0)
        return Outcomes(np.where(lost, 0.0, ends[0]), np.where(lost, np.inf, ends[1]))

    @np.errstate(all="ignore")
    def _descend(
        self, how: Settings, splits: Sequence[Split], draws: Sequence[np.random.SeedSequence]
    ) -> FloatArray:
        """Accuracy and loss, shape (2, splits, draws); not finite where a run leaves the range."""
        heads, head_noises, body_noises, batches = (
            [np.random.default_rng(stream) for stream in part]
            for part in zip(*map(_streams, draws), strict=True)
        )
        X, first = self.X.astype(np.float32), self.W.astype(np.float32)
        frozen, squared, n = self._features(X, first), np.einsum("ij,ij->i", X, X), len(X)
        targets = self._targets()
        start = np.array([np.atleast_2d(self.head(random)) for random in heads], np.float32)
        V: list[NDArray] = [start] * len(splits)
        W: list[NDArray] = [np.repeat(first[None], len(draws), 0)] * len(splits)
        sampled = min(1.0, how.batch / n)
        noise = np.float32(how.noise_multiplier * how.clip / how.batch)
        for step in range(how.steps):
            # batches and noise of a step are those of all splits
            rows, there = _padded([np.flatnonzero(random.random(n) < sampled) for random in batches])
            there /= sampled * n
            x, known, wanted, lengths = X[rows], frozen[rows], targets[rows], squared[rows]
            head_noise = noise * _normals(head_noises, start.shape[1:])
            body_noise = noise * _normals(body_noises, first.shape)
            for i, split in enumerate(splits):
                probing = step < split.lp_steps
                lr = np.float32(split.lp_lr if probing else split.lr)
                A = known if probing else self._features(x, W[i])
                delta = _probabilities(A @ _transposed(V[i])) - wanted
                norms = np.einsum("dij,dij->di", delta, delta) * np.einsum("dij,dij->di", A, A)
                back = delta
                if not probing:
                    back = delta @ V[i]
                    if self.activation == "relu":
                        back *= A > 0
                    norms += lengths * np.einsum("dij,dij->di", back, back)
                # a sample without a gradient stays as it is
                cut = there * np.minimum(1, np.float32(how.clip) / np.sqrt(np.maximum(norms, 1e-30)))
                V[i] = V[i] - lr * (_transposed(cut[..., None] * delta) @ A + head_noise)
                if not probing:
                    W[i] = W[i] - lr * (_transposed(cut[..., None] * back) @ x + body_noise)
        return np.array([self._judged(*ends) for ends in zip(W, V, strict=True)]).transpose(2, 0, 1)

    def _judged(self, W: NDArray, V: NDArray) -> list[tuple[float, float]]:
        """Accuracy and loss of each draw."""
        found = []
        for layer, head in zip(W, V, strict=True):
            outputs, held_out = (
                self._features(part.astype(np.float32), layer) @ head.T for part in (self.X, self.X_test)
            )
            if self.classes == 2:
                loss = np.logaddexp(0, (1 - 2 * self.labels) * outputs[:, 0])
                right = (2 * self.labels_test - 1) * held_out[:, 0] > 0
            else:
                loss = np.asarray(logsumexp(outputs, axis=1)) - outputs[np.arange(len(outputs)), self.labels]
                right = held_out.argmax(1) == self.labels_test
            found.append((float(right.mean()), float(loss.mean())))
        return found

    def _targets(self) -> NDArray[np.float32]:
        """Return the target probabilities of the outputs."""
        if self.classes == 2:
            return self.labels[:, None].astype(np.float32)
        return np.eye(self.classes, dtype=np.float32)[self.labels]

    def _features(self, x: NDArray, W: NDArray) -> NDArray:
        z = x @ _transposed(W)
        return np.maximum(z, 0, out=z) if self.activation == "relu" else z


def _streams(draw: np.random.SeedSequence) -> list[np.random.SeedSequence]:
    """Of head, head's noise, body's noise and batches."""
    return [np.random.SeedSequence(draw.entropy, spawn_key=(*draw.spawn_key, i)) for i in range(4)]


def _transposed(matrices: NDArray) -> NDArray:
    return np.swapaxes(matrices, -1, -2)


def _padded(batches: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return batches of any sizes as one array, with a mask that is 0 where it is padded."""
    sizes = np.array([len(batch) for batch in batches])
    there = np.arange(max(1, sizes.max())) < sizes[:, None]
    rows = np.zeros(there.shape, np.int64)
    rows[there] = np.concatenate(batches)
    return rows, there.astype(np.float32)


def _normals(streams: Sequence[np.random.Generator], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.array([stream.standard_normal(shape, np.float32) for stream in streams])


def _probabilities(outputs: NDArray) -> NDArray:
    """Logistic of one output, softmax of several."""
    if outputs.shape[-1] == 1:
        return expit(outputs)
    powers = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
