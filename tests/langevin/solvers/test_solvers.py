"""The guarantees of a run: the same bits, exact invariants, the theorems, and the time grid."""

import signal
import threading
import warnings

import numpy as np
import pytest
import xarray as xr

import bounds
from langevin import (
    Diverged,
    Interrupted,
    Phase,
    Problem,
    Schedule,
    Weights,
    collapsed_features,
    euler_maruyama,
    gaussian_features,
    gaussian_head,
    gradient_flow,
    linear_teacher,
    orthogonally_separable,
    zeroth_order,
)
from langevin.engine import chain, noise
from tests.helpers import end_states, random_problem, random_weights

SCHEDULE = Schedule.lp_fft(lp_time=0.1, fft_time=0.2, sigma=0.3, clip=1.0)


def small() -> tuple[Problem, Weights]:
    return random_problem(0, n=9, d=5), random_weights(0, h=11, d=5, scale=0.5)


def simulate(**changes) -> xr.Dataset:
    problem, weights = small()
    arguments = {"dt": 0.01, "paths": 13, "rng": 1, "observables": ["alignment", "preactivation"]}
    return euler_maruyama(problem, weights, SCHEDULE, **{**arguments, **changes})


def equal_bits(a: xr.Dataset, b: xr.Dataset) -> bool:
    return all(a[name].values.tobytes() == b[name].values.tobytes() for name in a.data_vars)


@pytest.mark.parametrize("precision", ["double", "single"])
def test_threads_and_chunks_do_not_change_a_bit(monkeypatch, precision):
    base = simulate(threads=1, precision=precision)
    assert equal_bits(base, simulate(threads=2, precision=precision))
    # a tiny call budget cuts paths into chunks of one, and every chunk into calls of one step
    monkeypatch.setattr(chain, "_CALL_SECONDS", 1e-9)
    assert equal_bits(base, simulate(threads=2, precision=precision))


def test_the_number_of_paths_does_not_change_a_path():
    assert equal_bits(simulate(paths=13).isel(path=slice(0, 4)), simulate(paths=4))


def test_another_seed_is_another_run():
    assert not equal_bits(simulate(), simulate(rng=2))


def test_a_path_without_noise_is_the_euler_path_to_the_bit():
    problem, weights = small()
    quiet = Schedule([Phase(p.method, p.time, 0.0, p.clip) for p in SCHEDULE])
    run = euler_maruyama(problem, weights, quiet, dt=0.01, paths=3, rng=0)
    ode = zeroth_order(problem, weights, quiet, dt=0.01)
    for name in ode.data_vars:
        for path in range(3):
            assert run[name][path].values.tobytes() == ode[name].values.tobytes()
    assert (run.squared_distance == 0).all()


def test_a_step_is_what_it_says():
    """theta + b dt + sigma sqrt(2 dt) xi, with the noise that `langevin.engine.noise` names."""
    problem, weights = small()
    schedule = Schedule.fft(time=0.01, sigma=0.3, clip=1.0)
    W, v, _ = end_states(problem, weights, schedule, dt=0.01, paths=2, rng=4, reduce="none")
    still = gradient_flow(problem, weights, schedule, dt=0.01)
    for path in range(2):
        xi_W, xi_v = noise.weight_noise(noise.key(4), path, 0, weights.width, weights.dim)
        amplitude = 0.3 * np.sqrt(2 * 0.01)
        np.testing.assert_allclose(W[path], still.W + amplitude * xi_W, rtol=0, atol=1e-14)
        np.testing.assert_allclose(v[path], still.v + amplitude * xi_v, rtol=0, atol=1e-14)


def test_linear_probing_leaves_the_features():
    problem, weights = small()
    schedule = Schedule.lp(time=0.1, sigma=0.3, clip=1.0)
    W, v, coordinates = end_states(problem, weights, schedule, dt=0.01, paths=2, rng=4)
    assert (coordinates.coordinates(weights.W) == W).all()
    assert (v != weights.v).all()


