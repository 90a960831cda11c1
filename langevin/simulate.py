"""The command ``python -m langevin.simulate``: one run, its report, its file, its figure."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langevin import _command, _streams

if TYPE_CHECKING:
    from langevin.files import FileProblem
    from langevin.problem import Problem, Weights
    from langevin.report import Theory
    from langevin.schedule import Schedule
    from langevin.simulation import Simulation

NO_EPSILON = """unknown option --epsilon: find sigma with bounds.calibrate in Python, such as
  import bounds, langevin
  schedule = langevin.Schedule.lp_fft(lp_time=0.25, fft_time=0.75, sigma=1.0, clip=1.0)
  print(bounds.calibrate(schedule, "sigma", epsilon=1.0, delta=1e-5).phases[0].sigma)"""
# samples x width x dimensions up to which the report integrates the flow for its bounds
_SMALL = 1_000_000


def parser() -> argparse.ArgumentParser:
    """Command line of the simulator."""
    from langevin.model.activations import ACTIVATIONS
    from langevin.model.losses import LOSSES

    p = argparse.ArgumentParser(
        prog="python -m langevin.simulate",
        usage="python -m langevin.simulate [option ...]",
        description="Simulate DP fine-tuning of a two-layer network as clipped Langevin diffusion, beside "
        "its zeroth-order approximation, and report what happens to loss, features and head.",
        epilog="Times are diffusion times: with full-batch DP-SGD, dt is the learning rate and time is steps "
        "times learning rate. Exit status: 0 done, 1 failed or diverged (what was computed is saved), "
        "2 wrong usage, 130 or 143 interrupted (--resume goes on).",
        formatter_class=_command.Help,
    )
    data = p.add_argument_group("problem")
    data.add_argument(
        "--data",
        default="separable",
        metavar="DATA",
        help="separable (Assumption 3.1), teacher (regression on a linear teacher), digits (two of "
        "scikit-learn's digits, features pre-trained on the other eight), or a file of two classes: .npz "
        "with X, y and optionally W, v, X_test, y_test; .csv or .parquet, features in all columns but one",
    )
    data.add_argument("--label", default="y", metavar="COLUMN", help="labels of a .csv or .parquet file")
    data.add_argument("--samples", type=int, default=64, help="training samples of synthetic data")
    data.add_argument("--dim", type=int, default=16, help="input dimension of synthetic data")
    data.add_argument(
        "--spread", type=float, default=0.2, help="spread within a class of separable data, 0 is collapsed"
    )
    data.add_argument("--classes", type=int, nargs=2, default=[3, 8], help="the two private digits")
    data.add_argument("--activation", choices=[*ACTIVATIONS], default="relu", help="activation")
    data.add_argument(
        "--loss", choices=[*LOSSES], help="loss (default: logistic, or square for regression on a teacher)"
    )
    net = p.add_argument_group("network")
    net.add_argument(
        "--width", type=int, default=512, help="neurons, for linear nets up to 1e12; a file's W has its own"
    )
    net.add_argument(
        "--features",
        choices=["collapsed", "gaussian"],
        help="first layer on synthetic data (default: collapsed for ReLU on separable data, else gaussian)",
    )
    net.add_argument(
        "--head", choices=["gaussian", "zero", "prototype"], default="gaussian", help="initial head"
    )
    net.add_argument(
        "--head-scale", type=float, help="root mean square of the head's entries (default: 1/sqrt(width))"
    )
    plan = p.add_argument_group("schedule")
    plan.add_argument("--method", choices=["lp", "fft", "lp-fft"], default="lp-fft", help="what trains")
    plan.add_argument("--lp-share", type=float, default=0.25, help="share of the time for LP in lp-fft")
    plan.add_argument("--time", type=float, default=1.0, help="total diffusion time")
    plan.add_argument("--dt", type=float, default=5e-4, help="step, in diffusion time")
    plan.add_argument("--sigma", type=float, default=0.5, help="noise of d theta = b dt + sqrt(2) sigma dB")
    # of a later version; this one says what to do instead
    plan.add_argument("--epsilon", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    plan.add_argument("--clip", default="1.0", help="per-sample gradient norm threshold, or none")
    plan.add_argument(
        "--clipping", choices=["flat", "normalised"], default="flat", help="g min(1, C/|g|), or g C/(|g| + r)"
    )
    plan.add_argument("--stabiliser", type=float, default=0.01, help="r of normalised clipping")
    run = p.add_argument_group("run")
    run.add_argument("--paths", type=int, default=64, help="independent paths")
    run.add_argument("--seed", type=int, default=0, help="of data, weights and noise")
    run.add_argument("--threads", type=int, help="threads (default: all processors)")
    run.add_argument("--device", default="cpu", help="cpu, or cuda or cuda:<number>: an NVIDIA GPU")
    run.add_argument("--precision", choices=["double", "single"], default="double", help="of the simulation")
    run.add_argument(
        "--reduce",
        choices=["auto", "none", "span", "kernel", "gram", "collapsed"],
        default="auto",
        help="what to simulate, all with the same law: the cheapest (auto), the full chain (none), inputs in "
        "the span of the data, linear probing's kernel, a linear net's Gram matrix, a collapsed net",
    )
    run.add_argument("--times", type=int, default=101, help="recorded times, at most one a step")
    run.add_argument(
        "--observables",
        nargs="+",
        default=[],
        metavar="NAME",
        help="beside the default ones: alignment preactivation head_alignment test_accuracy knn_accuracy; "
        "misaligned distorted dead where the reduction leaves them out",
    )
    out = p.add_argument_group("output")
    out.add_argument("--out", help="file.nc or folder.zarr (default: runs/<what was asked for>.nc)")
    out.add_argument(
        "--plot",
        nargs="?",
        const="",
        metavar="FILE",
        help="draw loss, distance and neurons (default: beside out)",
    )
    out.add_argument(
        "--bounds",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="what the theorems say of the run: bands, privacy, the state of their assumptions",
    )
    out.add_argument("--delta", type=float, default=1e-5, help="at which to give epsilon")
    out.add_argument("--json", action="store_true", help="print the report as JSON")
    out.add_argument("--quiet", action="store_true", help="no progress bar, no talk on stderr")
    out.add_argument("--resume", action="store_true", help="go on with an interrupted run, to the same bits")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    with _command.interruptible() as status:
        try:
            command = parser()
        except KeyboardInterrupt:
            print("\ninterrupted; there is nothing to keep yet", file=sys.stderr)
            return status()
    args = command.parse_args(argv)
    if "epsilon" in args:
        command.error(NO_EPSILON)
    started = time.perf_counter()

    out = checkpoint = None
    with _command.interruptible() as status:
        try:
            from langevin import _validate, report, store
            from langevin._engine import shielded
            from langevin.observables import OBSERVABLES
            from langevin.solvers import Diverged, euler_maruyama, zeroth_order

            try:
                simulation = _simulation(args)
                out = store.check_target(args.out or _default_out(args, simulation))
                plot = (
                    None if args.plot is None else _command.plot_target(args.plot or out.with_suffix(".png"))
                )
                checkpoint = _checkpoint(out, args.resume)
                times = _validate.integer("times", args.times, 2)
                problem, weights, head_given, file = simulation.start(tuple(args.observables))
                defaults = {field.name: field.default for field in fields(simulation)}
                _command.refuse_idle(simulation.idle, simulation, defaults)
                schedule = simulation.schedule
                _validate.fraction("delta", args.delta)
                wanted = schedule.default_times(min(times, simulation.steps + 1))
                named = _named(args.data, file)
                _talk(args, f"{report.problem_line(problem, named)}\n{schedule}")
                failure = None
                try:
                    zeroth = zeroth_order(
                        problem,
                        weights,
                        schedule,
                        dt=args.dt,
                        times=wanted,
                        observables=[
                            n for n in args.observables if n in OBSERVABLES and OBSERVABLES[n].neurons
                        ],
                        precision=args.precision,
                        reduce=args.reduce,
                    )
                except Diverged as error:
                    zeroth, failure = error.run, f"the zeroth-order path: {error}"
                first_step = time.perf_counter()
                try:
                    run = euler_maruyama(
                        problem,
                        weights,
                        schedule,
                        dt=args.dt,
                        paths=args.paths,
                        rng=args.seed,
                        times=wanted,
                        observables=args.observables,
                        precision=args.precision,
                        reduce=args.reduce,
                        threads=args.threads,
                        device=args.device,
                        checkpoint=checkpoint,
                        keep=True,
                        progress=not args.quiet,
                    )
                except Diverged as error:
                    run, failure = error.run, str(error)
            except (ValueError, TypeError, MemoryError, ImportError, store.StoreError) as error:
                command.error(_command.as_option(command, str(error), {"rng": "seed"}))
            seconds = time.perf_counter() - first_step
            run.attrs["command"] = json.dumps(vars(args))
            with shielded():
                try:
                    saved, failure_to_save = _command.save(run, out)
                except store.StoreError as error:
                    return _command.fail(
                        command,
                        f"{error}; the run is kept in {checkpoint}: once that is fixed, --resume saves it",
                    )
                store.remove_checkpoint(checkpoint)
            subject = report.Subject(
                problem,
                weights,
                schedule,
                run,
                zeroth,
                data=named,
                head=_head(args, head_given),
                solver=f"Euler-Maruyama, dt {args.dt:g}, {simulation.steps} steps, {args.paths} paths, "
                f"{args.precision} precision, seed {args.seed}",
                simulated=json.loads(run.attrs["config"])["simulated"],
            )
            refused = None
            if args.bounds:
                try:
                    subject.theory = _theory(args, problem, weights, schedule, run.time.values)
                except (ValueError, ArithmeticError) as error:
                    refused = f"none: {error}"
            said = report.build(subject)
            if refused:
                said["bounds"] = refused
            if file is not None:
                said["file"] = _file(file)
            said["end"] = schedule.duration
            said["seconds"] = {"to first step": first_step - started, "simulation": seconds}
            said["path steps per second"] = args.paths * simulation.steps / seconds
            said["saved"] = str(saved)
            said["failure"] = failure or failure_to_save
            if plot is not None:
                try:
                    report.draw(subject, plot)
                    said["plot"] = str(plot)
                except OSError as error:
                    said["failure"] = said["failure"] or f"plot {plot} could not be written: {error}"
            print(json.dumps(said, indent=2, allow_nan=False) if args.json else report.text(said))
            return _command.fail(command, said["failure"]) if said["failure"] else 0
        except KeyboardInterrupt as error:
            # a solver says where it was
            kept = [str(path) for path in (out, checkpoint) if path is not None and path.exists()]
            said = str(error) or f"interrupted; there is {' and '.join(kept) or 'nothing to keep yet'}"
            print(f"\n{said}", file=sys.stderr)
            if checkpoint is not None and checkpoint.exists():
                print("The same command with --resume goes on from there, to the same bits.", file=sys.stderr)
            return status()


# --- what was asked for ----------------------------------------------------------------------


def _default_out(args: argparse.Namespace, simulation: Simulation) -> str:
    """A name that tells runs apart: what was asked for, and a digest of all of it."""
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
            f"out has an unfinished run, {checkpoint}: go on with --resume, or remove that file to start anew"
        )
    if resume and not checkpoint.exists():
        raise ValueError(f"resume needs an unfinished run, but there is no {checkpoint}")
    return checkpoint


def _simulation(args: argparse.Namespace) -> Simulation:
    from langevin import _validate
    from langevin.simulation import Simulation

    clip = None if str(args.clip).lower() == "none" else _validate.positive("clip", args.clip)
    asked = {field.name: getattr(args, field.name) for field in fields(Simulation)}
    return Simulation(**asked | {"clip": clip, "classes": tuple(args.classes)})


# --- what comes of it ------------------------------------------------------------------------


def _named(data: str, file: FileProblem | None) -> str:
    """The data, and what their labels mean."""
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
    from langevin.report import Theory

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
    _streams.run(main)
