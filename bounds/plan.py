"""The command ``python -m bounds.plan``: how much of a budget should go to linear probing."""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from langevin import _command, _streams

PROGRAM = "python -m bounds.plan"
# where the function calls an argument otherwise
NAMES = {"rng": "seed", "expected_batch": "batch"}


def parser() -> argparse.ArgumentParser:
    """Command line of the planner."""
    p = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} FILE --epsilon EPSILON [option ...]",
        description="How much of a privacy budget should go to linear probing before full fine-tuning, asked "
        "of frozen features: whether the theory's assumptions hold, what its theorems say, a simulation with "
        "noise, a recommended share and the DP-SGD that spends it.",
        epilog="The plan reads the data: on private ones that is a release which nothing here accounts "
        "for. Exit status: 0 done, 1 failed, 2 wrong usage or bad input, 130 or 143 interrupted.",
        formatter_class=_command.Help,
    )
    p.add_argument(
        "features",
        metavar="FILE",
        help=".npz with X (frozen features), y (labels of two or more classes), optionally v (head), W (a "
        "layer, X being its inputs), X_test, y_test; .csv or .parquet, features in all columns but one",
    )
    data = p.add_argument_group("data")
    data.add_argument("--label", default="y", metavar="COLUMN", help="labels of a .csv or .parquet file")
    data.add_argument(
        "--data-are", choices=["public", "private"], default="public", help="what the plan is read off"
    )
    data.add_argument(
        "--samples",
        type=int,
        default=argparse.SUPPRESS,
        help="private samples, unless as many as in the file",
    )
    data.add_argument(
        "--activation",
        choices=["relu", "linear"],
        default=argparse.SUPPRESS,
        help="of the layer: linear where there is no W and a feature is negative, else relu, unless given",
    )
    budget = p.add_argument_group("budget")
    budget.add_argument(
        "--epsilon", type=float, required=True, help="of the whole training", default=argparse.SUPPRESS
    )
    budget.add_argument(
        "--delta", type=float, default=1e-5, help="at which epsilon is meant, below 1/samples"
    )
    budget.add_argument("--clip", type=float, default=1.0, help="per-sample gradient norm threshold")
    budget.add_argument("--steps", type=int, default=100, help="of DP-SGD, both phases together")
    budget.add_argument(
        "--batch",
        type=float,
        default=argparse.SUPPRESS,
        help="expected size, a tenth of the samples unless given",
    )
    plan = p.add_argument_group("plan")
    plan.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=[0.0, 0.25, 0.5, 0.75, 1.0],
        metavar="SHARE",
        help="to compare",
    )
    plan.add_argument("--draws", type=int, default=128, help="most simulated runs for each share")
    plan.add_argument(
        "--resolution",
        type=float,
        default=0.005,
        help="of accuracy: no more draws once shares are compared to within this standard error",
    )
    plan.add_argument(
        "--theory", action=argparse.BooleanOptionalAction, default=True, help="what the theorems say"
    )
    plan.add_argument("--seed", type=int, default=0, help="of the split, heads, batches and noise")
    out = p.add_argument_group("output")
    out.add_argument(
        "--out", default=argparse.SUPPRESS, metavar="FILE", help="save every run to file.nc or folder.zarr"
    )
    out.add_argument(
        "--plot", default=argparse.SUPPRESS, metavar="FILE", help="draw accuracy and loss over the share"
    )
    out.add_argument(
        "--verbose", action="store_true", help="report theory, noise, every share and notes, too"
    )
    out.add_argument("--json", action="store_true", help="print the whole report as JSON")
    out.add_argument("--quiet", action="store_true", help="no progress bar")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    command = parser()
    args = command.parse_args(argv)
    given = vars(args)

    with _command.interruptible() as status:
        try:
            from empirical import plan_report
            from empirical.planner import plan_share
            from langevin import files, store

            try:
                out = store.check_target(given["out"]) if "out" in given else None
                plot = _command.plot_target(given["plot"]) if "plot" in given else None
                file = files.read(args.features, args.label)
                chosen = {name: given[name] for name in ("samples", "batch", "activation") if name in given}
                with warnings.catch_warnings(record=True) as caught, _bar(args.quiet) as progress:
                    warnings.simplefilter("always", UserWarning)
                    plan = plan_share(
                        **file.arrays,
                        epsilon=args.epsilon,
                        delta=args.delta,
                        clip=args.clip,
                        steps=args.steps,
                        shares=args.shares,
                        draws=args.draws,
                        resolution=args.resolution,
                        theory=args.theory,
                        rng=args.seed,
                        progress=progress,
                        **chosen,
                    )
            except (ValueError, TypeError, MemoryError, store.StoreError) as error:
                command.error(_command.as_option(command, str(error), NAMES))
            except ImportError as error:
                command.error(_command.missing(error))
            except ArithmeticError as error:
                return _command.fail(command, str(error))
            cost = plan_report.privacy(args.data_are == "private")
            fine_tune = plan.command_for(args.features, args.label)
            said = [str(warning.message) for warning in caught if warning.category is UserWarning]
            said += file.notes
            failure = None
            try:
                if out is not None:
                    run = plan.to_dataset()
                    run.attrs |= {"command": json.dumps(given), "privacy of the plan": cost}
                    store.save(run, out)
                if plot is not None:
                    plan_report.draw(plan, plot)
            except (store.StoreError, OSError) as error:
                failure = str(error)
            if args.json:
                report = plan.to_dict() | {"command": fine_tune, "privacy of the plan": cost}
                report |= {"features": list(file.features), "warnings": said, "failure": failure}
                print(json.dumps(_plain(report), indent=2, allow_nan=False))
            else:
                print(plan_report.text(plan, fine_tune, verbose=args.verbose))
                print(f"{'privacy':14}{cost}", *(f"{'warning':14}{line}" for line in said), sep="\n")
                if not args.verbose:
                    print(f"{'':14}--verbose: theory, noise, every share and notes; --json: all of it")
            return 0 if failure is None else _command.fail(command, failure)
        except KeyboardInterrupt:
            print("\ninterrupted; nothing is kept", file=sys.stderr)
            return status()


def _plain(value: Any) -> Any:
    """The same for JSON, which has no NaN: null."""
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[int], None]]:
    """Yield a counter of simulated runs, shown on a terminal only."""
    from tqdm import tqdm

    # their number is not known before the rates are
    with tqdm(unit="run", disable=True if quiet else None, leave=False) as bar:

        def advance(done: int) -> None:
            bar.update(done - bar.n)

        yield advance


if __name__ == "__main__":
    _streams.run(main)
