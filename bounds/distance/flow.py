"""The zeroth-order flow (2), integrated by scipy for the bounds that need its own path.

Independent of the package's solvers, so that a bound never rests on the run it is tested against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import RK45

from bounds.distance.clipping import clip_factors, clipped_probing
from bounds.support.covers import ANY, Covers
from bounds.support.numeric import patient
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.schedule import Phase
from langevin.model.weights import Weights
from langevin.support.validate import FloatArray

COVERS = Covers(ANY, ("relu", "linear"), outputs=True)
RTOL, ATOL = 1e-8, 1e-10
RANK_TOLERANCE = 1e-12
SHORTEST = 1 / 512
"""Steps of this share of their phase are short enough..."""
LOOSE = 1e3
"""... if their error exceeds the tolerance by no more than this factor."""
JUMP = 1 / 8192
"""Steps of this share are short enough whatever their error..."""
SMOOTH = 0.1
"""... if they are of this length in units of the largest curvature: what the error shows is then a jump."""


class _Steps(RK45):
    """RK45 with steps as short as `SHORTEST`; higher orders miss the kinks of clipping.

    A ReLU flow may slide along the surface ``w_j . x_i = 0``, where error control would stall. Digits at
    width 512, against steps of 1/8192: bound (1b) and loss agree to 3e-6 even with a shortest step of 1/256.
    Where the error is beyond `LOOSE`, steps of `JUMP` are as good as Euler's, if `SMOOTH` says that a drift
    without jumps would leave them no such error.
    """

    curvature: Callable[[FloatArray], float]

    def _estimate_error_norm(self, K: FloatArray, h: float, scale: FloatArray) -> float:
        found = super()._estimate_error_norm(K, h, scale)
        share = abs(h / self.t_bound)
        enough = share <= SHORTEST and found <= LOOSE
        if not enough and found > 1 and share <= JUMP:
            enough = abs(h) * self.curvature(self.y) < SMOOTH
        # at this error the step size controller keeps the step as it is
        return min(found, 0.9**5) if enough else found


class Span(NamedTuple):
    """Data and weights in coordinates of the span of the inputs.

    Attributes
    ----------
    X : ndarray, shape (n, k)
    W : ndarray, shape (h, k)
    rest : float
        Squared norm of the part of the first layer outside the span: no drift moves it.
    """

    X: FloatArray
    W: FloatArray
    rest: float

    @property
    def singular(self) -> FloatArray:
        """Singular values of ``X``, falling, shape (k,): its columns are orthogonal."""
        return np.linalg.norm(self.X, axis=0)

    @property
    def left(self) -> FloatArray:
        """Left singular vectors of ``X``, shape (n, k)."""
        return self.X / self.singular


def span(problem: Problem, weights: Weights) -> Span:
    """Rotate to the span of the inputs, ``k = rank X``."""
    U, s, Vt = np.linalg.svd(problem.X, full_matrices=False)
    k = int((s > RANK_TOLERANCE * max(problem.X.shape) * s[0]).sum())
    W = weights.W @ Vt[:k].T
    rest = max(float((weights.W**2).sum() - (W**2).sum()), 0.0)
    return Span(U[:, :k] * s[:k], W, rest)


@dataclass(frozen=True)
class State:
    """The flow at one time: span coordinates of the first layer, the head, and what derives from them.

    Attributes
    ----------
    W : ndarray, shape (h, k)
    v : ndarray, shape (h,) or (h, K)
        Where the loss does not change when a number is added to all outputs, the rows sum to zero.
    features, outputs : ndarray, shapes (n, h), and (n,) or (n, K)
    rest : float
        Squared norm of what no drift moves: the first layer outside the span, and what ``v`` leaves out.
    """

    W: FloatArray
    v: FloatArray
    features: FloatArray
    outputs: FloatArray
    rest: float

    @property
    def squared_norm(self) -> float:
        """``||(W, v)||^2``, all coordinates."""
        return float(np.vdot(self.W, self.W) + np.vdot(self.v, self.v)) + self.rest


class Flow:
    """Zeroth-order flow of one problem; steps through phases, forward only.

    Parameters
    ----------
    problem, weights
        Problem and start.
    """

    def __init__(self, problem: Problem, weights: Weights) -> None:
        COVERS.require(problem)
        self.problem = problem
        self.X, self.W, self.rest = span(problem, weights)
        self.v = np.array(weights.v)
        if LOSSES[problem.loss].gauge:
            mean = self.v.mean(axis=1, keepdims=True)
            self.v = self.v - mean
            self.rest += problem.outputs_dim * float(np.vdot(mean, mean))
        self.squared_norms = problem.squared_norms
        # two arrays of the size of the features serve every call of `drift`
        shape = problem.samples, len(weights.v)
        self._room = np.empty(shape), np.empty(shape)
        self.relu = problem.activation == "relu"
        self._sizes = self.squared_norms
        self._held: FloatArray | None = None
        """First layer whose features ``_room`` holds: linear probing does not change them."""

    def state(self) -> State:
        """Return the current state of the flow."""
        A = self.problem.activate(self.X @ self.W.T)
        return State(self.W, self.v, A, A @ self.v, self.rest)

    def drift(self, W: FloatArray, v: FloatArray, phase: Phase) -> tuple[FloatArray | None, FloatArray]:
        """Clipped drift of the first layer (None in LP) and of the head."""
        self._see(W, phase)
        return (self._drift if v.ndim == 1 else self._drift_outputs)(v, phase)

    def _see(self, W: FloatArray, phase: Phase) -> None:
        """Compute the features and the slopes of the activation at a first layer."""
        A, slope = self._room
        probing = phase.method == "lp"
        if not probing or W is not self._held:
            np.matmul(self.X, W.T, out=A)
            if self.relu:
                np.maximum(A, 0.0, out=A)
                # 1 if active, otherwise 0
                np.sign(A, out=slope)
            self._sizes = np.einsum("ij,ij->i", A, A)
        self._held = W if probing else None

    def _drift(self, v: FloatArray, phase: Phase) -> tuple[FloatArray | None, FloatArray]:
        A, slope = self._room
        r = self.problem.residuals(A @ v)
        if phase.method == "lp":
            u = r * clip_factors(np.abs(r) * np.sqrt(self._sizes), phase)
            return None, -(u @ A)
        heads = slope @ v**2 if self.relu else v @ v
        u = r * clip_factors(np.abs(r) * np.sqrt(self._sizes + self.squared_norms * heads), phase)
        # the factors go into the inputs, the smaller product
        pull = self.X * -u[:, None]
        first = slope.T @ pull if self.relu else pull.sum(0)
        return v[:, None] * first, -(u @ A)

    def _drift_outputs(self, V: FloatArray, phase: Phase) -> tuple[FloatArray | None, FloatArray]:
        A, slope = self._room
        r = self.problem.residuals(A @ V)
        if phase.method == "lp":
            return None, -(A.T @ clipped_probing(r, np.sqrt(self._sizes), phase))
        # V_j . r_i of the active neurons
        back = (r @ V.T) * slope if self.relu else None
        heads = np.einsum("ij,ij->i", r @ (V.T @ V), r) if back is None else np.einsum("ij,ij->i", back, back)
        squares = np.einsum("ik,ik->i", r, r) * self._sizes + self.squared_norms * heads
        # rounding may leave a small negative number
        c = clip_factors(np.sqrt(np.maximum(squares, 0.0)), phase)[:, None]
        u = c * r
        first = V @ (u.T @ self.X) if back is None else back.T @ (c * self.X)
        return -first, -(A.T @ u)

    def run(
        self, phase: Phase, times: FloatArray, extra: float, extra_rate
    ) -> tuple[list[State], FloatArray]:
        """Run one phase and leave the flow at its end.

        Parameters
        ----------
        phase : Phase
        times : ndarray
            Increasing, within ``[0, phase.time]``.
        extra : float
            Start of one more scalar unknown ``e`` that rides along.
        extra_rate : callable
            ``(e, squared_norm, squared_drift_norm) -> de/dt``, of the trained part in LP.

        Returns
        -------
        list of State, ndarray
            The flow and ``e`` at ``times``; the last entry of ``e`` is at the phase's end.
        """
        fft: bool = phase.method == "fft"
        h, k = self.W.shape
        W0, shape = self.W, self.v.shape

        def unpack(y: FloatArray) -> tuple[FloatArray, FloatArray]:
            W, v = (y[: h * k].reshape(h, k), y[h * k : -1]) if fft else (W0, y[:-1])
            return W, v.reshape(shape)

        def rate(_: float, y: FloatArray) -> FloatArray:
            W, v = unpack(y)
            dW, dv = self.drift(W, v, phase)
            parts = [dv.ravel()] if dW is None else [dW.ravel(), dv.ravel()]
            theta = y[:-1]
            speed = sum(float(p @ p) for p in parts)
            return np.concatenate([*parts, [extra_rate(y[-1], float(theta @ theta), speed)]])

        start = np.concatenate([*((self.W.ravel(),) if fft else ()), self.v.ravel(), [extra]])
        solver = _Steps(patient(rate), 0.0, start, phase.time, rtol=RTOL, atol=ATOL)

        def curvature(y: FloatArray) -> float:
            """Bound of the Gauss-Newton matrix: its trace, as ``l'' <= 1``."""
            W, v = unpack(y)
            A = self.problem.activate(self.X @ W.T)
            return float(np.vdot(A, A) + fft * self.squared_norms.sum() * np.vdot(v, v))

        solver.curvature = curvature
        states: list[State] = []
        extras: list[float] = []
        done = 0

        def record(y: FloatArray) -> None:
            W, v = unpack(y)
            A = self.problem.activate(self.X @ W.T) if fft or not states else states[0].features
            states.append(State(W, v, A, A @ v, self.rest))
            extras.append(float(y[-1]))

        while done < len(times) and times[done] <= 0.0:
            record(start)
            done += 1
        while solver.status == "running":
            message = solver.step()
            if solver.status == "failed":
                raise ArithmeticError(f"the zeroth-order flow diverged at time {solver.t:g}: {message}")
            if done < len(times) and times[done] <= solver.t:
                dense = solver.dense_output()
                while done < len(times) and times[done] <= solver.t:
                    record(dense(times[done]))
                    done += 1
        while done < len(times):
            record(solver.y)
            done += 1
        W, v = unpack(solver.y)
        self.W, self.v = np.array(W), np.array(v)
        return states, np.array([*extras, solver.y[-1]])

    def steps(
        self, phase: Phase, dt: float, records: NDArray[np.int64], count: int, extra: float, advance
    ) -> tuple[list[State], FloatArray]:
        """Take ``count`` Euler steps of ``dt`` in one phase: the noise-free chain on full batches.

        Parameters
        ----------
        phase : Phase
        dt : float
        records : ndarray of int
            Increasing, within ``[0, count]``.
        count : int
        extra : float
            Start of one more scalar unknown ``e`` that rides along.
        advance : callable
            ``(e, squared_norm, squared_drift_norm) -> e`` after the step, of the trained part in LP.

        Returns
        -------
        list of State, ndarray
            The chain and ``e`` at ``records``; the last entry of ``e`` is at the phase's end.
        """
        found: dict[int, tuple[State, float]] = {}
        wanted, fft = set(records.tolist()), phase.method == "fft"
        for step in range(count + 1):
            if step in wanted:
                found[step] = self.state(), extra
            if step == count:
                break
            dW, dv = self.drift(self.W, self.v, phase)
            size, speed = float(np.vdot(self.v, self.v)), float(np.vdot(dv, dv))
            if fft and dW is not None:
                size += float(np.vdot(self.W, self.W))
                speed += float(np.vdot(dW, dW))
                self.W = self.W + dt * dW
            extra = advance(extra, size, speed)
            self.v = self.v + dt * dv
        ends = [found[int(step)] for step in records]
        return [state for state, _ in ends], np.array([*(e for _, e in ends), extra])
