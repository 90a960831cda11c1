"""Section 4b': the sandwich of K classes against the zeroth-order flow of the toolkit."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.integrate import cumulative_trapezoid

import bounds
from bounds.features import blocks
from bounds.features.classes import decouple_classes
from bounds.loss import enclosure
from bounds.loss.enclosures.envelope import Envelope, Envelopes
from bounds.loss.enclosures.several_outputs import SeveralOutputs
from langevin import zeroth_order
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from tests.theory import reference, strategies

TIMES = 17
FORMS: dict[str, list[dict[str, Any]]] = {
    "4b'(a), softmax": [{"heads": "symmetric"}, {"heads": "zero"}],
    "4b'(a), one-vs-rest": [{"loss": "ovr", "heads": "opposed"}, {"loss": "ovr", "heads": "zero"}],
    "4b'(b), any heads": [{}],
    "4b'(b), near-collapsed": [{"spread": 0.05}],
    "4b'(b), small heads": [{"spread": 0.3, "h": 40, "head": 0.03}, {"h": 20, "head": 0.1}],
    "4b'(c)": [{"spread": 0.0}, {"spread": 0.0, "loss": "ovr"}],
}


def case(seed, form, K=None):
    rng = np.random.default_rng(seed)
    # two classes have symmetric heads
    classes = [K for K in strategies.CLASSES if K > 2 or "(b)" not in form]
    K = classes[seed % len(classes)] if K is None else K
    problem, weights = strategies.classes(rng, K=K, **FORMS[form][seed // 4 % len(FORMS[form])])
    schedule = strategies.sampled(rng, problem, duration=float(np.exp(rng.uniform(-2, 2))))
    return problem, weights, schedule, np.linspace(0, schedule.duration, TIMES)


def simulated(problem, weights, schedule, times):
    """Loss of the flow, and its error as seen by a coarser tolerance."""

    def run(rtol, atol):
        ask: dict[str, Any] = dict(times=times, reduce="none", rtol=rtol, atol=atol)
        return zeroth_order(problem, weights, schedule, **ask).loss.values

    fine = run(1e-10, 1e-12)
    return fine, np.abs(fine - run(1e-7, 1e-9)) + 1e-9 * (1 + fine)


def check(form, seeds):
    """Ratios of bound to loss, ``upper / L`` and ``L / lower``, by the number of classes."""
    above, below, share = {}, {}, []
    for seed in seeds:
        problem, weights, schedule, times = case(seed, form)
        band = bounds.sandwich(problem, weights, schedule, times)
        ok = band.valid
        share.append(ok.mean())
        if not ok[1:].any():
            assert "cone" in band.reason
            continue
        loss, slack = simulated(problem, weights, schedule, times)
        assert band.contains(loss, slack), (form, seed)
        assert (band.lower[ok] <= band.upper[ok]).all()
        if form == "4b'(c)":
            assert (band.upper - band.lower)[ok].max() <= 1e-5 * loss[0]
        # tightness while a hundredth of the loss is left
        k = np.flatnonzero(ok & (loss >= 0.01 * loss[0]))[-1]
        above.setdefault(problem.outputs_dim, []).append(band.upper[k] / loss[k])
        below.setdefault(problem.outputs_dim, []).append(loss[k] / band.lower[k])
    assert np.mean(share) > 0.5
    return above, below


@pytest.mark.parametrize("form", FORMS)
def test_the_sandwich_contains_the_flow(form):
    above, _ = check(form, range(20))
    assert sum(map(len, above.values())) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_sandwich_contains_the_flow_many(form, tightness):
    above, below = check(form, range(20, 270))
    for K, ratios in above.items():
        tightness(f"{form}: sandwich, upper / L, K = {K}", ratios)
        tightness(f"{form}: sandwich, L / lower, K = {K}", below[K])
    assert sum(map(len, above.values())) >= 200


# --- which form a class has ----------------------------------------------------------------------


def forms(problem, weights):
    """The form of each class, by the name of its statement."""
    return [enclosure._form(problem, block) for block in decouple_classes(problem, weights)[0]]


def test_each_class_has_the_tightest_form():
    """A symmetric class, a collapsed one, and one that is neither."""
    X = np.kron(np.eye(3), [[1.0, 0.2], [0.6, 0.9]])
    X[3] = X[2]
    problem = Problem(X, np.repeat(np.arange(3), 2), loss="softmax")
    W = np.kron(np.eye(3), [1.0, 1.0]) - 0.3
    weights = Weights(W, [[0.4, -0.1, -0.1], [0.1, 0.2, -0.3], [0.1, 0.3, 0.2]])
    assert [form.source for form in forms(problem, weights) if form] == ["4b'(a)", "4b'(c)", "4b'(b)"]
    schedule = Schedule.lp_fft(lp_time=0.5, fft_time=0.5, clip=1.0)
    band = bounds.sandwich(problem, weights, schedule)
    assert band.source == "new (4b'(a), 4b'(b), 4b'(c))"
    assert band.contains(*simulated(problem, weights, schedule, band.times))


def widths(block, problem, schedule, times):
    """Loss of a class between the bounds of 4b'(b), whatever its heads."""
    found = SeveralOutputs(block, problem.squared_norms[block.samples]).enclose(schedule, times)
    return found.lower.sum(1), found.upper.sum(1), found.valid


