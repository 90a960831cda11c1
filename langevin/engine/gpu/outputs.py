"""Paths of networks with K outputs, on all samples or on Poisson batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from langevin.engine.gpu import batches, passes_outputs
from langevin.engine.gpu.ensemble import Ensemble
from langevin.engine.gpu.neurons import Neurons
from langevin.engine.gpu.passes import mark
from langevin.engine.gpu.passes_outputs import outputs
from langevin.engine.kernels import types
from langevin.engine.kernels.outputs.types import CHECKED_STEPS, OutputsData
from langevin.engine.kernels.types import FFT, LP
from langevin.engine.layout import up
from langevin.engine.results import Chunk
from langevin.model.losses import LOSSES, Loss

if TYPE_CHECKING:
    from langevin.engine.gpu.chain import DeviceChain

# outputs of a network up to which there are fused passes: a tile holds all of them
MOST_OUTPUTS = 32
# for features that all paths share: what a byte of a number costs that is read per row of a batch, against a
# product with an output of a sample
_GATHERED_BYTES = 6
# work space is meant to do for the batches of all paths in this share of the steps
_RARE = 1e-9


@dataclass
class Block:
    """What a step works on: ``b`` rows of the data for each path.

    Attributes
    ----------
    index : Tensor of int64, shape (paths, b), or None
        The rows, padded by ``n``; None: all rows, in their order.
    members : Tensor of bool, shape (paths, n), or None
        With all rows: which are in the batch; None: each is.
    X : Tensor, shape (paths, b, k), or None
        Their inputs, in full fine-tuning.
    Z : Tensor
        Their pre-activations, shape (paths, b, h); in linear probing `OutputsEnsemble.features`.
    R : Tensor, shape (paths, b, K)
        Residuals times clip factors; 0 for what is in no batch.
    A, D : Tensor, shapes (paths, b, h), or None
        Features, and what the first layer's gradient is a product of: in the passes without kernels.
    """

    index: torch.Tensor | None
    members: torch.Tensor | None
    X: torch.Tensor | None
    Z: torch.Tensor
    R: torch.Tensor
    A: torch.Tensor | None = None
    D: torch.Tensor | None = None


class OutputsEnsemble(Ensemble):
    """The paths of a chunk, as `langevin.engine.kernels.outputs.loop` advances them, on the same batches.

    Batches are functions of a counter alone. So the largest one of each step is known beforehand, and the
    step computes with that many rows of each path, rounded up so that few graphs are recorded.

    Attributes
    ----------
    X, Y, squared_norms : Tensor, shapes (n + 1, k), (n + 1, K), (n + 1,)
        The data. The last row is zero: it pads batches.
    order : Tensor of int64, shape (n,)
        The sample in each row.
    features, feature_norms : Tensor, shapes ([paths,] n + 1, h) and ([paths,] n + 1), or None
        In linear probing, with their squared norms; without a dimension of paths, where these share them.
    threshold : Tensor of int64, shape (1,)
        A sample is in the batch if its word is below.
    step : int
        As in ``clock``.
    """

    def __init__(self, chain: DeviceChain, chunk: Chunk, diverged: np.ndarray) -> None:
        super().__init__(chain, chunk, diverged)
        data = chain.data
        assert isinstance(data, OutputsData)
        self.classes = data.classes
        self.samples = len(data.Y)
        self.X = self._padded(data.X[:, : data.inputs])
        self.Y, self.squared_norms = self._padded(data.Y), self._padded(data.squared_norms)
        self.position = self._there(data.position)
        self.order = self._there(np.argsort(data.position))
        self.features: torch.Tensor | None = None
        self.feature_norms: torch.Tensor | None = None
        self.threshold = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.step, self._spaces = chunk.step, {}
        self.neurons = Neurons(self) if chain.records.own.size else None
        if chunk.step > 0:
            self.theta.copy_(self._there(chunk.thetas))
        self.passes: Any = passes_outputs
        self.batches: Any = batches
        if self.device.type == "cuda":
            from langevin.engine.gpu import fused_batches, fused_outputs

            self.batches = fused_batches
            if chain.fused:
                self.passes = fused_outputs

    def _padded(self, rows: np.ndarray) -> torch.Tensor:
        return self._there(np.concatenate([rows, np.zeros_like(rows[:1])]))

    # phases

    def length(self) -> float:
        # rounded as on the processor
        return float(self.chain.layout.dtype(self.rule.dt / self.rule.sample_rate))

    def _prepare(self) -> None:
        rule, n = self.rule, self.samples
        self.threshold.fill_(rule.threshold)
        self.features = self.feature_norms = None
        if rule.method == LP:
            self.features = self._frozen()
            self.feature_norms = self.features.square().sum(-1)
        self.rows = likely_rows(n, rule.sample_rate, len(self.theta))
        self.gathers = rule.sample_rate < 1 and gathering_pays(self.chain, self.phase, self.rows)

    def _frozen(self) -> torch.Tensor:
        """Features of the phase: the same for all paths as long as no first layer has moved."""
        data = self.chain.data
        if data.features.size > 0:
            return self._padded(data.features[:, : data.width])
        shared = shares_features(self.chain, self.phase)
        W = self._parts(self.origin.unsqueeze(0))[1] if shared else self.W
        Z = torch.bmm(self.X.expand(len(W), -1, -1), W)
        return self.activation.tensor_value(Z[0] if shared else Z)

    # steps

    def advance(self, count: int) -> None:
        """Take ``count`` steps of the current phase."""
        for size in self.sizes(count):
            if self.step % CHECKED_STEPS == 0:
                self._check_state()
            self._run((self.phase, size), partial(self._step, size))
            self.step += 1

    def sizes(self, count: int) -> list[int]:
        """Rows that each of the coming steps computes with."""
        if not self.gathers:
            return [self.samples] * count
        largest = self.batches.largest_batches(self, count).tolist()
        return [min(padded(size), self.samples) for size in largest]

    def _step(self, size: int) -> None:
        block = self.block(size)
        if self.rule.method == LP:
            self.passes.rows(self, block)
            self.passes.columns(self, block, False)
        else:
            self._fine_tune(block)
        self._add_noise()

    def _fine_tune(self, block: Block) -> None:
        assert block.X is not None
        alpha = -self.length()
        torch.bmm(block.X, self.W, out=block.Z)
        self.passes.rows(self, block)
        if self.activation.name == "linear":
            # of rank K, and before the head moves
            self.W.baddbmm_(torch.bmm(block.X.mT, block.R), self.V, alpha=alpha)
            self.passes.columns(self, block, False)
        else:
            self.passes.columns(self, block, True)
            self.W.baddbmm_(block.X.mT, block.Z if block.D is None else block.D, alpha=alpha)

    def block(self, size: int) -> Block:
        """Draw the batch of a step, and gather it in work space of so many rows."""
        (paths, K, h), n = self.V.shape, self.samples
        index = members = X = None
        if self.gathers:
            index = self._space("index", size, dtype=torch.int64)
            self.batches.draw_rows(self, index)
        elif self.rule.sample_rate < 1:
            members = self._space("members", size, dtype=torch.bool)
            self.batches.draw_members(self, members)
        if self.features is not None:
            Z = self.features
            R = self._space("R", size, K)
            if Z.dim() == 2 and index is None:
                # output by output, as the products with shared features give them
                R = R.view(K, paths, n).permute(1, 2, 0)
            return Block(index, members, None, Z, R)
        if index is None:
            X = self.X[:n].expand(paths, -1, -1)
        else:
            X = self._space("X", size, self.X.shape[1])
            torch.index_select(self.X, 0, index.view(-1), out=X.view(-1, self.X.shape[1]))
        return Block(index, members, X, self._space("Z", size, h), self._space("R", size, K))

    def _space(self, name: str, size: int, *rest: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Work space of shape (paths, size, ...); if it has to grow, graphs with its address are dropped."""
        row = len(self.theta) * math.prod(rest)
        if name not in self._spaces or self._spaces[name].numel() < row * size:
            self._forget_graphs()
            self._spaces.pop(name, None)
            space = torch.empty(row * max(size, self.rows), dtype=dtype or self.dtype, device=self.device)
            self._spaces[name] = space
        return self._spaces[name][: row * size].view(len(self.theta), size, *rest)

    def _check_state(self) -> None:
        norm = partial(torch.linalg.vector_norm, dim=(1, 2), dtype=torch.float64)
        mark(self, torch.isfinite(norm(self.V).square() + norm(self.W).square()))

    # observation

    def _observables(self) -> dict[int, torch.Tensor]:
        if self.step % CHECKED_STEPS == 0:
            self._check_state()
        loss, correct, check = (
            torch.zeros(len(self.theta), dtype=torch.float64, device=self.device) for _ in range(3)
        )
        n, neurons = self.samples, self.neurons
        if neurons is not None:
            neurons.clear(self)
        # few rows at once: their features take room, too
        count = n if self.features is not None else max(self.rows // 4, 1)
        for first in range(0, n, count):
            rows = slice(first, min(first + count, n))
            A = self._features(rows)
            if neurons is not None:
                neurons.mark(A)
            F, Y = outputs(self.V, A).double(), self.Y[rows].double()
            loss += self._losses(F, Y)
            right = (Y * F > 0).squeeze(2) if F.shape[2] == 1 else F.argmax(2) == Y.argmax(1)
            correct += right.double().sum(1)
            check += F.square().sum((1, 2))
        mark(self, torch.isfinite(check))
        found = {types.LOSS: loss}
        if self.classes or self.V.shape[1] == 1:
            found[types.ACCURACY] = correct / n
        return found if neurons is None else found | neurons.shares(self)

    def _neurons(self, chunk: Chunk) -> np.ndarray:
        assert self.neurons is not None
        return self.neurons.rows(self, chunk.complements)

    def _features(self, rows: slice) -> torch.Tensor:
        """Features of some rows, shape ([paths,] rows, h)."""
        if self.features is not None:
            return self.features[..., rows, :]
        X = self.X[rows].expand(len(self.theta), -1, -1)
        return self.activation.tensor_value(torch.bmm(X, self.W))

    def _losses(self, F: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
        """Sum of the losses of some rows, shape (paths,)."""
        losses = self.loss.tensor_value(F, Y)
        return losses.sum(tuple(range(1, losses.dim())))


def tensor_loss(name: str) -> Loss:
    """The entry of a loss for targets as in `OutputsData`: those of one-vs-rest are -1 and +1."""
    return LOSSES["logistic" if name == "ovr" else name]


def shares_features(chain: DeviceChain, phase: int) -> bool:
    """Whether the first layer has not moved before the end of a phase, so that all paths share it."""
    return all(earlier.method == "lp" for earlier in list(chain.schedule)[: phase + 1])


def gathering_pays(chain: DeviceChain, phase: int, rows: int) -> bool:
    """Whether gathering batches of so many rows costs less than products of all samples with weights.

    Products with features that all paths share cost little.
    """
    if not shares_features(chain, phase):
        return True
    n, K = chain.problem.samples, chain.layout.outputs
    return rows * np.dtype(chain.layout.dtype).itemsize * _GATHERED_BYTES < n * K


def padded(size: int) -> int:
    """Rows that a step computes with: at least so many, in at most eight sizes between powers of two."""
    return max(up(size, max(8, 2 ** (size.bit_length() - 4))), 8) if size > 0 else 8


def likely_rows(samples: int, rate: float, paths: int) -> int:
    """Rows that the batches of so many paths exceed in few steps."""
    if rate == 1:
        return samples
    from scipy.stats import binom

    return min(padded(int(binom.isf(_RARE / paths, samples, rate))), samples)


def work_numbers(chain: DeviceChain, paths: int) -> float:
    """Numbers of work space that the steps of each of so many paths need."""
    n, K = chain.problem.samples, chain.layout.outputs
    k, h = chain.layout.inputs, chain.layout.width
    # observation holds features of some rows; plain passes hold features, slopes and products of them, once
    # before a graph is recorded and once for graphs
    layers = 1.5 if chain.fused else 9.5
    total = 0.0
    for number, phase in enumerate(chain.schedule):
        rule: Any = chain.rule(phase)
        rows, shared = likely_rows(n, rule.sample_rate, paths), shares_features(chain, number)
        if rule.method == FFT:
            needed = rows * (layers * h + k + 8 * K)
        elif rule.sample_rate < 1 and gathering_pays(chain, number, rows):
            needed = rows * (8 * K + (0 if chain.fused else h))
        else:
            needed = n * 8 * K
        # with their squares, or with what they are computed from
        own = 0 if shared or rule.method == FFT else 2 * (n + 1) * h
        total = max(total, needed + own)
    return total
