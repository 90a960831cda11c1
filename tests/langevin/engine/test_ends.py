"""Where runs end is where the chain of `euler_maruyama` ends."""

from typing import Any

import numpy as np
import pytest

from langevin import Phase, Problem, Schedule, Weights, euler_maruyama
from langevin.engine import noise
from langevin.engine.ends import Draw, Leg, Net

RNG = np.random.default_rng(7)
X, X_TEST = RNG.standard_normal((11, 5)), RNG.standard_normal((40, 5))
CLASSES, SIGNS = np.arange(40) % 3, np.where(np.arange(40) % 2, 1.0, -1.0)
W, HEAD, SEVERAL = 0.5 * RNG.standard_normal((9, 5)), RNG.standard_normal(9), RNG.standard_normal((9, 3))
DT = 0.02
LP = Leg(Phase("lp", 30 * DT, 0.3, 1.0, sample_rate=0.4), DT)
FFT = Leg(Phase("fft", 40 * DT, 0.3, 1.0, sample_rate=0.4), DT)
COURSES = {"lp": [LP], "fft": [FFT], "lp-fft": [LP, FFT]}


def case(loss: str, activation: str) -> tuple[Problem, np.ndarray]:
    """A problem with held-out points, and a head."""
    several = loss in ("softmax", "ovr")
    y = CLASSES if several else SIGNS
    return Problem(X, y[:11], activation, loss, X_TEST, y), SEVERAL if several else HEAD


def test_a_leg_has_whole_steps():
    assert (LP.steps, FFT.steps) == (30, 40)
    assert LP.pace == Leg(Phase("lp", 7 * DT, 0.3, 1.0, sample_rate=0.4), DT).pace
    assert LP.pace != Leg(LP.phase, 2 * DT).pace
    assert LP.pace != FFT.pace


@pytest.mark.parametrize(("precision", "rtol"), [("double", 1e-11), ("single", 1e-4)])
@pytest.mark.parametrize(
    ("loss", "activation"), [("softmax", "relu"), ("ovr", "gelu"), ("logistic", "linear"), ("huber", "tanh")]
)
def test_runs_end_where_the_chain_ends(loss: str, activation: str, precision: Any, rtol: float):
    problem, v = case(loss, activation)
    net = Net.of(problem, W, precision)
    ends = net.ends(list(COURSES.values()), [Draw(v, noise.key(seed)) for seed in (3, 4)], threads=2)
    for course, losses, accuracies in zip(COURSES.values(), ends.loss, ends.test_accuracy, strict=True):
        schedule = Schedule([leg.phase for leg in course])
        options: dict[str, Any] = dict(dt=DT, times=[schedule.duration], observables=["test_accuracy"])
        how = (problem, Weights(W, v), schedule)
        for seed, found, accuracy in zip((3, 4), losses, accuracies, strict=True):
            run = euler_maruyama(*how, rng=seed, reduce="none", precision=precision, **options)
            assert found == pytest.approx(float(run.loss[0, 0]), rel=rtol)
            assert accuracy == pytest.approx(float(run.test_accuracy[0, 0]))
        # the control: another draw ends elsewhere
        assert abs(losses[0] / losses[1] - 1) > 1e-3


def test_a_run_that_diverges_is_lost_alone():
    problem, v = case("softmax", "relu")
    wild = Leg(Phase("fft", 40e30, sample_rate=0.4), 1e30)
    ends = Net.of(problem, W).ends([[FFT], [wild], [LP, wild]], [Draw(v, (1, 2))], threads=1)
    assert np.isnan(ends.loss[:, 0]).tolist() == [False, True, True]
    assert np.isnan(ends.test_accuracy[:, 0]).tolist() == [False, True, True]


def test_a_run_is_lost_where_held_out_points_leave_the_range():
    problem, v = case("softmax", "relu")
    with np.errstate(over="ignore"):
        far = Net.of(Problem(X, problem.y, "relu", "softmax", 1e38 * X_TEST, problem.y_test), W)
    for net, lost in ((far, True), (Net.of(problem, W), False)):
        ends = net.ends([[FFT]], [Draw(v, (1, 2))], threads=1)
        assert [np.isnan(part.item()) for part in ends] == [lost, lost]


def test_courses_probe_first():
    problem, v = case("softmax", "relu")
    for course in ([], [FFT, LP]):
        with pytest.raises(ValueError, match="courses must hold phases, 'lp' before 'fft'"):
            Net.of(problem, W).ends([course], [Draw(v, (1, 2))], threads=1)


def test_an_error_in_one_draw_ends_all():
    problem, v = case("softmax", "relu")
    tiny = Leg(Phase("fft", 1.0, clip=1e-60), 0.1)
    with pytest.raises(ValueError, match="clip must be larger for this precision"):
        Net.of(problem, W).ends([[tiny]], [Draw(v, (1, 2))] * 3, threads=2)
