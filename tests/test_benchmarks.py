import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import floor
from benchmarks.contestants import DT, SIGMA, Case
from benchmarks.lineup import PEERS, lineup, require_same_drift

ROOT = Path(__file__).parents[1]
TOLERANCES = {np.float64: 1e-10, np.float32: 1e-3}
US = "us"


def contestant(name, case, dtype=np.float64, reduce="none", paths=2):
    from benchmarks.contestants import Ours

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
    # after 16 steps, of which 15 were asked for at once
    assert abs((end_W - W).std() / (SIGMA * (2 * DT) ** 0.5) - 4) < 0.2


def test_missing_peers_stay_out(monkeypatch):
    monkeypatch.setattr("benchmarks.lineup.find_spec", lambda name: None)
    assert set(lineup(Case(30, 16, 8), np.float64, (1,), 0.0)) == {"us, reduced", "us, full"}


def test_the_floor_of_reduced_data_counts_their_triangle():
    case = Case(30, 16, 8)
    X = case.span("auto").coordinates(case.problem.X)[case.span("auto").order]
    work = floor.Work.of(X, case.width, 8)
    assert work.flops == 4 * (8 * 9 / 2) * 16
    assert work.normals == 16 * 8 + 16


def test_quick_run_prints_every_table():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.step", "--quick"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "step / floor" in done.stdout
    assert done.stdout.count("20, 64, 50 single |") == 5
