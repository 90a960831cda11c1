"""The zeroth-order flow of a ReLU net across and along hyperplanes, by `langevin.engine.kernels.sliding`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from langevin.engine.kernels import types
from langevin.engine.kernels.sliding import state as sliding_state
from langevin.engine.kernels.sliding import step
from langevin.engine.kernels.sliding.state import Damping, Net, State
from langevin.engine.system import System
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.solvers.report import FEWEST_STEPS, Report
from langevin.support import validate
from langevin.support.validate import FloatArray

# the change by a step's second stage that is allowed, over rtol, and at most: errors are about a tenth of it
LOOSER, LOOSEST = 1e3, 1e-3
# a phase's first step and shortest step, and the steps that end in a refusal
FIRST_STEP, SHORTEST, MOST_STEPS = 1e-4, 1e-12, 2_000_000
# steps per call, and multiplications in a stage of all of these; signals are answered in between
STEPS_A_CALL, MULTIPLICATIONS_A_CALL = 20, 1e8
# samples of which the tangent kernel is decomposed
MOST_DAMPED = 512
# where no neuron is active, and the neuron rests on a hyperplane, it is put so far beyond it
BEYOND = 1e-12


def follow(
    system: System,
    rule: types.Rule,
    start: float,
    stop: float,
    wanted: FloatArray,
    theta: np.ndarray,
    rtol: float,
    report: Report,
) -> Iterator[None]:
    """Advance ``theta`` to each of the ``wanted`` times and to ``stop``; not finite on failure.

    Two solutions run side by side, one in halved steps: ``theta`` is the latter, their distance its error.
    """
    problem, layout = system.reduction.problem, system.layout
    (n, k), width = problem.X.shape, layout.width
    validate.memory(
        8.0 * (10 * width * n + 10 * width * k + 4 * n * k + 4 * min(n, MOST_DAMPED) ** 2),
        f"following {width} neurons across the hyperplanes of {n} samples",
        "take fewer of them, or dt",
    )
    X = np.array(problem.X, order="C")
    squared = np.einsum("ij,ij->i", X, X)
    net = Net(
        X, np.array(X.T, order="C"), np.array(problem.y), squared, np.sqrt(squared), *_parallel(X),
        system.data.loss, system.data.residual, rule.clipping, float(rule.clip), float(rule.stabiliser),
    )  # fmt: skip
    room, spare = sliding_state.workspace(width, n, k)
    W, v = layout.unpack(theta)
    slopes = (W @ X.T > 0).astype(np.float64)
    coarse, fine = (State(np.array(W, order="C"), np.array(v), slopes.copy()) for _ in range(2))
    counts, t, span = np.zeros(4, np.int64), start, stop - start
    h, before, longest = FIRST_STEP * span, report.error, span / FEWEST_STEPS
    tolerance, most = min(LOOSER * rtol, LOOSEST), int(MULTIPLICATIONS_A_CALL / (n * k * width))
    most = max(1, min(most, STEPS_A_CALL))
    report.used(f"Heun's method between hyperplanes from time {start:g}")
    for record, target in enumerate([*wanted, stop]):
        while t < target:
            h = min(h, longest)
            damping = _damping(problem, net, fine, h)
            t, h, status = step.advance(
                coarse, fine, spare, t, target, h, SHORTEST * span, tolerance, most,
                net, damping, room, counts,
            )  # fmt: skip
            if status == sliding_state.LOST or counts[sliding_state.STEPS] > MOST_STEPS:
                theta[:] = np.nan
                return
            partly = (fine.slopes > 0) & (fine.slopes < 1)
            report.shared |= rule.clipping != types.UNCLIPPED and bool((partly.sum(axis=0) > 1).any())
        _part(net, fine)
        layout.pack(fine.W, fine.v, theta)
        error, loss_error = _difference(problem, coarse, fine)
        report.error = max(report.error, before + error)
        report.loss_error = max(report.loss_error, loss_error)
        if record < len(wanted):
            yield
    report.crossings += int(counts[sliding_state.CROSSINGS])
    report.slides += int(counts[sliding_state.SLIDES])


def _parallel(X: FloatArray) -> tuple[np.ndarray, FloatArray, bool]:
    """For each sample, the first one with the same hyperplane, and their ratio; whether any two share one."""
    axis = np.argmax(np.abs(X), axis=1)
    size = X[np.arange(len(X)), axis]
    scaled = np.round(X / np.where(size == 0, 1.0, size)[:, None], 12)
    # zeros are on no hyperplane
    keys = np.column_stack([scaled, np.where(size == 0, 1.0 + np.arange(len(X)), 0.0)])
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    lead = first[group.ravel()].astype(np.int64)
    ratio = size / np.where(size == 0, 1.0, size)[lead] if len(X) else size
    return lead, np.where(size == 0, 1.0, ratio), bool((lead != np.arange(len(X))).any())


def _difference(problem: Problem, coarse: State, fine: State) -> tuple[float, float]:
    """Distance of the weights over their norm, and difference of the losses."""
    distance = np.hypot(np.linalg.norm(coarse.W - fine.W), np.linalg.norm(coarse.v - fine.v))
    size = np.hypot(np.linalg.norm(fine.W), np.linalg.norm(fine.v))
    losses = [problem.losses(problem.features(state.W) @ state.v).sum() for state in (coarse, fine)]
    return float(distance / size) if size > 0 else float(distance), float(abs(losses[0] - losses[1]))


def _damping(problem: Problem, net: Net, state: State, h: float) -> Damping:
    """Of the outputs at ``state``; nothing where steps of ``h`` are stable anyway, or samples too many."""
    Z = net.X @ state.W.T
    A, on = np.maximum(Z, 0.0), (Z > 0) * state.v
    f = A @ state.v
    squares = np.einsum("ij,ij->i", A, A) + net.squared * np.einsum("ij,ij->i", on, on)
    curvature = LOSSES[problem.loss].curvature(f, problem.y)
    if net.clipping != types.UNCLIPPED:
        norms = np.abs(problem.residuals(f)) * np.sqrt(squares)
        curvature = np.where(norms > net.clip, 0.0, curvature)
    if not 0.1 < h * float(squares @ curvature) < np.inf or problem.samples > MOST_DAMPED:
        none = np.zeros((problem.samples, 0))
        return Damping(none, none, np.zeros(0))
    root = np.sqrt(curvature)
    kernel = (A @ A.T + (net.X @ net.XT) * (on @ on.T)) * root
    values, vectors = np.linalg.eigh(root[:, None] * kernel)
    return Damping(kernel @ vectors, root[:, None] * vectors, np.maximum(values, 0.0))


def _part(net: Net, state: State) -> None:
    """Move inactive neurons that rest on hyperplanes beyond them, so that rounding does not matter."""
    Z, lengths = state.W @ net.XT, np.maximum(np.linalg.norm(state.W, axis=1), np.abs(state.v))
    room = sliding_state.ON_PLANE * np.outer(lengths, net.lengths)
    on_plane = (np.abs(Z) <= room) & (net.squared > 0)
    resting = on_plane.any(axis=1) & (Z - room <= 0).all(axis=1) & state.W.any(axis=1)
    for j in np.flatnonzero(resting):
        for i in np.flatnonzero(on_plane[j]):
            state.W[j] -= BEYOND * lengths[j] / net.lengths[i] * net.X[i]
