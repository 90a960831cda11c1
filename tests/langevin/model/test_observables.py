"""Every observable against its definition, written out in NumPy on the states."""

from typing import Any

import numpy as np
import pytest

from langevin import Diverged, Problem, Schedule, Weights, euler_maruyama, gradient_flow, zeroth_order
from langevin.engine.chain import Chain, follow
from langevin.engine.reductions.choose import reduction
from langevin.engine.reductions.request import Request
from langevin.model.alignment import own_class
from langevin.model.observables import OBSERVABLES
from langevin.model.problem import Activation
from langevin.model.steps import grid
from tests.helpers import end_states, random_problem

SCHEDULE = Schedule.lp_fft(lp_time=0.1, fft_time=0.3, sigma=0.3, clip=1.0)
EVERYTHING = [name for name, about in OBSERVABLES.items() if not about.one_output]


def with_test_points(activation: Activation, d: int = 5) -> tuple[Problem, Weights]:
    rng = np.random.default_rng(3)
    base = random_problem(3, n=8, d=d)
    problem = Problem(
        base.X, base.y, activation, "logistic", rng.standard_normal((30, d)), rng.choice([-1.0, 1.0], 30)
    )
    # a neuron that is dead, and one whose head is aligned
    W = rng.standard_normal((7, d)) * 0.5
    W[0] = np.linalg.lstsq(problem.X, -np.ones(8), rcond=None)[0] if d >= 8 else W[0]
    return problem, Weights(W, 0.5 * rng.standard_normal(7))


def expected(problem: Problem, start: Weights, W: np.ndarray, v: np.ndarray) -> dict[str, Any]:
    s = own_class(problem, start.W)
    means = np.array([problem.X[problem.y == label].mean(axis=0) for label in s])
    f = problem.activate(problem.X @ W.T) @ v
    z = problem.X @ W.T
    dead = (z <= 0).all(axis=0) if problem.activation == "relu" else np.zeros(len(v), bool)
    preactivation = (W * means).sum(axis=1)
    assert problem.X_test is not None
    assert problem.y_test is not None
    outputs = problem.activate(problem.X_test @ W.T) @ v
    return {
        "loss": problem.losses(f).sum(),
        "accuracy": (problem.y * f > 0).mean(),
        "displacement": np.sqrt(((W - start.W) ** 2).sum() + ((v - start.v) ** 2).sum()),
        "misaligned": (s * v < 0).mean(),
        "distorted": (preactivation < (start.W * means).sum(axis=1) - 1e-14).mean(),
        "dead": dead.mean(),
        "alignment": preactivation / np.linalg.norm(W, axis=1) / np.linalg.norm(means, axis=1),
        "preactivation": preactivation,
        "head_alignment": s * v,
        "cone_distance": np.where(s * v < 0, abs(v), 0),
        "class_accuracy": [(problem.y * f > 0)[problem.y == label].mean() for label in (-1, 1)],
        "test_accuracy": (problem.y_test * outputs > 0).mean(),
        "test_class_accuracy": [(label * outputs > 0)[problem.y_test == label].mean() for label in (-1, 1)],
    }


@pytest.mark.parametrize("activation", ["relu", "linear"])
@pytest.mark.parametrize("d", [5, 12])
@pytest.mark.parametrize("dt", [0.01, None])
def test_observables_of_the_flow(activation, d, dt):
    problem, weights = with_test_points(activation, d)
    names = [name for name in EVERYTHING if name != "squared_distance"]
    run = zeroth_order(
        problem, weights, SCHEDULE, dt=dt, observables=names, times=[0.0, 0.4], rtol=1e-9, atol=1e-11
    )
    end = gradient_flow(problem, weights, SCHEDULE, dt=0.01 if dt else 1e-5)
    for i, state in enumerate((weights, end)):
        for name, value in expected(problem, weights, state.W, state.v).items():
            tolerance = 1e-12 if dt or i == 0 else 1e-4
            np.testing.assert_allclose(
                run[name].values[i], value, rtol=tolerance, atol=tolerance, err_msg=name
            )
    assert run.own_class.values.tolist() == own_class(problem, weights.W).tolist()


def test_observables_of_the_diffusion():
    problem, weights = with_test_points("relu")
    run = euler_maruyama(
        problem, weights, SCHEDULE, dt=0.01, paths=4, rng=2, observables=EVERYTHING, times=[0.4]
    )
    W, v, coordinates = end_states(problem, weights, SCHEDULE, dt=0.01, paths=4, rng=2)
    assert coordinates.trivial
    still = gradient_flow(problem, weights, SCHEDULE, dt=0.01)
    for path in range(4):
        for name, value in expected(problem, weights, W[path], v[path]).items():
            np.testing.assert_allclose(run[name].values[path, 0], value, rtol=1e-12, err_msg=name)
        distance = ((W[path] - still.W) ** 2).sum() + ((v[path] - still.v) ** 2).sum()
        assert run.squared_distance.values[path, 0] == pytest.approx(distance, rel=1e-12)


