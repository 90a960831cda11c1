"""The zeroth-order flow of K outputs when ReLU neurons cross hyperplanes of samples or slide along them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from langevin import Problem, Schedule, Weights, zeroth_order
from langevin.solvers import sliding
from tests.langevin.solvers.test_sliding import AIM, CLIPPINGS, check, distance, end, reference, schedules

LOSSES = ("softmax", "ovr", "square", "huber")
OUTPUTS = (2, 3, 5)


def several(seed, loss, outputs, sizes=(12, 15, 12)):
    """Random data and weights."""
    rng = np.random.default_rng([17, seed, outputs])
    n, d, h = (int(rng.integers(1, most)) for most in sizes)
    n = max(n, outputs)
    X = rng.standard_normal((n, d))
    real = loss in ("square", "huber")
    y = rng.standard_normal((n, outputs)) if real else rng.permutation(np.arange(n) % outputs)
    return Problem(X, y, loss=loss), Weights(rng.standard_normal((h, d)), rng.standard_normal((h, outputs)))


@pytest.mark.parametrize("kind", CLIPPINGS)
def test_against_tiny_steps(kind):
    """Each loss and clipping, LP before FFT; on these problems neurons slide."""
    for loss, outputs, seed in (("softmax", 3, 2), ("ovr", 2, 2), ("square", 3, 2), ("huber", 5, 4)):
        report, _ = check(*several(seed, loss, outputs), schedules(kind, seed))
        assert report.slides > 0


def rounded(problem, weights, key):
    """Data and weights that differ in their last digits."""
    rng = np.random.default_rng(key)
    X, W, v = (a * (1 + 1e-15 * rng.standard_normal(a.shape)) for a in (problem.X, weights.W, weights.v))
    return Problem(X, problem.y, loss=problem.loss), Weights(W, v)


@pytest.mark.parametrize("seed", [8, 30])
def test_rounding_does_not_make_a_resting_neuron_active(seed):
    """A neuron comes to rest on hyperplanes, inactive, one of which repels later."""
    problem, weights = several(seed, "square", OUTPUTS[seed % 3])
    first = None
    for key in range(8):
        ours, report = end(*rounded(problem, weights, key), schedules("none", seed))
        assert report.error < AIM
        first = first or ours
        assert distance(ours, first) < AIM


def test_damping_leaves_slow_weights_alone(monkeypatch):
    """Outputs carried along by slow weights do not decay; steps without damping are the reference."""
    problem, weights = several(56, "square", 5)
    damping, damped = sliding._damping, []

    def watched(*arguments):
        found = damping(*arguments)
        damped.append(found.values.size)
        return found

    monkeypatch.setattr(sliding, "_damping", watched)
    ours, report = end(problem, weights, schedules("none", 56))
    assert any(damped)
    monkeypatch.setattr(sliding, "_damping", lambda problem, net, state, h: damping(problem, net, state, 0.0))
    explicit, other = end(problem, weights, schedules("none", 56))
    assert other.error < report.error < AIM
    assert distance(ours, explicit) < 0.2 * AIM


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLIPPINGS)
def test_against_tiny_steps_many(kind):
    met, slid, shared, missed, passed = 0, 0, 0, 0, 0
    for seed in range(100):
        run = *several(seed, LOSSES[seed // 3 % 4], OUTPUTS[seed % 3]), schedules(kind, seed)
        if end(*run)[1].origins:
            passed += 1
            continue
        report, _ = check(*run)
        missed += report.error > AIM
        met += report.crossings + report.slides > 0
        slid += report.slides > 0
        shared += report.shared
    assert met > 50
    assert slid > 25
    assert shared < slid / 4
    assert missed < 3
    assert passed < 3
    assert bool(shared) == (kind != "none")


def test_a_slide_into_the_origin():
    """All hyperplanes meet there, and the way out is not unique: Euler's steps take another one.

    Both are solutions: each continues from the other's state behind the origin.
    """
    problem, weights = several(86, "softmax", 5)
    assert problem.dim == 2
    before, passing, behind = (Schedule.fft(time=time) for time in (0.26, 0.01, 0.5))
    ours, report = end(problem, end(problem, weights, before)[0], passing)
    assert report.origins == 1
    euler = reference(problem, weights, Schedule.fft(time=0.27))
    assert distance(ours, euler) < AIM
    ends = []
    for start in (ours, euler):
        after, report = end(problem, start, behind)
        assert report.origins == 0
        assert distance(after, reference(problem, start, behind)) < AIM
        ends.append(after)
    assert distance(*ends) > 100 * AIM


def scalar_net(problem, weights, factor):
    """The net of one output that two classes of softmax are, on inputs ``factor x`` (theory, 0')."""
    head = (weights.v[:, 1] - weights.v[:, 0]) / np.sqrt(2)
    return Problem(factor * problem.X, 2 * problem.y - 1.0), Weights(weights.W, head)


@pytest.mark.parametrize("kind", CLIPPINGS)
def test_two_classes_are_the_scalar_net_on_longer_inputs(kind):
    """Along slides, too, in both layers; the control leaves out the factor ``sqrt(2)``."""
    slides = 0
    for seed in range(12):
        problem, weights = several(seed, "softmax", 2)
        ours, report = end(problem, weights, schedules(kind, seed))
        halves = Weights(ours.W, (ours.v[:, 1] - ours.v[:, 0]) / np.sqrt(2))
        scalar, other = end(*scalar_net(problem, weights, np.sqrt(2)), schedules(kind, seed))
        allowed = 2 * (report.error + other.error)
        assert distance(halves, scalar) < allowed < AIM
        np.testing.assert_allclose(ours.v.sum(axis=1), weights.v.sum(axis=1), rtol=1e-12, atol=1e-12)
        wrong, _ = end(*scalar_net(problem, weights, 1.0), schedules(kind, seed))
        assert distance(halves, wrong) > 50 * allowed
        assert report.slides == other.slides
        slides += report.slides
    assert slides > 5


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_slide_in_closed_form(clip):
    """One neuron, pushed on the hyperplane by a sample and off it by another, which it follows.

    On the plane ``w = (0, b)``, ``f_1 = b V`` and ``f_2 = 0``: the second sample moves nothing but the slope.
    """
    first, second, head = np.array([2.0, -1.0]), np.array([-3.0, 1.0]), np.array([0.5, 0.2])
    problem = Problem([[1.0, 1.0], [1.0, 0.0]], [first, second], loss="square")
    times = np.linspace(0, 1, 11)
    run = zeroth_order(
        problem, Weights([[0.0, 1.0]], head[None]), Schedule.fft(time=1.0, clip=clip), times=times
    )

    def along(t, u):
        b, V = u[0], u[1:]
        r = b * V - first
        norm = np.sqrt(b**2 * r @ r + 2 * (V @ r) ** 2)
        factor = min(1.0, (clip or np.inf) / norm)
        return -factor * np.array([V @ r, *(b * r)])

    flow = solve_ivp(along, (0, 1), [1.0, *head], "DOP853", times, rtol=1e-11, atol=1e-13)
    f = flow.y[0] * flow.y[1:]
    exact = 0.5 * ((f - first[:, None]) ** 2).sum(axis=0) + 0.5 * second @ second
    np.testing.assert_allclose(run.loss, exact, rtol=1e-5)
    assert exact[-1] < 0.8 * exact[0]
    assert run.attrs["estimated_loss_error"] > 0


@pytest.mark.parametrize("clip", [None, 1.0])
def test_samples_with_the_same_hyperplane(clip):
    """Copies of other classes, negatives and multiples of samples, samples at the origin, no head."""
    problem, weights = several(2, "softmax", 3)
    X = np.vstack([problem.X, problem.X[:3], -0.5 * problem.X[2:4], np.zeros((1, problem.dim))])
    y = np.concatenate([problem.y, (problem.y[:3] + 1) % 3, problem.y[:3]])
    v = weights.v.copy()
    v[0] = 0.0
    report, _ = check(Problem(X, y, loss="softmax"), Weights(weights.W, v), Schedule.fft(time=0.5, clip=clip))
    assert report.crossings + report.slides > 0


def test_the_estimated_error_is_honest():
    """Not much below the true one, and it falls with ``rtol``."""
    for seed, loss in ((2, "softmax"), (5, "ovr"), (8, "square")):
        problem, weights = several(seed, loss, 3)
        schedule = schedules("flat" if seed % 2 else "none", seed)
        finest, _ = end(problem, weights, schedule, rtol=1e-11)
        found = [end(problem, weights, schedule, rtol) for rtol in (1e-7, 1e-9)]
        for ours, report in found:
            assert distance(ours, finest) < 5 * report.error
        assert found[1][1].error < 0.2 * found[0][1].error


@pytest.mark.parametrize(
    ("loss", "seed", "kind", "factor"),
    [("softmax", 2, "none", 10), ("ovr", 2, "none", 8), ("ovr", 6, "flat", 2)],
)
def test_stiff_flows_take_few_steps(loss, seed, kind, factor, monkeypatch):
    """Long inputs, each with two labels, so that residuals stay; the control leaves out the damping."""
    short, weights = several(seed, loss, 3, (8, 8, 8))
    y = np.concatenate([short.y, np.roll(short.y, 1)])
    problem = Problem(30 * np.vstack([short.X] * 2), y, loss=loss)
    schedule = Schedule.fft(time=1.0, **CLIPPINGS[kind])
    calls, advance, damping = [], sliding.step.advance, sliding._damping

    def counted(*arguments):
        calls.append(arguments)
        return advance(*arguments)

    monkeypatch.setattr(sliding.step, "advance", counted)
    ours, report = end(problem, weights, schedule)
    damped = len(calls)
    # steps that vanish need no damping
    monkeypatch.setattr(sliding, "_damping", lambda problem, net, state, h: damping(problem, net, state, 0.0))
    explicit, other = end(problem, weights, schedule)
    assert distance(ours, explicit) < 2 * (report.error + other.error) < 10 * AIM
    assert factor * damped < len(calls) - damped


def test_what_was_done_is_said():
    problem, weights = several(2, "softmax", 3)
    run = zeroth_order(problem, weights, Schedule.fft(time=1.0))
    assert "Heun" in run.attrs["method"]
    assert run.attrs["slides"] > 0
    assert 0 < run.attrs["estimated_error"] < AIM
    assert 0 < run.attrs["estimated_loss_error"] < AIM * float(run.loss[0])
    euler = zeroth_order(problem, weights, Schedule.fft(time=1.0), dt=1e-4)
    assert euler.attrs["method"] == "Euler"
    np.testing.assert_allclose(euler.loss[-1], run.loss[-1], rtol=1e-2)
