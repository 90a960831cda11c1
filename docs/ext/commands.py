"""Generate a page with the help text of each command."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pages import ROOT, heading, write
from sphinx.application import Sphinx

DOORS = (
    "langevin",
    "langevin.simulate",
    "langevin.report",
    "langevin.explore",
    "langevin.sweep",
    "bounds.plan",
    "empirical.finetune",
    "figures",
)


def generate(app: Sphinx) -> None:
    """Write ``generated/commands``."""
    found = [door for door in DOORS if source(door).exists()]
    parts = [
        heading("Commands"),
        "This page shows what each command prints for ``--help``. A command that succeeds exits with 141 if "
        "the reader of its output has left, as in ``| head -1``; its files are saved nevertheless.",
    ]
    with ThreadPoolExecutor() as pool:
        for door, text in zip(found, pool.map(help_text, found), strict=True):
            block = "".join(f"   {line}".rstrip() + "\n" for line in text.splitlines())
            parts += [heading(f"python -m {door}", "-"), f".. code-block:: text\n\n{block}"]
    write(Path(app.srcdir, "generated", "commands"), {"index.rst": "\n\n".join(parts)})


def help_text(door: str) -> str:
    """Return what a command prints for ``--help``."""
    return subprocess.run(
        [sys.executable, "-m", door, "--help"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def source(door: str) -> Path:
    """Return the file that ``python -m`` runs."""
    path = ROOT / door.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def setup(app: Sphinx) -> dict[str, bool]:
    """Generate the page when the build begins."""
    app.connect("builder-inited", generate)
    return {"parallel_read_safe": True}