def test_symmetric_and_collapsed_classes_are_inside_the_form_for_any_heads():
    for seed in range(8):
        for form in ("4b'(a), softmax", "4b'(c)"):
            problem, weights, schedule, times = case(seed, form, K=3)
            if problem.loss != "softmax":
                continue
            for block, best in zip(
                decouple_classes(problem, weights)[0], forms(problem, weights), strict=True
            ):
                if best is None or not len(block.neurons):
                    continue
                how = enclosure._flat(schedule, problem) if best.source == "4b'(a)" else schedule
                tight = best.enclose(how, times)
                low, high, valid = widths(block, problem, schedule, times)
                both = valid & tight.valid
                assert (tight.lower.sum(1) >= low - 1e-7 * (1 + low))[both].all()
                assert (tight.upper.sum(1) <= high + 1e-7 * (1 + high))[both].all()


# --- two classes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "right"), [(math.sqrt(2), True), (1.0, False)])
def test_two_classes_are_the_scalar_sandwich_on_longer_inputs(scale, right):
    """Head ``(V_1 - V_0) / scale`` on ``scale x``, and the same clip."""
    equal = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        problem, weights = strategies.classes(rng, K=2)
        schedule = strategies.schedule(rng, clip="on", duration=1.0)
        times = np.linspace(0, 1, TIMES)
        band = bounds.sandwich(problem, weights, schedule, times)
        scalar = Problem(scale * problem.X, 2.0 * problem.y - 1)
        head = (weights.v[:, 1] - weights.v[:, 0]) / scale
        expected = bounds.sandwich(scalar, Weights(weights.W, head), schedule, times)
        assert not right or (band.valid == expected.valid).all()
        both = band.valid & expected.valid
        equal.append(np.allclose(band.upper[both], expected.upper[both], rtol=1e-9))
        equal.append(np.allclose(band.lower[both], expected.lower[both], rtol=1e-9))
    assert all(equal) == right


# --- negative controls -----------------------------------------------------------------------------


def violations(form, cases, K=None):
    """Number of instances whose band does not contain the flow."""
    wrong = 0
    for seed in range(cases):
        problem, weights, schedule, times = case(seed, form, K)
        band = bounds.sandwich(problem, weights, schedule, times)
        loss, slack = simulated(problem, weights, schedule, times)
        wrong += not band.contains(loss, slack)
    return wrong


@pytest.mark.parametrize("shift", ["loss", "none of the loss"])
def test_symmetric_heads_need_the_shift_of_the_margin(shift, monkeypatch):
    """The scalar net of a class has the loss ``log(1 + (K - 1) exp(-m))``, not the logistic one."""
    if shift != "loss":
        monkeypatch.setitem(blocks.CLASS_MARGINS, "softmax", lambda K: blocks.MARGINS["logistic"])
    assert (violations("4b'(a), softmax", 6, K=5) >= 5) == (shift != "loss")


