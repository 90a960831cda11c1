"""Section 3.4': probing aligns the heads of K classes, and fine-tuning then distorts nothing."""

import numpy as np
import pytest

import bounds
from langevin import euler_maruyama, zeroth_order
from langevin.model.alignment import cone_distance
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from langevin.solvers.zeroth import gradient_flow
from tests.theory import reference
from tests.theory.cones import case, lone, own_and_other, trained


def test_the_zero_head_distorts_nothing_and_needs_no_probing():
    for seed in range(16):
        problem, weights, clip = case(seed, "zero")
        found = bounds.distortion(problem, weights, clip=clip)
        assert found.valid
        assert found.fixed
        for field in (found.misaligned, found.wholly, found.pushed, found.cosine_falls):
            assert not field.any()
        assert (found.duration == 0).all()
        assert (found.largest_drop == 0).all()
        assert bounds.alignment_time(problem, weights, clip=clip).time == 0
        times, W, _ = trained(problem, weights, Schedule.fft(time=2.0, clip=clip), np.linspace(0, 2, 41))
        assert len(times) == 41
        own, other = own_and_other(problem, found.classes, W)
        assert not (np.diff(own, axis=0) < -1e-10).any()
        assert not (np.diff(other, axis=0) > 1e-10).any()


def check_alignment(seeds):
    """Ratios of the stated to the true time, by loss and K, and how often a quarter is too little."""
    ratios, early = {}, []
    for seed in seeds:
        problem, weights, clip = case(seed)
        found = bounds.alignment_time(problem, weights, clip=clip)
        assert found.valid
        assert found.lasting
        assert set(found.per_class) == set(range(problem.outputs_dim))
        if found.time == 0 or found.time > 1e4:
            continue
        own = bounds.distortion(problem, weights).classes.astype(int)
        times = np.unique([*np.linspace(0, found.sharp, 401), 0.25 * found.time, found.time])
        _, _, V = trained(problem, weights, Schedule.lp(time=found.time, clip=clip), times)
        distance = np.array([cone_distance(problem, head, own) for head in V])
        late = distance[times >= found.sharp]
        assert late.max() <= 1e-9, seed
        for label, time in found.per_class.items():
            assert not (distance[times >= time][:, own == label] > 1e-9).any()
        first = times[np.argmax((distance <= 1e-12).all(1))]
        early.append((distance[times == 0.25 * found.time] > 1e-9).any())
        key = problem.loss, problem.outputs_dim
        ratios.setdefault(key, []).append((found.time / first, found.sharp / first))
        # from then on nothing is distorted
        aligned = Weights(weights.W, V[-1])
        after = bounds.distortion(problem, aligned, clip=clip)
        assert after.distance.max() <= 1e-9
        _, W, _ = trained(problem, aligned, Schedule.fft(time=1.0, clip=clip), np.linspace(0, 1, 21))
        mine, others = own_and_other(problem, own, W)
        assert len(W) == 21
        assert not (np.diff(mine, axis=0) < -1e-8).any()
        assert not (np.diff(others, axis=0) > 1e-8).any()
    return ratios, np.mean(early)


def test_alignment():
    ratios, early = check_alignment(range(40))
    assert sum(map(len, ratios.values())) >= 20
    # a quarter of it is too little
    assert early > 0.3


@pytest.mark.slow
def test_alignment_many(tightness):
    ratios, early = check_alignment(range(340))
    assert sum(map(len, ratios.values())) >= 200
    # a quarter of it is too little
    assert early > 0.3
    for (loss, K), found in ratios.items():
        plain, sharp = zip(*found, strict=True)
        tightness(f"3.4': Delta t, {loss}, K = {K}", plain)
        tightness(f"3.4': Delta t, sharp, {loss}, K = {K}", sharp)


def mini_batches(problem, weights, clip, seed, dt):
    """Pre-activations along noise-free fine-tuning in batches of a third, by the definition."""
    schedule = Schedule.fft(time=40 * dt, clip=clip, sample_rate=max(0.3, 1 / problem.samples))
    times = dt * np.arange(41)
    run = reference.chain_outputs(problem, weights, schedule, dt, 3, seed, times)
    return schedule, times, run.W


def test_fine_tuning_in_batches_after_alignment_distorts_nothing():
    used = random_distorts = engine_distorts = 0
    for seed in range(24):
        problem, weights, clip = case(seed)
        time = bounds.alignment_time(problem, weights, clip=clip).time
        if not 0 < time < 100:
            continue
        used += 1
        own = bounds.distortion(problem, weights).classes.astype(int)
        aligned = gradient_flow(problem, weights, Schedule.lp(time=1.05 * time, clip=clip), dt=time / 200)
        assert cone_distance(problem, aligned.v, own).max() == 0
        # steps of any size
        dt = float(np.exp(np.random.default_rng(seed).uniform(-4, 1)))
        for start in (aligned, weights):
            schedule, times, W = mini_batches(problem, start, clip, seed, dt)
            mine, others = own_and_other(problem, own, W.reshape(-1, *weights.W.shape))
            mine, others = (part.reshape(*W.shape[:3], -1) for part in (mine, others))
            rounding = 1e-13 * np.abs(W).max()
            falls, rises = np.diff(mine, axis=0) < -rounding, np.diff(others, axis=0) > rounding
            distorts = falls.any() or rises.any()
            run = euler_maruyama(problem, start, schedule, dt=dt, rng=seed, paths=3, times=times)
            if start is aligned:
                assert not distorts, seed
                assert run.distorted.max() == run.misaligned.max() == run.dead.max() == 0
            else:
                random_distorts += distorts
                engine_distorts += bool(run.distorted.max() > 0)
    # the control: from random heads
    assert used >= 10
    assert random_distorts >= used / 2
    assert engine_distorts >= used / 4


def test_the_flow_of_the_engine_is_aligned_at_the_stated_time():
    for seed in range(6):
        problem, weights, clip = case(seed)
        time = bounds.alignment_time(problem, weights, clip=clip).time
        if not 0 < time < 100:
            continue
        flow = zeroth_order(
            problem,
            weights,
            Schedule.lp_fft(lp_time=time, fft_time=1.0, clip=clip),
            times=[0, time, time + 1],
        )
        assert flow.misaligned[0] > 0
        assert flow.misaligned[1] == flow.misaligned[2] == 0


def test_a_time_of_alignment_may_be_infinite():
    problem, weights = lone([-900.0, 900.0, 0.0], w=1.0)
    W = np.vstack([weights.W, weights.W])
    far = Weights(W, [[-1.0, 1.0, 0.0], [5000.0, 0.0, 0.0]])
    found = bounds.alignment_time(problem, far, clip=1.0)
    assert found.valid
    assert found.time == found.sharp == np.inf
    scalar = Problem([[1.0]], [1.0])
    assert bounds.alignment_time(scalar, Weights([[1.0], [1.0]], [-1.0, 5000.0])).time == np.inf
