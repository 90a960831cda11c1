import argparse
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import langevin
from benchmarks import overview, processes, scaling, step, threads
from benchmarks.harness import floor
from benchmarks.harness.contestants import DT, SIGMA, Case
from benchmarks.harness.outputs import OutputsCase
from benchmarks.peers.lineup import PEERS, best_paths, lineup, require_same_drift
from tests.helpers import execute

ROOT = Path(__file__).parents[2]
TOLERANCES = {np.float64: 1e-10, np.float32: 1e-3}
US = "us"


def contestant(name, case, dtype=np.float64, reduce="none", paths=2):
    from benchmarks.harness.contestants import Ours

    if name == US:
        return Ours(case, dtype, reduce, paths)
    if not PEERS[name].installed:
        pytest.skip(f"{name} needs {' and '.join(PEERS[name].needs)}: install the extras bench and peers")
    return PEERS[name].build(case, dtype, reduce, paths)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("reduce", ["auto", "none"])
@pytest.mark.parametrize("shape", [(5, 12, 9), (30, 16, 8)])
@pytest.mark.parametrize("name", [US, *PEERS])
def test_contestants_compute_the_same_drift(name, shape, reduce, dtype):
    case = Case(*shape)
    assert case.reducible == (shape[0] > shape[2])
    assert case.error(contestant(name, case, dtype, reduce)) < TOLERANCES[dtype]


def test_one_path_is_clipped_alike():
    case = Case(5, 12, 9)
    assert case.error(contestant("torch vmap(grad)", case, paths=1)) < TOLERANCES[np.float64]


@pytest.mark.parametrize("name", ["torchsde", "torch vmap(grad)", "JAX scan", "diffrax, tree"])
def test_a_contestant_with_a_wrong_drift_is_refused(name):
    case = Case(5, 12, 9)
    peer = contestant(name, case)
    require_same_drift(case, {name: peer}, TOLERANCES[np.float64])
    model: Any = getattr(peer, "model", peer)
    model.clip *= 1.01
    assert case.error(peer) > 1e-4
    with pytest.raises(SystemExit, match="another drift"):
        require_same_drift(case, {name: peer}, TOLERANCES[np.float32])


@pytest.mark.parametrize("name", [US, *PEERS])
def test_contestants_take_the_same_steps(name):
    if PEERS.get(name) and "torch" in PEERS[name].needs:
        import torch

        torch.manual_seed(0)
    case = Case(20, 200, 5)
    peer = contestant(name, case, paths=1)
    (W, v), (drift_W, drift_v) = peer.position(), peer.drift()
    peer.advance(1)
    then_W, then_v = peer.position()
    peer.advance(15)
    end_W, _ = peer.position()
    noise = np.concatenate([(then_W - W - DT * drift_W).ravel(), then_v - v - DT * drift_v])
    scaled = noise / (SIGMA * (2 * DT) ** 0.5)
    # 4200 normals: standard error .011 of their scale, .015 of their mean
    assert abs(scaled.std() - 1) < 0.05
    assert abs(scaled.mean()) < 0.07
    assert abs((1.1 * scaled).std() - 1) > 0.05
    # after 16 steps, 15 of which were requested at once
    assert abs((end_W - W).std() / (SIGMA * (2 * DT) ** 0.5) - 4) < 0.2


def test_missing_peers_are_skipped(monkeypatch):
    monkeypatch.setattr("benchmarks.peers.lineup.find_spec", lambda name: None)
    assert set(lineup(Case(30, 16, 8), np.float64, (1,), 0.0)) == {"us, reduced", "us, full"}


def test_the_fastest_number_of_paths_is_found():
    tried = []

    class Fastest:
        def __init__(self, paths):
            self.paths = paths
            tried.append(paths)

        def advance(self, steps):
            return 1e-3 * steps * self.paths * (1 + abs(np.log2(self.paths / 4)))

    build: Any = Fastest
    assert best_paths(build, (1, 2, 4, 8, 16, 32, 64), 1.0) == 4
    assert tried == [1, 2, 4, 8, 16]


