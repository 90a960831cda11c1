"""Generate a page for each public module: first what its package exports, then the rest."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

from pages import ROOT, docstring, heading, write
from sphinx.application import Sphinx

PACKAGES = ("langevin", "bounds", "empirical")
# the commands have a separate page
DOORS = ("simulate", "report", "sweep", "plan", "finetune")
# what only the packages use; `engine.noise`, `engine.reductions` and `simulation.figure` are for users, too
INTERNAL = re.compile(
    r"(support|simulation(?!\.figure$)|engine(?!\.(noise|reductions)$)|store\.(atomic|locks|npz|rescue|untrusted)"
    r"|data\.(labels|tables)|solvers\.(adaptive|cones|prepare|report|sliding)|distance\.flow"
    r"|train\.(network|stage|step|record|streams|gradients\.depthwise)|studies\.(options|single|compare|talk)"
    r"|planning\.(inputs|search|settings))(\.|$)"
)


def package_pages(package: str) -> dict[str, str]:
    """Build the pages of a package and of its public modules."""
    exported = exports(package)
    files = {module_name(path, package): path for path in sorted((ROOT / package).rglob("*.py"))}
    modules = [
        name
        for name in files
        if name
        and name not in DOORS
        and not any(part.startswith("_") for part in name.split("."))
        and not INTERNAL.match(name)
    ]
    found = {
        f"{package}.{name}.rst": module_page(package, name, files[name], exported.get(name, []))
        for name in modules
    }
    listed = "".join(f"   {package}.{name}\n" for name in modules)
    toctree = f".. toctree::\n   :maxdepth: 1\n\n{listed}"
    return {f"{package}.rst": f"{heading(package)}\n.. automodule:: {package}\n\n{toctree}", **found}


def module_name(path: Path, package: str) -> str:
    """Return the name of a module within its package; ``__init__`` has the name of its folder."""
    parts = path.relative_to(ROOT / package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_page(package: str, module: str, path: Path, exported: list[str]) -> str:
    """Build the page of a module; what the package exports is listed under its short name."""
    name = f"{package}.{module}"
    rest = [f"{name}.{own}" for own in defined(path) if own not in exported]
    title = docstring(path)[0].rstrip(".").replace("`", "``")
    entries = [f"{package}.{own}" for own in exported] + rest
    body = "\n".join(entry(full) for full in entries)
    # a function with the module's name replaces the module as an attribute of the package
    module_itself = "" if module in exported else f".. py:module:: {name}\n\n"
    return f"{heading(name)}\n{title}.\n\n{module_itself}.. py:currentmodule:: {package}\n\n{body}"


def exports(package: str) -> dict[str, list[str]]:
    """Return the names that a package's stub imports from each of its modules."""
    found: dict[str, list[str]] = {}
    for node in ast.parse((ROOT / package / "__init__.pyi").read_text(encoding="utf8")).body:
        if isinstance(node, ast.ImportFrom):
            found.setdefault(str(node.module), []).extend(alias.name for alias in node.names)
    return found


def defined(path: Path) -> list[str]:
    """Return the public classes and functions of a module that have a docstring."""
    return [
        node.name
        for node in ast.parse(path.read_text(encoding="utf8")).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node)
    ]


def entry(full: str) -> str:
    """Return the directive that documents an object."""
    owner, _, name = full.rpartition(".")
    value = getattr(importlib.import_module(owner), name)
    if inspect.isclass(value):
        return f".. autoclass:: {full}\n   :members:\n"
    return f".. auto{'function' if callable(value) else 'data'}:: {full}\n"


def generate(app: Sphinx) -> None:
    """Write ``generated/api``."""
    wanted: dict[str, str] = {}
    for package in PACKAGES:
        wanted |= package_pages(package)
    write(Path(app.srcdir, "generated", "api"), wanted)


def setup(app: Sphinx) -> dict[str, bool]:
    """Generate the pages when the build begins."""
    app.connect("builder-inited", generate)
    return {"parallel_read_safe": True}
