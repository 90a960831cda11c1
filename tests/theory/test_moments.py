"""Statements 5a' and 8'c: moments of probing with K outputs and batches, enumerated and simulated."""

import itertools

import numpy as np
import pytest

import bounds
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from langevin.solvers.diffusion import euler_maruyama

PATHS = 400


def case(seed, K=None, n=None, h=None, rates=(0.3, 0.8)):
    """A probing problem with held-out points, two phases, and the step: half of the largest stable one."""
    rng = np.random.default_rng(seed)
    K, n = K or int(rng.integers(1, 4)), n or int(rng.integers(2, 9))
    d, h = int(rng.integers(1, 5)), h or int(rng.integers(1, 7))
    X, X_test = rng.standard_normal((n, d)), rng.standard_normal((5, d))
    Y, Y_test = rng.standard_normal((n, K)), rng.standard_normal((5, K))
    if K == 1:
        Y, Y_test = Y[:, 0], Y_test[:, 0]
    activation = str(rng.choice(["relu", "linear"]))
    problem = Problem(X, Y, activation, "square", X_test, Y_test)
    W, V = rng.standard_normal((h, d)), rng.standard_normal((h, K))
    weights = Weights(W, V[:, 0] if K == 1 else V)
    rates = [max(rate, 1 / n) for rate in rates]
    dt = 0.5 * bounds.lp_stability(problem, weights, sample_rate=min(rates)).largest_dt
    if not np.isfinite(dt):
        return case(seed + 10**6, K, n, h, rates)
    sigma = float(np.exp(rng.uniform(-2, 0)))
    steps = rng.integers(3, 12, 2)
    phases = [
        Phase("lp", steps[0] * dt, sigma, sample_rate=rates[0]),
        Phase("lp", steps[1] * dt, 0.5 * sigma, sample_rate=rates[1]),
    ]
    return problem, weights, Schedule(phases), dt


def enumerated(problem, weights, schedule, dt):
    """Expected training and held-out loss after every step, over all batches of every step.

    ``S = E Z Z^T`` of the head and the constant 1, ``Z = [V; I]``, which a step maps linearly.
    """
    A, Y, V = problem.features(weights.W), problem.targets, weights.v.reshape(len(weights.v), -1)
    (n, h), K = A.shape, Y.shape[1]
    held_out = problem.activate(problem.X_test @ weights.W.T), problem.y_test.reshape(-1, K)
    Z = np.vstack([V, np.eye(K)])
    S, losses = Z @ Z.T, []

    def record():
        both = (np.hstack([F, -T]) for F, T in ((A, Y), held_out))
        losses.append([0.5 * np.trace(F @ S @ F.T) for F in both])

    record()
    for phase in schedule:
        q, noise = phase.sample_rate, 2 * phase.sigma**2 * dt * K
        for _ in range(round(phase.time / dt)):
            new = np.zeros_like(S)
            for batch in itertools.product([0, 1], repeat=n):
                chosen = np.array(batch)
                chance = np.prod(np.where(chosen, q, 1 - q))
                scaled = A.T * (chosen / q)
                T = np.eye(h + K)
                T[:h, :h] -= dt * scaled @ A
                T[:h, h:] = dt * scaled @ Y
                new += chance * T @ S @ T.T
            new[:h, :h] += noise * np.eye(h)
            S = new
            record()
    return np.array(losses)


def every_step(schedule, dt):
    return dt * np.arange(round(schedule.duration / dt) + 1)


@pytest.mark.parametrize("seed", range(12))
def test_moments_equal_the_enumeration_of_all_batches(seed):
    problem, weights, schedule, dt = case(seed, n=2 + seed % 3, rates=(0.5, (0.6, 1.0)[seed % 2]))
    times = every_step(schedule, dt)
    exact = enumerated(problem, weights, schedule, dt)
    train = bounds.lp_expected_loss(problem, weights, schedule, times, dt)
    test = bounds.lp_expected_test_loss(problem, weights, schedule, times, dt=dt)
    assert train.valid.all()
    np.testing.assert_allclose(train.upper, exact[:, 0], rtol=1e-9)
    np.testing.assert_allclose(test.upper, exact[:, 1], rtol=1e-9)
    # negative control: without the sampling term
    without = bounds.lp_expected_loss(problem, weights, schedule.full_batches(), times, dt).upper
    assert without[1] < exact[1, 0] * (1 - 1e-6)


