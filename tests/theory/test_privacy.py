"""Section 2: closed forms against dp-accounting, calibration, DP-SGD."""

import math
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

import bounds
from langevin.model.dpsgd import DPSGD
from langevin.model.losses import LOSSES
from langevin.model.schedule import Phase, Schedule

accounting = pytest.importorskip("dp_accounting")

positive = st.floats(0.05, 20.0)
phases = st.builds(
    Phase, st.sampled_from(["lp", "fft"]), time=positive, sigma=st.floats(0.2, 20.0), clip=st.floats(0.1, 5.0)
)
schedules = st.lists(phases, min_size=1, max_size=3).map(Schedule)
relations = st.sampled_from(["add-remove", "replace"])


@given(schedules, relations)
def test_zcdp_and_gdp_agree(schedule, neighbours):
    rho = sum(
        ((1 if neighbours == "add-remove" else 2) * p.clip) ** 2 * p.time / (4 * p.sigma**2) for p in schedule
    )
    assert bounds.zcdp(schedule, neighbours=neighbours) == pytest.approx(rho, rel=1e-12)
    assert bounds.gdp(schedule, neighbours=neighbours) ** 2 / 2 == pytest.approx(rho, rel=1e-12)
    orders = np.array([1.5, 2.0, 32.0])
    assert bounds.renyi(schedule, orders, neighbours=neighbours) == pytest.approx(orders * rho, rel=1e-12)


