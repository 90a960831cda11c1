"""The zeroth-order flow of K outputs that the bounds integrate, against the definition and the engine."""

import numpy as np
import pytest

import bounds
from bounds.distance.flow import Flow
from langevin import euler_maruyama, zeroth_order
from langevin.model.schedule import Phase, Schedule
from tests.theory import reference, strategies


@pytest.mark.parametrize("activation", ["relu", "linear"])
@pytest.mark.parametrize("loss", ["softmax", "ovr", "square"])
def test_the_drift_is_that_of_the_definition(loss, activation):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        problem, weights = strategies.several(rng, strategies.CLASSES[seed % 4], loss, activation)
        own = {"softmax": ["margin"], "ovr": ["column"]}.get(loss, [])
        clip = float(np.exp(rng.uniform(-2, 1)))
        phases = [Phase("lp", 1.0), Phase("fft", 1.0)]
        phases += [
            Phase(method, 1.0, clip=clip, clipping=name)  # pyright: ignore[reportArgumentType]
            for method, names in (("lp", ["flat", "normalised", *own]), ("fft", ["flat", "normalised"]))
            for name in names
        ]
        flow = Flow(problem, weights)
        basis = np.linalg.lstsq(flow.X, problem.X, rcond=None)[0]
        for phase in phases:
            dW, dV = flow.drift(flow.W, flow.v, phase)
            stated = reference.drift_outputs(problem, weights.W[None], weights.v[None], phase)
            # in coordinates of the span, and without rounding in what is centred
            assert dV == pytest.approx(stated[1][0], rel=1e-9, abs=1e-12)
            if phase.method == "fft":
                assert dW is not None
                assert dW @ basis == pytest.approx(stated[0][0], rel=1e-9, abs=1e-12)
        norms = problem.gradient_norms(weights, "fft")
        assert (norms > clip).sum() > 0 or clip > norms.max()


def case(seed):
    rng = np.random.default_rng(seed)
    problem, weights = strategies.several(rng, strategies.CLASSES[seed % 4], activation="linear")
    return problem, weights, strategies.sampled(rng, problem, clip="on", sigma=0.0, duration=1.0)


def test_without_noise_the_interval_is_the_loss_of_the_chain():
    for seed in range(12):
        problem, weights, schedule = case(seed)
        times, dt = [0.0, 0.5, 1.0], 1 / 64
        band = bounds.certified_loss(problem, weights, schedule, times, dt=dt)
        run = euler_maruyama(problem, weights, schedule, dt=dt, times=times, threads=1)
        assert band.lower == pytest.approx(run.loss.values[0], rel=1e-9)
        # of the square loss in fine-tuning, the last term above does not vanish with the noise
        if problem.loss != "square":
            assert band.upper == pytest.approx(band.lower, rel=1e-9)


def test_without_noise_the_interval_is_the_loss_of_the_flow():
    for seed in range(6):
        problem, weights, schedule = case(seed)
        times = [0.0, 0.5, 1.0]
        band = bounds.certified_loss(problem, weights, schedule, times)
        run = zeroth_order(problem, weights, schedule, times=times)
        assert band.lower == pytest.approx(run.loss.values, rel=1e-4)
        coarse = bounds.certified_loss(problem, weights, schedule, times, dt=1 / 16)
        assert coarse.lower[1:] != pytest.approx(run.loss.values[1:], rel=1e-4)


def test_a_number_added_to_all_outputs_is_left_out():
    problem, weights = strategies.several(np.random.default_rng(0), 3, "softmax", "linear")
    shifted = type(weights)(weights.W, weights.v + 5.0)
    schedule = Schedule.lp_fft(lp_time=0.25, fft_time=0.25, sigma=0.1, clip=0.5)
    found = [
        bounds.approximation_error(problem, w, schedule, [0.5], kind="ode").upper for w in (weights, shifted)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    state = Flow(problem, shifted).state()
    assert state.v == pytest.approx(weights.v - weights.v.mean(1, keepdims=True))
    assert state.squared_norm == pytest.approx((shifted.W**2).sum() + (shifted.v**2).sum())
