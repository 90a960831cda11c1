"""The command ``python -m empirical.finetune``: one private fine-tuning, or a grid of them, tuned fairly."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langevin import _command, _streams

if TYPE_CHECKING:
    import xarray as xr

    from empirical.arms import Grid
    from empirical.features import FeatureWatch
    from empirical.images import Images
    from empirical.recipe import Recipe
    from empirical.setting import Setting
    from empirical.train import FineTuning


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    advice = "nothing is kept"
    with _command.interruptible() as status:
        try:
            from empirical import finetune_options as options

            command = options.parser()
            args, is_grid = options.read(command, argv)
            try:
                return (_grid if is_grid else _run)(args, command)
            except _Refused as error:
                names = command.renamed | options.NAMES | ({"epsilon": "epsilons"} if is_grid else {})
                command.error(_command.as_option(command, str(error), names))
            except KeyboardInterrupt:
                advice = _advice(args, is_grid)
                raise
        except KeyboardInterrupt:
            print(f"\ninterrupted; {advice}", file=sys.stderr)
            return status()


def _advice(args: argparse.Namespace, is_grid: bool) -> str:
    """What there is after an interruption, and how to resume."""
    if is_grid:
        return f"what is finished is in {args.cells}: repeat the command to resume"
    if args.checkpoint and Path(args.checkpoint).exists():
        return f"kept in {args.checkpoint}: run the same command with --resume to continue"
    if args.checkpoint:
        return "there is nothing to keep yet"
    return "nothing is kept; with --checkpoint FILE it would be"


class _Refused(Exception):
    """What was asked for cannot be done."""


@contextlib.contextmanager
def _refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of what was asked for into `_Refused`."""
    try:
        yield
    except ImportError as error:
        raise _Refused(_command.missing(error)) from error
    except (ValueError, TypeError, MemoryError, *kinds) as error:
        raise _Refused(str(error)) from error


# --- one run ---------------------------------------------------------------------------------


def _run(args: argparse.Namespace, command: argparse.ArgumentParser) -> int:
    from empirical import finetune_options as options
    from langevin.store import StoreError

    if "LOCAL_RANK" in os.environ:  # one of several processes that torchrun started
        from empirical.parallel import join

        args.device = join(args.device)
    with _refusing(StoreError):
        setting, recipe = options.setting_of(args), options.recipe_of(args)
        options.refuse_idle(args, recipe)
        if args.resume and not args.checkpoint:
            raise ValueError("resume needs a checkpoint, got none: name it with --checkpoint")
        out = options.target_of(args, f"{args.method}-epsilon{args.epsilon:g}")
    tuning, watch, privacy = _prepared(args, setting, recipe)
    started = time.perf_counter()
    run, failure = _trained(args, tuning)
    if run is None:
        return _command.fail(command, str(failure))
    seconds = time.perf_counter() - started
    if not tuning.first:
        # even if it diverged: torchrun would end the first, which saves what was computed
        return 0
    run.attrs["command"] = json.dumps(vars(args))
    run.attrs["setting"] = json.dumps(setting.as_dict())
    if watch is not None:
        run.attrs["knn_accuracy of"] = json.dumps(dict(watch.baselines))
    saved, failure_to_save = _command.save(run, out)
    model = None
    if args.save_model and not failure:
        model, failure = _saved_model(args.save_model, tuning)
    said = _facts(args, setting, recipe, run, watch)
    said["privacy"] = [*str(privacy).splitlines(), *_about_noise(args, recipe)]
    said |= {"seconds": round(seconds, 2), "saved": str(saved), "model": model}
    _print(args, said)
    failure = failure or failure_to_save
    return _command.fail(command, failure) if failure else 0


