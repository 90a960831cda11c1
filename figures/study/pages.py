"""Write numbers and tables into the study's pages: ``python -m figures.study.pages``.

In ``docs/study/*.md`` a value stands between two comments, ``<!--=name arguments-->value<!--/-->``: a number
within a line, or a table on lines of its own. `SOURCES` has the names, and reads the committed results.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures import cache, wording
from figures.study import fig_gains, regret, tab_shares
from figures.study.studies import FOLDER, REFERENCE
from langevin.store import atomic, files
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

VALUE = re.compile(r"(<!--=([^\n]+?)-->)(.*?)(<!--/-->)", re.S)


def pages() -> list[Path]:
    """Return the pages of the study that hold values."""
    found = sorted((cache.ROOT / FOLDER).glob("*.md"))
    return [page for page in found if VALUE.search(page.read_text(encoding="utf8"))]


def written(text: str) -> str:
    """Return a page with all its values as the committed results give them."""

    def value(match: re.Match[str]) -> str:
        begin, query, old, end = match.groups()
        new = found(query)
        return begin + (f"\n\n{new}\n\n" if "\n" in old or new.startswith("|") else new) + end

    return VALUE.sub(value, text)


@functools.cache
def found(query: str) -> str:
    """Return the value that a comment asks for.

    Examples
    --------
    >>> found("tasks")
    '6'
    """
    name, *arguments = query.split()
    if name not in SOURCES:
        raise ValueError(f"a value must be one of {', '.join(SOURCES)}, got {name!r} in {query!r}")
    value = SOURCES[name](*arguments)
    return f"{value:g}" if isinstance(value, float) else str(value)


_gains = functools.cache(fig_gains.compute)


def _study(name: str) -> xr.Dataset:
    return files.load(cache.ROOT / FOLDER / f"{name}.nc")


def accuracy(study: str) -> str:
    """Table of mean accuracies of a study."""
    from empirical.studies.tables import table

    return table(_study(study)).markdown()


def differences(study: str) -> str:
    """Table of accuracies less that of full fine-tuning."""
    from empirical.studies.tables import table

    return table(_study(study), REFERENCE).markdown()


def best(study: str) -> str:
    """Table of the best shares for probing."""
    from empirical.studies.tables import shares_table

    return shares_table(_study(study)).markdown()


def gain(task: str, share: str, epsilon: str) -> str:
    """Accuracy above full fine-tuning, in points; a share ``best`` is the one that gains most."""
    at = _gains().sel(task=task, epsilon=float(epsilon))
    at = at.isel(share=at.gain.argmax("share")) if share == "best" else at.sel(share=float(share))
    return wording.points(at.gain, at.error, signed=True)


def over_probing(task: str, share: str, epsilon: str) -> str:
    """Accuracy above probing alone, in points."""
    by_share = regret.measured(task).sel(epsilon=float(epsilon))
    more = by_share.sel(share=float(share)) - by_share.sel(share=1.0)
    return wording.points(more.mean(), more.std(ddof=1) / more.size**0.5, signed=True)


def share(task: str, epsilon: str) -> str:
    """Return the best measured share."""
    return f"{float(_shares().measured.sel(task=task, epsilon=float(epsilon))):g}"


def lost(rule: str) -> str:
    """Accuracy lost by a plan or a fixed rule, in points; underscores stand for spaces."""
    at = regret.mean_and_error(_lost()).sel(rule=rule.replace("_", " "))
    return wording.points(at["mean"], at.standard_error)


@functools.cache
def _lost() -> xr.DataArray:
    of = {"task": list(regret.TASKS)}
    return regret.lost(regret.accuracies().sel(of), regret.planned().share.sel(of))


@functools.cache
def _shares() -> Any:
    return tab_shares.collect(_stored("tab_shares"))


def figure(name: str, value: str) -> object:
    """Return what the caption of a figure quotes."""
    return _quoted(name)[value]


@functools.cache
def _quoted(name: str) -> dict[str, object]:
    script: Any = importlib.import_module(f"figures.study.{name}")
    stored = cache.ROOT / cache.stored(name)
    data = files.load(stored) if stored.exists() else script.compute()
    return script.caption(script.collect(data) if hasattr(script, "collect") else data)


def _stored(name: str) -> xr.Dataset:
    return files.load(cache.ROOT / cache.stored(name))


SOURCES: dict[str, Callable[..., object]] = {
    "accuracy": accuracy,
    "differences": differences,
    "best": best,
    "gain": gain,
    "over_probing": over_probing,
    "share": share,
    "lost": lost,
    "figure": figure,
    "tasks": lambda: len(regret.TASKS),
    "shares": lambda: tab_shares.tabulate(_shares()).markdown(),
}


def main() -> int:
    """Write every page that has changed."""
    for page in pages():
        old = page.read_text(encoding="utf8")
        if (new := written(old)) != old:
            atomic.write_text(page, new)
            print(page)
    return 0


if __name__ == "__main__":
    streams.run(main)
