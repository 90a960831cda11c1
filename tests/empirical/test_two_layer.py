"""DP-SGD through Opacus is the chain, step by step; networks and tasks in both forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.nn import functional
from torch.optim import SGD

from empirical.data.scikit import digits
from empirical.networks.bodies import Classifier, convnet, mlp
from empirical.two_layer import from_torch, problem_of, run_schedule, to_torch
from langevin import DPSGD, Diverged, Phase, Problem, Schedule, Weights, euler_maruyama
from langevin.engine import noise
from tests.langevin.engine.batches import members

RANDOM = np.random.default_rng(3)
X, HELD_OUT = RANDOM.normal(size=(2, 15, 4))
W = RANDOM.normal(size=(6, 4))
SIGNS, CLASSES = np.where(np.arange(15) % 2, -1.0, 1.0), np.arange(15) % 3
WEIGHTS, SEVERAL = Weights(W, RANDOM.normal(size=6)), Weights(W, RANDOM.normal(size=(6, 3)))
STEPS = 40
# gradients are as many times as large in other units: Opacus adds 1e-6 to their norms before it divides
UNIT = 1e6


def softmax(outputs: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, y, reduction="sum")


def one_vs_rest(outputs: Tensor, y: Tensor) -> Tensor:
    each = functional.one_hot(y, outputs.shape[1]).double()
    return functional.binary_cross_entropy_with_logits(outputs, each, reduction="sum")


def logistic(outputs: Tensor, y: Tensor) -> Tensor:
    return functional.softplus(-y * outputs[:, 0]).sum()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": softmax,
    "ovr": one_vs_rest,
    "logistic": logistic,
}


def task(loss: str) -> tuple[Problem, Weights]:
    """A task in other units, in which the dynamics are the same and gradients `UNIT` times as large."""
    y, weights = (SIGNS, WEIGHTS) if loss == "logistic" else (CLASSES, SEVERAL)
    return Problem(UNIT**2 * X, y, "relu", loss), Weights(weights.W / UNIT, weights.v / UNIT)


class Drawn:
    """Noise that Opacus takes instead of its own."""

    def __init__(self) -> None:
        self._draws: list[Tensor] = []

    def put(self, *draws: np.ndarray) -> None:
        self._draws += map(torch.from_numpy, draws)

    def __call__(self, std: float, reference: Tensor, **_: Any) -> Tensor:
        # the chain adds its noise, Opacus subtracts it
        return -std * self._draws.pop(0).view_as(reference)


def train(
    problem: Problem, weights: Weights, how: DPSGD, methods: list[str], rng: int, expected: float
) -> tuple[np.ndarray, set[int]]:
    """Losses before each step of Opacus and at the end, by the draws of path 0; and the sizes of batches."""
    model, loss, rate = to_torch(weights, problem.activation), LOSSES[problem.loss], how.sample_rate
    x, y, key = torch.tensor(problem.X), torch.tensor(problem.y), noise.key(rng)
    losses, sizes, drawn = [], set(), Drawn()
    assert rate is not None
    for step in range(how.steps * len(methods)):
        # before there are hooks, which count every pass
        losses.append(loss(model(x), y).item())
        phase = methods[step // how.steps]
        model.body.requires_grad_(phase == "fft")
        module = GradSampleModule(model, loss_reduction="sum")
        optimizer = DPOptimizer(
            SGD([p for p in model.parameters() if p.requires_grad], lr=how.learning_rate),
            noise_multiplier=how.noise_multiplier,
            max_grad_norm=how.clip,
            expected_batch_size=expected,  # type: ignore[arg-type]
        )
        rows = torch.from_numpy(np.flatnonzero(members(len(x), rate, 0, step, key)))
        loss(module(x[rows]), y[rows]).backward()
        xi_W, xi_v = noise.weight_noise(key, 0, step, weights.width, weights.dim, weights.outputs_dim)
        drawn.put(*([xi_W] if phase == "fft" else []), xi_v.T.copy())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("opacus.optimizers.optimizer._generate_noise", drawn)
            optimizer.step()
        module.to_standard_module()
        sizes.add(len(rows))
    return np.array([*losses, loss(model(x), y).item()]), sizes


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("methods", [["lp"], ["fft"], ["lp", "fft"]], ids="-".join)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_chain_is_dp_sgd_through_opacus_step_by_step(loss: str, methods: list[Any], rate: float) -> None:
    problem, weights = task(loss)
    how = DPSGD(0.3 / UNIT**2, 0.4, UNIT, STEPS // len(methods), sample_rate=rate, samples=len(X))
    schedule = Schedule([how.phase(method) for method in methods])
    times = how.dt * np.arange(STEPS + 1)
    run = run_schedule(problem, weights, schedule, dt=how.dt, rng=5, times=times)
    found = run.loss.values[0]
    losses, sizes = train(problem, weights, how, methods, 5, rate * len(X))
    np.testing.assert_allclose(found, losses, rtol=1e-10)
    assert np.ptp(losses) > 1
    # controls: other draws, and batches that are not weighted
    other, _ = train(problem, weights, how, methods, 6, rate * len(X))
    assert np.abs(other - losses).max() > 1e-2
    if rate < 1:
        assert len(sizes) > 4
        unweighted, _ = train(problem, weights, how, methods, 5, len(X))
        assert np.abs(unweighted - losses).max() > 1e-2


@pytest.mark.parametrize("loss", [*LOSSES, "huber"])
def test_a_schedule_runs_as_the_full_chain(loss: str) -> None:
    y, weights = (CLASSES, SEVERAL) if loss in ("softmax", "ovr") else (SIGNS, WEIGHTS)
    problem = Problem(X, y, "gelu", loss, HELD_OUT, y)
    rates = Schedule([Phase("lp", 0.1, 0.3, 1.0, sample_rate=0.5), Phase("fft", 0.2, 0.3, 1.0)])
    options: dict[str, Any] = dict(dt=0.01, paths=2, rng=5, times=[0.0, 0.1, 0.3])
    run = run_schedule(problem, weights, rates, **options)
    watched = ["test_accuracy"]
    chain = euler_maruyama(problem, weights, rates, reduce="none", observables=watched, **options)
    assert set(run) == {"loss", "accuracy", "test_accuracy"}
    for name in run:
        assert run[name].dims == ("path", "time")
        np.testing.assert_array_equal(run[name], chain[name])
    assert run.attrs["source"] == "empirical"
    assert json.loads(run.attrs["config"])["reduction"] == "none"
    # one rate for all phases instead
    halved = run_schedule(problem, weights, rates, sample_rate=0.5, **options)
    np.testing.assert_array_equal(halved.loss[:, :2], run.loss[:, :2])
    assert (halved.loss[:, 2] != run.loss[:, 2]).all()


def test_poisson_batches_keep_the_mean_step() -> None:
    problem = Problem(X, SIGNS)
    schedule = Schedule.fft(time=0.001, clip=1.0)
    full = run_schedule(problem, WEIGHTS, schedule, dt=0.001)
    sampled = run_schedule(problem, WEIGHTS, schedule, dt=0.001, sample_rate=0.5, paths=400)
    change = sampled.loss[:, -1].values - sampled.loss[:, 0].values
    error = change.std(ddof=1) / np.sqrt(len(change))
    expected = float(full.loss[0, -1] - full.loss[0, 0])
    # one small step: the loss is linear in it, except for a term of its square
    curvature = expected**2
    assert abs(change.mean() - expected) < 4 * error + curvature
    assert abs(change.mean() - 0.5 * expected) > 4 * error + curvature


@pytest.mark.parametrize("weights", [WEIGHTS, SEVERAL], ids=["scalar", "several"])
def test_weights_go_both_ways(weights: Weights) -> None:
    model = to_torch(weights, "tanh")
    back = from_torch(model)
    np.testing.assert_array_equal(back.W, weights.W)
    np.testing.assert_array_equal(back.v, weights.v)
    outputs = np.tanh(X @ weights.W.T) @ weights.v
    found = model(torch.tensor(X)).detach().numpy()
    np.testing.assert_allclose(found.reshape(outputs.shape), outputs, rtol=1e-12)


@pytest.mark.parametrize(
    "model",
    [
        Classifier(mlp((4,), (3,), bias=True), 1),
        Classifier(mlp((4,), (3, 3), bias=False), 1),
        Classifier(convnet((1, 8, 8), widths=(8,), groups=4), 1),
    ],
    ids=["biases", "depth", "convolutions"],
)
def test_other_networks_are_refused(model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="two-layer network without biases"):
        from_torch(model)


def test_digits_as_a_problem() -> None:
    task = digits()
    problem = problem_of(task, ["3", "8"])
    assert problem.classification
    assert problem.X_test is not None
    assert problem.samples == (np.isin(task.train.labels, [3, 8])).sum()
    # threes and eights are told apart by a linear classifier, if labels and rows belong together
    solution = np.linalg.lstsq(problem.X, problem.y, rcond=None)[0]
    assert problem.y_test is not None
    assert (problem.y_test * (problem.X_test @ solution) > 0).mean() > 0.9
    with pytest.raises(ValueError, match="classes must be two names"):
        problem_of(task, ["3"])


def test_bad_input() -> None:
    problem, schedule = Problem(X, SIGNS), Schedule.lp(time=0.2, sigma=0.3, clip=1.0)
    with pytest.raises(ValueError, match=r"sample_rate must lie in \(0, 1\], got 0"):
        run_schedule(problem, WEIGHTS, schedule, dt=0.01, sample_rate=0)
    with pytest.raises(ValueError, match="paths must be at least 1"):
        run_schedule(problem, WEIGHTS, schedule, dt=0.01, paths=0)
    with pytest.raises(ValueError, match=r"weights\.v must have shape \(h,\)"):
        run_schedule(problem, SEVERAL, schedule, dt=0.01)
    with pytest.raises(Diverged):
        run_schedule(problem, WEIGHTS, Schedule.fft(time=1e9), dt=1e6)
