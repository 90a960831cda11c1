"""Small problems and direct access to states, for the tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from langevin import Problem, Schedule, Weights, _engine, noise
from langevin._span import Span
from langevin.reduced import Request, reduction
from langevin.schedule import grid


def random_problem(seed: int, n: int = 7, d: int = 4, **kinds: Any) -> Problem:
    rng = np.random.default_rng(seed)
    y = rng.standard_normal(n) if kinds.get("loss") == "square" else np.where(np.arange(n) % 2, 1.0, -1.0)
    return Problem(rng.standard_normal((n, d)), y, **kinds)


def random_weights(seed: int, h: int = 6, d: int = 4, scale: float = 1.0) -> Weights:
    rng = np.random.default_rng(1000 + seed)
    return Weights(scale * rng.standard_normal((h, d)), scale * rng.standard_normal(h))


def end_states(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    *,
    dt: float,
    paths: int,
    rng: int,
    noise_dt: float | None = None,
    reduce: str = "span",
) -> tuple[np.ndarray, np.ndarray, Span]:
    """``W (paths, h, k)`` and ``v (paths, h)`` at the end, and the coordinates they are in."""
    cut = grid(schedule, dt, [schedule.duration])
    draws = 1 if noise_dt is None else round(dt / noise_dt)
    reduced = reduction(reduce, Request(problem, weights, schedule, cut))
    chain = _engine.Chain.build(problem, weights, schedule, cut, reduced, np.float64, noise.key(rng), draws)
    results = _engine.Results.empty(paths, 1, weights.width, False, ())
    chunk, scratch = chain.start(0, paths), chain.scratch()
    with _engine.one_blas_thread():
        while chunk.step < cut.steps:
            chain.advance(chunk, results, scratch, chain.stops(chunk.step))
    states = [chain.layout.unpack(theta) for theta in chunk.thetas]
    return np.array([W for W, _ in states]), np.array([v for _, v in states]), reduced.span
