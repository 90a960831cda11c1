"""The bounds on the distance with K outputs, and of the chain itself, against the engine."""

from itertools import pairwise

import numpy as np
import pytest

import bounds
from bounds.distance.approximation import KINDS
from bounds.distance.spread import Features, spread
from langevin import euler_maruyama
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from tests.theory import strategies

STEPS, PATHS, TIMES = 64, 200, 9


def run(problem, weights, schedule, dt, times, *, seed=0, paths=PATHS):
    """Mean squared distance to the noise-free chain, and its standard error."""
    found = euler_maruyama(
        problem, weights, schedule, dt=dt, paths=paths, rng=seed, times=times, threads=1
    ).squared_distance.values
    return found.mean(0), found.std(0, ddof=1) / np.sqrt(paths)


def upper(problem, weights, schedule, times, kind, dt=None):
    return bounds.approximation_error(problem, weights, schedule, times, kind=kind, dt=dt)


def case(seed, rates=(1.0,), activation=None):
    rng = np.random.default_rng(seed)
    problem, weights = strategies.several(rng, strategies.CLASSES[seed % 4], activation=activation)
    schedule = strategies.sampled(rng, problem, rates, clip="on")
    return problem, weights, schedule, np.linspace(0, schedule.duration, TIMES)


def check_diffusion(count, refined=4, activation=None):
    ratios = {}
    for seed in range(count):
        problem, weights, schedule, times = case(seed, activation=activation)
        dt = schedule.duration / (refined * STEPS)
        coarse, e0 = run(problem, weights, schedule, 2 * dt, times, seed=seed)
        mean, error = run(problem, weights, schedule, dt, times, seed=seed)
        # the change on halving dt, where it is seen
        bias = np.maximum(np.abs(mean - coarse) - 3 * np.hypot(error, e0), 0)
        for kind in KINDS:
            band = upper(problem, weights, schedule, times, kind)
            assert band.valid.all()
            assert (mean <= band.upper + 4 * error + bias).all(), (kind, seed)
            ratios.setdefault((kind, problem.outputs_dim), []).append(band.upper[-1] / mean[-1])
    return ratios


def check_chain(count):
    ratios, refused = {}, 0
    for seed in range(count):
        problem, weights, schedule, times = case(seed, rates=(1.0, 0.5, 0.2))
        dt = schedule.duration / STEPS
        mean, error = run(problem, weights, schedule, dt, times, seed=seed)
        for kind in KINDS:
            band = upper(problem, weights, schedule, times, kind, dt)
            if not band.valid.all():
                assert "too large: steps of linear probing may drive heads apart" in band.reason
                refused += 1
                continue
            assert (band.times == times).all()
            assert (mean <= band.upper + 4 * error).all(), (kind, seed)
            name = kind, problem.outputs_dim
            ratios.setdefault(name, []).append(band.upper[-1] / mean[-1])
    assert refused < count
    return ratios


def test_the_diffusion():
    # ReLU flows slide along hyperplanes, which takes many steps to integrate
    check_diffusion(20, 2, "linear")


def test_the_chain():
    check_chain(20)


@pytest.mark.slow
def test_the_diffusion_many(tightness):
    for (kind, K), ratios in check_diffusion(200).items():
        tightness(f"1': E||theta - theta~||^2, {kind}, K = {K}", ratios)


@pytest.mark.slow
def test_the_chain_many(tightness):
    for (kind, K), ratios in check_chain(200).items():
        tightness(f"8'd: E||theta - theta~||^2 of the chain, {kind}, K = {K}", ratios)


def inert(K, loss="softmax"):
    """A net whose neurons are active on no sample: its head diffuses freely."""
    X = np.concatenate([np.ones((K, 1)), np.zeros((K, 1))], 1)
    return Problem(X, np.arange(K), "relu", loss), Weights([[-1.0, 0.0], [-1.0, 1.0]], np.ones((2, K)))


@pytest.mark.parametrize("dt", [None, 1 / 16])
def test_probing_attains_the_bound_which_needs_all_outputs_and_the_gauge(dt):
    problem, weights = inert(3)
    schedule = Schedule.lp(time=1.0, sigma=0.5, clip=1.0)
    mean, error = run(problem, weights, schedule, 1 / 16, [0.5, 1.0], paths=4000)
    for kind in ("monotone", "lambert", "ode"):
        found = upper(problem, weights, schedule, [0.5, 1.0], kind, dt).upper
        assert found == pytest.approx(2 * 0.5**2 * 6 * np.array([0.5, 1.0]))
        assert (np.abs(mean - found) <= 4 * error).all()
        # p = h of a scalar head; and h (K - 1), without the gauge
        for wrong in (1 / 3, 2 / 3):
            assert (mean > wrong * found + 4 * error).all()