def _prepared(
    args: argparse.Namespace, setting: Setting, recipe: Recipe
) -> tuple[FineTuning, FeatureWatch | None, Any]:
    """The fine-tuning, what watches features, and the privacy that is going to be spent."""
    from empirical.accounting import account
    from empirical.features import FeatureWatch
    from empirical.ledger import LedgerError
    from empirical.model import check_target
    from empirical.train import FineTuning
    from empirical.weights import WeightsError
    from langevin.store import StoreError

    with _refusing(StoreError, LedgerError, WeightsError, FloatingPointError):
        if args.save_model:
            check_target(args.save_model)
        seed = _split_seed(args)
        task = setting.task(seed)
        privacy = account(recipe.history(len(task.train)))
        with _bar(args, "pre-training") as epochs:
            body = setting.network(seed, lambda done, loss: epochs(done, None))
        watch = None
        if setting.features:
            watch = FeatureWatch(task, body, random=setting.untrained().network(seed))
        tuning = FineTuning(
            task,
            body,
            recipe,
            rng=args.seed,
            device=args.device,
            precision=args.precision,
            evaluations=args.evaluations,
            watch=watch,
            checkpoint=args.checkpoint,
            resume=args.resume,
        )
    return tuning, watch, privacy


def _split_seed(args: argparse.Namespace) -> int:
    """Seed of split and body, which need not be secret."""
    return 0 if args.seed is None else args.seed


def _trained(args: argparse.Namespace, tuning: FineTuning) -> tuple[xr.Dataset | None, str | None]:
    """The run, if there is one to save, and what failed."""
    from empirical.ledger import LedgerError
    from langevin.solvers import Diverged
    from langevin.store import StoreError

    with _refusing(), _bar(args, "fine-tuning") as steps:
        try:
            return tuning.run(steps), None
        except Diverged as error:
            return error.run, str(error)
        except (StoreError, LedgerError) as error:
            return None, str(error)
        except MemoryError as error:
            kept = args.checkpoint and Path(args.checkpoint).exists()
            advice = f"; kept in {args.checkpoint}: --resume continues from there" if kept else ""
            return None, f"{error}{advice}"


def _saved_model(path: str, tuning: FineTuning) -> tuple[str | None, str | None]:
    """Where the trained network is, and what failed."""
    from empirical.model import save
    from empirical.weights import WeightsError

    try:
        return str(save(path, tuning)), None
    except WeightsError as error:
        return None, str(error)


def _facts(
    args: argparse.Namespace, setting: Setting, recipe: Recipe, run: xr.Dataset, watch: FeatureWatch | None
) -> dict[str, Any]:
    """What the run was, and how it ended."""
    task = setting.task(_split_seed(args))
    counts = task.test.counts
    stages = (
        f"{stage.name}: {stage.steps} steps at learning rate {stage.lr:g}"
        + (f", half-way times {stage.drop:g}" if stage.drop != 1 else "")
        for stage in recipe
    )
    return {
        **_about(setting, task),
        "method": "; then ".join(stages),
        "largest class": round(float(counts.max() / counts.sum()), 4),
        **{name.replace("_", " "): _ends(run[name].values) for name in ("test_accuracy", "test_loss")},
        "features": None if watch is None else _features(run, watch),
        **_by_class(run, args.json),
    }


def _about(setting: Setting, task: Images) -> dict[str, str | None]:
    """What task and body are, in words."""
    from langevin.files import held

    what = "feature vectors" if setting.is_file else "images"
    if setting.is_file:
        public, normalised = (
            "no public part",
            "not at all: features as in the file, scale them by public data",
        )
    elif task.public is None:
        public, normalised = "no public part", "intensities x become 2 x - 1, as there is no public part"
    else:
        public = f"{len(task.public)} public"
        normalised = "by mean and standard deviation of each channel over the public part"
    widths = "" if setting.widths is None else " of widths " + " ".join(map(str, setting.widths))
    trained = f"pre-trained on the public part ({setting.pretrain})"
    if setting.pretrain == "none":
        trained = f"weights from {setting.weights}" if setting.weights else "random weights, NOT pre-trained"
    if setting.body == "layer" and not setting.weights:
        start = "the file's W" if "W" in held(setting.data) else "the identity"
        trained = f"on top of the features, starting as {start}"
    return {
        "task": f"{task.name}: {len(task.train)} private {what} to train on, {len(task.test)} to test, "
        f"{public}, {len(task.train.classes)} classes, shape {task.train.shape}",
        "classes": _few(task.train.classes),
        "shift": None
        if setting.is_file
        else f"rotation {setting.shift.rotation:g} degrees, gain {setting.shift.gain:g}, "
        f"offset {setting.shift.offset:g}",
        "normalised": normalised,
        "body": f"{setting.body}{widths}, {trained}",
    }


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f", ... ({len(names)})" if len(names) > 12 else "")


