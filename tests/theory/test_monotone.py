"""Section 1a': which clipping keeps the drift of probing K outputs monotone, and how far others fail."""

from typing import Any

import numpy as np
import pytest

import bounds
from bounds.distance import spread
from bounds.distance.approximation import KINDS
from bounds.distance.spread import DEFECTS, MONOTONE, Features
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from tests.theory import reference, strategies

PAIRS = 40_000
CLIP = 0.1
# p, where flat clipping of the softmax loss is not monotone
COUNTEREXAMPLE = np.array([0.05, 0.80, 0.15])


def one_sample(loss, K):
    """A sample of class 0 with feature 1, whose head row is its output; the others have no features."""
    y = np.arange(K) if LOSSES[loss].classes else np.eye(K)
    return Problem(np.eye(K)[:, :1], y, "linear", loss)


def drift(loss, F, clipping: Any = "flat", clip: float | None = CLIP):
    """``-c r`` of that sample at outputs F (P, K)."""
    phase = Phase("lp", 1.0, 0.0, clip, clipping=clipping)
    problem = one_sample(loss, F.shape[1])
    return reference.drift_outputs(problem, np.ones((len(F), 1, 1)), F[:, None], phase)[1][:, 0]


def pairs(rng, K, count=PAIRS):
    """Outputs of many sizes, and differences of many sizes."""

    def size():
        return np.exp(rng.uniform(-3, 2, (count, 1)))

    F = size() * rng.standard_normal((count, K))
    return F, F + size() * rng.standard_normal((count, K))


def growth(loss, F, G, **how):
    """``(b - b') . (f - f') / ||f - f'||^2`` and ``||b - b'|| / ||f - f'||`` of each pair."""
    step, gap = F - G, drift(loss, F, **how) - drift(loss, G, **how)
    squares = (step**2).sum(1)
    return (gap * step).sum(1) / squares, np.sqrt((gap**2).sum(1) / squares)


def how_of(name):
    return {"clip": None} if name == "none" else {"clipping": name}


@pytest.mark.parametrize("K", strategies.CLASSES)
@pytest.mark.parametrize("loss", MONOTONE)
def test_monotone_and_smooth_under_the_declared_clipping(loss, K):
    rng = np.random.default_rng(K)
    names = {*MONOTONE[loss], *({"flat", "normalised"} if loss == "softmax" and K == 2 else ())}
    for name in names:
        found, stretch = growth(loss, *pairs(rng, K), **how_of(name))
        assert found.max() < 1e-9
        scale = CLIP / Phase("lp", 1.0).stabiliser if name == "normalised" else 1.0
        assert stretch.max() <= scale * LOSSES[loss].smoothness * (1 + 1e-6)


@pytest.mark.parametrize(
    ("loss", "K"), [("softmax", 3), ("softmax", 5), ("softmax", 10), ("ovr", 2), ("ovr", 10), ("huber", 3)]
)
def test_flat_clipping_is_not_monotone(loss, K):
    found, _ = growth(loss, *pairs(np.random.default_rng(K), K))
    assert found.max() > 1e-6
    if loss in DEFECTS:
        assert found.max() <= DEFECTS[loss] * CLIP


def jacobian(p, y=0):
    """Of the clipped residual ``r / ||r||`` of the softmax loss, at probabilities p (P, K)."""
    q = np.where(np.arange(p.shape[1]) == y, 0.0, p)
    q /= q.sum(1, keepdims=True)
    rho = np.sqrt(1 + (q**2).sum(1))[:, None]
    s = (q - np.eye(p.shape[1])[y]) / rho
    H = q[:, :, None] * np.eye(p.shape[1]) - q[:, :, None] * q[:, None, :]
    J = H - s[:, :, None] * (s[:, None, :] @ H)
    return J / rho[:, :, None]


def test_the_jacobian_is_that_of_the_clipped_residual_and_asymmetric():
    J = jacobian(COUNTEREXAMPLE[None])[0]
    f, step = np.log(COUNTEREXAMPLE), 1e-5 * np.eye(3)
    measured = -(drift("softmax", f + step) - drift("softmax", f - step)) / (2e-5 * CLIP)
    assert pytest.approx(J, abs=1e-8) == measured.T
    assert np.abs(J - J.T).max() == pytest.approx(0.040, abs=5e-4)
    assert np.linalg.eigvalsh(J + J.T)[0] / 2 == pytest.approx(-0.00657, abs=5e-6)
    # with equal others it is the symmetric, positive one of two outputs
    even = jacobian(np.array([[0.05, 0.475, 0.475]]))[0]
    assert np.abs(even - even.T).max() < 1e-15
    assert np.linalg.eigvalsh(even)[0] > -1e-15


