"""Options of ``python -m empirical.finetune``, and the data classes that they fill."""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from empirical.data.shift import Shift
from empirical.recipe import Recipe
from empirical.studies.arms import Grid
from empirical.studies.setting import Setting
from langevin.support import command as support_command
from langevin.support import options

PROGRAM = "python -m empirical.finetune"


@dataclass(frozen=True)
class SingleOptions:
    """Options of one run besides those of `Recipe` and `Setting`.

    Parameters
    ----------
    seed : int or None
        Seed of split, body, head, batches and noise; none: split and body of seed 0, and the rest from the
        system's entropy, for weights that leave this machine.
    evaluations : int
        Number of evaluations after the one at the start, about equally spaced.
    checkpoint : str or None
        File to save the run in at each evaluation, next to its ledger.
    resume : bool
        Resume from ``checkpoint``.
    save_model : str or None
        file.safetensors for the trained network, which empirical.load reads; see --seed none.
    """

    seed: int | None = 0
    evaluations: int = 10
    checkpoint: str | None = field(default=None, metadata={"metavar": "FILE"})
    resume: bool = False
    save_model: str | None = field(default=None, metadata={"metavar": "FILE"})


@dataclass(frozen=True)
class GridOptions:
    """Options of a comparison besides those of `Grid`, `Recipe` and `Setting`.

    Parameters
    ----------
    lr_range : tuple of float
        Lowest and highest learning rate to try.
    lp_lr_range : tuple of float or None
        Lowest and highest learning rate to try where the head alone trains (default: as --lr-range).
    workers : int
        Number of processes, of one thread each.
    cells : str
        File that finished cells are added to and taken from.
    time_limit : float or None
        Seconds after which no cell is started; repeat the command to resume.
    """

    lr_range: tuple[float, float] = field(
        default=(Grid.lowest, Grid.highest), metadata={"metavar": ("LOW", "HIGH")}
    )
    lp_lr_range: tuple[float, float] | None = field(default=None, metadata={"metavar": ("LOW", "HIGH")})
    workers: int = 1
    cells: str = field(default="runs/cells.jsonl", metadata={"metavar": "FILE"})
    time_limit: float | None = None


@dataclass(frozen=True)
class OutputOptions:
    """Options of what comes of either.

    Parameters
    ----------
    out : str or None
        file.nc or folder.zarr (default: runs/<what was asked for>.nc).
    json : bool
        Print the report as JSON.
    quiet : bool
        Show no progress bar.
    """

    out: str | None = None
    json: bool = False
    quiet: bool = False


# what one run alone reads, and what a grid has instead
SINGLE = {
    "method": "--methods",
    "lp_share": "--shares",
    "epsilon": "--epsilons",
    "lr": "--lr-range",
    "lp_lr": "--lp-lr-range",
    "drop": "--lr-range",
    "seed": "--seeds",
    "evaluations": "one at the end",
    "checkpoint": "--cells",
    "resume": "--cells",
    "save_model": "no model of its own",
}
# what a grid alone reads
GRID = ("methods", "epsilons", "shares", "seeds", "trials", "tuning_seeds")
GRID += ("lr_range", "lp_lr_range", "workers", "cells", "time_limit")
# where functions call an argument other than the command
NAMES = {
    "root": "data_folder",
    "train": "images",
    "shape": "body",
    "rng": "seed",
    "expected_batch": "batch",
    "kind": "pretrain",
    "lowest": "lr_range",
    "lp_lowest": "lp_lr_range",
}


def parser() -> options.Parser:
    """Command line of fine-tuning."""
    p = options.Parser(
        PROGRAM,
        description="Fine-tune a pre-trained network with DP-SGD on a private task: linear probing, full "
        "fine-tuning, one then the other, low-rank adapters, biases, or a sparse subset, at one privacy "
        "budget; or compare them, each tuned with the same number of trials.",
        epilog="Exit status: 0 done, 1 failed or diverged (what was computed is saved), 2 wrong usage or bad "
        "input, 130 or 143 interrupted (--resume continues a run that has a --checkpoint; repeat the command "
        "to resume a grid).",
    )
    task = (Setting, "data label folder public_classes public_share size images")
    p.add("task", task, (Shift, "rotation gain offset"))
    net = (Setting, "body widths options weights pretrain epochs bodies")
    p.add("network", net, (Recipe, "head head_scale prototype_share"))
    p.add("method", (Recipe, "method lp_share lr lp_lr drop momentum rank density selection"))
    p.add("privacy", (Recipe, "epsilon delta clip clipping stabiliser steps batch"))
    p.add(
        "run",
        (SingleOptions, "seed"),
        (Setting, "device precision"),
        (Recipe, "engine"),
        (SingleOptions, "evaluations"),
        (Setting, "features"),
        (SingleOptions, "checkpoint resume"),
    )
    p.add(
        "grid",
        (Grid, "methods epsilons shares seeds trials tuning_seeds"),
        (GridOptions, "lr_range lp_lr_range workers cells time_limit"),
        about="Any of these compares methods, tuned fairly.",
    )
    p.add("output", (OutputOptions, "out"), (SingleOptions, "save_model"), (OutputOptions, "json quiet"))
    return p


def read(command: options.Parser, argv: list[str] | None) -> tuple[argparse.Namespace, bool]:
    """All options, and whether they ask for a grid."""

    def unread(given: set[str]) -> Sequence[str]:
        """Options of the other mode; refused with those of this one."""
        if given.isdisjoint(GRID):
            return GRID
        for name in sorted(given & SINGLE.keys()):
            instead = f"has no effect in a grid, which has {SINGLE[name]}; remove it"
            command.error(f"{options.flag(name)} {instead}")
        return tuple(SINGLE)

    args, given = command.parse(argv, unread)
    return args, not given.isdisjoint(GRID)


def setting_of(args: argparse.Namespace) -> Setting:
    """Task and body that were asked for."""
    given = options.values(Setting, args)
    if args.checkpoint and not args.bodies:
        given["bodies"] = f"{args.checkpoint}.bodies"
    return Setting(**given, shift=Shift(**options.values(Shift, args)))


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The fine-tuning that was asked for."""
    return Recipe(**options.values(Recipe, args))


def refuse_idle(args: argparse.Namespace, *recipes: Recipe) -> None:
    """Refuse options that have no effect in any of the recipes."""
    idle = {n: why for n, why in recipes[0].idle.items() if all(n in recipe.idle for recipe in recipes)}
    support_command.refuse_idle(idle, args, Recipe())


def target_of(args: argparse.Namespace, start: str) -> Path:
    """Return the file to save to: the given one, or a unique name with a digest of all options."""
    from langevin.store import files

    ignored = ("out", "json", "quiet", "resume", "workers", "time_limit", "cells", "checkpoint", "bodies")
    ignored += ("save_model",)
    asked = {name: value for name, value in vars(args).items() if name not in ignored}
    if args.seed is None:
        # no other run is the same
        asked["seed"] = secrets.token_hex(8)
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:6]
    return files.check_target(args.out or f"runs/{start}-{Path(args.data).stem}-{digest}.nc")