@pytest.mark.parametrize("kind", KINDS)
def test_fine_tuning_needs_the_noise_of_all_outputs(kind):
    rng = np.random.default_rng(2)
    problem, weights = strategies.several(rng, 10, "ovr", "linear", d=2, h=3)
    schedule = Schedule.fft(time=0.01, sigma=1.0, clip=1e-3)
    mean, error = run(problem, weights, schedule, 1 / 1600, [0.01], paths=2000)
    for dt in (None, 1 / 1600):
        found = upper(problem, weights, schedule, [0.01], kind, dt).upper
        assert mean <= found + 4 * error
        # p = h (d + 1)
        scalar = found * 3 / 12
        assert mean > scalar + 4 * error


def first_step(q, kind, loss="softmax", clip=0.05, method: str = "lp"):
    """Mean squared distance after one step without noise, in which every sample is clipped; and the bound."""
    problem, weights = strategies.several(np.random.default_rng(7), 5, loss, "linear", n=10, d=3, h=4)
    assert (problem.gradient_norms(weights, "lp") > clip).all()
    schedule = Schedule([Phase(method, 0.1, 0.0, clip, sample_rate=q)])  # pyright: ignore[reportArgumentType]
    found = run(problem, weights, schedule, 0.1, [0.1], paths=4000)
    return *found, upper(problem, weights, schedule, [0.1], kind, 0.1).upper


@pytest.mark.parametrize("method", ["lp", "fft"])
@pytest.mark.parametrize("q", [0.1, 0.5])
def test_one_step_attains_the_sampling_noise(q, method):
    mean, error, found = first_step(q, "ode", method=method)
    assert found == pytest.approx(0.1**2 * (1 - q) / q * 10 * 0.05**2)
    assert abs(mean - found) <= 4 * error
    # half the noise, and none, as on full batches
    assert mean > 0.5 * found + 4 * error
    assert first_step(1.0, "ode", method=method)[2] == 0


def test_without_the_sampling_noise_the_bounds_of_probing_are_broken():
    broken = 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        problem, weights = strategies.several(rng, strategies.CLASSES[seed % 4], "softmax", "linear")
        schedule = Schedule.lp(time=1.0, sigma=0.02, clip=0.3, clipping="margin", sample_rate=0.5)
        dt = 1 / 16
        mean, error = run(problem, weights, schedule, dt, [0.25, 1.0], seed=seed)
        both = schedule, schedule.full_batches()
        bands = [upper(problem, weights, one, [0.25, 1.0], "monotone", dt) for one in both]
        if not bands[0].valid.all():
            continue
        assert (mean <= bands[0].upper + 4 * error).all()
        broken += (mean > bands[1].upper + 4 * error).any()
    assert broken >= 12


def test_longer_steps_than_the_condition_break_the_bound():
    """``dt s lambda_max = 2.5``: the noise of each step grows by 1.5 in the next."""
    problem = Problem(np.eye(2), np.eye(2), "linear", "square")
    weights = Weights(np.eye(2), np.zeros((2, 2)))
    for dt, covered in ((2.0, True), (2.5, False)):
        schedule = Schedule.lp(time=8 * dt, sigma=0.1)
        mean, error = run(problem, weights, schedule, dt, [8 * dt], paths=2000)
        band = upper(problem, weights, schedule, [8 * dt], "monotone", dt)
        assert band.valid.all() == covered
        claimed = 2 * 0.1**2 * 4 * 8 * dt
        if covered:
            # steps of 2 keep all noise
            assert band.upper == pytest.approx(claimed)
            assert abs(mean - claimed) <= 4 * error
        else:
            assert "take dt <= 2" in band.reason
            assert mean > claimed + 4 * error


@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize("dt", [None, 1 / 64])
def test_two_outputs_of_softmax_are_one_of_the_logistic_loss(dt, rate):
    if dt is None and rate < 1:
        return
    rng = np.random.default_rng(4)
    problem, weights = strategies.several(rng, 2, "softmax", "linear", n=6, d=3, h=4)
    one = Problem(np.sqrt(2) * problem.X, 2.0 * problem.y - 1, "linear", "logistic")
    head = Weights(weights.W, (weights.v[:, 1] - weights.v[:, 0]) / np.sqrt(2))
    nets = (problem, weights), (one, head)
    schedule = Schedule.lp_fft(lp_time=0.25, fft_time=0.5, sigma=0.3, clip=0.6, sample_rate=rate)
    times = np.array([0.125, 0.25, 0.5, 0.75])
    gauge = 2 * 0.3**2 * 4 * times
    for kind in KINDS:
        two, scalar = (upper(*net, schedule, times, kind, dt).upper for net in nets)
        assert two - gauge == pytest.approx(scalar, rel=1e-6)
        # without the root the inputs are too short
        if kind == "ode":
            short = Problem(problem.X, one.y, "linear", "logistic")
            assert upper(short, head, schedule, times, kind, dt).upper != pytest.approx(scalar, rel=1e-3)
    bands = [bounds.certified_loss(*net, schedule, times, dt=dt) for net in nets]
    assert bands[0].upper == pytest.approx(bands[1].upper, rel=1e-6)
    assert bands[0].lower == pytest.approx(bands[1].lower, rel=1e-6, abs=1e-9)


