"""Turn the script of a figure or table into files: data, PDF and PNG, or Markdown and LaTeX.

A script ``figures/fig_<topic>.py`` has ``compute(quick)``, which returns the data, and ``draw(ax, data)``,
which plots them and computes nothing. An animated figure also has ``animate(ax, data, progress)``. Its
``main`` calls `run`. Its table ``SETTINGS`` lists the counts that a quick version reduces; the data record
them. Where some data are slow to compute and others are read from committed results, ``collect(data)`` adds
the latter. A script ``figures/tab_<topic>.py`` has ``tabulate(data)`` instead of ``draw``, and calls
`run_table`.

The first paragraph of a script's docstring is its title, and the rest its caption. Names in braces there
stand for what ``caption(data)`` returns, so that the numbers of a caption are those of the data.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from figures import cache
from langevin.store import atomic, errors
from langevin.store.files import check_target, load, save
from langevin.support import plots
from langevin.support.machine import processor

if TYPE_CHECKING:
    import xarray as xr

    from empirical.studies.tables import Table

ROOT = cache.ROOT
DEFAULT = Path("build/figures")
FRAMES, SECONDS = 60, 6.0
# of a picture's panel alone, in pixels
THUMBNAIL = 640

# the count of each item in the quick version and in the full version
Settings = Mapping[str, tuple[int, int]]
Collect: TypeAlias = "Callable[[xr.Dataset], xr.Dataset]"
Caption: TypeAlias = "Callable[[xr.Dataset], Mapping[str, object]]"


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
    thumbnail: int = 0,
    settings: Settings | None = None,
    reads: Iterable[str] = (),
    collect: Collect | None = None,
    caption: Caption | None = None,
    animate: Callable[[Any, xr.Dataset, float], None] | None = None,
    argv: list[str] | None = None,
) -> int:
    """Compute what is out of date, plot it, and save data, caption, PDF and PNG.

    Data are recomputed if the code of the script, a module of this project that they were computed with, or a
    file that they were read from has changed; see `figures.cache.code`.

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
    thumbnail : int
        Place of the panel that the thumbnail shows.
    settings : mapping, optional
        The counts that ``compute`` reduces in the quick version, see `chosen`.
    reads : iterable of str
        Committed files that data are read from, relative to the project's folder.
    collect : callable, optional
        Takes the computed data and returns them with what is read from committed results.
    caption : callable, optional
        Takes the data and returns what the names in braces in the caption stand for.
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
        render(draw, data, files[:2], size=size, panels=panels, thumbnail=(files[2], thumbnail))
        if animate is not None:
            animation(animate, data, files[3], size=size, panels=panels)

    suffixes = [".pdf", ".png", ".thumbnail.png"] + [".gif"] * (animate is not None)
    job = _Job(script, compute, settings or {}, list(reads), collect, caption)
    return _run(job, suffixes, write, argv)


def run_table(
    script: str,
    compute: Callable[[bool], xr.Dataset],
    tabulate: Callable[[xr.Dataset], Table],
    *,
    reads: Iterable[str] = (),
    collect: Collect | None = None,
    caption: Caption | None = None,
    argv: list[str] | None = None,
) -> int:
    """Compute what is out of date, and save data, caption, Markdown and LaTeX; parameters as in `run`.

    ``tabulate`` turns data into a table.
    """

    def write(data: xr.Dataset, files: list[Path]) -> None:
        table = tabulate(data)
        atomic.write_text(files[0], f"{table.markdown()}\n")
        atomic.write_text(files[1], f"{table.latex()}\n")

    job = _Job(script, compute, {}, list(reads), collect, caption)
    return _run(job, [".md", ".tex"], write, argv)


class _Job(NamedTuple):
    """Where the data of a script come from, and what its caption quotes."""

    script: str
    compute: Callable[[bool], xr.Dataset]
    settings: Settings
    reads: list[str]
    collect: Collect | None
    caption: Caption | None

    def data(self, target: Path, args: argparse.Namespace) -> tuple[xr.Dataset, str]:
        """Return the data, from ``target`` if they are up to date, and how they were obtained."""
        committed = cache.stored(self.script)
        use = args.stored and Path(ROOT, committed).exists()
        reads = self.reads + [committed] * use
        if not args.force and (data := cache.kept(target, self.script, args.quick, reads)) is not None:
            return data, "kept"
        if use:
            data, how = load(ROOT / committed), "stored"
        else:
            data, how = self.compute(args.quick), "computed"
            data.attrs |= {"quick": int(args.quick), "machine": data.attrs.get("machine", processor())}
            data.attrs["drawn"] = json.dumps(chosen(self.settings, args.quick))
            data.attrs["code"] = json.dumps(cache.code(self.script, self.reads), sort_keys=True)
            # what only reads committed results needs no copy of them
            if args.store and (self.settings or self.collect):
                save(data, ROOT / committed)
        if self.collect is not None:
            data = self.collect(data)
        data.attrs["full"] = json.dumps(chosen(self.settings, False))
        data.attrs["code"] = json.dumps(cache.code(self.script, reads), sort_keys=True)
        save(data, target)
        return data, how


