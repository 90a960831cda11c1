"""Schedules, their grids, and the map between DP-SGD and the diffusion."""

from typing import Any

import numpy as np
import pytest

from langevin import DPSGD, Phase, Problem, Schedule, Weights, gradient_flow
from langevin.model.steps import grid
from tests.helpers import random_problem, random_weights


def test_full_batch_dpsgd_is_euler_maruyama():
    """theta - eta (sum clip(g) + nu C xi) has the drift of a step dt = eta and its noise."""
    dpsgd = DPSGD(learning_rate=0.02, noise_multiplier=3.0, clip=0.7, steps=50)
    phase = dpsgd.phase("fft")
    assert dpsgd.dt == 0.02
    assert phase.time == pytest.approx(1.0)
    assert phase.sigma * np.sqrt(2 * dpsgd.dt) == pytest.approx(0.02 * 3.0 * 0.7)
    assert dpsgd.privacy_carries_over


def test_poisson_dpsgd_has_the_same_mean_step_and_dp_noise():
    """Averaged over batches, against a simulated batch sum."""
    n, q = 40, 0.25
    dpsgd = DPSGD(0.5, 2.0, 0.7, 10, sample_rate=q, samples=n)
    phase = dpsgd.phase("lp")
    assert not dpsgd.privacy_carries_over
    assert phase.sigma * np.sqrt(2 * dpsgd.dt) == pytest.approx(0.5 * 2.0 * 0.7 / (q * n))
    gradients = np.random.default_rng(0).standard_normal((n, 3))
    batches = np.random.default_rng(1).uniform(size=(200_000, n)) < q
    steps = 0.5 / (q * n) * batches @ gradients
    expected = dpsgd.dt * gradients.sum(axis=0)
    error = steps.std(axis=0) / len(steps) ** 0.5
    assert (np.abs(steps.mean(axis=0) - expected) < 4 * error).all()
    # negative control: the full-batch map would be off by n
    assert (np.abs(steps.mean(axis=0) - 0.5 * gradients.sum(axis=0)) > 4 * error).any()


@pytest.mark.parametrize(
    "sampling", [{}, {"sample_rate": 0.1, "samples": 300}, {"sample_rate": 1.0, "samples": 300}]
)
def test_the_map_is_invertible(sampling):
    dpsgd = DPSGD(0.3, 1.7, 0.9, 120, **sampling)
    phase = dpsgd.phase("fft")
    assert phase.sample_rate == sampling.get("sample_rate", 1.0)
    back = DPSGD.from_phase(phase, dt=dpsgd.dt, samples=sampling.get("samples"))
    assert back.learning_rate == pytest.approx(dpsgd.learning_rate)
    assert back.noise_multiplier == pytest.approx(dpsgd.noise_multiplier)
    assert (back.steps, back.clip, back.sample_rate) == (120, 0.9, sampling.get("sample_rate"))


def test_no_map_without_flat_clipping():
    for phase in (Phase("fft", 1.0, 0.1), Phase("fft", 1.0, 0.1, 1.0, "normalised")):
        with pytest.raises(ValueError, match="flat clipping"):
            DPSGD.from_phase(phase, dt=0.1)
    with pytest.raises(ValueError, match="samples must be given"):
        DPSGD(0.1, 1.0, 1.0, 5, sample_rate=0.1)
    with pytest.raises(ValueError, match=r"samples must be given with sample_rate=0\.1, got None"):
        DPSGD.from_phase(Phase("fft", 1.0, 0.1, 1.0, sample_rate=0.1), dt=0.1)


def test_dpsgd_and_its_phase_take_the_same_step():
    """A step of the chain divides the clipped sum of its batch by the rate; see `Phase`."""
    n, q = 40, 0.25
    dpsgd = DPSGD(0.5, 2.0, 0.7, 10, sample_rate=q, samples=n)
    phase = dpsgd.phase("lp")
    rng = np.random.default_rng(0)
    total, xi = rng.standard_normal((2, 5))
    step = dpsgd.learning_rate / (q * n) * (total + dpsgd.noise_multiplier * dpsgd.clip * xi)
    dt = dpsgd.dt
    np.testing.assert_allclose(dt * total / phase.sample_rate + phase.sigma * np.sqrt(2 * dt) * xi, step)
    assert not np.allclose(dt * total + phase.sigma * np.sqrt(2 * dt) * xi, step)


