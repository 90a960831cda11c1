"""What a simulation was asked for, and where it goes."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from langevin.simulation.config import SCHEDULED, Simulation
from langevin.store import files
from langevin.support import options, validate
from langevin.support.command import plot_target, refuse_idle


class Job(NamedTuple):
    """One simulation, or one of each method that is compared.

    Attributes
    ----------
    args : Namespace
        All options.
    simulations : dict of Simulation
        By method.
    out : Path
    plot : Path or None
    """

    args: argparse.Namespace
    simulations: dict[str, Simulation]
    out: Path
    plot: Path | None

    @property
    def first(self) -> Simulation:
        """A simulation, for what all of them share."""
        return next(iter(self.simulations.values()))

    @property
    def checkpoints(self) -> dict[str, Path]:
        """The file that keeps the unfinished run of each method."""
        middle = {method: f".{method}" if self.args.compare else "" for method in self.simulations}
        return {m: self.out.with_name(f"{self.out.name}{part}.unfinished") for m, part in middle.items()}

    @property
    def unfinished(self) -> list[Path]:
        """The checkpoints that exist."""
        return [path for path in self.checkpoints.values() if path.exists()]

    def refuse_idle(self) -> None:
        """Refuse options without effect on any of the simulations, unless they have their defaults."""
        idle = [simulation.idle for simulation in self.simulations.values()]
        shared = {name: why for name, why in idle[0].items() if all(name in other for other in idle)}
        refuse_idle(shared, self.first, Simulation())


def prepare(args: argparse.Namespace, given: set[str]) -> Job:
    """Check what was asked for, as far as that takes no work; ``given`` names the options that were given."""
    _require_one_schedule(args, given)
    simulation = Simulation(**options.values(Simulation, args))
    if len(set(args.compare)) < len(args.compare) or len(args.compare) == 1:
        raise ValueError(
            f"compare must be two different methods or more, got {' '.join(args.compare)}: take --method "
            "for one"
        )
    if args.compare and "method" in given:
        raise ValueError(f"method={args.method} has no effect with --compare; remove it")
    methods = args.compare or (args.method,)
    simulations = {str(method): replace(simulation, method=method) for method in methods}
    out = files.check_target(args.out or default_out(args, simulation))
    plot = None if args.plot is None else plot_target(args.plot or out.with_suffix(".png"))
    job = Job(args, simulations, out, plot)
    if job.unfinished and not args.resume:
        raise ValueError(
            f"out has an unfinished run, {job.unfinished[0]}: continue it with --resume, or remove that file"
        )
    if args.resume and not job.unfinished:
        raise ValueError(
            f"resume needs an unfinished run, but there is no {next(iter(job.checkpoints.values()))}"
        )
    validate.integer("times", args.times, 2)
    validate.fraction("delta", args.delta)
    _require_budget(args, given)
    return job


def _require_one_schedule(args: argparse.Namespace, given: set[str]) -> None:
    """Refuse options that say in another place what the file of a schedule says."""
    if args.schedule is None:
        return
    if args.compare:
        raise ValueError(
            f"compare must be left out with --schedule {args.schedule}, which is one schedule, got "
            f"{' '.join(args.compare)}: remove one of the two"
        )
    for name in SCHEDULED:
        if name in given:
            remedy = "remove it" if name == "lp_share" else f"set {name} in that file"
            raise ValueError(
                f"{name}={getattr(args, name)} has no effect with --schedule {args.schedule}; {remedy}"
            )


def _require_budget(args: argparse.Namespace, given: set[str]) -> None:
    """Refuse a budget that no noise could meet, or that leaves no noise to choose."""
    if args.epsilon is None:
        return
    validate.positive("epsilon", args.epsilon)
    if "sigma" in given:
        raise ValueError(
            f"sigma must be left out with --epsilon {args.epsilon:g}, which determines it, got "
            f"{args.sigma:g}: remove one of the two"
        )
    if args.clip is None and args.schedule is None:
        raise ValueError(
            f"clip must be positive with --epsilon {args.epsilon:g}, got none: without clipping no "
            "noise is private; take --clip 1"
        )


def default_out(args: argparse.Namespace, simulation: Simulation) -> str:
    """Return a unique name for a run: its main options and a digest of all options."""
    ignored = ["out", "plot", "json", "quiet", "resume", "threads", "bounds"]
    ignored += ["sigma"] if args.epsilon is not None else ["delta"]
    ignored += ["method"] if args.compare else ["compare"]
    ignored += ["schedule"] if args.schedule is None else SCHEDULED
    asked = {name: value for name, value in vars(args).items() if name not in ignored}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:6]
    noise = f"sigma{args.sigma:g}" if args.epsilon is None else f"epsilon{args.epsilon:g}"
    methods = "-vs-".join(args.compare or [args.method])
    parts = [methods, Path(args.data).stem, f"w{args.width}", noise, f"seed{args.seed}"]
    if args.schedule is not None:
        parts[0] = Path(args.schedule).stem
        parts[3] = "" if args.epsilon is None else noise
    if "width" in simulation.idle:
        parts[2] = ""
    return f"runs/{'-'.join([*filter(None, parts), digest])}.nc"
