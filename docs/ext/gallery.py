"""Generate the gallery: every figure and table, in its quick version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pages import ROOT, docstring, fingerprint, heading, write
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from figures import output
from langevin.store.files import load

# what the figures are made from
SOURCES = ("langevin", "bounds", "empirical", "figures", "docs/study")
SUFFIXES = {".pdf": "PDF", ".tex": "LaTeX", ".nc": "data"}


def generate(app: Sphinx) -> None:
    """Make the figures that are out of date and write ``generated/gallery``."""
    folder = Path(app.srcdir, "generated", "figures")
    make(folder)
    scripts = output.scripts()
    pages = {f"{script.stem}.rst": page(script, folder) for script in scripts}
    pages["index.rst"] = index(scripts, folder)
    write(Path(app.srcdir, "generated", "gallery"), pages)


def make(folder: Path) -> None:
    """Make the figures, unless nothing that they are made from has changed."""
    made_from, now = folder / "made-from.txt", fingerprint(*SOURCES)
    if made_from.exists() and made_from.read_text(encoding="utf8") == now:
        return
    command = [sys.executable, "-m", "figures", "--quick", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ExtensionError(f"{' '.join(command[1:])} failed:\n{done.stdout}{done.stderr}")
    made_from.write_text(now, encoding="utf8")


def page(script: Path, folder: Path) -> str:
    """Build a page: picture or table, version, caption, command and script."""
    name = script.stem
    title, caption = docstring(script)
    versions = output.versions(load(folder / f"{name}.nc"))
    parts = [heading(title.rstrip(".")), shown(name, title, folder)]
    if versions:
        parts.append(
            f"**This picture is a quick version** ({versions[0]}). The text below describes the full version "
            f"({versions[1]}), so its numbers differ from those in this picture."
        )
    parts.append(caption)
    if (folder / f"{name}.gif").exists():
        parts.append(f".. image:: ../figures/{name}.gif\n   :alt: {title} Animated.")
    files = [
        f":download:`{text} <../figures/{name}{end}>`"
        for end, text in SUFFIXES.items()
        if (folder / f"{name}{end}").exists()
    ]
    parts += [
        f"This command makes {'the full version' if versions else 'the same'} and the data behind it:",
        f".. code-block:: sh\n\n   python -m figures {name[4:]}",
        f"Downloads of what is shown: {', '.join(files)}.",
        heading("The script", "-"),
        f".. literalinclude:: ../../../{script.relative_to(ROOT)}\n   :language: python",
    ]
    return "\n\n".join(parts) + "\n"


def shown(name: str, title: str, folder: Path) -> str:
    """Return the directive that shows the figure, or the tables of a Markdown file."""
    if (folder / f"{name}.png").exists():
        return f".. image:: ../figures/{name}.png\n   :alt: {title}"
    return f".. include:: ../figures/{name}.md\n   :parser: myst_parser.sphinx_"


def index(scripts: list[Path], folder: Path) -> str:
    """Build the index: a thumbnail of each, with its title."""
    parts = [
        heading("Gallery"),
        "Every figure and table comes from one script in ``figures/``. The gallery shows quick versions "
        "where the full ones take long; each page says which it shows. ``make figures`` makes the full "
        "versions.",
        ".. toctree::\n   :hidden:\n\n" + "".join(f"   {script.stem}\n" for script in scripts),
    ]
    for script in scripts:
        name = script.stem
        parts.append(f":doc:`{docstring(script)[0].rstrip('.')} <{name}>`")
        if (folder / f"{name}.png").exists():
            options = f"   :alt: {docstring(script)[0]}\n   :target: {name}.html\n   :class: thumbnail"
            parts.append(f".. image:: ../figures/{name}.png\n{options}")
    return "\n\n".join(parts) + "\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Generate the gallery when the build begins."""
    app.connect("builder-inited", generate)
    return {"parallel_read_safe": True}
