"""The zeroth-order flow of a ReLU net across and along hyperplanes, by `langevin.engine.kernels.sliding`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from langevin.engine.kernels import types
from langevin.engine.kernels.outputs.types import OutputsData, OutputsRule
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
# outputs of all samples, n K, of which the tangent kernel is decomposed
MOST_DAMPED = 512
# where no neuron is active, and the neuron rests on a hyperplane, it is put so far beyond it
BEYOND = 1e-12


def follow(
    system: System,
    rule: types.Rule | OutputsRule,
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
    (n, k), width, outputs = problem.X.shape, layout.width, problem.outputs_dim
    validate.memory(
        8.0 * (11 * width * n + 10 * width * (k + outputs) + 4 * n * (k + outputs) + 5 * MOST_DAMPED**2),
        f"following {width} neurons across the hyperplanes of {n} samples",
        "take fewer of them, or dt",
    )
    X = np.array(problem.X, order="C")
    squared = np.einsum("ij,ij->i", X, X)
    targets = system.data.Y if isinstance(system.data, OutputsData) else problem.targets
    net = Net(
        X, np.array(X.T, order="C"), np.array(targets), squared, np.sqrt(squared), *_parallel(X),
        system.data.loss, system.data.residual, rule.clipping, float(rule.clip), float(rule.stabiliser),
    )  # fmt: skip
    room, spare = sliding_state.workspace(width, n, k, outputs)
    W, v = layout.unpack(theta)
    V, slopes = v.reshape(width, outputs), (W @ X.T > 0).astype(np.float64)
    coarse, fine = (State(np.array(W, order="C"), np.array(V, order="C"), slopes.copy()) for _ in range(2))
    counts, t, span = np.zeros(sliding_state.COUNTS, np.int64), start, stop - start
    h, before, longest = FIRST_STEP * span, report.error, span / FEWEST_STEPS
    tolerance, most = min(LOOSER * rtol, LOOSEST), MULTIPLICATIONS_A_CALL / (n * (k + outputs - 1) * width)
    most = max(1, min(int(most), STEPS_A_CALL))
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
        layout.pack(fine.W, fine.V.reshape(v.shape), theta)
        error, loss_error = _difference(problem, coarse, fine)
        report.error = max(report.error, before + error)
        report.loss_error = max(report.loss_error, loss_error)
        if record < len(wanted):
            yield
    report.crossings += int(counts[sliding_state.CROSSINGS])
    report.slides += int(counts[sliding_state.SLIDES])
    report.origins += int(counts[sliding_state.ORIGINS])


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
    distance = np.hypot(np.linalg.norm(coarse.W - fine.W), np.linalg.norm(coarse.V - fine.V))
    size = np.hypot(np.linalg.norm(fine.W), np.linalg.norm(fine.V))
    value, targets = LOSSES[problem.loss].value, problem.targets
    losses = [value(problem.features(state.W) @ state.V, targets).sum() for state in (coarse, fine)]
    return float(distance / size) if size > 0 else float(distance), float(abs(losses[0] - losses[1]))


def _damping(problem: Problem, net: Net, state: State, h: float) -> Damping:
    """Of the outputs at ``state``; nothing where steps of ``h`` are stable anyway, or outputs too many."""
    n, outputs = net.y.shape
    nothing = np.zeros((n * outputs, 0))
    none = Damping(nothing, nothing, np.zeros(0))
    if n * outputs > MOST_DAMPED:
        return none
    Z = net.X @ state.W.T
    A, on = np.maximum(Z, 0.0), (Z > 0) * state.V.T[:, None]
    # of each sample: its block of the tangent kernel, and of minus the pull's Jacobian
    blocks = np.einsum("ij,ij->i", A, A)[:, None, None] * np.eye(outputs)
    blocks += net.squared[:, None, None] * np.einsum("kij,lij->ikl", on, on)
    curvature = _curvature(problem, net, A @ state.V, blocks)
    if not 0.1 < h * float(np.einsum("ikl,ikl->", blocks, curvature)) < np.inf:
        return none
    # curvature = root root^T
    values, vectors = np.linalg.eigh(curvature)
    root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None]
    rows = on.reshape(n * outputs, -1)
    kernel = np.kron(np.eye(outputs), A @ A.T) + np.tile(net.X @ net.XT, (outputs, outputs)) * (rows @ rows.T)
    # an output's row holds all samples
    right = np.einsum("ali,ilk->aki", kernel.reshape(-1, outputs, n), root).reshape(kernel.shape)
    inner = np.einsum("ilk,lib->kib", root, right.reshape(outputs, n, -1)).reshape(kernel.shape)
    values, vectors = np.linalg.eigh(inner)
    left = np.einsum("ilk,kib->lib", root, vectors.reshape(outputs, n, -1)).reshape(kernel.shape)
    return Damping(right @ vectors, left, np.maximum(values, 0.0))


def _curvature(problem: Problem, net: Net, f: FloatArray, blocks: FloatArray) -> FloatArray:
    """Jacobian of each sample's pull ``c_i r_i`` in its outputs, shape (n, K, K), symmetrised.

    A clipped residual keeps its length. The factor's other changes are left out.
    """
    loss = LOSSES[problem.loss]
    curvature = loss.curvature(f, problem.targets)
    if curvature.ndim == 2:
        curvature = curvature[..., None] * np.eye(f.shape[1])
    if net.clipping == types.UNCLIPPED:
        return curvature
    residuals = loss.residual(f, problem.targets)
    sizes = np.linalg.norm(residuals, axis=1)
    r = residuals / np.where(sizes > 0, sizes, 1.0)[:, None]
    norms = sizes * np.sqrt(np.einsum("ik,ikl,il->i", r, blocks, r))
    clipped = norms > net.clip
    across = np.sqrt(np.where(clipped, net.clip / np.where(clipped, norms, 1.0), 1.0))[:, None, None]
    project = across * (np.eye(f.shape[1]) - r[:, :, None] * r[:, None, :])
    project += np.where(clipped, 0.0, 1.0)[:, None, None] * r[:, :, None] * r[:, None, :]
    return project @ curvature @ project


def _lengths(state: State) -> FloatArray:
    """Of each neuron, the larger one of the norms of its weights in both layers."""
    return np.maximum(np.linalg.norm(state.W, axis=1), np.linalg.norm(state.V, axis=1))


def _part(net: Net, state: State) -> None:
    """Move inactive neurons that rest on hyperplanes beyond them, so that rounding does not matter."""
    Z, lengths = state.W @ net.XT, _lengths(state)
    room = sliding_state.ON_PLANE * np.outer(lengths, net.lengths)
    on_plane = (np.abs(Z) <= room) & (net.squared > 0)
    resting = on_plane.any(axis=1) & (Z - room <= 0).all(axis=1) & state.W.any(axis=1)
    for j in np.flatnonzero(resting):
        for i in np.flatnonzero(on_plane[j]):
            state.W[j] -= BEYOND * lengths[j] / net.lengths[i] * net.X[i]