@pytest.mark.parametrize("mu", [0.05, 0.3, 1.0])
def test_against_dp_accounting(mu):
    schedule = Schedule.fft(time=2.0, sigma=1 / mu, clip=1.0)
    event = accounting.GaussianDpEvent(1 / mu)
    pld = accounting.pld.PLDAccountant(value_discretization_interval=1e-5)
    pld.compose(event)
    rdp = accounting.rdp.RdpAccountant(orders=[1.5, 2, 8, 64])
    rdp.compose(event)
    assert bounds.renyi(schedule, [1.5, 2, 8, 64]) == pytest.approx(rdp._rdp, rel=1e-12)
    from dp_accounting.pld import privacy_loss_mechanism as mechanism

    gaussian = mechanism.GaussianPrivacyLoss(1 / mu)
    for eps in (0.1, 1.0, 5.0):
        exact = float(np.asarray(gaussian.get_delta_for_epsilon(eps)))
        assert bounds.delta(schedule, eps) == pytest.approx(exact, rel=1e-6, abs=1e-15)
        # negative control: a sensitivity wrong by 10 percent
        wrong = bounds.delta(Schedule.fft(time=2.0, sigma=1 / mu, clip=1.1), eps)
        assert exact < 1e-12 or not math.isclose(wrong, exact, rel_tol=1e-3)
    for target in (1e-3, 1e-5):
        assert bounds.epsilon(schedule, target) == pytest.approx(pld.get_epsilon(target), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("mu", [1e-300, 1e-17, 1e-12, 1e-6, 9e-4, 1.1e-3, 1.0, 30.0])
@pytest.mark.parametrize("target", [1e-2, 1e-12, 1e-30, 1e-300])
def test_epsilon_holds_to_many_digits_however_small(mu, target):
    """Against 60 digits: never too small, and no larger than the root finder's tolerance."""
    mp = pytest.importorskip("mpmath").mp
    with mp.workdps(60):

        def exact(epsilon):
            a, half = mp.mpf(epsilon) / mp.mpf(mu), mp.mpf(mu) / 2
            # the tail of a normal beyond 60 is below every double
            return mp.mpf(0) if a - half > 60 else mp.ncdf(half - a) - mp.exp(epsilon) * mp.ncdf(-half - a)

        found = bounds.gdp_epsilon(mu, target)
        assert exact(found) <= mp.mpf(target) * (1 + mp.mpf(10) ** -8)
        # negative control: less is too little
        less = found * (1 - 1e-3)
        assert less <= 0 or exact(less) > mp.mpf(target) * (1 + mp.mpf(10) ** -8)


@pytest.mark.parametrize("epsilon", [1e-200, 1e-20, 1e-3, 1e3, 1e20])
@pytest.mark.parametrize("target", [1e-80, 1e-25, 0.999, 1 - 1e-16])
def test_calibration_keeps_within_the_budget_at_the_edges(epsilon, target):
    schedule = Schedule.fft(time=1.0, sigma=1.0, clip=1.0)
    found = bounds.calibrate(schedule, "clip", epsilon=epsilon, delta=target)
    assert bounds.epsilon(found, target) <= epsilon
    # negative control: a tenth more of the clip is too much
    (phase,) = found.phases
    assert phase.clip is not None
    more = Schedule([Phase(phase.method, phase.time, phase.sigma, 1.1 * phase.clip)])
    assert bounds.epsilon(more, target) > epsilon


def test_noise_beyond_what_can_be_squared():
    assert bounds.dpsgd_gdp(DPSGD(0.1, 1e200, 1.0, 4)) == pytest.approx(2e-200)
    assert bounds.dpsgd_gdp(DPSGD(0.1, 1e-200, 1.0, 4)) == pytest.approx(2e200)
    assert bounds.dpsgd_epsilon(DPSGD(0.1, 1e-200, 1.0, 4), 1e-5) == math.inf


def test_delta_far_in_the_tail():
    assert 0 < bounds.gdp_delta(0.1, 3.0) < 1e-190
    assert bounds.gdp_delta(1e-3, 0.0) == pytest.approx(2 * norm.cdf(0.0005) - 1, rel=1e-12)


@settings(max_examples=50)
@given(schedules, st.floats(0.05, 10.0), st.sampled_from([1e-3, 1e-5, 1e-8]), relations)
def test_calibration_meets_and_never_overshoots(schedule, epsilon, delta, neighbours):
    for solve in ("sigma", "time", "clip"):
        found = bounds.calibrate(schedule, solve, epsilon=epsilon, delta=delta, neighbours=neighbours)
        spent = bounds.epsilon(found, delta, neighbours=neighbours)
        assert spent <= epsilon
        assert spent == pytest.approx(epsilon, rel=1e-7)
        ratios = [getattr(a, solve) / getattr(b, solve) for a, b in zip(found, schedule, strict=True)]
        assert ratios == pytest.approx([ratios[0]] * len(ratios))


@given(st.floats(1e-3, 50.0), st.floats(1e-10, 0.5))
def test_epsilon_inverts_delta(mu, delta):
    eps = bounds.gdp_epsilon(mu, delta)
    assert bounds.gdp_delta(mu, eps) <= delta
    if eps > 0:
        assert bounds.gdp_delta(mu, eps * (1 - 1e-6) - 1e-9 if eps > 1e-3 else 0.0) > delta * (1 - 1e-12)


def test_refusals():
    with pytest.raises(ValueError, match="clip must be positive"):
        bounds.zcdp(Schedule.fft(time=1.0, sigma=1.0))
    with pytest.raises(ValueError, match="neighbours must be one of"):
        bounds.gdp(Schedule.fft(time=1.0, sigma=1.0, clip=1.0), neighbours="swap")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="orders must all exceed 1"):
        bounds.renyi(Schedule.fft(time=1.0, sigma=1.0, clip=1.0), [1.0])
    assert bounds.epsilon(Schedule.fft(time=1.0, sigma=0.0, clip=1.0), 1e-5) == math.inf
    assert bounds.delta(Schedule.fft(time=1.0, sigma=0.0, clip=1.0), 1.0) == 1.0


@pytest.mark.parametrize("neighbours", ["add-remove", "replace"])
def test_full_batch_dpsgd_agrees_with_its_diffusion(neighbours):
    dpsgd = DPSGD(learning_rate=0.03, noise_multiplier=7.0, clip=0.4, steps=55)
    mapped = Schedule([dpsgd.phase("fft")])
    assert bounds.dpsgd_gdp(dpsgd, neighbours=neighbours) == pytest.approx(
        bounds.gdp(mapped, neighbours=neighbours), rel=1e-12
    )
    assert bounds.dpsgd_delta(dpsgd, 1.0) == pytest.approx(bounds.delta(mapped, 1.0), rel=1e-9)


def test_poisson_is_refused_and_would_understate():
    dpsgd = DPSGD(0.5, 1.0, 1.0, steps=200, sample_rate=0.05, samples=1000)
    with pytest.raises(ValueError, match="use an accountant"):
        bounds.dpsgd_gdp(dpsgd)
    # the diffusion with this sigma is that of full batches
    mapped = replace(dpsgd.phase("fft"), sample_rate=1.0)
    through_the_map = bounds.delta(Schedule([mapped]), 2.0)
    pld = accounting.pld.PLDAccountant(value_discretization_interval=1e-3)
    pld.compose(accounting.PoissonSampledDpEvent(0.05, accounting.GaussianDpEvent(1.0)), dpsgd.steps)
    assert pld.get_delta(2.0) > 2 * through_the_map