def test_exponents_come_from_large_sizes():
    sizes = [2**power for power in range(11)]
    family = scaling.Family(
        "a law", "h", sizes, {"flat, then cubic": lambda size: lambda seconds: max(1e6, float(size) ** 3)}
    )
    family.measure(0.0, 1)
    assert family.fitted == [128, 256, 512, 1024]
    assert family.exponent("flat, then cubic") == pytest.approx(3)
    assert family.costs["flat, then cubic"][0] == 1e6
    record = {"processor": "none", "started": "never", "load": [0.0]}
    assert "| a law | flat, then cubic | **3.00** | h = 128 to 1024 |" in scaling.report(record, [family])
    assert len(scaling.draw([family]).axes) == 2


@pytest.mark.parametrize("method", ["fft", "lp"])
def test_whole_runs_are_timed(monkeypatch, method):
    assert scaling.whole_run(scaling.linear_net, method, 16)(1e-3) > 0
    # a run advances this clock by half a second, and a step of a path by a hundredth
    clock = [0.0]

    def simulated(problem, weights, schedule, *, dt, paths, **_):
        clock[0] += 0.5 + 0.01 * paths * round(schedule.duration / dt)

    monkeypatch.setattr(langevin, "euler_maruyama", simulated)
    monkeypatch.setattr(scaling.time, "process_time", lambda: clock[0])
    assert scaling.whole_run(scaling.linear_net, method, 16)(1.0) == pytest.approx(0.01)


def test_threads_are_compared():
    record = {"processor": "none", "started": "never", "load": [0.0], "threads": 2}
    record["cases"] = [threads.measure((5, 12, 9), 10, 4, 2, 2)]
    assert len(record["cases"][0]["one"]) == 2
    assert "| 5, 12, 9 |" in threads.report(record)


def test_bodies_are_chosen_by_name(capsys):
    parser = argparse.ArgumentParser()
    assert processes.chosen(parser, ["mlp", "conv"], None) == [0, 1]
    assert processes.chosen(parser, ["mlp", "conv"], ["conv"]) == [1]
    with pytest.raises(SystemExit):
        processes.chosen(parser, ["mlp", "conv"], ["conv", "nope"])
    assert "--bodies must be of mlp, conv, got nope" in capsys.readouterr().err


def test_the_parts_of_a_step_in_several_processes():
    one = {"images per second": 1000.0, "half": 0.05, "one size": 0.04, "device": 0.02, "kernels": 900.0}
    two = [{"images per second": rate, "sum": 0.001} for rate in (1500.0, 1700.0, 1600.0)]
    case = processes.described(("net", {}, 28, "hooks", 80), {1: [one], 2: two})
    record = {"device": "none", "started": "never", "cases": [case]}
    shown = processes.tables(record)
    for line in (
        "| 2 | 1.6e+03 (1.60) |",
        "| processes: 1 | 80 |",
        "| processes: 2 | 50 |",
        "| one process, half the batch | 50 |",
        "| the same, all batches of one size | 40 |",
        "| of that, the device computes | 20 |",
        "| sum of gradients over two processes, alone | 1 |",
        "| kernels and copies in that step | 900 |",
    ):
        assert line in shown
    # a processor has no device to profile
    del one["device"], one["kernels"]
    case = processes.described(("net", {}, 28, "hooks", 80), {1: [one], 2: two})
    assert "| of that, the device computes | - |" in processes.tables(record | {"cases": [case]})


def test_the_time_of_a_device_leaves_out_processors_and_annotations():
    def event(device, seconds, annotation=False):
        span = SimpleNamespace(elapsed_us=lambda: 1e6 * seconds)
        where = SimpleNamespace(name=device)
        return SimpleNamespace(device_type=where, time_range=span, is_user_annotation=annotation)

    events = [event("CUDA", 0.5), event("CPU", 2.0), event("CUDA", 0.25), event("CUDA", 4.0, annotation=True)]
    assert processes.computed(events, 3) == {"device": 0.25, "kernels": 2 / 3}


