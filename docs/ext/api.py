"""Generate a page for each public module, first what its package exports, and lists of all these names."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

from pages import ROOT, docstring, heading, write
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

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
    toctree = f".. toctree::\n   :hidden:\n\n{listed}"
    lines = "".join(f"- :doc:`{package}.{name}`: {literal(docstring(files[name])[0])}\n" for name in modules)
    page = f"{heading(package)}\n.. automodule:: {package}\n\n{heading('Modules', '-')}\n{lines}\n{toctree}"
    return {f"{package}.rst": page, **found}


def module_name(path: Path, package: str) -> str:
    """Return the name of a module within its package; ``__init__`` has the name of its folder."""
    parts = path.relative_to(ROOT / package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_page(package: str, module: str, path: Path, exported: list[str]) -> str:
    """Build the page of a module; what the package exports is listed under its short name."""
    name = f"{package}.{module}"
    rest = [f"{name}.{own}" for own in defined(path) if own not in exported]
    title = literal(docstring(path)[0].rstrip("."))
    entries = [f"{package}.{own}" for own in exported] + rest
    body = "\n".join(entry(full) for full in entries)
    # a function with the module's name replaces the module as an attribute of the package
    module_itself = "" if module in exported else f".. py:module:: {name}\n\n"
    return f"{heading(name)}\n{title}.\n\n{module_itself}.. py:currentmodule:: {package}\n\n{body}"


def names(package: str) -> str:
    """Build the list of the names that a package exports, each with the first sentence about it."""
    found = {name: module for module, own in exports(package).items() for name in own}
    lines = [
        f"- :py:obj:`{package}.{name}`: {literal(summary(package, found[name], name))}\n"
        for name in sorted(found, key=str.casefold)
    ]
    return "".join(lines)


def summary(package: str, module: str, name: str) -> str:
    """Return the first sentence about a name: of its docstring, or of the comment on a constant."""
    value = getattr(importlib.import_module(package), name)
    if callable(value):
        text = inspect.getdoc(value) or ""
    else:
        comments = ModuleAnalyzer.for_module(f"{package}.{module}").find_attr_docs()
        text = "\n".join(comments[("", name)])
    sentence = " ".join(text.strip().split("\n\n")[0].split())
    # the references are on the page of the name
    return re.sub(r"(?: of)? \[\d\]_", "", sentence)


def literal(text: str) -> str:
    """Mark code that is in single backticks as reStructuredText does."""
    return re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", text)


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
    """Write ``generated/api``, and the lists of names that ``api.md`` includes."""
    wanted: dict[str, str] = {}
    for package in PACKAGES:
        wanted |= package_pages(package)
    write(Path(app.srcdir, "generated", "api"), wanted)
    write(Path(app.srcdir, "generated", "names"), {f"{package}.rst": names(package) for package in PACKAGES})


def setup(app: Sphinx) -> dict[str, bool]:
    """Generate the pages when the build begins."""
    app.connect("builder-inited", generate)
    return {"parallel_read_safe": True}
