"""The step loop of the GPU: its plain form on this processor, and the whole loop if there is a GPU."""

import json
import threading
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from langevin import (
    Diverged,
    Interrupted,
    Phase,
    Problem,
    Schedule,
    Weights,
    collapsed_features,
    euler_maruyama,
    orthogonally_separable,
)
from langevin.engine import noise, pool
from langevin.engine.chain import Chain
from langevin.engine.kernels import descend
from langevin.engine.layout import aligned_zeros
from langevin.engine.reductions.choose import reduction
from langevin.engine.reductions.request import Request
from langevin.model.activations import ACTIVATIONS
from langevin.model.steps import grid
from tests.helpers import SCALAR_LOSSES, SECONDS, random_problem, random_weights
from tests.langevin.engine.devices import GPU

torch = pytest.importorskip("torch")
_device = pytest.importorskip("langevin.engine.gpu.chain")

SCHEDULE = Schedule.lp_fft(lp_time=0.1, fft_time=0.2, sigma=0.3, clip=1.0)
PER_NEURON = ["alignment", "preactivation", "head_alignment"]


def simulate(device: str, problem: Problem, weights: Weights, schedule: Schedule, **changes) -> xr.Dataset:
    arguments = {"dt": 0.01, "paths": 5, "rng": 1}
    return euler_maruyama(problem, weights, schedule, device=device, **{**arguments, **changes})


def assert_close(a: xr.Dataset, b: xr.Dataset, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    assert list(a.data_vars) == list(b.data_vars)
    for name in a.data_vars:
        np.testing.assert_allclose(a[name].values, b[name].values, rtol, atol, err_msg=str(name))


def an_ensemble(problem, weights, phase, dtype=np.float64, first_path=0, paths=3, draws=1, where="cpu"):
    schedule = Schedule([phase])
    cut = grid(schedule, 0.01, [schedule.duration])
    request = Request(problem, weights, schedule, cut)
    chain = Chain.build(request, reduction("none", request), dtype, noise.key(3), draws)
    chain = _device.DeviceChain.of(chain, torch.device(where), 1)
    ensemble = chain.ensemble(chain.start(first_path, paths), np.full(paths, -1))
    ensemble.enter(0)
    return chain, ensemble


# --- the parts -------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize("precision", ["double", "single"])
def test_draws_are_those_of_the_compiled_code(precision, where):
    dtype = noise.DTYPES[precision]
    problem, weights = random_problem(0, n=9, d=50), random_weights(0, h=33, d=50)
    phase = Phase("fft", 0.1, sigma=0.5)
    chain, e = an_ensemble(problem, weights, phase, dtype, first_path=7, draws=2, where=where)
    e.theta[:] = 0
    e.clock[0] = 2 * 10**9 + 1  # after step 2e9, whose draws are beyond what is a signed word
    for draw in range(2):
        e.passes.add_normals(e, chain.layout.size, chain.rule(phase), draw)
    rule = chain.rule(phase)
    for p in range(3):
        draws = [
            noise.normals(chain.key, 7 + p, 4_000_000_000 + d, chain.layout.size, precision) for d in (0, 1)
        ]
        expected = rule.noise * (draws[0].astype(float) + draws[1])
        error = np.abs(e.theta[p].cpu().numpy() - expected).max() / rule.noise
        assert error < 128 * np.finfo(dtype).eps


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", SCALAR_LOSSES)
@pytest.mark.parametrize("method", ["lp", "fft"])
@pytest.mark.parametrize(
    "clipping",
    [{"clip": None}, {"clip": 0.7}, {"clip": 0.7, "clipping": "normalised", "stabiliser": 0.2}],
    ids=["unclipped", "flat", "normalised"],
)
def test_a_step_without_noise_is_the_compiled_drift(activation, loss, method, clipping, dtype, where):
    problem = random_problem(1, n=37, d=21, activation=activation, loss=loss)
    weights = random_weights(1, h=70, d=21, scale=0.3)
    phase = Phase(method, 0.1, **clipping)
    chain, e = an_ensemble(problem, weights, phase, dtype, where=where)
    e.advance(1)
    assert (e.diverged < 0).all()
    theta, scratch = chain.records.origin, chain.scratch()
    drift = aligned_zeros(theta.shape, dtype)
    if method == "lp":
        descend.freeze_features(theta, chain.data, scratch)
        descend.drift(
            theta[: chain.layout.head], drift[: chain.layout.head], chain.data, chain.rule(phase), scratch
        )
    else:
        descend.drift(theta, drift, chain.data, chain.rule(phase), scratch)
    for p in range(3):
        moved = chain.layout.unpack(e.theta[p].cpu().numpy() - theta)
        for ours, theirs in zip(moved, chain.layout.unpack(drift), strict=True):
            scale = np.abs(theirs).max()
            np.testing.assert_allclose(ours / 0.01, theirs, atol=300 * np.finfo(dtype).eps * max(scale, 1.0))


# --- whole runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", SCALAR_LOSSES)
@pytest.mark.parametrize("reduce", ["auto", "none"])
def test_runs_agree_with_the_compiled_ones(device, activation, loss, reduce):
    """All observables, path by path; n < d, so that something lies outside the span."""
    d = 12
    problem = random_problem(2, n=9, d=d, activation=activation, loss=loss)
    weights = random_weights(2, h=11, d=d, scale=0.5)
    schedule = Schedule(
        [
            Phase("lp", 0.1, 0.3, 1.0),
            Phase("fft", 0.1, 0.2, 1.0),
            Phase("fft", 0.05, 0.2, 1.0, "normalised"),
            Phase("lp", 0.05, 0.1),
        ]
    )
    per_neuron = PER_NEURON if problem.classification else []
    arguments = {"observables": per_neuron, "reduce": reduce, "times": [0.0, 0.03, 0.1, 0.15, 0.17, 0.28]}
    ours = simulate(device, problem, weights, schedule, **arguments)
    assert_close(ours, simulate("cpu", problem, weights, schedule, **arguments))
    # negative control: another seed is another run
    assert (
        np.abs(ours.loss - simulate("cpu", problem, weights, schedule, rng=2, **arguments).loss).max() > 1e-3
    )


def test_single_precision_and_finer_noise(device):
    problem, weights = random_problem(0, n=9, d=5), random_weights(0, h=11, d=5, scale=0.5)
    arguments = {"precision": "single", "noise_dt": 0.005, "observables": PER_NEURON}
    ours = simulate(device, problem, weights, SCHEDULE, **arguments)
    theirs = simulate("cpu", problem, weights, SCHEDULE, **arguments)
    for name in ("loss", "displacement", "squared_distance", *PER_NEURON):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-4, atol=2e-5, err_msg=name)