def test_order_of_the_kinds():
    for seed in range(12):
        problem, weights, _, _ = case(seed)
        for methods in (["lp"], ["fft"], ["lp", "fft"], ["fft", "lp"]):
            schedule = Schedule([Phase(m, 0.5, 0.3, 0.7, sample_rate=0.5) for m in methods])  # pyright: ignore[reportArgumentType]
            t = np.linspace(0, schedule.duration, 17)
            found = [upper(problem, weights, schedule, t, kind, 1 / 32) for kind in KINDS]
            if all(band.valid.all() for band in found):
                for loose, tight in pairwise(found):
                    assert (tight.upper <= loose.upper * (1 + 1e-6)).all()


def test_the_chain_tends_to_the_diffusion():
    problem, weights, _, _ = case(2, activation="linear")
    schedule = Schedule.lp_fft(lp_time=0.25, fft_time=0.5, sigma=0.3, clip=0.6)
    times = [0.25, 0.5, 0.75]
    for kind in KINDS:
        exact = upper(problem, weights, schedule, times, kind).upper
        gaps = [
            np.abs(upper(problem, weights, schedule, times, kind, dt).upper / exact - 1).max()
            for dt in (1 / 64, 1 / 1024)
        ]
        assert gaps[1] <= gaps[0] / 4 + 1e-6


def test_batches_without_steps_are_refused_by_name():
    problem, weights, _, _ = case(0)
    schedule = Schedule([Phase("lp", 1.0, 0.1, 1.0), Phase("fft", 1.0, 0.1, 1.0, sample_rate=0.5)])
    for kind in KINDS:
        band = upper(problem, weights, schedule, [0.5, 1.0, 1.5], kind)
        assert band.valid.tolist() == [True, True, False]
        assert band.reason.startswith("sample_rate=0.5 is not covered, only full batches: give dt")
        assert upper(problem, weights, schedule, [0.5, 1.0, 1.5], kind, 0.25).valid.all()


def test_times_move_to_steps():
    problem, weights, _, _ = case(0)
    schedule = Schedule.lp_fft(lp_time=0.3, fft_time=0.3, sigma=0.1, clip=1.0)
    found = upper(problem, weights, schedule, [0.0, 0.16, 0.31], "ode", 0.1)
    assert found.times == pytest.approx([0.0, 0.2, 0.3])
    assert (found.upper == upper(problem, weights, schedule, [0.0, 0.2, 0.3], "ode", 0.1).upper).all()


def test_sampling_noise_without_bound_is_refused_by_name():
    square = Problem(np.eye(2), np.eye(2), "linear", "square")
    weights = Weights(np.eye(2), np.zeros((2, 2)))
    schedule = Schedule.lp(time=1.0, sigma=0.1, sample_rate=0.5)
    band = upper(square, weights, schedule, [0.0, 1.0], "monotone", 0.1)
    assert band.valid.tolist() == [True, False]
    assert "sample_rate=0.5 adds noise that has no bound" in band.reason
    # residuals of classes have one: sqrt(2) for each sample of norm 1
    softmax = Problem(np.eye(2), [0, 1], "linear", "softmax")
    found = upper(softmax, weights, schedule, [1.0], "monotone", 0.1).upper
    assert found == pytest.approx(2 * 0.1**2 * 4 + 0.1 * 2 * 2)
    mean, error = run(softmax, weights, schedule, 0.1, [1.0])
    assert mean <= found + 4 * error


def test_a_lipschitz_constant_of_k_outputs():
    """Constant 0 is the bound of monotone drift; ``Lambda`` of flat clipping that of the drifting outputs."""
    problem, weights = strategies.several(np.random.default_rng(0), 3, "square", "linear")
    schedule = Schedule.lp(time=1.0, sigma=0.3, clip=0.1)
    zero = bounds.lipschitz_error(problem, weights, schedule, [1.0], constant=0.0).upper
    assert zero == pytest.approx(upper(problem, weights, schedule, [1.0], "monotone").upper)
    classes = Problem(problem.X, np.arange(problem.samples) % 3, "linear", "ovr")
    expansion = spread(Features(classes, weights), schedule.phases[0]).rate / 2
    found = bounds.lipschitz_error(classes, weights, schedule, [0.01], constant=expansion).upper
    assert found == pytest.approx(upper(classes, weights, schedule, [0.01], "monotone").upper)
    assert found > 1.0001 * upper(problem, weights, schedule, [0.01], "monotone").upper
