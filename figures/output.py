"""Turn the script of a figure or table into files: data, PDF and PNG, or Markdown and LaTeX.

A script ``figures/fig_<topic>.py`` has ``compute(quick)``, which returns the data, and ``draw(ax, data)``,
which plots them and computes nothing. An animated figure also has ``animate(ax, data, progress)``. Its
``main`` calls `run`. Its table ``SETTINGS`` lists the counts that a quick version reduces; the data record
them, so that captions can quote them. A script ``figures/tab_<topic>.py`` has ``tabulate(data)`` instead of
``draw``, and calls `run_table`.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from langevin.store import atomic, errors
from langevin.store.files import check_target, load, save
from langevin.support import plots
from langevin.support.machine import processor

if TYPE_CHECKING:
    import xarray as xr

    from empirical.studies.tables import Table

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = Path("build/figures")
PACKAGES = ("langevin", "bounds", "empirical", "figures")
# these plot and save what other modules compute
_KEEPING = ("figures", "figures.output", "figures.__main__", "langevin.support.plots")
# prefixes of functions that do not affect the data
_DRAWING = ("draw", "animate", "tabulate", "main")
FRAMES, SECONDS = 60, 6.0

# the count of each item in the quick version and in the full version
Settings = Mapping[str, tuple[int, int]]


def chosen(settings: Settings, quick: bool) -> dict[str, int]:
    """Return the counts of the quick or of the full version."""
    return {name: values[0 if quick else 1] for name, values in settings.items()}


def versions(data: xr.Dataset) -> tuple[str, str] | None:
    """Describe the counts of the data and of the full version in words; None if they are the same.

    Examples
    --------
    >>> import xarray as xr
    >>> data = xr.Dataset(attrs={"drawn": '{"paths": 24, "seeds": 2}', "full": '{"paths": 128, "seeds": 20}'})
    >>> versions(data)
    ('paths: 24, seeds: 2', 'paths: 128, seeds: 20')
    """
    drawn, full = (json.loads(data.attrs.get(name, "{}")) for name in ("drawn", "full"))
    if drawn == full:
        return None
    return _words(drawn), _words(full)


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def run(
    script: str,
    compute: Callable[[bool], xr.Dataset],
    draw: Callable[[Any, xr.Dataset], None],
    *,
    size: tuple[float, float],
    panels: tuple[int, int] = (1, 1),
    settings: Settings | None = None,
    reads: Iterable[str] = (),
    animate: Callable[[Any, xr.Dataset, float], None] | None = None,
    argv: list[str] | None = None,
) -> int:
    """Compute what is out of date, plot it, and save data, PDF and PNG.

    Data are recomputed if the code of the script, a module of this project that they were computed with, or a
    file that they were read from has changed. Comments and docstrings do not count. In the script, neither do
    functions whose names begin with ``draw``, ``animate``, ``tabulate`` or ``main``.

    Parameters
    ----------
    script : str
        The script's ``__file__``.
    compute : callable
        Takes ``quick``, whether to compute a coarse version, and returns the data. It is deterministic.
    draw : callable
        Plots data into axes: a single one, or an array of shape ``panels``.
    size : (float, float)
        Width and height in inches.
    panels : (int, int)
        Rows and columns of axes.
    settings : mapping, optional
        The counts that ``compute`` reduces in the quick version, see `chosen`.
    reads : iterable of str
        Committed files that data are read from, relative to the project's folder.
    animate : callable, optional
        Plots the frame at ``progress``, from 0 to 1, into axes like those of ``draw``. The frames become a
        GIF next to the figure.
    argv : list of str, optional

    Returns
    -------
    int
        Exit status.
    """

    def write(data: xr.Dataset, files: list[Path]) -> None:
        render(draw, data, files[:2], size=size, panels=panels)
        if animate is not None:
            animation(animate, data, files[2], size=size, panels=panels)

    suffixes = (".pdf", ".png") if animate is None else (".pdf", ".png", ".gif")
    return _run(script, compute, settings or {}, reads, suffixes, write, argv)


def run_table(
    script: str,
    compute: Callable[[bool], xr.Dataset],
    tabulate: Callable[[xr.Dataset], Table],
    *,
    reads: Iterable[str] = (),
    argv: list[str] | None = None,
) -> int:
    """Compute what is out of date, and save data, Markdown and LaTeX; parameters as in `run`.

    ``tabulate`` turns data into a table.
    """

    def write(data: xr.Dataset, files: list[Path]) -> None:
        table = tabulate(data)
        _write(files[0], f"{table.markdown()}\n")
        _write(files[1], f"{table.latex()}\n")

    return _run(script, compute, {}, reads, (".md", ".tex"), write, argv)


def _run(
    script: str,
    compute: Callable[[bool], xr.Dataset],
    settings: Settings,
    reads: Iterable[str],
    suffixes: Iterable[str],
    write: Callable[[xr.Dataset, list[Path]], None],
    argv: list[str] | None,
) -> int:
    name, reads = Path(script).stem, list(reads)
    args = _parser(name).parse_args(argv)
    started = time.perf_counter()
    try:
        target = check_target(Path(args.out, f"{name}.nc"))
        data = None if args.force else _kept(target, script, args.quick, reads)
        computed = data is None
        if data is None:
            data = compute(args.quick)
            data.attrs |= {"quick": int(args.quick), "machine": data.attrs.get("machine", processor())}
            for version, quick in (("drawn", args.quick), ("full", False)):
                data.attrs[version] = json.dumps(chosen(settings, quick))
            data.attrs["code"] = json.dumps(_code(script, reads), sort_keys=True)
            save(data, target)
        files = [target.with_suffix(suffix) for suffix in suffixes]
        if computed or not _drawn(files, [target, Path(script), Path(plots.__file__)]):
            write(data, files)
    except errors.StoreError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    how = "computed" if computed else "kept"
    seconds = time.perf_counter() - started
    print(f"{name}: {how}, {seconds:.1f} s, {os.path.relpath(files[0])}", flush=True)
    return 0


def render(
    draw: Callable[[Any, xr.Dataset], None],
    data: xr.Dataset,
    files: Iterable[Path] = (),
    *,
    size: tuple[float, float],
    panels: tuple[int, int] = (1, 1),
) -> Any:
    """Plot data in the style of `langevin.support.plots`; save the figure atomically, with the same bytes.

    Returns
    -------
    matplotlib.figure.Figure
    """
    import matplotlib.pyplot as plt

    with plt.style.context(plots.STYLE):
        figure, axes = plt.subplots(*panels, figsize=size)
        draw(axes, data)
        if figure.axes[1:]:
            plots.letters(figure.axes)
        if found := versions(data):
            figure.suptitle(f"quick version ({found[0]})", fontsize=6, color="0.35", x=0.99, ha="right")
        for file in files:
            dated = {".pdf": "CreationDate", ".svg": "Date"}.get(file.suffix)
            with atomic.replacing(file) as temporary:
                figure.savefig(temporary, metadata={dated: None} if dated else None)
        plt.close(figure)
    return figure


def animation(
    animate: Callable[[Any, xr.Dataset, float], None],
    data: xr.Dataset,
    file: Path,
    *,
    size: tuple[float, float],
    panels: tuple[int, int] = (1, 1),
) -> None:
    """Write `FRAMES` frames (a third of that for quick data) into a looping GIF of `SECONDS`."""
    import matplotlib.pyplot as plt
    from PIL import Image

    count = FRAMES // 3 if data.attrs.get("quick") else FRAMES
    frames: list[Image.Image] = []
    with plt.style.context(plots.STYLE):
        figure, axes = plt.subplots(*panels, figsize=size)
        for number in range(count):
            for ax in figure.axes:
                ax.clear()
            animate(axes, data, number / (count - 1))
            figure.canvas.draw()
            pixels = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")  # type: ignore[attr-defined]
            # with one palette for all frames, colours do not flicker
            frames.append(
                pixels.quantize(64, palette=frames[0] if frames else None, dither=Image.Dither.NONE)
            )
        plt.close(figure)
    # hold the last frame
    durations = [round(1000 * SECONDS / count)] * (count - 1) + [1500]
    with atomic.replacing(file) as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _write(file: Path, text: str) -> None:
    atomic.write_text(file, text)


def _parser(name: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=f"python -m figures.{name}", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--quick", action="store_true", help="make a coarse version, in seconds")
    p.add_argument("--force", action="store_true", help="recompute what is up to date")
    p.add_argument("--out", default=str(DEFAULT), metavar="FOLDER", help="folder for data and figure")
    return p


def scripts() -> list[Path]:
    """Return the scripts of all figures and tables: figures first, then by name."""
    found = Path(__file__).parent.glob("*/*_*.py")
    return sorted((p for p in found if p.stem[:4] in ("fig_", "tab_")), key=lambda p: p.stem)


def _kept(target: Path, script: str, quick: bool, reads: Iterable[str]) -> xr.Dataset | None:
    """Return the data on disk if they are what would be computed."""
    if not target.exists():
        return None
    try:
        data = load(target)
        code = json.loads(data.attrs["code"])
        same = bool(data.attrs["quick"]) == quick and code == _code(script, reads, code)
    except (errors.StoreError, KeyError, ValueError):
        return None
    return data if same else None


def _drawn(files: Iterable[Path], sources: Iterable[Path]) -> bool:
    """Tell whether all files exist and are newer than their sources."""
    newest = max(source.stat().st_mtime for source in sources)
    return all(file.exists() and file.stat().st_mtime >= newest for file in files)


def _code(script: str, reads: Iterable[str], names: Iterable[str] | None = None) -> dict[str, str]:
    """Return digests of the script, the files it reads, and the modules in ``names`` or in use."""
    found = {"script": _digest(Path(script), _DRAWING)}
    found |= {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest()[:16] for name in reads}
    for name in sorted(sys.modules if names is None else names):
        package, _, rest = name.partition(".")
        paths = [ROOT / package / f"{rest.replace('.', '/')}{end}" for end in (".py", "/__init__.py")]
        file = next((path for path in paths if path.is_file()), None)
        if package in PACKAGES and name not in _KEEPING and file is not None:
            found[name] = _digest(file)
    return found


def _digest(source: Path, without: Iterable[str] = ()) -> str:
    """Return a digest of a module's code that ignores comments, docstrings and layout."""
    tree = ast.parse(source.read_text(encoding="utf8"))
    tree.body = [node for node in tree.body if not str(getattr(node, "name", "")).startswith(tuple(without))]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0].value = ast.Constant("")
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]
