"""K outputs and Poisson batches on a device: its plain form on this processor, and a GPU if there is one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from langevin import Diverged, Phase, Schedule
from langevin.engine import noise
from langevin.engine.chain import Chain
from langevin.engine.kernels.normals import LANES
from langevin.engine.kernels.outputs.batches import draw_batch
from langevin.model.activations import ACTIVATIONS
from tests.langevin.engine.devices import GPU
from tests.langevin.engine.networks import METHODS, a_chain, a_problem, a_schedule, simulate

torch = pytest.importorskip("torch")
_device = pytest.importorskip("langevin.engine.gpu.chain")
_outputs = pytest.importorskip("langevin.engine.gpu.outputs")

WHERE = ["cpu", pytest.param("cuda", marks=GPU)]
CLIPPINGS: dict[str, dict[str, Any]] = {
    "unclipped": {"clip": None},
    "flat": {"clip": 0.7},
    "normalised": {"clip": 0.7, "clipping": "normalised", "stabiliser": 0.2},
    "margin": {"clip": 0.7, "clipping": "margin"},
    "column": {"clip": 0.7, "clipping": "column"},
}
CASES = [
    case
    for case in itertools.product(
        ("softmax", "ovr", "square", "logistic", "huber"), METHODS, CLIPPINGS, (1.0, 0.3)
    )
    if {"margin": "softmax", "column": "ovr"}.get(case[2], case[0]) == case[0]
    if case[1] == "lp" or case[2] not in ("margin", "column")
    # with one output and all samples it is the scalar loop's
    if case[0] != "logistic" or case[3] < 1
]


def states(chain: Chain, paths: int = 3, first_path: int = 5) -> np.ndarray:
    """States at the end, without what pads them."""
    results = chain.observer.empty(first_path + paths, per_neuron=False)
    chunk, scratch = chain.start(first_path, paths), chain.scratch()
    while chunk.step < chain.grid.steps:
        chain.advance(chunk, results, scratch, chain.stops(chunk.step))
    assert (results.diverged[first_path:] < 0).all()
    parts = [chain.layout.unpack(theta) for theta in chain.states(chunk)]
    return np.array([np.concatenate([W.ravel(), v.ravel()]) for W, v in parts])


# --- batches ---------------------------------------------------------------------------------------


def an_ensemble(n: int, rate: float, where: str, order: np.ndarray | None = None, step: int = 0) -> Any:
    schedule = a_schedule(["fft"], sample_rate=rate)
    chain = a_chain(a_problem("softmax", n), schedule, where)
    position = np.argsort(np.arange(n) if order is None else order)
    object.__setattr__(chain, "data", chain.data._replace(position=position))
    chunk = chain.start(2, 3)
    chunk.step = step
    ensemble = _outputs.OutputsEnsemble(chain, chunk, np.full(3, -1))
    ensemble.enter(0)
    return ensemble


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("n", [4, 21, 300, 1100])
@pytest.mark.parametrize("rate", [0.01, 0.3, 0.999])
@pytest.mark.parametrize("step", [0, 2**31 + 5])
def test_batches_are_those_of_the_processor(n, rate, step, where, monkeypatch):
    monkeypatch.setattr("langevin.engine.gpu.batches._WORDS", 1000)
    order = np.random.default_rng(0).permutation(n)
    e = an_ensemble(n, max(rate, 1 / n), where, order, step)
    largest, drawn = e.batches.largest_batches(e, 5).tolist(), []
    batch, words = np.zeros(n + 1, np.int64), np.empty((4, LANES), np.uint32)
    for ahead in range(5):
        e.clock[0] = step + ahead
        index = torch.zeros((3, max(largest[ahead], 1)), dtype=torch.int64, device=where)
        members = torch.zeros((3, n), dtype=torch.bool, device=where)
        e.batches.draw_rows(e, index)
        e.batches.draw_members(e, members)
        counts = []
        for p in range(3):
            key = map(np.uint64, e.chain.key)
            count = draw_batch(batch, np.argsort(order), e.rule.threshold, step + ahead, 2 + p, *key, words)
            expected = sorted(batch[:count].tolist())
            assert sorted(row for row in index[p].tolist() if row < n) == expected
            assert np.flatnonzero(members[p].cpu()).tolist() == expected
            counts.append(count)
            drawn.append(tuple(expected))
        assert largest[ahead] == max(counts)
    # control: batches of other paths and steps are others
    assert n * rate * (1 - rate) < 4 or len(set(drawn)) == 15


@pytest.mark.parametrize(("size", "room"), [(0, 8), (1, 8), (33, 40), (130, 144), (256, 256), (257, 288)])
def test_few_sizes_have_room_for_all(size, room):
    assert _outputs.padded(size) == room
    assert len({_outputs.padded(count) for count in range(512, 1024)}) <= 9


# --- steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(("loss", "methods", "clipping", "rate"), CASES)
def test_paths_are_those_of_the_processor(loss, methods, clipping, rate, where):
    problem = a_problem(loss)
    schedule = a_schedule(METHODS[methods], **CLIPPINGS[clipping], sample_rate=rate)
    reduce = "span" if methods == "fft" else "none"
    ours, theirs = (states(a_chain(problem, schedule, place, reduce=reduce)) for place in (where, None))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    # control: clipping, batches and the drift itself move paths by far more
    for other in ({"sample_rate": 1.3 - rate}, {"sample_rate": rate, "clip": 0.1}):
        wrong = a_schedule(METHODS[methods], **{**CLIPPINGS[clipping], **other})
        assert np.abs(states(a_chain(problem, wrong, None, reduce=reduce)) - theirs).max() > 1e-4


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("K", [3, 10, 40])
def test_activations_and_precisions(activation, dtype, K, where):
    problem = a_problem("softmax", n=90, activation=activation, K=K)
    schedule = a_schedule(METHODS["lp-fft-lp"], clip=1.0, sample_rate=0.4)
    ours, theirs = (states(a_chain(problem, schedule, place, dtype, draws=2)) for place in (where, None))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=300 * np.finfo(dtype).eps)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("clipping", ["flat", "margin"])
@pytest.mark.parametrize("bytes_", [0, 1e9], ids=["gathered", "weighed"])
def test_batches_of_shared_features_gathered_or_weighed(clipping, bytes_, where, monkeypatch):
    monkeypatch.setattr(_outputs, "_GATHERED_BYTES", bytes_)
    problem = a_problem("softmax", n=40)
    schedule = a_schedule(["lp", "lp"], **CLIPPINGS[clipping], sample_rate=0.2)
    ours, theirs = (states(a_chain(problem, schedule, place)) for place in (where, None))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("where", WHERE)
def test_larger_batches_than_there_is_room_for(where, monkeypatch):
    monkeypatch.setattr(_outputs, "likely_rows", lambda *_: 1)
    problem = a_problem("softmax", n=90)
    schedule = a_schedule(["fft"], steps=20, clip=1.0, sample_rate=0.5)
    ours, theirs = (states(a_chain(problem, schedule, place)) for place in (where, None))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("method", ["lp", "fft"])
def test_an_empty_batch_is_a_step_of_noise(method, where):
    schedule = a_schedule([method], steps=1, clip=1.0, sample_rate=1 / 21)
    chain: Any = a_chain(a_problem("softmax"), schedule, where)
    results, chunk = chain.observer.empty(40, per_neuron=False), chain.start(0, 40)
    chain.advance(chunk, results, chain.scratch(), 1)
    rule: Any = chain.rule(schedule.phases[0])
    trained = chain.layout.head if method == "lp" else chain.layout.size
    noisy = np.array([noise.normals(chain.key, p, 0, trained) for p in range(40)])
    expected = chain.origin[:trained] + rule.noise * noisy
    alone = np.abs(chain.states(chunk)[:, :trained] - expected).max(axis=1) < 1e-14
    batch, words = np.zeros(22, np.int64), np.empty((4, LANES), np.uint32)
    key = [np.uint64(word) for word in chain.key]
    counts = [draw_batch(batch, chain.data.position, rule.threshold, 0, p, *key, words) for p in range(40)]
    assert (alone == (np.array(counts) == 0)).all()
    assert 0 < alone.sum() < 40


@pytest.mark.parametrize("where", WHERE)
def test_features_that_the_data_hold(where):
    """As the processor's reduction by the kernel has them."""
    problem = a_problem("ovr")
    schedule = a_schedule(["lp"], clip=1.0, sample_rate=0.4)
    chain = a_chain(problem, schedule, None, reduce="kernel")
    ours = _device.DeviceChain.of(chain, torch.device(where), 1)
    np.testing.assert_allclose(states(ours), states(chain), rtol=0, atol=1e-12)


