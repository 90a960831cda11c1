"""Section 2b': privacy of the last head of K outputs, by how a step brings two heads together."""

import math
from typing import Any

import numpy as np
import pytest

import bounds
from bounds.distance.spread import DEFECTS, STEP_DEFECTS
from langevin.model.gauge import gauge_basis
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.schedule import Phase
from langevin.model.weights import Weights
from tests.theory import reference, strategies
from tests.theory.test_privacy import positive_part

CONTRACTING = {"square": "flat", "softmax": "margin", "ovr": "column"}
SETTINGS: Any = {"weight_decay": 1.0, "sigma": 2.0, "clip": 0.5, "lp_time": 3.0}


def contraction(dt, **how):
    """``c`` of a step, from the public answers for two steps."""
    how |= {"sigma": 1.0, "lp_time": 2 * dt, "dt": dt}
    # mu^2 is dt / 2 (1 + c)^2 / (1 + c^2) for clip 1
    share = 2 * (bounds.last_iterate_gdp(**how) / how["clip"]) ** 2 / dt - 1
    return (1 - math.sqrt(max(1 - share**2, 0.0))) / share if share > 0 else 0.0


def largest_stretch(problem, weights, phase, decay, dt, rng, heads=200):
    """Largest stretch of a step over pairs of heads, along the directions in which it stretches most."""
    shape, size = weights.v.shape, weights.v.size
    V = np.exp(rng.uniform(-2, 3, (heads, 1, 1))) * rng.standard_normal((heads, *shape))

    def apart(bumps, length):
        """Differences over the distance, of pairs along bumps (heads, m, h, K)."""
        both = np.stack([V[:, None] + length / 2 * bumps, V[:, None] - length / 2 * bumps])
        flat = both.reshape(-1, *shape)
        W = np.broadcast_to(weights.W, (len(flat), *weights.W.shape))
        drift = reference.drift_outputs(problem, W, flat, phase)[1] - decay * flat
        after = (flat + dt * drift).reshape(2, heads, -1, size)
        return (after[0] - after[1]) / length

    jacobian = apart(np.broadcast_to(np.eye(size).reshape(size, *shape), (heads, size, *shape)), 1e-5)
    # rows of differences: the left singular vectors are the directions
    worst = np.linalg.svd(jacobian)[0][:, :, 0].reshape(heads, 1, *shape)
    return float(np.linalg.norm(apart(worst, 1e-3), axis=-1).max())


def check_contracting(loss, count):
    """Largest stretch over ``1 - lambda dt``."""
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        problem, weights = strategies.several(rng, int(rng.choice(strategies.CLASSES)), loss, "linear")
        K, a = problem.outputs_dim, float(np.linalg.norm(problem.features(weights.W), axis=1).max())
        decay, clip = (float(np.exp(rng.uniform(-3, 1))) for _ in range(2))
        public: Any = dict(loss=loss, outputs_dim=K, clipping=CONTRACTING[loss])
        public |= dict(feature_norm=a, samples=problem.samples, weight_decay=decay, clip=clip)
        longest = 2 / (2 * decay + LOSSES[loss].smoothness * problem.samples * a**2)
        dt = longest * (1 - 1e-12 if rng.random() < 0.3 else float(rng.uniform(0.05, 1)))
        c = contraction(dt, **public)
        assert c == pytest.approx(1 - decay * dt, rel=1e-7)
        phase = Phase("lp", 1.0, 0.0, clip, clipping=public["clipping"])
        found.append(largest_stretch(problem, weights, phase, decay, dt, rng) / c)
        assert found[-1] <= 1 + 1e-9, seed
    return found


@pytest.mark.parametrize("loss", CONTRACTING)
def test_a_step_under_the_covered_clipping_contracts_like_the_decay(loss):
    found = check_contracting(loss, 20)
    # attained where all samples are clipped, or sure of their class
    assert max(found) > 0.999


