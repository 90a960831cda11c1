"""Classes in their cones: random cases, and their flow until the first neuron leaves its cone."""

from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

from langevin.model.problem import Problem
from langevin.model.weights import Weights
from tests.theory import reference, strategies

LOSSES = ("softmax", "ovr")


def trained(problem, weights, schedule, times):
    """Zeroth-order flow of one phase of K classes, until the first neuron leaves its cone: times, W, V."""
    h, d = weights.W.shape
    (phase,) = schedule
    signs = np.sign(problem.X @ weights.W.T)

    def split(y):
        return y[..., : h * d].reshape(-1, h, d), y[..., h * d :].reshape(-1, *weights.v.shape)

    def rate(_, y):
        return np.concatenate([part.ravel() for part in reference.drift_outputs(problem, *split(y), phase)])

    def room(_, y):
        # just before the kink, at which the flow may slide
        return (signs * (problem.X @ y[: h * d].reshape(h, d).T)).min() - 1e-6

    room.terminal = True  # pyright: ignore[reportFunctionMemberAccess]
    start = np.concatenate([weights.W.ravel(), weights.v.ravel()])
    how: Any = dict(rtol=1e-9, atol=1e-11, max_step=phase.time / 64, events=room)
    solved = solve_ivp(rate, (0, phase.time), start, "RK45", t_eval=times, **how)
    assert solved.status >= 0, solved.message
    return (solved.t, *split(solved.y.T))


def case(seed, heads="any"):
    rng = np.random.default_rng(seed)
    K, loss = strategies.CLASSES[seed % 4], LOSSES[seed // 4 % 2]
    heads = "opposed" if heads == "symmetric" and loss == "ovr" else heads
    spread = [None, 0.05, 0.5][rng.integers(3)]
    problem, weights = strategies.classes(rng, K, loss, spread, heads)
    clip = None if rng.random() < 0.3 else float(np.exp(rng.uniform(-1.5, 1.0)))
    return problem, weights, clip


def own_and_other(problem, own, W):
    """Pre-activations (m, h, n) of each neuron's own class and of the others; NaN elsewhere."""
    pre = np.einsum("nd,mhd->mhn", problem.X, W)
    mine = problem.y == own[:, None]
    return np.where(mine, pre, np.nan), np.where(mine, np.nan, pre)


def lone(head, w=1.0, loss="softmax"):
    """A neuron on a class of one sample; the other classes have samples, but no neurons."""
    K = len(head)
    W = np.full((1, K), -1.0)
    W[0, 0] = w
    return Problem(np.eye(K), np.arange(K), "relu", loss), Weights(W, [head])