@pytest.mark.parametrize("reduce", ["none", "span"])
def test_an_observer_sees_in_a_state_what_the_step_loop_records(reduce):
    problem, weights = with_test_points("relu", 12)
    cut = grid(SCHEDULE, 0.01, [0.4])
    request = Request(problem, weights, SCHEDULE, cut, ["test_accuracy"], noisy=False)
    chain = Chain.build(request, reduction(reduce, request), np.float64).without_noise()
    recorded, observed = (chain.observer.empty(1, per_neuron=True) for _ in range(2))
    (theta,) = follow(chain, recorded)
    chain.observer.watch(0, 0, [theta], recorded)
    end = chain.start(0, 1)
    end.thetas[0] = theta
    chain.observer.observe(0, end, observed, chain.scratch())
    np.testing.assert_allclose(observed.scalars, recorded.scalars, rtol=1e-13)
    np.testing.assert_array_equal(observed.neurons, recorded.neurons)
    assert observed.watched == recorded.watched
    assert np.isfinite(observed.watched["test_accuracy"]).all()


def test_knn_accuracy_sees_the_hidden_features():
    """Classes that only the second input tells apart, and features that see it or do not."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((80, 2)), rng.choice([-1.0, 1.0], 80)
    X[:, 1] = 3 * y
    problem = Problem(X[:40], y[:40], "relu", "logistic", X[40:], y[40:])
    schedule = Schedule.lp(time=0.1)
    arguments = {"observables": ["knn_accuracy"], "times": [0.0], "dt": 0.1}
    seeing = zeroth_order(problem, Weights([[0.0, 1.0], [0.0, -1.0]], [0.0, 0.0]), schedule, **arguments)
    blind = zeroth_order(problem, Weights([[1.0, 0.0], [-1.0, 0.0]], [0.0, 0.0]), schedule, **arguments)
    assert seeing.knn_accuracy[0] == 1
    assert blind.knn_accuracy[0] < 0.8


def test_dead_neurons():
    problem = Problem([[1.0, 0.0], [0.5, 0.0]], [1.0, -1.0])
    weights = Weights([[-1.0, 5.0], [1.0, 0.0]], [1.0, 1.0])
    run = zeroth_order(problem, weights, Schedule.lp(time=0.1), dt=0.1, times=[0.0, 0.1])
    assert run.dead.values.tolist() == [0.5, 0.5]
    # a linear neuron is never dead
    linear = Problem(problem.X, problem.y, activation="linear")
    assert zeroth_order(linear, weights, Schedule.lp(time=0.1), dt=0.1).dead.values.max() == 0


def test_own_class_is_that_of_the_cone():
    from langevin import collapsed_features, orthogonally_separable

    problem = orthogonally_separable(20, 6, rng=1)
    weights = collapsed_features(problem, 9, rng=1)
    assert own_class(problem, weights.W).tolist() == [1, -1, 1, -1, 1, -1, 1, -1, 1]


def test_regression_has_no_classes():
    problem, weights = random_problem(1, loss="square"), Weights(np.ones((2, 4)), np.ones(2))
    run = euler_maruyama(problem, weights, SCHEDULE, dt=0.05, rng=0)
    assert set(run.data_vars) == {"loss", "displacement", "squared_distance"}
    with pytest.raises(ValueError, match="'alignment' needs labels"):
        euler_maruyama(problem, weights, SCHEDULE, dt=0.05, rng=0, observables=["alignment"])


def test_nothing_is_observed_of_a_diverged_path():
    problem = Problem([[1.0]], [1.0], "linear", "square", [[1.0], [2.0]], [1.0, -1.0])
    with pytest.raises(Diverged) as caught:
        euler_maruyama(
            problem,
            Weights([[1.0]], [1.0]),
            Schedule.fft(time=60.0, sigma=0.9),
            dt=0.2,
            paths=100,
            rng=0,
            observables=["test_accuracy", "head_alignment"],
        )
    run = caught.value.run
    lost = np.isnan(run.loss.values)
    assert 0 < lost[:, -1].sum() < 100
    for name in run.data_vars:
        missing = np.isnan(run[name].values)
        if name != "own_class":
            assert (missing.reshape(*lost.shape, -1).any(axis=2) == lost).all(), name