def _run(
    job: _Job,
    suffixes: Iterable[str],
    write: Callable[[xr.Dataset, list[Path]], None],
    argv: list[str] | None,
) -> int:
    name = Path(job.script).stem
    args = _parser(name).parse_args(argv)
    started = time.perf_counter()
    try:
        target = check_target(Path(args.out, f"{name}.nc"))
        data, how = job.data(target, args)
        files = [target.with_suffix(suffix) for suffix in (*suffixes, ".txt")]
        if how != "kept" or not _drawn(files, [target, Path(job.script), Path(plots.__file__)]):
            write(data, files)
            atomic.write_text(files[-1], quoted(job.script, job.caption, data))
    except errors.StoreError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    seconds = time.perf_counter() - started
    print(f"{name}: {how}, {seconds:.1f} s, {os.path.relpath(files[0])}", flush=True)
    return 0


def quoted(script: str | Path, caption: Caption | None, data: xr.Dataset) -> str:
    """Return the caption: the script's docstring after its title, with the numbers of the data."""
    text = ast.get_docstring(ast.parse(Path(script).read_text(encoding="utf8"))) or ""
    paragraphs = text.partition("\n\n")[2].format(**(caption(data) if caption else {})).split("\n\n")
    # a line that ends within Fashion-MNIST would be read as two words
    lines = [textwrap.fill(" ".join(p.split()), 110, break_on_hyphens=False) for p in paragraphs]
    return "\n\n".join(lines) + "\n"


def render(
    draw: Callable[[Any, xr.Dataset], None],
    data: xr.Dataset,
    files: Iterable[Path] = (),
    *,
    size: tuple[float, float],
    panels: tuple[int, int] = (1, 1),
    thumbnail: tuple[Path, int] | None = None,
) -> Any:
    """Plot data in the style of `langevin.support.plots`; save the figure atomically, with the same bytes.

    ``thumbnail`` is a file, and the place of the panel that it shows alone.

    Returns
    -------
    matplotlib.figure.Figure
    """
    import matplotlib.pyplot as plt

    with plt.style.context(plots.STYLE):
        figure, axes = plt.subplots(*panels, figsize=size)
        draw(axes, data)
        if isinstance(axes, np.ndarray):
            plots.letters(axes.flat)
        if found := versions(data):
            figure.suptitle(f"quick version ({found[0]})", fontsize=6, color="0.35", x=0.99, ha="right")
        for file in files:
            dated = {".pdf": "CreationDate", ".svg": "Date"}.get(file.suffix)
            with atomic.replacing(file) as temporary:
                figure.savefig(temporary, metadata={dated: None} if dated else None)
        if thumbnail is not None:
            _panel(figure, *thumbnail)
        plt.close(figure)
    return figure


def _panel(figure: Any, file: Path, place: int) -> None:
    """Save one panel of a figure with its labels, large enough to be read."""
    figure.set_layout_engine("none")
    for other in (*figure.axes, *figure.legends, *figure.texts):
        other.set_visible(other is figure.axes[place])
    box = figure.axes[place].get_tightbbox().transformed(figure.dpi_scale_trans.inverted()).padded(0.05)
    with atomic.replacing(file) as temporary:
        figure.savefig(temporary, bbox_inches=box, dpi=THUMBNAIL / box.width)


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


def _parser(name: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=f"python -m figures.{name}", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--quick", action="store_true", help="make a coarse version, in seconds")
    p.add_argument("--force", action="store_true", help="recompute what is up to date")
    p.add_argument("--stored", action="store_true", help="draw from data in docs/figures, if there are any")
    p.add_argument("--store", action="store_true", help="keep the data, if slow to compute, in docs/figures")
    p.add_argument("--out", default=str(DEFAULT), metavar="FOLDER", help="folder for data and figure")
    return p


def scripts() -> list[Path]:
    """Return the scripts of all figures and tables: figures first, then by name."""
    found = Path(__file__).parent.glob("*/*_*.py")
    return sorted((p for p in found if p.stem[:4] in ("fig_", "tab_")), key=lambda p: p.stem)


def _drawn(files: Iterable[Path], sources: Iterable[Path]) -> bool:
    """Tell whether all files exist and are newer than their sources."""
    newest = max(source.stat().st_mtime for source in sources)
    return all(file.exists() and file.stat().st_mtime >= newest for file in files)