@pytest.mark.parametrize(("slowest", "right"), [(1.0, True), (1.9, False)])
def test_three_classes_move_half_as_fast_as_two(slowest, right, monkeypatch):
    """For two classes ``1 + q_i . q_k`` is 2, for more it may be anything from 1 on."""
    monkeypatch.setattr(SeveralOutputs, "slowest", slowest)
    assert (violations("4b'(b), near-collapsed", 5, K=10) == 0) == right


@pytest.mark.parametrize(("fastest", "right"), [(2.0, True), (1.1, False)])
def test_the_upper_margins_need_the_fastest_rate(fastest, right, monkeypatch):
    monkeypatch.setattr(SeveralOutputs, "fastest", fastest)
    assert (violations("4b'(b), near-collapsed", 5, K=3) == 0) == right


# --- clipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "right"), [(math.sqrt(3 / 4), True), (1.0, False)])
def test_the_margin_clip_has_its_own_threshold(factor, right, monkeypatch):
    """``C sqrt(K / (K - 1) / 2)`` of a scalar net: ``C`` itself for two classes alone."""
    problem, weights = strategies.classes(np.random.default_rng(3), K=3, heads="symmetric")
    schedule = Schedule.lp(time=2.0, clip=0.2, clipping="margin")
    if not right:
        plain = enclosure._flat
        scaled = [Phase("lp", 2.0, clip=0.2 * factor)]
        monkeypatch.setattr(enclosure, "_flat", lambda *given: Schedule(scaled) if plain(*given) else None)
    band = bounds.sandwich(problem, weights, schedule, times := np.linspace(0, 2, TIMES))
    assert band.contains(*simulated(problem, weights, schedule, times)) == right


# --- closed forms ---------------------------------------------------------------------------------


def test_the_integrals_of_the_envelopes():
    """Against a quadrature, across the clocks at which pulls turn positive and exceed each other."""
    rng = np.random.default_rng(0)
    h, slow, fast, least, most = 40, 1.0, 2.0, 0.3, 0.8
    z, low = rng.uniform(0.5, 1.0, h), rng.uniform(-0.5, 0.3, h)
    below = Envelope(z, low, least, most, slow)
    above = Envelope(z, low + rng.uniform(0.0, 0.6, h), most, least, fast)
    S = np.linspace(0, 1.5, 30_001)
    a, b = below(S)[0], above(S)[0]
    assert (a[0] * b[0] < 0).any()
    assert (b[0] < 0).any()
    assert (a[-1] > 0).all()

    def integral(values):
        return cumulative_trapezoid(values, S, axis=0, initial=0)

    both = Envelopes(below, above)(S)
    expected = [integral(np.minimum(a, 0) ** 2), integral(np.maximum(a, 0) ** 2)]
    expected += [integral(np.minimum(b, 0) ** 2), integral(np.maximum(b, 0) ** 2)]
    np.testing.assert_allclose(both.squares, expected, atol=1e-7)
    parts = [a, integral(np.maximum(a, 0)), integral(np.minimum(a, 0))]
    np.testing.assert_allclose(both.low, parts, atol=1e-7)
    # while they have both signs, ``a b' - a' b`` has the slope ``a b`` times ``(fast - slow) most``
    straddle = (a < 0) & (b > 0)
    inside = straddle[1:] & straddle[:-1]
    change = np.where(inside, np.diff(both.wronskian, axis=0), 0.0).sum(0)
    product = np.where(inside, np.diff(integral(a * b), axis=0), 0.0).sum(0)
    np.testing.assert_allclose(change, (fast - slow) * most * product, atol=1e-7)
    assert (product < -1e-3).any()


