"""The command, interrupted: what is kept, how it resumes, and what it shows meanwhile."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import numpy as np
import pytest

from langevin.store import files
from tests.helpers import execute, finish, until
from tests.langevin.commands import SMALL, command
from tests.langevin.solvers.test_solvers import equal_bits

# a thousand steps of sixty paths
LONG = ["--width", "64", "--samples", "32", "--dim", "8", "--time", "1", "--dt", "1e-3"]
LONG += ["--paths", "60", "--times", "5"]


def test_a_full_disk_loses_nothing(tmp_path):
    script = (
        "import sys, xarray as xr\n"
        "real = xr.Dataset.to_netcdf\n"
        "def full(self, path, **kwargs):\n"
        "    if 'here' in str(path): raise OSError(28, 'No space left on device')\n"
        "    return real(self, path, **kwargs)\n"
        "xr.Dataset.to_netcdf = full\n"
        "from langevin.simulate import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = command(*SMALL, "--out", "here/run.nc", cwd=tmp_path, program=("-c", script))
    assert done.returncode == 1
    rescued = Path(done.stderr.strip().split("kept in ")[1])
    assert np.isfinite(files.load(rescued).loss).all()


# each thread makes one call before the run saves itself, and another before the run gets the signal to stop
HELD = """
import sys, threading
from langevin.engine import chain, pool, record
from langevin.solvers import diffusion
from langevin.support import signals
from langevin.simulate import main
resting, saved, stopped = (threading.Event() for _ in range(3))
wait, save, advance, shielded = pool.wait, record.Checkpoint.save, chain.Chain.advance, pool.shielded
def waiting(running, **limits):
    if not limits:
        resting.set()
    return wait(running, **limits)
def saving(*arguments):
    save(*arguments)
    saved.set()
def held(of, *arguments):
    advance(of, *arguments)
    if of.noisy:
        (stopped if saved.is_set() else resting).wait()
def stopping():
    stopped.set()
    return shielded()
pool.wait, record.Checkpoint.save, pool.shielded, signals.shielded = waiting, saving, stopping, stopping
chain.Chain.advance, diffusion._AUTOSAVE_SECONDS, chain._CALL_SECONDS = held, 0.0, 1e-3
sys.exit(main(sys.argv[1:]))
"""


def under_way(cwd: Path) -> subprocess.Popen:
    """A long run that has saved itself once."""
    arguments = [sys.executable, "-c", HELD, *LONG, "--out", "run.nc"]
    process = subprocess.Popen(
        arguments,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell ignores SIGINT in what it runs in the background, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until((cwd / "run.nc.unfinished").exists, process)
    return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = command(*LONG, "--out", "run.nc", cwd=folder)
    assert done.returncode == 0, done.stderr
    return files.load(folder / "run.nc")


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_signals_keep_what_was_done_and_resume_gives_the_same_bits(tmp_path, whole, number, status):
    process = under_way(tmp_path)
    process.send_signal(number)
    _, errors = finish(process)
    assert process.returncode == status, errors
    assert "% of the steps; kept in run.nc.unfinished" in errors
    assert "--resume" in errors
    again = command(*LONG, "--out", "run.nc", cwd=tmp_path)
    assert again.returncode == 2
    assert "unfinished run" in again.stderr
    resumed = command(*LONG, "--out", "run.nc", "--resume", "--threads", "1", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert equal_bits(files.load(tmp_path / "run.nc"), whole)
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]


def test_a_killed_run_resumes_from_its_last_autosave(tmp_path, whole):
    process = under_way(tmp_path)
    process.kill()
    process.communicate()
    assert (tmp_path / "run.nc.unfinished").exists()
    resumed = command(*LONG, "--out", "run.nc", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert equal_bits(files.load(tmp_path / "run.nc"), whole)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
@pytest.mark.parametrize(("extra", "shown"), [([], True), (["--quiet"], False)])
def test_progress_is_shown_on_a_terminal_only(tmp_path, extra, shown):
    screen, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    seen = bytearray()

    def look():
        # the end of what is written is an error
        with contextlib.suppress(OSError):
            while part := os.read(screen, 65536):
                seen.extend(part)

    # a terminal that nobody reads is soon full
    reader = threading.Thread(target=look)
    reader.start()
    arguments = [sys.executable, "-m", "langevin.simulate", *LONG, "--no-bounds", "--json", *extra]
    # at every reported step, not ten times a second
    often = {**os.environ, "TQDM_MININTERVAL": "0"}
    done = execute(arguments, cwd=tmp_path, stderr=terminal, env=often)
    os.close(terminal)
    reader.join()
    os.close(screen)
    assert done.returncode == 0
    # a bar with the time that is left
    assert bool(re.search(rb"\d+%\|.*<\d\d:\d\d", seen)) == shown
    assert b"samples in" in seen or not shown
    assert json.loads(done.stdout)["failure"] is None