def parallel(rng, loss, K):
    """Samples of one direction and length, at which ``Lambda`` is attained, and one without of each class."""
    n, a = int(rng.integers(1, 4)), float(np.exp(rng.uniform(-0.5, 1)))
    X = np.concatenate([np.full((n, 1), a), np.zeros((K, 1))])
    problem = Problem(X, [*rng.integers(0, K, n), *range(K)], "linear", loss)
    return problem, Weights([[1.0]], np.zeros((1, K))), n, a


def check_flat(loss, count):
    """Excess of the largest stretch over ``1 - lambda dt``, as a share of what is allowed."""
    shares = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        K = int(rng.choice([3, 5, 10] if loss == "softmax" else strategies.CLASSES))
        problem, weights, n, a = parallel(rng, loss, K)
        clip = a * float(np.exp(rng.uniform(-3, -0.5)))
        decay = STEP_DEFECTS[loss] * clip * a * n * float(rng.uniform(1.3, 5))
        public: Any = dict(loss=loss, outputs_dim=K, feature_norm=a, samples=n, weight_decay=decay, clip=clip)
        longest = 2 / (2 * decay + LOSSES[loss].smoothness * n * a**2)
        dt = longest * float(rng.uniform(0.02, 0.3))
        c = contraction(dt, **public)
        assert 1 - decay * dt < c < 1
        stretch = largest_stretch(problem, weights, Phase("lp", 1.0, 0.0, clip), decay, dt, rng, 1000)
        assert stretch <= c + 1e-9, seed
        shares.append((stretch - (1 - decay * dt)) / (c - (1 - decay * dt)))
    return shares


@pytest.mark.parametrize("loss", ["softmax", "ovr"])
def test_a_step_under_flat_clipping_has_an_allowance_and_needs_it(loss):
    shares = check_flat(loss, 20)
    # negative control: without the allowance, nearly all instances are violations
    assert np.mean(np.array(shares) > 1e-4) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("loss", [*CONTRACTING, "softmax flat", "ovr flat"])
def test_steps_many(loss, tightness):
    name, *flat = loss.split()
    if flat:
        # what is allowed over what is used, where any is
        shares = [1 / share for share in check_flat(name, 200) if share > 1e-4]
        tightness(f"2b': allowance of a step, {loss}", shares)
    else:
        tightness(f"2b': Lipschitz constant of a step, {loss}", [1 / r for r in check_contracting(name, 200)])


def gaussian_pair(seed):
    """``mu`` of a pair with Gaussian last heads, as one sample pushes at the clip throughout; arguments."""
    rng = np.random.default_rng(seed)
    K, steps = int(rng.choice(strategies.CLASSES)), int(rng.integers(1, 30))
    decay, clip, sigma, a = (float(np.exp(rng.uniform(-2, 1))) for _ in range(4))
    public: Any = dict(loss="square", outputs_dim=K, feature_norm=a, samples=1, weight_decay=decay)
    longest = 2 / (2 * decay + a**2)
    dt = longest * float(rng.uniform(0.01, 1))
    # far targets in a random direction, reached by no head
    Y = 1e9 * rng.standard_normal((1, K))
    problem, phase = Problem([[a]], Y, "linear", "square"), Phase("lp", 1.0, 0.0, clip)
    V = {True: np.zeros((1, 1, K)), False: np.zeros((1, 1, K))}
    variance = 0.0
    for _ in range(steps):
        for whole, head in V.items():
            push = reference.drift_outputs(problem, np.ones((1, 1, 1)), head, phase)[1]
            V[whole] = head + dt * (whole * push - decay * head)
        variance = (1 - decay * dt) ** 2 * variance + 2 * sigma**2 * dt
    mu = float(np.linalg.norm(V[True] - V[False])) / math.sqrt(variance)
    return mu, public | dict(sigma=sigma, clip=clip, lp_time=steps * dt, dt=dt)


def test_gaussian_pairs_attain_the_bound():
    for seed in range(20):
        mu, how = gaussian_pair(seed)
        assert mu == pytest.approx(bounds.last_iterate_gdp(**how), rel=1e-6), seed