def test_held_out_observables(device):
    problem = orthogonally_separable(20, 5, test_samples=20, rng=0)
    weights = collapsed_features(problem, 8, rng=0)
    arguments = {"observables": ["test_accuracy", "knn_accuracy"], "times": [0.0, 0.1, 0.3]}
    ours = simulate(device, problem, weights, SCHEDULE, **arguments)
    assert_close(ours, simulate("cpu", problem, weights, SCHEDULE, **arguments))


def test_linear_probing_distorts_nothing(device):
    """What has not moved compares as equal."""
    problem, weights = random_problem(3, n=9, d=5), random_weights(3, h=300, d=5)
    run = simulate(device, problem, weights, Schedule.lp(time=0.1, sigma=0.3, clip=1.0), paths=40)
    assert (run.distorted == 0).all()
    assert (run.displacement[:, 0] == 0).all()


def test_only_diverging_paths_are_lost(device):
    problem = Problem([[1.0]], [0.0], activation="linear", loss="square")
    weights, schedule = Weights([[1.0]], [1.0]), Schedule.fft(time=60.0, sigma=0.9)
    lost = []
    for where in (device, "cpu"):
        with pytest.raises(Diverged, match=r"of 200 paths diverged.* at step \d+") as caught:
            simulate(where, problem, weights, schedule, dt=0.2, paths=200, rng=0)
        lost.append(np.isnan(caught.value.run.loss.values).sum(axis=1))
    # chaos: a path near the edge may fall on the other side, and a step later or earlier
    assert 0 < (lost[0] > 0).sum() < 200
    assert (np.abs(lost[0] - lost[1]) <= 1).mean() > 0.95


def test_chunks_and_calls_do_not_matter(device, monkeypatch):
    """Single paths and steps; a record at each, where what lies outside the span moves once."""
    problem, weights = random_problem(0, n=3, d=7), random_weights(0, h=11, d=7, scale=0.5)
    base = simulate(device, problem, weights, SCHEDULE)
    monkeypatch.setattr(_device, "_CALL_SECONDS", 0.0)
    assert_close(base, simulate(device, problem, weights, SCHEDULE), rtol=1e-13, atol=0)
    monkeypatch.setattr(_device, "_CHUNK_BYTES", 1)
    assert_close(base, simulate(device, problem, weights, SCHEDULE), rtol=1e-11, atol=1e-13)


