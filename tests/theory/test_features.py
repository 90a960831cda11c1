"""Section 3: distortion and alignment, per neuron, against the zeroth-order flow."""

from itertools import count

import numpy as np
import pytest

import bounds
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from tests.theory import reference, strategies


def case(seed, loss="logistic", head=None):
    rng = np.random.default_rng(seed)
    spread = [None, 0.05, 0.5][rng.integers(3)]
    problem, weights = strategies.decoupled(rng, loss=loss, spread=spread, head=head)
    clip = None if rng.random() < 0.3 else float(np.exp(rng.uniform(-1.5, 1.0)))
    return problem, weights, clip


def own_and_opposite(problem, found, flow):
    """Pre-activations of a neuron's own class (m, h, n) signed so that they are positive, others NaN."""
    pre = np.einsum("nd,mhd->mhn", problem.X, flow.W[:, 0])
    own = problem.y == found.classes[:, None]
    return np.where(own, pre, np.nan), np.where(own, np.nan, pre)


def check_distortion(seeds, head=None):
    survivors, misaligned, ratios = 0, 0, []
    for seed in seeds:
        problem, weights, clip = case(seed, head=head)
        found = bounds.distortion(problem, weights, clip=clip)
        assert found.valid, found.reason
        bad = found.misaligned
        misaligned += bad.sum()
        end = float(min(20.0, 5 * max(found.duration[np.isfinite(found.duration)].max(initial=0.0), 0.2)))
        times = np.linspace(0, end, 401)
        flow = reference.flow(problem, weights, Schedule.fft(time=end, clip=clip), times, 1e-9, 1e-11)
        heads = found.classes * flow.v[:, 0]
        own, opposite = own_and_opposite(problem, found, flow)
        for j in np.flatnonzero(bad):
            during = times <= found.duration[j]
            assert (heads[during, j] <= 1e-8).all()
            still = np.logical_and.accumulate(heads[:, j] < 0)
            if (~still).any():
                ratios.append(times[np.argmax(~still)] / found.duration[j])
            alive = np.nanmin(own[:, j], axis=1) > 0 if (problem.y == found.classes[j]).any() else still
            window = still & np.logical_and.accumulate(alive)
            assert (np.diff(own[window][:, j], axis=0) <= 1e-8)[:, ~np.isnan(own[0, j])].all()
            assert (np.diff(opposite[window][:, j], axis=0) >= -1e-8)[:, ~np.isnan(opposite[0, j])].all()
            assert not found.never_flips[j] or (heads[:, j] < 0).all()
            if found.survives[j]:
                survivors += 1
                drop = np.nanmax(own[0, j] - own[:, j])
                assert drop <= found.largest_drop[j] + 1e-7
                up = (
                    np.nanmax(opposite[:, j] - opposite[0, j]) if (problem.y != found.classes[j]).any() else 0
                )
                assert up <= found.largest_rise[j] + 1e-7
        if found.fixed:
            assert (np.nan_to_num(own, nan=1.0) > 0).all()
            assert (np.nan_to_num(opposite, nan=-1.0) < 0).all()
        # the cosine to the class mean is falling at the start
        for j in np.flatnonzero(found.cosine_falls):
            mean = problem.X[problem.y == found.classes[j]].mean(0)
            w = flow.W[:2, 0, j]
            cosine = w @ mean / np.linalg.norm(w, axis=1)
            assert heads[1, j] > 0 or cosine[1] < cosine[0] + 1e-12
    return survivors, misaligned, ratios


def test_distortion():
    survivors, misaligned, _ = check_distortion(range(20))
    assert survivors > 3
    assert misaligned > 20


@pytest.mark.slow
def test_distortion_many(tightness):
    _, _, ratios = check_distortion(range(200))
    tightness("3.3: true over least duration", ratios)
    check_distortion(range(200, 300), head=0.1)


def test_largest_drop_is_attained_by_a_lone_neuron():
    # one sample, no clip: zeta^2 - Gamma alpha^2 is conserved, so the drop is exact and 0.9 of it too small
    problem, weights = Problem([[1.0]], [1.0]), Weights([[1.0]], [-0.8])
    found = bounds.distortion(problem, weights)
    times = np.linspace(0, 10, 2001)
    flow = reference.flow(problem, weights, Schedule.fft(time=10.0), times)
    drop = 1.0 - flow.W[:, 0, 0, 0].min()
    assert found.largest_drop[0] == pytest.approx(0.4)
    assert drop == pytest.approx(0.4, abs=1e-4)
    assert drop > 0.9 * found.largest_drop[0]


def test_survival_is_sharp():
    for head, survives in ((-0.99, True), (-1.01, False)):
        problem, weights = Problem([[1.0]], [1.0]), Weights([[1.0]], [head])
        found = bounds.distortion(problem, weights)
        flow = reference.flow(problem, weights, Schedule.fft(time=60.0), np.linspace(0, 60, 61))
        assert found.survives[0] == survives
        assert (flow.v[-1, 0, 0] > 0) == survives
        assert found.never_flips[0] != survives


