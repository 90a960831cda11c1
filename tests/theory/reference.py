"""A plain NumPy Euler-Maruyama chain and a SciPy flow: what the bounds are held against.

Written apart from the package's solvers, straight from the definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp


@dataclass
class Paths:
    """Chain or flow at its record times: W (m, P, h, d), v (m, P, h), or (m, P, h, K) of K outputs."""

    times: np.ndarray
    W: np.ndarray
    v: np.ndarray

    def outputs(self, problem):
        A = problem.activate(problem.X @ self.W.swapaxes(-1, -2))
        return A @ self.v if self.v.ndim == self.W.ndim else np.einsum("...nh,...h->...n", A, self.v)

    def losses(self, problem):
        return problem.losses(self.outputs(problem)).sum(-1)

    def distance2(self, other):
        """Squared distance to a flow with one path."""
        return ((self.W - other.W) ** 2).sum((-1, -2)) + ((self.v - other.v) ** 2).sum(-1)


def drift(problem, W, v, phase):
    """Clipped drift at W (h, d, P), v (h, P), from per-sample gradients; paths last, where NumPy is fast."""
    z = problem.X @ W
    A, slope = problem.activate(z), problem.slope(z)
    r = problem.residuals((A * v[:, None]).sum(0).T).T
    squared = (A**2).sum(0)
    if phase.method == "fft":
        squared = squared + (problem.X**2).sum(-1)[:, None] * ((slope * v[:, None]) ** 2).sum(0)
    norm = np.abs(r) * np.sqrt(squared)
    if phase.clip is None:
        c = 1.0
    elif phase.clipping == "normalised":
        c = phase.clip / (norm + phase.stabiliser)
    else:
        c = np.minimum(1.0, phase.clip / np.maximum(norm, 1e-300))
    u = c * r
    dv = -(u * A).sum(1)
    if phase.method == "lp":
        return np.zeros_like(W), dv
    return -problem.X.T @ (u * slope * v[:, None]), dv


def chain(problem, weights, schedule, dt, paths, seed, times, antithetic=False):
    """Euler-Maruyama at the steps nearest to ``times``; antithetic: the second half has the noise negated."""
    rng = np.random.default_rng(seed)
    W = np.repeat(weights.W[..., None], paths, -1)
    v = np.repeat(weights.v[..., None], paths, -1)
    steps = [round(p.time / dt) for p in schedule]
    want = np.rint(np.asarray(times) / dt).astype(int)
    out = []
    step = 0

    def noise(*shape):
        half = rng.standard_normal((paths // 2 if antithetic else paths, *shape))
        return np.moveaxis(np.concatenate([half, -half]) if antithetic else half, 0, -1)

    for phase, count in zip(schedule, steps, strict=True):
        for _ in range(count):
            out += [(W, v)] * int((want == step).sum())
            dW, dv = drift(problem, W, v, phase)
            scale = phase.sigma * np.sqrt(2 * dt)
            if phase.method == "fft":
                W = W + dW * dt + scale * noise(*weights.W.shape)
            v = v + dv * dt + scale * noise(*weights.v.shape)
            step += 1
    out += [(W, v)] * int((want >= step).sum())
    return Paths(
        want * dt,
        *(np.array([np.moveaxis(part, -1, 0) for part in parts]) for parts in zip(*out, strict=True)),
    )


def factors_outputs(problem, A, F, R, back, phase):
    """Clipping factors of all samples, shape (P, n, 1) or (P, n, K), from features, outputs and residuals."""
    sizes = np.linalg.norm(A, axis=-1)
    norms = np.linalg.norm(R, axis=-1) * sizes
    if phase.method == "fft":
        norms = np.sqrt(norms**2 + (problem.X**2).sum(-1) * (back**2).sum(-1))
    if phase.clipping == "margin":
        p = np.exp(F - F.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        norms = np.sqrt(2) * (1 - (p * problem.targets).sum(-1)) * sizes
    clip, norms = phase.clip, norms[..., None]
    if phase.clipping == "column":
        norms, clip = np.abs(R) * sizes[..., None], clip / np.sqrt(R.shape[-1])
    if phase.clipping == "normalised":
        return clip / (norms + phase.stabiliser)
    return np.minimum(1.0, clip / np.maximum(norms, 1e-300))


def drift_outputs(problem, W, V, phase, batch=1.0):
    """Clipped drift of K outputs at W (P, h, d), V (P, h, K); samples count ``batch`` (P, n) times."""
    # one product for all paths
    z = (W.reshape(-1, W.shape[-1]) @ problem.X.T).reshape(*W.shape[:-1], -1).swapaxes(-1, -2)
    A, slope = problem.activate(z), problem.slope(z)
    F = A @ V
    R = problem.residuals(F)
    back = (R @ V.swapaxes(-1, -2)) * slope
    c = 1.0 if phase.clip is None else factors_outputs(problem, A, F, R, back, phase)
    c = c * np.broadcast_to(batch, F.shape[:-1])[..., None]
    dV = -A.swapaxes(-1, -2) @ (c * R)
    dW = -(c * back).swapaxes(-1, -2) @ problem.X if phase.method == "fft" else np.zeros_like(W)
    return dW, dV


def chain_outputs(problem, weights, schedule, dt, paths, seed, times, antithetic=False):
    """Euler-Maruyama with K outputs and Poisson batches; antithetic as in `chain`."""
    rng = np.random.default_rng(seed)
    W, V = (np.repeat(part[None], paths, 0) for part in (weights.W, weights.v))
    want = np.rint(np.asarray(times) / dt).astype(int)
    out, step = [], 0

    def noise(*shape):
        half = rng.standard_normal((paths // 2 if antithetic else paths, *shape))
        return np.concatenate([half, -half]) if antithetic else half

    for phase in schedule:
        for _ in range(round(phase.time / dt)):
            out += [(W, V)] * int((want == step).sum())
            batch = (rng.random((paths, problem.samples)) < phase.sample_rate) / phase.sample_rate
            dW, dV = drift_outputs(problem, W, V, phase, batch)
            scale = phase.sigma * np.sqrt(2 * dt)
            if phase.method == "fft":
                W = W + dW * dt + scale * noise(*W.shape[1:])
            V = V + dV * dt + scale * noise(*V.shape[1:])
            step += 1
    out += [(W, V)] * int((want >= step).sum())
    return Paths(want * dt, *(np.array(parts) for parts in zip(*out, strict=True)))


def flow(problem, weights, schedule, times, rtol=1e-9, atol=1e-11, method: Any = "RK45", parts=64):
    """Zeroth-order flow at ``times``, one path; higher orders can miss the kinks of clipping."""
    h, d = weights.W.shape
    times = np.asarray(times, dtype=float)
    y = np.concatenate([weights.W.ravel(), weights.v])
    out = np.empty((len(times), y.size))
    start = 0.0
    for k, phase in enumerate(schedule):

        def rate(_, y, phase=phase):
            dW, dv = drift(problem, y[: h * d].reshape(h, d, 1), y[h * d :, None], phase)
            return np.concatenate([dW.ravel(), dv[:, 0]])

        end = start + phase.time
        last = k == len(schedule) - 1
        here = (times >= start) & ((times < end) | last)
        local = np.minimum(times[here] - start, phase.time)
        grid = np.unique(np.concatenate([local, [phase.time]]))
        # short steps: the interpolation between them does not see the kinks of clipping
        solved = solve_ivp(
            rate, (0, phase.time), y, method, t_eval=grid, rtol=rtol, atol=atol, max_step=phase.time / parts
        )
        assert solved.success, solved.message
        out[here] = solved.y.T[np.searchsorted(grid, local)]
        y, start = solved.y[:, -1], end
    return Paths(times, out[:, None, : h * d].reshape(-1, 1, h, d), out[:, None, h * d :])


def flow_losses(problem, weights, schedule, times, parts=64):
    """Loss of the flow, and its error as seen by a coarser tolerance; no step exceeds a phase's ``parts``."""
    fine = flow(problem, weights, schedule, times, parts=parts).losses(problem)[:, 0]
    coarse = flow(problem, weights, schedule, times, 1e-7, 1e-9, parts=parts).losses(problem)[:, 0]
    return fine, np.abs(fine - coarse) + 1e-9 * (1 + fine)


def mean_and_error(samples):
    """Mean over paths (axis 1) and its standard error."""
    return samples.mean(1), samples.std(1, ddof=1) / np.sqrt(samples.shape[1])
