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
from figures.study import fig_features_real, fig_gains, regret
from figures.study.studies import FOLDER, REFERENCE
from figures.tables import tab_shares
from langevin.store import atomic, files
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

# runs of the study of features, and causes with the heads that they are of, as its page calls them
_RUNS = {
    "FFT": "fft",
    "LP-FFT .5": "lp-fft",
    "FFT, zero head": "fft, zero head",
    "FFT, no noise": "fft, no noise",
    "FFT, zero head, no noise": fig_features_real.NEITHER,
    "FFT, head times 4": "fft, large head",
    "FFT, head times 4, no noise": "fft, large head, no noise",
    "LP-FFT .5, head times 4": "lp-fft, large head",
}
_CAUSES = {
    "training alone": ("from_training", "default"),
    "noise": ("from_noise", "default"),
    "random head": ("from_head", "default"),
    "both together": ("interaction", "default"),
    "random head times 4": ("from_head", "large"),
    "head times 4 and noise together": ("interaction", "large"),
}
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


def differences(study: str, reference: str = REFERENCE) -> str:
    """Table of accuracies less that of a method, full fine-tuning unless another is named."""
    from empirical.studies.tables import table

    return table(_study(study), reference).markdown()


def best(study: str) -> str:
    """Table of the best shares for probing."""
    from empirical.studies.tables import shares_table

    return shares_table(_study(study)).markdown()


def tabulated(name: str) -> str:
    """Table of a script of ``figures.tables`` that only reads committed results."""
    return importlib.import_module(f"figures.tables.{name}").tabulate(_data(name)).markdown()


def of(script: str, name: str, *at: str) -> str:
    """Return one number that a table is made of, with its standard error if it has one.

    Parameters
    ----------
    script : str
        Of ``figures.tables``.
    name : str
        A variable of its data.
    *at : str
        Coordinates of any dimensions; underscores stand for spaces.
    """
    from empirical.studies.tables import number

    data = _data(script)
    place: dict[str, Any] = {}
    for text in at:
        label = text.replace("_", " ")
        homes = [(dim, v) for dim in data[name].dims for v in data[dim].values if f"{v}" == label]
        if not homes:
            raise ValueError(f"a place of {name} of {script} must be a coordinate of it, got {text!r}")
        place[str(homes[0][0])] = homes[0][1]
    error_name = "standard_error" if name == "mean" else f"{name}_error"
    values = [data[part].sel(place) for part in (name, error_name) if part in data]
    if any(value.ndim for value in values):
        raise ValueError(f"{name} of {script} needs one coordinate of each of {data[name].dims}, got {at}")
    mean, error = (*map(float, values), float("nan"))[:2]
    return number(mean, error)


@functools.cache
def _data(script: str) -> xr.Dataset:
    return importlib.import_module(f"figures.tables.{script}").compute()


def changes() -> str:
    """Table of how far runs change the features of the real backbone."""
    data = _features()
    return _by_step({name: (data.change, data.change_error, {"run": run}) for name, run in _RUNS.items()}, "")


def causes() -> str:
    """Table of the same changes by cause."""
    data = _features()
    parts = {
        name: (data[part], data[f"{part}_error"], {"head": head}) for name, (part, head) in _CAUSES.items()
    }
    return _by_step(parts, "points")


def _by_step(parts: dict[str, tuple[xr.DataArray, xr.DataArray, dict[str, str]]], title: str) -> str:
    """Table of points a third of the way and at the end, by budget."""
    from empirical.studies.tables import Table

    data = _features()
    steps = [int(data.step[data.sizes["step"] // 3]), int(data.step[-1])]
    at = [{"epsilon": epsilon, "step": step} for epsilon in data.epsilon.values for step in steps]
    rows = [
        [name, *(wording.points(mean.sel(of | a), error.sel(of | a), signed=True) for a in at)]
        for name, (mean, error, of) in parts.items()
    ]
    return Table([title, *(f"ε = {a['epsilon']:g}, {a['step']} steps" for a in at)], rows).markdown()


@functools.cache
def _features() -> xr.Dataset:
    return fig_features_real.compute()


def theory() -> str:
    """Table of the real backbone's last layer: simulated, as DP-SGD, and forecast."""
    from empirical.studies.tables import Table, number

    data = _study("real")
    accuracy = data.test_accuracy
    means, errors = accuracy.mean("seed"), accuracy.std("seed", ddof=1) / data.sizes["seed"] ** 0.5
    rows = [
        [
            str(arm) if how == data.how.values[0] else "",
            str(how),
            *map(number, means.sel(arm=arm, how=how).values, errors.sel(arm=arm, how=how).values),
        ]
        for arm in data.arm.values
        for how in data.how.values
    ]
    rows.append(["lp", "forecast", *(f"{value:.3f}" for value in data.forecast.values)])
    header = ["test accuracy", "by", *(f"ε = {epsilon:g}" for epsilon in data.epsilon.values)]
    return Table(header, rows, labels=2).markdown()


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
    "table": tabulated,
    "of": of,
    "changes": changes,
    "causes": causes,
    "theory": theory,
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
