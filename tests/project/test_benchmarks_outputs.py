"""The benchmark of a step with K outputs and batches: contestants, floor, and a quick run."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from benchmarks import step, step_outputs
from benchmarks.harness import floor
from benchmarks.harness.contestants import DT, SIGMA
from benchmarks.harness.outputs import OursOutputs, OutputsCase
from benchmarks.peers.lineup import best_paths, lineup, require_same_drift
from benchmarks.peers.outputs_lineup import PEERS, peers
from tests.helpers import execute

ROOT = Path(__file__).parents[2]
TOLERANCES = {np.float64: 1e-10, np.float32: 1e-3}
US = "us"
# sampling rate and method
STEPS: list[tuple[float, Any]] = [(1.0, "fft"), (0.5, "fft"), (1.0, "lp"), (0.5, "lp")]


def contestant(name: str, case: OutputsCase, dtype=np.float64, reduce="none", paths=2) -> Any:
    if name == US:
        return OursOutputs(case, dtype, reduce, paths)
    if name not in peers(case):
        pytest.skip(f"{name} takes no batches")
    if not PEERS[name].installed:
        pytest.skip(f"{name} needs {' and '.join(PEERS[name].needs)}: install the extras bench and peers")
    return PEERS[name].build(case, dtype, reduce, paths)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("shape", "reduce"), [((5, 12, 19, 3), "none"), ((30, 16, 8, 4), "none"), ((30, 16, 8, 4), "span")]
)
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("name", [US, *PEERS])
def test_contestants_compute_the_same_drift(name, kind, shape, reduce, dtype):
    case = OutputsCase(*shape, *kind)
    assert case.reducible == (kind[1] == "fft" and shape[0] > shape[2])
    assert case.error(contestant(name, case, dtype, reduce)) < TOLERANCES[dtype]


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("name", PEERS)
def test_a_contestant_with_a_wrong_drift_is_refused(name, kind):
    case = OutputsCase(5, 12, 19, 3, *kind)
    peer = contestant(name, case, paths=1)
    require_same_drift(case, {name: peer}, TOLERANCES[np.float64])
    model = getattr(peer, "model", peer)
    model.clip *= 1.01
    with pytest.raises(SystemExit, match="another drift"):
        require_same_drift(case, {name: peer}, TOLERANCES[np.float32])


def test_a_batch_of_another_rate_is_another_drift():
    case, other = (OutputsCase(5, 12, 40, 3, rate) for rate in (0.5, 0.4))
    assert 0 < len(other.batch(0)) < len(case.batch(0)) < case.samples
    assert case.error(OursOutputs(other, np.float64, "none", 1)) > 0.1


@pytest.mark.parametrize("method", ["fft", "lp"])
@pytest.mark.parametrize("name", [US, *PEERS])
def test_contestants_take_the_same_steps(name, method):
    if name in PEERS and "torch" in PEERS[name].needs:
        import torch

        torch.manual_seed(0)
    case = OutputsCase(20, 200, 30, 10, method=method)
    peer = contestant(name, case, paths=1)
    start, drift = peer.position(), peer.drift()
    peer.advance(1)
    then = peer.position()
    peer.advance(15)
    end = peer.position()
    moved = [b - a - DT * c for a, b, c in zip(start, then, drift, strict=True)]
    assert (moved[0] == 0).all() == (method == "lp")
    scale = SIGMA * (2 * DT) ** 0.5
    noise = np.concatenate([part.ravel() for part in moved if part.any()]) / scale
    # at least 2000 normals: standard error of at most .016 of their scale, .022 of their mean
    assert abs(noise.std() - 1) < 0.065
    assert abs(noise.mean()) < 0.09
    assert abs((1.15 * noise).std() - 1) > 0.065
    # after 16 steps, 15 of which were requested at once
    assert abs((end[1] - start[1]).std() / scale - 4) < 0.3


@pytest.mark.parametrize("name", ["JAX", "torch vmap(grad)"])
def test_batches_of_peers_have_their_rate(name):
    samples, rate, paths = 300, 0.1, 400
    case = OutputsCase(3, 4, samples, 3, rate)
    peer = contestant(name, case, paths=paths)
    members = np.zeros((paths, samples), bool)
    if name == "JAX":
        import jax  # pyright: ignore[reportMissingImports]

        with peer.precision():
            rows, weights = (np.asarray(part) for part in peer.batches(jax.random.key(0)))
        assert set(np.unique(weights)) == {0.0, 1 / rate}
        assert (np.diff(rows[:, :5], axis=1) > 0).all()
        batches = [found[weight > 0] for found, weight in zip(rows, weights, strict=True)]
    else:
        import torch

        torch.manual_seed(0)
        batches = [batch.numpy() for batch in peer.batches()]
    for row, batch in zip(members, batches, strict=True):
        row[batch] = True
    # no row comes twice
    assert [len(batch) for batch in batches] == members.sum(axis=1).tolist()
    error = np.sqrt(rate * (1 - rate) / members.size)
    assert abs(members.mean() - rate) < 4 * error
    assert abs(members.mean() - 1.05 * rate) > 4 * error
    # counts have the binomial's variance, with a standard error of 7 %
    assert abs(members.sum(axis=1).var() / (samples * rate * (1 - rate)) - 1) < 0.28
    # and neighbours are independent
    pairs = members[:, :-1] & members[:, 1:]
    assert abs(pairs.mean() - rate**2) < 4 * np.sqrt(rate**2 / pairs.size)


def test_torchsde_takes_no_batches():
    assert not any("torchsde" in name for name in peers(OutputsCase(3, 4, 9, 3, 0.5)))
    pytest.importorskip("torchsde")
    with pytest.raises(ValueError, match="torchsde has no batches"):
        PEERS["torchsde"].build(OutputsCase(3, 4, 9, 3, 0.5), np.float64, "none", 1)


def test_missing_peers_are_skipped(monkeypatch):
    monkeypatch.setattr("benchmarks.peers.lineup.find_spec", lambda name: None)
    case = OutputsCase(30, 16, 8, 3, 0.5)
    found = lineup(case, np.float64, (1,), 0.0, peers=peers(case), ours=OursOutputs)
    assert set(found) == {"us, reduced", "us, full"}


def test_long_steps_end_the_search_unless_paths_share_what_they_read():
    class Slow:
        def __init__(self, paths):
            self.paths = paths

        def advance(self, steps):
            return steps * (1 + 0.1 * self.paths)

    build: Any = Slow
    assert best_paths(build, (1, 4, 16), 0.01) == 1
    assert best_paths(build, (1, 4, 16), 0.01, shared=True) == 16


def test_the_floor_counts_products_of_the_batch():
    case = OutputsCase(30, 16, 8, 3, 0.5)
    span = case.span("span")
    X = np.tril(span.coordinates(case.problem.X)[span.order])
    reduced = step_outputs.work(case, X, 8)
    assert reduced.flops == 0.5 * (4 * (8 * 9 / 2) * 16 + 6 * 8 * 16 * 3)
    assert reduced.normals == 16 * (8 + 3)
    assert reduced.gathered_bytes == 4 * 8 * 8
    probing = step_outputs.work(OutputsCase(30, 16, 8, 3, 0.5, "lp"), X, 4)
    assert probing.flops == 4 * 4 * 16 * 3
    assert probing.normals == 16 * 3
    rates = floor.Rates(1e9, 2e9, 1e8, {}, {8 * 16 * 4: 1e6})
    seconds = probing.seconds(rates)
    # here the features' traffic is longer than the products
    assert seconds["traffic"] == 4 * 16 * 4 / 1e6 > seconds["products"] == probing.flops / 2e9
    assert seconds["floor"] == seconds["traffic"] + 48 / 1e8


def test_a_quick_run_prints_every_table(monkeypatch, capsys):
    pytest.importorskip("torch")
    # which would confine this process to one processor
    monkeypatch.setattr(step_outputs, "one_thread", lambda: threadpool_limits(1))
    monkeypatch.setattr(sys, "argv", ["step_outputs", "--quick"])
    step_outputs.main()
    said = capsys.readouterr().out
    assert "step / floor" in said
    assert said.count("| 32, 512, 128, 10 | FFT | 0.1 | single |") == 4
    assert step.one_thread is not step_outputs.one_thread


@pytest.mark.slow
def test_a_quick_run_is_a_command():
    pytest.importorskip("torch")
    done = execute([sys.executable, "-m", "benchmarks.step_outputs", "--quick"], cwd=ROOT, check=True)
    assert done.stdout.count("| 32, 512, 128, 10 | FFT | 0.1 | single |") == 4
