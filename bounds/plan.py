"""The command ``python -m bounds.plan``: how much of a budget should go to linear probing."""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from langevin.support import options, signals, streams
from langevin.support.command import as_option, fail, missing, plot_target

if TYPE_CHECKING:
    from empirical.planning.curve import PlanCurve
    from empirical.planning.share_plan import SharePlan

PROGRAM = "python -m bounds.plan"
# where the function calls an argument otherwise
NAMES = {"rng": "seed", "expected_batch": "batch", "low": "sweep", "high": "sweep", "parameter": "sweep"}


@dataclass(frozen=True)
class PlanOptions:
    """Options of ``python -m bounds.plan`` besides the settings of a plan.

    Parameters
    ----------
    features : str or None
        .npz with X (frozen features), y (labels of two or more classes), optionally v (head), W (a layer, X
        being its inputs), X_test, y_test, X_source, y_source (features without the shift); .csv or .parquet,
        features in all columns but one. Or give ``data``.
    data : str or None
        Instead of a file: a task that `empirical.finetune` knows, with a public part. The plan extracts what
        it needs of its public images, by the body, which is pre-trained first.
    label : str
        Column of the labels in a .csv or .parquet file.
    data_are : {"public", "private"}
        Data that the plan is read off; private: X_test and y_test are, and --plan-epsilon pays for it.
    seed : int
        Seed of the split, heads, batches and noise.
    sweep : tuple of str or None
        Plan for values of epsilon, batch, steps or clip from LOW to HIGH, too.
    keep : str or None
        File that finished runs are added to and taken from: repeat an interrupted command to resume.
    out : str or None
        Save every simulated run, or those of --sweep as one plan each, to file.nc or folder.zarr.
    plot : str or None
        Draw accuracy and loss over the share, or accuracy over the values of --sweep.
    verbose : bool
        Report theory, noise, every share and notes, too.
    json : bool
        Print the whole report as JSON.
    quiet : bool
        Show no progress bar.
    """

    features: str | None = field(default=None, metadata={"positional": True, "metavar": "FILE"})
    data: str | None = field(default=None, metadata={"metavar": "DATA"})
    label: str = field(default="y", metadata={"metavar": "COLUMN"})
    data_are: Literal["public", "private"] = "public"
    seed: int = 0
    sweep: tuple[str, str, str] | None = field(default=None, metadata={"metavar": ("NAME", "LOW", "HIGH")})
    keep: str | None = field(default=None, metadata={"metavar": "FILE"})
    out: str | None = field(default=None, metadata={"metavar": "FILE"})
    plot: str | None = field(default=None, metadata={"metavar": "FILE"})
    verbose: bool = False
    json: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class _Given:
    """What to plan for: arguments of `plan_share`, columns of a table, notes, and the command of a plan."""

    arrays: Mapping[str, Any]
    command: Callable[[SharePlan], str]
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


# of a task instead of a file
_TASK = "folder public_classes public_share size images"
_BODY = "body widths options weights pretrain epochs bodies"
_SHIFT = "rotation gain offset"


def parser() -> options.Parser:
    """Command line of the planner."""
    from empirical.data.shift import Shift
    from empirical.planning.settings import PlanSettings
    from empirical.studies.setting import Setting

    p = options.Parser(
        PROGRAM,
        "{FILE | --data DATA} --epsilon EPSILON [option ...]",
        description="How much of a privacy budget should go to linear probing before full fine-tuning, asked "
        "of frozen features: whether the theory's assumptions hold, what its theorems say, a simulation with "
        "noise, a recommended share and the DP-SGD that spends it.",
        epilog="The plan reads the data: on private ones that is a release, which only --plan-epsilon "
        "accounts for. Exit status: 0 done, 1 failed, 2 wrong usage or bad input, 130 or 143 interrupted.",
    )
    p.add("data", (PlanOptions, "features label data_are"), (PlanSettings, "samples activation"))
    p.add(
        "task",
        (PlanOptions, "data"),
        (Setting, _TASK),
        (Shift, _SHIFT),
        (Setting, _BODY),
        about="A task and a body instead of a file, as in empirical.finetune.",
    )
    p.add("budget", (PlanSettings, "epsilon delta clip steps batch"))
    p.add(
        "plan",
        (PlanSettings, "shares heads hedge draws resolution device theory plan_epsilon"),
        (PlanOptions, "seed sweep keep"),
    )
    p.add("output", (PlanOptions, "out plot verbose json quiet"))
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    keep = None
    with signals.interruptible() as status:
        try:
            command = parser()
            args, options_given = command.parse(argv)
            keep = args.keep
            from empirical.networks.weights import WeightsError
            from langevin.store import errors
            from langevin.store.files import check_target
            from langevin.sweeps.records import RecordsError

            try:
                _require_accounted(args)
                out = None if args.out is None else check_target(args.out)
                plot = None if args.plot is None else plot_target(args.plot)
                given = _given(args, options_given)
                plan, curve, warned = _planned(args, given)
            except (
                *(ValueError, TypeError, MemoryError),
                *(errors.StoreError, RecordsError, WeightsError),
            ) as error:
                command.error(as_option(command, str(error), NAMES))
            except ImportError as error:
                command.error(missing(error))
            except ArithmeticError as error:
                return fail(command, str(error))
            failure = _save(args, plan, curve, out, plot)
            _print(args, plan, curve, given, warned, failure)
            return 0 if failure is None else fail(command, failure)
        except KeyboardInterrupt:
            kept = "nothing is kept" if keep is None else f"finished runs are in {keep}: repeat the command"
            print(f"\ninterrupted; {kept}", file=sys.stderr)
            return status()


