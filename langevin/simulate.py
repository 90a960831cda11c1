"""The command ``python -m langevin.simulate``: one run, its report, its file, its figure."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from langevin.store import rescue
from langevin.support import options, signals, streams
from langevin.support.command import as_option, fail, plot_target, refuse_idle

if TYPE_CHECKING:
    import xarray as xr

    from langevin.data.files import FileProblem
    from langevin.model.problem import Problem
    from langevin.model.schedule import Schedule
    from langevin.model.weights import Weights
    from langevin.simulation import facts
    from langevin.simulation.config import Simulation, Start
    from langevin.simulation.facts import Theory

NO_EPSILON = """unknown option --epsilon: find sigma with bounds.calibrate in Python, such as
  import bounds, langevin
  schedule = langevin.Schedule.lp_fft(lp_time=0.25, fft_time=0.75, sigma=1.0, clip=1.0)
  print(bounds.calibrate(schedule, "sigma", epsilon=1.0, delta=1e-5).phases[0].sigma)"""
# samples x width x dimensions up to which the report integrates the flow for its bounds
_SMALL = 1_000_000


def parser() -> options.Parser:
    """Command line of the simulator."""
    from langevin.simulation.config import Reporting, Simulation

    p = options.Parser(
        "python -m langevin.simulate",
        description="Simulate DP fine-tuning of a two-layer network as clipped Langevin diffusion, next to "
        "its zeroth-order approximation, and report what happens to loss, features and head.",
        epilog="Times are diffusion times: with full-batch DP-SGD, dt is the learning rate and time is steps "
        "times learning rate. Exit status: 0 done, 1 failed or diverged (what was computed is saved), "
        "2 wrong usage, 130 or 143 interrupted (--resume continues).",
    )
    p.add("problem", (Simulation, "data label samples dim spread classes activation loss"))
    p.add("network", (Simulation, "width features head head_scale"))
    p.add("schedule", (Simulation, "method lp_share time dt sigma clip clipping stabiliser"))
    p.add(
        "run",
        (Simulation, "paths seed"),
        (Reporting, "threads"),
        (Simulation, "device precision reduce"),
        (Reporting, "times observables"),
    )
    p.add("output", (Reporting, "out plot bounds delta json quiet resume"))
    # of a later version; this one says what to do instead
    p.add_argument("--epsilon", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return p


class _Job(NamedTuple):
    """What was asked for, and where it goes."""

    args: argparse.Namespace
    simulation: Simulation
    out: Path
    plot: Path | None
    checkpoint: Path


class _Done(NamedTuple):
    """What was simulated, from which start, when the first step began, and what failed."""

    start: Start
    zeroth: xr.Dataset
    run: xr.Dataset
    began: float
    seconds: float
    failure: str | None


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    started = time.perf_counter()
    job = None
    with signals.interruptible() as status:
        try:
            command = parser()
            args, _ = command.parse(argv)
            if "epsilon" in args:
                command.error(NO_EPSILON)
            from langevin.store import errors

            try:
                job = _job(args)
                done = _simulate(job)
            except (ValueError, TypeError, MemoryError, ImportError, errors.StoreError) as error:
                command.error(as_option(command, str(error), {"rng": "seed"} | command.renamed))
            return _finish(command, job, done, started)
        except KeyboardInterrupt as error:
            # a solver says where it was
            kept = [str(path) for path in (job.out, job.checkpoint) if path.exists()] if job else []
            said = str(error) or f"interrupted; there is {' and '.join(kept) or 'nothing to keep yet'}"
            print(f"\n{said}", file=sys.stderr)
            if job and job.checkpoint.exists():
                print("Run the same command with --resume to continue, to the same bits.", file=sys.stderr)
            return status()


def _job(args: argparse.Namespace) -> _Job:
    """Check what was asked for, as far as that takes no work."""
    from langevin.simulation.config import Simulation
    from langevin.store import files
    from langevin.support import validate

    simulation = Simulation(**options.values(Simulation, args))
    out = files.check_target(args.out or _default_out(args, simulation))
    plot = None if args.plot is None else plot_target(args.plot or out.with_suffix(".png"))
    checkpoint = _checkpoint(out, args.resume)
    validate.integer("times", args.times, 2)
    validate.fraction("delta", args.delta)
    return _Job(args, simulation, out, plot, checkpoint)


def _simulate(job: _Job) -> _Done:
    """The zeroth-order path, and the paths of the diffusion."""
    from langevin.model.observables import OBSERVABLES
    from langevin.model.problem import require_scalar
    from langevin.simulation import facts
    from langevin.simulation.config import Simulation
    from langevin.solvers.diffusion import euler_maruyama
    from langevin.solvers.errors import Diverged
    from langevin.solvers.zeroth import zeroth_order

    args, simulation = job.args, job.simulation
    start = simulation.start(args.observables)
    refuse_idle(simulation.idle, simulation, Simulation())
    schedule = simulation.schedule
    _talk(args, f"{facts.problem_line(start.problem, _named(args.data, start.file))}\n{schedule}")
    times = schedule.default_times(min(args.times, simulation.steps + 1))
    require_scalar(start.problem, schedule, "this command")
    given = (start.problem, start.weights, schedule)
    same: dict[str, Any] = dict(dt=args.dt, times=times, precision=args.precision, reduce=args.reduce)
    neurons = [name for name in args.observables if name in OBSERVABLES and OBSERVABLES[name].neurons]
    failure = None
    try:
        zeroth = zeroth_order(*given, observables=neurons, **same)
    except Diverged as error:
        zeroth, failure = error.run, f"the zeroth-order path: {error}"
    began = time.perf_counter()
    try:
        run = euler_maruyama(
            *given,
            paths=args.paths,
            rng=args.seed,
            observables=args.observables,
            threads=args.threads,
            device=args.device,
            checkpoint=job.checkpoint,
            keep=True,
            progress=not args.quiet,
            **same,
        )
    except Diverged as error:
        run, failure = error.run, str(error)
    return _Done(start, zeroth, run, began, time.perf_counter() - began, failure)


def _finish(command: argparse.ArgumentParser, job: _Job, done: _Done, started: float) -> int:
    """Save the run, report it, and return the exit status."""
    from langevin.simulation import facts, figure
    from langevin.simulation import text as simulation_text
    from langevin.store import checkpoints, errors
    from langevin.support.signals import shielded

    args, run = job.args, done.run
    run.attrs["command"] = json.dumps(vars(args))
    with shielded():
        try:
            saved, failure_to_save = rescue.save(run, job.out)
        except errors.StoreError as error:
            kept = f"the run is kept in {job.checkpoint}: once that is fixed, --resume saves it"
            return fail(command, f"{error}; {kept}")
        checkpoints.remove_checkpoint(job.checkpoint)
    subject, refused = _subject(job, done)
    said = facts.build(subject)
    if refused:
        said["bounds"] = refused
    if done.start.file is not None:
        said["file"] = _file(done.start.file)
    said["end"] = subject.schedule.duration
    said["seconds"] = {"to first step": done.began - started, "simulation": done.seconds}
    said["path steps per second"] = args.paths * job.simulation.steps / done.seconds
    said["saved"] = str(saved)
    said["failure"] = done.failure or failure_to_save
    if job.plot is not None:
        try:
            figure.draw(subject, job.plot)
            said["plot"] = str(job.plot)
        except OSError as error:
            said["failure"] = said["failure"] or f"plot {job.plot} could not be written: {error}"
    print(json.dumps(said, indent=2, allow_nan=False) if args.json else simulation_text.text(said))
    return fail(command, said["failure"]) if said["failure"] else 0


def _subject(job: _Job, done: _Done) -> tuple[facts.Subject, str | None]:
    """What the report is about, and why theory says nothing, if it was asked."""
    from langevin.simulation import facts

    args, start, schedule = job.args, done.start, job.simulation.schedule
    subject = facts.Subject(
        start.problem,
        start.weights,
        schedule,
        done.run,
        done.zeroth,
        data=_named(args.data, start.file),
        head=_head(args, start.own_head),
        solver=f"Euler-Maruyama, dt {args.dt:g}, {job.simulation.steps} steps, {args.paths} paths, "
        f"{args.precision} precision, seed {args.seed}",
        simulated=json.loads(done.run.attrs["config"])["simulated"],
    )
    if args.bounds:
        try:
            subject.theory = _theory(args, start.problem, start.weights, schedule, done.run.time.values)
        except (ValueError, ArithmeticError) as error:
            return subject, f"none: {error}"
    return subject, None


# --- what was asked for ----------------------------------------------------------------------


def _default_out(args: argparse.Namespace, simulation: Simulation) -> str:
    """Return a unique name for a run: its main options and a digest of all options."""
    ignored = ("out", "plot", "json", "quiet", "resume", "threads", "bounds", "delta")
    asked = {name: value for name, value in vars(args).items() if name not in ignored}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:6]
    parts = [args.method, Path(args.data).stem, f"w{args.width}", f"sigma{args.sigma:g}", f"seed{args.seed}"]
    if "width" in simulation.idle:
        del parts[2]
    return f"runs/{'-'.join([*parts, digest])}.nc"


def _checkpoint(out: Path, resume: bool) -> Path:
    checkpoint = out.with_name(out.name + ".unfinished")
    if checkpoint.exists() and not resume:
        raise ValueError(
            f"out has an unfinished run, {checkpoint}: continue it with --resume, or remove that file"
        )
    if resume and not checkpoint.exists():
        raise ValueError(f"resume needs an unfinished run, but there is no {checkpoint}")
    return checkpoint


# --- what comes of it ------------------------------------------------------------------------


def _named(data: str, file: FileProblem | None) -> str:
    """The data and the meaning of their labels."""
    if file is None:
        return data
    label = "" if file.file.label == "y" else f", label {file.file.label!r}"
    classes = "" if file.classes in ((), ("-1", "1")) else ": -1 is {!r}, +1 is {!r}".format(*file.classes)
    return f"{data}{label}{classes}{''.join(f'; {note}' for note in file.file.notes)}"


def _file(found: FileProblem) -> dict[str, Any]:
    classes = dict(zip(("-1", "+1"), found.classes, strict=False))
    file = found.file
    return {"label": file.label, "classes": classes, "features": file.features, "notes": file.notes}


def _head(args: argparse.Namespace, given: bool) -> str:
    if given:
        return "head from the file"
    scale = "1/sqrt(width)" if args.head_scale is None else f"{args.head_scale:g}"
    return "zero head" if args.head == "zero" else f"{args.head} head of scale {scale}"


def _theory(
    args: argparse.Namespace, problem: Problem, weights: Weights, schedule: Schedule, times: Any
) -> Theory:
    import bounds
    from langevin.simulation.facts import Theory

    given = (problem, weights, schedule, times)
    names: dict[Any, str] = {"paper": "Theorem 2.2 of the paper", "monotone": "sharper in LP (1a, new)"}
    # the sharpest forms integrate the zeroth-order flow themselves, which takes minutes on a large problem
    small = problem.samples * len(weights.v) * min(problem.samples, problem.dim) <= _SMALL
    names |= {"ode": "sharper (1b, new)"} if small else {"lambert": "sharper (1b without the path, new)"}
    try:
        privacy: dict[str, Any] = {
            "epsilon": bounds.epsilon(schedule, args.delta),
            "delta": args.delta,
            "gdp": bounds.gdp(schedule),
            "zcdp": bounds.zcdp(schedule),
        }
    except ValueError as error:
        privacy = {"none": str(error)}
    return Theory(
        {name: bounds.approximation_error(*given, kind=kind) for kind, name in names.items()},
        bounds.sandwich(*given),
        bounds.certified_loss(*given, base="flow" if small else "sandwich"),
        privacy,
        str(bounds.check_assumptions(problem, weights)),
    )


def _talk(args: argparse.Namespace, text: str) -> None:
    if not args.quiet and sys.stderr.isatty():
        print(text, file=sys.stderr)


if __name__ == "__main__":
    streams.run(main)
