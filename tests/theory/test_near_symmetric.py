"""Section 4b'(b), heads near symmetric ones: what deviations do, along flows of a single class."""

import math

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import softmax

import bounds
from bounds.features.classes import decouple_classes
from bounds.loss.enclosures import near_symmetric
from bounds.loss.enclosures.near_symmetric import NearSymmetric, excess
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from tests.theory import strategies

CLASSES = [K for K in strategies.CLASSES if K > 2]
CLAIMS = ("norm of E", "outputs", "shares", "excess", "features", "heads", "least", "most", "norms")


def drawn(seed):
    """The class with most neurons of a random problem, its squared norms, and a phase."""
    rng = np.random.default_rng(seed)
    K = CLASSES[seed % len(CLASSES)]
    head = float(np.exp(rng.uniform(-4, 0.5)))
    problem, weights = strategies.classes(
        rng, K=K, spread=None if rng.random() < 0.5 else 0.3, h=3 * K, head=head
    )
    block = max(decouple_classes(problem, weights)[0], key=lambda one: len(one.neurons))
    clip = None if rng.random() < 0.4 else float(np.exp(rng.uniform(-1.5, 1.0)))
    phase = Phase("lp" if rng.random() < 0.3 else "fft", float(np.exp(rng.uniform(-2.5, 0))), clip=clip)
    return block, problem.squared_norms[block.samples], phase


class Flow:
    """A class from its definition, next to the net of its averaged heads driven by the same samples."""

    def __init__(self, block, norms, phase):
        self.G, self.norms, self.phase, self.own = block.G, norms, phase, block.own
        self.shape, self.K = block.Z.shape, block.classes
        self.lead = block.V[:, block.own] - block.rivals.mean(1)
        start = [block.Z, block.V, block.Z, self.lead, [0.0]]
        start = np.concatenate([np.ravel(part) for part in start])
        times = np.linspace(0, phase.time, 9)
        solved = solve_ivp(self.rate, (0, phase.time), start, rtol=1e-9, atol=1e-12, t_eval=times)
        self.states = [self.parts(y) for y in solved.y.T]

    def parts(self, y):
        (h, n), K = self.shape, self.K
        Z, V, Z0, alpha0, S = np.split(y, np.cumsum([h * n, h * K, h * n, h]))
        return Z.reshape(h, n), V.reshape(h, K), Z0.reshape(h, n), alpha0, S[0]

    def residuals(self, Z, V):
        """Residuals, shape (n, K), and norms of the gradients."""
        R = softmax(Z.T @ V, axis=1) - np.eye(self.K)[self.own]
        squared = (R**2).sum(1) * (Z**2).sum(0)
        if self.phase.method == "fft":
            squared = squared + self.norms * ((V @ R.T) ** 2).sum(0)
        return R, np.sqrt(squared)

    def rate(self, _, y):
        Z, V, Z0, alpha0, _ = self.parts(y)
        R, size = self.residuals(Z, V)
        c = 1.0 if self.phase.clip is None else np.minimum(1.0, self.phase.clip / size)
        weights = c * -R[:, self.own]
        c = np.broadcast_to(c, weights.shape)
        G = self.G if self.phase.method == "fft" else np.zeros_like(self.G)
        dZ, dV = -(V @ (c[:, None] * R).T) @ G, -Z @ (c[:, None] * R)
        dZ0 = np.outer(alpha0, weights @ G)
        dalpha0 = self.K / (self.K - 1) * Z0 @ weights
        return np.concatenate([dZ.ravel(), dV.ravel(), dZ0.ravel(), dalpha0, [weights.sum()]])


def ratios(seed):
    """Each claim's largest ratio of a quantity to its bound along a flow, of margins the largest excess."""
    block, norms, phase = drawn(seed)
    flow, form = Flow(block, norms, phase), NearSymmetric(block, norms)
    form.prepare(phase)
    scale, n = form.scale, block.classes - 1
    found = dict.fromkeys(CLAIMS, 0.0)

    def keep(claim, value, bound):
        ratio = np.max(np.asarray(value) / np.maximum(bound, 1e-9))
        found[claim] = max(found[claim], float(ratio))

    for Z, V, Z0, alpha0, S in flow.states:
        if (Z <= 0).any() or (Z0 <= 0).any():
            break
        clock = np.array([S])
        moved = form.moved(phase, clock)[0]
        rivals = np.delete(V, block.own, axis=1)
        lead, E = V[:, block.own] - rivals.mean(1), rivals - rivals.mean(1, keepdims=True)
        F = Z.T @ E
        shares = softmax(F, axis=1) - 1 / n
        keep("norm of E", np.linalg.norm(E), scale * form.deviation)
        keep("outputs", np.linalg.norm(F, axis=1), moved.outputs[0])
        keep("shares", np.linalg.norm(shares, axis=1), form._largest(moved.outputs)[1][0])
        keep("excess", np.logaddexp.reduce(F, axis=1) - math.log(n), excess(moved.outputs, n)[0])
        keep("features", scale * np.linalg.norm(Z - Z0, axis=0), moved.features)
        keep("heads", np.linalg.norm(lead - alpha0) / scale, moved.heads)
        (low, least), (high, most) = form.least(phase, clock), form.most(phase, clock)
        M = Z.T @ lead - np.logaddexp.reduce(F, axis=1)
        keep("least", 1 + low[0] - M, 1.0)
        keep("most", 1 + M - high[0], 1.0)
        if least is not None and most is not None:
            R, size = flow.residuals(Z, V)
            size = size / -R[:, block.own]
            keep("norms", size, most[0])
            keep("norms", least[0], size)
    return found


