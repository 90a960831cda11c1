"""The command ``python -m langevin.simulate``: one run, its report, its file, its figure."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import xarray as xr

    from langevin.problem import Problem, Weights
    from langevin.schedule import Schedule

EXIT_FAILED, EXIT_USAGE = 1, 2


def parser() -> argparse.ArgumentParser:
    """Command line of the simulator."""
    p = argparse.ArgumentParser(
        prog="python -m langevin.simulate",
        usage="python -m langevin.simulate [option ...]",
        description="Simulate DP fine-tuning of a two-layer network as clipped Langevin diffusion, beside its "
        "zeroth-order approximation, and report what happens to loss, features and head.",
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
    net.add_argument("--width", type=int, default=512, help="neurons; a file's W has its own")
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
    run.add_argument("--precision", choices=["double", "single"], default="double", help="of the simulation")
    run.add_argument("--reduce", choices=["auto", "none"], default="auto", help="simulate in the data's span")
    run.add_argument("--times", type=int, default=101, help="recorded times, at most one a step")
    run.add_argument(
        "--observables",
        nargs="+",
        default=[],
        metavar="NAME",
        help="beside the default ones: alignment preactivation head_alignment test_accuracy knn_accuracy",
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
    out.add_argument("--json", action="store_true", help="print the report as JSON")
    out.add_argument("--quiet", action="store_true", help="no progress bar, no talk on stderr")
    out.add_argument("--resume", action="store_true", help="go on with an interrupted run, to the same bits")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    command = parser()
    args = command.parse_args(argv)
    started = time.perf_counter()

    from langevin import _validate, store
    from langevin.solvers import Diverged, Interrupted, euler_maruyama, zeroth_order

    received: list[int] = []

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
            problem, weights = _problem_and_weights(args)
            schedule = _schedule(args)
            wanted = schedule.default_times(min(times, _steps(schedule, args.dt) + 1))
            _talk(args, f"{_problem_line(args, problem)}\n{schedule}")
            zeroth = zeroth_order(
                problem,
                weights,
                schedule,
                dt=args.dt,
                times=wanted,
                precision=args.precision,
                reduce=args.reduce,
            )
            first_step = time.perf_counter()
            failure = None
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
                    checkpoint=checkpoint,
                    progress=not args.quiet,
                )
            except Diverged as error:
                assert error.run is not None
                run, failure = error.run, str(error)
        except Diverged as error:
            return _fail(f"the zeroth-order path: {error}")
        except (ValueError, TypeError, MemoryError, store.StoreError) as error:
            command.error(_as_option(str(error)))
        seconds = time.perf_counter() - first_step
        run.attrs["command"] = json.dumps(vars(args))
        saved, problem_saving = _save(run, out)
        report = _report(args, problem, weights, schedule, run, zeroth)
        report["seconds"] = {"to first step": first_step - started, "simulation": seconds}
        report["throughput"] = {
            "path steps per second": run.sizes["path"] * _steps(schedule, args.dt) / seconds
        }
        report["saved"] = str(saved)
        report["failure"] = failure or problem_saving
        if plot is not None:
            try:
                _plot(run, zeroth, schedule, plot)
                report["plot"] = str(plot)
            except OSError as error:
                report["failure"] = report["failure"] or f"plot {plot} could not be written: {error}"
        print(json.dumps(report, indent=2) if args.json else _text(report))
        return _fail(report["failure"]) if report["failure"] else 0
    except Interrupted as error:
        print(
            f"\n{error}.\nThe same command with --resume goes on from there, to the same bits.",
            file=sys.stderr,
        )
        return 128 + (received[0] if received else signal.SIGINT)
    except KeyboardInterrupt:
        print("\ninterrupted before the first step: nothing to keep", file=sys.stderr)
        return 128 + (received[0] if received else signal.SIGINT)


# --- what was asked for ----------------------------------------------------------------------


def _default_out(args: argparse.Namespace) -> str:
    """A name that tells runs apart: what was asked for, and a digest of all of it."""
    ignored = ("out", "plot", "json", "quiet", "resume", "threads")
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


def _problem_and_weights(args: argparse.Namespace) -> tuple[Problem, Weights]:
    from langevin import data, initial
    from langevin.problem import Weights

    square = args.data == "teacher"
    loss = args.loss or ("square" if square else "logistic")
    if square and loss != "square":
        raise ValueError(f"loss must be 'square' with --data teacher, got {loss!r}")
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
        W = initial.collapsed_features(problem, args.width, rng=args.seed + 1).W
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
    if W is None:
        width = args.width if v is None else len(v)
        W = initial.gaussian_features(width, problem.dim, rng=args.seed + 1)
    if v is None:
        if args.head == "gaussian":
            v = initial.gaussian_head(len(W), args.head_scale, rng=args.seed + 2)
        elif args.head == "zero":
            v = initial.zero_head(len(W))
        else:
            v = initial.prototype_head(problem, W, args.head_scale)
    return problem, Weights(W, v)


def _schedule(args: argparse.Namespace) -> Schedule:
    from langevin import _validate
    from langevin.schedule import Schedule

    clip = None if str(args.clip).lower() == "none" else _validate.positive("clip", args.clip)
    time_, share = _validate.positive("time", args.time), _validate.fraction("lp_share", args.lp_share)
    dt = _validate.positive("dt", args.dt)
    rest: dict[str, Any] = dict(
        sigma=args.sigma, clip=clip, clipping=args.clipping, stabiliser=args.stabiliser
    )
    if args.method == "lp":
        return Schedule.lp(time=time_, **rest)
    if args.method == "fft":
        return Schedule.fft(time=time_, **rest)
    # the change has to fall on a step
    lp_time = round(share * time_ / dt) * dt
    return Schedule.lp_fft(lp_time=lp_time, fft_time=max(time_ - lp_time, 0.0), **rest)


def _as_option(message: str) -> str:
    """Name the option in place of the argument that a message starts with."""
    name, _, rest = message.partition(" ")
    known = {action.dest for action in parser()._actions}
    return f"--{name.replace('_', '-')} {rest}" if name in known else message


# --- report ----------------------------------------------------------------------------------


def _steps(schedule: Schedule, dt: float) -> int:
    return sum(round(phase.time / dt) for phase in schedule)


def _problem_line(args: argparse.Namespace, problem: Problem) -> str:
    return (
        f"{problem.samples} samples in {problem.dim} dimensions ({args.data}), {problem.activation}, "
        f"{problem.loss} loss"
    )


def _mean(values: Any) -> dict[str, float | None]:
    """Mean and standard error over paths that did not diverge."""
    import numpy as np

    finite = np.asarray(values)[np.isfinite(values)]
    if finite.size == 0:
        return {"mean": None, "standard error": None}
    error = float(finite.std(ddof=1) / finite.size**0.5) if finite.size > 1 else None
    return {"mean": float(finite.mean()), "standard error": error}


def _report(
    args: argparse.Namespace,
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    run: xr.Dataset,
    zeroth: xr.Dataset,
) -> dict[str, Any]:
    """Everything that the report says, as plain data."""
    from bounds import approximation_error

    config = json.loads(run.attrs["config"])
    end = {"time": -1}
    report: dict[str, Any] = {
        "problem": f"{_problem_line(args, problem)}; simulated in {config['simulated_dim']} dimensions",
        "network": f"width {weights.width}, {_head(args)}",
        "schedule": str(schedule),
        "solver": f"Euler-Maruyama, dt {args.dt:g}, {_steps(schedule, args.dt)} steps, {run.sizes['path']} paths, "
        f"{args.precision} precision, seed {args.seed}",
        "loss": {
            "start": float(zeroth.loss[0]),
            "end": _mean(run.loss.isel(end)),
            "zeroth order at the end": float(zeroth.loss.isel(end)),
        },
    }
    distance: dict[str, Any] = {"measured": _mean(run.squared_distance.isel(end))}
    for name, kind in (("Theorem 2.2 of the paper", "paper"), ("sharper in LP phases (1a, new)", "monotone")):
        band = approximation_error(problem, weights, schedule, [schedule.duration], kind=kind)
        distance[name] = float(band.upper[0]) if band.valid[0] else f"does not apply: {band.reason}"
    report["squared distance to the zeroth-order path"] = distance
    for name in ("accuracy", "test_accuracy", "knn_accuracy"):
        if name in run:
            report[name.replace("_", " ")] = _mean(run[name].isel(end))
    if problem.classification:
        report["neurons"] = {
            "width": weights.width,
            "misaligned at the start": round(float(zeroth.misaligned[0]) * weights.width),
            "zeroth order": _neurons(zeroth.misaligned, zeroth.distorted, zeroth.dead, weights.width),
            "with noise": _neurons(
                run.misaligned.mean("path"), run.distorted.mean("path"), run.dead.mean("path"), weights.width
            ),
        }
    return report


def _neurons(misaligned: Any, distorted: Any, dead: Any, width: int) -> dict[str, Any]:
    """Counts of neurons along one path, or on average over paths."""
    times = misaligned.time.values
    left = misaligned.values > 0
    aligned = None if left[-1] else float(times[0] if not left.any() else times[left.nonzero()[0][-1] + 1])
    return {
        "misaligned at the end": float(misaligned[-1]) * width,
        "distorted at most": float(distorted.max()) * width,
        "distorted at the end": float(distorted[-1]) * width,
        "dead at the end": float(dead[-1]) * width,
        "all heads aligned from time": aligned,
    }


def _head(args: argparse.Namespace) -> str:
    scale = "1/sqrt(width)" if args.head_scale is None else f"{args.head_scale:g}"
    return "zero head" if args.head == "zero" else f"{args.head} head of scale {scale}"


def _text(report: dict[str, Any]) -> str:
    def value(x: Any) -> str:
        if isinstance(x, dict):
            if x["mean"] is None:
                return "not finite"
            error = x["standard error"]
            return f"{x['mean']:.4g}" + ("" if error is None else f" +- {error:.2g}")
        return x if isinstance(x, str) else f"{x:.4g}"

    loss = report["loss"]
    distance = dict(report["squared distance to the zeroth-order path"])
    lines = [(name, report[name]) for name in ("problem", "network", "schedule", "solver")]
    lines.append(
        (
            "loss",
            f"{loss['start']:.4g} at the start, {value(loss['end'])} at the end; "
            f"zeroth order {loss['zeroth order at the end']:.4g}",
        )
    )
    lines += [(name, value(report[name])) for name in report if name.endswith("accuracy")]
    lines.append(("E|theta-theta~|^2", f"{value(distance.pop('measured'))} at the end, measured"))
    lines += [
        ("", f"{value(bound)}: bound, {name}" if not isinstance(bound, str) else f"{name}: {bound}")
        for name, bound in distance.items()
    ]
    if "neurons" in report:
        n = report["neurons"]
        lines.append(("neurons", f"{n['misaligned at the start']} of {n['width']} misaligned at the start"))
        for name in ("zeroth order", "with noise"):
            c = n[name]
            aligned = c["all heads aligned from time"]
            lines.append(
                (
                    "",
                    f"{name}: {c['misaligned at the end']:.4g} misaligned at the end, distorted at most "
                    f"{c['distorted at most']:.4g}, at the end {c['distorted at the end']:.4g}; "
                    f"{c['dead at the end']:.4g} dead; "
                    + (
                        "some head never aligned"
                        if aligned is None
                        else f"last head aligned by time {aligned:.4g}"
                    ),
                )
            )
    lines.append(
        (
            "speed",
            f"{report['throughput']['path steps per second']:.3g} path steps/s, {report['seconds']['simulation']:.2f} s; "
            f"first step after {report['seconds']['to first step']:.2f} s",
        )
    )
    lines.append(("saved", report["saved"]))
    if "plot" in report:
        lines.append(("plot", report["plot"]))
    return "\n".join(f"{name:<18} {text}".rstrip() for name, text in lines)


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


# --- figure ----------------------------------------------------------------------------------


def _plot(run: xr.Dataset, zeroth: xr.Dataset, schedule: Schedule, path: Path) -> None:
    """Draw loss, distance and neurons over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shares = [name for name in ("misaligned", "distorted", "dead") if name in run]
    colours = {
        "noise": "#0072b2",
        "zeroth": "black",
        "misaligned": "#d55e00",
        "distorted": "#009e73",
        "dead": "#cc79a7",
    }
    figure, axes = plt.subplots(
        1, 2 + bool(shares), figsize=(3.6 * (2 + bool(shares)), 3), layout="constrained"
    )
    time_ = run.time.values

    def band(ax: Any, values: Any, colour: str, label: str) -> None:
        low, middle, high = values.quantile([0.05, 0.5, 0.95], "path").values
        ax.fill_between(time_, low, high, color=colour, alpha=0.25, linewidth=0)
        ax.plot(time_, middle, color=colour, label=label)

    band(axes[0], run.loss, colours["noise"], "diffusion: median, 90 % of paths")
    axes[0].plot(time_, zeroth.loss, color=colours["zeroth"], linestyle="--", label="zeroth order")
    axes[0].set(ylabel="training loss", yscale="log")
    band(axes[1], run.squared_distance, colours["noise"], "diffusion: median, 90 % of paths")
    axes[1].set(ylabel=r"$\|\theta_t-\tilde\theta_t\|^2$")
    for name in shares:
        axes[2].plot(time_, run[name].mean("path"), color=colours[name], label=f"{name}, diffusion")
        axes[2].plot(time_, zeroth[name], color=colours[name], linestyle="--", label=f"{name}, zeroth order")
    if shares:
        axes[2].set(ylabel="share of neurons", ylim=(-0.02, None))
    for ax in axes:
        ax.set_xlabel("diffusion time")
        for start in schedule.starts[1:]:
            ax.axvline(start, color="0.6", linewidth=0.8)
        ax.legend(fontsize=6.5, frameon=False)
    figure.suptitle(str(schedule), fontsize=8)
    # written under a temporary name: an old figure stays until the new one is whole
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    figure.savefig(temporary, dpi=200)
    os.replace(temporary, path)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
