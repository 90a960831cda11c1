"""The zeroth-order flow when ReLU neurons cross hyperplanes of samples or slide along them."""

from __future__ import annotations

import numpy as np
import pytest

from langevin import Phase, Problem, Schedule, Weights, zeroth_order
from langevin.engine.reductions.choose import reduction
from langevin.engine.reductions.request import Request
from langevin.engine.system import System
from langevin.solvers import adaptive
from langevin.solvers.report import Report
from langevin.solvers.zeroth import gradient_flow
from langevin.support import threads

AIM = 1e-4
# where Filippov's definition leaves a choice, which Euler's steps make in another way
SHARED_AIM = 1e-3
# steps of the reference, Euler's: the limit of its chatter is the slide
STEPS = 50_000
CLIPPINGS = {
    "none": dict(clip=None),
    "flat": dict(clip=1.0),
    "normalised": dict(clip=1.0, clipping="normalised", stabiliser=0.1),
}


def ordinary(seed, loss=None, sizes=(12, 15, 12)):
    """Random data and weights."""
    rng = np.random.default_rng([15, seed])
    n, d, h = (int(rng.integers(1, most)) for most in sizes)
    loss = loss or ("square", "logistic")[seed % 2]
    X = rng.standard_normal((n, d))
    y = rng.choice([-1.0, 1.0], n) if loss == "logistic" else rng.standard_normal(n)
    return Problem(X, y, loss=loss), Weights(rng.standard_normal((h, d)), rng.standard_normal(h))


def a_system(problem, weights, schedule):
    request = Request(problem, weights, schedule, None, noisy=False)
    return System.build(request, reduction("none", request), np.float64)


def end(problem, weights, schedule, rtol=1e-8):
    """Weights where the adaptive solution ends, and its report."""
    times = np.array([schedule.duration])
    system, report = a_system(problem, weights, schedule), Report()
    with threads.one_blas_thread():
        (theta,) = adaptive.follow(system, times, rtol, 1e-10, report)
    W, v = system.layout.unpack(theta)
    return Weights(W.copy(), v.copy()), report


def flat(weights):
    return np.column_stack([weights.W, weights.v]).ravel()


def distance(a, b):
    """Relative, of weights."""
    return np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b))


def reference(problem, weights, schedule):
    """Where Euler's steps end, extrapolated, once halving them changes no more than the aim."""
    long, steps = gradient_flow(problem, weights, schedule, dt=schedule.duration / STEPS), STEPS
    while steps < 16 * STEPS:
        steps *= 2
        short = gradient_flow(problem, weights, schedule, dt=schedule.duration / steps)
        if distance(long, short) < AIM:
            return Weights(2 * short.W - long.W, 2 * short.v - long.v)
        long = short
    raise AssertionError("the reference does not converge")


def check(problem, weights, schedule):
    """The aim is kept, in weights and in loss, or missed as reported; returns the report and the distance."""
    ours, report = end(problem, weights, schedule)
    exact, aim = reference(problem, weights, schedule), SHARED_AIM if report.shared else AIM
    aim = max(aim, 2 * report.error)
    assert distance(ours, exact) < aim
    losses = [problem.losses(problem.outputs(w)).sum() for w in (weights, ours, exact)]
    assert abs(losses[1] - losses[2]) < aim * max(losses)
    return report, distance(ours, exact)


def schedules(kind, seed):
    clip = CLIPPINGS[kind]
    if seed % 2:
        return Schedule([Phase("lp", 0.3, **clip), Phase("fft", 0.7, **clip)])
    return Schedule([Phase("fft", 1.0, **clip)])


@pytest.mark.parametrize("kind", CLIPPINGS)
def test_against_tiny_steps(kind):
    """Both losses, LP before FFT, and each clipping; on most of these problems neurons slide."""
    slides = 0
    for seed in (3, 2, 7):
        report, _ = check(*ordinary(seed), schedules(kind, seed))
        slides += report.slides
    assert slides > 0


def test_a_loss_that_is_called_by_its_address_against_tiny_steps():
    report, _ = check(*ordinary(6, "huber"), schedules("flat", 6))
    assert report.slides > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLIPPINGS)
def test_against_tiny_steps_many(kind):
    met, slid, shared, missed = 0, 0, 0, 0
    for seed in range(100):
        report, _ = check(*ordinary(seed), schedules(kind, seed))
        missed += report.error > AIM
        met += report.crossings + report.slides > 0
        slid += report.slides > 0
        shared += report.shared
    assert met > 50
    assert slid > 25
    assert shared < slid / 4
    assert missed < 3
    assert bool(shared) == (kind != "none")