def test_steps_on_full_batches_in_closed_form():
    problem, weights, schedule, dt = case(3, n=4, rates=(1.0, 1.0))
    exact = enumerated(problem, weights, schedule, dt)
    end = [schedule.duration]
    assert bounds.lp_expected_loss(problem, weights, schedule, end, dt).upper[0] == pytest.approx(
        exact[-1, 0]
    )
    assert bounds.lp_expected_test_loss(problem, weights, schedule, end, dt=dt).upper[0] == pytest.approx(
        exact[-1, 1]
    )


@pytest.mark.parametrize("K", [1, 3])
def test_small_steps_give_the_diffusion(K):
    problem, weights, schedule, dt = case(5, K=K, rates=(1.0, 1.0))
    end = [schedule.duration]
    exact = bounds.lp_expected_loss(problem, weights, schedule, end).upper[0]
    errors = [
        abs(bounds.lp_expected_loss(problem, weights, schedule, end, dt / parts).upper[0] - exact)
        for parts in (100, 200)
    ]
    assert errors[0] < 0.05 * exact
    # first order in the step
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.05)


def z_scores(seeds, K=None):
    """Distance of simulated mean losses from theory, in standard errors; and without the sampling term."""
    found, control, ratios = [], [], []
    for seed in seeds:
        problem, weights, schedule, dt = case(seed, K=K, rates=(0.3, 0.6))
        times = every_step(schedule, dt)[[2, -1]]
        run = euler_maruyama(problem, weights, schedule, dt=dt, paths=PATHS, rng=seed, times=times)
        loss = run.loss.values
        mean, error = loss.mean(0), loss.std(0, ddof=1) / np.sqrt(PATHS)
        exact = bounds.lp_expected_loss(problem, weights, schedule, times, dt).upper
        wrong = bounds.lp_expected_loss(problem, weights, schedule.full_batches(), times, dt).upper
        found.append((mean - exact) / error)
        control.append((mean - wrong) / error)
        ratios.append(exact[-1] / mean[-1])
    return np.array(found), np.array(control), ratios


def check_z_scores(found, control):
    # losses are skewed: few paths carry much of the mean, so that the error is underestimated at times
    assert np.abs(found).max() < 5
    assert 0.7 < found.std() < 1.4
    assert (np.abs(control).max(1) > 4).mean() > 0.5


def test_the_engine_has_the_expected_loss():
    found, control, _ = z_scores(range(20))
    check_z_scores(found, control)


@pytest.mark.slow
def test_the_engine_has_the_expected_loss_many(tightness):
    found, control, ratios = z_scores(range(100, 300))
    check_z_scores(found, control)
    tightness("8'c: expected loss of probing with batches", ratios)


@pytest.mark.parametrize("K", [1, 3])
def test_a_wrong_rate_is_seen(K):
    problem, weights, schedule, dt = case(7, K=K, n=8, h=4)
    schedule = Schedule.lp(time=20 * dt, sigma=0.1, sample_rate=0.25)
    end = [schedule.duration]
    loss = euler_maruyama(problem, weights, schedule, dt=dt, paths=4000, rng=0, times=end).loss.values[:, 0]
    error = loss.std(ddof=1) / np.sqrt(len(loss))
    for rate, close in ((0.25, True), (0.3, False), (0.2, False), (1.0, False)):
        other = Schedule.lp(time=20 * dt, sigma=0.1, sample_rate=rate)
        exact = bounds.lp_expected_loss(problem, weights, other, end, dt).upper[0]
        assert bool(abs(loss.mean() - exact) < 4 * error) == close, rate


def largest_growth(problem, weights, dt, rate):
    """Spectral radius of a step's map of second moments in the range of the features, over all batches."""
    A = problem.features(weights.W)
    basis = np.linalg.svd(A, full_matrices=False)[2]
    A = A @ basis[np.linalg.svd(A, compute_uv=False) > 1e-9].T
    n, r = A.shape
    total = np.zeros((r * r, r * r))
    for batch in itertools.product([0, 1], repeat=n):
        chosen = np.array(batch)
        step = np.eye(r) - dt / rate * A.T @ (chosen[:, None] * A)
        total += np.prod(np.where(chosen, rate, 1 - rate)) * np.kron(step, step)
    return np.abs(np.linalg.eigvals(total)).max()