def _ends(values: Any) -> dict[str, float | None]:
    return {"start": _rounded(values[0]), "end": _rounded(values[-1])}


def _rounded(value: Any) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


# classes that the report in words shows, and confusions
_CLASSES, _MISTAKES = 20, 5


def _by_class(run: xr.Dataset, whole: bool) -> dict[str, Any]:
    """How the classes do at the end: all of them, or the worst where they are many."""
    from empirical.byclass import mistakes

    ends = dict(zip(run["class"].values.tolist(), run.class_accuracy.values[-1], strict=True))
    accuracy = {name: _rounded(value) for name, value in ends.items()}
    found = mistakes(run, _MISTAKES)
    if whole:
        return {"class accuracy": accuracy, "mistakes": found}
    known = sorted((value, name) for name, value in accuracy.items() if value is not None)
    if len(known) > _CLASSES:
        accuracy = {name: value for value, name in known[:_CLASSES]}
    said = ", ".join(f"{m['class']} taken for {m['taken for']} ({m['images']})" for m in found)
    title = "class accuracy" if len(known) <= _CLASSES else f"worst {_CLASSES} classes"
    # of a run that diverged the last evaluation is missing
    return {title: accuracy if known else None, "mistakes": said or None}


def _about_noise(args: argparse.Namespace, recipe: Recipe) -> list[str]:
    """Who could take the noise off the weights."""
    if not recipe.private:
        return []
    if args.seed is None:
        kept = f" but in {args.checkpoint}: keep that to yourself" if args.checkpoint else ""
        return [f"noise drawn from the system's entropy, which is kept nowhere{kept}"]
    said = f"noise drawn from seed {args.seed}, for study: who knows it can take the noise off"
    if args.save_model:
        said += f"; before {args.save_model} leaves your hands, train it with --seed none"
    return [said]


def _features(run: xr.Dataset, watch: FeatureWatch) -> dict[str, Any]:
    from empirical.features import MEASURES

    measured: dict[str, Any] = {name: _ends(run[name].values) for name in MEASURES}
    # an accuracy of neighbours says nothing without these
    return measured | {"knn_accuracy of": {name: round(v, 4) for name, v in watch.baselines.items()}}


# --- a grid ----------------------------------------------------------------------------------


def _grid(args: argparse.Namespace, command: argparse.ArgumentParser) -> int:
    from langevin.store import StoreError

    with _refusing(StoreError):
        from empirical import finetune_options as options
        from empirical.arms import TUNING, Grid
        from empirical.grid import run_grid
        from empirical.records import Records, RecordsError
        from empirical.weights import WeightsError
        from langevin._options import values
        from langevin.sweeps import SweepError
        from langevin.sweeps.cluster import hush

        setting = options.setting_of(args)
        if args.bodies is None:
            setting = replace(setting, bodies=f"{args.cells}.bodies")
        recipe = options.recipe_of(args)
        methods = {"fft" if label == "fft-drop" else label for label in args.methods}
        options.refuse_idle(args, *(replace(recipe, method=m, lp_share=None) for m in methods))
        lowest, highest = args.lr_range
        grid = Grid(setting, recipe, **values(Grid, args), lowest=lowest, highest=highest)
        out = options.target_of(args, "grid")
    with _refusing(StoreError, RecordsError, SweepError, WeightsError, FloatingPointError):
        # what is wrong with all cells is wrong with the first
        Records(args.cells).close()
        task = setting.task(0)
        setting.network(0)
        for samples in {len(task.train), len(setting.task(TUNING, tuning=True).train)}:
            for arm in grid.arms:
                for epsilon in grid.epsilons:
                    grid.candidates(arm, epsilon)[0].history(samples)
        started = time.perf_counter()
        if args.workers > 1:
            hush()
        with _bar(args, "cells") as cells:
            run = run_grid(
                grid, cells=args.cells, workers=args.workers, time_limit=args.time_limit, progress=cells
            )
    run.attrs["command"] = json.dumps(vars(args))
    saved, failure = _command.save(run, out)
    said = {
        **_about(setting, task),
        "results": None if run.test_accuracy.isnull().all() else (_numbers if args.json else _tables)(run),
        "tuning": run.attrs["tuning"],
        **_caveats(grid, run),
        "seconds": round(time.perf_counter() - started, 2),
        "saved": str(saved),
    }
    _print(args, said)
    if run.attrs["failed"]:
        failure = f"{run.attrs['failed']} of {grid.cells} cells failed: {run.attrs['errors']}"
    return _command.fail(command, failure) if failure else 0


