"""Section 4c': conserved rates of linear nets with K outputs, against the engine's zeroth-order flow."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import bounds
from bounds.distance.flow import span
from bounds.loss import rates
from langevin import zeroth_order
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from tests.theory import strategies
from tests.theory.test_linear_outputs import targets

TIMES = 17


def case(seed):
    """As many outputs as dimensions, or fewer or more; wide nets and nets of few neurons."""
    rng = np.random.default_rng(seed)
    K = strategies.CLASSES[seed % 4]
    d, h = int(rng.integers(1, K + 3)), int(rng.integers(1, K + 8))
    n = max(1, d + int(rng.integers(-2, 5)))
    X = rng.standard_normal((n, d)) * np.exp(rng.uniform(-0.7, 0.3)) / np.sqrt(d)
    W = rng.standard_normal((h, d)) * np.exp(rng.uniform(-2, 0.5)) / np.sqrt(h)
    V = rng.standard_normal((h, K)) * np.exp(rng.uniform(-2, 0.5)) / np.sqrt(h)
    problem = Problem(X, 3 * targets(rng, n, K), "linear", "square")
    return problem, Weights(W, V), strategies.schedule(rng, clip=None, duration=1.0)


def flow(problem, weights, schedule, times):
    """Loss of the flow, and its error as a looser tolerance shows it."""
    fine, coarse = (
        zeroth_order(problem, weights, schedule, times=times, rtol=rtol, atol=rtol / 100).loss.values
        for rtol in (1e-9, 1e-7)
    )
    return fine, np.abs(fine - coarse) + 1e-9 * (1 + fine)


def check(cases):
    ratios = {}
    for seed in range(cases):
        problem, weights, schedule = case(seed)
        times = np.linspace(0, schedule.duration, TIMES)
        band = bounds.conserved_rates(problem, weights, schedule, times)
        assert band.valid.all()
        loss, slack = flow(problem, weights, schedule, times)
        assert band.contains(loss, slack), seed
        if loss[-1] > 1e-9:
            ratios.setdefault(problem.outputs_dim, []).append(band.upper[-1] / loss[-1])
    return ratios


def test_conserved():
    check(20)


@pytest.mark.slow
def test_conserved_many(tightness):
    for K, ratios in check(200).items():
        tightness(f"4c': conserved rates, K = {K}", ratios)


def states(problem, weights, times):
    """First layer (m, h, d) and head (m, h, K) along the flow of full fine-tuning without clipping."""
    X, Y, h = problem.X, problem.targets, weights.width

    def rate(_, rows):
        W, V = np.split(rows.reshape(h, -1), [problem.dim], axis=1)
        U = X.T @ (X @ W.T @ V - Y)
        return -np.hstack([V @ U.T, W @ U]).ravel()

    start = np.hstack([weights.W, weights.v]).ravel()
    solved = solve_ivp(rate, (0, times[-1]), start, "DOP853", t_eval=times, rtol=1e-10, atol=1e-12)
    return np.split(solved.y.T.reshape(len(times), h, -1), [problem.dim], axis=2)


def floors(problem, weights, found, wrong=None):
    """Times at which a floor exceeds the eigenvalue that it bounds: of the first layer, of the head."""
    inside = span(problem, weights)
    target = inside.left.T @ problem.targets / inside.singular[:, None]
    given = rates._floors(inside.W, weights.v, target)
    given = given._replace(**(wrong(given, target) if wrong else {}))
    W, V = found
    u = np.linalg.norm(inside.left.T @ (problem.X @ W.swapaxes(1, 2) @ V - problem.targets), axis=(1, 2))
    W = W @ np.linalg.lstsq(inside.X, problem.X, rcond=None)[0].T
    over = []
    for rows, least, excess, size in (
        (W, given.first, given.plus, given.first_target),
        (V, given.head, given.minus, given.head_target),
    ):
        stated = [max(least, rates._smallest(excess, size - x / inside.singular[-1])) for x in u]
        exact = np.linalg.eigvalsh(rows.swapaxes(1, 2) @ rows)[:, 0]
        over.append((stated > exact + 1e-6).any())
    return over


def check_floors(cases, wrong=None):
    """Instances in which the floor of the first layer or of the head is above the eigenvalue."""
    counts = np.zeros(2, dtype=int)
    for seed in range(cases):
        problem, weights, _ = case(seed)
        counts += floors(problem, weights, states(problem, weights, np.linspace(0, 3, 9)), wrong)
    return counts


def test_the_floors_of_both_layers():
    assert (check_floors(40) == 0).all()
    # the operator norm instead of the K-th, or k-th, singular value
    assert check_floors(40, lambda given, _: {"head_target": given.largest})[1] >= 10
    assert check_floors(40, lambda given, _: {"first_target": given.largest})[0] >= 10
    # without the imbalance
    assert (check_floors(40, lambda *_: {"plus": 0.0, "minus": 0.0}) >= 3).all()


@pytest.mark.parametrize(("clamped", "zero"), [(True, True), (True, False), (False, False)])
def test_an_imbalance_of_negative_sign_says_nothing_of_fewer_neurons_than_dimensions(clamped, zero):
    """One neuron in two dimensions: ``W^T W`` is singular, and the largest eigenvalue of ``D`` is -3.99."""
    problem = Problem(np.eye(2), [[0.3, 0.1], [0.2, 0.1]], "linear", "square")
    weights = Weights([[2.0, 0.0]], [[0.1, 0.0]])

    def given(right, target):
        assert right.plus == right.first_target == 0
        return {
            "plus": 0.0 if clamped else float((weights.v**2).sum() - (weights.W**2).sum()),
            "first_target": 0.0 if zero else float(np.linalg.svd(target, compute_uv=False)[-1]),
        }

    found = states(problem, weights, np.linspace(0, 3, 9))
    assert np.linalg.eigvalsh(found[0].swapaxes(1, 2) @ found[0])[:, 0] == pytest.approx(0, abs=1e-12)
    assert any(floors(problem, weights, found, given)) == (not clamped)


def small_start():
    """A large target and a small one: the small one is learnt last, at its own rate."""
    rng = np.random.default_rng(0)
    return Weights(0.05 * rng.standard_normal((6, 2)), 0.05 * rng.standard_normal((6, 2)))


def balanced_start():
    """All but the large target's last part is learnt: the loss decays at its rate."""
    layer = np.sqrt(np.diag([2.99, 0.1]))
    return Weights(layer, layer)