SLACK = 3e-4
"""Error of delta on the grid, see `test_the_grid_is_fine_enough`."""
PAIRS = [("square", "flat"), ("softmax", "margin"), ("softmax", "flat"), ("ovr", "column"), ("ovr", "flat")]
# negative control: a share of mu that is too little where a sample pushes throughout
LITTLE = dict.fromkeys(("flat", "column"), 0.9) | {"margin": 0.9 * math.sqrt(3) / 2}
"""Under margin clipping by even others, a gradient has ``C sqrt(K / (2 (K - 1)))``."""


class Pair:
    """Densities of the last head on a grid in two dimensions, for a random neighbouring pair."""

    def __init__(self, seed, loss, clipping: Any):
        rng = np.random.default_rng(seed)
        # the gauge of three outputs of softmax has the same law for both, and is left out
        self.K = 3 if LOSSES[loss].gauge else 2
        self.E = gauge_basis(3) if LOSSES[loss].gauge else np.eye(2)
        n, self.steps = int(rng.integers(1, 4)), int(rng.integers(2, 6))
        a = rng.choice([-1.0, 1.0], n + 1) * np.exp(rng.uniform(-1, 0.7, n + 1))
        self.clip, self.decay = float(np.exp(rng.uniform(-2, 0.3))), float(np.exp(rng.uniform(-1.5, 0.7)))
        sigma = self.clip * float(np.exp(rng.uniform(-0.4, 0.7)))
        norm = float(np.abs(a).max())
        expansion = (
            STEP_DEFECTS[loss] * self.clip * norm * (n + 1)
            if clipping == "flat" and loss in STEP_DEFECTS
            else 0.0
        )
        self.decay += 1.2 * expansion
        longest = 2 / (2 * self.decay + LOSSES[loss].smoothness * (n + 1) * norm**2)
        self.dt = longest * float(rng.uniform(0.1, 0.4 if expansion else 1.0))
        y = rng.integers(0, self.K, n + 1)
        Y = 2 * rng.standard_normal((n + 1, 2)) if loss == "square" else y
        self.full = (np.append(a, np.zeros(self.K)), Y)
        self.loss, self.phase = loss, Phase("lp", 1.0, 0.0, self.clip, clipping=clipping)
        self.wide = sigma * math.sqrt(2 * self.dt)
        lasting = min(self.steps, 1 / (self.decay * self.dt) + 1)
        reach = lasting * self.dt * self.clip * (n + 1) + 7 * self.wide * math.sqrt(lasting)
        self.reach = reach
        self.how: Any = dict(
            weight_decay=self.decay, sigma=sigma, clip=self.clip, lp_time=self.steps * self.dt
        )
        self.how |= dict(dt=self.dt, loss=loss, outputs_dim=self.K, clipping=clipping, feature_norm=norm)
        self.how["samples"] = n + 1

    def mean(self, heads, whole):
        """Where a step without noise takes heads (P, 2)."""
        a, Y = self.full
        a = a.copy()
        # a sample without features has no gradient
        a[len(Y) - 1] *= whole
        rest = np.zeros((self.K, 2)) if self.loss == "square" else np.arange(self.K)
        problem = Problem(a[:, None], np.concatenate([Y, rest]), "linear", self.loss)
        V = (heads @ self.E.T)[:, None]
        drift = reference.drift_outputs(problem, np.ones((len(heads), 1, 1)), V, self.phase)[1][:, 0]
        return heads + self.dt * (drift @ self.E - self.decay * heads)

    def last(self, whole, per=3.0):
        """Density times cell on a grid of ``per`` points to the noise of a step, at the end twice as many."""
        grid = np.arange(-self.reach, self.reach, self.wide / per)
        points = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
        start, means = self.mean(np.zeros((1, 2)), whole), self.mean(points, whole)
        fine = np.arange(-self.reach, self.reach, self.wide / per / 2)

        def kernels(to, centres):
            """Noise of a step around centres (P, 2) in each coordinate, shapes (m, P)."""
            scale = (to[1] - to[0]) / self.wide / math.sqrt(2 * math.pi)
            return [scale * np.exp(-0.5 * ((to[:, None] - c) / self.wide) ** 2) for c in centres.T]

        first, second = kernels(grid, start)
        density = first @ second.T
        first, second = kernels(grid, means)
        for _ in range(self.steps - 2):
            density = first @ (density.reshape(-1, 1) * second.T)
        first, second = kernels(fine, means)
        return first @ (density.reshape(-1, 1) * second.T)