def test_schedules_that_sample_batches_are_refused_by_name():
    sampled = Schedule.lp_fft(lp_time=0.5, fft_time=0.5, sigma=1.0, clip=1.0, sample_rate=0.1)
    full = Schedule([replace(phase, sample_rate=1.0) for phase in sampled])
    calls: list[Any] = [bounds.zcdp, bounds.gdp, lambda schedule: bounds.renyi(schedule, [2.0])]
    said = r"sample_rate must be 1 for the privacy of the path, got 0\.1 .* use bounds\.epsilon, .* with dt"
    for call in calls:
        call(full)
        with pytest.raises(ValueError, match=said):
            call(sampled)


@pytest.mark.parametrize("clipping", ["margin", "column"])
def test_clipping_of_several_outputs_has_the_privacy_of_flat_clipping(clipping):
    """Both bound a sample's gradient by the threshold: on random samples, and in the worst case reach it."""
    flat = Schedule.lp(time=1.0, sigma=2.0, clip=0.5)
    other = Schedule([replace(phase, clipping=clipping) for phase in flat])
    assert bounds.gdp(other) == bounds.gdp(flat)
    assert bounds.calibrate(other, "clip", epsilon=1.0, delta=1e-5).phases[0].clipping == clipping
    rng, C, K = np.random.default_rng(0), 0.5, 4
    y, A = rng.integers(0, K, 4000), 3 * rng.standard_normal((4000, 6))
    # the first sample's wrong probability is all on one class, the second's outputs are all wrong
    F = 3 * rng.standard_normal((4000, K))
    F[0], F[1] = 60.0 * (np.arange(K) == (y[0] + 1) % K), 60.0 * (1 - 2 * (np.arange(K) == y[1]))
    Y, size = np.eye(K)[y], np.linalg.norm(A, axis=1)
    if clipping == "margin":
        r = LOSSES["softmax"].residual(F, Y)
        g = -(r * Y).sum(1)
        norms, wrong = (
            np.minimum(1, C / (factor * g * size)) * np.linalg.norm(r, axis=1) * size
            for factor in (np.sqrt(2), 1.0)
        )
    else:
        columns = np.abs(LOSSES["ovr"].residual(F, Y)) * size[:, None]
        norms, wrong = (
            np.linalg.norm(np.minimum(columns, C / factor), axis=1) for factor in (np.sqrt(K), np.sqrt(K - 1))
        )
    assert norms.max() <= C + 1e-12
    assert norms[0 if clipping == "margin" else 1] == pytest.approx(C)
    # another constant exceeds the threshold
    assert wrong.max() > 1.1 * C


def two_heads(decay, clip, sigma, lp_time, steps):
    """Distance and standard deviation of the last head, where one sample pushes at the clip throughout."""
    dt = lp_time / steps
    c = 1 - decay * dt
    powers = c ** np.arange(steps)
    return clip * dt * powers.sum(), math.sqrt(2 * sigma**2 * dt * (powers**2).sum())


@settings(max_examples=60)
@given(st.floats(0.05, 5.0), st.floats(0.1, 10.0), st.floats(0.2, 5.0))
def test_last_iterate_against_a_pair_that_attains_it(decay, lp_time, sigma):
    # the last head is Gaussian with the same covariance for both data sets, if the sample that differs
    # pushes at the clip throughout in whichever direction hurts most
    steps = 4000
    arguments: Any = {"weight_decay": decay, "sigma": sigma, "clip": 1.0, "lp_time": lp_time}
    mu = bounds.last_iterate_gdp(**arguments)
    dt = lp_time / steps
    chain = bounds.last_iterate_gdp(**arguments, dt=dt, smoothness=decay)
    assert chain == pytest.approx(mu, rel=2e-2)
    shift, spread = two_heads(decay, 1.0, sigma, lp_time, steps)
    # a constant push attains (1 - c^N)/(1 - c) over its noise: exactly the chain's mu
    assert shift / spread == pytest.approx(chain, rel=1e-6)
    assert shift / spread > 0.97 * mu
    # negative control: half the effective time is too small a guarantee
    assert shift / spread > mu / math.sqrt(2)
    whole = bounds.gdp(Schedule.lp(time=lp_time, sigma=sigma, clip=1.0))
    assert mu <= whole * (1 + 1e-12)
    assert mu <= math.sqrt(1 / decay) / sigma * (1 + 1e-12)
    both = bounds.last_iterate_gdp(**arguments, fft_time=1.0)
    assert both**2 == pytest.approx(mu**2 + 1 / (2 * sigma**2))


