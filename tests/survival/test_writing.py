"""Every write appears whole or not at all, whenever the process is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from langevin.store import atomic, checkpoints, errors, files, locks
from tests.survival.outcomes import ROOT

OLD, NEW = (xr.Dataset({"loss": ("time", np.full(4, value))}) for value in (1.0, 2.0))

# writes a run over an old one, and is killed at the n-th call to the system that changes a name
CHILD = """
import os, signal, sys
from pathlib import Path
from langevin import store
from langevin.store import atomic
from tests.survival.test_writing import NEW
target, left, after = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "after"
real = os.replace
def replace(source, destination):
    global left
    left -= 1
    if left == 0 and not after:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, destination)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
atomic.os.replace = replace
store.save(NEW, target)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize(
    ("suffix", "renames"), [(".nc", 1), (".zarr", 1), (".zarr", 2)], ids=["netCDF", "Zarr out", "Zarr in"]
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_a_rename_leaves_one_run_or_the_other(tmp_path, suffix, renames, when):
    target = files.save(OLD, tmp_path / f"run{suffix}")
    code = [sys.executable, "-c", CHILD, str(target), str(renames), when]
    done = subprocess.run(code, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert files.load(target).loss.values.tolist() in ([1.0] * 4, [2.0] * 4)
    # the next write removes what is left
    files.save(NEW, target)
    assert files.load(target).identical(NEW)
    assert os.listdir(tmp_path) == [target.name]


@pytest.mark.parametrize("fault", ["in the block", "on the disk"])
def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch, fault):
    target = tmp_path / "note.txt"
    target.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    if fault == "on the disk":
        monkeypatch.setattr(atomic.os, "fsync", full)

    def write():
        with atomic.replacing(target) as path:
            path.write_text("new")
            if fault == "in the block":
                full()

    with pytest.raises(OSError, match="No space"):
        write()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["note.txt"]


@pytest.mark.skipif(locks.fcntl is None, reason="no advisory locks here")
def test_what_another_process_writes_is_left_alone(tmp_path):
    target = tmp_path / "note.txt"
    with atomic.replacing(target) as path:
        path.write_text("mine")
        # as another writer of the same name would
        atomic.clear(target)
        assert path.exists()
        other = tmp_path / ".note.txt.user"
        other.mkdir()
    assert target.read_text() == "mine"
    assert other.exists()


def test_nothing_is_written_but_through_the_one_door():
    """Every place that makes a file of results does so by `langevin.store.atomic`, or appends to a log."""
    appends = {"empirical/privacy/ledger.py", "langevin/sweeps/records.py"}
    doors = ("write_text(", "write_bytes(", "os.replace(", "mkstemp(", "savefig(", "np.save", ".to_netcdf(")
    found = set()
    for package in ("langevin", "bounds", "empirical", "figures", "benchmarks"):
        for source in (ROOT / package).rglob("*.py"):
            lines = source.read_text(encoding="utf8").splitlines()
            # examples write where they are tried
            text = "\n".join(line for line in lines if not line.lstrip().startswith((">>> ", "... ")))
            if any(door in text for door in doors) and "atomic" not in text:
                found.add(str(source.relative_to(ROOT)))
    assert found <= appends | {"langevin/store/atomic.py"}, found


def test_a_checkpoint_that_could_not_be_written_is_said_so(tmp_path):
    with pytest.raises(errors.StoreError, match="could not be written"):
        checkpoints.save_checkpoint(Path("/proc/nowhere/c"), {}, {})