@pytest.mark.parametrize("activation", ["relu", "linear"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_balancedness_is_conserved_by_the_flow(activation, clip):
    """theory, section 0: v_j^2 - |w_j|^2 is constant; the Euler path keeps it to order dt."""
    problem = random_problem(6, activation=activation)
    weights = random_weights(6, scale=0.5)
    schedule = Schedule.fft(time=0.5, clip=clip)
    balance = lambda w: w.v**2 - (w.W**2).sum(axis=1)  # noqa: E731
    drifts = [
        np.abs(balance(gradient_flow(problem, weights, schedule, dt=0.5 / n)) - balance(weights)).max()
        for n in (1000, 2000)
    ]
    assert drifts[0] / drifts[1] == pytest.approx(2, abs=0.1)
    # the moved amount is far larger: v_j^2 alone is not conserved
    end = gradient_flow(problem, weights, schedule, dt=0.5 / 2000)
    assert np.abs(end.v**2 - weights.v**2).max() > 50 * drifts[1]


def test_theorem_2_2_and_its_sharper_form_hold():
    """E |theta - theta~|^2 <= (sigma sqrt(2pt) + 2nCt)^2; in LP also 2 h sigma^2 t, nearly attained."""
    problem = orthogonally_separable(16, 4, rng=3)
    weights = collapsed_features(problem, 8, rng=3)
    times = np.array([0.1, 0.5, 1.0])
    for schedule in (
        Schedule.lp(time=1.0, sigma=0.3, clip=1.0),
        Schedule.fft(time=1.0, sigma=0.3, clip=1.0),
        Schedule.lp_fft(lp_time=0.5, fft_time=0.5, sigma=0.3, clip=1.0),
    ):
        run = euler_maruyama(problem, weights, schedule, dt=1e-3, paths=1000, rng=2, times=times)
        mean = run.squared_distance.values.mean(axis=0)
        error = run.squared_distance.values.std(axis=0) / 1000**0.5
        for kind in ("paper", "monotone"):
            band = bounds.approximation_error(problem, weights, schedule, times, kind=kind)
            assert band.valid.all()
            assert (mean - 4 * error <= band.upper).all(), (schedule, kind)
    # negative control: where the noise is all there is, half of the LP bound is violated
    free = Problem(np.full((1, 4), 1e-6), [1.0])
    schedule = Schedule.lp(time=1.0, sigma=0.3, clip=1.0)
    run = euler_maruyama(free, weights, schedule, dt=1e-2, paths=1000, rng=2, times=[1.0])
    band = bounds.approximation_error(free, weights, schedule, [1.0], kind="monotone")
    values = run.squared_distance.values[:, 0]
    assert values.mean() == pytest.approx(band.upper[0], abs=4 * values.std() / 1000**0.5)
    assert values.mean() - 4 * values.std() / 1000**0.5 > 0.5 * band.upper[0]


@pytest.mark.parametrize("paths", [1, 4])
def test_shapes_units_and_record(paths):
    problem, weights = small()
    times = [0.0, 0.05, 0.3]
    run = euler_maruyama(
        problem, weights, SCHEDULE, dt=0.01, paths=paths, rng=0, times=times, observables=["head_alignment"]
    )
    assert run.loss.dims == ("path", "time")
    assert run.loss.shape == (paths, 3)
    assert run.head_alignment.dims == ("path", "time", "neuron")
    assert run.time.values.tolist() == times
    assert all("units" in run[name].attrs and "long_name" in run[name].attrs for name in ("loss", "time"))
    assert {"config", "versions"} <= set(run.attrs)
    f = problem.outputs(weights)
    np.testing.assert_allclose(run.loss[:, 0], problem.losses(f).sum(), rtol=1e-13)


def test_times_between_steps_move_to_the_nearest_step():
    problem, weights = small()
    run = euler_maruyama(problem, weights, SCHEDULE, dt=0.01, rng=0, times=[0.004, 0.1049, 0.3])
    np.testing.assert_allclose(run.time, [0.0, 0.10, 0.3])


def test_a_phase_that_is_no_multiple_of_dt_is_said_so():
    problem, weights = small()
    with pytest.warns(UserWarning, match="no multiple of dt"):
        euler_maruyama(problem, weights, Schedule.fft(time=0.105), dt=0.01, rng=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        euler_maruyama(problem, weights, Schedule.fft(time=0.3), dt=0.1, rng=0)


def test_any_sequence_of_phases():
    """FFT, then LP: the features of the second phase are those that the first one left."""
    problem, weights = small()
    schedule = Schedule([Phase("fft", 0.1), Phase("lp", 0.1), Phase("fft", 0.1, clip=0.5)])
    first = gradient_flow(problem, weights, Schedule.fft(time=0.1), dt=0.01)
    second = gradient_flow(problem, first, Schedule.lp(time=0.1), dt=0.01)
    third = gradient_flow(problem, second, Schedule.fft(time=0.1, clip=0.5), dt=0.01)
    whole = gradient_flow(problem, weights, schedule, dt=0.01)
    np.testing.assert_allclose(whole.W, third.W, atol=1e-12)
    np.testing.assert_allclose(whole.v, third.v, atol=1e-12)
    run = euler_maruyama(problem, weights, schedule, dt=0.01, rng=0)
    np.testing.assert_allclose(
        run.displacement[0, -1] ** 2, np.sum((whole.W - weights.W) ** 2) + np.sum((whole.v - weights.v) ** 2)
    )


def test_single_precision_follows_double():
    problem, weights = small()
    arguments = {"dt": 0.01, "paths": 5, "rng": 1}
    double = euler_maruyama(problem, weights, SCHEDULE, **arguments)
    single = euler_maruyama(problem, weights, SCHEDULE, precision="single", **arguments)
    np.testing.assert_allclose(single.loss, double.loss, rtol=1e-4)
    assert not equal_bits(double, single)


def test_divergence_is_named_and_the_rest_is_kept():
    problem, weights = random_problem(0, loss="square"), random_weights(0)
    schedule = Schedule.fft(time=100.0, sigma=0.1)
    with pytest.raises(Diverged, match=r"4 of 4 paths diverged.*at step \d+.*take dt <=") as caught:
        euler_maruyama(problem, weights, schedule, dt=1.0, paths=4, rng=0)
    run = caught.value.run
    assert run is not None
    assert np.isfinite(run.loss[:, 0]).all()
    assert np.isnan(run.loss[:, -1]).all()
    with pytest.raises(Diverged, match="diverged"):
        zeroth_order(problem, weights, schedule, dt=1.0)


def test_a_path_of_a_thousand_million_steps_can_be_interrupted():
    problem, weights = small()
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt) as caught:
        zeroth_order(problem, weights, Schedule.fft(time=1000.0, clip=1.0), dt=1e-6, times=[1000.0])
    assert not isinstance(caught.value, Interrupted)


def test_only_diverging_paths_are_lost():
    """At the edge of stability some paths escape: the others are complete."""
    problem = Problem([[1.0]], [0.0], activation="linear", loss="square")
    weights = Weights([[1.0]], [1.0])
    with pytest.raises(Diverged) as caught:
        euler_maruyama(problem, weights, Schedule.fft(time=60.0, sigma=0.9), dt=0.2, paths=200, rng=0)
    assert caught.value.run is not None
    lost = np.isnan(caught.value.run.loss.values[:, -1])
    assert 0 < lost.sum() < 200
    assert np.isfinite(caught.value.run.loss.values[~lost]).all()


@pytest.mark.parametrize(("time", "dt"), [(0.7, 1e-3), (0.1, 1e-4), (1.5, 1e-3)])
def test_default_times_are_those_of_the_zeroth_order_path(time, dt):
    """Else xarray would drop most of them from a difference."""
    problem = Problem([[1.0]], [1.0])
    weights, schedule = Weights([[1.0]], [1.0]), Schedule.fft(time=time, sigma=0.1, clip=1.0)
    run = euler_maruyama(problem, weights, schedule, dt=dt, rng=0)
    assert (run.loss - zeroth_order(problem, weights, schedule).loss).sizes["time"] == 101
    assert (run.loss - zeroth_order(problem, weights, schedule, dt=dt).loss).sizes["time"] == 101


def test_equal_seeds_do_not_make_equal_numbers():
    """Data, features, head and noise of one seed are independent of each other."""
    teacher = linear_teacher(20, 6, noise=0, rng=0)
    beta = np.linalg.lstsq(teacher.X, teacher.y, rcond=None)[0]
    W, v = gaussian_features(64, 6, rng=0), gaussian_head(64, rng=0)
    cosine = lambda a, b: abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    assert max(cosine(beta, w) for w in W) < 0.99
    assert cosine(v, W.ravel()[:64]) < 0.5
    assert cosine(gaussian_head(64, rng=1), W.ravel()[:64]) < 0.5


def test_what_lies_outside_the_span_follows_the_fine_grid():
    """Without drift, runs of different dt on one Brownian path end at the same place."""
    problem = Problem([[1e-9, 0.0, 0.0]], [1.0])
    weights, schedule = Weights(np.zeros((4, 3)), np.zeros(4)), Schedule.fft(time=0.4, sigma=0.5, clip=1.0)
    ends = [
        euler_maruyama(
            problem, weights, schedule, dt=dt, noise_dt=0.01, paths=5, rng=0, times=[0.2, 0.4]
        ).squared_distance.values
        for dt in (0.01, 0.02, 0.1)
    ]
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-6)
    np.testing.assert_allclose(ends[2], ends[0], rtol=1e-6)
    other = euler_maruyama(problem, weights, schedule, dt=0.02, paths=5, rng=0, times=[0.2, 0.4])
    assert np.abs(other.squared_distance.values / ends[0] - 1).max() > 0.01
