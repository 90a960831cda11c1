"""The command ``python -m langevin.simulate``: one run, its report, its file, its figure."""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import xarray as xr

    from langevin.problem import GramWeights, Problem, Weights
    from langevin.report import Theory
    from langevin.schedule import Schedule

EXIT_FAILED = 1
# samples x width x dimensions up to which the report integrates the flow for its bounds
_SMALL = 1_000_000
# entries of W from which a linear net's is known by its Gram matrix alone, unless neurons are asked for
_LARGE = 2**18


def parser() -> argparse.ArgumentParser:
    """Command line of the simulator."""
    p = argparse.ArgumentParser(
        prog="python -m langevin.simulate",
        usage="python -m langevin.simulate [option ...]",
        description="Simulate DP fine-tuning of a two-layer network as clipped Langevin diffusion, beside "
        "its zeroth-order approximation, and report what happens to loss, features and head.",
        epilog="Times are diffusion times: with full-batch DP-SGD, dt is the learning rate and time is steps "
        "times learning rate. Exit status: 0 done, 1 failed or diverged (what was computed is saved), "
        "2 wrong usage, 130 or 143 interrupted (--resume goes on).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    data = p.add_argument_group("problem")
    data.add_argument(
        "--data",
        default="separable",
        metavar="DATA",
        help="separable (Assumption 3.1), teacher (regression on a linear teacher), digits (two of "
        "scikit-learn's digits, features pre-trained on the other eight), or a file.npz with X, y and "
        "optionally W, v, X_test, y_test",
    )
    data.add_argument("--samples", type=int, default=64, help="training samples of synthetic data")
    data.add_argument("--dim", type=int, default=16, help="input dimension of synthetic data")
    data.add_argument(
        "--spread", type=float, default=0.2, help="spread within a class of separable data, 0 is collapsed"
    )
    data.add_argument("--classes", type=int, nargs=2, default=[3, 8], help="the two private digits")
    data.add_argument("--activation", choices=["relu", "linear"], default="relu", help="activation")
    data.add_argument(
        "--loss", choices=["logistic", "square"], help="loss; logistic, or square for regression (default)"
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
    command = parser()
    args = command.parse_args(argv)
    started = time.perf_counter()

    from langevin import _validate, report, store
    from langevin._engine import shielded
    from langevin.observables import OBSERVABLES
    from langevin.solvers import Diverged, Interrupted, euler_maruyama, zeroth_order

    received: list[int] = []
    out = checkpoint = None

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        try:
            out = store.check_target(args.out or _default_out(args))
            plot = None if args.plot is None else _plot_target(args.plot, out)
            checkpoint = _checkpoint(out, args.resume)
            times = _validate.integer("times", args.times, 2)
            problem, weights, head_given = _problem_and_weights(args)
            schedule = _schedule(args)
            _validate.fraction("delta", args.delta)
            wanted = schedule.default_times(min(times, _steps(schedule, args.dt) + 1))
            _talk(args, f"{report.problem_line(problem, args.data)}\n{schedule}")
            failure = None
            try:
                zeroth = zeroth_order(
                    problem,
                    weights,
                    schedule,
                    dt=args.dt,
                    times=wanted,
                    observables=[n for n in args.observables if n in OBSERVABLES and OBSERVABLES[n].neurons],
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
                    progress=not args.quiet,
                )
            except Diverged as error:
                run, failure = error.run, str(error)
        except (ValueError, TypeError, MemoryError, store.StoreError) as error:
            command.error(_as_option(str(error)))
        seconds = time.perf_counter() - first_step
        run.attrs["command"] = json.dumps(vars(args))
        with shielded():
            saved, failure_to_save = _save(run, out)
        subject = report.Subject(
            problem,
            weights,
            schedule,
            run,
            zeroth,
            data=args.data,
            head=_head(args, head_given),
            solver=f"Euler-Maruyama, dt {args.dt:g}, {_steps(schedule, args.dt)} steps, {args.paths} paths, "
            f"{args.precision} precision, seed {args.seed}",
            simulated=json.loads(run.attrs["config"])["simulated"],
            theory=_theory(args, problem, weights, schedule, run.time.values) if args.bounds else None,
        )
        said = report.build(subject)
        said["end"] = schedule.duration
        said["seconds"] = {"to first step": first_step - started, "simulation": seconds}
        said["path steps per second"] = args.paths * _steps(schedule, args.dt) / seconds
        said["saved"] = str(saved)
        said["failure"] = failure or failure_to_save
        if plot is not None:
            try:
                report.draw(subject, plot)
                said["plot"] = str(plot)
            except OSError as error:
                said["failure"] = said["failure"] or f"plot {plot} could not be written: {error}"
        print(json.dumps(said, indent=2, allow_nan=False) if args.json else report.text(said))
        return _fail(said["failure"]) if said["failure"] else 0
    except Interrupted as error:
        print(f"\n{error}", file=sys.stderr)
        if checkpoint is not None and checkpoint.exists():
            print("The same command with --resume goes on from there, to the same bits.", file=sys.stderr)
        return 128 + (received[0] if received else signal.SIGINT)
    except KeyboardInterrupt:
        kept = [str(path) for path in (out, checkpoint) if path is not None and path.exists()]
        print(f"\ninterrupted; there is {' and '.join(kept) or 'nothing to keep yet'}", file=sys.stderr)
        return 128 + (received[0] if received else signal.SIGINT)


# --- what was asked for ----------------------------------------------------------------------


def _default_out(args: argparse.Namespace) -> str:
    """A name that tells runs apart: what was asked for, and a digest of all of it."""
    ignored = ("out", "plot", "json", "quiet", "resume", "threads", "bounds", "delta")
    asked = {name: value for name, value in vars(args).items() if name not in ignored}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:6]
    data = Path(args.data).stem
    return f"runs/{args.method}-{data}-w{args.width}-sigma{args.sigma:g}-seed{args.seed}-{digest}.nc"


def _plot_target(asked: str, out: Path) -> Path:
    target = Path(asked) if asked else out.with_suffix(".png")
    if target.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"plot must end in .png, .pdf or .svg, got {asked!r}")
    if not target.parent.is_dir():
        raise ValueError(f"plot must lie in an existing folder, got {asked!r}")
    return target


