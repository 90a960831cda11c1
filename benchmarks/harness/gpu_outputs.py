"""Contestants of a step with K outputs and Poisson batches on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.harness.contestants import CLIP, relative_error
from benchmarks.harness.gpu import TorchSDE, on_device
from benchmarks.harness.outputs import OutputsCase
from benchmarks.peers.torchsde_outputs import TorchOutputsDrift
from langevin.engine.gpu.chain import DeviceChain
from langevin.engine.gpu.outputs import OutputsEnsemble


def error(case: OutputsCase, contestant: Any) -> float:
    """Return the relative error of a contestant's drift, on the path by which it is checked."""
    return relative_error(contestant.drift(), case.drift_of(contestant.path))


class OurOutputs:
    """Our contestant: the ensemble that a run on a device advances. It is checked by its last path."""

    def __init__(self, case: OutputsCase, dtype: type, paths: int, device: torch.device) -> None:
        self.case, self.dtype, self.paths, self.device = case, dtype, paths, device
        self.path = paths - 1
        self.ensemble = self._start(DeviceChain.of(case.chain(dtype), device, 1))

    def _start(self, chain: DeviceChain) -> OutputsEnsemble:
        ensemble = chain.ensemble(chain.start(0, self.paths), np.full(self.paths, -1))
        assert isinstance(ensemble, OutputsEnsemble)
        ensemble.enter(0)
        return ensemble

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        chain = DeviceChain.of(self.case.chain(self.dtype, sigma=0.0), self.device, 1)
        still: Any = replace(chain, grid=replace(chain.grid, dt=1.0))
        ensemble = self._start(still)
        ensemble.advance(1)
        moved = ensemble.theta[-1].cpu().numpy() - chain.origin
        drift_W, drift_V = chain.layout.unpack(moved)
        return drift_W.astype(np.float64), drift_V.astype(np.float64)

    def advance(self, steps: int) -> None:
        self.ensemble.advance(steps)

    def finite(self) -> bool:
        return bool((self.ensemble.diverged < 0).all())


class TorchSDEOutputs(TorchSDE):
    """torchsde's Euler solver on the same number of paths and on all samples."""

    path = 0

    def __init__(self, case: OutputsCase, dtype: type, paths: int, device: torch.device, fresh: bool) -> None:
        self.fresh, X, Y = fresh, case.problem.X, case.problem.targets
        self.model = on_device(TorchOutputsDrift(X, Y, case.width, CLIP, paths, dtype), device)
        self.state = self.model.pack(case.weights.W, case.weights.v).to(device)