def check_pairs(loss, clipping, count):
    """Bound over exact total variation, and how often a share of mu would be too little."""
    ratios, beyond = [], 0
    for seed in range(count):
        pair = Pair(seed, loss, clipping)
        p, q = pair.last(True), pair.last(False)
        assert p.sum() == pytest.approx(1, abs=1e-6)
        assert q.sum() == pytest.approx(1, abs=1e-6)
        mu = bounds.last_iterate_gdp(**pair.how)
        exact = []
        for epsilon in (0.0, 0.3 * mu, mu, 2 * mu):
            share = math.exp(epsilon)
            exact.append(max(positive_part(p - share * q), positive_part(q - share * p)))
            assert exact[-1] <= bounds.gdp_delta(mu, epsilon) + SLACK, (seed, epsilon)
        beyond += exact[0] > bounds.gdp_delta(LITTLE[clipping] * mu, 0.0) + SLACK
        ratios.append(bounds.gdp_delta(mu, 0.0) / exact[0])
    return ratios, beyond


@pytest.mark.parametrize(("loss", "clipping"), PAIRS)
def test_the_grid_is_fine_enough(loss, clipping):
    pair = Pair(1, loss, clipping)
    found = []
    for per in (0.4, 3.0, 5.0):
        p, q = pair.last(True, per), pair.last(False, per)
        found.append(np.array([positive_part(p - share * q) for share in (1, 1.2)]))
    assert np.abs(found[1] - found[2]).max() < SLACK / 2
    # negative control: a coarse grid
    assert np.abs(found[0] - found[2]).max() > SLACK


@pytest.mark.parametrize(("loss", "clipping"), PAIRS)
def test_delta_of_the_last_head(loss, clipping):
    assert check_pairs(loss, clipping, 10)[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "clipping"), PAIRS)
def test_delta_of_the_last_head_many(loss, clipping, tightness):
    ratios, beyond = check_pairs(loss, clipping, 200)
    tightness(f"2b': total variation of the last head, {loss} {clipping}", ratios)
    assert beyond > 20


def public(loss, K, **rest) -> Any:
    return SETTINGS | dict(loss=loss, outputs_dim=K, feature_norm=1.5, samples=4) | rest


@pytest.mark.parametrize("loss", CONTRACTING)
@pytest.mark.parametrize("K", strategies.CLASSES)
def test_covered_clipping_has_the_bound_of_one_output(loss, K):
    how = public(loss, K, clipping=CONTRACTING[loss])
    assert bounds.last_iterate_gdp(**how) == bounds.last_iterate_gdp(**SETTINGS)
    smoothness = 1.0 + {"square": 1.0, "softmax": 0.5, "ovr": 0.25}[loss] * 4 * 1.5**2
    dt = 2 / (1.0 + smoothness) * (1 - 1e-9)
    expected = bounds.last_iterate_gdp(**SETTINGS, dt=dt, smoothness=smoothness)
    assert bounds.last_iterate_gdp(**how, dt=dt) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match=r"dt must be at most 2/\(lambda \+ M\)"):
        bounds.last_iterate_gdp(**how, dt=1.001 * dt)
    # negative control: more samples allow shorter steps only
    with pytest.raises(ValueError, match=r"dt must be at most 2/\(lambda \+ M\)"):
        bounds.last_iterate_gdp(**{**how, "samples": 5}, dt=dt)