def test_the_margins_of_any_heads_are_those_of_their_slopes():
    """4b'(b) integrates bounds of the slopes in closed form: against a quadrature of these bounds."""
    problem, weights = strategies.classes(np.random.default_rng(8), K=3, spread=0.3, h=12)
    block = max(decouple_classes(problem, weights)[0], key=lambda one: len(one.neurons))
    form, phase = SeveralOutputs(block, problem.squared_norms[block.samples]), Phase("fft", 1.0)
    form.prepare(phase)
    S = np.linspace(0, 0.5, 20_001)
    (a, P, N), (b, p, n) = form.below(S), form.above(S)
    # of the first sample
    g, G = form.G_least[0], form.G_most[0]
    z_low = form.Z_low[:, 0] + g * P + G * N
    z_high = form.Z_high[:, 0] + G * p + g * n
    z_least = form.below.z + form.G_least.min() * P + form.G_most.max() * N
    z_most = form.above.z + form.G_most.max() * p + form.G_least.min() * n
    smallest = np.where(a >= 0, g * a**2, np.where(b <= 0, g * b**2, G * a * b))
    slope_low = (z_low * z_least + smallest).sum(1)
    slope_high = (2 * z_high * z_most + G * np.maximum(a**2, b**2)).sum(1)
    for got, slope, start in (
        (form.least(phase, S)[0][:, 0], slope_low, form.m_low[0]),
        (form.most(phase, S)[0][:, 0], slope_high, form.m_high[0]),
    ):
        np.testing.assert_allclose(got - start, cumulative_trapezoid(slope, S, initial=0), 1e-6, 1e-12)
    assert ((form.pull_low < 0) & (form.pull_high > 0)).any()
    assert (form.pull_high < 0).any()


@pytest.mark.parametrize(("K", "falls"), [(2, False), (3, True)])
def test_a_margin_may_fall_with_three_classes(K, falls):
    """The others' outputs differ from sample to sample, and with them how neurons are pulled.

    So 4b's cut at the margins of the start would be wrong here.
    """
    X = np.zeros((K + 1, K + 1))
    X[0, :2], X[1, :2], X[2:, 2:] = [1.0, 0.2], [0.9, 0.9], np.eye(K - 1)
    problem = Problem(X, [0, *range(K)], loss="softmax")
    heads = [[0, 8, -8], [0, -8, 8]]
    weights = Weights([[1.0, 0.1] + [-0.3] * (K - 1), [0.1, 2.0] + [-0.3] * (K - 1)], np.array(heads)[:, :K])
    schedule, times = Schedule.fft(time=0.005), np.linspace(0, 0.005, 6)
    (dW,), (dV,) = reference.drift_outputs(problem, weights.W[None], weights.v[None], schedule.phases[0])

    def margin(step):
        f = problem.outputs(Weights(weights.W + step * dW, weights.v + step * dV))[0]
        return f[0] - np.logaddexp.reduce(f[1:])

    slope = (margin(1e-6) - margin(-1e-6)) / 2e-6
    assert (slope < -0.1) == falls
    if falls:
        block = decouple_classes(problem, weights)[0][0]
        form = SeveralOutputs(block, problem.squared_norms[block.samples])
        low, high, valid, _ = form.run(schedule, times)
        assert valid.all()
        assert low[1, 0] <= margin(times[1]) <= high[1, 0]
    assert bounds.sandwich(problem, weights, schedule, times).contains(
        *simulated(problem, weights, schedule, times)
    )


# --- cones -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.0, 0.05, None])
def test_validity_ends_before_a_neuron_leaves_its_cone(spread):
    """Heads that are large and misaligned."""
    left = 0
    for seed in range(6):
        problem, weights = strategies.classes(np.random.default_rng(seed), K=3, spread=spread)
        weights = Weights(weights.W, 3 * weights.v / np.abs(weights.v).max())
        schedule, times = Schedule.fft(time=1.0), np.linspace(0, 1, 101)
        band = bounds.sandwich(problem, weights, schedule, times)
        run = zeroth_order(
            problem, weights, schedule, times=times, reduce="none", observables=["preactivation"]
        )
        z = run.preactivation.transpose("time", ...).values.reshape(len(times), -1)
        kept = np.logical_and.accumulate((np.sign(z) == np.sign(z[0])).all(1))
        assert (kept | ~band.valid).all(), seed
        left += not kept.all()
        if not kept.all():
            assert "cone" in band.reason
    assert left > 2


