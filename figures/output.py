"""From a figure's script to its files: the data behind it, PDF and PNG.

A script ``figures/fig_<topic>.py`` has ``compute(quick)``, which returns the data, and ``draw(ax, data)``,
which draws them and computes nothing. Its ``main`` is `run`.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langevin import store

if TYPE_CHECKING:
    import xarray as xr

ROOT = Path(__file__).resolve().parents[1]
STYLE = Path(__file__).with_name("style.mplstyle")
DEFAULT = Path("build/figures")
PACKAGES = ("langevin", "bounds", "empirical")
# they do not change what is computed
_DRAWING = ("draw", "main")


def run(
    script: str,
    compute: Callable[[bool], xr.Dataset],
    draw: Callable[[Any, xr.Dataset], None],
    *,
    size: tuple[float, float],
    panels: tuple[int, int] = (1, 1),
    reads: Iterable[str] = (),
    argv: list[str] | None = None,
) -> int:
    """Compute what is out of date, draw it, and keep data, PDF and PNG.

    Data are computed anew if the script's code (but for its drawing), a module of this project that they were
    computed with, or a file that they were read from has changed; comments and docstrings do not count.

    Parameters
    ----------
    script : str
        The script's ``__file__``.
    compute : callable
        From ``quick``, whether a coarse version will do, to the data. The same call gives the same data.
    draw : callable
        Draws data into axes: one, or an array of the shape ``panels``.
    size : (float, float)
        Width and height in inches.
    panels : (int, int)
        Rows and columns of axes.
    reads : iterable of str
        Committed files, relative to the project's folder, that data are read from.
    argv : list of str, optional

    Returns
    -------
    int
        Exit status.
    """
    name = Path(script).stem
    args = _parser(name).parse_args(argv)
    started = time.perf_counter()
    try:
        target = store.check_target(Path(args.out, f"{name}.nc"))
        data = None if args.force else _kept(target, script, args.quick, reads)
        computed = data is None
        if data is None:
            data = compute(args.quick)
            data.attrs |= {"quick": int(args.quick), "machine": data.attrs.get("machine", machine())}
            data.attrs["code"] = json.dumps(_code(script, reads), sort_keys=True)
            store.save(data, target)
        files = [target.with_suffix(suffix) for suffix in (".pdf", ".png")]
        if computed or not _drawn(files, [target, Path(script), STYLE]):
            render(draw, data, files, size=size, panels=panels)
    except store.StoreError as error:
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
    """Draw data in the style of this folder and save the figure, whole or not at all, always the same bytes.

    Returns
    -------
    matplotlib.figure.Figure
    """
    import matplotlib.pyplot as plt

    with plt.style.context(STYLE):
        figure, axes = plt.subplots(*panels, figsize=size)
        draw(axes, data)
        if "machine" in data.attrs:
            quick = ", quick version" if data.attrs.get("quick") else ""
            figure.supxlabel(
                f"data: {data.attrs['machine']}{quick}", fontsize=5, color="0.45", x=0.99, ha="right"
            )
        for file in files:
            temporary = file.with_name(f".{os.getpid()}-{file.name}")
            dated = {".pdf": "CreationDate", ".svg": "Date"}.get(file.suffix)
            try:
                figure.savefig(temporary, metadata={dated: None} if dated else None)
                os.replace(temporary, file)
            finally:
                temporary.unlink(missing_ok=True)
        plt.close(figure)
    return figure


def machine() -> str:
    """Name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _parser(name: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=f"python -m figures.{name}", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--quick", action="store_true", help="a coarse version, in seconds")
    p.add_argument("--force", action="store_true", help="compute anew what is up to date")
    p.add_argument("--out", default=str(DEFAULT), metavar="FOLDER", help="where data and figure go")
    return p


def _kept(target: Path, script: str, quick: bool, reads: Iterable[str]) -> xr.Dataset | None:
    """The data on disk, if they are what would be computed."""
    if not target.exists():
        return None
    try:
        data = store.load(target)
        code = json.loads(data.attrs["code"])
        same = bool(data.attrs["quick"]) == quick and code == _code(script, reads, code)
    except (store.StoreError, KeyError, ValueError):
        return None
    return data if same else None


def _drawn(files: Iterable[Path], sources: Iterable[Path]) -> bool:
    """Whether all files are there and newer than what they are drawn from."""
    newest = max(source.stat().st_mtime for source in sources)
    return all(file.exists() and file.stat().st_mtime >= newest for file in files)


def _code(script: str, reads: Iterable[str], names: Iterable[str] | None = None) -> dict[str, str]:
    """Digests of the script, of the files that it reads, and of modules: those named, else those in use."""
    found = {"script": _digest(Path(script), _DRAWING)}
    found |= {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest()[:16] for name in reads}
    for name in sorted(sys.modules if names is None else names):
        package, _, rest = name.partition(".")
        paths = [ROOT / package / f"{rest.replace('.', '/')}{end}" for end in (".py", "/__init__.py")]
        file = next((path for path in paths if path.is_file()), None)
        if package in PACKAGES and file is not None:
            found[name] = _digest(file)
    return found


def _digest(source: Path, without: Iterable[str] = ()) -> str:
    """Digest of a module's code, whatever its comments, docstrings and layout."""
    tree = ast.parse(source.read_text(encoding="utf8"))
    tree.body = [node for node in tree.body if str(getattr(node, "name", "")) not in without]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0].value = ast.Constant("")
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]