def gaussian_pair(seed, kernel=False):
    """Chain of a neighbouring pair whose last heads are Gaussian: mu of the pair, and the arguments.

    The samples in common have the square loss and do not clip; those that differ lie so far off that they
    push at the threshold throughout, in ``kernel`` along features that the others do not have.
    """
    rng = np.random.default_rng(seed)
    n, h = int(rng.integers(1, 5)), int(rng.integers(1, 6))
    h += n if kernel else 0
    A = rng.standard_normal((n, h)) * np.exp(rng.uniform(-2, 1))
    decay, clip, sigma = (float(np.exp(rng.uniform(-2, 1))) for _ in range(3))
    eigenvalues, vectors = np.linalg.eigh(A.T @ A)
    push = clip * unit(rng, h, vectors[:, : h - n] if kernel else np.eye(h))
    neighbours: Any = "add-remove"
    if seed % 2:
        neighbours = "replace"
        push = 2 * push if kernel else push - clip * unit(rng, h, np.eye(h))
    smoothness = decay + max(float(eigenvalues[-1]), 0.0)
    # up to the longest step allowed, at which some directions alternate
    dt = 2 / (decay + smoothness) * (1.0 if rng.random() < 0.3 else float(rng.uniform(0.01, 1.0)))
    steps = int(rng.integers(1, 30))
    factors = 1 - dt * (decay + np.maximum(eigenvalues, 0.0))
    powers = factors[:, None] ** np.arange(steps)
    shift = dt * powers.sum(1) * (vectors.T @ push)
    variance = 2 * sigma**2 * dt * (powers**2).sum(1)
    arguments: Any = {
        "weight_decay": decay,
        "sigma": sigma,
        "clip": clip,
        "lp_time": steps * dt,
        "neighbours": neighbours,
    }
    # the diffusion's last head, in closed form
    rates = decay + np.maximum(eigenvalues, 0.0)
    lost = np.exp(-rates * steps * dt)
    drifted = (1 - lost) / rates * (vectors.T @ push)
    spread = sigma**2 / rates * (1 - lost**2)
    exact = math.sqrt((drifted**2 / spread).sum())
    chain: Any = {"dt": dt, "smoothness": smoothness}
    return math.sqrt((shift**2 / variance).sum()), exact, arguments, chain


def unit(rng, h, basis):
    """Random unit vector in the span of the columns of a basis."""
    x = basis @ rng.standard_normal(basis.shape[1])
    return x / np.linalg.norm(x)


def check_gaussian_pairs(usable):
    ratios = []
    for seed in count():
        if len(ratios) >= usable:
            break
        mu, exact, arguments, chain = gaussian_pair(seed)
        assert mu <= bounds.last_iterate_gdp(**arguments, **chain) * (1 + 1e-9), seed
        assert exact <= bounds.last_iterate_gdp(**arguments) * (1 + 1e-9), seed
        if mu > 0:
            ratios.append(bounds.last_iterate_gdp(**arguments, **chain) / mu)
        # attained where the samples in common have no say
        mu, exact, arguments, chain = gaussian_pair(seed, kernel=True)
        assert mu == pytest.approx(bounds.last_iterate_gdp(**arguments, **chain), rel=1e-8)
        assert exact == pytest.approx(bounds.last_iterate_gdp(**arguments), rel=1e-8)
        # negative controls: 0.9 of the bound, and twice the decay where it matters
        assert mu > 0.9 * bounds.last_iterate_gdp(**arguments, **chain)
        wrong = bounds.last_iterate_gdp(**arguments | {"weight_decay": 2 * arguments["weight_decay"]})
        assert exact > wrong
    return ratios


def test_last_iterate_of_random_gaussian_pairs():
    check_gaussian_pairs(20)


@pytest.mark.slow
def test_last_iterate_of_random_gaussian_pairs_many(tightness):
    tightness("2b: mu of the last head, Gaussian pairs", check_gaussian_pairs(200))