def check_stability(seeds):
    """The second moments grow above the largest step, and only above; return its share of full batches'."""
    shares = []
    for seed in seeds:
        problem, weights, _, _ = case(seed, n=2 + seed % 4)
        rate = float(np.random.default_rng(seed).uniform(0.5, 0.95))
        found = bounds.lp_stability(problem, weights, sample_rate=rate)
        for factor in (0.999, 1.001):
            dt = factor * found.largest_dt
            assert (largest_growth(problem, weights, dt, rate) < 1) == (factor < 1), seed
            assert (bounds.lp_stability(problem, weights, sample_rate=rate, dt=dt).growth < 1) == (factor < 1)
        shares.append(found.largest_dt / found.full_batch_dt)
    return shares


def test_stability():
    # negative control: the bound of full batches is far above
    assert np.median(check_stability(range(20))) < 0.95


@pytest.mark.slow
def test_stability_many(tightness):
    tightness("8'c: largest stable step over that of full batches", check_stability(range(100, 300)))


@pytest.mark.parametrize("seed", range(6))
def test_the_expected_loss_grows_above_the_largest_step_and_settles_below(seed):
    rng = np.random.default_rng(seed)
    problem = Problem(rng.standard_normal((6, 3)), rng.standard_normal((6, 2)), "linear", "square")
    weights, rate, sigma = Weights(np.eye(3), np.zeros((3, 2))), 0.4, 0.2
    largest = bounds.lp_stability(problem, weights, sample_rate=rate).largest_dt

    def losses(factor):
        dt = factor * largest
        schedule = Schedule.lp(time=4000 * dt, sigma=sigma, sample_rate=rate)
        found = bounds.lp_stability(problem, weights, sample_rate=rate, dt=dt, sigma=sigma)
        band = bounds.lp_expected_loss(problem, weights, schedule, dt * np.array([2000.0, 4000.0]), dt)
        return *band.upper, found.stationary_loss

    _, end, settled = losses(0.6)
    assert end == pytest.approx(settled, rel=1e-8)
    half, end, settled = losses(1.002)
    assert end > 2 * half
    assert settled == np.inf


def test_the_stationary_loss_is_simulated_and_contains_the_label_noise():
    rng = np.random.default_rng(0)
    problem = Problem(rng.standard_normal((8, 3)), rng.standard_normal((8, 2)), "linear", "square")
    weights = Weights(np.eye(3), np.zeros((3, 2)))
    dt = 0.3 * bounds.lp_stability(problem, weights, sample_rate=0.3).largest_dt
    schedule = Schedule.lp(time=300 * dt, sigma=0.1, sample_rate=0.3)
    run = euler_maruyama(
        problem, weights, schedule, dt=dt, paths=4000, rng=0, times=[schedule.duration], reduce="span"
    )
    loss = run.loss.values[:, 0]
    error = loss.std(ddof=1) / np.sqrt(len(loss))
    given = dict(sample_rate=0.3, dt=dt, sigma=0.1)
    exact = bounds.lp_stability(problem, weights, **given).stationary_loss
    assert abs(loss.mean() - exact) < 4 * error
    # negative control: targets in the range of the features, with the loss that no head removes added
    best = problem.X @ np.linalg.lstsq(problem.X, problem.y)[0]
    other = bounds.lp_stability(
        Problem(problem.X, best, "linear", "square"), weights, **given
    ).stationary_loss
    floor = 0.5 * ((problem.y - best) ** 2).sum()
    assert loss.mean() > other + floor + 4 * error


