"""Commands as real processes, interrupted at random moments and gone on with."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import xarray as xr

from langevin.store import atomic, files
from tests.helpers import Limit, finish
from tests.langevin.solvers.test_solvers import equal_bits
from tests.survival.outcomes import ROOT, Finding

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
# saves itself five times a second; the command is what the user types, except for that
PROGRAM = """
import contextlib, sys
name, args = sys.argv[1], sys.argv[2:]
if name == "simulate":
    from langevin.solvers import diffusion as module
    from langevin.simulate import main
elif name == "finetune":
    from empirical.train import fine_tuning as module
    from empirical.finetune import main
elif name == "sweep":
    from langevin.sweep import main
else:
    from bounds.plan import main
if name in ("simulate", "finetune"):
    module._AUTOSAVE_SECONDS = 0.2
from langevin.support import signals
interruptible = signals.interruptible
@contextlib.contextmanager
def announced():
    with interruptible() as status:
        print("started", file=sys.stderr, flush=True)
        yield status
signals.interruptible = announced
# processes that this one starts import it again
if __name__ == "__main__":
    sys.exit(main(args))
"""
# signals before the command listens for them end the interpreter, in its own words
_STARTED = re.compile(r"^started$", re.MULTILINE)


@dataclass
class Ended:
    """How a process ended."""

    status: int
    errors: str
    seconds: float


class Command:
    """A command with its arguments, in a folder of its own."""

    def __init__(self, name: str, arguments: list[str], folder: Path) -> None:
        self.name, self.arguments, self.folder = name, arguments, folder
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, *extra: str) -> subprocess.Popen[str]:
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, self.name, *self.arguments, *extra],
            cwd=self.folder,
            env={**os.environ, **threads, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # a shell ignores SIGINT in what it runs in the background, and children inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *extra: str, after: float | None = None, number: signal.Signals | None = None) -> Ended:
        """Run to the end, or send a signal after so many seconds."""
        began = time.monotonic()
        process = self.start(*extra)
        try:
            if after is not None and number is not None:
                try:
                    _, errors = process.communicate(timeout=after)
                except subprocess.TimeoutExpired:
                    # a terminal sends Ctrl-C to all of a command's processes
                    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
                    _, errors = finish(process)
            else:
                _, errors = finish(process)
        except AssertionError as hang:
            raise Finding(f"{self}: {hang}") from None
        self._leave_nobody(process.pid)
        return Ended(process.returncode, errors, time.monotonic() - began)

    def _leave_nobody(self, session: int) -> None:
        """Wait for what the process started; a survivor is a finding."""
        limit = Limit(60.0)
        while alive := [p for p in psutil.process_iter() if _session(p.pid) == session]:
            if limit.left <= 0:
                os.killpg(session, signal.SIGKILL)
                raise Finding(f"{self} left processes behind: {[p.pid for p in alive]}")
            time.sleep(0.1)

    def __str__(self) -> str:
        return f"{self.name} {' '.join(self.arguments)}"


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid) if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else None
    except (OSError, psutil.Error):
        return None


def expect(
    ended: Ended, number: signal.Signals | None, command: Command, *, allowed: tuple[int, ...]
) -> None:
    """Require an exit status that says what happened, without a traceback."""
    statuses = {*allowed} if number is None else {*allowed, -number, 128 + number}
    # what the children of a killed process say is not its own word
    begun = _STARTED.search(ended.errors) is not None and number is not signal.SIGKILL
    if ended.status not in statuses or ("Traceback" in ended.errors and begun):
        raise Finding(f"{command} ended with {ended.status} after {number!r}:\n{ended.errors[-1500:]}")


def interrupt(
    command: Command,
    rng: random.Random,
    seconds: float,
    again: Callable[[], list[str] | None],
    *,
    times: int,
    allowed: tuple[int, ...] = (0,),
) -> None:
    """Interrupt a command at random moments, up to so many times, then let it end.

    Parameters
    ----------
    seconds : float
        That it takes undisturbed.
    again : callable
        Arguments to go on with; None: there is nothing left to do.
    """
    done = 0.0
    for _ in range(times):
        extra = again()
        if extra is None:
            return
        number = rng.choice(SIGNALS)
        ended = command.run(*extra, after=rng.uniform(0.0, 1.05) * seconds, number=number)
        expect(ended, number, command, allowed=allowed)
        if found := re.search(r"interrupted at ([\d.]+)% of the steps", ended.errors):
            now = float(found[1])
            # what a signal finds done is kept
            if now < done:
                raise Finding(f"{command} went back from {done} % to {now} %")
            done = now if "kept in" in ended.errors else done
    while (extra := again()) is not None:
        expect(command.run(*extra), None, command, allowed=allowed)


def same(command: Command, out: str, twin: Path, left: set[str]) -> None:
    """Require the twin's bits, and no other files than ``left``."""
    if not equal_bits(files.load(command.folder / out), files.load(twin)):
        raise Finding(f"{command}: other bits than those of its undisturbed twin")
    # a process killed right after its file took its place leaves an empty folder to the next write
    for name in left:
        atomic.clear(command.folder / name)
    # and one killed while it makes a ledger, the beginning of one
    found = {path.name for path in command.folder.iterdir() if not path.name.startswith(".run.ckpt.ledger.")}
    if found != left:
        raise Finding(f"{command} left {sorted(found ^ left)}")