@pytest.mark.parametrize(
    ("K", "largest"), [(3, 0.0066), (4, 0.0088), (5, 0.0098), (10, 0.0116), (50, 0.0127)]
)
def test_how_far_the_softmax_loss_is_from_monotone(K, largest):
    # one of the others near sqrt(.45), where the bound is largest, the rest even
    rng = np.random.default_rng(0)
    top = np.linspace(0.05, 0.95, 4000)[:, None]
    rest = 1 + (0.3 * rng.random((4000, K - 2)) if K > 3 else 0 * top)
    p = 0.5 * np.hstack([np.ones_like(top), top, (1 - top) * rest / rest.sum(1, keepdims=True)])
    J = jacobian(p)
    lowest = -np.linalg.eigvalsh(J + J.swapaxes(1, 2))[:, 0].min() / 2
    assert 0.9 * largest < lowest <= largest + 5e-5
    assert lowest <= DEFECTS["softmax"]


def ovr_jacobian(g):
    """Of the clipped residual ``r / ||r||`` of one-vs-rest, at ``|r_k|`` (P, K), up to signs."""
    size = np.linalg.norm(g, axis=1)[:, None]
    s, slope = g / size, g * (1 - g)
    J = slope[:, :, None] * np.eye(g.shape[1]) - s[:, :, None] * (s * slope)[:, None, :]
    return J / size[:, :, None]


@pytest.mark.parametrize(
    ("K", "largest"), [(2, 0.0237), (3, 0.0358), (5, 0.0492), (10, 0.0644), (50, 0.0879)]
)
def test_how_far_one_vs_rest_is_from_monotone(K, largest):
    rng = np.random.default_rng(K)
    g = np.exp(rng.uniform(-9, -0.1, (3000, 1)) + rng.uniform(-4, 0, (3000, K)))
    even = np.hstack([np.ones((300, 1)), np.geomspace(0.02, 1, 300)[:, None] * np.ones((300, K - 1))])
    J = ovr_jacobian(np.concatenate([g, 1e-6 * even]))
    lowest = -np.linalg.eigvalsh(J + J.swapaxes(1, 2))[:, 0].min() / 2
    assert lowest == pytest.approx(largest, abs=5e-5)
    assert lowest <= DEFECTS["ovr"]


def test_the_constant_of_one_vs_rest_is_attained_by_many_outputs():
    """One large residual and the rest even, in the plane of the two, as all become small."""
    P, v = np.meshgrid(np.linspace(0, 1, 2001)[1:-1], np.linspace(0, 1, 2001)[1:-1])
    bound = (P**1.5 * (1 - P) * v * (1 - v) / (1 - P + P * v**2)).max()
    assert 0 < DEFECTS["ovr"] - bound < 1e-6
    found = []
    for K in (100, 10_000, 10_000_000):
        P = np.linspace(0.5, 0.99, 500)
        s = np.stack([np.sqrt(P), np.sqrt(1 - P)], 1)
        slope = np.stack([np.sqrt(P), np.sqrt((1 - P) / (K - 1))], 1)
        J = slope[:, :, None] * np.eye(2) - s[:, :, None] * (s * slope)[:, None, :]
        found.append(-np.linalg.eigvalsh(J + J.swapaxes(1, 2))[:, 0].min() / 2)
    assert found[0] < found[1] < found[2] <= DEFECTS["ovr"]
    assert found[2] > 0.999 * DEFECTS["ovr"]


def test_two_noise_free_paths_move_apart():
    J = jacobian(COUNTEREXAMPLE[None])[0]
    worst = np.linalg.eigh(J + J.T)[1][:, 0]
    ends = {}
    for clipping in ("flat", "margin"):
        F = np.log(COUNTEREXAMPLE) + 1e-3 * np.outer([0.5, -0.5], worst)
        apart, first = [], np.linalg.norm(F[0] - F[1])
        for _ in range(2500):
            F = F + 0.1 * drift("softmax", F, clipping)
            apart.append(np.linalg.norm(F[0] - F[1]) / first)
        ends[clipping] = max(apart), apart[-1]
    # by more than 1.5 %, before they come together; under margin clipping never
    assert 1.015 < ends["flat"][0] < 1.02
    assert ends["flat"][1] < 0.5
    assert ends["margin"][0] < 1