def _checkpoint(out: Path, resume: bool) -> Path:
    checkpoint = out.with_name(out.name + ".unfinished")
    if checkpoint.exists() and not resume:
        raise ValueError(
            f"out has an unfinished run, {checkpoint}: go on with --resume, or remove that file to start anew"
        )
    if resume and not checkpoint.exists():
        raise ValueError(f"resume needs an unfinished run, but there is no {checkpoint}")
    return checkpoint


def _problem_and_weights(args: argparse.Namespace) -> tuple[Problem, Weights, bool]:
    """Problem and weights, and whether the head is the user's own."""
    from langevin import data, initial
    from langevin.observables import OBSERVABLES
    from langevin.problem import Weights

    square = args.data == "teacher"
    loss = args.loss or ("square" if square else "logistic")
    if square and loss != "square":
        raise ValueError(f"loss must be 'square' with --data teacher, got {loss!r}")
    synthetic = args.data in ("separable", "teacher")
    collapsed = args.features == "collapsed" or (
        args.features is None and args.data == "separable" and args.activation == "relu"
    )
    if args.features is not None and not synthetic:
        raise ValueError(f"features must be left out with --data {args.data}, got {args.features!r}")
    neurons = args.reduce in ("none", "span") or any(
        name in OBSERVABLES and OBSERVABLES[name].neurons for name in args.observables
    )
    large = args.width * args.dim > _LARGE and not neurons
    by_gram = synthetic and not collapsed and args.activation == "linear" and large
    if not by_gram and not args.data.endswith(".npz"):
        _check_width(args)
    W = v = None
    if args.data == "separable":
        problem = data.orthogonally_separable(
            args.samples,
            args.dim,
            spread=args.spread,
            activation=args.activation,
            loss=loss,
            test_samples=args.samples,
            rng=args.seed,
        )
    elif args.data == "teacher":
        problem = data.linear_teacher(
            args.samples, args.dim, activation=args.activation, test_samples=args.samples, rng=args.seed
        )
    elif args.data == "digits":
        problem, start = data.digits(
            tuple(args.classes), args.width, activation=args.activation, loss=loss, rng=args.seed
        )
        W = start.W
    elif args.data.endswith(".npz"):
        problem, W, v = data.from_npz(args.data, activation=args.activation, loss=loss)
    else:
        raise ValueError(f"data must be separable, teacher, digits or a file.npz, got {args.data!r}")
    if by_gram:
        return problem, _gram_weights(args, problem), False
    given = v is not None
    if W is None and collapsed:
        W = initial.collapsed_features(problem, args.width, rng=args.seed).W
    elif W is None:
        width = args.width if v is None else len(v)
        W = initial.gaussian_features(width, problem.dim, rng=args.seed)
    if v is None:
        if args.head == "gaussian":
            v = initial.gaussian_head(len(W), args.head_scale, rng=args.seed)
        elif args.head == "zero":
            v = initial.zero_head(len(W))
        else:
            v = initial.prototype_head(problem, W, args.head_scale)
    return problem, Weights(W, v), given


