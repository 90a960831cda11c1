"""Make all figures and tables: ``python -m figures [topic ...]``, or ``make figures``."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from figures import output
from figures.output import DEFAULT, ROOT
from langevin.support import options, streams

# each script uses one processor
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def scripts() -> dict[str, str]:
    """Return the topics of the figures and tables, with their modules."""
    return {path.stem[4:]: f"figures.{path.parent.name}.{path.stem}" for path in output.scripts()}


@dataclass(frozen=True)
class FiguresOptions:
    """Options of ``python -m figures``.

    Parameters
    ----------
    topics : tuple of str
        Figures and tables to make; all by default.
    quick : bool
        Make coarse versions, in seconds.
    force : bool
        Recompute what is up to date.
    stored : bool
        Draw from the data in docs/figures, if there are any, and compute only the rest.
    store : bool
        Compute the full versions and keep the data of slow figures in docs/figures.
    out : str
        Folder for data and figures.
    jobs : int
        Number of scripts that run at a time.
    """

    topics: tuple[str, ...] = field(default=(), metadata={"positional": True, "metavar": "topic"})
    quick: bool = False
    force: bool = False
    stored: bool = False
    store: bool = False
    out: str = field(default=str(DEFAULT), metadata={"metavar": "FOLDER"})
    jobs: int = os.cpu_count() or 1


def parser() -> options.Parser:
    """Command line of the figures."""
    p = options.Parser(
        "python -m figures", "[option ...] [topic ...]", epilog=f"Topics: {', '.join(scripts())}."
    )
    p.add("figures", (FiguresOptions, "topics quick force stored store out jobs"))
    return p


def main(argv: list[str] | None = None) -> int:
    """Run every script that is asked for, some at a time, and return an exit status."""
    known, p = scripts(), parser()
    args, _ = p.parse(argv)
    for topic in args.topics:
        if topic not in known:
            p.error(f"topic must be one of {', '.join(known)}, got {topic!r}")
    if args.stored + args.store + args.quick > 1:
        p.error("--quick, --stored and --store exclude each other: give one of them")
    if args.jobs < 1:
        p.error(f"--jobs must be at least 1, got {args.jobs}")
    flags = ["--out", str(Path(args.out).resolve())]
    flags += [f"--{name}" for name in ("quick", "force", "stored", "store") if getattr(args, name)]
    topics = args.topics or list(known)
    started = time.perf_counter()

    def build(topic: str) -> bool:
        done = subprocess.run(
            [sys.executable, "-m", known[topic], *flags],
            cwd=ROOT,
            env=os.environ | _ONE_THREAD,
            capture_output=True,
            text=True,
        )
        print(done.stdout if done.returncode == 0 else f"{topic} failed:\n{done.stderr}", end="", flush=True)
        return done.returncode == 0

    with ThreadPoolExecutor(args.jobs) as pool:
        good = list(pool.map(build, topics))
    print(f"{sum(good)} of {len(topics)} in {time.perf_counter() - started:.0f} s", flush=True)
    return 0 if all(good) else 1


if __name__ == "__main__":
    streams.run(main)