@pytest.mark.parametrize(
    ("weights", "name", "wrong", "side"),
    [
        (small_start(), "", 0.0, ""),
        (small_start(), "head_target", 3.0, "above"),
        (small_start(), "first_target", 3.0, "above"),
        (balanced_start(), "", 0.0, ""),
        (balanced_start(), "largest", 0.1, "below"),
    ],
)
def test_which_singular_value_counts(monkeypatch, weights, name, wrong, side):
    problem = Problem(np.eye(2), [[3.0, 0.0], [0.0, 0.1]], "linear", "square")
    right, times = rates._floors, np.linspace(0, 6, 25)
    monkeypatch.setattr(rates, "_floors", lambda *a: right(*a)._replace(**({name: wrong} if name else {})))
    schedule = Schedule.fft(time=6.0)
    band = bounds.conserved_rates(problem, weights, schedule, times)
    loss, slack = flow(problem, weights, schedule, times)
    assert (loss > band.upper + slack).any() == (side == "above")
    assert (loss < band.lower - slack).any() == (side == "below")


def test_more_outputs_than_dimensions_leave_the_head_no_floor():
    rng = np.random.default_rng(3)
    for K, d in ((3, 2), (2, 3)):
        W, V = rng.standard_normal((8, d)), 0.1 * rng.standard_normal((8, K))
        given = rates._floors(W, V, rng.standard_normal((d, K)))
        assert (given.head_target == 0) == (d < K)
        assert (given.first_target == 0) == (d > K)
