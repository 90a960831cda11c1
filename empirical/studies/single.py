"""One fine-tuning, as the command asks for it."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langevin.store import rescue
from langevin.support.command import fail

if TYPE_CHECKING:
    import xarray as xr

    from empirical.data.images import Images
    from empirical.features.watch import FeatureWatch
    from empirical.recipe import Recipe
    from empirical.studies.setting import Setting
    from empirical.train.fine_tuning import FineTuning
from empirical.studies.talk import by_class_lines, few, print_report, progress_bar, refusing, rounded


def run_single(args: argparse.Namespace, command: argparse.ArgumentParser) -> int:
    """Run the one fine-tuning that the command asks for, and return its exit status."""
    from empirical.studies import options
    from langevin.store.errors import StoreError

    if "LOCAL_RANK" in os.environ:  # one of several processes that torchrun started
        from empirical.devices.parallel import join

        args.device = join(args.device)
    with refusing(StoreError):
        setting, recipe = options.setting_of(args), options.recipe_of(args)
        options.refuse_idle(args, recipe)
        if args.resume and not args.checkpoint:
            raise ValueError("resume needs a checkpoint, got none: name it with --checkpoint")
        out = options.target_of(args, f"{args.method}-epsilon{args.epsilon:g}")
    tuning, watch, privacy = _prepared(args, setting, recipe)
    started = time.perf_counter()
    run, failure = _trained(args, tuning)
    if run is None:
        return fail(command, str(failure))
    seconds = time.perf_counter() - started
    if not tuning.first:
        # even if it diverged: torchrun would end the first, which saves what was computed
        return 0
    run.attrs["command"] = json.dumps(vars(args))
    run.attrs["setting"] = json.dumps(setting.as_dict())
    if watch is not None:
        run.attrs["knn_accuracy of"] = json.dumps(dict(watch.baselines))
    saved, failure_to_save = rescue.save(run, out)
    model = None
    if args.save_model and not failure:
        model, failure = _saved_model(args.save_model, tuning)
    said = _facts(args, setting, recipe, run, watch)
    said["privacy"] = [*str(privacy).splitlines(), *_about_noise(args, recipe)]
    said |= {"seconds": round(seconds, 2), "saved": str(saved), "model": model}
    print_report(args, said)
    failure = failure or failure_to_save
    return fail(command, failure) if failure else 0


def _prepared(
    args: argparse.Namespace, setting: Setting, recipe: Recipe
) -> tuple[FineTuning, FeatureWatch | None, Any]:
    """The fine-tuning, what watches features, and the privacy that is going to be spent."""
    from empirical.features.watch import FeatureWatch
    from empirical.networks.weights import WeightsError
    from empirical.privacy.ledger import LedgerError
    from empirical.privacy.report import account
    from empirical.train.fine_tuning import FineTuning
    from empirical.train.model import check_target
    from langevin.store.errors import StoreError

    with refusing(StoreError, LedgerError, WeightsError, FloatingPointError):
        if args.save_model:
            check_target(args.save_model)
        seed = _split_seed(args)
        task = setting.task(seed)
        privacy = account(recipe.history(len(task.train)))
        with progress_bar(args, "pre-training") as epochs:
            body = setting.network(seed, lambda done, loss: epochs(done, None))
        watch = None
        if setting.features:
            watch = FeatureWatch(task, body, random=setting.untrained(seed))
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
    from empirical.privacy.ledger import LedgerError
    from langevin.solvers.errors import Diverged
    from langevin.store.errors import StoreError

    with refusing(), progress_bar(args, "fine-tuning") as steps:
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
    from empirical.networks.weights import WeightsError
    from empirical.train.model import save

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
        **about(setting, task),
        "method": "; then ".join(stages),
        "largest class": round(float(counts.max() / counts.sum()), 4),
        **{name.replace("_", " "): _ends(run[name].values) for name in ("test_accuracy", "test_loss")},
        "features": None if watch is None else _features(run, watch),
        **by_class_lines(run, args.json),
    }


def about(setting: Setting, task: Images) -> dict[str, str | None]:
    """Describe task and body."""
    from langevin.data.files import held

    what = "feature vectors" if setting.is_file else "images"
    if setting.is_file:
        public, normalised = (
            "no public part",
            "not at all: features as in the file, scale them by public data",
        )
    else:
        public = "no public part" if task.public is None else f"{len(task.public)} public"
        normalised = _normalised(setting, task)
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
        "classes": few(task.train.classes),
        "shift": None
        if setting.is_file
        else f"rotation {setting.shift.rotation:g} degrees, gain {setting.shift.gain:g}, "
        f"offset {setting.shift.offset:g}",
        "normalised": normalised,
        "body": f"{setting.body}{widths}, {trained}",
    }


def _normalised(setting: Setting, task: Images) -> str:
    if setting.body == "lite0":
        return "as in the pre-training of lite0"
    if task.public is None:
        return "intensities x become 2 x - 1, as there is no public part"
    return "by mean and standard deviation of each channel over the public part"


def _ends(values: Any) -> dict[str, float | None]:
    return {"start": rounded(values[0]), "end": rounded(values[-1])}


def _about_noise(args: argparse.Namespace, recipe: Recipe) -> list[str]:
    """Warn that anyone who knows the seed can remove the noise from the weights."""
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
    from empirical.features.watch import MEASURES

    measured: dict[str, Any] = {name: _ends(run[name].values) for name in MEASURES}
    # an accuracy of neighbours says nothing without these
    return measured | {"knn_accuracy of": {name: round(v, 4) for name, v in watch.baselines.items()}}