def latched(problem, weights, time, steps):
    """Euler's steps of a net whose neurons never come back to a sample that they have left: no slides."""
    W, v, h = weights.W.copy(), weights.v.copy(), time / steps
    left = np.zeros((problem.samples, weights.width))
    for _ in range(steps):
        z = problem.X @ W.T
        on, before = (z > 0) & (left < 2), left
        left = np.where((z > 0) & (before == 0), 1, np.where((z <= 0) & (before == 1), 2, before))
        s = problem.residuals(np.where(on, z, 0) @ v)
        pull = (on * s[:, None]).T @ problem.X
        W, v = W - h * v[:, None] * pull, v - h * (np.where(on, z, 0).T @ s)
    return Weights(W, v)


def test_slides_are_not_crossings():
    """Negative control: neurons that cross where they should slide end elsewhere."""
    problem, weights = ordinary(3)
    ours, report = end(problem, weights, Schedule.fft(time=1.0))
    assert report.slides > 3
    assert distance(latched(problem, weights, 1.0, 2000), ours) > 100 * AIM
    # and steps as long as those are seen
    coarse = gradient_flow(problem, weights, Schedule.fft(time=1.0), dt=1 / 2000)
    assert distance(coarse, ours) > AIM


def test_the_estimated_error_is_honest():
    """Not much below the true one, and it falls with ``rtol``."""
    for seed in (2, 3, 6, 7, 9):
        problem, weights = ordinary(seed)
        schedule = schedules("flat" if seed % 2 else "none", seed)
        finest, _ = end(problem, weights, schedule, rtol=1e-11)
        found = [end(problem, weights, schedule, rtol) for rtol in (1e-7, 1e-9)]
        for ours, report in found:
            assert distance(ours, finest) < 5 * report.error
        assert found[1][1].error < 0.2 * found[0][1].error


def test_what_was_done_is_said():
    problem, weights = ordinary(3)
    run = zeroth_order(problem, weights, Schedule.fft(time=1.0))
    assert "Heun" in run.attrs["method"]
    assert run.attrs["slides"] > 0
    assert 0 < run.attrs["estimated_error"] < AIM
    assert 0 < run.attrs["estimated_loss_error"] < AIM * float(run.loss[0])
    euler = zeroth_order(problem, weights, Schedule.fft(time=1.0), dt=0.1)
    assert euler.attrs["method"] == "Euler"


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_where_no_hyperplane_is_met_dop853_alone_is_at_work(activation):
    """To the last bit, on a drift that knows nothing of hyperplanes."""
    from scipy.integrate import DOP853

    from langevin.engine.kernels import descend

    rng = np.random.default_rng(0)
    problem = Problem(np.abs(rng.standard_normal((5, 3))), rng.standard_normal(5), activation, "square")
    weights = Weights(1 + np.abs(rng.standard_normal((4, 3))), 0.1 * np.ones(4))
    schedule = Schedule.fft(time=0.2)
    ours, report = end(problem, weights, schedule)
    assert report.methods == ["DOP853"]
    system = a_system(problem, weights, schedule)
    rule, scratch = system.rule(schedule.phases[0]), system.scratch()

    def drift(t, theta):
        out = np.empty_like(theta)
        descend.drift(theta, out, system.data, rule, scratch)
        return out

    flow = DOP853(drift, 0.0, system.origin.copy(), 0.2, max_step=0.2 / 50, rtol=1e-8, atol=1e-10)
    while flow.status == "running":
        flow.step()
    W, v = system.layout.unpack(flow.dense_output()(0.2))
    assert np.array_equal(W, ours.W)
    assert np.array_equal(v, ours.v)


# --- hyperplanes that decide nothing -----------------------------------------------------------


def on_hyperplanes(seed, count):
    """Random problems whose first neurons start on the hyperplanes of ``count`` samples each."""
    problem, weights = ordinary(seed, sizes=(9, 8, 6))
    while problem.dim <= count + 1 or problem.samples <= count:
        seed += 1000
        problem, weights = ordinary(seed, sizes=(9, 8, 6))
    W, rng = weights.W.copy(), np.random.default_rng(seed)
    for j in range(len(W)):
        met = problem.X[rng.choice(problem.samples, count, replace=False)]
        W[j] -= np.linalg.lstsq(met, met @ W[j], rcond=None)[0]
    return problem, Weights(W, weights.v)