# --- divergence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize("method", ["lp", "fft"])
def test_paths_diverge_at_the_same_step(method, rate, device):
    problem = a_problem("square", activation="linear")
    schedule = Schedule([Phase(method, 400.0, 0.1, sample_rate=rate)])
    steps = []
    for where in (device, "cpu"):
        with pytest.raises(Diverged, match=r"5 of 5 paths diverged, the first .* at step \d+") as caught:
            simulate(where, problem, schedule, dt=1.0, times=np.arange(400.0), reduce="none")
        steps.append(np.isnan(caught.value.run.loss.values).sum(axis=1))
    assert (steps[0] == steps[1]).all()
    assert (steps[0] < 400).all()


@pytest.mark.parametrize("where", WHERE)
def test_only_the_batch_and_a_look_at_the_state_find_what_is_not_finite(where):
    problem = a_problem("softmax")
    schedule = a_schedule(["fft"], steps=300, clip=1.0, sample_rate=1 / 21)
    found = []
    for place in (where, None):
        chain = a_chain(problem, schedule, place)
        results, chunk = chain.observer.empty(6, per_neuron=False), chain.start(0, 6)
        chunk.step = 1
        chunk.thetas[:] = chain.origin
        chunk.thetas[1, chain.layout.head] = np.inf
        chunk.thetas[2, 1] = np.nan
        chunk.thetas[3, 1] = np.inf
        scratch = chain.scratch()
        while chunk.step < 200:
            chain.advance(chunk, results, scratch, min(chunk.step + 70, 200))
        found.append(results.diverged.tolist())
        # others go on
        assert np.isfinite(chain.states(chunk)[[0, 4, 5]]).all()
    assert found[0] == found[1]
    assert [found[0][p] for p in (0, 4, 5)] == [-1, -1, -1]
    assert all(1 <= found[0][p] <= 64 for p in (1, 2, 3))
