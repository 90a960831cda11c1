"""Sweeps on a real scheduler and real workers, on the loopback interface: a kill loses no finished cell."""

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from dask import config

from langevin.store.errors import StoreError
from langevin.sweep import main
from langevin.sweeps import Grid, SweepError, run_sweep
from langevin.sweeps.store import SweepStore
from tests.helpers import SECONDS, finish, until
from tests.langevin.engine.toy import SIZE, TOYS, expected, script
from tests.langevin.sweeps.test_sweep_run import ENVIRONMENT, GRID, load, same, traced, wait_for_cells

SWEEP = {"a": [1.0, 2.0, 3.0], "seed": {"count": 4}}


class Cluster:
    """``dask scheduler`` and ``dask worker`` processes, as a user would start them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.started: list[subprocess.Popen] = []
        self.logs = 0
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(self.file)
        )
        until(lambda: self.file.exists() and self.file.read_text().endswith("}"), self.scheduler)
        self.address = json.loads(self.file.read_text())["address"]

    def worker(self) -> subprocess.Popen:
        return self._start(
            "worker", self.address, "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny",
            "--death-timeout", str(SECONDS), "--local-directory", str(self.folder),
        )  # fmt: skip

    def _start(self, *arguments: str) -> subprocess.Popen:
        self.logs += 1
        log = (self.folder / f"{arguments[0]}-{self.logs}.log").open("w")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments, "--no-dashboard"],
                cwd=self.folder,
                env=ENVIRONMENT,
                stdout=log,
                stderr=log,
            )
        self.started.append(process)
        return process

    def dismiss(self) -> None:
        """End the workers."""
        self._end(self.started[1:])
        del self.started[1:]

    def close(self) -> None:
        self._end(self.started)

    @staticmethod
    def _end(processes: list[subprocess.Popen]) -> None:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory) -> Iterator[Cluster]:
    """A scheduler that outlives its workers."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


@pytest.fixture
def cluster(scheduler) -> Iterator[Cluster]:
    """The scheduler, with workers of this test alone."""
    yield scheduler
    scheduler.dismiss()


@pytest.fixture
def mortal(tmp_path) -> Iterator[Cluster]:
    """A scheduler of this test alone."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    made = Cluster(folder)
    yield made
    made.close()


def begin(command: list[str], folder: Path, **how) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def require_all(run: xr.Dataset, size: int = 3) -> None:
    assert (run.status == 1).all(), run.error.values
    for a in run.a.values:
        for seed in run.seed.values:
            assert np.array_equal(run.x.sel(a=a, seed=seed), expected(float(a), 0, int(seed), size))


@pytest.mark.usefixtures("logging_kept")
def test_the_command_on_a_cluster_gives_the_bits_of_one_thread(tmp_path, cluster, alone, capfd):
    (tmp_path / "grid.toml").write_text(GRID)
    for _ in range(2):
        cluster.worker()
    out = tmp_path / "s.zarr"
    assert (
        main([str(tmp_path / "grid.toml"), "--json", "--out", str(out), "--scheduler", cluster.address]) == 0
    )
    said = capfd.readouterr()
    assert said.err == ""
    assert json.loads(said.out)["computed"] == 8
    assert same(load(out), alone)


def test_a_worker_killed_in_mid_sweep(tmp_path, cluster):
    out, gate, trace = tmp_path / "s.zarr", tmp_path / "gate", tmp_path / "trace"
    fixed = {"gate": str(gate), "hold": 2, "trace": str(trace)}
    first = cluster.worker()
    process = begin(script(out, SWEEP, fixed=fixed, scheduler=cluster.address), tmp_path)
    wait_for_cells(out, process, 1)
    # the one worker is in the middle of a cell, and dies
    first.kill()
    first.wait()
    gate.write_text("")
    cluster.worker()
    said, error = finish(process)
    assert said.strip() == "finished 12 failed 0", error
    require_all(load(out))


def test_the_scheduler_killed_and_the_sweep_resumed(tmp_path, mortal, cluster):
    out, gate, trace = tmp_path / "s.zarr", tmp_path / "gate", tmp_path / "trace"
    fixed = {"gate": str(gate), "hold": 2, "trace": str(trace)}
    mortal.worker()
    process = begin(script(out, SWEEP, fixed=fixed, scheduler=mortal.address), tmp_path)
    finished = wait_for_cells(out, process, 2)
    mortal.scheduler.kill()
    _, error = finish(process)
    assert process.returncode == 1
    assert "SweepError: the scheduler is gone, and with it all unfinished work; finished" in error
    mortal.close()
    before = load(out)
    assert finished <= int((before.status == 1).sum()) < 12
    left = {(float(before.a[i]), int(before.seed[j])) for i, j in np.argwhere(before.status.values != 1)}
    gate.write_text("")
    trace.write_text("")
    cluster.worker()
    run_sweep(Grid(TOYS, SWEEP, fixed), out, scheduler=cluster.address)
    assert traced(trace) == sorted(f"{a:g} 0 {seed}" for a, seed in left)
    require_all(load(out))


def test_two_sweeps_at_once_in_one_store(tmp_path):
    out, gate = tmp_path / "s.zarr", tmp_path / "gate"
    fixed = {"gate": str(gate), "hold": 2}
    process = begin(script(out, SWEEP, fixed=fixed, workers=1), tmp_path)
    wait_for_cells(out, process, 1)
    with pytest.raises(StoreError, match=re.escape(f"out {str(out)!r} is in use by another sweep")):
        run_sweep(Grid(TOYS, SWEEP, fixed), out, workers=1, threads=True)
    gate.write_text("")
    said, error = finish(process)
    assert said.strip() == "finished 12 failed 0", error


def test_a_scheduler_that_is_not_there(tmp_path):
    address = "tcp://127.0.0.1:1"
    with (
        config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(SweepError, match=f"cannot reach the scheduler {address}"),
    ):
        run_sweep(Grid(TOYS, SWEEP), tmp_path / "s.zarr", scheduler=address)


@contextlib.contextmanager
def small_files(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Give the folder, a file system of its own in which few cells fit, room at the end."""
    yield
    subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True, capture_output=True)


