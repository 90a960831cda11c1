"""Tell whether data on disk are what a script would compute, and keep the data of slow figures.

The data of figures that take long are committed in ``docs/figures``, where ``python -m figures --store``
puts them. ``python -m figures --stored`` draws from them, as the documentation does.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langevin.store import errors
from langevin.store.files import load

if TYPE_CHECKING:
    import xarray as xr

ROOT = Path(__file__).resolve().parents[1]
STORED = "docs/figures"
PACKAGES = ("langevin", "bounds", "empirical", "figures")
# these plot and save what other modules compute
_KEEPING = ("figures", "figures.cache", "figures.output", "figures.__main__", "langevin.support.plots")


def stored(script: str | Path) -> str:
    """Return the file in which the data of a script are committed, relative to the project's folder."""
    return f"{STORED}/{Path(script).stem}.nc"


def kept(target: Path, script: str, quick: bool, reads: Iterable[str]) -> xr.Dataset | None:
    """Return the data on disk if they are what would be made.

    Parameters
    ----------
    target : Path
    script : str
    quick : bool
        Whether the coarse version is wanted.
    reads : iterable of str
        Files that the data are read from, relative to the project's folder.
    """
    if not target.exists():
        return None
    try:
        data = load(target)
        found = json.loads(data.attrs["code"])
        same = bool(data.attrs["quick"]) == quick and found == code(script, reads, found)
    except (errors.StoreError, KeyError, ValueError):
        return None
    return data if same else None


def code(script: str, reads: Iterable[str], names: Iterable[str] | None = None) -> dict[str, str]:
    """Return digests of the script, the files it reads, and the modules in ``names`` or in use.

    Comments, docstrings and layout do not count. Of a script, only what its ``compute`` uses counts.
    """
    found = {"script": _digest(Path(script), "compute")}
    found |= {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest()[:16] for name in reads}
    for name in sorted(sys.modules if names is None else names):
        package, _, rest = name.partition(".")
        paths = [ROOT / package / f"{rest.replace('.', '/')}{end}" for end in (".py", "/__init__.py")]
        file = next((path for path in paths if path.is_file()), None)
        if package in PACKAGES and name not in _KEEPING and file is not None:
            found[name] = _digest(file, "compute" if file.stem.startswith(("fig_", "tab_")) else None)
    return found


def _digest(source: Path, start: str | None = None) -> str:
    """Return a digest of a module, or of what one of its functions uses."""
    tree = ast.parse(source.read_text(encoding="utf8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0].value = ast.Constant("")
    statements = tree.body if start is None else _used(tree, start)
    return hashlib.sha256(repr(_plain(statements)).encode()).hexdigest()[:16]


def _used(tree: ast.Module, start: str) -> list[ast.stmt]:
    """Return the statements of a module that define what a function uses, directly or through others."""
    homes: dict[str, ast.stmt] = {}
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                homes[alias.asname or alias.name] = ast.ImportFrom(statement.module, [alias], statement.level)
        elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
            homes[statement.name] = statement
        else:
            uses = (n for n in ast.walk(statement) if isinstance(n, ast.Name))
            homes |= {n.id: statement for n in uses if isinstance(n.ctx, ast.Store)}
    found: dict[str, ast.stmt] = {}
    names = [start]
    while names:
        name = names.pop()
        if name in homes and name not in found:
            found[name] = homes[name]
            used = [node for node in ast.walk(found[name]) if isinstance(node, ast.Name)]
            # what a function assigns is its own
            own = {node.id for node in used if isinstance(node.ctx, ast.Store)}
            names += [node.id for node in used if node.id not in own]
    return [found[name] for name in sorted(found)]


def _plain(node: Any) -> Any:
    """Return a syntax tree as tuples without empty fields, which differ between versions of Python."""
    if isinstance(node, list):
        return tuple(map(_plain, node))
    if not isinstance(node, ast.AST):
        return node
    fields = [(name, _plain(value)) for name, value in ast.iter_fields(node)]
    return type(node).__name__, *(pair for pair in fields if pair[1] is not None and pair[1] != ())
