"""Measured strong and weak order of Euler-Maruyama; means and variances against the exact solution."""

import numpy as np
import pytest
from scipy.linalg import expm

from langevin import (
    Problem,
    Schedule,
    Weights,
    collapsed_features,
    euler_maruyama,
    orthogonally_separable,
    zeroth_order,
)
from langevin.engine import noise
from langevin.solvers import adaptive
from tests.helpers import end_states, random_problem, random_weights


def linear_probing() -> tuple[Problem, Weights, np.ndarray]:
    """A least-squares head, whose diffusion is an Ornstein-Uhlenbeck process."""
    problem = random_problem(1, n=6, d=3, activation="relu", loss="square")
    weights = random_weights(1, h=4, d=3, scale=0.7)
    return problem, weights, problem.features(weights.W)


def slope(dts: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Order of root mean square errors (steps, paths), and its standard error over batches of paths."""
    batches = np.array_split(errors**2, 20, axis=1)
    logs = [np.log(np.sqrt(b.mean(axis=1))) for b in batches]
    slopes = [np.polyfit(np.log(dts), line, 1)[0] for line in logs]
    return float(np.mean(slopes)), float(np.std(slopes, ddof=1) / len(slopes) ** 0.5)


def test_strong_order_one_against_the_exact_solution():
    problem, weights, A = linear_probing()
    sigma, time, fine, paths = 0.4, 0.5, 0.5 / 512, 200
    H, target = A.T @ A, A.T @ problem.y
    schedule = Schedule.lp(time=time, sigma=sigma)
    # the exact flow over a fine step, driven by the run's own increments at its middle: error O(fine^3/2)
    flow, half = expm(-H * fine), expm(-H * fine / 2)
    fixed = np.linalg.lstsq(H, target, rcond=None)[0]
    key, exact = noise.key(5), np.tile(weights.v, (paths, 1))
    for step in range(512):
        xi = np.array([noise.weight_noise(key, p, step, 4, 3)[1] for p in range(paths)])
        exact = (exact - fixed) @ flow + fixed + sigma * np.sqrt(2 * fine) * xi @ half
    dts = fine * np.array([8, 16, 32, 64])

    def errors(rng: int) -> np.ndarray:
        runs = [
            end_states(problem, weights, schedule, dt=dt, paths=paths, rng=rng, noise_dt=fine)[1]
            for dt in dts
        ]
        return np.array([np.linalg.norm(v - exact, axis=1) for v in runs])

    order, error = slope(dts, errors(5))
    assert abs(order - 1) < 3 * error + 0.05, (order, error)
    # negative control: with other Brownian paths there is no strong convergence
    order, error = slope(dts, errors(6))
    assert abs(order - 1) > 0.5


@pytest.mark.parametrize(
    ("activation", "clip"),
    [
        ("relu", 0.5),
        ("linear", None),
        ("gelu", None),
        pytest.param("relu", None, marks=pytest.mark.slow),
        pytest.param("linear", 0.5, marks=pytest.mark.slow),
        pytest.param("gelu", 0.5, marks=pytest.mark.slow),
    ],
)
def test_strong_order_of_full_fine_tuning(activation, clip):
    """Against a run on the finest grid: 1 for smooth drift, at least 1/2 with kinks."""
    problem = random_problem(2, n=6, d=3, activation=activation)
    weights = random_weights(2, h=5, d=3, scale=0.7)
    fine, paths = 0.25 / 2048, 400
    schedule = Schedule.lp_fft(lp_time=0.125, fft_time=0.125, sigma=0.4, clip=clip)
    reference = end_states(problem, weights, schedule, dt=fine, paths=paths, rng=3)
    dts = fine * np.array([16, 32, 64, 128])
    errors = []
    for dt in dts:
        run = end_states(problem, weights, schedule, dt=dt, paths=paths, rng=3, noise_dt=fine)
        W, v = run[0] - reference[0], run[1] - reference[1]
        errors.append(np.sqrt((W**2).sum(axis=(1, 2)) + (v**2).sum(axis=1)))
    order, error = slope(dts, np.array(errors))
    # the reference's own error, 1/16 of the smallest, steepens the slope by less than this
    steeper = 0.1
    if activation != "relu" and clip is None:
        assert 1 - 3 * error < order < 1 + 3 * error + steeper, (order, error)
    else:
        assert 0.5 - 3 * error < order < 1 + 3 * error + steeper, (order, error)


def exact_loss(problem: Problem, weights: Weights, A: np.ndarray, sigma: float, time: float) -> float:
    """Expected loss of the Ornstein-Uhlenbeck process: theory, section 5a."""
    values, vectors = np.linalg.eigh(A.T @ A)
    values = np.maximum(values, 0)
    best = np.linalg.lstsq(A, problem.y, rcond=None)[0]
    least = 0.5 * np.sum((A @ best - problem.y) ** 2)
    m = vectors.T @ (weights.v - best)
    decay = np.exp(-2 * values * time)
    noise_part = np.where(values > 1e-12, 0.5 * sigma**2 * (1 - decay), 0)
    return float(least + np.sum(0.5 * values * m**2 * decay + noise_part))


def chain_loss(
    problem: Problem, weights: Weights, A: np.ndarray, sigma: float, dt: float, steps: int
) -> float:
    """Expected loss of the Euler-Maruyama chain of the same process, mode by mode."""
    values, vectors = np.linalg.eigh(A.T @ A)
    best = np.linalg.lstsq(A, problem.y, rcond=None)[0]
    least = 0.5 * np.sum((A @ best - problem.y) ** 2)
    factor = 1 - values * dt
    mean = (vectors.T @ (weights.v - best)) * factor**steps
    variance = 2 * sigma**2 * dt * sum(factor ** (2 * k) for k in range(steps))
    return float(least + 0.5 * np.sum(values * (mean**2 + variance)))


def test_weak_order_one():
    """The run has the chain's expected loss, and the chain's bias is of order 1 in dt."""
    problem, weights, A = linear_probing()
    sigma, time, paths = 0.04, 0.1, 40_000
    schedule = Schedule.lp(time=time, sigma=sigma)
    exact = exact_loss(problem, weights, A, sigma, time)
    for steps in (2, 4, 8):
        run = euler_maruyama(problem, weights, schedule, dt=time / steps, paths=paths, rng=9, times=[time])
        loss = run.loss.values[:, 0]
        error = loss.std() / paths**0.5
        assert abs(loss.mean() - chain_loss(problem, weights, A, sigma, time / steps, steps)) < 4 * error
        # negative control: the bias is significant
        assert abs(loss.mean() - exact) > 4 * error
    bias = [chain_loss(problem, weights, A, sigma, time / n, n) - exact for n in (256, 512, 1024)]
    # the expansion's next term, of relative size dt lambda
    next_term = time / 256 * np.linalg.eigvalsh(A.T @ A)[-1]
    assert abs(np.log2(bias[0] / bias[1]) - 1) < next_term
    assert abs(np.log2(bias[1] / bias[2]) - 1) < next_term / 2


@pytest.mark.parametrize("reduce", ["auto", "none"])
def test_linear_probing_has_the_exact_expected_loss(reduce):
    problem, weights, A = linear_probing()
    sigma, paths = 0.4, 4000
    times = np.array([0.1, 0.5, 2.0])
    schedule = Schedule.lp(time=2.0, sigma=sigma)
    run = euler_maruyama(
        problem, weights, schedule, dt=1 / 512, paths=paths, rng=1, times=times, reduce=reduce
    )
    z = lambda s: [  # noqa: E731
        (run.loss[:, i].values.mean() - exact_loss(problem, weights, A, s, t))
        / (run.loss[:, i].values.std() / paths**0.5)
        for i, t in enumerate(times)
    ]
    # discretisation: dt * lambda_max / 2 relative, well below the standard errors
    assert np.abs(z(sigma)).max() < 4
    # negative control: noise that is 10 % off is detected
    assert np.abs(z(1.1 * sigma)).max() > 4
    assert np.abs(z(sigma / 1.1)).max() > 4


@pytest.mark.parametrize("loss", ["logistic", "square"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_euler_steps_approach_the_adaptive_solution(loss, clip):
    """Without noise: order 1 of the Euler path against DOP853, on the same schedule."""
    problem = random_problem(4, activation="linear", loss=loss)
    weights = random_weights(4, scale=0.5)
    schedule = Schedule.lp_fft(lp_time=0.25, fft_time=0.25, clip=clip)
    times = [0.125, 0.25, 0.375, 0.5]
    exact = zeroth_order(problem, weights, schedule, times=times, rtol=1e-11, atol=1e-13).loss
    errors = [
        float(np.abs(zeroth_order(problem, weights, schedule, times=times, dt=0.5 / n).loss - exact).max())
        for n in (512, 1024, 2048)
    ]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.abs(orders - 1).max() < 0.1, errors


def test_the_adaptive_solution_is_that_of_solve_ivp():
    """Against an independent drift in NumPy, with ReLU and clipping."""
    from scipy.integrate import solve_ivp

    problem, weights = random_problem(5, n=5, d=3), random_weights(5, h=4, d=3)
    h, d, clip = 4, 3, 0.6

    def drift(t: float, theta: np.ndarray) -> np.ndarray:
        W, v = theta[: h * d].reshape(h, d), theta[h * d :]
        here = Weights(W, v)
        norms = problem.gradient_norms(here, "fft")
        s = problem.residuals(problem.outputs(here)) * np.minimum(1, clip / np.maximum(norms, 1e-300))
        z = problem.X @ W.T
        slopes = problem.slope(z)
        return -np.concatenate(
            [(((slopes * v) * s[:, None]).T @ problem.X).ravel(), problem.activate(z).T @ s]
        )

    times = [0.0, 0.1, 0.3]
    start = np.concatenate([weights.W.ravel(), weights.v])
    flow = solve_ivp(drift, (0, 0.3), start, "LSODA", times, rtol=1e-10, atol=1e-12)
    losses = [
        problem.losses(problem.outputs(Weights(y[: h * d].reshape(h, d), y[h * d :]))).sum() for y in flow.y.T
    ]
    ode = zeroth_order(
        problem, weights, Schedule.fft(time=0.3, clip=clip), times=times, rtol=1e-9, atol=1e-11
    )
    np.testing.assert_allclose(ode.loss, losses, rtol=1e-6)


def test_a_stiff_flow_is_solved():
    """Linear probing far beyond its fastest time scale, and a ReLU flow that would need 1e7 Euler steps."""
    problem = orthogonally_separable(16, 4, loss="square", rng=0)
    weights = collapsed_features(problem, 16, rng=1)
    schedule = Schedule.lp(time=400.0, clip=1.0)
    ode = zeroth_order(problem, weights, schedule, times=[200.0, 400.0]).loss
    # any step below the stability limit gives the same end; the error of this one is far below 1e-3
    euler = zeroth_order(problem, weights, schedule, times=[200.0, 400.0], dt=0.01).loss
    np.testing.assert_allclose(ode, euler, rtol=1e-3)
    steep = Problem(30 * problem.X, problem.y, loss="square")
    times = [0.02, 0.1, 2000.0]
    ode = zeroth_order(steep, weights, Schedule.fft(time=2000.0, clip=1.0), times=times)
    euler = zeroth_order(steep, weights, Schedule.fft(time=0.1, clip=1.0), times=times[:2], dt=1e-6).loss
    np.testing.assert_allclose(ode.loss[:2], euler, rtol=1e-4)
    # the samples are fitted and remain so
    assert float(ode.loss[2]) < 1e-9
    assert ode.attrs["estimated_error"] < 1e-5


def test_tolerances_control_the_error(monkeypatch):
    monkeypatch.setattr(adaptive, "FEWEST_STEPS", 1)
    problem, weights = random_problem(4, activation="linear"), random_weights(4, scale=0.5)
    schedule = Schedule.fft(time=0.2)
    losses = [
        float(zeroth_order(problem, weights, schedule, times=[0.2], rtol=r, atol=r).loss[0])
        for r in (1e-2, 1e-7, 1e-12)
    ]
    assert abs(losses[1] - losses[2]) < 1e-6 * losses[2]
    assert abs(losses[0] - losses[2]) > abs(losses[1] - losses[2])
