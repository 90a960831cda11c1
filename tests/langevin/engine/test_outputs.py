"""The compiled step of networks with K outputs and Poisson batches against references written apart."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from langevin.engine.kernels.loop import advance
from langevin.engine.kernels.normals import LANES, STATE_STREAM, add_normals
from langevin.engine.kernels.types import ACCURACY, DISPLACEMENT, DISTANCE, LOSS, Rule
from langevin.engine.layout import Layout
from langevin.engine.outputs import build_rule
from tests.langevin.engine.batches import KEY, members
from tests.langevin.engine.steps import FFT_CLIPPINGS, PHI, Net, off, reference_step, start

TOLERANCE = {np.float64: 1e-12, np.float32: 2e-5}


CASES = [
    *itertools.product(("softmax", "ovr", "square", "huber"), PHI, ("fft", "lp"), FFT_CLIPPINGS, (1.0, 0.3)),
    *itertools.product(("softmax",), PHI, ("lp",), ("margin",), (1.0, 0.3)),
    *itertools.product(("ovr", "square"), PHI, ("lp",), ("column",), (1.0, 0.3)),
    *itertools.product(("logistic", "huber"), PHI, ("fft", "lp"), FFT_CLIPPINGS, (1.0, 0.3)),
]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_step_is_the_reference(dtype):
    clipped = 0
    for number, (loss, activation, method, clipping, rate) in enumerate(CASES):
        scalar = loss == "logistic" or number >= len(CASES) - 48
        net = Net.random(loss, activation, K=1 if scalar else 3, seed=number)
        clip = None if clipping is None else 1.0
        rule: dict[str, Any] = dict(method=method, clip=clip, clipping=clipping or "flat")
        run = start(net, dtype, sample_rate=rate, **rule).advance(0, 1)
        expected = reference_step(net, rate=rate, **rule)
        assert off(run, expected) < TOLERANCE[dtype], (loss, activation, method, clipping, rate)
        free = reference_step(net, rate=rate, method=method)
        clipped += clip is not None and off(run, free) > 1e-3
        if rate < 1:
            # control: without the weights of the batch
            assert off(run, reference_step(net, rate=rate, weigh=False, **rule)) > 1e-3
    assert clipped > 0.9 * sum(case[3] is not None for case in CASES)


def autograd_step(net: Net, activation: Any, clip: float, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """A step of full fine-tuning on softmax, by one backward pass per sample."""
    W, V = (torch.tensor(a, requires_grad=True) for a in (net.W, net.V))
    total = [torch.zeros_like(W), torch.zeros_like(V)]
    for x, y, included in zip(net.X, net.Y, members(len(net.X), rate, 0, 0), strict=True):
        f = activation(W @ torch.tensor(x)) @ V
        loss = torch.nn.functional.cross_entropy(f, torch.tensor(y.argmax()))
        gradients = torch.autograd.grad(loss, [W, V])
        norm = torch.sqrt(sum(((g**2).sum() for g in gradients), start=torch.tensor(0.0)))
        factor = float(included) / rate * min(1.0, clip / float(norm))
        total = [t + factor * g for t, g in zip(total, gradients, strict=True)]
    return net.W - 0.05 * total[0].numpy(), net.V - 0.05 * total[1].numpy()


@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize(("name", "activation"), [("relu", torch.relu), ("gelu", torch.nn.functional.gelu)])
def test_a_step_is_that_of_automatic_differentiation(name, activation, rate):
    net = Net.random("softmax", name)
    run = start(net, clip=2.0, sample_rate=rate).advance(0, 1)
    assert off(run, autograd_step(net, activation, 2.0, rate)) < 1e-12


@pytest.mark.parametrize("rate", [1.0, 0.6])
@pytest.mark.parametrize("method", ["fft", "lp"])
@pytest.mark.parametrize("K", [3, 10])
def test_blocks_change_rounding_alone(method, rate, K):
    net = Net.random("softmax", "gelu", n=150, d=70, h=83, K=K)
    rule: dict[str, Any] = dict(method=method, clip=2.0, sample_rate=rate)
    blocks, whole = (start(net, rows=rows, **rule).advance(0, 1) for rows in (32, 160))
    assert blocks.scratch.layer.shape[0] == 70
    expected = reference_step(net, method=method, clip=2.0, rate=rate)
    assert off(blocks, expected) < 1e-12
    assert off(whole, expected) < 1e-12


def test_frozen_features_are_those_of_the_layer():
    net = Net.random("softmax", "tanh")
    rule: dict[str, Any] = dict(method="lp", clip=2.0, clipping="margin", sample_rate=0.4, sigma=0.1)
    shared = start(net, features=np.tanh(net.X @ net.W.T), **rule).advance(0, 5)
    own = start(net, **rule).advance(0, 5)
    assert np.abs(shared.thetas - own.thetas).max() < 1e-13


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("method", ["fft", "lp"])
@pytest.mark.parametrize("draws", [1, 3])
def test_noise_is_that_of_the_layout(dtype, method, draws):
    # targets that the outputs meet: no drift
    net = Net.random("square", "linear", n=9, d=70, h=300)
    net = replace(net, X=net.X * 0, Y=net.Y * 0)
    run = start(net, dtype, method=method, sigma=0.3, draws=draws, sample_rate=0.5)
    run.first_path = 4
    expected, words = run.thetas[0].copy(), np.empty((4, LANES), np.uint32)
    size = run.layout.head if method == "lp" else run.layout.size
    for draw in range(7 * draws, 8 * draws):
        add_normals(expected, size, run.rule.noise, draw, 4, STATE_STREAM, *KEY, words)
    run.advance(7, 8)
    assert np.array_equal(run.thetas[0], expected)


def test_an_empty_batch_moves_by_noise_alone():
    net = Net.random("softmax", n=4)
    rate, step = 0.05, 0
    assert not members(4, rate, 0, step).any()
    run = start(net, clip=1.0, sigma=0.3, sample_rate=rate)
    expected, words = run.thetas[0].copy(), np.empty((4, LANES), np.uint32)
    add_normals(expected, run.layout.size, run.rule.noise, step, 0, STATE_STREAM, *KEY, words)
    assert np.array_equal(run.advance(step, step + 1).thetas[0], expected)
    # control: a full batch moves
    assert not np.array_equal(start(net, clip=1.0, sigma=0.3).advance(0, 1).thetas[0], expected)


def test_order_of_rows_changes_rounding_alone():
    net = Net.random("softmax", n=60)
    order = np.random.default_rng(1).permutation(60)
    rule: dict[str, Any] = dict(clip=1.0, sigma=0.1, sample_rate=0.3, dt=0.01)
    straight, permuted = start(net, **rule).advance(0, 20), start(net, order=order, **rule).advance(0, 20)
    assert np.abs(straight.thetas - permuted.thetas).max() < 1e-12
    # control: the order is not known, and batches are others
    lost = start(replace(net, X=net.X[order], Y=net.Y[order]), **rule).advance(0, 20)
    assert np.abs(straight.thetas - lost.thetas).max() > 1e-3


@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("rows", [None, 32])
@pytest.mark.parametrize("loss", ["softmax", "square"])
def test_zeros_of_triangular_inputs_are_left_out(loss, rate, rows):
    # wider than a block of products, and with samples behind the triangle
    net = Net.random(loss, n=150, d=100)
    net = replace(net, X=np.tril(net.X))
    rule: dict[str, Any] = dict(clip=2.0, sample_rate=rate)
    order = np.random.default_rng(1).permutation(150)
    shuffled = replace(net, X=net.X[np.argsort(order)], Y=net.Y[np.argsort(order)])
    run = start(shuffled, order=order, rows=rows, **rule)
    assert run.data.reach[[0, 7, 120]].tolist() == [1, 8, 100]
    short = run.data._replace(reach=np.maximum(run.data.reach - 1, 1))
    expected = reference_step(shuffled, clip=2.0, rate=rate)
    assert off(run.advance(0, 1), expected) < 1e-12
    # control: one column too few
    cut = start(shuffled, order=order, rows=rows, **rule)
    cut.data = short
    assert off(cut.advance(0, 1), expected) > 1e-4


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("method", ["fft", "lp"])
def test_calls_and_chunks_change_no_bit(dtype, method):
    net = Net.random("softmax", n=70, d=9)
    rule: dict[str, Any] = dict(method=method, clip=1.0, sigma=0.1, sample_rate=0.3, dt=0.01, draws=2)
    steps = (0, 3, 10)
    whole = start(net, dtype, paths=3, steps=steps, **rule).advance(0, 10, last=True)
    parts = start(net, dtype, paths=3, steps=steps, **rule).advance(0, 3).advance(3, 9)
    parts.advance(9, 10, last=True)
    assert np.array_equal(whole.thetas, parts.thetas)
    assert np.array_equal(whole.scalars, parts.scalars, equal_nan=True)
    alone = start(net, dtype, steps=steps, **rule)
    alone.first_path = 2
    alone.advance(0, 10, last=True)
    assert np.array_equal(whole.thetas[2], alone.thetas[0])
    assert not np.array_equal(whole.thetas[0], whole.thetas[1])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("loss", ["logistic", "square", "huber"])
@pytest.mark.parametrize("method", ["fft", "lp"])
def test_one_output_on_all_samples_is_the_scalar_loop(dtype, loss, method):
    net = Net.random(loss, K=1, n=40)
    numbers: dict[str, Any] = dict(method=method, clip=1.0, sigma=0.1, dt=0.01)
    run = start(net, dtype, steps=(0, 20), **numbers).advance(0, 20, last=True)
    layout, other = run.layout, start(net, dtype, steps=(0, 20))
    data = layout.data(net.X, net.Y[:, 0], activation="relu", loss=loss)
    own = run.rule
    rule = Rule(own.method, own.clipping, own.clip, own.stabiliser, own.dt, own.noise, 1, 0)
    advance(
        other.thetas,
        np.zeros((1, 2, 0)),
        other.diverged,
        0,
        0,
        20,
        True,
        *KEY,
        data,
        rule,
        layout.scratch(data),
        other.records,
        other.scalars,
        np.zeros((1, 3, 0, 0)),
    )
    for a, b in zip(run.net(), other.net(), strict=True):
        assert np.abs(a - b).max() < 10 * TOLERANCE[dtype]
    rows = [LOSS, ACCURACY, DISPLACEMENT]
    assert np.allclose(run.scalars[0, rows], other.scalars[0, rows], rtol=20 * TOLERANCE[dtype])


@pytest.mark.parametrize("loss", ["softmax", "ovr", "square"])
def test_records_are_the_observables(loss):
    net = Net.random(loss, "tanh", n=50)
    run = start(net, steps=(0, 4), rows=16, clip=1.0, sigma=0.2, sample_rate=0.4)
    goal = run.thetas[0] + 0.5
    run.records = run.records._replace(reference=np.stack([goal, goal]))
    run.advance(0, 4, last=True)
    W, V = run.net()
    F = np.tanh(net.X @ W.T) @ V
    label = net.Y.argmax(axis=1)
    losses = {
        "softmax": -np.log(softmax(F, axis=1)[np.arange(50), label]).sum(),
        "ovr": np.logaddexp(0, (1 - 2 * net.Y) * F).sum(),
        "square": 0.5 * ((F - net.Y) ** 2).sum(),
    }
    share = np.nan if loss == "square" else (F.argmax(axis=1) == label).mean()
    moved = ((W - net.W) ** 2).sum() + ((V - net.V) ** 2).sum()
    distance = ((W - net.W - 0.5) ** 2).sum() + ((V - net.V - 0.5) ** 2).sum()
    found = run.scalars[0, [LOSS, ACCURACY, DISPLACEMENT, DISTANCE], 1]
    assert np.allclose(found, [losses[loss], share, moved, distance], rtol=1e-12, equal_nan=True)
    assert run.scalars[0, DISPLACEMENT, 0] == 0


def test_the_gauge_of_softmax_has_no_drift():
    net = Net.random("softmax", "gelu", K=5)
    for method in ("lp", "fft"):
        run = start(net, method=method, clip=1.0, sample_rate=0.3, dt=0.05).advance(0, 30)
        assert np.abs((run.net()[1] - net.V).sum(axis=1)).max() < 1e-13
        assert np.abs(run.net()[1] - net.V).max() > 1e-2
    # control: one-vs-rest has no gauge
    run = start(replace(net, loss="ovr"), clip=1.0, dt=0.05).advance(0, 30)
    assert np.abs((run.net()[1] - net.V).sum(axis=1)).max() > 1e-3


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("loss", ["softmax", "ovr"])
def test_large_outputs_do_not_overflow(dtype, loss):
    net = Net.random(loss)
    outputs = np.maximum(net.X @ net.W.T, 0) @ net.V
    net = replace(net, V=net.V * 1e4 / np.abs(outputs).max())
    run = start(net, dtype, steps=(0, 2), clip=1.0, dt=1e-3).advance(0, 2, last=True)
    assert run.diverged[0] < 0
    assert np.isfinite(run.thetas).all()
    assert np.isfinite(run.scalars[0, [LOSS, ACCURACY, DISPLACEMENT]]).all()
    single = start(net, dtype, clip=1.0, dt=1e-3).advance(0, 1)
    assert off(single, reference_step(net, clip=1.0, dt=1e-3)) < TOLERANCE[dtype]


def test_a_path_that_diverges_is_left_alone():
    net = Net.random("softmax", n=40)
    run = start(net, paths=3, steps=(0, 90), clip=1.0, sigma=0.1, sample_rate=0.2)
    run.thetas[1, 3] = np.nan
    before = run.thetas[1].copy()
    run.advance(0, 90, last=True)
    assert run.diverged.tolist() == [-1, 0, -1]
    assert np.array_equal(run.thetas[1], before, equal_nan=True)
    assert np.isnan(run.scalars[1]).all()


def test_a_state_that_no_batch_shows_is_found_too():
    net = Net.random("softmax", n=3)
    rule: dict[str, Any] = dict(clip=1.0, sigma=0.1, sample_rate=1e-9)
    run = start(net, **rule)
    run.thetas[0, 3] = np.inf
    parts = replace(run, thetas=run.thetas.copy(), diverged=run.diverged.copy())
    run.advance(1, 200)
    parts.advance(1, 50).advance(50, 64).advance(64, 65).advance(65, 200)
    assert run.diverged[0] == parts.diverged[0] == 64


def test_clippings_of_linear_probing_are_refused_elsewhere():
    layout = Layout(3, 4, np.float64, 2)
    with pytest.raises(ValueError, match="needs method 'lp'"):
        build_rule(layout, method="fft", clip=1.0, clipping="margin", stabiliser=0.1, sigma=0.0)
    with pytest.raises(ValueError, match="precision"):
        build_rule(
            Layout(3, 4, np.float32), method="lp", clip=1e-60, clipping="flat", stabiliser=0.1, sigma=0.0
        )
