"""The command ``python -m langevin.simulate``: one run, its report, its file, its figure."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from langevin.store import rescue
from langevin.support import options, signals, streams
from langevin.support.command import as_option, fail, missing, plot_target, refuse_idle

if TYPE_CHECKING:
    import xarray as xr

    from langevin.data.files import FileProblem
    from langevin.model.problem import Problem
    from langevin.model.schedule import Schedule
    from langevin.model.weights import Weights
    from langevin.simulation import facts
    from langevin.simulation.config import Simulation, Start
    from langevin.simulation.facts import Theory

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
        "times learning rate; with Poisson batches, dt is the learning rate over the number of samples. "
        "Exit status: 0 done, 1 failed or diverged (what was computed is saved), "
        "2 wrong usage, 130 or 143 interrupted (--resume continues).",
    )
    p.add("problem", (Simulation, "data label samples dim spread classes activation loss"))
    p.add("network", (Simulation, "width features head head_scale"))
    p.add(
        "schedule",
        (Simulation, "method lp_share time dt sigma"),
        (Reporting, "epsilon"),
        (Simulation, "clip clipping stabiliser sample_rate"),
    )
    p.add(
        "run",
        (Simulation, "paths seed"),
        (Reporting, "threads"),
        (Simulation, "device precision reduce"),
        (Reporting, "times observables"),
    )
    p.add("output", (Reporting, "out plot bounds delta json quiet resume"))
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

    simulation: Simulation
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
            # a printed file holds one of the two
            args, given = command.parse(argv, lambda given: {"sigma"} if "epsilon" in given else ())
            from langevin.store import errors

            try:
                job = _job(args, given)
                done = _simulate(job)
            except (ValueError, TypeError, MemoryError, ImportError, errors.StoreError) as error:
                said = missing(error) if isinstance(error, ImportError) else str(error)
                command.error(as_option(command, said, {"rng": "seed"} | command.renamed))
            return _finish(command, job, done, started)
        except KeyboardInterrupt as error:
            # a solver says where it was
            kept = [str(path) for path in (job.out, job.checkpoint) if path.exists()] if job else []
            said = str(error) or f"interrupted; there is {' and '.join(kept) or 'nothing to keep yet'}"
            print(f"\n{said}", file=sys.stderr)
            if job and job.checkpoint.exists():
                print("Run the same command with --resume to continue, to the same bits.", file=sys.stderr)
            return status()


def _job(args: argparse.Namespace, given: set[str]) -> _Job:
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
    if args.epsilon is not None:
        validate.positive("epsilon", args.epsilon)
        if "sigma" in given:
            raise ValueError(
                f"sigma must be left out with --epsilon {args.epsilon:g}, which determines it, got "
                f"{args.sigma:g}: remove one of the two"
            )
        if args.clip is None:
            raise ValueError(
                f"clip must be positive with --epsilon {args.epsilon:g}, got none: without clipping no "
                "noise is private; take --clip 1"
            )
    return _Job(args, simulation, out, plot, checkpoint)


def _simulate(job: _Job) -> _Done:
    """The zeroth-order path, and the paths of the diffusion."""
    from langevin.model.observables import OBSERVABLES, requested
    from langevin.model.problem import require_compatible
    from langevin.simulation import facts
    from langevin.simulation.config import Simulation
    from langevin.solvers.diffusion import euler_maruyama
    from langevin.solvers.errors import Diverged
    from langevin.solvers.zeroth import zeroth_order

    args, simulation = job.args, job.simulation
    start = simulation.start(args.observables)
    refuse_idle(simulation.idle, simulation, Simulation())
    require_compatible(start.problem, start.weights, simulation.schedule)
    # before the zeroth-order path is computed, which some of them are not for
    requested(start.problem, args.observables)
    simulation = _calibrated(args, simulation)
    schedule = simulation.schedule
    _talk(args, f"{facts.problem_line(start.problem, _named(args, start))}\n{schedule}")
    times = schedule.default_times(min(args.times, simulation.steps + 1))
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
    return _Done(simulation, start, zeroth, run, began, time.perf_counter() - began, failure)


def _finish(command: argparse.ArgumentParser, job: _Job, done: _Done, started: float) -> int:
    """Save the run, report it, and return the exit status."""
    from langevin.simulation import facts, figure
    from langevin.simulation import text as simulation_text
    from langevin.store import checkpoints, errors
    from langevin.support.signals import shielded

    args, run = job.args, done.run
    run.attrs["command"] = json.dumps(vars(args) | {"sigma": done.simulation.sigma})
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
        said["file"] = _file(done.start.file, done.start.problem)
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

    args, start, schedule = job.args, done.start, done.simulation.schedule
    subject = facts.Subject(
        start.problem,
        start.weights,
        schedule,
        done.run,
        done.zeroth,
        data=_named(args, start),
        head=_head(args, start.own_head),
        solver=f"Euler-Maruyama, dt {args.dt:g}, {job.simulation.steps} steps, {args.paths} paths, "
        f"{args.precision} precision, seed {args.seed}",
        simulated=json.loads(done.run.attrs["config"])["simulated"],
    )
    if args.bounds or args.epsilon is not None:
        subject.privacy = _privacy(args, schedule)
    if args.bounds:
        try:
            subject.theory = _theory(args, start.problem, start.weights, schedule, done.run.time.values)
        except (ValueError, ArithmeticError) as error:
            return subject, f"none: {error}"
    return subject, None


# --- what was asked for ----------------------------------------------------------------------


def _default_out(args: argparse.Namespace, simulation: Simulation) -> str:
    """Return a unique name for a run: its main options and a digest of all options."""
    ignored = ["out", "plot", "json", "quiet", "resume", "threads", "bounds"]
    ignored += ["sigma"] if args.epsilon is not None else ["delta"]
    asked = {name: value for name, value in vars(args).items() if name not in ignored}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:6]
    noise = f"sigma{args.sigma:g}" if args.epsilon is None else f"epsilon{args.epsilon:g}"
    parts = [args.method, Path(args.data).stem, f"w{args.width}", noise, f"seed{args.seed}"]
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


def _named(args: argparse.Namespace, start: Start) -> str:
    """The data and the meaning of their labels."""
    data, file = args.data, start.file
    if data == "digits":
        from langevin.data import scikit

        shared = "digits, features pre-trained on a public quarter of the images of the same digits"
        return shared if scikit.split(args.classes) else data
    if file is None:
        return data
    label = "" if file.file.label == "y" else f", label {file.file.label!r}"
    classes = ""
    if not start.problem.class_names and file.classes not in ((), ("-1", "1")):
        classes = ": -1 is {!r}, +1 is {!r}".format(*file.classes)
    return f"{data}{label}{classes}{''.join(f'; {note}' for note in file.file.notes)}"


def _file(found: FileProblem, problem: Problem) -> dict[str, Any]:
    numbers = map(str, range(len(found.classes))) if problem.class_names else ("-1", "+1")
    classes = dict(zip(numbers, found.classes, strict=False))
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
    from langevin.model.problem import beyond_scalar
    from langevin.simulation.facts import Theory

    given = (problem, weights, schedule, times)
    scalar = not beyond_scalar(problem, schedule)
    names: dict[Any, str] = {
        "paper": "Theorem 2.2 of the paper" if scalar else "of the form of Theorem 2.2 (new)",
        "monotone": "sharper in LP (1a, new)",
    }
    # Poisson batches are of the chain; that takes a step of its own approximation for each
    chain = {"dt": args.dt} if any(phase.sample_rate < 1 for phase in schedule) else {}
    # the sharpest forms integrate the zeroth-order flow themselves, which takes minutes on a large problem
    work = problem.samples * len(weights.v) * min(problem.samples, problem.dim)
    small = bool(chain) or work <= _SMALL
    names |= {"ode": "sharper (1b, new)"} if small else {"lambert": "sharper (1b without the path, new)"}
    try:
        assumptions = str(bounds.check_assumptions(problem, weights))
    except ValueError as error:
        assumptions = f"not checked: {error}"
    return Theory(
        {name: bounds.approximation_error(*given, kind=kind, **chain) for kind, name in names.items()},
        bounds.sandwich(*given),
        bounds.certified_loss(*given, base="flow" if small else "sandwich", **chain),
        assumptions,
    )


def _calibrated(args: argparse.Namespace, simulation: Simulation) -> Simulation:
    """The same simulation with the noise that the budget allows, if there is one."""
    if args.epsilon is None:
        return simulation
    import bounds

    budget = dict(epsilon=args.epsilon, delta=args.delta, dt=args.dt)
    found = bounds.calibrate(simulation.schedule, "sigma", **budget)
    return replace(simulation, sigma=found.phases[0].sigma)


def _privacy(args: argparse.Namespace, schedule: Schedule) -> dict[str, Any]:
    """What the run spends; of Poisson batches by an accountant alone, never by the diffusion."""
    import bounds
    from langevin.model.dpsgd import noise_multiplier

    try:
        spent = bounds.epsilon(schedule, args.delta, args.dt)
        if all(phase.sample_rate == 1 for phase in schedule):
            accountant = "Gaussian differential privacy of the path (bounds.gdp)"
            found: dict[str, Any] = {"gdp": bounds.gdp(schedule), "zcdp": bounds.zcdp(schedule)}
        else:
            # the diffusion's understate the loss of batches
            accountant, found = "PLD of dp-accounting", {"gdp": None, "zcdp": None}
    except (ValueError, ArithmeticError, MemoryError) as error:
        return {"none": str(error)}
    except ImportError as error:
        return {"none": f"batches need an accountant, and {missing(error)}"}
    phase = schedule.phases[0]
    found |= {"sigma": phase.sigma, "noise multiplier": noise_multiplier(phase, args.dt)}
    found["sample rate"] = phase.sample_rate
    return {"epsilon": spent, "delta": args.delta} | found | {"accountant": accountant}


def _talk(args: argparse.Namespace, text: str) -> None:
    if not args.quiet and sys.stderr.isatty():
        print(text, file=sys.stderr)


if __name__ == "__main__":
    streams.run(main)