def test_a_clock_leaves_out_the_steps_of_warming_up(monkeypatch):
    ticks = iter([10.0, 12.5])
    monkeypatch.setattr(processes, "now", lambda device: next(ticks))
    clock = processes.Clock("cpu")
    for number in range(1, 9):
        clock.tick(number, 8)
    assert clock.seconds == 2.5


def test_the_floor_of_reduced_data_counts_their_triangle():
    case = Case(30, 16, 8)
    X = case.span("auto").coordinates(case.problem.X)[case.span("auto").order]
    work = floor.Work.of(X, case.width, 8)
    assert work.flops == 4 * (8 * 9 / 2) * 16
    assert work.normals == 16 * 8 + 16


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_contestants_with_several_outputs_compute_the_same_drift(dtype):
    torch = pytest.importorskip("torch")
    outputs, device = importlib.import_module("benchmarks.harness.gpu_outputs"), torch.device("cpu")
    full, batches = (OutputsCase(8, 24, 40, 3, rate) for rate in (1.0, 0.2))
    peer = outputs.TorchSDEOutputs(full, dtype, 2, device, True)
    ours, drawn = (outputs.OurOutputs(case, dtype, 3, device) for case in (full, batches))
    assert outputs.error(full, peer) < TOLERANCES[dtype]
    assert outputs.error(full, ours) < TOLERANCES[dtype]
    assert outputs.error(batches, drawn) < TOLERANCES[dtype]
    # controls: another clip, another path's batch
    peer.model.clip *= 1.01
    drawn.path = 0
    assert outputs.error(full, peer) > 5e-3
    assert outputs.error(batches, drawn) > 0.1


TABLES = [
    ("step", "step / floor", "20, 64, 50 single |", 5),
    ("gpu", "floor / step", "| 30, 16, 8 | 8; 8; single |", 3),
    ("gpu_outputs", "floor / step", "| 8, 24, 20, 3 | 0.1; 8; 4; single |", 3),
]


@pytest.mark.parametrize(("module", "title", "row", "count"), TABLES)
def test_quick_runs_print_every_table(module, title, row, count, monkeypatch, capsys):
    pytest.importorskip("torchsde")
    # which would confine this process to one processor
    monkeypatch.setattr(step, "one_thread", lambda: threadpool_limits(1))
    monkeypatch.setattr(sys, "argv", [module, "--quick"])
    importlib.import_module(f"benchmarks.{module}").main()
    said = capsys.readouterr().out
    assert title in said
    assert said.count(row) == count


@pytest.mark.slow
@pytest.mark.parametrize(("module", "title", "row", "count"), TABLES)
def test_quick_runs_are_commands(module, title, row, count):
    pytest.importorskip("torchsde")
    done = execute([sys.executable, "-m", f"benchmarks.{module}", "--quick"], cwd=ROOT, check=True)
    assert title in done.stdout
    assert done.stdout.count(row) == count


def test_the_overview_is_of_the_kept_records():
    found = overview.records()
    assert (overview.RESULTS / f"{overview.NAME}.md").read_text() == overview.summary(found)
    # a faster peer is another overview
    found["one output"]["cases"][0]["contestants"]["JAX scan, full"]["seconds"] /= 10
    assert (overview.RESULTS / f"{overview.NAME}.md").read_text() != overview.summary(found)


def test_the_overview_divides_times_on_equal_and_on_reduced_data():
    seconds = {"us, full": 4.0, "us, reduced": 2.0, "peer, full": 12.0, "peer, reduced": 10.0}
    floor = {"products": 1.0, "draws": 0.5, "traffic": 0.1}
    record = {"cases": [{"contestants": {n: {"seconds": s} for n, s in seconds.items()}, "floor": floor}]}
    assert overview.ratios(record) == {overview.SAME: {"peer": [3.0, 5.0]}, overview.DEFAULT: {"peer": [6.0]}}
    assert list(overview.floors(record)) == [pytest.approx(2.0 / 1.6)]