def clipped_pair(seed):
    """Densities of the last head, in one dimension, for a random neighbouring pair that clips."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 4))
    logistic = bool(seed % 2)
    a = rng.standard_normal(n + 1) * np.exp(rng.uniform(-1, 1))
    y = rng.choice([-1.0, 1.0], n + 1) * (1.0 if logistic else np.exp(rng.uniform(-1, 2, n + 1)))
    decay, clip = float(np.exp(rng.uniform(-2, 0.5))), float(np.exp(rng.uniform(-1, 0.5)))
    # a pair with a mu of order 1
    sigma = clip * float(np.exp(rng.uniform(-0.7, 0.7)))
    smoothness = decay + (a**2).sum() * (0.25 if logistic else 1.0)
    dt = float(rng.uniform(0.3, 1.0)) * 2 / (decay + smoothness)
    steps = int(rng.integers(2, 16))
    wide = sigma * math.sqrt(2 * dt)
    # the head of either chain stays within the stationary reach of its pushes and its noise
    reach = min(steps * dt, 1 / decay) * clip * (n + 1) + 9 * wide * math.sqrt(
        min(steps, 1 / (decay * dt) + 1)
    )
    grid = np.arange(-reach, reach, wide / 24)

    def last(kept):
        f = np.outer(grid, a[kept])
        r = -y[kept] / (1 + np.exp(np.clip(y[kept] * f, -500, 500))) if logistic else f - y[kept]
        gradients = np.clip(r * a[kept], -clip, clip)
        mean = grid - dt * (gradients.sum(1) + decay * grid)
        kernel = np.exp(-0.5 * ((grid[:, None] - mean) / wide) ** 2) * (1 / 24 / math.sqrt(2 * math.pi))
        start = int(np.argmin(np.abs(grid)))
        density = kernel[:, start]
        for _ in range(steps - 1):
            density = kernel @ density
        return density

    everyone = np.arange(n + 1)
    arguments: Any = {"weight_decay": decay, "sigma": sigma, "clip": clip, "lp_time": steps * dt}
    arguments |= {"dt": dt, "smoothness": smoothness}
    return last(everyone), last(everyone[:-1]), arguments


def positive_part(g):
    """Integral of ``max(g, 0)``, linear between the points of the grid."""
    high, low = np.maximum(g[1:], g[:-1]), np.minimum(g[1:], g[:-1])
    partial = np.where(high > 0, high**2 / (2 * np.maximum(high - low, 1e-300)), 0.0)
    return np.where(low >= 0, (high + low) / 2, partial).sum()


def check_clipped_pairs(usable):
    """Bound over exact value, and how often 0.9 of mu would be too little."""
    ratios, beyond = [], 0
    for seed in range(usable):
        p, q, arguments = clipped_pair(seed)
        # densities times the spacing of the grid
        assert p.sum() == pytest.approx(1, abs=1e-7)
        assert q.sum() == pytest.approx(1, abs=1e-7)
        mu = bounds.last_iterate_gdp(**arguments)
        found = 0.0
        for eps in (0.0, 0.3 * mu, mu, 2 * mu):
            exact = max(positive_part(p - math.exp(eps) * q), positive_part(q - math.exp(eps) * p))
            assert exact <= bounds.gdp_delta(mu, eps) + 3e-5, (seed, eps)
            if eps == 0.0:
                found = exact
        beyond += found > bounds.gdp_delta(0.9 * mu, 0.0) + 3e-5
        ratios.append(bounds.gdp_delta(mu, 0.0) / found)
    return ratios, beyond


def test_last_iterate_of_random_clipped_pairs():
    assert check_clipped_pairs(20)[1] > 0


@pytest.mark.slow
def test_last_iterate_of_random_clipped_pairs_many(tightness):
    ratios, beyond = check_clipped_pairs(200)
    tightness("2b: total variation of the last head, clipped pairs", ratios)
    assert beyond > 10


def test_last_iterate_refuses():
    good: Any = {"sigma": 1.0, "clip": 1.0, "lp_time": 1.0}
    with pytest.raises(ValueError, match="weight_decay must be positive"):
        bounds.last_iterate_gdp(weight_decay=0.0, **good)
    with pytest.raises(ValueError, match="smoothness must be given"):
        bounds.last_iterate_gdp(weight_decay=1.0, dt=0.1, **good)
    with pytest.raises(ValueError, match="dt must be at most"):
        bounds.last_iterate_gdp(weight_decay=1.0, dt=0.5, smoothness=9.0, **good)