def test_many_samples_are_stable_as_few():
    # above the size at which the operator is written as a matrix
    rng = np.random.default_rng(1)
    X = rng.standard_normal((100, 5)) * rng.uniform(0.2, 2, (100, 1))
    problem, weights = (
        Problem(X, rng.standard_normal(100), "linear", "square"),
        Weights(np.eye(5), np.zeros(5)),
    )
    found = bounds.lp_stability(problem, weights, sample_rate=0.05, sigma=0.1, dt=1e-3)
    np.testing.assert_allclose(
        bounds.lp_stability(problem, weights, sample_rate=0.05, dt=found.largest_dt).growth, 1, rtol=1e-6
    )
    A, K = X, 1
    values, Q = np.linalg.eigh(A.T @ A)
    rho = 1 - 1e-3 * values
    U = A @ Q / np.sqrt(values)
    pairs = np.einsum("ia,la->ila", U, U)
    kernel = np.outer(values, values) / (1 - np.outer(rho, rho))
    N = np.einsum("ila,ab,ilb->il", pairs, kernel, pairs)
    grown = 1e-6 * 19 * N
    assert found.growth == pytest.approx(np.linalg.eigvalsh(grown)[-1], rel=1e-8)
    rest = problem.y - U @ (U.T @ problem.y)
    source = rest**2 + U**2 @ (2 * 0.01 * 1e-3 * K * values / (1 - rho**2))
    stationary = np.linalg.solve(np.eye(100) - grown, source)
    assert found.stationary_loss == pytest.approx(stationary.sum() / 2, rel=1e-8)


def clusters(K, n=60, h=8, seed=0):
    """Overlapping classes with held-out points; features in general position."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(K, 2), h))

    def draw(count):
        label = np.arange(count) % max(K, 2)
        X = centres[label] + 0.8 * rng.standard_normal((count, h))
        return X / np.linalg.norm(X, axis=1, keepdims=True), np.eye(K)[label] if K > 1 else 2.0 * label - 1

    problem = Problem(*draw(n), "linear", "square", *draw(40))
    return problem, Weights(np.eye(h), np.zeros((h, K)) if K > 1 else np.zeros(h))


def simulated_heads(problem, phase, steps, dt, paths, seed):
    """Heads (paths, h, K) after DP-SGD on Poisson batches from a zero head, in NumPy."""
    rng = np.random.default_rng(seed)
    X, Y = problem.X, problem.targets
    V = np.zeros((paths, X.shape[1], Y.shape[1]))
    for _ in range(steps):
        batch = (rng.random((paths, len(X))) < phase.sample_rate) / phase.sample_rate
        residual = batch[..., None] * (X @ V - Y)
        V = V - dt * X.T @ residual + phase.sigma * np.sqrt(2 * dt) * rng.standard_normal(V.shape)
    return V


def test_accuracy_with_k_outputs_is_close_to_simulated():
    problem, weights = clusters(3)
    phase, dt = Phase("lp", 30 * 0.02, 0.35, sample_rate=0.15), 0.02
    assert problem.X_test is not None
    assert problem.y_test is not None
    V = simulated_heads(problem, phase, 30, dt, 20_000, 0)
    label = problem.y_test.argmax(1)
    right = ((problem.X_test @ V).argmax(-1) == label).mean(0)
    schedule = Schedule([phase])
    found = bounds.lp_expected_accuracy(problem, weights, schedule, [0.0, schedule.duration], dt=dt)
    assert found.value[0] == pytest.approx(1 / 3, abs=1e-4)
    assert np.abs(found.points[1] - right).max() < 0.01 + 4 * 0.5 / np.sqrt(20_000)
    assert abs(found.value[1] - right.mean()) < 0.002
    # negative controls: without the sampling noise, and at half the DP noise
    for other in (schedule.full_batches(), Schedule.lp(time=0.6, sigma=0.175, sample_rate=0.15)):
        wrong = bounds.lp_expected_accuracy(problem, weights, other, [0.6], dt=dt)
        assert abs(wrong.value[0] - right.mean()) > 0.005


def test_accuracy_of_the_engine():
    problem, weights = clusters(1)
    schedule = Schedule.lp(time=0.6, sigma=0.35, sample_rate=0.15)
    run = euler_maruyama(
        problem, weights, schedule, dt=0.02, paths=4000, rng=0, times=[0.6], observables=["test_accuracy"]
    )
    right = run.test_accuracy.values[:, 0]
    error = right.std(ddof=1) / np.sqrt(len(right))
    found = bounds.lp_expected_accuracy(problem, weights, schedule, [0.6], dt=0.02)
    assert abs(found.value[0] - right.mean()) < 4 * error + 0.002
    wrong = bounds.lp_expected_accuracy(problem, weights, Schedule.lp(time=0.6, sigma=0.5), [0.6], dt=0.02)
    assert abs(wrong.value[0] - right.mean()) > 4 * error + 0.002
