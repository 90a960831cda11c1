"""Random configurations under random faults, for as long as wanted: ``python -m tests.soak --minutes 60``.

Commands are interrupted by signals and gone on with, and their results compared with those of undisturbed
twins, bit for bit; no finished cell may be lost, no process or file left behind. Every solver and every bound
is asked for random problems from the ordinary to the absurd; every kind of file is damaged and read; a long-
lived process must not grow. What happens is drawn from the seed, but for the moments at which a machine is
when a signal reaches it. Exit status: 1 on any finding.
"""

from __future__ import annotations

import argparse
import gc
import random
import shutil
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from langevin import _streams
from tests.survival import cases, damage, processes
from tests.survival.outcomes import Finding, attempt, finite

# calls of a trial in this process
_CASES, _FILES = 20, 60
# a process that has warmed up may grow by so much
_GROWTH = 48 * 2**20


@dataclass
class Report:
    """What was tried, and what was found."""

    trials: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    tally: dict[str, processes.Tally] = field(default_factory=dict)
    memory: list[float] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{'kind':<10} {'trials':>7} {'calls':>8} {'refused':>8} {'interruptions':>34} {'minutes':>8}"
        rows = []
        for kind in sorted(self.trials):
            stops = self.tally[kind].interruptions if kind in self.tally else {}
            signals = ", ".join(f"{name} {count}" for name, count in sorted(stops.items())) or "-"
            calls = self.calls[kind] or (self.tally[kind].starts if kind in self.tally else 0)
            rows.append(
                f"{kind:<10} {self.trials[kind]:>7} {calls:>8} {self.refused[kind]:>8} {signals:>34} "
                f"{self.seconds[kind] / 60:>8.1f}"
            )
        if self.memory:
            rows.append(f"memory: {self.memory[0]:.0f} MiB when warm, {self.memory[-1]:.0f} at the end")
        return "\n".join([head, *rows, f"{len(self.findings)} finding(s)", *self.findings])


class Soak:
    """Trials by kind, each drawn from the seed, its number and its kind."""

    def __init__(self, seed: int, *, interruptions: int = 4) -> None:
        self.seed, self.interruptions = seed, interruptions
        self.report = Report()
        self.kinds: dict[str, Callable[[int, Path], None]] = {
            "extremes": self.extremes,
            "files": self.files,
            "simulate": self._command(processes.simulate),
            "finetune": self._command(processes.finetune),
            "grid": self._command(processes.grid),
            "sweep": self._command(processes.sweep),
            "plan": self._command(processes.plan),
            "memory": self.memory,
        }

    def trial(self, kind: str, number: int) -> None:
        """Run one trial; what it finds goes into the report."""
        began = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="soak-"))
        try:
            self.kinds[kind](number, folder)
        except Exception as error:
            told = str(error) if isinstance(error, Finding) else "".join(traceback.format_exception(error))
            self.report.findings.append(f"--kind {kind} --seed {self.seed} --trial {number}:\n  {told}")
            print(self.report.findings[-1], file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.report.trials[kind] += 1
        self.report.seconds[kind] += time.monotonic() - began

    def _random(self, kind: str, number: int) -> list[int]:
        return [self.seed, zlib.crc32(kind.encode()), number]

    def _command(
        self, command: Callable[[random.Random, Path, processes.Tally, int], str]
    ) -> Callable[[int, Path], None]:
        name = command.__name__

        def run(number: int, folder: Path) -> None:
            tally = self.report.tally.setdefault(name, processes.Tally())
            rng = random.Random(str(self._random(name, number)))
            command(rng, folder, tally, self.interruptions)

        return run

    def extremes(self, number: int, folder: Path) -> None:
        """Ask every solver and every bound for random cases."""
        found = []
        for place in range(_CASES):
            rng = np.random.default_rng([*self._random("extremes", number), place])
            case = cases.draw(rng)
            for name, call in (cases.solvers(case, rng) | cases.theorems(case, rng)).items():
                self.report.calls["extremes"] += 1
                try:
                    result, why = attempt(call)
                    self.report.refused["extremes"] += bool(why)
                    finite(result, name)
                except Finding as finding:
                    found.append(f"{name} of {case}:\n{finding}")
        if found:
            raise Finding("\n".join(found))

    def files(self, number: int, folder: Path) -> None:
        """Damage files of every kind, and read them."""
        rng, found = np.random.default_rng(self._random("files", number)), []
        for kind in damage.kinds():
            path = folder / kind.name
            kind.write(path)
            whole, content = kind.read(path), path.read_bytes()
            for _ in range(_FILES // 6):
                what, after = damage.damaged(content, rng)
                path.write_bytes(after)
                self.report.calls["files"] += 1
                try:
                    result, why = attempt(lambda kind=kind, path=path: kind.read(path))
                    self.report.refused["files"] += bool(why)
                    if not why and not kind.equal(result, whole):
                        raise Finding("it was read, but to something else")
                except Finding as finding:
                    found.append(f"{kind.name}, {what}: {finding}")
        if found:
            raise Finding("\n".join(found))

    def memory(self, number: int, folder: Path) -> None:
        """Run the same ordinary work again, and look at this process."""
        from langevin import Schedule, collapsed_features, euler_maruyama, orthogonally_separable, store

        me = psutil.Process()
        problem = orthogonally_separable(32, 8, rng=0)
        weights = collapsed_features(problem, 64, rng=0)
        schedule = Schedule.lp_fft(lp_time=0.1, fft_time=0.1, sigma=0.5, clip=1.0)
        for place in range(10):
            # the code of both is loaded once
            precision = "single" if place % 2 else "double"
            how: dict[str, Any] = dict(dt=1e-3, paths=20, rng=0, reduce="none", precision=precision)
            run = euler_maruyama(problem, weights, schedule, **how)
            store.load(store.save(run, folder / "run.nc"))
            store.load(store.save(run, folder / "run.zarr"))
            self.report.calls["memory"] += 1
        gc.collect()
        self.report.memory.append(me.memory_info().rss / 2**20)
        opened = [file.path for file in me.open_files() if file.path.startswith(str(folder))]
        if opened:
            raise Finding(f"files left open: {opened}")

    def grown(self) -> None:
        """Note a process that has grown since its first quarter of an hour, or of the trials."""
        memory = self.report.memory
        quarter = len(memory) // 4
        if quarter and memory[-1] - max(memory[: quarter + 1]) > _GROWTH / 2**20:
            self.report.findings.append(f"memory grows: {[round(m) for m in memory]} MiB")


def main(argv: list[str] | None = None) -> int:
    """Run trials in turn until the time is up, and say what came of them."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="after which no trial is begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="only trials of this kind")
    parser.add_argument("--trial", type=int, help="only this trial of the kind, as a finding names it")
    args = parser.parse_args(argv)
    soak = Soak(args.seed)
    if args.kind is not None and args.kind not in soak.kinds:
        parser.error(f"--kind must be one of {', '.join(soak.kinds)}, got {args.kind!r}")
    kinds = list(soak.kinds) if args.kind is None else [args.kind]
    end = time.monotonic() + 60 * args.minutes
    if args.trial is not None:
        soak.trial(kinds[0], args.trial)
    number = 0
    while args.trial is None and time.monotonic() < end:
        for kind in kinds:
            if time.monotonic() < end:
                soak.trial(kind, number)
        number += 1
    soak.grown()
    print(soak.report)
    return 1 if soak.report.findings else 0


if __name__ == "__main__":
    _streams.run(main)
