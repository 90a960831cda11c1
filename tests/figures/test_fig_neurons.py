"""Neurons in the plane: the paths are the simulator's, and do what the caption says."""

import numpy as np
import pytest

import bounds
from figures.theory import fig_neurons
from langevin import Schedule, Weights, euler_maruyama
from langevin.engine import noise


@pytest.mark.parametrize("dt", [fig_neurons.DT, 2 * fig_neurons.DT])
def test_walks_are_those_of_the_simulator(dt):
    problem, weights = fig_neurons.scene()
    schedule = Schedule.lp_fft(lp_time=0.1, fft_time=0.2, sigma=fig_neurons.SIGMA, clip=fig_neurons.CLIP)
    run = euler_maruyama(
        problem, weights, schedule, dt=fig_neurons.DT, paths=2, rng=3, reduce="none", times=[0.0, 0.3]
    )
    W, v = fig_neurons.walk(problem, weights, schedule, noise.key(3), path=1, dt=dt)
    loss = problem.losses(problem.outputs(Weights(W[-1], v[-1]))).sum()
    assert (abs(run.loss[1, -1] - loss) < 1e-10) == (dt == fig_neurons.DT)


def test_the_scene_meets_the_assumptions():
    problem, weights = fig_neurons.scene()
    assert bounds.check_assumptions(problem, weights).hold
    found = bounds.distortion(problem, weights, clip=fig_neurons.CLIP)
    assert found.fixed
    assert found.misaligned.reshape(2, -1).sum(1).tolist() == [2, 2]


def test_features_get_worse_while_the_head_is_misaligned():
    problem, weights = fig_neurons.scene()
    found = bounds.distortion(problem, weights, clip=fig_neurons.CLIP)
    schedule = Schedule.fft(time=fig_neurons.TIME, clip=fig_neurons.CLIP)
    W, v = fig_neurons.walk(problem, weights, schedule)
    # over (time, neuron): least own-class pre-activation of all samples
    own = np.where(problem.y[:, None] == found.classes, problem.X @ W.swapaxes(1, 2), np.inf).min(1)
    wrong, moves = (found.classes * v < 0)[:-1], np.diff(own, axis=0)
    assert wrong[0].any()
    assert not wrong[-1].any()
    assert (moves[wrong] < 0).all()
    assert (moves[1:][~wrong[:-1] & ~wrong[1:]] > 0).all()
    assert (own >= own[0] - found.largest_drop - 1e-12).all()


def test_the_captions_numbers():
    data = fig_neurons.compute(quick=True)
    fft, lp_fft = (data.preactivation.sel(strategy=name) for name in ("DP-FFT", "DP-LP-FFT"))
    assert (round(float(fft.min()), 2), round(float(fft[-1]), 2)) == (0.86, 0.88)
    assert fft.min() > data.guaranteed
    assert lp_fft.min() >= 1 - 1e-12
    assert (data.noisy_preactivation.sel(strategy="DP-FFT", quantile=0.1)[-1] < data.guaranteed).all()
    probing = data.time <= fig_neurons.SHARE * fig_neurons.TIME
    aligned = data["head"].sel(strategy="DP-LP-FFT") > 0
    assert aligned[probing & (data.time >= data.alignment_time)].all()
    assert (probing & (data.time >= data.alignment_time)).any()
