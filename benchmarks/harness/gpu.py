"""What is timed on a GPU: our chain, its drift, and torchsde."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.harness.contestants import CLIP, DT, Case
from benchmarks.peers.torchsde_euler import TorchDrift, sde
from langevin.engine.chain import Chain
from langevin.engine.gpu.chain import DeviceChain
from langevin.engine.gpu.ensemble import Ensemble


@dataclass(frozen=True)
class Effort:
    """Settings that determine how long to measure."""

    cases: tuple[tuple[tuple[int, int, int], int, str], ...]
    rounds: int
    seconds: float  # per contestant and round
    square: int  # rows of the large product that determines the matrix rate
    copied: int  # bytes of the copy that determines the bandwidth
    run: tuple[int, int]  # steps and records of the whole run


def kind(like: torch.Tensor) -> dict[str, Any]:
    return dict(dtype=like.dtype, device=like.device)


class Ours:
    """Our contestant: the ensemble that a run on a device advances."""

    def __init__(self, case: Case, dtype: type, reduce: str, paths: int, device: torch.device) -> None:
        reduced = case.reduction(reduce)
        self.paths, self.device, self.span = paths, device, reduced.span
        chain = Chain.build(case.request, reduced, dtype, key=(1, 2))
        self.chain = DeviceChain.of(chain, device, 1)
        self.ensemble = self._start(self.chain)

    def _start(self, chain: DeviceChain) -> Ensemble:
        ensemble = Ensemble(chain, chain.start(0, self.paths), np.full(self.paths, -1))
        ensemble.enter(0)
        return ensemble

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        still: Any = replace(self.chain.without_noise(), grid=replace(self.chain.grid, dt=1.0))
        ensemble = self._start(still)
        ensemble.advance(1)
        moved = ensemble.theta[-1].cpu().numpy() - self.chain.records.origin
        drift_W, drift_v = self.chain.layout.unpack(moved)
        return drift_W.astype(np.float64), drift_v.astype(np.float64)

    def advance(self, steps: int) -> None:
        self.ensemble.advance(steps)

    def finite(self) -> bool:
        return bool((self.ensemble.diverged < 0).all())


class Drift(TorchDrift):
    """The peer's drift on a device."""

    def __init__(self, device: torch.device, *arguments: Any) -> None:
        super().__init__(*arguments)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))


class TorchSDE:
    """torchsde's Euler solver on the same batch of paths, with its own noise or fresh draws."""

    def __init__(
        self, case: Case, dtype: type, reduce: str, paths: int, device: torch.device, fresh: bool
    ) -> None:
        self.paths, self.fresh, self.span = paths, fresh, case.span(reduce)
        X, W = (self.span.coordinates(rows) for rows in (case.problem.X, case.weights.W))
        self.model = Drift(device, X, case.problem.y, case.width, CLIP, paths, dtype)
        self.state = self.model.pack(W, case.weights.v).to(device)

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        return self.model.unpack(self.model(self.state).cpu())

    def advance(self, steps: int) -> None:
        import torchsde

        y, end = self.state, steps * DT

        class Fresh:
            shape, dtype, device = y.shape, y.dtype, y.device
            levy_area_approximation = "none"

            def __call__(
                self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
            ) -> Any:
                return torch.randn_like(y).mul_(DT**0.5)

        source: Any = (
            Fresh() if self.fresh else torchsde.BrownianInterval(0.0, end, y.shape, dt=DT, **kind(y))
        )
        times = torch.tensor([0.0, end], dtype=torch.float64)
        with torch.no_grad():
            self.state = torchsde.sdeint(sde(self.model), y, times, bm=source, method="euler", dt=DT)[-1]

    def finite(self) -> bool:
        return bool(torch.isfinite(self.state).all())