def test_every_constructor_takes_the_fields_of_a_phase():
    kinds: Any = dict(clip=1.0, sigma=0.3, clipping="normalised", stabiliser=0.5, sample_rate=0.2)
    for schedule in (
        Schedule.lp(time=1.0, **kinds),
        Schedule.fft(time=1.0, **kinds),
        Schedule.lp_fft(lp_time=1.0, fft_time=2.0, **kinds),
    ):
        for phase in schedule:
            assert {name: getattr(phase, name) for name in kinds} == kinds
        assert str(schedule).count("normalised clip 1, sample rate 0.2") == len(schedule)
    assert Phase("lp", 1.0).sample_rate == 1.0
    assert "rate" not in str(Phase("lp", 1.0))


@pytest.mark.parametrize("clipping", ["margin", "column"])
def test_the_clipping_of_several_outputs_is_for_linear_probing(clipping):
    assert f"{clipping} clip 1" in str(Phase("lp", 1.0, clip=1.0, clipping=clipping))
    with pytest.raises(ValueError, match=f"clip must be positive with clipping='{clipping}', got None"):
        Phase("lp", 1.0, clipping=clipping)
    message = f"clipping must be 'flat' or 'normalised' with method 'fft', got '{clipping}'"
    with pytest.raises(ValueError, match=message):
        Phase("fft", 1.0, clip=1.0, clipping=clipping)
    with pytest.raises(ValueError, match=message):
        Schedule.lp_fft(lp_time=1.0, fft_time=1.0, clip=1.0, clipping=clipping)
    with pytest.raises(ValueError, match="flat clipping"):
        DPSGD.from_phase(Phase("lp", 1.0, 0.1, 1.0, clipping), dt=0.1)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1])
def test_sample_rates_lie_within_their_range(rate):
    for call in (lambda: Phase("lp", 1.0, sample_rate=rate), lambda: DPSGD(0.1, 1.0, 1.0, 5, rate, 10)):
        with pytest.raises(ValueError, match=r"sample_rate must lie in \(0, 1\], got"):
            call()


def test_lp_fft_omits_empty_phases():
    assert [p.method for p in Schedule.lp_fft(lp_time=0.0, fft_time=1.0)] == ["fft"]
    assert [p.method for p in Schedule.lp_fft(lp_time=1.0, fft_time=0.0)] == ["lp"]
    with pytest.raises(ValueError, match="must be positive"):
        Schedule.lp_fft(lp_time=0.0, fft_time=0.0)


def test_time_in_phases():
    schedule = Schedule([Phase("lp", 0.5), Phase("fft", 1.0), Phase("lp", 0.25)])
    times = np.array([0.0, 0.25, 0.5, 1.0, 1.6, 1.75])
    spent = schedule.time_in(times)
    np.testing.assert_allclose(spent.sum(axis=0), times)
    np.testing.assert_allclose(spent[:, 4], [0.5, 1.0, 0.1])


def test_grid_counts_steps():
    cut = grid(Schedule.lp_fft(lp_time=0.3, fft_time=0.9), 0.1, None)
    assert cut.phase_steps == (3, 9)
    assert cut.phase_starts == (0, 3)
    assert cut.record_steps.tolist() == list(range(13))
    fine = grid(Schedule.lp_fft(lp_time=0.3, fft_time=0.9), 1e-3, [0.1, 0.2])
    assert fine.times.tolist() == [0.1, 0.2]
    with pytest.raises(ValueError, match="dt must be at most the length of each phase"):
        grid(Schedule.lp_fft(lp_time=0.3, fft_time=0.9), 0.7, None)
    with pytest.raises(ValueError, match="one step apart"):
        grid(Schedule.fft(time=1.0), 0.1, [0.1, 0.11])


def test_a_phase_change_falls_on_its_step():
    """Two phases with different clipping: the run equals the two phases run in sequence."""
    problem, weights = random_problem(0), random_weights(0)
    both = Schedule([Phase("fft", 0.3, clip=0.1), Phase("fft", 0.2, clip=3.0)])
    middle = gradient_flow(problem, weights, Schedule([both.phases[0]]), dt=0.1)
    end = gradient_flow(problem, middle, Schedule([both.phases[1]]), dt=0.1)
    np.testing.assert_allclose(gradient_flow(problem, weights, both, dt=0.1).v, end.v, rtol=1e-12)


def test_problem_copies_and_freezes_its_arrays():
    X = np.ones((2, 2))
    problem = Problem(X, [1, -1])
    X[0, 0] = 5
    assert problem.X[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        problem.X[0, 0] = 5
    assert Weights([[1, 2]], [3]).trained_parameters("fft") == 3
    assert Weights([[1, 2]], [3]).trained_parameters("lp") == 1
