"""Every write appears whole or not at all, whenever the process is killed."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from langevin.store import atomic, checkpoints, errors, files, locks
from tests.helpers import execute
from tests.survival.outcomes import ROOT

OLD, NEW = (xr.Dataset({"loss": ("time", np.full(4, value))}) for value in (1.0, 2.0))

# forks a process for each case, which writes a run over an old one, and is killed at the n-th call to the
# system that changes a name
PARENT = """
import json, os, signal, sys
from langevin import store
from langevin.store import atomic
from tests.survival.test_writing import NEW
real = os.replace
def write(target, left, when):
    def replace(source, destination):
        nonlocal left
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, destination)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    atomic.os.replace = replace
    store.save(NEW, target)
statuses = []
for case in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        write(*case)
        os._exit(0)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(statuses))
"""
# at each of the names that change
WRITES = {"netCDF": (".nc", 1), "Zarr out": (".zarr", 1), "Zarr in": (".zarr", 2)}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What killed writes leave, in a folder each; all in one process, which imports once."""
    names = [f"{when}-{name}" for name in WRITES for when in ("before", "after")]
    cases = {}
    for name in names:
        when, _, kind = name.partition("-")
        suffix, renames = WRITES[kind]
        cases[name] = (files.save(OLD, tmp_path_factory.mktemp("killed") / f"run{suffix}"), renames, when)
    told = json.dumps([(str(target), *rest) for target, *rest in cases.values()])
    done = execute(
        [sys.executable, "-c", PARENT, told], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
    )
    assert json.loads(done.stdout) == [-signal.SIGKILL] * len(cases), done.stderr
    return {name: target for name, (target, *_) in cases.items()}


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("kind", WRITES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_a_rename_leaves_one_run_or_the_other(killed, when, kind):
    target = killed[f"{when}-{kind}"]
    assert files.load(target).loss.values.tolist() in ([1.0] * 4, [2.0] * 4)
    # the next write removes what is left
    files.save(NEW, target)
    assert files.load(target).identical(NEW)
    assert os.listdir(target.parent) == [target.name]


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