def _references(run: xr.Dataset) -> list[str]:
    """Arms that the others are compared with."""
    return [arm for arm in ("lp", "fft") if arm in run.arm.values and run.sizes["arm"] > 1]


def _tables(run: xr.Dataset) -> str:
    from empirical import tables

    shown = [tables.table(run), *(tables.table(run, arm) for arm in _references(run))]
    along = [method for method in run.method.values if method in ("lp", "lp-fft", "fft")]
    if "lp-fft" in along and len(along) > 1:
        shown.append(tables.shares_table(run))
    notes = ["mean ± standard error over seeds; differences are paired", "*: not 0, at 5 % for a whole table"]
    return "\n\n".join([*(table.text() for table in shown), "; ".join(notes)])


def _numbers(run: xr.Dataset) -> list[dict[str, Any]]:
    """What the tables say, for machines."""
    from empirical import tables

    found = {"test accuracy": tables.summary(run)}
    found |= {f"less that of {arm}": tables.paired(run, arm) for arm in _references(run)}
    numbers = []
    for arm in run.arm.values:
        for epsilon in run.epsilon.values:
            at = {"arm": str(arm), "epsilon": _json(epsilon)}
            for name, values in found.items():
                if name.endswith(f" {arm}"):
                    continue
                one = values.sel(arm=arm, epsilon=epsilon)
                at[name] = {"mean": _json(one["mean"]), "standard error": _json(one.standard_error)}
            numbers.append(at)
    return numbers


def _json(value: Any) -> float | str | None:
    """A number that JSON knows; "inf" and None for those that it does not."""
    number = float(value)
    return round(number, 6) if math.isfinite(number) else None if math.isnan(number) else str(number)


def _caveats(grid: Grid, run: xr.Dataset) -> dict[str, Any]:
    edges = [
        f"{arm} at epsilon {epsilon:g}"
        for arm in run.arm.values
        for epsilon in run.epsilon.values
        if run.edge.sel(arm=arm, epsilon=epsilon)
    ]
    said: dict[str, Any] = {}
    if edges:
        said["rate at an end"] = f"of --lr-range, take a wider one: {'; '.join(edges)}"
    if run.attrs["left"]:
        said["left"] = f"{run.attrs['left']} of {grid.cells} cells: repeat the command to resume"
    return said


# --- what comes of it ------------------------------------------------------------------------


def _print(args: argparse.Namespace, said: dict[str, Any]) -> None:
    said = {name: value for name, value in said.items() if value is not None}
    if args.json:
        print(json.dumps(said, indent=2, allow_nan=False))
        return
    for name, value in said.items():
        if name == "results":
            print(f"\n{value}\n")
        else:
            lines = value if isinstance(value, list) else [_words(value)]
            if isinstance(value, dict) and isinstance(next(iter(value.values())), dict):
                lines = [f"{inner}: {_words(of)}" for inner, of in value.items()]
            print(f"{name + ':':<15} " + ("\n" + " " * 16).join(lines))


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {'-' if of is None else of}" for name, of in value.items())
    return str(value)


@contextlib.contextmanager
def _bar(args: argparse.Namespace, what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on a terminal, told of the number done and of all."""
    from tqdm import tqdm

    hidden = args.quiet or not sys.stderr.isatty()
    with tqdm(desc=what, disable=hidden, leave=False, file=sys.stderr) as bar:

        def update(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


if __name__ == "__main__":
    _streams.run(main)
