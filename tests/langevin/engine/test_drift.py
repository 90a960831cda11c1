"""The compiled drift against automatic differentiation of materialised per-sample losses."""

import itertools

import numpy as np
import pytest
import torch

from langevin import Problem, Schedule, Weights, gradient_flow
from langevin.engine.layout import STREAMED, Layout
from tests.helpers import end_states, random_problem, random_weights

ACTIVATE = {
    "relu": torch.relu,
    "linear": lambda z: z,
    "gelu": torch.nn.functional.gelu,
    "tanh": torch.tanh,
}
LOSE = {
    "logistic": lambda f, y: -torch.nn.functional.logsigmoid(y * f),
    "square": lambda f, y: 0.5 * (f - y) ** 2,
    "huber": torch.nn.functional.huber_loss,
}


def autograd_drift(
    problem: Problem, weights: Weights, method: str, clip: float | None, clipping: str, r: float
) -> tuple[np.ndarray, np.ndarray]:
    """``-sum_i clip(grad l_i)``, one backward pass a sample."""
    W = torch.tensor(weights.W, requires_grad=True)
    v = torch.tensor(weights.v, requires_grad=True)
    trained = [W, v] if method == "fft" else [v]
    total = [torch.zeros_like(W), torch.zeros_like(v)][-len(trained) :]
    for x, y in zip(problem.X, problem.y, strict=True):
        z = W @ torch.tensor(x)
        f = v @ ACTIVATE[problem.activation](z)
        loss = LOSE[problem.loss](f, torch.tensor(y))
        gradients = torch.autograd.grad(loss, trained)
        norm = torch.sqrt(sum(((g**2).sum() for g in gradients), start=torch.tensor(0.0)))
        if clip is None:
            factor = torch.tensor(1.0)
        elif clipping == "flat":
            factor = torch.clamp(clip / norm, max=1.0) if norm > 0 else torch.tensor(1.0)
        else:
            factor = clip / (norm + r)
        total = [t - factor * g for t, g in zip(total, gradients, strict=True)]
    drift_W = total[0].numpy() if method == "fft" else np.zeros_like(weights.W)
    return drift_W, total[-1].numpy()


def one_step(problem: Problem, weights: Weights, method: str, **clipping: object) -> Weights:
    schedule = getattr(Schedule, method)(time=1.0, **clipping)
    return gradient_flow(problem, weights, schedule, dt=1.0)


PAIRS = [
    *itertools.product(("relu", "linear"), ("logistic", "square")),
    ("gelu", "logistic"),
    ("tanh", "huber"),
]
KINDS = [(*pair, method) for pair in PAIRS for method in ("lp", "fft")]


@pytest.mark.parametrize(("activation", "loss", "method"), KINDS)
@pytest.mark.parametrize(
    "clipping",
    [
        {},
        {"clip": 0.7},
        {"clip": 1e-3},
        {"clip": 1e6},
        {"clip": 0.7, "clipping": "normalised", "stabiliser": 0.2},
    ],
    ids=["unclipped", "some", "all", "none", "normalised"],
)
# shapes around the blocks of the compiled code: rows in fours, padded columns, d > n, several products
@pytest.mark.parametrize(("n", "d", "h"), [(1, 1, 1), (5, 3, 9), (6, 11, 17), (150, 40, 130), (40, 150, 600)])
def test_drift_is_that_of_autograd(activation, loss, method, clipping, n, d, h):
    problem = random_problem(n, n, d, activation=activation, loss=loss)
    weights = random_weights(h, h, d, scale=0.5)
    end = one_step(problem, weights, method, **clipping)
    W, v = autograd_drift(
        problem,
        weights,
        method,
        clipping.get("clip"),
        clipping.get("clipping", "flat"),
        clipping.get("stabiliser", 0.0),
    )
    scale = np.linalg.norm(W) + np.linalg.norm(v)
    # of the order of the rounding of sums over n, d and h
    tolerance = 1e-13 * (n + d + h) * max(scale, 1e-3)
    assert np.linalg.norm(end.W - weights.W - W) <= tolerance
    assert np.linalg.norm(end.v - weights.v - v) <= tolerance


def test_drift_of_a_first_layer_that_streams_from_memory():
    """Full input space, more than `STREAMED` bytes: one product a layer."""
    problem = random_problem(1, 30, 2100)
    weights = random_weights(1, 300, 2100, scale=0.05)
    layout = Layout(2100, 300, np.float64)
    assert 2100 * layout.ld * 8 > STREAMED
    schedule = Schedule.fft(time=1.0, clip=0.7)
    W, v, _ = end_states(problem, weights, schedule, dt=1.0, paths=1, rng=0, reduce="none")
    drift_W, drift_v = autograd_drift(problem, weights, "fft", 0.7, "flat", 0.0)
    np.testing.assert_allclose(W[0] - weights.W, drift_W, atol=1e-13)
    np.testing.assert_allclose(v[0] - weights.v, drift_v, atol=1e-13)


def test_a_wrong_clip_would_be_seen():
    problem, weights = random_problem(0), random_weights(0)
    end = one_step(problem, weights, "fft", clip=0.7)
    W, _ = autograd_drift(problem, weights, "fft", 0.7 * (1 + 1e-9), "flat", 0.0)
    assert np.linalg.norm(end.W - weights.W - W) > 1e-11


@pytest.mark.parametrize("method", ["lp", "fft"])
def test_zero_gradients_are_not_divided_by(method):
    """All neurons off, zero head: every gradient is zero, and the state stays."""
    problem = Problem([[1.0, 0.0], [2.0, 0.0]], [1, -1])
    weights = Weights([[-1.0, 3.0]], [0.0])
    end = one_step(problem, weights, method, clip=1.0)
    assert (end.W == weights.W).all()
    assert (end.v == weights.v).all()


@pytest.mark.parametrize(("activation", "loss", "method"), KINDS)
def test_closed_form_norms_are_those_of_autograd(activation, loss, method):
    problem, weights = random_problem(3, activation=activation, loss=loss), random_weights(3)
    norms = problem.gradient_norms(weights, method)
    for i in range(problem.samples):
        one = Problem(problem.X[i : i + 1], problem.y[i : i + 1], activation, loss)
        W, v = autograd_drift(one, weights, method, None, "flat", 0.0)
        assert norms[i] == pytest.approx(np.sqrt((W**2).sum() + (v**2).sum()), rel=1e-12)
