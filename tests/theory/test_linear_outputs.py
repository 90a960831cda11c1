"""Sections 4c', 5b' and 5c': linear nets with K outputs, against the engine, the flow and a plain chain."""

from itertools import count

import numpy as np
import pytest

import bounds
from bounds.loss.fine_tuning import floor_lost
from langevin import euler_maruyama
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
    return problem, weights, schedule, times, simulated(problem, weights, schedule, times, 0, 4000)


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
    top = np.asarray(np.linalg.eigvalsh(W @ W.T - V @ V.T)[::-1][:d], dtype=np.float64)
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


def stopped(W, V, kappa, reach, dt):
    """Time at which ``e_k`` falls to ``kappa`` or the head leaves ``reach``, and the head's size then."""
    size, k = (V**2).sum((-1, -2)), W.shape[-1]
    last = np.linalg.eigvalsh(W @ W.swapaxes(-1, -2) - V @ V.swapaxes(-1, -2))[..., -k]
    over = (last <= kappa) | (size > reach)
    over[-1] = True
    step = over.argmax(0)
    return dt * step, np.take_along_axis(size, step[None], 0)[0]


def check_floor(cases, count=400):
    ratios, reached = {}, 0
    for seed in range(cases):
        problem, weights, schedule, top, kappa = floor_case(seed)
        sigma, K, h = schedule.phases[0].sigma, problem.outputs_dim, weights.width
        reach = float((weights.v**2).sum()) + 0.1 * kappa
        arrays = (np.array([x]) for x in (kappa, reach, schedule.duration))
        stated = floor_lost(top, *arrays, sigma=sigma, width=h, outputs=K)[0]
        W, V = paths(problem, weights, schedule, seed, count)
        rate = lost(W, V, kappa, reach).mean()
        assert rate <= stated + 4 * np.sqrt(rate * (1 - rate) / count), seed
        # how soon the head leaves
        time, size = stopped(W, V, kappa, reach, schedule.duration / STEPS)
        growth = size - 2 * sigma**2 * K * (h - problem.dim) * time
        assert growth.mean() >= -4 * growth.std(ddof=1) / np.sqrt(count), seed
        reached += rate > 0
        if rate > 0:
            ratios.setdefault(K, []).append(min(stated, 1.0) / rate)
    return ratios, reached


def test_the_floor():
    assert check_floor(20, 200)[1] >= 4


@pytest.mark.slow
def test_the_floor_many(tightness):
    for K, ratios in check_floor(240)[0].items():
        tightness(f"5c'(ii): floor of the kernel, bound over hits where there are any, K = {K}", ratios)


def floor(top, kappa, reach, t, *, sigma, width, outputs):
    arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(x, dtype=float)) for x in (kappa, reach, t)))
    return floor_lost(np.atleast_1d(np.asarray(top)), *arrays, sigma=sigma, width=width, outputs=outputs)


def test_where_the_floor_does_not_grow_with_time():
    """Neurons in excess of the dimension hold it up until the head has left; without them it is lost."""
    sigma, kappa, reach, time = 0.05, 0.75, 0.075, 8.0
    problem = Problem([[1e-3]], [[0.0, 0.0]], "linear", "square")
    schedule = Schedule.fft(time=time, sigma=sigma)
    found = {}
    for width in (20, 1):
        stated = floor(1.0, kappa, reach, [time, 100 * time], sigma=sigma, width=width, outputs=2)
        weights = Weights(np.eye(width)[:, :1], np.zeros((width, 2)))
        W, V = paths(problem, weights, schedule, 0, 300, 200)
        rate = lost(W, V, kappa, reach).mean()
        error = 4 * np.sqrt(rate * (1 - rate) / 300)
        assert rate <= stated[0] + error
        found[width] = stated, rate, error, stopped(W, V, kappa, reach, 0.04)[0].max()
    (wide, _, _, last), (narrow, rate, error, _) = found[20], found[1]
    assert wide[0] == wide[1] < 0.2
    # long before, all heads have left: nothing is said of what comes later
    assert last < time / 2
    # one neuron loses more than that
    assert narrow[0] < narrow[1]
    assert rate > wide[0] + error


def test_noise_raises_the_eigenvalues_by_the_neurons_in_excess():
    """At a head of zeros their mean grows at ``2 sigma^2 (h - K)``; the old constant is ``k - K``."""
    h, k, K, dt, count = 12, 2, 3, 1e-4, 40_000
    rng = np.random.default_rng(0)
    W = np.diag([2.0, 3.0])
    steps = [np.sqrt(2 * dt) * rng.standard_normal((count, h, m)) for m in (k, K)]
    moved = np.eye(h)[:, :k] @ W + steps[0]
    E = moved @ moved.swapaxes(-1, -2) - steps[1] @ steps[1].swapaxes(-1, -2)
    # less the part that is linear in the noise: it has mean 0
    linear = 2 * (np.diag(W) * np.stack([steps[0][:, j, j] for j in range(k)], -1)).sum(-1)
    mean, error = reference.mean_and_error((np.linalg.eigvalsh(E)[:, -k:].sum(1) - linear - 13.0)[None])
    # the next order in the step
    slack = 4 * error[0] + 20 * dt * 2 * dt * k * h
    assert abs(mean[0] - 2 * dt * k * (h - K)) <= slack
    for wrong in (k - K, h, h - k):
        assert abs(mean[0] - 2 * dt * k * wrong) > slack


def test_the_head_leaves_at_the_rate_of_the_neurons_in_excess():
    """A strong pull on the neurons that see the data; the others diffuse."""
    sigma, K, h, reach, dt = 0.1, 2, 3, 0.5, 0.02
    problem = Problem([[5.0]], [[0.0, 0.0]], "linear", "square")
    weights = Weights([[1.0], [0.0], [0.0]], np.zeros((h, K)))
    W, V = paths(problem, weights, Schedule.fft(time=40.0, sigma=sigma), 0, 400, 2000)
    time, size = stopped(W, V, 1e-9, reach, dt)
    assert (time < 40).all()
    for neurons, holds in ((h - 1, True), (h, False)):
        excess = size - 2 * sigma**2 * K * neurons * time
        assert (excess.mean() >= -4 * excess.std(ddof=1) / np.sqrt(400)) == holds
