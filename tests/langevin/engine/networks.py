"""Small networks of K outputs, and their chains on the processor and on a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from langevin import Phase, Problem, Schedule, Weights, euler_maruyama
from langevin.engine import noise
from langevin.engine.chain import Chain
from langevin.engine.reductions.choose import reduction
from langevin.engine.reductions.request import Request
from langevin.model.losses import LOSSES
from langevin.model.steps import grid

DT = 0.01
METHODS = {
    "lp": ["lp"],
    "fft": ["fft"],
    # features of all paths, then of each path
    "lp-fft-lp": ["lp", "fft", "lp"],
}


def a_problem(loss: str, n: int = 21, d: int = 9, activation: str = "relu", K: int = 3) -> Problem:
    """With one output for the logistic loss, and K otherwise."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((n, d)) / 2
    labels = rng.permutation(np.arange(n) % K)
    y = labels if LOSSES[loss].classes else 0.5 * rng.standard_normal((n, K))
    return Problem(X, np.where(labels > 0, 1.0, -1.0) if loss == "logistic" else y, activation, loss)


def some_weights(problem: Problem, h: int = 13) -> Weights:
    rng = np.random.default_rng(6)
    v = 0.5 * rng.standard_normal((h, problem.outputs_dim))
    return Weights(rng.standard_normal((h, problem.dim)) / 2, v[:, 0] if problem.outputs_dim == 1 else v)


def a_schedule(methods: list[Any], steps: int = 4, sigma: float = 0.2, **kinds: Any) -> Schedule:
    return Schedule([Phase(method, steps * DT, sigma, **kinds) for method in methods])


def a_chain(
    problem: Problem,
    schedule: Schedule,
    where: str | None,
    dtype: type = np.float64,
    reduce: str = "none",
    draws: int = 1,
) -> Chain:
    """A chain on the processor's own code, or on a device."""
    cut = grid(schedule, DT, [schedule.duration])
    request = Request(problem, some_weights(problem), schedule, cut, device=where or "cpu")
    chain = Chain.build(request, reduction(reduce, request), dtype, noise.key(3), draws)
    if where is None:
        return chain
    import torch

    from langevin.engine.gpu.chain import DeviceChain

    return DeviceChain.of(chain, torch.device(where), 1)


def simulate(device: str, problem: Problem, schedule: Schedule, **changes: Any) -> xr.Dataset:
    arguments = {"dt": DT, "paths": 5, "rng": 1, **changes}
    return euler_maruyama(problem, some_weights(problem), schedule, device=device, **arguments)
