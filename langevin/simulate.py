"""The command ``python -m langevin.simulate``: one run, its report, its file, its figure."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from langevin.store import rescue
from langevin.support import options, signals, streams
from langevin.support.command import as_option, fail, missing

if TYPE_CHECKING:
    import xarray as xr

    from langevin.model.problem import Problem
    from langevin.model.schedule import Schedule
    from langevin.model.weights import Weights
    from langevin.simulation import facts
    from langevin.simulation.config import Simulation
    from langevin.simulation.facts import Theory
    from langevin.simulation.job import Job
    from langevin.simulation.start import Start

# samples x width x dimensions up to which the report integrates the flow for its bounds
_SMALL = 1_000_000


def parser() -> options.Parser:
    """Command line of the simulator."""
    from langevin.simulation.config import Simulation
    from langevin.simulation.reporting import Reporting

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
        (Simulation, "method"),
        (Reporting, "compare"),
        (Simulation, "schedule_file lp_share time dt sigma"),
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


class _Done(NamedTuple):
    """What was simulated with one method, when the first step began, and what failed."""

    schedule: Schedule
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
            args, given = command.parse(argv, _unread)
            from langevin.simulation.job import prepare
            from langevin.store import errors

            try:
                job = prepare(args, given)
                start, done = _run(job)
            except (ValueError, TypeError, MemoryError, ImportError, errors.StoreError) as error:
                said = missing(error) if isinstance(error, ImportError) else str(error)
                command.error(as_option(command, said, {"rng": "seed"} | command.renamed))
            return _finish(command, job, start, done, started)
        except KeyboardInterrupt as error:
            # a solver says where it was
            kept = [str(path) for path in (job.out, *job.unfinished) if path.exists()] if job else []
            said = str(error) or f"interrupted; there is {' and '.join(kept) or 'nothing to keep yet'}"
            print(f"\n{said}", file=sys.stderr)
            if job and job.unfinished:
                print("Run the same command with --resume to continue, to the same bits.", file=sys.stderr)
            return status()


def _unread(given: set[str]) -> set[str]:
    """Return the options in whose place others were given."""
    from langevin.simulation.config import SCHEDULED

    replaced = {"epsilon": ("sigma",), "compare": ("method",), "schedule": SCHEDULED}
    return {old for new, many in replaced.items() if new in given for old in many}


def _run(job: Job) -> tuple[Start, dict[str, _Done]]:
    """Simulate each method from the same start."""
    from langevin.model.observables import requested
    from langevin.model.problem import require_compatible
    from langevin.simulation import facts, words

    args = job.args
    start = job.first.start(args.observables)
    job.refuse_idle()
    for simulation in job.simulations.values():
        require_compatible(start.problem, start.weights, simulation.schedule)
    # before the zeroth-order path is computed, which some of them are not for
    asked = requested(start.problem, args.observables)
    if args.compare:
        asked = _with_shares(start, job.first, asked)
    _talk(args, facts.problem_line(start.problem, words.data(args, start)))
    schedules = {m: _calibrated(args, one.schedule) for m, one in job.simulations.items()}
    return start, {m: _simulate(job, m, one, start, asked) for m, one in schedules.items()}


def _with_shares(start: Start, simulation: Simulation, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Ask for the states of neurons, which reductions leave out, where all methods can have them."""
    from langevin.model.observables import OBSERVABLES
    from langevin.simulation.facts import SHARES

    if start.problem.activation == "linear" or simulation.reduce != "auto":
        return asked
    shares = [name for name in SHARES if not OBSERVABLES[name].missing(start.problem)]
    return tuple(dict.fromkeys([*asked, *shares]))


def _simulate(job: Job, method: str, schedule: Schedule, start: Start, observables: tuple[str, ...]) -> _Done:
    """The zeroth-order path, and the paths of the diffusion."""
    from langevin.model.observables import OBSERVABLES
    from langevin.solvers.diffusion import euler_maruyama
    from langevin.solvers.errors import Diverged
    from langevin.solvers.zeroth import zeroth_order

    args = job.args
    _talk(args, str(schedule))
    times = schedule.default_times(min(args.times, job.first.steps + 1))
    given = (start.problem, start.weights, schedule)
    same: dict[str, Any] = dict(dt=args.dt, times=times, precision=args.precision, reduce=args.reduce)
    neurons = [name for name in observables if OBSERVABLES[name].neurons]
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
            observables=observables,
            threads=args.threads,
            device=args.device,
            checkpoint=job.checkpoints[method],
            keep=True,
            progress=not args.quiet,
            **same,
        )
    except Diverged as error:
        run, failure = error.run, str(error)
    return _Done(schedule, zeroth, run, began, time.perf_counter() - began, failure)


