"""Section 5: expected losses of the diffusion itself against simulated chains."""

from itertools import count
from typing import Any

import numpy as np
import pytest

import bounds
from bounds.loss import fine_tuning
from langevin.model.losses import OMEGA
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from tests.theory import reference, strategies

PATHS = 600


def simulated(problem, weights, schedule, times, seed, paths=PATHS, parts=256):
    """Mean loss, its standard error, and the change on halving dt."""
    found = []
    for steps in (parts // 2, parts):
        run = reference.chain(problem, weights, schedule, schedule.duration / steps, paths, seed, times)
        found.append(reference.mean_and_error(run.losses(problem)))
    (coarse, e0), (mean, error) = found
    return mean, error, 2 * np.maximum(np.abs(mean - coarse) - 3 * np.hypot(error, e0), 0)


def probing_case(seed):
    rng = np.random.default_rng(seed)
    problem, weights = strategies.general(rng, loss="square")
    sigma = float(np.exp(rng.uniform(-2, 0)))
    schedule = Schedule([Phase("lp", 0.5, sigma), Phase("lp", 0.5, 0.5 * sigma)])
    # steps well inside stability
    top = np.linalg.norm(problem.features(weights.W), 2) ** 2
    scale = min(1.0, np.sqrt(10 / max(top, 1e-9)))
    return problem, Weights(weights.W * scale, weights.v), schedule


def check_probing(seeds, control=False):
    times = [0.25, 0.5, 1.0]
    for seed in seeds:
        problem, weights, schedule = probing_case(seed)
        band = bounds.lp_expected_loss(problem, weights, schedule, times)
        head = bounds.lp_expected_head(problem, weights, schedule, times)
        run = reference.chain(problem, weights, schedule, 1 / 512, PATHS, seed, times)
        coarse = reference.chain(problem, weights, schedule, 1 / 256, PATHS, seed, times)
        for exact, of in ((band, lambda r, p=problem: r.losses(p)), (head, lambda r: (r.v**2).sum(-1))):
            mean, error = reference.mean_and_error(of(run))
            rough, rough_error = reference.mean_and_error(of(coarse))
            bias = 2 * np.maximum(np.abs(mean - rough) - 3 * np.hypot(error, rough_error), 0)
            # first-order bias in dt: a constant times dt, here from the step and the largest rate
            slack = 4.5 * error + bias + 0.02 * np.abs(exact.upper)
            assert (np.abs(mean - exact.upper) <= slack).all(), seed
            assert (exact.upper == exact.lower).all()


def test_probing_is_exact():
    check_probing(range(8))


@pytest.mark.slow
def test_probing_is_exact_many():
    check_probing(range(200))


def test_probing_wrong_noise_is_seen():
    problem = Problem(np.eye(3), [1.0, -1.0, 0.5], "linear", "square")
    weights = Weights(np.eye(3), np.zeros(3))
    run = reference.chain(problem, weights, Schedule.lp(time=1.0, sigma=0.5), 1 / 256, 4000, 0, [1.0])
    mean, error = reference.mean_and_error(run.losses(problem))
    for sigma, close in ((0.5, True), (0.5 * 2 / 3, False), (0.5 * 3 / 2, False)):
        exact = bounds.lp_expected_loss(problem, weights, Schedule.lp(time=1.0, sigma=sigma), [1.0]).upper
        assert bool(np.abs(mean - exact)[0] <= 4 * error[0] + 4e-3 * exact[0]) == close


def fft_case(seed, clipped=False):
    rng = np.random.default_rng(seed)
    n, d, h = int(rng.integers(1, 5)), int(rng.integers(1, 4)), int(rng.integers(3, 8))
    X = rng.standard_normal((n, d))
    y = rng.standard_normal(n)
    W = rng.standard_normal((h, d)) * np.exp(rng.uniform(-0.5, 0.8))
    v = rng.standard_normal(h) * np.exp(rng.uniform(-4, -1))
    sigma = float(np.exp(rng.uniform(-5, -1)))
    scale = max(np.linalg.norm(X, 2) * np.linalg.norm(W, 2) / 4, 1.0)
    clip = float(np.exp(rng.uniform(0, 5))) if clipped else None
    schedule = Schedule.fft(time=float(np.exp(rng.uniform(-1, 0.5))), sigma=sigma, clip=clip)
    return Problem(X / scale, y, "linear", "square"), Weights(W, v), schedule


def check_fft(seeds):
    ratios = []
    for seed in seeds:
        problem, weights, schedule = fft_case(seed, clipped=seed % 3 == 0)
        times = np.linspace(0, schedule.duration, 5)
        band = bounds.fft_expected_loss(problem, weights, schedule, times)
        assert band.valid.all()
        mean, error, bias = simulated(problem, weights, schedule, times, seed, paths=200)
        assert (mean <= band.upper + 4 * error + bias + 1e-12).all(), seed
        assert (mean >= band.lower - 4 * error - bias - 1e-12).all(), seed
        norms = bounds.expected_norm(problem, weights, schedule, times).upper
        run = reference.chain(problem, weights, schedule, schedule.duration / 128, 200, seed, times)
        size, size_error = reference.mean_and_error((run.W**2).sum((-1, -2)) + (run.v**2).sum(-1))
        assert (size <= norms + 4 * size_error + 0.02 * norms).all(), seed
        ratios.append(band.upper[-1] / mean[-1])
    return ratios


def test_fft_bound_holds():
    assert min(check_fft(range(9))) < 2


def check_localised(usable):
    ratios = []
    for seed in count():
        if len(ratios) >= usable:
            break
        problem, weights, schedule = fft_case(seed)
        times = np.linspace(0, schedule.duration, 129)
        band = bounds.localised_loss(problem, weights, schedule, times)
        if not band.valid.any():
            continue
        run = reference.chain(problem, weights, schedule, schedule.duration / 128, 400, seed, times)
        U, s, Vt = np.linalg.svd(problem.X, full_matrices=False)
        k = int((s > 1e-10).sum())
        W, v2 = run.W @ Vt[:k].T, (run.v**2).sum(-1)
        floor = np.linalg.eigvalsh(W.swapaxes(-1, -2) @ W)[..., 0] + v2
        trace = ((W * s[:k]) ** 2).sum((-1, -2)) + v2 * (s**2).sum()
        inside = (floor >= floor[0, 0] / 2) & (trace <= 2 * trace[0, 0])
        alive = np.logical_and.accumulate(inside, axis=0)
        rest = U[:, :k] @ (U[:, :k].T @ problem.y) - problem.y
        excess = np.where(alive, run.losses(problem) - 0.5 * rest @ rest, 0.0)
        mean, error = reference.mean_and_error(excess)
        step = schedule.duration / 128 * trace[0, 0] * 2
        assert (mean <= band.upper * (1 + step) + 4 * error + 1e-12).all(), seed
        if mean[-1] > 0:
            ratios.append(band.upper[-1] / mean[-1])
    return ratios


def test_localised():
    check_localised(8)


@pytest.mark.slow
def test_fft_many(tightness):
    tightness("5c: E L, unconditional", check_fft(range(200)))
    tightness("5b: localised", check_localised(200))


def test_fft_bound_is_sharp_for_small_noise():
    # orthonormal data at small noise: the bound is near exp(-2 lambda t)
    problem = Problem(np.eye(2), [0.05, -0.05], "linear", "square")
    weights = Weights(2 * np.eye(2), [0.0, 0.0])
    schedule = Schedule.fft(time=0.2, sigma=1e-4)
    band = bounds.fft_expected_loss(problem, weights, schedule, [0.1, 0.2])
    mean, error, bias = simulated(problem, weights, schedule, [0.1, 0.2], 0, paths=100)
    assert (mean <= band.upper + 4 * error + bias).all()
    assert (mean > 0.8 * band.upper).all()


def former_floor(top, kappa, reach, t, *, sigma, width, outputs):
    """5c(ii): without the neurons beyond the dimension, ``width``."""
    k, eta = len(top), 2 * reach / kappa
    logs = [
        # the function's own smallest number
        np.maximum(np.logaddexp.reduce(q * np.log(kappa[..., None] / top), axis=-1), np.log(1e-300))
        + sigma**2 * q * t / kappa * ((1 + eta) * (q + 1) * (2 * k + 2) - 2 * (k - outputs))
        for q in fine_tuning.POWERS
    ]
    return np.exp(np.minimum(np.min(logs, axis=0), 700))


def test_neurons_beyond_the_dimension_hold_the_floor_up(monkeypatch):
    """As many neurons as dimensions leave the former bound; more never raise it."""
    now, before = fine_tuning.floor_lost, former_floor
    lower = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        k, h = int(rng.integers(1, 4)), int(rng.choice([0, 1, 5, 40]))
        kappa, t = rng.uniform(0.3, 0.9, 50), np.exp(rng.uniform(-6, 1, 50))
        top = np.sort(rng.uniform(1, 2, k))[::-1]
        given = {"sigma": 0.1, "width": k + h, "outputs": 1}
        reach = rng.uniform(0, 0.3, 50)
        new, old = now(top, kappa, reach, t, **given), before(top, kappa, reach, t, **given)
        assert (new <= old * (1 + 1e-9)).all()
        if h == 0:
            assert new == pytest.approx(old, rel=1e-9)
        lower += (new < 0.5 * old).any()
    assert lower >= 3
    for seed in range(12):
        problem, weights, schedule = fft_case(seed, clipped=seed % 3 == 0)
        times = np.linspace(0, schedule.duration, 5)
        bands = []
        for floor in (now, before):
            monkeypatch.setattr(fine_tuning, "floor_lost", floor)
            bands.append(bounds.fft_expected_loss(problem, weights, schedule, times))
        assert (bands[0].upper <= bands[1].upper * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("seed", "clip", "expected", "localised"),
    [
        (0, None, [1.3290282729529455, 1.3181236501702247], [0.1431413047465615, 0.13700287788078463]),
        (1, 40.0, [0.2612704628962459, 0.258058796837636], [0.01380607725423957, 0.011553992324568831]),
        (2, 40.0, [0.7232372615794835, 0.5531677723084056], [0.7204287037618937, 0.5820436721071699]),
    ],
)
def test_one_output_keeps_its_values(seed, clip, expected, localised):
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((4, 2)), rng.standard_normal(4)
    W, v = 1.5 * rng.standard_normal((2, 2)), 0.05 * rng.standard_normal(2)
    given = Problem(X, y, "linear", "square"), Weights(W, v), Schedule.fft(time=0.3, sigma=0.01, clip=clip)
    assert bounds.fft_expected_loss(*given, [0.1, 0.3]).upper == pytest.approx(expected, rel=1e-9)
    assert bounds.localised_loss(*given, [0.1, 0.3]).upper == pytest.approx(localised, rel=1e-9)


@pytest.fixture(scope="module")
def quiet():
    """Orthonormal inputs and features, noise and residuals so small that the kernel stays what it is.

    The loss decays at the rate lambda to sigma^2 U / (2 lambda), and both terms count.
    """
    problem = Problem(np.eye(2), [2e-4, -2e-4], "linear", "square")
    weights = Weights(2 * np.eye(2), np.zeros(2))
    schedule, times = Schedule.fft(time=0.3, sigma=1e-4), np.array([0.1, 0.3])
    return (
        problem,
        weights,
        schedule,
        times,
        reference.chain(problem, weights, schedule, 1e-3, 20000, 0, times),
    )


@pytest.mark.parametrize("which", ["localised", "unconditional"])
def test_less_than_the_noisy_bounds_is_violated(which, quiet):
    problem, weights, schedule, times, run = quiet
    sigma, kappa, trace = 1e-4, 0.98 * 4, 1.02 * 8
    if which == "localised":
        band = bounds.localised_loss(problem, weights, schedule, times, kappa=kappa, trace=trace)
    else:
        band = bounds.fft_expected_loss(problem, weights, schedule, times)
    kernel = run.W.swapaxes(-1, -2) @ run.W
    # tau has not come: the indicator of the localised statement is 1
    assert np.linalg.eigvalsh(kernel).min() > kappa
    assert (np.trace(kernel, axis1=-2, axis2=-1) + 2 * (run.v**2).sum(-1)).max() < trace
    mean, error = reference.mean_and_error(run.losses(problem))
    assert (mean <= band.upper + 4 * error).all()
    assert (mean > 0.9 * band.upper + 4 * error).all()

    def formula(noise, rate):
        gone = np.exp(-2 * rate * times)
        return gone * 4e-8 + noise * sigma**2 * trace * (1 - gone) / (2 * rate)

    assert (mean <= formula(1.0, kappa) + 4 * error).all()
    # no noise; half of it; lambda doubled
    for noise, rate in ((0.0, kappa), (0.5, kappa), (1.0, 2 * kappa)):
        assert (mean > formula(noise, rate) + 4 * error).all(), (noise, rate)


def tail_case(seed):
    rng = np.random.default_rng(seed)
    problem, weights = strategies.general(rng)
    sigma = float(np.exp(rng.uniform(-1.5, 0.3)))
    clip = None if problem.loss == "square" or seed % 2 else float(np.exp(rng.uniform(-1, 1)))
    # steps far inside stability where nothing clips
    size = (problem.X**2).sum() * ((weights.W**2).sum() + (weights.v**2).sum() + 4 * sigma**2)
    X = problem.X * min(1.0, np.sqrt(10 / size))
    schedule = Schedule.fft(time=float(np.exp(rng.uniform(-1, 0.3))), sigma=sigma, clip=clip)
    return Problem(X, problem.y, problem.activation, problem.loss), weights, schedule


def check_tails(seeds):
    ratios = {"time": [], "path": []}
    for seed in seeds:
        problem, weights, schedule = tail_case(seed)
        times = np.linspace(0, schedule.duration, 129)
        run = reference.chain(problem, weights, schedule, schedule.duration / 128, 1000, seed, times)
        size = (run.W**2).sum((-1, -2)) + (run.v**2).sum(-1)
        over: Any
        for over, found in (("time", size[-1]), ("path", size.max(0))):
            levels = np.quantile(found, [0.05, 0.5, 0.9, 0.99])
            share = (found >= levels[:, None]).mean(1)
            upper = bounds.norm_tail(problem, weights, schedule, schedule.duration, levels, over=over)
            assert (share <= upper + 4 * np.sqrt(share * (1 - share) / 1000)).all(), (over, seed)
            ratios[over].append(upper[2] / share[2])
    return ratios


def test_norm_tails():
    check_tails(range(8))


@pytest.mark.slow
def test_norm_tails_many(tightness):
    for over, ratios in check_tails(range(200)).items():
        tightness(f"5c(i): 10 % tail of the norm, one {over}", ratios)


def test_norm_tail_is_attained_and_less_is_violated():
    # nothing to fit and nothing to start from: the squared norm is 2 sigma^2 t times a chi-square
    problem, weights = Problem([[1e-9]], [1e-9], "linear", "square"), Weights([[0.0]], [0.0])
    schedule, X = Schedule.fft(time=1.0, sigma=0.7), np.array([0.5, 1.0, 2.0])
    levels = 4 * 0.7**2 * X
    run = reference.chain(problem, weights, schedule, 1 / 128, 20000, 0, np.linspace(0, 1, 129))
    size = (run.W**2).sum((-1, -2)) + (run.v**2).sum(-1)
    for over, found in (("time", size[-1]), ("path", size.max(0))):
        share = (found >= levels[:, None]).mean(1)
        error = 4 * np.sqrt(share * (1 - share) / 20000)
        upper = bounds.norm_tail(problem, weights, schedule, 1.0, levels, over=over)  # pyright: ignore[reportArgumentType]
        assert (share <= upper + error).all()
        if over == "time":
            assert upper == pytest.approx(np.exp(-X), rel=1e-6)
            assert (share > 0.9 * upper + error).all()
        else:
            # at one time is not over the path, nor is the exponent without the factor (1 - a)^(-delta/2)
            assert (share > np.exp(-X) + error).all()


def test_norm_tail_over_the_path_is_the_least_over_a():
    problem, weights = Problem([[1.0]], [1.0]), Weights([[1.0]], [0.5])
    schedule, t, levels = Schedule.fft(time=2.0, sigma=0.7, clip=1.0), 1.5, np.array([0.5, 4.0, 9.0, 30.0])
    a = np.linspace(0, 1, 200001)[:-1, None]
    delta = 2 + 4 * OMEGA / (2 * 0.7**2)
    unit = 4 * 0.7**2 * t
    exponent = -a * levels / unit + a * 1.25 / ((1 - a) * unit) - delta / 2 * np.log(1 - a)
    bound = np.exp(exponent.min(0))
    upper = bounds.norm_tail(problem, weights, schedule, t, levels, over="path")
    assert upper == pytest.approx(bound, rel=1e-8)
    assert upper[0] == 1.0
    assert float(bounds.norm_tail(problem, weights, schedule, t, 9.0, over="path")) == upper[2]
    assert (upper >= bounds.norm_tail(problem, weights, schedule, t, levels)).all()


def test_norm_tail():
    problem, weights = Problem([[1.0]], [1.0]), Weights([[1.0]], [0.5])
    schedule = Schedule.fft(time=1.0, sigma=0.7, clip=1.0)
    run = reference.chain(problem, weights, schedule, 1 / 128, 4000, 0, [1.0])
    size = (run.W**2).sum((-1, -2))[0] + (run.v**2).sum(-1)[0]
    # negative control: without the pull of the data the tail is too thin
    inert = bounds.norm_tail(
        Problem([[1.0]], [1e-9], loss="square"), weights, Schedule.fft(time=1.0, sigma=0.7), 1.0, 3.0
    )
    assert (size >= 3.0).mean() > inert
    with pytest.raises(ValueError, match="schedule must be full fine-tuning"):
        bounds.norm_tail(problem, weights, Schedule.lp(time=1.0, sigma=0.7), 1.0, 3.0)
    with pytest.raises(ValueError, match="over must be one of"):
        bounds.norm_tail(problem, weights, schedule, 1.0, 3.0, over="ever")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="time must be at most"):
        bounds.norm_tail(problem, weights, schedule, 2.0, 3.0)


def test_where_they_do_not_hold():
    problem, weights = strategies.general(np.random.default_rng(0), "linear", "square")
    relu, _ = strategies.general(np.random.default_rng(0), "relu", "square")
    fft = Schedule.fft(time=1.0, sigma=0.1)
    logistic, _ = strategies.general(np.random.default_rng(0), "relu", "logistic")
    assert "square" in bounds.lp_expected_loss(logistic, weights, Schedule.lp(time=1.0)).reason
    assert not bounds.lp_expected_loss(problem, weights, fft).valid[1:].any()
    assert not bounds.lp_expected_loss(problem, weights, Schedule.lp(time=1.0, clip=1.0)).valid[1:].any()
    assert not bounds.fft_expected_loss(relu, weights, fft).valid.any()
    assert not bounds.fft_expected_loss(problem, weights, Schedule.fft(time=1.0)).valid.any()
    assert not bounds.fft_expected_loss(problem, weights, Schedule.lp(time=1.0, sigma=0.1)).valid.any()
    assert "levels" in bounds.localised_loss(problem, weights, fft, kappa=1e9).reason
    tight = Schedule.fft(time=1.0, sigma=0.1, clip=1e-6)
    assert "clipped" in bounds.localised_loss(problem, weights, tight).reason
