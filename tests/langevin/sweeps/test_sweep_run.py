"""Sweeps in this process and in worker processes: bits, resumption, failures, the command."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import xarray as xr
import zarr

from langevin import euler_maruyama
from langevin.simulation.config import Simulation
from langevin.store.errors import StoreError
from langevin.sweep import main
from langevin.sweeps import SIMULATIONS, Grid, run_sweep
from langevin.sweeps.cluster import hush
from tests.helpers import execute, finish, until
from tests.langevin.engine.toy import TOYS, expected, script
from tests.langevin.solvers.test_solvers import equal_bits

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
# two processes die for a cell before Dask gives it up, not four
DEADLY = {**ENVIRONMENT, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
SMALL = {"samples": 8, "dim": 3, "time": 0.1, "dt": 0.01, "paths": 4}
GRID = f"""
kind = "simulate"
[fixed]
{chr(10).join(f"{name} = {value}" for name, value in SMALL.items())}
[sweep]
sigma = [0.1, 0.4]
width = [8, 16]
seed = {{ count = 2 }}
[record]
variables = ["loss", "accuracy"]
times = 4
"""


def load(path) -> xr.Dataset:
    with xr.open_zarr(path, chunks=None, consolidated=False) as run:
        return run.load()


def same(a: xr.Dataset, b: xr.Dataset) -> bool:
    return equal_bits(a.drop_vars("error"), b.drop_vars("error"))


def traced(path: Path) -> list[str]:
    return sorted(path.read_text().splitlines())


def test_each_cell_is_what_the_simulator_gives_alone(alone):
    simulation = Simulation(**SMALL, sigma=0.4, width=16, seed=1)
    problem, weights, *_ = simulation.start()
    schedule = simulation.schedule
    times = schedule.default_times(4)
    run = euler_maruyama(problem, weights, schedule, dt=0.01, paths=4, rng=1, times=times)
    cell = alone.sel(sigma=0.4, width=16, seed=1)
    assert np.array_equal(cell.loss, run.loss.mean("path"))
    assert np.array_equal(cell.loss_standard_error, run.loss.std("path", ddof=1) / 2)
    assert np.array_equal(cell.time, run.time)
    assert not np.array_equal(alone.sel(sigma=0.4, width=16, seed=0).loss, cell.loss)
    assert cell.loss.attrs["units"] == "loss"


def test_processes_give_the_same_bits_and_the_command_goes_on(tmp_path, alone, capsys, logging_kept):
    (tmp_path / "grid.toml").write_text(GRID)
    arguments = [str(tmp_path / "grid.toml"), "--out", str(tmp_path / "s.zarr"), "--json"]
    assert main([*arguments, "--check"]) == 0
    assert json.loads(capsys.readouterr().out)["left"] == 8
    assert not (tmp_path / "s.zarr").exists()
    # the command as a process, whose workers are processes
    program = [sys.executable, "-m", "langevin.sweep", *arguments, "--workers", "2"]
    done = execute(program, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["finished"], report["failed"], report["computed"]) == (8, 0, 8)
    assert same(load(tmp_path / "s.zarr"), alone)
    (tmp_path / "grid.toml").write_text(GRID.replace("count = 2", "count = 3"))
    assert main([*arguments, "--workers", "2", "--threads"]) == 0
    assert json.loads(capsys.readouterr().out)["computed"] == 4
    assert same(load(tmp_path / "s.zarr").sel(seed=[0, 1]), alone)
    assert np.isfinite(load(tmp_path / "s.zarr").loss).all()


def test_finished_cells_are_never_computed_again(tmp_path):
    trace = tmp_path / "trace"
    sweep = {"a": [1.0, -1.0], "seed": {"count": 3}}

    def run(sweep):
        trace.write_text("")
        grid = Grid(TOYS, sweep, {"trace": str(trace)})
        return run_sweep(grid, tmp_path / "s.zarr", workers=2, threads=True).load()

    first = run(sweep)
    assert traced(trace) == sorted(f"{a} 0 {seed}" for a in (1, -1) for seed in range(3))
    assert first.status.values.tolist() == [[1, 1, 1], [2, 2, 2]]
    assert (first.error.sel(a=-1.0) == "ValueError: a must not be negative, got -1").all()
    assert np.isnan(first.x.sel(a=-1.0)).all()
    # what failed is tried again
    run(sweep)
    assert traced(trace) == sorted(f"-1 0 {seed}" for seed in range(3))
    sweep = {"a": [1.0, 3.0, -1.0], "seed": {"count": 4}}
    last = run(sweep)
    assert traced(trace) == sorted([*(f"{a} 0 {s}" for a in (-1, 3) for s in range(4)), "1 0 3"])
    assert np.array_equal(last.x.sel(a=3.0, seed=2), expected(3.0, 0, 2))


@pytest.mark.parametrize("threads", [True, False])
def test_progress_and_dashboard_are_told_and_nothing_listens_beyond_this_machine(tmp_path, threads):
    told, addresses, listening = [], [], set()

    def dashboard(address: str) -> None:
        addresses.append(address)
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                found = process.net_connections("tcp")
                listening.update(one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN)

    run_sweep(
        Grid(TOYS, {"seed": {"count": 5}}),
        tmp_path / "s.zarr",
        workers=1,
        threads=threads,
        progress=lambda done, cells: told.append((done, cells)),
        dashboard=dashboard,
    )
    assert told[-1] == (5, 5)
    assert addresses[0].startswith("http://127.0.0.1:")
    assert listening == {"127.0.0.1"}


def test_a_cell_that_kills_its_process_does_not_stop_the_others(tmp_path):
    sweep = {"a": [1.0, 13.0, 2.0, 3.0], "seed": [0]}
    done = execute(script(tmp_path / "s.zarr", sweep, workers=2), env=DEADLY, cwd=tmp_path)
    assert done.stdout.strip() == "finished 3 failed 1", done.stderr
    assert (load(tmp_path / "s.zarr").error.sel(a=13.0) == "its process died: killed, or out of memory").all()


def test_cells_that_kill_their_processes_one_after_another_end(tmp_path):
    """Dask looks for lost workers after a while, and must not give up one that is not back yet."""
    done = execute(
        script(tmp_path / "s.zarr", {"a": [13.0], "seed": {"count": 2}}, workers=1),
        env={**DEADLY, "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "300 ms"},
        cwd=tmp_path,
    )
    assert done.stdout.strip() == "finished 0 failed 2", done.stderr


def test_memory_is_foreseen(tmp_path):
    fixed = {"paths": 10**9, "width": 4, "time": 0.1, "dt": 0.01}
    grid = Grid(SIMULATIONS, {"seed": [0]}, fixed)
    with pytest.raises(MemoryError, match=r"a cell for each of 2 workers needs .* GiB, .* GiB are free"):
        run_sweep(grid, tmp_path / "s.zarr", workers=2)
    # petabytes
    fixed["paths"] = 10**13
    grid = Grid(SIMULATIONS, {"seed": {"count": 10}}, fixed, {"paths": "all"})
    with pytest.raises(StoreError, match=r"needs .* GiB for 10 cells before compression"):
        run_sweep(grid, tmp_path / "t.zarr", workers=2)


def test_arguments_that_contradict_each_other(tmp_path):
    grid = Grid(TOYS, {"seed": [0]})
    with pytest.raises(ValueError, match=r"scheduler='tcp://127.*' has its own workers"):
        run_sweep(grid, tmp_path / "s.zarr", workers=2, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(ValueError, match="workers must be at least 1"):
        run_sweep(grid, tmp_path / "s.zarr", workers=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.toml"], "grid must be a TOML file, got 'nowhere.toml': No such file"),
        (["grid.toml", "--out", "s.nc"], "out must end in .zarr for a sweep"),
        (["grid.toml", "--workers", "0"], "workers must be at least 1, got 0"),
        (
            ["grid.toml", "--scheduler", "tcp://127.0.0.1:1", "--threads"],
            "scheduler='tcp://127.0.0.1:1' has its own workers",
        ),
        (["grid.toml", "--out", "grid.zarr"], "out must be a sweep or not be there, but 'grid.zarr' is none"),
    ],
)
@pytest.mark.usefixtures("logging_kept")
def test_wrong_usage_is_named_and_exits_with_2(tmp_path, monkeypatch, capfd, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.toml").write_text(GRID)
    (tmp_path / "grid.zarr").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capfd.readouterr().err
    assert ended.value.code == 2, said
    assert message in said
    assert "Traceback" not in said


def wait_for_cells(out: Path, process: subprocess.Popen, cells: int) -> int:
    """Until so many cells are finished, while others are not."""

    def enough() -> int:
        if not (out / "status").exists():
            return 0
        finished = int((np.asarray(zarr.open_array(out / "status", mode="r")[...]) == 1).sum())
        return finished if finished >= cells else 0

    return until(enough, process)


# of SIGTERM a sweep that is no command hears as little as of SIGKILL
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_an_interrupted_command_goes_on_to_the_same_bits(tmp_path, number):
    trace, gate, out = tmp_path / "trace", tmp_path / "gate", tmp_path / "s.zarr"
    sweep = {"a": [1.0, 2.0], "seed": {"count": 4}}
    fixed = {"trace": str(trace), "gate": str(gate), "hold": 2}
    process = subprocess.Popen(
        script(out, sweep, fixed=fixed, workers=2),
        env=ENVIRONMENT,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # a shell ignores SIGINT in what it runs in the background, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        finished = wait_for_cells(out, process, 2)
        # a terminal sends Ctrl-C to all of a command's processes
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        finish(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    gate.write_text("")
    trace.write_text("")
    run = run_sweep(Grid(TOYS, sweep, fixed), out, workers=1, threads=True).load()
    assert (run.status == 1).all()
    assert len(traced(trace)) == 8 - finished
    for a in sweep["a"]:
        for seed in range(4):
            assert np.array_equal(run.x.sel(a=a, seed=seed), expected(a, 0, seed))


def test_a_signal_while_workers_start_waits_for_them(monkeypatch):
    import distributed

    from langevin.sweeps import cluster

    real, begun = distributed.LocalCluster, []

    def starting(**how):
        signal.raise_signal(signal.SIGINT)
        begun.append(real(**how))
        return begun[-1]

    monkeypatch.setattr(distributed, "LocalCluster", starting)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), cluster.client(1, True, None):
            raise AssertionError("the signal was lost")
    finally:
        signal.signal(signal.SIGINT, before)
    # half a cluster would not have been closed, but left to the end of the process
    assert begun[0].status.name == "closed"


def hears_of_ctrl_c() -> bool:
    """Whether this thread lets SIGINT through."""
    return signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_ctrl_c_reaches_the_command_alone():
    """A terminal sends it to all of the command's processes."""
    from langevin.sweeps import cluster

    with cluster.client(2, False, None) as client:
        heard: Any = client.run(hears_of_ctrl_c)
        assert list(heard.values()) == [False, False]
        assert hears_of_ctrl_c()


@pytest.mark.usefixtures("logging_kept")
def test_dasks_own_processes_are_quiet():
    level = "import distributed, logging; print(logging.getLogger('distributed.worker').getEffectiveLevel())"
    for quiet in (False, True):
        if quiet:
            hush()
        done = execute([sys.executable, "-c", level])
        # without it, the control, they tell of every heartbeat that a closing scheduler misses
        assert (int(done.stdout) == logging.CRITICAL) == quiet, done.stderr
