"""Whole runs of K outputs and Poisson batches on a device, against the compiled ones."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest
import xarray as xr

from langevin import Interrupted, Phase, Problem, Schedule
from langevin.engine import pool
from langevin.model.losses import LOSSES, Loss
from tests.helpers import SECONDS
from tests.langevin.engine.networks import METHODS, a_chain, a_problem, a_schedule, simulate

_device = pytest.importorskip("langevin.engine.gpu.chain")
_outputs = pytest.importorskip("langevin.engine.gpu.outputs")


def assert_close(a: xr.Dataset, b: xr.Dataset, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    assert list(a.data_vars) == list(b.data_vars)
    for name in a.data_vars:
        np.testing.assert_allclose(a[name].values, b[name].values, rtol, atol, err_msg=str(name))


WHOLE = Schedule(
    [
        Phase("lp", 0.1, 0.3, 1.0, sample_rate=0.3),
        Phase("fft", 0.1, 0.2, 1.0, sample_rate=0.3),
        Phase("fft", 0.05, 0.2, 1.0, "normalised"),
        Phase("lp", 0.05, 0.1, sample_rate=0.5),
    ]
)
TIMES = [0.0, 0.03, 0.1, 0.15, 0.17, 0.3]


def held_out(d: int = 9) -> Problem:
    problem, rng = a_problem("softmax", d=d), np.random.default_rng(8)
    X_test = rng.standard_normal((11, d))
    return Problem(problem.X, problem.y, "relu", "softmax", X_test, rng.integers(3, size=11))


@pytest.mark.parametrize("reduce", ["auto", "none"])
@pytest.mark.parametrize("loss", ["softmax", "ovr", "square", "logistic"])
def test_runs_agree_with_the_compiled_ones(loss, reduce, device):
    """All observables, path by path; n < d, so that something lies outside the span."""
    problem, watched = a_problem(loss, d=25), []
    if loss != "square":
        watched = ["alignment", "preactivation", "head_alignment" if loss == "logistic" else "cone_distance"]
    if loss == "softmax":
        problem, watched = held_out(d=45), [*watched, "wholly_misaligned", "test_accuracy", "knn_accuracy"]
    arguments = {"reduce": reduce, "times": TIMES, "observables": watched}
    ours, theirs = (simulate(where, problem, WHOLE, **arguments) for where in (device, "cpu"))
    assert_close(ours, theirs)
    # control: another seed is another run
    assert np.abs(ours.loss - simulate("cpu", problem, WHOLE, rng=2, **arguments).loss).max() > 1e-3


def test_single_precision_and_finer_noise(device):
    arguments = {"precision": "single", "noise_dt": 0.005, "times": TIMES}
    ours, theirs = (simulate(where, a_problem("ovr"), WHOLE, **arguments) for where in (device, "cpu"))
    assert_close(ours, theirs, 2e-4, 2e-5)


def test_without_noise_and_on_all_samples_nothing_is_off_the_zeroth_order_path(device):
    schedule = Schedule.lp_fft(lp_time=0.1, fft_time=0.2, clip=1.0)
    run = simulate(device, a_problem("softmax"), schedule, paths=2)
    assert (run.squared_distance < 1e-24).all()
    assert (run.displacement[:, -1] > 0.01).all()


def test_chunks_and_calls_do_not_matter(device, monkeypatch):
    problem = a_problem("softmax", d=25)
    base = simulate(device, problem, WHOLE)
    monkeypatch.setattr(_device, "_CALL_SECONDS", 0.0)
    assert_close(base, simulate(device, problem, WHOLE), rtol=1e-13, atol=1e-15)
    monkeypatch.setattr(_device, "_CHUNK_BYTES", 1)
    assert_close(base, simulate(device, problem, WHOLE), rtol=1e-11, atol=1e-13)


def test_chunks_fit_the_memory(monkeypatch):
    """Whatever the phases hold of each path."""
    problem = a_problem("softmax", n=400)
    for methods, rate in itertools.product(METHODS.values(), (1.0, 0.1)):
        chain = a_chain(problem, a_schedule(methods, sample_rate=rate), "cpu")
        monkeypatch.setattr(_device.DeviceChain, "_free_bytes", lambda _: 2**20)
        paths = chain.chunk_paths(10**6, 1)
        assert 1 < paths < 1000
        e = _outputs.OutputsEnsemble(chain, chain.start(0, paths), np.full(paths, -1))
        for phase in range(len(methods)):
            e.enter(phase)
            e.advance(2)
        held = [e.theta, *e._spaces.values()]
        held += [t for t in (e.features,) if t is not None and t.dim() == 3]
        assert sum(t.numel() * t.element_size() for t in held) < 0.8 * 2**20


@pytest.mark.parametrize("halt", [5, 14, 29])
def test_interrupted_runs_resume(halt, device, tmp_path, monkeypatch):
    problem = a_problem("softmax", d=25)
    whole = simulate(device, problem, WHOLE, times=TIMES)
    monkeypatch.setattr(_device, "_CALL_SECONDS", 0.0)
    saved, asked = tmp_path / "unfinished", []
    reached, halted = threading.Event(), threading.Event()
    advance, wait = _device.DeviceChain.advance, pool.wait

    def pausing(chain: Any, chunk: Any, results: Any, scratch: Any, stop: int) -> None:
        advance(chain, chunk, results, scratch, min(stop, chunk.step + 1))
        if chain.noisy and chunk.step == halt and not halted.is_set():
            reached.set()
            assert halted.wait(SECONDS)

    def interrupting(*args: Any, **kinds: Any) -> Any:
        asked.append(True)
        if len(asked) == 1:
            assert reached.wait(SECONDS)
            raise KeyboardInterrupt
        # the run waits for threads that it has asked to halt
        halted.set()
        return wait(*args, **kinds)

    monkeypatch.setattr(_device.DeviceChain, "advance", pausing)
    monkeypatch.setattr(pool, "wait", interrupting)
    with pytest.raises(Interrupted):
        simulate(device, problem, WHOLE, times=TIMES, checkpoint=saved)
    with np.load(saved) as file:
        assert file["chunks"].tolist() == [[0, halt, 5]]
    resumed = simulate(device, problem, WHOLE, times=TIMES, checkpoint=saved)
    assert_close(whole, resumed, rtol=1e-13, atol=1e-15)
    assert not saved.exists()


@pytest.mark.parametrize("reduce", ["kernel", "gram"])
def test_reductions_of_the_processor_are_refused(reduce, device):
    problem = a_problem("softmax", activation="linear")
    with pytest.raises(ValueError, match=f"{reduce!r} (runs on the processor alone|does not cover)"):
        simulate(device, problem, Schedule.lp(time=0.1), reduce=reduce)


def test_losses_without_a_form_for_tensors_are_refused_by_name(device, monkeypatch):
    square = LOSSES["square"]
    bare = Loss("bare", square.value, square.residual, square.curvature, smoothness=1.0)
    monkeypatch.setitem(LOSSES, "bare", bare)
    problem = a_problem("square")
    problem = Problem(problem.X, problem.y, "relu", "bare")
    with pytest.raises(
        ValueError, match=r"device must be 'cpu' with loss 'bare', got 'c.*no form for tensors"
    ):
        simulate(device, problem, Schedule.lp(time=0.1, sample_rate=0.5))