def _check_width(args: argparse.Namespace) -> None:
    """Refuse weights of single neurons that do not fit into memory."""
    from langevin import _validate

    width = _validate.integer("width", args.width, 1)
    _validate.memory(
        4.0 * 8 * width * _validate.integer("dim", args.dim, 1),
        f"width={width} with single neurons",
        "take fewer, or --activation linear with Gaussian features, which knows no single ones",
    )


def _gram_weights(args: argparse.Namespace, problem: Problem) -> GramWeights:
    from langevin import initial
    from langevin.problem import GramWeights

    weights = initial.gaussian_gram(problem, args.width, head_scale=args.head_scale, rng=args.seed)
    if args.head == "zero":
        return GramWeights(weights.W, initial.zero_head(len(weights.W)), args.width)
    if args.head == "prototype":
        scale = args.width**-0.5 if args.head_scale is None else args.head_scale
        # a root mean square over fewer neurons of the same norm
        v = initial.prototype_head(problem, weights.W, scale * (args.width / len(weights.W)) ** 0.5)
        return GramWeights(weights.W, v, args.width)
    return weights


def _schedule(args: argparse.Namespace) -> Schedule:
    from langevin import _validate
    from langevin.schedule import Schedule

    clip = None if str(args.clip).lower() == "none" else _validate.positive("clip", args.clip)
    time_, share = _validate.positive("time", args.time), _validate.fraction("lp_share", args.lp_share)
    dt = _validate.positive("dt", args.dt)
    rest: dict[str, Any] = dict(
        sigma=args.sigma, clip=clip, clipping=args.clipping, stabiliser=args.stabiliser
    )
    if dt > time_:
        raise ValueError(f"dt must be at most the time, got {dt:g} for a time of {time_:g}")
    # whole steps, so that the change falls on one
    steps = round(time_ / dt)
    if args.method == "lp":
        return Schedule.lp(time=steps * dt, **rest)
    if args.method == "fft":
        return Schedule.fft(time=steps * dt, **rest)
    lp_steps = round(share * steps)
    if (share > 0 and lp_steps == 0) or (share < 1 and lp_steps == steps):
        raise ValueError(
            f"lp_share must leave a step to each phase, got {share:g} of {steps} steps: take a smaller dt"
        )
    return Schedule.lp_fft(lp_time=lp_steps * dt, fft_time=(steps - lp_steps) * dt, **rest)


def _as_option(message: str) -> str:
    """Name the option in place of the argument that a message starts with."""
    name, _, rest = message.partition(" ")
    name = "seed" if name == "rng" else name
    known = {action.dest for action in parser()._actions}
    return f"--{name.replace('_', '-')} {rest}" if name in known else message


# --- what comes of it ------------------------------------------------------------------------


def _steps(schedule: Schedule, dt: float) -> int:
    return sum(round(phase.time / dt) for phase in schedule)


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


def _fail(message: str) -> int:
    print(f"python -m langevin.simulate: error: {message}", file=sys.stderr)
    return EXIT_FAILED


def _save(run: xr.Dataset, out: Path) -> tuple[Path, str | None]:
    """Save the run; where that fails, in the folder for temporary files rather than not at all."""
    from langevin import store

    try:
        return store.save(run, out), None
    except store.StoreError as error:
        rescue = Path(tempfile.mkdtemp(prefix="langevin-")) / out.name
        return store.save(run, rescue), f"{error}; the run is kept in {rescue}"


if __name__ == "__main__":
    sys.exit(main())
