"""Paths of networks with one output, on all samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from langevin.engine.gpu import passes
from langevin.engine.gpu.ensemble import Ensemble
from langevin.engine.kernels import types
from langevin.engine.kernels.types import LP
from langevin.engine.results import Chunk

if TYPE_CHECKING:
    from langevin.engine.gpu.chain import DeviceChain


class ScalarEnsemble(Ensemble):
    """The paths of a chunk, as `langevin.engine.kernels.loop` advances them.

    Attributes
    ----------
    v : Tensor, shape (paths, h)
        View of the heads.
    Z : Tensor, shape (paths, n, h)
        Pre-activations, then what the second product reads. In linear probing they stay.
    f, s : Tensor, shape (paths, n)
        Outputs and clipped residuals.
    """

    def __init__(self, chain: DeviceChain, chunk: Chunk, diverged: np.ndarray) -> None:
        super().__init__(chain, chunk, diverged)
        data, paths = chain.data, len(chunk.thetas)
        assert isinstance(data, types.Data)
        n, k, h = data.y.size, data.inputs, data.width
        self.v = self.V[:, 0]
        self.X = self._there(np.ascontiguousarray(data.X[:n, :k])).expand(paths, n, k)
        self.y, self.squared_norms = self._there(data.y), self._there(data.squared_norms[:n])
        self.Z = self._room(paths, n, h)
        self.f, self.s = self._room(paths, n), self._room(paths, n)
        self.means, self.own = self._there(chain.records.means), self._there(chain.records.own)
        # by the same product as later ones: what has not moved must compare as equal
        self.start = self.preactivation = self._own_preactivation() if len(self.own) else None
        if chunk.step > 0:
            self.theta.copy_(self._there(chunk.thetas))
        # of the passes, what has no kernel runs in its plain form
        self.passes: Any = passes
        if self.device.type == "cuda" and chain.fused:
            from langevin.engine.gpu import fused

            self.passes = fused

    # steps

    def _prepare(self) -> None:
        if self.rule.method == LP:
            self._preactivate()

    def advance(self, count: int) -> None:
        """Take ``count`` steps of the current phase."""
        for _ in range(count):
            self._run(self.phase, self._step)

    def _preactivate(self) -> None:
        torch.bmm(self.X, self.W, out=self.Z)

    def _evaluate(self) -> None:
        if self.rule.method != LP:
            self._preactivate()
        self.passes.rows(self, self.rule)

    def _step(self) -> None:
        rule = self.rule
        self._evaluate()
        if rule.method == LP:
            self.passes.columns(self, False)
        elif self.activation.name == "linear":
            # of rank one, and before the head moves
            pull = torch.mm(self.s, self.X[0])
            self.W.baddbmm_(pull.unsqueeze(2), self.v.unsqueeze(1), alpha=-float(rule.dt))
            self.passes.columns(self, False)
        else:
            self.passes.columns(self, True)
            self.W.baddbmm_(self.X.mT, self.Z, alpha=-float(rule.dt))
        self._add_noise()

    # observation

    def _observables(self) -> dict[int, torch.Tensor]:
        self._evaluate()
        found = {types.LOSS: self.loss.tensor_value(self.f.double(), self.y.double()).sum(1)}
        if self.start is not None:
            self.preactivation = self._own_preactivation()
            found[types.ACCURACY] = (self.y * self.f > 0).double().mean(1)
            found[types.MISALIGNED] = (self.own * self.v < 0).double().mean(1)
            found[types.DISTORTED] = (self.preactivation < self.start).double().mean(1)
            relu = self.activation.name == "relu"
            dead = ~(self.Z > 0).any(1) if relu else torch.zeros_like(self.preactivation)
            found[types.DEAD] = dead.double().mean(1)
        return found

    def _own_preactivation(self) -> torch.Tensor:
        """Mean pre-activation of each neuron on its own class, shape (paths, h)."""
        both = torch.bmm(self.means.expand(len(self.W), -1, -1), self.W)
        return torch.where(self.own > 0, both[:, 1], both[:, 0])

    def _neurons(self, chunk: Chunk) -> np.ndarray:
        assert self.preactivation is not None
        records = self.chain.records
        z = self.preactivation.double().cpu().numpy()
        squared = self.W.square().sum(1).double().cpu().numpy()
        outside = records.complement_norms
        if records.complement_dims.size > 0:
            outside = outside + chunk.complements[:, 0]
            squared += chunk.complements[:, 1]
        norm = np.sqrt(squared + outside**2) * np.where(records.own > 0, *records.mean_norms[::-1])
        out = np.empty((len(z), types.NEURON_ROWS, z.shape[1]))
        out[:, types.ALIGNMENT] = np.divide(z, norm, out=np.zeros_like(z), where=norm > 0)
        out[:, types.PREACTIVATION] = z
        out[:, types.HEAD_ALIGNMENT] = (self.own * self.v).double().cpu().numpy()
        return out
