"""Sweeps on a real scheduler and real workers, on the loopback interface: a kill loses no finished cell."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from langevin.sweeps import SIMULATIONS, Grid, run_sweep
from langevin.sweeps.store import SweepStore
from tests.helpers import SECONDS, execute, finish, until
from tests.langevin.engine.toy import SIZE, TOYS, expected, script
from tests.langevin.sweeps.test_sweep_run import ENVIRONMENT, GRID, ROOT, load, same, traced, wait_for_cells

SWEEP = {"a": [1.0, 2.0, 3.0], "seed": {"count": 4}}


class Cluster:
    """``dask scheduler`` and ``dask worker`` processes, as a user would start them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.started: list[subprocess.Popen] = []
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
        log = (self.folder / f"{arguments[0]}-{len(self.started)}.log").open("w")
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

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path) -> Iterator[Callable[[], Cluster]]:
    made: list[Cluster] = []

    def make() -> Cluster:
        folder = tmp_path / f"cluster-{len(made)}"
        folder.mkdir()
        made.append(Cluster(folder))
        return made[-1]

    yield make
    for one in made:
        one.close()


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


def test_the_command_on_a_cluster_gives_the_bits_of_one_thread(tmp_path, cluster):
    (tmp_path / "grid.toml").write_text(GRID)
    made = cluster()
    for _ in range(2):
        made.worker()
    done = execute(
        [sys.executable, "-m", "langevin.sweep", str(tmp_path / "grid.toml"), "--json",
         "--out", str(tmp_path / "s.zarr"), "--scheduler", made.address],
        cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["computed"] == 8
    grid, _ = Grid.read(tmp_path / "grid.toml", {"simulate": lambda: SIMULATIONS})
    alone = run_sweep(grid, tmp_path / "t.zarr", workers=1, threads=True).load()
    assert same(load(tmp_path / "s.zarr"), alone)


def test_a_worker_killed_in_mid_sweep(tmp_path, cluster):
    made, out, gate, trace = cluster(), tmp_path / "s.zarr", tmp_path / "gate", tmp_path / "trace"
    fixed = {"gate": str(gate), "hold": 2, "trace": str(trace)}
    first = made.worker()
    process = begin(script(out, SWEEP, fixed=fixed, scheduler=made.address), tmp_path)
    wait_for_cells(out, process, 1)
    # the one worker is in the middle of a cell, and dies
    first.kill()
    first.wait()
    gate.write_text("")
    made.worker()
    said, error = finish(process)
    assert said.strip() == "finished 12 failed 0", error
    require_all(load(out))


def test_the_scheduler_killed_and_the_sweep_resumed(tmp_path, cluster):
    out, gate, trace = tmp_path / "s.zarr", tmp_path / "gate", tmp_path / "trace"
    fixed = {"gate": str(gate), "hold": 2, "trace": str(trace)}
    made = cluster()
    made.worker()
    process = begin(script(out, SWEEP, fixed=fixed, scheduler=made.address), tmp_path)
    finished = wait_for_cells(out, process, 2)
    made.scheduler.kill()
    said, error = finish(process)
    assert process.returncode == 1
    assert "SweepError: the scheduler is gone, and with it all unfinished work; finished" in error
    made.close()
    before = load(out)
    assert finished <= int((before.status == 1).sum()) < 12
    left = {(float(before.a[i]), int(before.seed[j])) for i, j in np.argwhere(before.status.values != 1)}
    gate.write_text("")
    trace.write_text("")
    again = cluster()
    again.worker()
    process = begin(script(out, SWEEP, fixed=fixed, scheduler=again.address), tmp_path)
    said, error = finish(process)
    assert said.strip() == "finished 12 failed 0", error
    assert traced(trace) == sorted(f"{a:g} 0 {seed}" for a, seed in left)
    require_all(load(out))


def test_two_sweeps_at_once_in_one_store(tmp_path):
    out, gate = tmp_path / "s.zarr", tmp_path / "gate"
    fixed = {"gate": str(gate), "hold": 2}
    process = begin(script(out, SWEEP, fixed=fixed, workers=1), tmp_path)
    wait_for_cells(out, process, 1)
    second = begin(script(out, SWEEP, fixed=fixed, workers=1), tmp_path)
    _, error = finish(second)
    assert second.returncode == 1
    assert f"StoreError: out {str(out)!r} is in use by another sweep" in error
    gate.write_text("")
    said, error = finish(process)
    assert said.strip() == "finished 12 failed 0", error


def test_a_scheduler_that_is_not_there(tmp_path):
    command = script(tmp_path / "s.zarr", SWEEP, scheduler="tcp://127.0.0.1:1")
    command[-1] = "import dask\ndask.config.set({'distributed.comm.timeouts.connect': '1s'})\n" + command[-1]
    _, error = finish(begin(command, tmp_path))
    assert "SweepError: cannot reach the scheduler tcp://127.0.0.1:1" in error


@pytest.fixture(params=["a limit on files", "a full file system"])
def full(request, tmp_path) -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    """A folder without room, what a process in it does first, and what gives it room."""
    if request.param == "a limit on files":
        # three cells fit into a file
        limit = 4 * 8 * SIZE - 1000
        yield tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)), lambda: None
        return
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to mount a file system")
    yield (
        folder,
        lambda: None,
        lambda: (
            subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True, capture_output=True)
            and None
        ),
    )
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(full, tmp_path, monkeypatch):
    folder, first, give_room = full
    out, trace = folder / "s.zarr", tmp_path / "trace"
    record, fixed = {"size": SIZE}, {"trace": str(trace)}
    # foreseen, where the system says so
    monkeypatch.setattr("langevin.sweeps.store.require_room", lambda *_: None)
    command = script(out, SWEEP, record=record, fixed=fixed, workers=1, threads=True)
    command[-1] = "import langevin.sweeps.store as s\ns.require_room = lambda *_: None\n" + command[-1]
    process = begin(command, tmp_path, preexec_fn=first)
    _, error = finish(process)
    assert process.returncode == 1
    assert "StoreError: out" in error
    assert "could not be written" in error
    give_room()
    before = load(out)
    done = {(float(before.a[i]), int(before.seed[j])) for i, j in np.argwhere(before.status.values == 1)}
    assert len(done) < 12
    for a, seed in done:
        assert np.array_equal(before.x.sel(a=a, seed=seed), expected(a, 0, seed, SIZE))
    trace.write_text("")
    run = run_sweep(Grid(TOYS, SWEEP, fixed, record), out, workers=1, threads=True).load()
    require_all(run, SIZE)
    every = {(a, seed) for a in SWEEP["a"] for seed in range(4)}
    assert traced(trace) == sorted(f"{a:g} 0 {seed}" for a, seed in every - done)


def test_a_partial_write_leaves_the_chunk_that_was_there(tmp_path):
    """Of zarr: a chunk is replaced whole, or not at all; the store relies on it."""
    grid = Grid(TOYS, SWEEP, {}, {"size": SIZE})
    kept = SweepStore(tmp_path / "s.zarr", grid)
    kept.write({(0, 0): ({"x": expected(1.0, 0, 0, SIZE)}, None)})
    (chunk,) = (kept.path / "x").glob("c.*")
    before, old = chunk.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, old[1]))
    try:
        with pytest.raises(Exception, match="File too large"):
            kept.write({(0, 1): ({"x": expected(1.0, 0, 1, SIZE)}, None)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        kept.close()
    assert chunk.read_bytes() == before
