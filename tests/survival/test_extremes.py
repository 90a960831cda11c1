"""Extreme problems and schedules: every solver, reduction and bound works, or refuses by name."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bounds
from langevin import DPSGD, Diverged, Phase, Problem, Schedule, Weights, euler_maruyama, zeroth_order
from tests.helpers import random_problem, random_weights
from tests.survival import cases
from tests.survival.outcomes import TRIALS, Finding, attempt, finite, ours


def survives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = cases.draw(rng)
    for name, call in (cases.solvers(case, rng) | cases.theorems(case, rng)).items():
        try:
            finite(attempt(call)[0], name)
        except Finding as finding:
            raise Finding(f"{name} of {case}: {finding}") from finding


@given(st.integers(0, 2**32))
@settings(max_examples=8 * TRIALS)
def test_random_cases(seed):
    survives(seed)


@pytest.mark.slow
@given(st.integers(0, 2**32))
@settings(max_examples=300)
def test_more_random_cases(seed):
    survives(seed)


SAME = Problem(np.ones((4, 3)), [1, -1, 1, -1])
SCHEDULE = Schedule.lp_fft(lp_time=0.1, fft_time=0.2, sigma=0.3, clip=1.0)
NAMED = {
    "no noise": (random_problem(0), random_weights(0), Schedule.fft(time=0.2, clip=1.0)),
    "sigma 1e6": (random_problem(0), random_weights(0), Schedule.lp(time=0.2, sigma=1e6, clip=1.0)),
    "clip 1e-300": (random_problem(0), random_weights(0), Schedule.fft(time=0.2, sigma=0.3, clip=1e-300)),
    "one sample, one neuron": (Problem([[2.0]], [1]), Weights([[1.0]], [1.0]), SCHEDULE),
    "1e5 inputs": (random_problem(0, 2, 10**5), random_weights(0, 2, 10**5), SCHEDULE),
    "equal samples": (SAME, random_weights(0, d=3), SCHEDULE),
    "samples of 0": (Problem(np.zeros((3, 3)), [1, -1, 1]), random_weights(0, d=3), SCHEDULE),
    "one class": (Problem(random_problem(0).X, np.ones(7)), random_weights(0), SCHEDULE),
    "weights of 1e150": (random_problem(0), random_weights(0, scale=1e150), SCHEDULE),
    "weights of 1e-150": (random_problem(0), random_weights(0, scale=1e-150), SCHEDULE),
}


@pytest.mark.parametrize("times", [[0.0], [0.2], [0.0, 0.2]], ids=str)
@pytest.mark.parametrize("name", NAMED)
def test_named_cases(name, times):
    problem, weights, schedule = NAMED[name]
    case, rng = cases.Case(problem, weights, schedule, 0.05, times), np.random.default_rng(0)
    for called, call in (cases.solvers(case, rng) | cases.theorems(case, rng)).items():
        finite(attempt(call)[0], called)


@pytest.mark.parametrize("name", [name for name in NAMED if name != "weights of 1e150"])
def test_the_simulation_itself_works_on_them(name):
    problem, weights, schedule = NAMED[name]
    run = euler_maruyama(problem, weights, schedule, dt=0.05, paths=2, rng=0)
    assert np.isfinite(run.loss).all()


def test_a_step_longer_than_a_phase_is_refused():
    with pytest.raises(ValueError, match="dt must be at most the length of each phase"):
        euler_maruyama(random_problem(0), random_weights(0), SCHEDULE, dt=0.3, rng=0)


def test_phases_of_no_length_are_left_out_or_refused():
    assert [phase.method for phase in Schedule.lp_fft(lp_time=0.0, fft_time=1.0)] == ["fft"]
    with pytest.raises(ValueError, match=r"time must be positive, got 0.0"):
        Phase("lp", 0.0)


@pytest.mark.parametrize("target", [1e160, -1e300])
def test_a_loss_out_of_range_is_divergence_and_no_curve(target):
    """Outputs are finite there, and their square is not."""
    problem = Problem([[1.0]], [target], loss="square")
    weights, schedule = Weights([[1.0]], [1.0]), Schedule.lp(time=0.1)
    for call in (
        lambda: euler_maruyama(problem, weights, schedule, dt=0.1, rng=0),
        lambda: zeroth_order(problem, weights, schedule, dt=0.1),
        lambda: zeroth_order(problem, weights, schedule),
    ):
        with pytest.raises(Diverged) as caught:
            call()
        assert not np.isinf(caught.value.run.loss).any()


@pytest.mark.slow
def test_a_stiff_flow_ends():
    """Linear probing on features of 1e6: explicit steps of 1e-12 would take for ever."""
    problem = Problem([[1e6, 0.0], [0.0, 1.0]], [1, -1], loss="square")
    weights, schedule = Weights([[1.0, 1.0]], [0.1]), Schedule.lp(time=1.0)
    run = zeroth_order(problem, weights, schedule, times=[1.0], reduce="none")
    # v = 1e-6, up to 1e-12
    assert float(run.loss[0]) == pytest.approx(0.5, rel=1e-5)
    assert "LSODA" in run.attrs["method"]
    with pytest.raises(ArithmeticError, match="too stiff"):
        bounds.certified_loss(problem, weights, schedule)


def test_an_error_of_anothers_making_is_a_finding():
    """Negative control."""
    with pytest.raises(Finding, match="IndexError"):
        attempt(lambda: [][0])
    with pytest.raises(Finding, match="it hangs"):
        attempt(lambda: [None for _ in iter(int, 1)], seconds=0.1)
    with pytest.raises(Finding, match="not finite"):
        finite(euler_maruyama(random_problem(0), random_weights(0), SCHEDULE, dt=0.1, rng=0) * np.inf)
    with pytest.raises(ValueError, match="time") as caught:
        Phase("lp", -1.0)
    assert ours(caught.value)


def test_steps_beyond_count_are_named():
    problem, weights = random_problem(0), random_weights(0)
    schedule = Schedule.fft(time=1.0, sigma=0.5, clip=1.0)
    tiny = 5e-324
    for call, message in (
        (lambda: euler_maruyama(problem, weights, schedule, dt=tiny), "dt must give fewer than 2^32 steps"),
        (lambda: zeroth_order(problem, weights, schedule, dt=tiny), "dt must give fewer than 2^32 steps"),
        (lambda: DPSGD.from_phase(schedule.phases[0], dt=tiny), "dt must give fewer than 2^32 steps"),
        (
            lambda: euler_maruyama(problem, weights, schedule, dt=0.1, noise_dt=tiny),
            "dt must be a whole multiple of noise_dt",
        ),
        (lambda: bounds.norm_tail(problem, weights, schedule, tiny, 4.0), "time must leave noise"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
    how: dict[str, Any] = dict(weight_decay=1.0, sigma=5.0, clip=1.0, lp_time=2.0)
    limit = bounds.last_iterate_gdp(**how)
    assert bounds.last_iterate_gdp(**how, dt=tiny, smoothness=2.0) == limit
    assert bounds.last_iterate_gdp(**how, dt=1e-9, smoothness=2.0) == pytest.approx(limit, rel=1e-8)
