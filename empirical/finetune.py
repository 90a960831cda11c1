"""The command ``python -m empirical.finetune``: one private fine-tuning, or a grid of them, tuned fairly."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langevin import _command, _streams

if TYPE_CHECKING:
    import xarray as xr

    from empirical.grid import Grid
    from empirical.recipe import Recipe
    from empirical.setting import Setting

PROGRAM = "python -m empirical.finetune"
# what one run alone has, and a grid alone; any of the latter makes a grid
RUN: dict[str, Any] = dict(
    method="lp-fft",
    lp_share=None,
    epsilon=1.0,
    lr=0.25,
    lp_lr=1.0,
    drop=1.0,
    seed=0,
    evaluations=10,
    checkpoint=None,
    resume=False,
    save_model=None,
)
GRID: dict[str, Any] = dict(
    methods=["lp", "fft", "fft-drop", "lp-fft"],
    epsilons=[1.0],
    shares=[0.25, 0.5, 0.75],
    seeds=20,
    trials=16,
    tuning_seeds=3,
    lr_range=[0.03, 3.0],
    workers=1,
    cells="runs/cells.jsonl",
    time_limit=None,
)
# where the functions call an argument other than the command
NAMES = {
    "folder": "data-folder",
    "root": "data-folder",
    "shape": "body",
    "rng": "seed",
    "expected_batch": "batch",
    "kind": "pretrain",
    "epochs": "pretrain-epochs",
    "lowest": "lr-range",
}


def parser() -> argparse.ArgumentParser:
    """Command line of fine-tuning."""
    p = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [option ...]",
        description="Fine-tune a pre-trained network with DP-SGD on a private task: linear probing, full "
        "fine-tuning, one then the other, low-rank adapters, biases, or a sparse subset, at one privacy "
        "budget; or compare them, each tuned with the same number of trials.",
        epilog="Exit status: 0 done, 1 failed or diverged (what was computed is saved), 2 wrong usage or bad "
        "input, 130 or 143 interrupted (--resume goes on with a run that has a --checkpoint; a grid goes on "
        "when its command is repeated).",
        formatter_class=_command.Help,
    )

    def either(group: Any, name: str, text: str, **how: Any) -> None:
        """An option that is absent unless given, to see which mode was meant."""
        value = (RUN | GRID)[name]
        shown = " ".join(str(v) for v in value) if isinstance(value, list) else value
        text += "" if value in (None, False) else f" (default: {shown})"
        group.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=text, **how)

    data = p.add_argument_group("task")
    data.add_argument(
        "--data",
        default="digits",
        metavar="DATA",
        help="digits (scikit-learn's), glyphs (made up; new classes are private), from --data-folder: "
        "cifar10, stl10, folder (images in a folder for each class), or a file of features: .npz with X, y "
        "and optionally W, X_test, y_test; .csv or .parquet, features in all columns but one",
    )
    data.add_argument("--label", default="y", metavar="COLUMN", help="labels of a .csv or .parquet file")
    data.add_argument("--data-folder", metavar="FOLDER", help="where cifar10, stl10 or folder are")
    data.add_argument(
        "--public-classes",
        nargs="+",
        default=(),
        metavar="CLASS",
        help="classes of these to pre-train on; without any, intensities x become 2 x - 1, and the body is "
        "as it was drawn or loaded",
    )
    data.add_argument(
        "--size", type=int, help="pixels of a side: glyphs 24, stl10 96, folder 32 unless given"
    )
    data.add_argument("--images", type=int, help="private training images of glyphs, 2000 unless given")
    data.add_argument(
        "--rotation", type=float, help="of private images, in degrees; 20 for digits and 0 else unless given"
    )
    data.add_argument("--gain", type=float, default=1.0, help="private intensities become gain x + offset")
    data.add_argument("--offset", type=float, default=0.0, help="of private intensities")
    net = p.add_argument_group("network")
    net.add_argument(
        "--body",
        metavar="BODY",
        help="mlp, conv, timm:<model> or hf:<model>; mlp for digits and conv else unless given. Of a file "
        "of features layer, unless given, or mlp: layer starts as the file's W, or as the identity",
    )
    net.add_argument(
        "--widths", type=int, nargs="+", help="of mlp (128 64) and conv (32 64 128) unless given"
    )
    net.add_argument(
        "--body-options",
        nargs="+",
        default=(),
        metavar="NAME=VALUE",
        help="for the function that makes the body, such as patch_size=4",
    )
    net.add_argument(
        "--weights",
        metavar="FILE",
        help="of the body: file.npz for mlp, conv and layer, hub or a path for others",
    )
    net.add_argument(
        "--pretrain",
        choices=["supervised", "simclr", "none"],
        help="on the public part, without noise; supervised unless there is none, or weights are given",
    )
    net.add_argument("--pretrain-epochs", type=int, help="30 supervised, 40 simclr unless given")
    net.add_argument(
        "--bodies", metavar="FOLDER", help="keep pre-trained bodies here, and take those that are there"
    )
    net.add_argument("--head", choices=["gaussian", "zero", "prototype"], default="gaussian", help="new head")
    net.add_argument(
        "--head-scale", type=float, default=1.0, help="of its weights: times 1/sqrt(features) if gaussian"
    )
    how = p.add_argument_group("method")
    either(how, "method", "what trains", choices=["lp", "fft", "lp-fft", "lora", "bitfit", "sparse"])
    either(how, "lp_share", "share of steps and budget that probe first, lp-fft 0.5 unless given", type=float)
    either(how, "lr", "learning rate; gradients are means over the expected batch", type=float)
    either(how, "lp_lr", "learning rate of the probing", type=float)
    either(how, "drop", "factor on lr from half-way through the last stage on", type=float)
    how.add_argument("--momentum", type=float, default=0.0, help="in [0, 1), anew in each stage")
    how.add_argument("--rank", type=int, default=4, help="of the adapters of lora")
    how.add_argument("--density", type=float, default=0.1, help="share of the body that trains in sparse")
    how.add_argument(
        "--selection",
        choices=["gradient", "magnitude", "last"],
        default="gradient",
        help="of sparse's subset; by a noisy gradient it costs one of the steps",
    )
    private = p.add_argument_group("privacy")
    either(private, "epsilon", "budget of the whole run, or inf: no noise", type=float)
    private.add_argument(
        "--delta", type=float, default=1e-4, help="at which epsilon is meant, below 1/samples"
    )
    private.add_argument(
        "--clip", default="1.0", help="per-sample gradient norm threshold; or none, without noise"
    )
    private.add_argument(
        "--clipping",
        choices=["flat", "normalised"],
        default="flat",
        help="g min(1, C/|g|), or g C/(|g| + 0.01)",
    )
    private.add_argument("--steps", type=int, default=100, help="of DP-SGD, all stages together")
    private.add_argument("--batch", type=float, default=110.0, help="expected size of the Poisson batches")
    run = p.add_argument_group("run")
    either(
        run,
        "seed",
        "of split, body, head, batches and noise; none: split and body of seed 0, and the rest from the "
        "system's entropy, for weights that leave this machine",
        type=_seed,
    )
    run.add_argument("--device", default="cpu", help="cpu, or cuda or cuda:<number>: an NVIDIA GPU")
    run.add_argument(
        "--precision", choices=["single", "mixed"], default="single", help="mixed: with bfloat16"
    )
    run.add_argument(
        "--engine",
        choices=["auto", "closed", "ghost", "hooks", "functorch", "loop"],
        default="auto",
        help="of per-sample gradients",
    )
    either(run, "evaluations", "after the one at the start, about equally far apart", type=int)
    run.add_argument("--features", action="store_true", help="measure the features at each evaluation")
    either(run, "checkpoint", "file to save the run in at each evaluation, beside its ledger", metavar="FILE")
    either(run, "resume", "go on from --checkpoint", action="store_true")
    grid = p.add_argument_group("grid", "Any of these compares methods, tuned fairly.")
    labels = ["lp", "fft", "lp-fft", "lora", "bitfit", "sparse", "fft-drop"]
    either(
        grid,
        "methods",
        "to compare; fft-drop: fft whose rate drops half-way, the control",
        nargs="+",
        choices=labels,
        metavar="METHOD",
    )
    either(grid, "epsilons", "budgets; inf: the same without noise", nargs="+", type=float, metavar="EPSILON")
    either(grid, "shares", "of lp-fft, between 0 and 1", nargs="+", type=float, metavar="SHARE")
    either(grid, "seeds", "evaluation seeds, from 0 on", type=int)
    either(grid, "trials", "of learning rates, for each method, share and epsilon", type=int)
    either(
        grid, "tuning_seeds", "that each trial is scored on, others than those of the evaluation", type=int
    )
    either(
        grid,
        "lr_range",
        "lowest and highest learning rate tried",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
    )
    either(grid, "workers", "processes, of one thread each", type=int)
    either(grid, "cells", "finished cells: added to this file, and taken from it", metavar="FILE")
    either(
        grid, "time_limit", "seconds after which no cell is started; repeat the command to go on", type=float
    )
    out = p.add_argument_group("output")
    out.add_argument("--out", help="file.nc or folder.zarr (default: runs/<what was asked for>.nc)")
    either(
        out,
        "save_model",
        "file.safetensors for the trained network, which empirical.load reads; see --seed none",
        metavar="FILE",
    )
    out.add_argument("--json", action="store_true", help="print the report as JSON")
    out.add_argument("--quiet", action="store_true", help="no progress bar")
    return p


def _seed(text: str) -> int | None:
    """A whole number, or None for fresh entropy."""
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number or none, got {text!r}") from None


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    command = parser()
    args = command.parse_args(argv)
    given = {name for name in vars(args) if name in RUN | GRID}
    is_grid = bool(given & GRID.keys())
    for name, value in (RUN | GRID).items():
        if name not in given:
            setattr(args, name, value)
    if is_grid and given & RUN.keys():
        name = sorted(given & RUN.keys())[0]
        command.error(f"--{name.replace('_', '-')} must be left out of a grid, which has {_instead(name)}")
    if args.method == "lp" and "lr" in given and "lp_lr" not in given:
        # the one rate of the only stage
        args.lp_lr = None
    with _command.interruptible() as status:
        try:
            return (_grid if is_grid else _run)(args, command)
        except _Refused as error:
            names = NAMES | ({"epsilon": "epsilons"} if is_grid else {})
            command.error(_command.as_option(command, str(error), names))
        except KeyboardInterrupt:
            if is_grid:
                advice = f"what is finished is in {args.cells}: repeat the command to go on"
            elif args.checkpoint and Path(args.checkpoint).exists():
                advice = f"kept in {args.checkpoint}: the same command with --resume goes on from there"
            elif args.checkpoint:
                advice = "there is nothing to keep yet"
            else:
                advice = "nothing is kept; with --checkpoint FILE it would be"
            print(f"\ninterrupted; {advice}", file=sys.stderr)
            return status()


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


# --- what was asked for ----------------------------------------------------------------------


def _instead(name: str) -> str:
    other = {"method": "methods", "epsilon": "epsilons", "lp_share": "shares", "seed": "seeds"}
    other |= {"checkpoint": "cells", "resume": "cells", "evaluations": "one at the end"}
    other |= {"save_model": "no model of its own"}
    found = other.get(name, "lr_range")
    return found if " " in found else f"--{found.replace('_', '-')}"


def _setting(args: argparse.Namespace) -> Setting:
    from empirical.images import Shift
    from empirical.setting import Setting
    from langevin.files import is_file

    digits = args.data == "digits"
    usual = "mlp" if digits else "layer" if is_file(args.data) else "conv"
    rotation = (20.0 if digits else 0.0) if args.rotation is None else args.rotation
    return Setting(
        args.data,
        label=args.label,
        folder=args.data_folder,
        size=args.size,
        images=args.images,
        public_classes=tuple(args.public_classes),
        shift=Shift(rotation, args.gain, args.offset),
        body=args.body or usual,
        options=tuple(_option(text) for text in args.body_options),
        widths=None if args.widths is None else tuple(args.widths),
        weights=args.weights,
        pretrain=args.pretrain,
        epochs=args.pretrain_epochs,
        device=args.device,
        precision=args.precision,
        features=args.features,
        bodies=args.bodies or (f"{args.checkpoint}.bodies" if args.checkpoint else None),
    )


def _option(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not name.isidentifier() or not sign:
        raise ValueError(f"body-options must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _recipe(args: argparse.Namespace) -> Recipe:
    from empirical.recipe import Recipe
    from langevin import _validate

    names = "method lp_share steps batch epsilon delta clipping lr lp_lr drop momentum head head_scale"
    names += " rank density selection engine"
    clip = None if str(args.clip).lower() == "none" else _validate.positive("clip", args.clip)
    return Recipe(**{name: getattr(args, name) for name in names.split()}, clip=clip)


def _refuse_idle(args: argparse.Namespace, command: argparse.ArgumentParser, *recipes: Recipe) -> None:
    """Refuse options that none of the recipes reads."""
    unread = {n: why for n, why in recipes[0].idle.items() if all(n in recipe.idle for recipe in recipes)}
    defaults = {name: RUN.get(name, command.get_default(name)) for name in vars(args)}
    _command.refuse_idle(unread, args, defaults)


def _target(args: argparse.Namespace, start: str) -> Path:
    """Where to save: a name that tells runs apart by a digest of all that was asked for, unless given."""
    from langevin import store

    ignored = ("out", "json", "quiet", "resume", "workers", "time_limit", "cells", "checkpoint", "bodies")
    ignored += ("save_model",)
    asked = {name: value for name, value in vars(args).items() if name not in ignored}
    if args.seed is None:
        # no other run is the same
        asked["seed"] = secrets.token_hex(8)
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:6]
    return store.check_target(args.out or f"runs/{start}-{Path(args.data).stem}-{digest}.nc")


# --- one run ---------------------------------------------------------------------------------


def _run(args: argparse.Namespace, command: argparse.ArgumentParser) -> int:
    from langevin.store import StoreError

    if "LOCAL_RANK" in os.environ:  # one of several processes that torchrun started
        from empirical.parallel import join

        args.device = join(args.device)
    with _refusing(StoreError):
        setting, recipe = _setting(args), _recipe(args)
        _refuse_idle(args, command, recipe)
        if args.resume and not args.checkpoint:
            raise ValueError("resume needs a checkpoint, got none: name it with --checkpoint")
        out = _target(args, f"{args.method}-epsilon{args.epsilon:g}")

        from empirical.accounting import account
        from empirical.features import FeatureWatch
        from empirical.ledger import LedgerError
        from empirical.model import check_target
        from empirical.model import save as save_model
        from empirical.train import FineTuning
        from empirical.weights import WeightsError
        from langevin.solvers import Diverged
    failure = None
    with _refusing(StoreError, LedgerError, WeightsError, FloatingPointError):
        if args.save_model:
            check_target(args.save_model)
        # that of split and body need not be secret
        seed = 0 if args.seed is None else args.seed
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
    started = time.perf_counter()
    with _refusing(), _bar(args, "fine-tuning") as steps:
        try:
            run = tuning.run(steps)
        except Diverged as error:
            run, failure = error.run, str(error)
        except (StoreError, LedgerError) as error:
            return _command.fail(command, str(error))
        except MemoryError as error:
            kept = args.checkpoint and Path(args.checkpoint).exists()
            advice = f"; kept in {args.checkpoint}: --resume goes on from there" if kept else ""
            return _command.fail(command, f"{error}{advice}")
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
        try:
            model = str(save_model(args.save_model, tuning))
        except WeightsError as error:
            failure = str(error)
    counts = task.test.counts
    said = {
        **_about(setting, task),
        "method": "; then ".join(
            f"{stage.name}: {stage.steps} steps at learning rate {stage.lr:g}"
            + (f", half-way times {stage.drop:g}" if stage.drop != 1 else "")
            for stage in recipe
        ),
        "largest class": round(float(counts.max() / counts.sum()), 4),
        **{name.replace("_", " "): _ends(run[name].values) for name in ("test_accuracy", "test_loss")},
        "features": None if watch is None else _features(run, watch),
        **_by_class(run, args.json),
        "privacy": [*str(privacy).splitlines(), *_about_noise(args, recipe)],
        "seconds": round(seconds, 2),
        "saved": str(saved),
        "model": model,
    }
    _print(args, said)
    failure = failure or failure_to_save
    return _command.fail(command, failure) if failure else 0


def _about(setting: Setting, task: Any) -> dict[str, str | None]:
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


def _features(run: xr.Dataset, watch: Any) -> dict[str, Any]:
    from empirical.features import MEASURES

    measured: dict[str, Any] = {name: _ends(run[name].values) for name in MEASURES}
    # an accuracy of neighbours says nothing without these
    return measured | {"knn_accuracy of": {name: round(v, 4) for name, v in watch.baselines.items()}}


# --- a grid ----------------------------------------------------------------------------------


def _grid(args: argparse.Namespace, command: argparse.ArgumentParser) -> int:
    from langevin.store import StoreError

    with _refusing(StoreError):
        from empirical.grid import TUNING, Grid, run_grid
        from empirical.records import Records, RecordsError
        from empirical.weights import WeightsError
        from langevin.sweeps import SweepError
        from langevin.sweeps.cluster import hush

        setting = _setting(args)
        if args.bodies is None:
            setting = replace(setting, bodies=f"{args.cells}.bodies")
        recipe = _recipe(args)
        methods = {"fft" if label == "fft-drop" else label for label in args.methods}
        _refuse_idle(args, command, *(replace(recipe, method=m, lp_share=None) for m in methods))
        names = ("methods", "epsilons", "shares", "seeds", "trials", "tuning_seeds")
        lowest, highest = args.lr_range
        grid = Grid(
            setting,
            recipe,
            **{name: getattr(args, name) for name in names},
            lowest=lowest,
            highest=highest,
        )
        out = _target(args, "grid")
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
        said["left"] = f"{run.attrs['left']} of {grid.cells} cells: repeat the command to go on"
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