def worst(seeds):
    found = [ratios(seed) for seed in seeds]
    return {claim: [one[claim] for one in found] for claim in CLAIMS}


def broken(seeds):
    """Claims that fail beyond the flow's tolerance."""
    return {claim for claim, values in worst(seeds).items() if max(values) > 1 + 1e-6}


def test_what_deviations_do():
    found = worst(range(24))
    assert all(max(values) <= 1 + 1e-6 for values in found.values()), found
    # the bounds are of the right order
    assert all(max(values) > 0.3 for values in found.values())


@pytest.mark.slow
def test_what_deviations_do_many(tightness):
    found = worst(range(24, 264))
    assert all(max(values) <= 1 + 1e-6 for values in found.values()), found
    for claim in ("outputs", "shares", "excess", "features", "heads"):
        values = [1 / value for value in found[claim] if value > 0]
        tightness(f"4b'(b), near symmetric heads: bound of {claim} / value", values)


def test_the_softmax_is_not_that_of_small_outputs(monkeypatch):
    """``1 / N`` is the Jacobian at equal outputs alone."""

    def small(self, outputs):
        jacobian = np.full(outputs.shape, 1 / self.rivals)
        return jacobian, jacobian * np.minimum(outputs, 1e3)

    monkeypatch.setattr(NearSymmetric, "_largest", small)
    assert "shares" in broken(range(12))


def test_deviations_are_seen(monkeypatch):
    plain = NearSymmetric._subspaces

    def nothing(self, *given):
        start = plain(self, *given)
        return start._replace(seen=0 * start.seen, features_out=0 * start.features_out)

    monkeypatch.setattr(NearSymmetric, "_subspaces", nothing)
    assert {"outputs", "least"} <= broken(range(12))


@pytest.mark.parametrize(("name", "claim"), [("excess", "least"), ("_growth", "features")])
def test_margins_need_both_parts(name, claim, monkeypatch):
    """The excess of the log-sum-exp, and the drift from the averaged net."""
    if name == "excess":
        monkeypatch.setattr(near_symmetric, name, lambda r, n: 0 * r)
    else:
        monkeypatch.setattr(NearSymmetric, name, lambda *given: lambda u, v: (u, v))
    assert claim in broken(range(12))


@pytest.mark.parametrize("n", [2, 4, 9])
def test_the_excess_is_the_largest(n):
    """Over numbers of mean 0 and a given norm; one large number attains it."""
    rng = np.random.default_rng(n)
    for r in (0.1, 1.0, 5.0):
        x = rng.standard_normal((5000, n)) * rng.choice([0.1, 1.0, 5.0], (5000, n))
        x -= x.mean(1, keepdims=True)
        x *= r / np.linalg.norm(x, axis=1, keepdims=True)
        found = np.logaddexp.reduce(x, axis=1) - math.log(n)
        bound = excess(np.array([r]), n)[0]
        assert found.max() <= bound * (1 + 1e-9)
        peak = np.eye(n)[0] - 1 / n
        np.testing.assert_allclose(
            np.logaddexp.reduce(r * peak / np.linalg.norm(peak)) - math.log(n), bound, rtol=1e-7
        )


@pytest.mark.parametrize(("head", "near"), [(1e-4, True), (0.05, False)])
def test_small_heads_are_as_tight_as_a_zero_head(head, near):
    """Where the bounds by slopes alone are wider by orders of magnitude."""
    rng = np.random.default_rng(4)
    problem, weights = strategies.classes(rng, K=10, spread=0.3, h=40, head=head)
    schedule, times = Schedule.fft(time=0.5, clip=1.0), np.linspace(0, 0.5, 5)
    band = bounds.sandwich(problem, weights, schedule, times)
    zero = bounds.sandwich(problem, Weights(weights.W, 0 * weights.v), schedule, times)
    assert "4b'(b)" in band.source
    assert "4b'(b)" not in zero.source
    ratio = np.log(band.upper / band.lower)[1:] - np.log(zero.upper / zero.lower)[1:]
    both = (band.valid & zero.valid)[1:]
    assert both.any()
    assert (np.abs(ratio[both]) < 0.01).all() == near
