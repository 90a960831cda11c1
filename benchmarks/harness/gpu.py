"""What is timed on a GPU: our chain, its drift, and torchsde."""

from __future__ import annotations

import time
from collections.abc import Callable
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


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that the device takes for ``work``."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    work()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1000


def seconds_each(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the seconds of one call among many in a row: the median of three measurements."""
    work()
    count = max(1, min(1000, round(seconds / 3 / max(seconds_of(work, device), 1e-6))))

    def all_of_them() -> None:
        for _ in range(count):
            work()

    if device.type == "cuda":
        # recorded in a graph, so that the launches are not timed
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_of_them()
        graph.replay()
        return float(np.median([seconds_of(graph.replay, device) for _ in range(3)])) / count
    return float(np.median([seconds_of(all_of_them, device) for _ in range(3)])) / count


class Ours:
    """Our contestant: the ensemble that a run on a device advances."""

    def __init__(self, case: Case, dtype: type, reduce: str, paths: int, device: torch.device) -> None:
        reduced = case.reduction(reduce)
        self.paths, self.device, self.span = paths, device, reduced.span
        chain = Chain.build(case.request, reduced, dtype, key=(1, 2))
        self.chain = DeviceChain.of(chain, device, 1)
        self.ensemble = self._start(self.chain)

    def _start(self, chain: DeviceChain) -> Ensemble:
        ensemble = chain.ensemble(chain.start(0, self.paths), np.full(self.paths, -1))
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


def on_device(model: Any, device: torch.device) -> Any:
    """Move a peer's drift, which is no module, to a device, and return it."""
    for name, value in vars(model).items():
        if isinstance(value, torch.Tensor):
            setattr(model, name, value.to(device))
    return model


class TorchSDE:
    """torchsde's Euler solver on the same batch of paths, with its own noise or fresh draws."""

    def __init__(
        self, case: Case, dtype: type, reduce: str, paths: int, device: torch.device, fresh: bool
    ) -> None:
        self.paths, self.fresh, self.span = paths, fresh, case.span(reduce)
        X, W = (self.span.coordinates(rows) for rows in (case.problem.X, case.weights.W))
        self.model = on_device(TorchDrift(X, case.problem.y, case.width, CLIP, paths, dtype), device)
        self.state = self.model.pack(W, case.weights.v).to(device)

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        return self.model.unpack(self.model(self.state).cpu())

    def advance(self, steps: int) -> None:
        self.state = euler_steps(self.model, self.state, steps, self.fresh)

    def finite(self) -> bool:
        return bool(torch.isfinite(self.state).all())


def euler_steps(model: Any, y: torch.Tensor, steps: int, fresh: bool) -> torch.Tensor:
    """Take steps of torchsde's Euler solver from ``y``; ``fresh`` increments are drawn but not stored."""
    import torchsde

    end = steps * DT

    class Fresh:
        shape, dtype, device = y.shape, y.dtype, y.device
        levy_area_approximation = "none"

        def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
            return torch.randn_like(y).mul_(DT**0.5)

    source: Any = Fresh() if fresh else torchsde.BrownianInterval(0.0, end, y.shape, dt=DT, **kind(y))
    times = torch.tensor([0.0, end], dtype=torch.float64)
    with torch.no_grad():
        return torchsde.sdeint(sde(model), y, times, bm=source, method="euler", dt=DT)[-1]
