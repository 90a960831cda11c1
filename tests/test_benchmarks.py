import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks import floor
from benchmarks.contestants import Case, Ours, TorchSDE

ROOT = Path(__file__).parents[1]
TOLERANCES = {np.float64: 1e-10, np.float32: 1e-3}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("reduce", ["auto", "none"])
@pytest.mark.parametrize("shape", [(5, 12, 9), (30, 16, 8)])
def test_contestants_compute_the_same_drift(shape, reduce, dtype):
    case = Case(*shape)
    assert case.reducible == (shape[0] > shape[2])
    assert case.error(Ours(case, dtype, reduce, 2)) < TOLERANCES[dtype]
    assert case.error(TorchSDE(case, dtype, reduce, 3, fresh=True)) < TOLERANCES[dtype]


def test_a_wrong_drift_is_noticed():
    case = Case(5, 12, 9)
    peer = TorchSDE(case, np.float64, "none", 1, fresh=True)
    peer.model.clip *= 1.01
    assert case.error(peer) > 1e-4


def test_the_floor_of_reduced_data_counts_their_triangle():
    case = Case(30, 16, 8)
    X = case.span("auto").coordinates(case.problem.X)[case.span("auto").order]
    work = floor.Work.of(X, case.width, 8)
    assert work.flops == 4 * (8 * 9 / 2) * 16
    assert work.normals == 16 * 8 + 16


def test_quick_run_prints_every_table():
    pytest.importorskip("torchsde")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.step", "--quick"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "step / floor" in done.stdout
    assert done.stdout.count("| 20, 64, 50 | single |") == 4


def test_the_quick_run_on_a_device_prints_every_table():
    pytest.importorskip("torchsde")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--quick"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "floor / step" in done.stdout
    assert done.stdout.count("| 30, 16, 8 | 8; 8; single |") == 3
