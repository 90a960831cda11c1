"""All paths of a chunk on a GPU, and their steps."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from langevin.engine.gpu import passes
from langevin.engine.kernels import types
from langevin.engine.kernels.types import LP
from langevin.engine.results import Chunk, Results

if TYPE_CHECKING:
    from langevin.engine.gpu.chain import DeviceChain


class Ensemble:
    """States of a chunk's paths on the device, with the work space of their steps.

    Attributes
    ----------
    theta, W, v : Tensor, shapes (paths, size), (paths, k, h), (paths, h)
        States, and views of their parts.
    Z : Tensor, shape (paths, n, h)
        Pre-activations, then what the second product reads. In linear probing they stay.
    f, s : Tensor, shape (paths, n)
        Outputs and clipped residuals.
    diverged : Tensor of int64, shape (paths,)
        As in `Results`.
    clock : Tensor of int64, shape (4,)
        Step, first path, and the two words of the key.
    numbers : Tensor, shape (4,)
        Clip, stabiliser, dt and the noise of a draw: of the present phase.
    """

    def __init__(self, chain: DeviceChain, chunk: Chunk, diverged: np.ndarray) -> None:
        data, layout = chain.data, chain.layout
        assert isinstance(data, types.Data)
        n, k, h = data.y.size, data.inputs, data.width
        paths = len(chunk.thetas)
        dtype = torch.float64 if layout.dtype is np.float64 else torch.float32
        self.chain, self.device = chain, chain.device
        self.activation, self.loss = chain.tables
        self.X = self._there(np.ascontiguousarray(data.X[:n, :k])).expand(paths, n, k)
        self.y, self.squared_norms = self._there(data.y), self._there(data.squared_norms[:n])
        self.theta = torch.empty((paths, layout.size), dtype=dtype, device=self.device)
        self.v, self.W = self._parts(self.theta)
        self.Z = torch.empty((paths, n, h), dtype=dtype, device=self.device)
        self.f, self.s = (torch.empty((paths, n), dtype=dtype, device=self.device) for _ in range(2))
        self.diverged = self._there(diverged)
        self.clock = self._there(np.array([chunk.step, chunk.first_path, *chain.key], np.int64))
        self.numbers = torch.zeros(4, dtype=dtype, device=self.device)
        self.origin, self.means = self._there(chain.records.origin), self._there(chain.records.means)
        self.own = self._there(chain.records.own)
        self.theta[:] = self.origin
        # by the same product as later ones: what has not moved must compare as equal
        self.start = self._own_preactivation() if len(self.own) else None
        if chunk.step > 0:
            self.theta.copy_(self._there(chunk.thetas))
        self.phase = -1
        self.rule: Any = None
        self.graphs: dict[int, Any] = {}
        self.burst = 1
        # of the passes, what has no kernel runs in its plain form
        self.passes: Any = passes
        self.noise: Any = passes.add_normals
        if self.device.type == "cuda":
            from langevin.engine.gpu import fused

            self.noise = fused.add_normals
            if chain.fused:
                self.passes = fused

    def _there(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array, device=self.device)

    def _parts(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        layout = self.chain.layout
        first = theta[:, layout.head : layout.head + layout.inputs * layout.ld]
        first = first.view(len(theta), layout.inputs, layout.ld)
        return theta[:, : layout.width], first[:, :, : layout.width]

    # steps

    def enter(self, phase: int) -> None:
        """Prepare for the steps of a phase."""
        if phase == self.phase:
            return
        self.phase, self.rule = phase, self.chain.rule(self.chain.schedule.phases[phase])
        rule = self.rule
        numbers = [float(x) for x in (rule.clip, rule.stabiliser, rule.dt, rule.noise)]
        self.numbers.copy_(torch.tensor(numbers, dtype=self.numbers.dtype))
        if rule.method == LP:
            self._preactivate()

    def advance(self, count: int) -> None:
        """Take ``count`` steps of the current phase."""
        if self.device.type != "cuda":
            for _ in range(count):
                self._step()
            return
        if count > 0 and self.phase not in self.graphs:
            # compiles, and warms up
            self._step()
            count -= 1
            self.graphs[self.phase] = graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step()
        for _ in range(count):
            self.graphs[self.phase].replay()

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
        if rule.noise > 0:
            trained = self.chain.layout.head if rule.method == LP else self.theta.shape[1]
            for draw in range(rule.draws):
                self.noise(self, trained, rule, draw)

    # observation

    def observe(self, r: int, chunk: Chunk, results: Results) -> None:
        """Write record ``r`` of all paths that are finite."""
        chain, records = self.chain, self.chain.records
        self._evaluate()
        found = {
            types.LOSS: self.loss.tensor_value(self.f.double(), self.y.double()).sum(1),
            types.DISPLACEMENT: self._squared_distance(self.origin),
        }
        if records.reference.shape[0]:
            found[types.DISTANCE] = self._squared_distance(self._there(records.reference[r]))
        preactivation = None
        if self.start is not None:
            preactivation = self._own_preactivation()
            found[types.ACCURACY] = (self.y * self.f > 0).double().mean(1)
            found[types.MISALIGNED] = (self.own * self.v < 0).double().mean(1)
            found[types.DISTORTED] = (preactivation < self.start).double().mean(1)
            relu = self.activation.name == "relu"
            dead = ~(self.Z > 0).any(1) if relu else torch.zeros_like(preactivation)
            found[types.DEAD] = dead.double().mean(1)
        values = torch.stack(list(found.values())).cpu().numpy()
        diverged = results.diverged[chunk.paths] = self.diverged.cpu().numpy()
        alive, moved = diverged < 0, np.zeros(len(diverged))
        if records.complement_dims.size > 0:
            moved = chain.move_complements(r, chunk, diverged)
        scalars = results.scalars[chunk.paths]
        for row, value in zip(found, values, strict=True):
            outside = moved if row in (types.DISPLACEMENT, types.DISTANCE) else 0.0
            scalars[alive, row, r] = (value + outside)[alive]
        if preactivation is not None and results.neurons.size:
            results.neurons[chunk.paths][alive, :, r] = self._neurons(preactivation, chunk)[alive]

    def _squared_distance(self, other: torch.Tensor) -> torch.Tensor:
        v, W = self._parts(other.unsqueeze(0))
        norm = partial(torch.linalg.vector_norm, dtype=torch.float64)
        return norm(self.W - W, dim=(1, 2)).square() + norm(self.v - v, dim=1).square()

    def _own_preactivation(self) -> torch.Tensor:
        """Mean pre-activation of each neuron on its own class, shape (paths, h)."""
        both = torch.bmm(self.means.expand(len(self.W), -1, -1), self.W)
        return torch.where(self.own > 0, both[:, 1], both[:, 0])

    def _neurons(self, preactivation: torch.Tensor, chunk: Chunk) -> np.ndarray:
        """Per-neuron observables, shape (paths, 3, h)."""
        records = self.chain.records
        z = preactivation.double().cpu().numpy()
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