def test_the_rate_is_that_of_the_features():
    """``Lambda`` of one sample is ``lambda C / ||A||``; samples that cannot be clipped do not count."""
    problem = one_sample("softmax", 3)
    weights = Weights([[2.0]], np.zeros((1, 3)))
    phase = Phase("lp", 1.0, 0.1, CLIP)

    def rate(phase, dt=None, weights=weights, problem=problem):
        return spread.spread(Features(problem, weights), phase, dt)

    assert rate(phase).rate == pytest.approx(2 * DEFECTS["softmax"] * CLIP * 2.0)
    assert rate(Phase("lp", 1.0, 0.1, 2.9)).rate == 0
    assert rate(Phase("lp", 1.0, 0.1, 2.8)).rate > 0
    assert rate(Phase("lp", 1.0, 0.1)).rate == 0
    assert rate(Phase("lp", 1.0, 0.1, CLIP, clipping="margin")).rate == 0
    refused = rate(Phase("lp", 1.0, 0.1, CLIP, clipping="normalised"))
    assert refused.rate == np.inf
    assert "with normalised clipping is not monotone for 3 outputs of the softmax loss" in refused.reason
    # steps: half the curvature 1/2 times 4 is 1 at dt = 1/2
    assert rate(phase, 0.5).rate == pytest.approx(2 * rate(phase).rate)
    assert rate(phase, 0.99).rate > 50 * rate(phase).rate
    assert rate(phase, 1.0).rate == np.inf
    margin = Phase("lp", 1.0, 0.1, CLIP, clipping="margin")
    assert rate(margin, 1.0).rate == 0
    assert "take dt <= 1" in rate(margin, 1.01).reason
    # two outputs are one
    two = Problem([[1.0], [0.0]], [0, 1], "linear", "softmax")
    assert rate(phase, weights=Weights([[2.0]], np.zeros((1, 2))), problem=two).rate == 0


@pytest.mark.parametrize("loss", ["softmax", "ovr"])
def test_steps_under_flat_clipping_expand_by_no_more_than_stated(loss):
    expanded = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        problem, weights = strategies.several(rng, int(rng.choice([3, 5])), loss, "linear")
        phase = Phase("lp", 1.0, 0.0, float(np.exp(rng.uniform(-3, 0))))
        features = Features(problem, weights)
        dt = rng.uniform(0.05, 0.95) * 2 / (LOSSES[loss].smoothness * features.largest)
        rate = spread.spread(features, phase, dt).rate
        V = np.exp(rng.uniform(-1, 2)) * rng.standard_normal((500, *weights.v.shape))
        U = V + np.exp(rng.uniform(-4, 1)) * rng.standard_normal(V.shape)
        W = np.broadcast_to(weights.W, (500, *weights.W.shape))
        after = [S + dt * reference.drift_outputs(problem, W, S, phase)[1] for S in (V, U)]
        ratio = ((after[0] - after[1]) ** 2).sum((1, 2)) / ((V - U) ** 2).sum((1, 2))
        assert ratio.max() <= 1 + rate * dt + 1e-9
        expanded += ratio.max() > 1 + 1e-9
    # monotone drift would never
    assert expanded > 0


def test_schedules_are_refused_by_name():
    problem = one_sample("softmax", 3)
    weights = Weights([[2.0]], np.zeros((1, 3)))
    schedule = Schedule.lp(time=1.0, sigma=0.1, clip=1.0, clipping="normalised")
    for kind in KINDS:
        covered = kind in ("paper", "lambert")
        band = bounds.approximation_error(problem, weights, schedule, [0.0, 1.0], kind=kind)
        assert band.valid.tolist() == [True, covered]
        assert covered or "take clipping 'none' or 'margin'" in band.reason
    band = bounds.approximation_error(
        problem, weights, Schedule.lp(time=2.2, sigma=0.1), [1.1], kind="monotone", dt=1.1
    )
    assert not band.valid.any()
    assert "take dt <= 1" in band.reason