@pytest.fixture(params=["a limit on files", "a full file system"])
def full(request, tmp_path) -> Iterator[tuple[Path, contextlib.AbstractContextManager[None]]]:
    """A folder, and a context in which it has no room."""
    if request.param == "a limit on files":
        # three cells fit into a file
        yield tmp_path, small_files(4 * 8 * SIZE - 1000)
        return
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to mount a file system")
    yield folder, small_disk(folder)
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(full, tmp_path, monkeypatch):
    folder, no_room = full
    out, trace = folder / "s.zarr", tmp_path / "trace"
    grid = Grid(TOYS, SWEEP, {"trace": str(trace)}, {"size": SIZE})
    # foreseen, where the system says so
    monkeypatch.setattr("langevin.sweeps.store.require_room", lambda *_: None)
    with no_room, pytest.raises(StoreError, match=r"out .* could not be written"):
        run_sweep(grid, out, workers=1, threads=True)
    before = load(out)
    done = {(float(before.a[i]), int(before.seed[j])) for i, j in np.argwhere(before.status.values == 1)}
    assert len(done) < 12
    for a, seed in done:
        assert np.array_equal(before.x.sel(a=a, seed=seed), expected(a, 0, seed, SIZE))
    trace.write_text("")
    run = run_sweep(grid, out, workers=1, threads=True).load()
    require_all(run, SIZE)
    every = {(a, seed) for a in SWEEP["a"] for seed in range(4)}
    assert traced(trace) == sorted(f"{a:g} 0 {seed}" for a, seed in every - done)


def test_a_partial_write_leaves_the_chunk_that_was_there(tmp_path):
    """Of zarr: a chunk is replaced whole, or not at all; the store relies on it."""
    grid = Grid(TOYS, SWEEP, {}, {"size": SIZE})
    kept = SweepStore(tmp_path / "s.zarr", grid)
    kept.write({(0, 0): ({"x": expected(1.0, 0, 0, SIZE)}, None)})
    (chunk,) = (kept.path / "x").glob("c.*")
    before = chunk.read_bytes()
    with (
        contextlib.closing(kept),
        small_files(len(before) + 100),
        pytest.raises(Exception, match="File too large"),
    ):
        kept.write({(0, 1): ({"x": expected(1.0, 0, 1, SIZE)}, None)})
    assert chunk.read_bytes() == before
