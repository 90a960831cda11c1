"""The stand-in that a plan is simulated on: two layers on frozen features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from empirical.planning.comparison import Outcomes
from empirical.planning.settings import Activation
from empirical.recipe import Head
from langevin.engine.ends import Draw, Leg, Net
from langevin.model.activations import ACTIVATIONS
from langevin.model.problem import Problem
from langevin.model.schedule import Phase
from langevin.model.weights import Method
from langevin.support.threads import available_threads
from langevin.support.validate import FloatArray


class Split(NamedTuple):
    """The division of the steps, and the learning rate of each part, for mean gradients."""

    lp_steps: int
    lp_lr: float
    lr: float


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
    head : {"gaussian", "zero", "prototype"}
        What training starts from.
    prototype_noise : float
        Standard deviation of the noise of prototypes, relative to a sum over the samples divided by their
        number.
    samples : int or None
        Private samples that batches are drawn from; None: as many as there are rows.
    """

    steps: int
    batch: float
    noise_multiplier: float
    clip: float
    head: Head = "gaussian"
    prototype_noise: float = 0.0
    samples: int | None = None

    def sample_rate(self, rows: int) -> float:
        """Poisson rate on ``rows`` samples that gives a mean gradient the noise of the real batches.

        The variance by sampling is ``(1 - q) / (q n)`` times the mean square of the clipped gradients, with
        ``q`` the rate and ``n`` the number of samples.
        """
        q = min(1.0, self.batch / (rows if self.samples is None else self.samples))
        return self.batch / (self.batch + (1 - q) * rows)

    def legs(self, split: Split, samples: int, sample_rate: float = 1.0) -> list[Leg]:
        """The phases of Langevin diffusion with the same mean drift and the same DP noise, and their steps.

        With ``samples``, the available rows, and their sample rate the chain in these steps is DP-SGD: the
        phases are those of `langevin.DPSGD.phase` if ``samples`` is all. With fewer rows the noise relative
        to the mean gradient is that of the whole. Without the sample rate they leave the sampling noise out,
        as the theory of full batches does. Privacy is not to be read off them.
        """
        legs: list[Leg] = []
        lengths: tuple[tuple[Method, int, float], ...] = (
            ("lp", split.lp_steps, split.lp_lr),
            ("fft", self.steps - split.lp_steps, split.lr),
        )
        for method, steps, rate in lengths:
            if steps:
                sigma = self.noise_multiplier * self.clip * math.sqrt(rate * samples / 2) / self.batch
                dt = rate / samples
                phase = Phase(method, steps * dt, sigma, self.clip, sample_rate=sample_rate)
                legs.append(Leg(phase, dt))
        return legs


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
        Head at the start; None: each draw has its own, of the kind that the settings name.
    classes : int
    activation : {"relu", "linear"}
    device : str
        Where runs are made.
    """

    X: FloatArray
    labels: NDArray[np.int64]
    X_test: FloatArray
    labels_test: NDArray[np.int64]
    W: FloatArray
    v: FloatArray | None
    classes: int
    activation: Activation = "relu"
    device: str = "cpu"

    @property
    def method(self) -> str:
        """Describe the run."""
        loss = "logistic loss" if self.classes == 2 else f"{self.classes} outputs, softmax"
        return (
            f"DP-SGD with Poisson batches of a {self.activation} net of {self.X.shape[1]} inputs and "
            f"{len(self.W)} neurons, {loss}, on {len(self.X)} samples, {len(self.X_test)} held out"
        )

    def problem(self, rows: NDArray[np.int64] | None = None) -> Problem:
        """What is trained, without held-out samples; of all training samples, or of some ``rows``."""
        at = slice(None) if rows is None else rows
        loss, y, _ = self._targets
        return Problem(self.X[at], y[at], self.activation, loss)

    def head(self, how: Settings, random: np.random.Generator) -> FloatArray:
        """The head that a draw starts from: ``v``, or one of the kind of `empirical.Recipe`."""
        if self.v is not None:
            return self.v
        shape = (self.classes, len(self.W))
        if how.head == "prototype":
            return self._scalar(
                _units(self._class_means + how.prototype_noise * random.standard_normal(shape))
            )
        if self.classes == 2:
            shape = shape[1:]
        return np.zeros(shape) if how.head == "zero" else random.standard_normal(shape) / len(self.W) ** 0.5

    def activate(self, inputs: FloatArray) -> FloatArray:
        """The activation, entry by entry."""
        return ACTIVATIONS[self.activation].value(inputs)

    @cached_property
    def _class_means(self) -> FloatArray:
        """Sums of the unit features of each class, over the number of all samples."""
        units = _units(self.activate(self.X @ self.W.T))
        return np.eye(self.classes)[self.labels].T @ units / len(units)

    def _scalar(self, rows: FloatArray) -> FloatArray:
        """The head with one output for two classes, the difference of their rows."""
        return rows[1] - rows[0] if self.classes == 2 else rows

    def run(
        self, how: Settings, splits: Sequence[Split], draws: Sequence[np.random.SeedSequence]
    ) -> Outcomes:
        """Probe, then fine-tune, for each split; the same draw has the same head, batches and noise in all.

        Batches and noise are the same for every kind of head, too.

        Parameters
        ----------
        how : Settings
        splits : sequence of Split
        draws : sequence of SeedSequence
        """
        if self.device != "cpu":
            from empirical.planning.on_gpu import run_on

            return run_on(self.device, self, how, splits, draws)
        samples = len(self.X)
        rate = how.sample_rate(samples)
        found = self._net.ends(
            [how.legs(split, samples, rate) for split in splits],
            [self._draw(how, seed) for seed in draws],
            available_threads(),
        )
        lost = np.isnan(found.loss)
        accuracy, loss = np.where(lost, 0.0, found.test_accuracy), np.where(lost, np.inf, found.loss)
        return Outcomes(accuracy, loss / samples)

    @property
    def _targets(self) -> tuple[str, np.ndarray, np.ndarray]:
        """Loss, and its labels of training and of held-out samples."""
        if self.classes == 2:
            return "logistic", _signs(self.labels), _signs(self.labels_test)
        return "softmax", self.labels, self.labels_test

    @cached_property
    def _net(self) -> Net:
        """The net that runs, in single precision."""
        loss, y, y_test = self._targets
        with np.errstate(over="ignore"):  # numbers that single precision does not hold: runs diverge
            return Net.of(Problem(self.X, y, self.activation, loss, self.X_test, y_test), self.W)

    def _draw(self, how: Settings, seed: np.random.SeedSequence) -> Draw:
        """The head of a draw, and its key."""
        of_head, of_key = (
            np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, i)) for i in range(2)
        )
        first, second = of_key.generate_state(2).tolist()
        return Draw(self.head(how, np.random.default_rng(of_head)).T, (first, second))


def _signs(labels: NDArray[np.int64]) -> FloatArray:
    """+1 for the second class, -1 for the first."""
    return np.where(labels == 1, 1.0, -1.0)


def _units(rows: FloatArray) -> FloatArray:
    """Rows of norm 1; 0 stays."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)