def test_interrupted_runs_go_on(device, tmp_path, monkeypatch):
    problem, weights = random_problem(0, n=3, d=7), random_weights(0, h=11, d=7, scale=0.5)
    whole = simulate(device, problem, weights, SCHEDULE, observables=PER_NEURON)
    monkeypatch.setattr(_device, "_CALL_SECONDS", 0.0)
    saved = tmp_path / "unfinished"
    asked: list[bool] = []
    reached, halted = threading.Event(), threading.Event()
    advance, wait = _device.DeviceChain.advance, pool.wait

    def pausing(chain, chunk, results, scratch, stop):
        advance(chain, chunk, results, scratch, min(stop, chunk.step + 1))
        # in the second phase
        if chain.noisy and chunk.step == 17 and not halted.is_set():
            reached.set()
            assert halted.wait(SECONDS)

    def interrupting(*args, **kwargs):
        asked.append(True)
        if len(asked) == 1:
            assert reached.wait(SECONDS)
            raise KeyboardInterrupt
        # the run waits for threads that it has asked to halt
        halted.set()
        return wait(*args, **kwargs)

    monkeypatch.setattr(_device.DeviceChain, "advance", pausing)
    monkeypatch.setattr(pool, "wait", interrupting)
    with pytest.raises(Interrupted, match=r"interrupted at 56\.7%"):
        simulate(device, problem, weights, SCHEDULE, observables=PER_NEURON, checkpoint=saved)
    with np.load(saved) as file:
        assert file["chunks"].tolist() == [[0, 17, 5]]
        assert np.abs(file["thetas"]).max() > 0
        assert np.abs(file["complements"]).max() > 0
    resumed = simulate(device, problem, weights, SCHEDULE, observables=PER_NEURON, checkpoint=saved)
    assert_close(whole, resumed, rtol=1e-13, atol=0)
    assert not saved.exists()


def test_the_record_names_the_device(device):
    problem, weights = random_problem(0, n=9, d=5), random_weights(0, h=11, d=5, scale=0.5)
    ours = simulate(device, problem, weights, SCHEDULE)
    theirs = simulate("cpu", problem, weights, SCHEDULE)
    assert json.loads(theirs.attrs["config"])["device"] == "cpu"
    assert json.loads(ours.attrs["config"])["device"] != "cpu"
    assert "torch" in json.loads(ours.attrs["versions"])


def smallest_pvalue(a: xr.Dataset, b: xr.Dataset) -> float:
    """Bonferroni-corrected Kolmogorov-Smirnov p-value, over observables and times; of the first neuron."""
    timed = [name for name in a.data_vars if "time" in a[name].dims]
    first, second = (
        np.concatenate([run[n].values.reshape(*run.loss.shape, -1)[:, :, 0] for n in timed], axis=1).T
        for run in (a, b)
    )
    tests: list[Any] = [stats.ks_2samp(x, y, method="asymp") for x, y in zip(first, second, strict=True)]
    return min(1.0, len(tests) * min(test.pvalue for test in tests))


def test_the_law_is_that_of_the_compiled_chain(device):
    """In the second phase, where all moves; reduced or not."""
    problem, weights = random_problem(7, n=3, d=7), random_weights(7, h=4, d=7, scale=0.5)
    arguments = {"paths": 3000, "times": [0.2, 0.3], "observables": PER_NEURON}
    reference = simulate("cpu", problem, weights, SCHEDULE, reduce="none", **arguments)
    arguments["rng"] = 2
    for reduce in ("none", "auto"):
        ours = simulate(device, problem, weights, SCHEDULE, reduce=reduce, **arguments)
        assert smallest_pvalue(ours, reference) > 1e-3
    # negative control: a tenth more noise is seen
    schedule = Schedule([Phase(p.method, p.time, 1.1 * p.sigma, p.clip) for p in SCHEDULE])
    louder = simulate(device, problem, weights, schedule, reduce="none", **arguments)
    assert smallest_pvalue(louder, reference) < 1e-3


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "mps", 0, None])
def test_unknown_devices_are_refused(name):
    with pytest.raises(ValueError, match=r"device must be 'cpu', 'cuda' or 'cuda:<number>', got"):
        simulate(name, random_problem(0), random_weights(0), SCHEDULE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(
        ValueError, match=r"device must be 'cpu' here, got 'cuda:1': PyTorch .* finds no CUDA GPU"
    ):
        simulate("cuda:1", random_problem(0), random_weights(0), SCHEDULE)


@GPU
def test_a_gpu_too_many():
    name = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ValueError, match=f"device must be 'cpu' or 'cuda:0' to .* here, got '{name}'"):
        simulate(name, random_problem(0), random_weights(0), SCHEDULE)


def test_without_torch_it_says_so(monkeypatch):
    import sys

    import langevin

    monkeypatch.setitem(sys.modules, "langevin.engine.gpu.chain", None)
    monkeypatch.delattr(langevin, "_device", raising=False)
    with pytest.raises(
        ValueError, match=r"device must be 'cpu' here, got 'cuda': PyTorch is not installed; pip"
    ):
        simulate("cuda", random_problem(0), random_weights(0), SCHEDULE)
