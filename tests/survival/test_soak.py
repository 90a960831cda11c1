"""Random commands, interrupted at random moments: ``SOAK_TRIALS=100 pytest -n auto -m '' tests/survival``."""

import gc
import os
import random
from typing import Any

import psutil
import pytest

from langevin import Schedule, collapsed_features, euler_maruyama, orthogonally_separable
from langevin.store import files
from tests.survival import processes
from tests.survival.outcomes import TRIALS, Finding

COMMANDS = [
    processes.simulate,
    *(
        pytest.param(command, marks=pytest.mark.slow)
        for command in (processes.sweep, processes.plan, processes.finetune, processes.grid)
    ),
]


@pytest.mark.parametrize("trial", range(TRIALS))
@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupted_command_has_the_results_of_an_undisturbed_one(command, trial, tmp_path):
    command(random.Random(trial), tmp_path, times=2)


def test_a_wrong_bit_is_found(monkeypatch, tmp_path):
    """Negative control."""
    real, loads = files.load, []

    def wrong(path):
        run = real(path)
        loads.append(path)
        if len(loads) == 2:
            run.loss[0, 0] += 1e-12
        return run

    monkeypatch.setattr(files, "load", wrong)
    with pytest.raises(Finding, match="other bits"):
        processes.simulate(random.Random(0), tmp_path, times=0)


@pytest.mark.slow
def test_a_long_lived_process_does_not_grow(tmp_path):
    problem = orthogonally_separable(32, 8, rng=0)
    weights = collapsed_features(problem, 64, rng=0)
    schedule = Schedule.lp_fft(lp_time=0.1, fft_time=0.1, sigma=0.5, clip=1.0)
    how: dict[str, Any] = dict(dt=1e-3, paths=20, rng=0, reduce="none")
    process, memory = psutil.Process(os.getpid()), []
    for _ in range(5):
        for _ in range(10):
            run = euler_maruyama(problem, weights, schedule, **how)
            for suffix in (".nc", ".zarr"):
                files.load(files.save(run, tmp_path / f"run{suffix}"))
        gc.collect()
        memory.append(process.memory_info().rss / 2**20)
    assert memory[-1] - max(memory[:2]) < 48
    assert not [file.path for file in process.open_files() if file.path.startswith(str(tmp_path))]