def _require_accounted(args: argparse.Namespace) -> None:
    """Refuse private data that no budget pays for."""
    if args.data_are == "private" and args.plan_epsilon is None:
        raise ValueError(
            "data_are must be public without plan_epsilon, got private: a plan read off private data is a "
            "release; plan on public data that resemble them, with --samples, or give --plan-epsilon and "
            "private X_test and y_test"
        )


def _given(args: argparse.Namespace, named: set[str]) -> _Given:
    """What to plan for: a file, or a task and a body."""
    if (args.features is None) == (args.data is None):
        got = "neither" if args.data is None else "both"
        raise ValueError(
            f"give FILE or --data, got {got}: a file of features, or a task to extract them from"
        )
    return _of_file(args, named) if args.data is None else _of_task(args, named)


def _of_file(args: argparse.Namespace, named: set[str]) -> _Given:
    from empirical.data.shift import Shift
    from empirical.planning.inputs import require_informative
    from empirical.studies.setting import Setting
    from langevin.data import files

    idle = sorted(named & {*options.names(Setting, f"{_TASK} {_BODY}"), *options.names(Shift, _SHIFT)})
    if idle:
        raise ValueError(f"{options.flag(idle[0])} has no effect with a file of features; remove it")
    file = files.read(args.features, args.label)
    if file.features:
        require_informative(file.arrays["X"], file.features)

    def command(plan: SharePlan) -> str:
        return plan.command_for(args.features, args.label)

    return _Given(file.arrays, command, file.features, tuple(file.notes))


def _of_task(args: argparse.Namespace, named: set[str]) -> _Given:
    from empirical.data.shift import Shift
    from empirical.planning.extract import extract
    from empirical.studies.setting import Setting

    fields = options.values(Setting, args)
    # what measures features there is the file here
    del fields["features"]
    setting = Setting(**fields, shift=Shift(**options.values(Shift, args)))
    found = extract(setting, args.seed, private=args.plan_epsilon is not None)
    arrays = {"samples": found.samples, **found.arrays}
    arrays = {name: value for name, value in arrays.items() if getattr(args, name, None) is None}
    about = [*options.names(Setting, f"data {_TASK} {_BODY} device"), *options.names(Shift, _SHIFT), "seed"]
    words = options.words(args, [name for name in about if name in named])
    return _Given(arrays, lambda plan: plan.command_with(words), notes=found.notes)


def _planned(args: argparse.Namespace, given: _Given) -> tuple[SharePlan, PlanCurve | None, list[str]]:
    """The plan, those of the sweep, and what was warned of on the way."""
    from empirical.planning.curve import SWEPT, plan_curve
    from empirical.planning.plan import plan_share
    from empirical.planning.settings import PlanSettings
    from langevin.support import validate

    settings: dict[str, Any] = {**options.values(PlanSettings, args), "rng": args.seed, "keep": args.keep}
    settings |= given.arrays
    swept: dict[str, Any] | None = None
    if args.sweep is not None:
        name, low, high = args.sweep
        if args.plan_epsilon is not None:
            raise ValueError("sweep must be left out with plan_epsilon, which pays for one choice")
        swept = {"parameter": validate.choice("sweep", name, SWEPT)}
        swept |= {"low": _number("low", low), "high": _number("high", high)}
    with warnings.catch_warnings(record=True) as caught, _bar(args.quiet) as progress:
        warnings.simplefilter("always", UserWarning)
        plan = plan_share(**settings, progress=progress)
        curve = None
        if swept is not None:
            curve = plan_curve(**settings | {"theory": False}, **swept, progress=progress)
    said = (str(warning.message) for warning in caught if warning.category is UserWarning)
    return plan, curve, list(dict.fromkeys(said))


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, got {text!r}") from None


def _save(
    args: argparse.Namespace,
    plan: SharePlan,
    curve: PlanCurve | None,
    out: Path | None,
    plot: Path | None,
) -> str | None:
    """Save the runs and draw the plan or the sweep, where asked; return what failed."""
    from empirical.planning import curve as curves
    from empirical.planning import figure
    from empirical.planning.report import privacy
    from langevin.store import errors
    from langevin.store.files import save

    try:
        if out is not None:
            run = plan.to_dataset() if curve is None else curve.to_dataset()
            run.attrs |= {"command": json.dumps(vars(args)), "privacy of the plan": privacy(plan)}
            save(run, out)
        if plot is not None:
            figure.draw(plan, plot) if curve is None else curves.draw(curve, plot)
    except (errors.StoreError, OSError) as error:
        return str(error)
    return None


def _print(
    args: argparse.Namespace,
    plan: SharePlan,
    curve: PlanCurve | None,
    given: _Given,
    warned: list[str],
    failure: str | None,
) -> None:
    from empirical.planning.report import privacy, text

    fine_tune, cost, warned = given.command(plan), privacy(plan), [*warned, *given.notes]
    if args.json:
        report = plan.to_dict() | {"command": fine_tune, "privacy of the plan": cost}
        report |= {"features": list(given.columns), "warnings": warned, "failure": failure}
        report |= {} if curve is None else {"sweep": curve.to_dict()}
        print(json.dumps(_plain(report), indent=2, allow_nan=False))
        return
    print(text(plan, fine_tune, on_file=args.data is None, verbose=args.verbose))
    if curve is not None:
        for place, line in enumerate(curve.table().text().splitlines()):
            print(f"{'' if place else 'sweep':14}{line}")
    print(f"{'privacy':14}{cost}", *(f"{'warning':14}{line}" for line in warned), sep="\n")
    if not args.verbose:
        print(f"{'':14}--verbose: theory, noise, every share and notes; --json: all of it")


def _plain(value: Any) -> Any:
    """Replace NaN by null, for JSON."""
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
    streams.run(main)
