"""All paths of a chunk on a GPU, and their steps."""

from __future__ import annotations

from collections.abc import Callable, Hashable
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
    """States of a chunk's paths on the device; its kinds, one for each step loop, take their steps.

    Attributes
    ----------
    theta, W, V : Tensor, shapes (paths, size), (paths, k, h), (paths, K, h)
        States, and views of their parts.
    diverged : Tensor of int64, shape (paths,)
        As in `Results`.
    clock : Tensor of int64, shape (4,)
        Step, first path, and the two words of the key.
    numbers : Tensor, shape (4,)
        Clip, stabiliser, length of a step and the noise of a draw: of the present phase.
    burst : int
        Steps that are sent off at once.
    """

    def __init__(self, chain: DeviceChain, chunk: Chunk, diverged: np.ndarray) -> None:
        layout = chain.layout
        self.dtype = torch.float64 if layout.dtype is np.float64 else torch.float32
        self.chain, self.device = chain, chain.device
        self.activation, self.loss = chain.tables
        self.theta = self._room(len(chunk.thetas), layout.size)
        self.V, self.W = self._parts(self.theta)
        self.diverged = self._there(diverged)
        self.clock = self._there(np.array([chunk.step, chunk.first_path, *chain.key], np.int64))
        self.numbers = torch.zeros(4, dtype=self.dtype, device=self.device)
        self.origin = self._there(chain.records.origin)
        self.theta[:] = self.origin
        self.phase = -1
        self.rule: Any = None
        self.graphs: dict[Hashable, Any] = {}
        self.burst = 1
        self.noise: Any = passes.add_normals
        if self.device.type == "cuda":
            from langevin.engine.gpu import fused

            self.noise = fused.add_normals
            self._forget_graphs()

    def _there(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array, device=self.device)

    def _room(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _parts(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        layout = self.chain.layout
        head = theta[:, : layout.outputs * layout.ld].view(len(theta), layout.outputs, layout.ld)
        first = theta[:, layout.head : layout.head + layout.inputs * layout.ld]
        first = first.view(len(theta), layout.inputs, layout.ld)
        return head[:, :, : layout.width], first[:, :, : layout.width]

    # steps

    def enter(self, phase: int) -> None:
        """Prepare for the steps of a phase."""
        if phase == self.phase:
            return
        self.phase, self.rule = phase, self.chain.rule(self.chain.schedule.phases[phase])
        rule = self.rule
        numbers = [float(x) for x in (rule.clip, rule.stabiliser, self.length(), rule.noise)]
        self.numbers.copy_(torch.tensor(numbers, dtype=self.numbers.dtype))
        self._prepare()

    def length(self) -> float:
        """What a step of the present phase multiplies its sum of gradients by."""
        return float(self.rule.dt)

    def _prepare(self) -> None:
        """Compute what stays the same throughout the phase."""
        raise NotImplementedError

    def advance(self, count: int) -> None:
        """Take ``count`` steps of the current phase."""
        raise NotImplementedError

    def _run(self, key: Hashable, step: Callable[[], None]) -> None:
        """Take a step, on a GPU by the graph of that name from the second time on."""
        if key in self.graphs:
            self.graphs[key].replay()
            return
        # compiles, and warms up
        step()
        if self.device.type == "cuda":
            self.graphs[key] = graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"):
                step()

    def _forget_graphs(self) -> None:
        """Drop all graphs, whose addresses have changed, with the memory that they share."""
        self.graphs.clear()
        if self.device.type == "cuda":
            # of all graphs, which run one after the other; it does not outlive them
            self._pool = torch.cuda.graph_pool_handle()

    def _add_noise(self) -> None:
        rule = self.rule
        if rule.noise > 0:
            trained = self.chain.layout.head if rule.method == LP else self.theta.shape[1]
            for draw in range(rule.draws):
                self.noise(self, trained, rule, draw)

    # observation

    def observe(self, r: int, chunk: Chunk, results: Results) -> None:
        """Write record ``r`` of all paths that are finite."""
        chain, records = self.chain, self.chain.records
        found = self._observables()
        found[types.DISPLACEMENT] = self._squared_distance(self.origin)
        if records.reference.shape[0]:
            found[types.DISTANCE] = self._squared_distance(self._there(records.reference[r]))
        values = torch.stack(list(found.values())).cpu().numpy()
        diverged = results.diverged[chunk.paths] = self.diverged.cpu().numpy()
        alive, moved = diverged < 0, np.zeros(len(diverged))
        if records.complement_dims.size > 0:
            moved = chain.move_complements(r, chunk, diverged)
        scalars = results.scalars[chunk.paths]
        for row, value in zip(found, values, strict=True):
            outside = moved if row in (types.DISPLACEMENT, types.DISTANCE) else 0.0
            scalars[alive, row, r] = (value + outside)[alive]
        if results.neurons.size:
            results.neurons[chunk.paths][alive, :, r] = self._neurons(chunk)[alive]

    def _observables(self) -> dict[int, torch.Tensor]:
        """Rows of scalar observables other than distances, each of shape (paths,), in double precision."""
        raise NotImplementedError

    def _neurons(self, chunk: Chunk) -> np.ndarray:
        """Per-neuron observables, shape (paths, 3, h), after `_observables`."""
        raise NotImplementedError

    def _squared_distance(self, other: torch.Tensor) -> torch.Tensor:
        V, W = self._parts(other.unsqueeze(0))
        norm = partial(torch.linalg.vector_norm, dtype=torch.float64, dim=(1, 2))
        return norm(self.W - W).square() + norm(self.V - V).square()