def _finish(
    command: argparse.ArgumentParser, job: Job, start: Start, done: dict[str, _Done], started: float
) -> int:
    """Report the runs, save and draw them, and return the exit status."""
    from langevin.simulation import facts, figure, saved, words
    from langevin.simulation import text as simulation_text
    from langevin.store import checkpoints, errors
    from langevin.support.signals import shielded

    args = job.args
    reports, runs = {}, {}
    for method, one in done.items():
        subject, refused = _subject(job, start, one)
        reports[method] = facts.build(subject) | {"end": subject.schedule.duration}
        reports[method] |= {"bounds": refused} if refused else {}
        if start.file is not None:
            reports[method]["file"] = words.file(start.file, start.problem)
        runs[method] = saved.complete(subject, reports[method])
    said = facts.compare(reports) if args.compare else next(iter(reports.values()))
    run = saved.join(runs, said) if args.compare else next(iter(runs.values()))
    sigma = _each(phase.sigma for phase in next(iter(done.values())).schedule)
    run.attrs["command"] = json.dumps(vars(args) | {"sigma": sigma})
    with shielded():
        try:
            where, failure_to_save = rescue.save(run, job.out)
        except errors.StoreError as error:
            kept = f"the run is kept in {' and '.join(map(str, job.unfinished))}"
            return fail(command, f"{error}; {kept}: once that is fixed, --resume saves it")
        for path in job.checkpoints.values():
            checkpoints.remove_checkpoint(path)
    seconds = sum(one.seconds for one in done.values())
    said["seconds"] = {"to first step": min(one.began for one in done.values()) - started}
    said["seconds"] |= {"simulation": seconds}
    said["path steps per second"] = args.paths * job.first.steps * len(done) / seconds
    said["saved"] = str(where)
    failures = [one.failure for one in done.values() if one.failure]
    said["failure"] = "; ".join(failures) or failure_to_save
    if job.plot is not None:
        try:
            figure.draw(run, job.plot)
            said["plot"] = str(job.plot)
        except OSError as error:
            said["failure"] = said["failure"] or f"plot {job.plot} could not be written: {error}"
    print(json.dumps(said, indent=2, allow_nan=False) if args.json else simulation_text.text(said))
    return fail(command, said["failure"]) if said["failure"] else 0


def _subject(job: Job, start: Start, done: _Done) -> tuple[facts.Subject, str | None]:
    """What the report is about, and why theory says nothing, if it was asked."""
    from langevin.simulation import facts, words

    args, schedule = job.args, done.schedule
    subject = facts.Subject(
        start.problem,
        start.weights,
        schedule,
        done.run,
        done.zeroth,
        data=words.data(args, start),
        head=words.head(args, start.own_head),
        solver=f"Euler-Maruyama, dt {args.dt:g}, {job.first.steps} steps, {args.paths} paths, "
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


def _calibrated(args: argparse.Namespace, schedule: Schedule) -> Schedule:
    """The same schedule with the noise that the budget allows, if there is one."""
    if args.epsilon is None:
        return schedule
    import bounds

    return bounds.calibrate(schedule, "sigma", epsilon=args.epsilon, delta=args.delta, dt=args.dt)


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
    found |= {
        "sigma": _each(phase.sigma for phase in schedule),
        "noise multiplier": _each(noise_multiplier(phase, args.dt) for phase in schedule),
        "sample rate": _each(phase.sample_rate for phase in schedule),
    }
    return {"epsilon": spent, "delta": args.delta} | found | {"accountant": accountant}


def _each(values: Iterable[float]) -> float | list[float]:
    """Return one number where all phases have the same, otherwise that of each phase."""
    found = list(values)
    return found if len(set(found)) > 1 else found[0]


def _talk(args: argparse.Namespace, text: str) -> None:
    if not args.quiet and sys.stderr.isatty():
        print(text, file=sys.stderr)


if __name__ == "__main__":
    streams.run(main)