@pytest.mark.parametrize("count", [1, 2])
def test_a_start_on_hyperplanes(count):
    """Where they attract or are crossed; where they repel, both sides are solutions, and rounding chooses."""
    same = 0
    for seed in range(12):
        problem, weights = on_hyperplanes(seed, count)
        schedule = Schedule.fft(time=0.3, clip=1.0 if seed % 3 == 0 else None)
        rng = np.random.default_rng(seed)
        moves = [1e-9 * rng.standard_normal(weights.W.shape) for _ in range(2)]
        ends = [end(problem, Weights(weights.W + move, weights.v), schedule)[0] for move in (0, *moves)]
        if max(distance(e, ends[0]) for e in ends[1:]) < AIM:
            same += 1
            check(problem, weights, schedule)
    assert same >= 3


def test_a_repelling_hyperplane():
    """The neuron starts on it exactly: the ReLU's derivative at 0 is 0, and it stays inactive."""
    problem = Problem([[1.0, 0.0]], [1.0], loss="square")
    for start, right in ((0.0, [0.0, 1.0]), (-1e-9, [-1e-9, 1.0])):
        ours, report = end(problem, Weights([[start, 1.0]], [0.5]), Schedule.fft(time=2.0))
        assert ours.W[0].tolist() == right
        assert report.slides == 0
    away, _ = end(problem, Weights([[1e-9, 1.0]], [0.5]), Schedule.fft(time=30.0))
    assert away.W[0, 0] > 0.5


def test_a_slide_in_closed_form():
    """One neuron, pushed on the hyperplane by a sample and off it by another.

    Along the hyperplane of ``x_2`` the neuron moves by the part of ``x_1`` across ``x_2``.
    """
    x1, x2 = np.array([1.0, 1.0]), np.array([1.0, 0.0])
    problem = Problem([x1, x2], [2.0, -3.0], loss="square")
    weights = Weights([[0.0, 1.0]], [0.5])
    times = np.linspace(0, 1, 11)
    run = zeroth_order(problem, weights, Schedule.fft(time=1.0), times=times)
    # on the plane: w = (0, b), f_1 = v b, f_2 = 0; b' = -v s_1, v' = -b s_1, s_1 = v b - 2
    from scipy.integrate import solve_ivp

    flow = solve_ivp(
        lambda t, u: [-u[1] * (u[0] * u[1] - 2), -u[0] * (u[0] * u[1] - 2)],
        (0, 1), [1.0, 0.5], "LSODA", times, rtol=1e-11, atol=1e-13,
    )  # fmt: skip
    exact = 0.5 * (flow.y[0] * flow.y[1] - 2) ** 2 + 4.5
    np.testing.assert_allclose(run.loss, exact, rtol=1e-5)
    assert run.attrs["estimated_loss_error"] > 0


def test_samples_with_the_same_hyperplane():
    """Copies, negatives and multiples of samples, samples at the origin, neurons without a head."""
    problem, weights = ordinary(2)
    X = np.vstack([problem.X, problem.X[:3], -0.5 * problem.X[2:4], np.zeros((1, problem.dim))])
    y = np.concatenate([problem.y, 0.1 + problem.y[:3], problem.y[:3]])
    v = weights.v.copy()
    v[0] = 0.0
    for clip in (None, 1.0):
        check(Problem(X, y, loss="square"), Weights(weights.W, v), Schedule.fft(time=0.5, clip=clip))


def test_inputs_of_one_dimension():
    """All hyperplanes are the origin, where neurons with a head come to rest or turn."""
    for seed in (50, 51, 52):
        problem, weights = ordinary(seed, sizes=(9, 2, 6))
        report, _ = check(problem, weights, Schedule.fft(time=1.0, clip=1.0))
        assert report.slides < 20


def test_a_neuron_at_the_origin_stays():
    problem, weights = ordinary(2)
    W = weights.W.copy()
    W[0] = 0
    ours, _ = end(problem, Weights(W, weights.v), Schedule.fft(time=0.5))
    assert not ours.W[0].any()


def test_neurons_that_die_are_dead():
    """They come to rest on a hyperplane, up to rounding, which must not decide whether they are active."""
    problem = Problem(np.eye(3), [-1.0, -1.0, -1.0])
    weights = Weights([[0.3, -1.0, -1.0], [-1.0, 0.2, -1.0]], [1.0, 1.0])
    run = zeroth_order(problem, weights, Schedule.fft(time=5.0))
    assert float(run.dead[0]) == 0
    assert float(run.dead[-1]) == 1


def test_a_steep_problem_with_slides():
    """Explicit steps would have to be shorter than 1e-4."""
    problem, weights = ordinary(2)
    steep = Problem(10 * problem.X, problem.y, loss="square")
    ours, report = end(steep, weights, Schedule.fft(time=1.0, clip=1.0))
    assert report.slides > 0
    finest, _ = end(steep, weights, Schedule.fft(time=1.0, clip=1.0), rtol=1e-10)
    assert distance(ours, finest) < AIM
