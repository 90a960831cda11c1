"""Sections 4c', 5b' and 5c': linear nets with K outputs, against the engine, the flow and a plain chain."""

from itertools import count

import numpy as np
import pytest

import bounds
from bounds.loss import fine_tuning, rates
from bounds.loss.fine_tuning import floor_lost
from langevin import euler_maruyama, zeroth_order
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from tests.theory import reference, strategies

STEPS, PATHS = 128, 200


def targets(rng, n, K):
    """Gaussian, or one-hot with classes of unequal sizes, some without samples."""
    if rng.random() < 0.5:
        return rng.standard_normal((n, K))
    shares = 0.5 ** np.arange(K)
    return np.eye(K)[rng.choice(K, n, p=shares / shares.sum())]


def noisy_case(seed, clipped=False):
    """A small head, so that the kernel has a floor to lose."""
    rng = np.random.default_rng(seed)
    K = strategies.CLASSES[seed % 4]
    n, d, h = int(rng.integers(1, 6)), int(rng.integers(1, 4)), int(rng.integers(3, 12))
    X, Y = rng.standard_normal((n, d)), targets(rng, n, K)
    W = rng.standard_normal((h, d)) * np.exp(rng.uniform(-0.5, 0.8))
    V = rng.standard_normal((h, K)) * np.exp(rng.uniform(-4, -1)) / np.sqrt(K)
    sigma = float(np.exp(rng.uniform(-6, -1.5)))
    # steps well inside stability
    scale = max(np.linalg.norm(X, 2) * np.linalg.norm(W, 2) / 4, 1.0)
    clip = float(np.exp(rng.uniform(0, 5))) if clipped else None
    schedule = Schedule.fft(time=float(np.exp(rng.uniform(-1, 0.5))), sigma=sigma, clip=clip)
    return Problem(X / scale, Y, "linear", "square"), Weights(W, V), schedule


def simulated(problem, weights, schedule, times, seed, paths=PATHS):
    """Mean loss of the engine's paths, its standard error, and the change on halving the step."""
    found = []
    for parts in (STEPS, 2 * STEPS):
        dt = schedule.duration / parts
        run = euler_maruyama(
            problem, weights, schedule, dt=dt, paths=paths, rng=seed, times=times, threads=1
        ).loss.values
        found.append((run.mean(0), run.std(0, ddof=1) / np.sqrt(paths)))
    (coarse, e0), (mean, error) = found
    return mean, error, 2 * np.maximum(np.abs(mean - coarse) - 3 * np.hypot(error, e0), 0)


def check_unconditional(seeds):
    ratios = {}
    for seed in seeds:
        problem, weights, schedule = noisy_case(seed, clipped=seed % 3 == 0)
        times = np.linspace(0, schedule.duration, 5)
        band = bounds.fft_expected_loss(problem, weights, schedule, times)
        assert band.valid.all()
        mean, error, bias = simulated(problem, weights, schedule, times, seed)
        assert band.contains(mean, 4 * error + bias + 1e-12 * (1 + mean)), seed
        ratios.setdefault(problem.outputs_dim, []).append(band.upper[-1] / mean[-1])
    return ratios


def test_unconditional():
    ratios = check_unconditional(range(20))
    assert all(min(found) < 3 for found in ratios.values())


def inside(problem, weights, run):
    """Smallest eigenvalue and trace of the kernel along plain paths, in the span of the inputs."""
    U, s, Vt = np.linalg.svd(problem.X, full_matrices=False)
    k = int((s > 1e-10).sum())
    W = run.W @ Vt[:k].T
    kernel = W.swapaxes(-1, -2) @ W
    head = run.v.swapaxes(-1, -2) @ run.v
    least = np.linalg.eigvalsh(kernel)[..., 0] + np.linalg.eigvalsh(head)[..., 0]
    trace = problem.outputs_dim * ((W * s[:k]) ** 2).sum((-1, -2)) + (run.v**2).sum((-1, -2)) * (s**2).sum()
    rest = problem.targets - U[:, :k] @ (U[:, :k].T @ problem.targets)
    return least, trace, run.losses(problem) - 0.5 * (rest**2).sum()


def check_localised(usable):
    ratios = {}
    for seed in count():
        if sum(map(len, ratios.values())) >= usable:
            break
        problem, weights, schedule = noisy_case(seed)
        times = np.linspace(0, schedule.duration, STEPS + 1)
        band = bounds.localised_loss(problem, weights, schedule, times)
        if not band.valid.any():
            continue
        dt = schedule.duration / STEPS
        run = reference.chain_outputs(problem, weights, schedule, dt, PATHS, seed, times)
        least, trace, excess = inside(problem, weights, run)
        alive = np.logical_and.accumulate((least >= least[0, 0] / 2) & (trace <= 2 * trace[0, 0]), axis=0)
        mean, error = reference.mean_and_error(np.where(alive, excess, 0.0))
        # a step of a decay at the rate of the trace, at most
        assert (mean <= band.upper * (1 + 2 * dt * trace[0, 0]) + 4 * error + 1e-12).all(), seed
        if mean[-1] > 0:
            ratios.setdefault(problem.outputs_dim, []).append(band.upper[-1] / mean[-1])
    return ratios


def test_localised():
    check_localised(20)