def test_a_collapsed_class_is_followed_where_envelopes_give_up():
    """A head outside its cone by less than the survival of 3.3' allows."""
    problem = Problem(np.eye(3), np.arange(3), loss="softmax")
    W = np.eye(3) - 0.4
    weights = Weights(W, [[0.0, 0.7, -0.7], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    schedule = Schedule.fft(time=3.0)
    times = np.linspace(0, 3, TIMES)
    band = bounds.sandwich(problem, weights, schedule, times)
    block = decouple_classes(problem, weights)[0][0]
    assert band.valid.all()
    assert band.contains(*simulated(problem, weights, schedule, times))
    assert not widths(block, problem, schedule, times)[2].all()


# --- where it does not hold, and what builds on it ----------------------------------------------------


SPREAD = Problem(np.kron(np.eye(3), [[1.0, 0.2], [0.6, 0.9]]), np.repeat(np.arange(3), 2), loss="ovr")
INSIDE = np.kron(np.eye(3), [1.0, 1.0]) - 0.3
OTHERS = Problem([[1.0, 0.0], [0.5, 0.5], [-1.0, 0.5]], [0, 1, 2], loss="softmax")


@pytest.mark.parametrize(
    ("problem", "W", "V", "how", "reason"),
    [
        (SPREAD, INSIDE, np.eye(3), {}, "one-vs-rest is covered where each neuron's heads"),
        (SPREAD, INSIDE, 2 * np.eye(3) - 1, {}, ""),
        (SPREAD, INSIDE, np.zeros((3, 3)), {}, ""),
        (SPREAD, -INSIDE, np.zeros((3, 3)), {}, "3.2'"),
        (OTHERS, [[1.0, -3.0]], np.zeros((1, 3)), {"method": "fft"}, "3.1'"),
        (OTHERS, [[1.0, -3.0]], np.zeros((1, 3)), {}, ""),
        (SPREAD, INSIDE, np.zeros((3, 3)), {"clip": 1.0, "clipping": "normalised"}, "normalised clipping"),
        (SPREAD, INSIDE, np.zeros((3, 3)), {"sample_rate": 0.5}, "only full batches"),
    ],
)
def test_where_it_does_not_hold(problem, W, V, how, reason):
    given: Any = {"method": "lp", "time": 1.0} | how
    band = bounds.sandwich(problem, Weights(W, V), Schedule([Phase(**given)]))
    assert band.valid.all() == (not reason)
    assert reason in band.reason


def test_the_certified_loss_takes_the_sandwich_of_k_classes():
    for seed in range(6):
        problem, weights, schedule, times = case(
            seed, ("4b'(a), softmax", "4b'(b), any heads", "4b'(c)")[seed % 3]
        )
        phases = [Phase(phase.method, phase.time, 0.01, phase.clip or 1.0) for phase in schedule]
        given = problem, weights, Schedule(phases), times
        ours = bounds.certified_loss(*given, base="sandwich")
        flow, loss = bounds.certified_loss(*given), bounds.sandwich(*given)
        assert (ours.valid == loss.valid).all()
        ok = ours.valid
        # around the loss of the flow, by at most as much
        assert (ours.upper >= flow.upper * (1 - 1e-6))[ok].all()
        assert (ours.lower <= flow.lower * (1 + 1e-6) + 1e-9)[ok].all()
        assert (ours.upper > loss.upper)[ok & (times > 0)].all()


def test_the_utility_curve_takes_the_sandwich_of_k_classes():
    problem, weights = strategies.classes(np.random.default_rng(5), K=3, spread=0.0, heads="zero")
    curve = bounds.utility_curve(problem, weights, sigma=0.01, clip=1.0, time=1.0, shares=[0.0, 0.5, 1.0])
    band = curve.curves["sandwich"]
    assert band.valid.all()
    for share, low, high in zip(band.times, band.lower, band.upper, strict=True):
        schedule = Schedule.lp_fft(lp_time=share, fft_time=1 - share, clip=1.0)
        loss, slack = simulated(problem, weights, schedule, [schedule.duration])
        assert low - slack <= loss <= high + slack
    # no linear probing: a zero head distorts nothing (6')
    assert curve.best["sandwich"] == 0.0
    assert "certified" in curve.curves