@pytest.mark.parametrize(("loss", "K"), [("softmax", 3), ("softmax", 10), ("ovr", 2)])
def test_flat_clipping_has_less_decay(loss, K):
    how = public(loss, K)
    expansion = DEFECTS[loss] * 0.5 * 1.5 * 4
    mu = bounds.last_iterate_gdp(**how)
    assert mu == pytest.approx(bounds.last_iterate_gdp(**SETTINGS | {"weight_decay": 1.0 - expansion}))
    assert mu > 1.001 * bounds.last_iterate_gdp(**SETTINGS)
    # the chain tends to the diffusion, from above: its allowance is larger
    gaps = [bounds.last_iterate_gdp(**how, dt=dt) / mu - 1 for dt in (1e-2, 1e-3, 1e-5, 1e-15)]
    assert np.abs(gaps[:3]) == pytest.approx(sorted(np.abs(gaps[:3]), reverse=True))
    assert gaps[2:] == pytest.approx([0, 0], abs=1e-4)
    # of neighbours that replace a sample, twice as much
    assert bounds.last_iterate_gdp(**how, neighbours="replace") == pytest.approx(2 * mu)
    # clipping that cannot act
    idle = {**how, "clip": 1.5 * math.sqrt(2 if loss == "softmax" else K)}
    assert bounds.last_iterate_gdp(**idle) == pytest.approx(
        bounds.last_iterate_gdp(**SETTINGS | {"clip": idle["clip"]})
    )
    assert bounds.last_iterate_gdp(**{**idle, "clip": 0.99 * idle["clip"], "weight_decay": 9.0}) > (
        bounds.last_iterate_gdp(**SETTINGS | {"clip": 0.99 * idle["clip"], "weight_decay": 9.0})
    )


def test_two_outputs_of_softmax_are_one_of_the_logistic_loss():
    """With features ``sqrt(2) A``: the same curvature, and flat clipping is margin clipping."""
    one = public("logistic", 1, feature_norm=1.5 * math.sqrt(2), dt=0.05)
    for clipping in ("flat", "margin"):
        two = public("softmax", 2, dt=0.05, clipping=clipping)
        assert bounds.last_iterate_gdp(**two) == pytest.approx(bounds.last_iterate_gdp(**one), rel=1e-12)
    # negative control: three are not
    assert bounds.last_iterate_gdp(**public("softmax", 3, dt=0.05)) > 1.001 * bounds.last_iterate_gdp(**one)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (dict(loss=None), "loss must be given with outputs_dim=3, got None"),
        (dict(loss="hinge"), "loss must be one of"),
        (
            dict(loss="logistic"),
            "outputs_dim must be 1 with loss='logistic', got 3: K outputs are not covered",
        ),
        (dict(loss="huber"), "outputs_dim must be 1 with loss='huber', got 3"),
        (dict(outputs_dim=1), "outputs_dim must be at least 2 with loss='softmax', got 1"),
        (
            dict(clipping="column"),
            "clipping must be 'flat' or 'margin' with outputs_dim=3 and loss='softmax'",
        ),
        (dict(clipping="normalised"), "clipping must be 'flat' or 'margin' .*got 'normalised'"),
        (dict(loss="ovr", clipping="margin"), "clipping must be 'flat' or 'column' .*got 'margin'"),
        (dict(loss="square", clipping="margin"), "clipping must be 'flat' with .*got 'margin'"),
        (dict(loss=None, outputs_dim=1, clipping="margin"), "clipping must be 'flat' with .*got 'margin'"),
        (
            dict(feature_norm=None),
            "feature_norm and samples must be given with flat clipping of outputs_dim=3",
        ),
        (dict(samples=None), "feature_norm and samples must be given .*hold for all data sets"),
        (dict(samples=None, clipping="margin", dt=0.1), "feature_norm and samples must be given with dt"),
        (dict(feature_norm=-1.0), "feature_norm must be positive"),
        (dict(sample_rate=0.5), r"sample_rate must be 1 for the privacy of the path, got 0\.5"),
        (dict(weight_decay=0.04), r"weight_decay must exceed Lambda = 0\.04268.*take clipping='margin'"),
        (dict(weight_decay=0.05, dt=0.2), "dt must be so small that a step brings two heads together"),
        (dict(weight_decay=2.0, dt=0.5), r"dt must be at most 2/\(lambda \+ M\) = 0\.235"),
        (dict(weight_decay=2.0, dt=0.1, smoothness=1.0), "smoothness must be at least weight_decay=2, got 1"),
    ],
)
def test_what_is_refused_is_named(how, said):
    bounds.last_iterate_gdp(**public("softmax", 3))
    with pytest.raises(ValueError, match=said):
        bounds.last_iterate_gdp(**public("softmax", 3) | how)