# --- the commands -----------------------------------------------------------------------------


def simulate(rng: random.Random, folder: Path, times: int) -> None:
    """A random simulation."""
    linear = rng.random() < 0.4
    data = rng.choice(["separable", "teacher"]) if linear else "separable"
    out = rng.choice(["run.nc", "run.zarr"])
    precision, reduce = rng.choice(["double", "single"]), rng.choice(["auto", "auto", "none", "span"])
    arguments = [
        *("--data", data),
        *("--activation", "linear" if linear else "relu"),
        *("--method", rng.choice(["lp", "fft", "lp-fft"])),
        *("--width", str(rng.choice([1, 7, 64]))),
        *("--samples", str(rng.choice([2, 17, 32]))),
        *("--dim", str(rng.choice([2, 8, 40]))),
        *("--sigma", rng.choice(["0", "0.5", "3", "1000000"])),
        *("--clip", rng.choice(["1", "0.01", "1e-30"])),
        *("--clipping", rng.choice(["flat", "normalised"])),
        *("--precision", precision, "--reduce", reduce, "--seed", str(rng.randrange(1000))),
        *("--time", "1", "--dt", rng.choice(["1e-3", "1e-4", "3e-5"])),
        *("--paths", str(rng.choice([1, 12, 60])), "--times", str(rng.choice([2, 5, 101]))),
        *("--out", out, "--no-bounds"),
    ]
    if reduce != "auto" and data == "separable" and rng.random() < 0.5:
        arguments += ["--observables", "alignment", "misaligned"]
    whole = Command("simulate", [*arguments, "--threads", "2"], folder / "whole")
    ended = whole.run()
    # a path that leaves the range of numbers is saved, and said to have
    expect(ended, None, whole, allowed=(0, 1))
    cut = Command("simulate", [*arguments, "--threads", rng.choice(["1", "2"])], folder / "cut")

    def again() -> list[str] | None:
        if (cut.folder / f"{out}.unfinished").exists():
            return ["--resume"]
        return None if (cut.folder / out).exists() else []

    interrupt(cut, rng, ended.seconds, again, times=times, allowed=(ended.status,))
    same(cut, out, whole.folder / out, {out})


def finetune(rng: random.Random, folder: Path, times: int) -> None:
    """A random fine-tuning."""
    from empirical.privacy.ledger import read

    method = rng.choice(["lp", "fft", "lp-fft", "lora", "bitfit", "sparse"])
    arguments = [
        *("--method", method, "--steps", str(rng.choice([40, 300])), "--widths", "16"),
        *("--pretrain-epochs", "1", "--evaluations", rng.choice(["1", "4"])),
        *("--momentum", rng.choice(["0", "0.9"]), "--head", rng.choice(["gaussian", "zero", "prototype"])),
        *("--epsilon", rng.choice(["0.5", "3", "inf"]), "--seed", str(rng.randrange(1000))),
        *("--checkpoint", "run.ckpt", "--out", "run.nc", "--quiet"),
    ]
    whole = Command("finetune", arguments, folder / "whole")
    ended = whole.run()
    expect(ended, None, whole, allowed=(0, 1))
    cut = Command("finetune", arguments, folder / "cut")

    def again() -> list[str] | None:
        if (cut.folder / "run.nc").exists():
            return None
        return ["--resume"] if (cut.folder / "run.ckpt").exists() else []

    interrupt(cut, rng, ended.seconds, again, times=times, allowed=(ended.status,))
    left = {path.name for path in whole.folder.iterdir()}
    same(cut, "run.nc", whole.folder / "run.nc", left)
    if "run.ckpt.ledger" in left:
        spent, once = (read(c.folder / "run.ckpt.ledger") for c in (cut, whole))
        if spent != once:
            raise Finding(f"{cut}: its ledger says {spent}, its twin's {once}")


def grid(rng: random.Random, folder: Path, times: int) -> None:
    """A random grid of fine-tunings."""
    methods = rng.sample(["lp", "fft", "lp-fft", "fft-drop", "bitfit"], rng.choice([1, 2]))
    arguments = [
        *("--steps", "6", "--widths", "8", "--pretrain-epochs", "1", "--quiet", "--methods", *methods),
        *("--shares", "0.5", "--seeds", "2", "--trials", "2", "--tuning-seeds", "1"),
        *("--cells", "cells.jsonl", "--out", "grid.nc"),
    ]
    whole = Command("finetune", arguments, folder / "whole")
    ended = whole.run()
    expect(ended, None, whole, allowed=(0,))
    cut = Command("finetune", [*arguments, "--workers", rng.choice(["1", "2"])], folder / "cut")
    kept: set[str] = set()

    def again() -> list[str] | None:
        nonlocal kept
        now = _cells(cut.folder / "cells.jsonl")
        if not kept <= now:
            raise Finding(f"{cut} lost {len(kept - now)} cells")
        kept = now
        return None if (cut.folder / "grid.nc").exists() else []

    interrupt(cut, rng, ended.seconds, again, times=times)
    same(cut, "grid.nc", whole.folder / "grid.nc", {path.name for path in whole.folder.iterdir()})
    if _cells(cut.folder / "cells.jsonl") != _cells(whole.folder / "cells.jsonl"):
        raise Finding(f"{cut}: other cells than those of its undisturbed twin")


