"""What the command prints, and how it refuses."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from langevin.support.command import missing

if TYPE_CHECKING:
    import xarray as xr


class Refused(Exception):
    """The request cannot be carried out."""


@contextlib.contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of the request into `_Refused`."""
    try:
        yield
    except ImportError as error:
        raise Refused(missing(error)) from error
    except (ValueError, TypeError, MemoryError, *kinds) as error:
        raise Refused(str(error)) from error


def few(names: Sequence[str]) -> str:
    """The first names of many."""
    return ", ".join(names[:12]) + (f", ... ({len(names)})" if len(names) > 12 else "")


def rounded(value: Any) -> float | None:
    """A number for a report; None unless it is finite."""
    return round(float(value), 4) if math.isfinite(value) else None


# classes that the report in words shows, and confusions
_CLASSES, _MISTAKES = 20, 5


def by_class_lines(run: xr.Dataset, whole: bool) -> dict[str, Any]:
    """Return the final accuracy by class: all classes, or the worst if there are many."""
    from empirical.train.by_class import mistakes

    ends = dict(zip(run["class"].values.tolist(), run.class_accuracy.values[-1], strict=True))
    accuracy = {name: rounded(value) for name, value in ends.items()}
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


def print_report(args: argparse.Namespace, said: dict[str, Any]) -> None:
    """Print a report, for people or as JSON."""
    said = {name: value for name, value in said.items() if value is not None}
    if args.json:
        print(json.dumps(said, indent=2, allow_nan=False))
        return
    for name, value in said.items():
        if name == "results":
            print(f"\n{value}\n")
        else:
            lines = value if isinstance(value, list) else [in_words(value)]
            if isinstance(value, dict) and isinstance(next(iter(value.values())), dict):
                lines = [f"{inner}: {in_words(of)}" for inner, of in value.items()]
            print(f"{name + ':':<15} " + ("\n" + " " * 16).join(lines))


def in_words(value: Any) -> str:
    """A value of a report in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {'-' if of is None else of}" for name, of in value.items())
    return str(value)


@contextlib.contextmanager
def progress_bar(args: argparse.Namespace, what: str) -> Iterator[Callable[[int, int | None], None]]:
    """Return a callback that shows progress on a terminal."""
    from tqdm import tqdm

    hidden = args.quiet or not sys.stderr.isatty()
    with tqdm(desc=what, disable=hidden, leave=False, file=sys.stderr) as bar:

        def update(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update
