"""Solvers and reductions run on every entry of the tables of losses and activations, also on new ones."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from langevin import (
    Phase,
    Problem,
    Schedule,
    Weights,
    collapsed_features,
    euler_maruyama,
    gradient_flow,
    orthogonally_separable,
    zeroth_order,
)
from langevin.engine import noise
from langevin.model import activations, losses
from langevin.model.activations import ACTIVATIONS, Activation
from langevin.model.losses import LOSSES, Loss
from tests.helpers import end_states, random_problem, random_weights

LOG_COSH = Loss(
    "log-cosh",
    lambda f, y: np.log(np.cosh(f - y)),
    lambda f, y: np.tanh(f - y),
    lambda f, y: 1 - np.tanh(f - y) ** 2,
    smoothness=1.0,
    largest_residual=1.0,
)
# l(-f, -y) differs from l(f, y)
SLANTED = Loss(
    "slanted", lambda f, y: np.exp(f - y) - f, lambda f, y: np.exp(f - y) - 1, np.exp, 1.0, symmetric=False
)
SOFTPLUS = Activation(
    "softplus", lambda z: np.logaddexp(0.0, z), lambda z: 1 / (1 + np.exp(-z)), lipschitz=1.0
)
LEAKY = Activation(
    "leaky",
    lambda z: np.maximum(z, 0.1 * z),
    lambda z: np.where(z > 0, 1.0, 0.1),
    lipschitz=1.0,
    homogeneous=True,
    smooth=False,
)
# written apart from the tables, and from NumPy
ACTIVATE: dict[str, Any] = {
    "relu": torch.relu,
    "linear": lambda z: z,
    "gelu": torch.nn.functional.gelu,
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
    "leaky": lambda z: torch.nn.functional.leaky_relu(z, 0.1),
}
LOSE: dict[str, Any] = {
    "logistic": lambda f, y: torch.nn.functional.softplus(-y * f),
    "square": lambda f, y: 0.5 * (f - y) ** 2,
    "huber": lambda f, y: torch.nn.functional.huber_loss(f, y, reduction="none"),
    "log-cosh": lambda f, y: torch.log(torch.cosh(f - y)),
}
PAIRS = [
    ("softplus", "log-cosh"),
    ("leaky", "log-cosh"),
    ("relu", "log-cosh"),
    ("linear", "log-cosh"),
    ("linear", "huber"),
    ("gelu", "logistic"),
    ("tanh", "huber"),
    ("relu", "huber"),
]
STEPS = 0.05 * np.arange(7)
CLIPPINGS = [dict(clip=None), dict(clip=0.7), dict(clip=0.7, clipping="normalised", stabiliser=0.2)]


@pytest.fixture(autouse=True)
def registered():
    for loss in (LOG_COSH, SLANTED):
        losses.register(loss)
    for activation in (SOFTPLUS, LEAKY):
        activations.register(activation)
    yield
    for loss in (LOG_COSH, SLANTED):
        del LOSSES[loss.name]
    for activation in (SOFTPLUS, LEAKY):
        del ACTIVATIONS[activation.name]


def drift(problem: Problem, phase: Phase, theta: np.ndarray, h: int) -> np.ndarray:
    """``-sum_i clip(grad l_i)`` at the weights in ``theta``, one backward pass per sample."""
    W = torch.tensor(theta[:-h].reshape(h, -1), requires_grad=True)
    v = torch.tensor(theta[-h:], requires_grad=True)
    total = np.zeros_like(theta)
    for x, y in zip(problem.X, problem.y, strict=True):
        f = v @ ACTIVATE[problem.activation](W @ torch.tensor(x))
        gradients = torch.autograd.grad(LOSE[problem.loss](f, torch.tensor(y)), [W, v])
        g = np.concatenate([part.numpy().ravel() for part in gradients])
        if phase.method == "lp":
            g[:-h] = 0
        norm = np.linalg.norm(g)
        if phase.clip is not None:
            flat = phase.clipping == "flat"
            g *= min(1.0, phase.clip / norm) if flat else phase.clip / (norm + phase.stabiliser)
        total -= g
    return total


def flat(weights: Weights) -> np.ndarray:
    return np.concatenate([weights.W.ravel(), weights.v])


def loss_at(problem: Problem, theta: np.ndarray, h: int) -> float:
    W, v = torch.tensor(theta[:-h].reshape(h, -1)), torch.tensor(theta[-h:])
    f = ACTIVATE[problem.activation](torch.tensor(problem.X) @ W.T) @ v
    return float(LOSE[problem.loss](f, torch.tensor(problem.y)).sum())


def euler(problem: Problem, weights: Weights, schedule: Schedule, dt: float) -> list[float]:
    """Losses of explicit steps."""
    theta, h = flat(weights), weights.width
    found = [loss_at(problem, theta, h)]
    for phase in schedule:
        for _ in range(round(phase.time / dt)):
            theta = theta + dt * drift(problem, phase, theta, h)
            found.append(loss_at(problem, theta, h))
    return found


def start(activation: str, loss: str) -> tuple[Problem, Weights]:
    problem = random_problem(1, n=5, d=7, activation=activation, loss=loss)
    return problem, random_weights(1, h=6, d=7, scale=0.6)


def assert_refused(reduce: str, reason: str, problem: Problem, weights: Weights, method: str = "fft") -> None:
    schedule = getattr(Schedule, method)(time=0.2, sigma=0.1)
    with pytest.raises(ValueError, match=f"{reduce!r} {reason}"):
        euler_maruyama(problem, weights, schedule, dt=0.1, paths=1, rng=0, reduce=reduce)


@pytest.mark.parametrize(("activation", "loss"), PAIRS)
@pytest.mark.parametrize("clipping", CLIPPINGS, ids=["unclipped", "flat", "normalised"])
def test_a_path_without_noise_is_that_of_autograd(activation, loss, clipping):
    """In every reduction that the activation allows, one phase after the other."""
    problem, weights = start(activation, loss)
    for method, reductions in (("lp_fft", ["none", "span"]), ("lp", ["kernel"])):
        times = {"lp_time": 0.1, "fft_time": 0.2} if method == "lp_fft" else {"time": 0.3}
        schedule = getattr(Schedule, method)(**times, **clipping)
        expected = euler(problem, weights, schedule, 0.05)
        for reduce in [*reductions, *(["gram"] if activation == "linear" else [])]:
            run = euler_maruyama(
                problem, weights, schedule, dt=0.05, paths=1, rng=0, reduce=reduce, times=STEPS
            )
            np.testing.assert_allclose(run.loss[0], expected, rtol=1e-10)
            single = euler_maruyama(
                problem,
                weights,
                schedule,
                dt=0.05,
                paths=1,
                rng=0,
                reduce=reduce,
                times=STEPS,
                precision="single",
            )
            np.testing.assert_allclose(single.loss[0], expected, rtol=1e-4)
            if "dead" in run and activation != "relu":
                assert (run.dead == 0).all()
    # negative control: another activation is another run
    other = Problem(problem.X, problem.y, "relu" if activation == "tanh" else "tanh", loss)
    run = euler_maruyama(other, weights, schedule, dt=0.05, paths=1, rng=0, times=STEPS)
    assert np.abs(run.loss[0] / expected - 1).max() > 1e-2


@pytest.mark.parametrize(("activation", "loss"), [("softplus", "log-cosh"), ("gelu", "huber")])
def test_noise_is_added_as_to_any_other(activation, loss):
    problem, weights = start(activation, loss)
    schedule = Schedule.fft(time=0.05, sigma=0.3, clip=1.0)
    W, v, _ = end_states(problem, weights, schedule, dt=0.05, paths=2, rng=4, reduce="none")
    still = gradient_flow(problem, weights, schedule, dt=0.05)
    for path in range(2):
        xi_W, xi_v = noise.weight_noise(noise.key(4), path, 0, weights.width, weights.dim)
        amplitude = 0.3 * np.sqrt(2 * 0.05)
        np.testing.assert_allclose(W[path], still.W + amplitude * xi_W, rtol=0, atol=1e-14)
        np.testing.assert_allclose(v[path], still.v + amplitude * xi_v, rtol=0, atol=1e-14)


@pytest.mark.parametrize("loss", ["huber", "log-cosh"])
@pytest.mark.parametrize("clipping", CLIPPINGS, ids=["unclipped", "flat", "normalised"])
def test_collapsed_nets(loss, clipping):
    y = np.array([1.0, -1.0, 1.0])
    problem = Problem(y[:, None] * np.array([0.6, -0.2, 0.5]), y, "linear", loss)
    weights, schedule = random_weights(2, h=4, d=3), Schedule.fft(time=0.3, **clipping)
    run = euler_maruyama(problem, weights, schedule, dt=0.05, paths=1, rng=0, reduce="collapsed", times=STEPS)
    np.testing.assert_allclose(run.loss[0], euler(problem, weights, schedule, 0.05), rtol=1e-10)
    other = Problem(problem.X, y, "linear", "slanted")
    assert_refused(
        "collapsed", r"needs a loss with l\(-f, -y\) = l\(f, y\), which 'slanted' is not", other, weights
    )


@pytest.mark.parametrize("activation", ["softplus", "gelu", "tanh"])
def test_reductions_for_linear_nets_are_refused(activation):
    problem, weights = start(activation, "huber")
    assert_refused("gram", "needs a linear net", problem, weights)
    assert_refused("collapsed", "needs a linear net", problem, weights)
    assert_refused("blocks", "is for ReLU nets", problem, weights)


def test_blocks_cover_named_losses():
    schedule, times = Schedule.fft(time=0.02, clip=0.5), [0.0, 0.01, 0.02]
    for loss in ("huber", "log-cosh"):
        problem = orthogonally_separable(8, 4, loss=loss, rng=3)
        weights = collapsed_features(problem, 6, rng=1)
        if loss == "huber":
            runs = [
                zeroth_order(problem, weights, schedule, times=times, reduce=r).loss
                for r in ("blocks", "none")
            ]
            np.testing.assert_allclose(runs[0], runs[1], rtol=1e-6)
            assert float(abs(runs[0][-1] - runs[0][0])) > 1e-3
        else:
            with pytest.raises(
                ValueError,
                match="'blocks' is for the losses logistic, square, huber, softmax, ovr, not 'log-cosh'",
            ):
                zeroth_order(problem, weights, schedule, times=times, reduce="blocks")


# where neurons slide along a kink, the other solver evaluates the drift ten thousand times
@pytest.mark.parametrize(
    ("activation", "loss", "clip"),
    [
        pytest.param(
            *pair, clip, marks=[pytest.mark.slow] if (*pair, clip) == ("relu", "huber", None) else []
        )
        for clip in (None, 0.7)
        for pair in PAIRS
        if pair[0] != "leaky"
    ],
)
def test_the_flow_is_that_of_another_solver(activation, loss, clip):
    problem, weights = start(activation, loss)
    schedule = Schedule.lp_fft(lp_time=0.3, fft_time=0.5, clip=clip)
    theta, h = flat(weights), weights.width
    for phase in schedule:
        flow = solve_ivp(
            lambda t, y, phase=phase: drift(problem, phase, y, h),
            (0, phase.time),
            theta,
            rtol=1e-7,
            atol=1e-9,
        )
        theta = flow.y[:, -1]
    ours = zeroth_order(problem, weights, schedule, times=[0.0, 0.8])
    expected = loss_at(problem, theta, h)
    assert abs(float(ours.loss[1]) - expected) < 1e-4 * expected
    # negative control
    assert abs(float(ours.loss[0]) - expected) > 0.02 * expected
    assert ours.attrs["slides"] == 0 or activation == "relu"


def test_kinks_other_than_of_the_relu_need_dt():
    problem, weights = start("leaky", "log-cosh")
    with pytest.raises(ValueError, match="dt must be given with activation 'leaky', got None"):
        zeroth_order(problem, weights, Schedule.fft(time=0.1))
    # features that are frozen have no kinks
    schedule = Schedule.lp(time=0.1)
    ours = zeroth_order(problem, weights, schedule, times=[0.1])
    steps = zeroth_order(problem, weights, schedule, times=[0.1], dt=1e-4)
    assert abs(float(ours.loss[0] / steps.loss[0]) - 1) < 1e-3


def test_a_step_too_long_is_told_by_the_curvature():
    from langevin.solvers.adaptive import stability_limit

    limits = []
    for smoothness in (1.0, 4.0):
        sharp = Loss("sharp", LOG_COSH.value, LOG_COSH.residual, LOG_COSH.curvature, smoothness)
        LOSSES["sharp"] = sharp
        limits.append(stability_limit(*start("softplus", "sharp"), Schedule.fft(time=0.1)))
        del LOSSES["sharp"]
    assert limits[0] == pytest.approx(4 * limits[1])


def test_labels_are_those_that_a_loss_takes():
    X = [[1.0], [2.0]]
    for loss, entry in LOSSES.items():
        if entry.classes:
            with pytest.raises(ValueError, match=r"y must hold class numbers 0 to K - 1, got 0\.3"):
                Problem(X, [0.3, 1.0], loss=loss)
        elif entry.signs:
            with pytest.raises(ValueError, match="y must hold the labels -1 and"):
                Problem(X, [0.3, 1.0], loss=loss)
        else:
            assert not Problem(X, [0.3, 1.0], loss=loss).classification


@pytest.mark.parametrize("name", ["logistic", "square", "huber", "log-cosh"])
def test_what_a_loss_says_of_itself(name):
    loss, f, step = LOSSES[name], np.linspace(-9, 9, 1801), 1e-5
    for y in (-1.0, 1.0) if loss.signs else (-1.0, 0.3, 1.0, 2.7):
        slope = (loss.value(f + step, y) - loss.value(f - step, y)) / (2 * step)
        np.testing.assert_allclose(loss.residual(f, y), slope, atol=1e-4)
        second = (loss.residual(f + step, y) - loss.residual(f - step, y)) / (2 * step)
        smooth = np.abs(np.abs(f - y) - 1) > 2 * step
        np.testing.assert_allclose(loss.curvature(f, y)[smooth], second[smooth], atol=1e-4)
        assert second.max() <= loss.smoothness + 1e-6
        assert second.min() >= -1e-6
        np.testing.assert_allclose(loss.value(-f, -y), loss.value(f, y), rtol=1e-12, atol=1e-12)
        if loss.largest_residual is not None:
            assert np.abs(loss.residual(f, y)).max() <= loss.largest_residual
        if loss.growth is not None:
            largest, bound = (-f * loss.residual(f, y)).max(), float(loss.growth(np.array([y]))[0])
            assert bound - 1e-4 < largest <= bound + 1e-12


@pytest.mark.parametrize("name", ["relu", "linear", "gelu", "tanh", "softplus", "leaky"])
def test_what_an_activation_says_of_itself(name):
    entry, z, step = ACTIVATIONS[name], np.linspace(-5, 5, 1000), 1e-6
    slope = (entry.value(z + step) - entry.value(z - step)) / (2 * step)
    np.testing.assert_allclose(entry.slope(z), slope, atol=1e-7)
    assert np.abs(slope).max() <= entry.lipschitz + 1e-9
    assert np.allclose(entry.value(3 * z), 3 * entry.value(z)) == entry.homogeneous
    kink = np.abs(entry.slope(np.array([1e-9])) - entry.slope(np.array([-1e-9])))[0] > 1e-6
    assert kink != entry.smooth


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="name must be new, got 'log-cosh', which LOSSES has already"):
        losses.register(LOG_COSH)
    with pytest.raises(ValueError, match="name must be new, got 'softplus', which ACTIVATIONS has already"):
        activations.register(SOFTPLUS)


def test_what_numba_cannot_compile_is_named():
    def value(z):
        return np.asarray(sorted(z.tolist()))

    activations.register(Activation("odd", value, value, 1.0))
    try:
        problem, weights = start("odd", "square")
        with pytest.raises(
            TypeError, match="activation 'odd' must be written in elementwise functions that numba"
        ):
            euler_maruyama(problem, weights, Schedule.fft(time=0.1), dt=0.1, paths=1, rng=0)
    finally:
        del ACTIVATIONS["odd"]


def test_commands_and_files_take_them(tmp_path, capsys):
    from langevin import from_file
    from langevin.simulate import main

    X, y = np.array([[1.0, 2.0], [0.5, -1.0], [0.2, 0.1]]), np.array([0.3, -2.0, 1.1])
    np.savez(tmp_path / "data.npz", X=X, y=y)
    assert (from_file(tmp_path / "data.npz", loss="huber").problem.y == y).all()
    common = ["--paths", "1", "--time", "0.01", "--width", "5", "--no-bounds", "--activation", "gelu"]
    for data in ("teacher", str(tmp_path / "data.npz")):
        arguments = ["--data", data, "--loss", "huber", *common, "--out", str(tmp_path / "run.nc")]
        assert main(arguments) == 0
        assert "gelu, huber loss" in capsys.readouterr().out
        (tmp_path / "run.nc").unlink()
    with pytest.raises(SystemExit):
        main(["--data", "teacher", "--loss", "logistic", *common])
    assert "--loss must be 'square' or 'huber'" in capsys.readouterr().err
