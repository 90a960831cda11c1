"""Small problems, direct access to states, and limits that a busy machine does not reach, for the tests."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from langevin import Problem, Schedule, Weights
from langevin.engine import noise
from langevin.engine.chain import Chain
from langevin.engine.reductions.choose import reduction
from langevin.engine.reductions.request import Request
from langevin.engine.reductions.span import Span
from langevin.model.losses import LOSSES
from langevin.model.steps import grid
from langevin.support import threads

# limits find hangs, and nothing else: what takes longest needs a tenth of this on a machine of two processors
SECONDS = 1800.0
# of one output
SCALAR_LOSSES = [name for name, loss in LOSSES.items() if not loss.classes]
_Found = TypeVar("_Found")


def random_problem(seed: int, n: int = 7, d: int = 4, **kinds: Any) -> Problem:
    rng = np.random.default_rng(seed)
    signs = LOSSES[kinds.get("loss", "logistic")].signs
    y = np.where(np.arange(n) % 2, 1.0, -1.0) if signs else rng.standard_normal(n)
    return Problem(rng.standard_normal((n, d)), y, **kinds)


def random_weights(seed: int, h: int = 6, d: int = 4, scale: float = 1.0) -> Weights:
    rng = np.random.default_rng(1000 + seed)
    return Weights(scale * rng.standard_normal((h, d)), scale * rng.standard_normal(h))


def end_states(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    *,
    dt: float,
    paths: int,
    rng: int,
    noise_dt: float | None = None,
    reduce: str = "span",
) -> tuple[np.ndarray, np.ndarray, Span]:
    """``W (paths, h, k)`` and ``v (paths, h)`` at the end, and the coordinates they are in."""
    cut = grid(schedule, dt, [schedule.duration])
    draws = 1 if noise_dt is None else round(dt / noise_dt)
    request = Request(problem, weights, schedule, cut)
    reduced = reduction(reduce, request)
    chain = Chain.build(request, reduced, np.float64, noise.key(rng), draws)
    results = chain.observer.empty(paths, per_neuron=False)
    chunk, scratch = chain.start(0, paths), chain.scratch()
    with threads.one_blas_thread():
        while chunk.step < cut.steps:
            chain.advance(chunk, results, scratch, chain.stops(chunk.step))
    states = [chain.layout.unpack(theta) for theta in chunk.thetas]
    return np.array([W for W, _ in states]), np.array([v for _, v in states]), reduced.span


# --- time limits -----------------------------------------------------------------------------


class Limit:
    """Tells whether a process hangs: it has worked for too long, or waited for four times as long.

    Work is measured in processor time, including that of what the process started, and both this and the
    elapsed time have to exceed the limit: neither a busy machine nor many threads at once make it late.

    Parameters
    ----------
    seconds : float
    pid : int, optional
        By default this process.
    """

    def __init__(self, seconds: float = SECONDS, pid: int | None = None) -> None:
        self.seconds, self.pid = seconds, os.getpid() if pid is None else pid
        self._began, self._used = time.monotonic(), processor_time(self.pid)

    @property
    def left(self) -> float:
        """Seconds until it can have been reached; zero or negative where it has."""
        elapsed = time.monotonic() - self._began
        used = processor_time(self.pid) - self._used
        return min(self.seconds - min(elapsed, used), 4 * self.seconds - elapsed)


def processor_time(pid: int) -> float:
    """Seconds of processor time of a process, of those that it started, and of those that have ended."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += sum(one.cpu_times()[:4])
    return total


def execute(command: Sequence[str], **how: Any) -> subprocess.CompletedProcess[Any]:
    """As `subprocess.run`, with the output captured as text and ``seconds`` as a `Limit`."""
    seconds, check = how.pop("seconds", SECONDS), how.pop("check", False)
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **how}
    with subprocess.Popen(command, **how) as process:
        done = subprocess.CompletedProcess(command, 0, *finish(process, seconds))
    done.returncode = process.returncode
    if check:
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def call(
    main: Callable[[list[str]], int], arguments: Sequence[str | Path], cwd: Path
) -> subprocess.CompletedProcess[str]:
    """As `execute`, but of a command's function, in this process, which has imported its packages."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status = main(list(map(str, arguments)))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), errors.getvalue())


def finish(process: subprocess.Popen[Any], seconds: float = SECONDS) -> tuple[Any, Any]:
    """Output and errors of a process, once it has ended; one that reaches its `Limit` is killed."""
    limit = Limit(seconds, process.pid)
    while True:
        try:
            return process.communicate(timeout=min(5.0, seconds))
        except subprocess.TimeoutExpired:
            if limit.left <= 0:
                kill(process.pid)
                raise AssertionError(f"{process.args} hangs:\n{process.communicate()}") from None


def kill(pid: int) -> None:
    """Kill a process and all that it started."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.Error):
                one.kill()


def until(
    condition: Callable[[], _Found], process: subprocess.Popen[Any] | None = None, seconds: float = SECONDS
) -> _Found:
    """Wait for a condition, and return its true value; ``process`` must not end before it holds."""
    limit = Limit(seconds, None if process is None else process.pid)
    while True:
        ended = process is not None and process.poll() is not None
        if found := condition():
            return found
        if ended or limit.left <= 0:
            said = None
            if process is not None:
                kill(process.pid)
                said = process.communicate()
            raise AssertionError(f"it never came: {said}")
        time.sleep(0.02)