@pytest.mark.slow
def test_noisy_many(tightness):
    for K, ratios in check_unconditional(range(200)).items():
        tightness(f"5c'(iii): E L, unconditional, K = {K}", ratios)
    for K, ratios in check_localised(200).items():
        tightness(f"5b': localised, K = {K}", ratios)


@pytest.fixture(scope="module")
def quiet():
    """Orthonormal inputs and features, noise and residuals so small that the kernel stays what it is."""
    problem = Problem(np.eye(2), 2e-4 * np.array([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]]), "linear", "square")
    weights = Weights(2 * np.eye(3)[:, :2], np.zeros((3, 3)))
    schedule, times = Schedule.fft(time=0.3, sigma=1e-4), np.array([0.1, 0.3])
    return problem, weights, schedule, times, simulated(problem, weights, schedule, times, 0, 10_000)


@pytest.mark.parametrize("which", ["localised", "unconditional"])
def test_the_noise_of_one_output_is_not_enough(which, quiet):
    problem, weights, schedule, times, (mean, error, bias) = quiet
    kappa, trace = 0.98 * 4, 1.02 * 3 * 8
    if which == "localised":
        band = bounds.localised_loss(problem, weights, schedule, times, kappa=kappa, trace=trace)
    else:
        band = bounds.fft_expected_loss(problem, weights, schedule, times)
    assert (mean <= band.upper + 4 * error + bias).all()
    assert (mean > 0.85 * band.upper + 4 * error).all()
    for outputs, holds in ((3, True), (1, False)):
        gone = np.exp(-2 * kappa * times)
        stated = gone * 8e-8 + 1e-8 * outputs / 3 * trace * (1 - gone) / (2 * kappa)
        assert (mean <= stated + 4 * error).all() == holds
        assert (mean > stated + 4 * error).all() != holds


# 5c'(ii)


def floor_case(seed):
    """Any loss and clipping; a level so close below the eigenvalues that noise may reach it."""
    rng = np.random.default_rng(seed)
    K = (1, 2, 3, 5)[seed % 4]
    d = int(rng.integers(1, 4))
    h = d + int(rng.integers(0, 8))
    loss = str(rng.choice(["square", "logistic"] if K == 1 else ["square", "softmax", "ovr"]))
    n = d + int(rng.integers(0, 4)) + (K if loss in ("softmax", "ovr") else 0)
    X = rng.standard_normal((n, d))
    if loss == "square":
        y = 0.3 * targets(rng, n, K)
        y = y[:, 0] if K == 1 else y
    else:
        y = np.where(rng.random(n) < 0.5, -1.0, 1.0) if K == 1 else np.arange(n) % K
    W = np.linalg.qr(rng.standard_normal((h, d)))[0] * np.exp(rng.uniform(-0.2, 0.5, d))
    V = rng.standard_normal((h, K)) * np.exp(rng.uniform(-5, -2)) / np.sqrt(h * K)
    top = np.linalg.eigvalsh(W @ W.T - V @ V.T)[::-1][:d]
    assert top[-1] > 0
    kappa = float(rng.uniform(0.75, 0.95)) * top[-1]
    time = float(np.exp(rng.uniform(-2, 0)))
    # the level is a few standard deviations of the last eigenvalue below it
    sigma = float((top[-1] - kappa) / np.sqrt(8 * top[-1] * time) / rng.uniform(1.5, 3.5))
    clip = None if rng.random() < 0.5 else float(np.exp(rng.uniform(-1.5, 0.5)))
    problem = Problem(X * min(1.0, 1.5 / np.linalg.norm(X, 2)), y, "linear", loss)
    weights = Weights(W, V[:, 0] if K == 1 else V)
    return problem, weights, Schedule.fft(time=time, sigma=sigma, clip=clip), top, kappa


def paths(problem, weights, schedule, seed, count, steps=STEPS):
    """First layer and head along plain paths, at every step."""
    times = np.linspace(0, schedule.duration, steps + 1)
    chain = reference.chain if problem.outputs_dim == 1 else reference.chain_outputs
    run = chain(problem, weights, schedule, schedule.duration / steps, count, seed, times)
    return run.W, run.v.reshape(*run.v.shape[:3], -1)


def lost(W, V, kappa, reach):
    """Paths on which the smallest eigenvalue falls to ``kappa`` before the head leaves ``reach``."""
    least = np.linalg.eigvalsh(W.swapaxes(-1, -2) @ W)[..., 0]
    held = np.logical_and.accumulate((V**2).sum((-1, -2)) <= reach, axis=0)
    return (held & (least <= kappa)).any(0)


def check_floor(cases, count=400):
    ratios, reached = {}, 0
    for seed in range(cases):
        problem, weights, schedule, top, kappa = floor_case(seed)
        sigma, K = schedule.phases[0].sigma, problem.outputs_dim
        reach = float((weights.v**2).sum()) + 0.1 * kappa
        arrays = (np.array([x]) for x in (kappa, reach, schedule.duration))
        stated = floor_lost(top, *arrays, sigma=sigma, width=weights.width, outputs=K)[0]
        W, V = paths(problem, weights, schedule, seed, count)
        rate = lost(W, V, kappa, reach).mean()
        assert rate <= stated + 4 * np.sqrt(rate * (1 - rate) / count), seed
        reached += rate > 0
        if rate > 0:
            ratios.setdefault(K, []).append(min(stated, 1.0) / rate)
    return ratios, reached