def check_alignment(usable, loss):
    ratios, sharp = [], []
    for seed in count():
        if len(ratios) >= usable:
            break
        problem, weights, clip = case(seed, loss)
        found = bounds.alignment_time(problem, weights, clip=clip)
        if not found.valid or found.time == 0:
            continue
        # fine up to the sharp time, which can be far below the other
        times = np.unique(np.append(np.linspace(0, found.sharp, 401), found.time))
        flow = reference.flow(problem, weights, Schedule.lp(time=found.time, clip=clip), times)
        pre = problem.X @ weights.W.T
        signs = np.where(pre[0] > 0, 1.0, -1.0) * problem.y[0]
        known = np.isin(signs, problem.y)
        heads = (signs * flow.v[:, 0])[:, known]
        aligned = (heads >= -1e-9).all(1)
        assert aligned[-1]
        assert aligned[times >= found.sharp].all()
        first = times[np.argmax(aligned)]
        ratios.append(found.time / first)
        sharp.append(found.sharp / first)
    return ratios, sharp


def test_alignment():
    check_alignment(8, "logistic")
    check_alignment(8, "square")


@pytest.mark.slow
def test_alignment_many(tightness):
    for loss in ("logistic", "square"):
        ratios, sharp = check_alignment(200, loss)
        tightness(f"3.4: Delta t, {loss}", ratios)
        tightness(f"3.4: Delta t, sharp, {loss}", sharp)


def test_alignment_is_sharp_and_less_is_too_little():
    # clipping binds throughout, one neuron and one sample: Delta t is exact
    problem, weights = Problem([[1.0]], [1.0]), Weights([[1.0]], [-0.5])
    found = bounds.alignment_time(problem, weights, clip=0.1)
    assert found.time == pytest.approx(5.0)
    flow = reference.flow(problem, weights, Schedule.lp(time=5.0, clip=0.1), [4.5, 5.0])
    assert flow.v[0, 0, 0] < -0.04
    assert flow.v[1, 0, 0] == pytest.approx(0, abs=1e-7)


def check_expected_drift(seeds, paths):
    """Pre-activations of the noisy chain at small times, from antithetic pairs; where 0.9 of it is seen."""
    wrong, ratios = [], []
    for seed in seeds:
        problem, weights, clip = case(seed, loss=["logistic", "square"][seed % 2])
        if not bounds.distortion(problem, weights).valid:
            continue
        exact = bounds.drift_of_expectation(problem, weights, clip=clip)
        found = bounds.distortion(problem, weights, clip=clip)
        own = problem.y == found.classes[:, None]
        assert (exact[found.misaligned[:, None] & own] <= 0).all()
        assert (exact[found.misaligned[:, None] & ~own] >= -1e-12).all()
        speed = np.abs(exact).max() + 1e-9
        size = np.abs(problem.X @ weights.W.T).min()
        # so short that neither drift nor noise takes a neuron far
        sigma = 0.3
        end = min(1e-3 * size / speed, (0.02 * size / sigma) ** 2 / problem.squared_norms.max(), 1e-3)
        rates = []
        for parts in (1, 2):
            schedule = Schedule.fft(time=end * parts, sigma=sigma, clip=clip)
            run = reference.chain(
                problem, weights, schedule, end / 4, paths, seed, [end * parts], antithetic=True
            )
            pre = (run.W[-1] - weights.W) @ problem.X.T / (end * parts)
            pairs = 0.5 * (pre[: paths // 2] + pre[paths // 2 :])
            rates.append((pairs.mean(0), pairs.std(0, ddof=1) / np.sqrt(paths // 2)))
        (short, error), (long, more) = rates
        bias = 2 * np.maximum(np.abs(long - short) - 3 * np.hypot(error, more), 0)
        slack = 5 * error + bias + 2e-3 * speed
        assert (np.abs(short - exact) <= slack).all(), seed
        wrong += list((np.abs(short - 0.9 * exact) > slack)[np.abs(exact) > 0.1 * speed])
        ratios.append(np.abs(short).max() / speed)
    return np.mean(wrong), ratios


def test_expected_drift():
    # negative control: the drift scaled by 0.9 is seen to be wrong
    seen, ratios = check_expected_drift(range(30), 1000)
    assert seen > 0.8
    assert len(ratios) >= 20


@pytest.mark.slow
def test_expected_drift_many(tightness):
    seen, ratios = check_expected_drift(range(300), 1000)
    assert seen > 0.8
    assert len(ratios) >= 200
    tightness("3.3: measured over exact d/dt E[w.x] at 0", ratios)


def test_where_they_do_not_hold():
    weights = Weights([[1.0, 0.2]], [-1.0])
    cross = Problem([[1.0, 0.0], [0.3, 1.0]], [1, -1])
    assert not bounds.distortion(cross, weights).valid
    assert not bounds.alignment_time(cross, weights).valid
    linear = Problem([[1.0, 0.0]], [1], "linear")
    assert "only 'relu'" in bounds.distortion(linear, weights).reason
    assert np.isnan(bounds.alignment_time(linear, weights).time)
    # square loss: the heads align only after the margin has passed 1
    wide = Problem([[1.0, 0.0]], [1], loss="square")
    late = Weights([[10.0, 0.0], [0.1, 0.0]], [0.05, -1.0])
    assert "reach 1" in bounds.alignment_time(wide, late).reason
    with pytest.raises(ValueError, match="clip must be positive"):
        bounds.distortion(linear, weights, clip=0.0)