def sweep(rng: random.Random, folder: Path, times: int) -> None:
    """A random sweep, of simulations or of fine-tunings."""
    if rng.random() < 0.7:
        sigma, steps = rng.choice([[0.0, 0.5], [0.1, 1e6]]), rng.choice([20, 2000])
        paths, seeds = rng.choice([1, 12]), rng.choice([2, 6])
        grid = (
            f'kind = "simulate"\n[fixed]\nsamples = 8\ndim = 3\nwidth = 4\ntime = 1\ndt = {1 / steps}\n'
            f"paths = {paths}\n[sweep]\nsigma = {sigma}\nseed = {{ count = {seeds} }}\n"
            f'[record]\nvariables = ["loss", "accuracy"]\ntimes = {rng.choice([2, 5])}\n'
        )
    else:
        grid = (
            'kind = "finetune"\n[fixed]\nsteps = 6\nwidths = [8]\nepochs = 1\n[sweep]\n'
            'method = ["lp", "fft"]\nseed = { count = 2 }\n[record]\nvariables = ["test_accuracy"]\n'
        )
    how = ["grid.toml", "--out", "s.zarr", "--quiet"]
    whole = Command("sweep", [*how, "--workers", "1", "--threads"], folder / "whole")
    (whole.folder / "grid.toml").write_text(grid)
    ended = whole.run()
    expect(ended, None, whole, allowed=(0,))
    workers = rng.choice([["--workers", "1"], ["--workers", "2"], ["--workers", "1", "--threads"]])
    cut = Command("sweep", [*how, *workers], folder / "cut")
    (cut.folder / "grid.toml").write_text(grid)
    kept = 0

    def again() -> list[str] | None:
        nonlocal kept
        now, of = _finished(cut.folder / "s.zarr")
        if now < kept:
            raise Finding(f"{cut} lost {kept - now} cells")
        kept = now
        return None if now == of else []

    interrupt(cut, rng, ended.seconds, again, times=times)
    runs = [_swept(c.folder / "s.zarr") for c in (whole, cut)]
    if not equal_bits(*runs):
        raise Finding(f"{cut}: other bits than those of its undisturbed twin")
    left = {path.name for path in cut.folder.iterdir()}
    if left != {path.name for path in whole.folder.iterdir()}:
        raise Finding(f"{cut} left {sorted(left)}")


def _finished(path: Path) -> tuple[int, int]:
    """Finished cells of a sweep, and all; of one that has not begun, 0 of 1."""
    import zarr

    if not (path / "status" / "zarr.json").exists():
        return 0, 1
    status = np.asarray(zarr.open_array(path / "status", mode="r")[...])
    return int((status == 1).sum()), status.size


def _swept(path: Path) -> xr.Dataset:
    with xr.open_zarr(path, chunks=None, consolidated=False) as run:
        return run.load().drop_vars("error")


def plan(rng: random.Random, folder: Path, times: int) -> None:
    """A random plan of a budget, which is made again where it is interrupted."""
    random = np.random.default_rng(rng.randrange(2**32))
    classes, n, d = rng.choice([2, 3, 5]), rng.choice([20, 120]), rng.choice([1, 4, 40])
    arrays = {"X": random.standard_normal((n, d)) + 3 * rng.choice([0, 1]), "y": np.arange(n) % classes}
    if rng.random() < 0.5:
        arrays["W"] = random.standard_normal((rng.choice([1, 16]), d))
    arguments = [
        *("features.npz", "--epsilon", rng.choice(["0.1", "1", "50"]), "--delta", "1e-4", "--quiet"),
        *("--clip", rng.choice(["1", "1e-6"]), "--steps", rng.choice(["2", "40"])),
        *("--draws", rng.choice(["2", "9", "40"]), "--seed", str(rng.randrange(1000)), "--out", "plan.nc"),
    ]
    commands = [Command("plan", arguments, folder / name) for name in ("whole", "cut")]
    for command in commands:
        np.savez(command.folder / "features.npz", **arrays)
    whole, cut = commands
    ended = whole.run()
    expect(ended, None, whole, allowed=(0,))

    def again() -> list[str] | None:
        return None if (cut.folder / "plan.nc").exists() else []

    interrupt(cut, rng, ended.seconds, again, times=times)
    same(cut, "plan.nc", whole.folder / "plan.nc", {"features.npz", "plan.nc"})


def _cells(path: Path) -> set[str]:
    """Finished cells, with their results."""
    if not path.exists():
        return set()
    whole = path.read_bytes().rpartition(b"\n")[0].splitlines()
    entries = [json.loads(line) for line in whole]
    return {json.dumps([entry["key"], entry["values"]]) for entry in entries if "values" in entry}
