"""Generate the gallery: every figure and table, in the order of the story."""

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
SOURCES = ("langevin", "bounds", "empirical", "figures", "docs/figures", "docs/study")
SUFFIXES = {".pdf": "PDF", ".tex": "LaTeX", ".nc": "data"}
# what each part of the story shows, and its figures and tables
STORY: dict[str, tuple[str, tuple[str, ...]]] = {
    "The setting": (
        "A pre-trained network gets a new head, and one privacy budget is to be spent on training it.",
        ("fig_strategies",),
    ),
    "Distortion": (
        "Full fine-tuning from a random head pushes features away from their class.",
        ("fig_neurons",),
    ),
    "What prevents it": (
        "Probing first aligns the head; a zero head or class prototypes are aligned from the start.",
        ("fig_heads", "fig_clipping_share"),
    ),
    "Bounds": (
        "How far theory is from simulation.",
        ("fig_error", "fig_loss", "fig_linear", "fig_width"),
    ),
    "Noise and privacy": (
        "What the noise does that no head prevents.",
        ("fig_features", "fig_clipping", "fig_forecast"),
    ),
    "The budget": (
        "Which share of it probing needs, and which share works best.",
        (
            *("fig_budget", "fig_best_share", "fig_planner", "fig_rules"),
            *("tab_shares", "tab_aims", "tab_tasks", "tab_regret", "tab_calibration", "tab_hedge"),
        ),
    ),
    "K classes": (
        "The same with more than two classes.",
        ("fig_classes",),
    ),
    "Practice": (
        "Real DP-SGD, and data that do not meet the assumptions.",
        (
            *("fig_gains", "fig_gains_real"),
            "fig_real",
            "fig_features_real",
            "fig_assumptions",
            "tab_small",
            "tab_backbones",
            "tab_lite0",
        ),
    ),
    "Appendix": (
        "The figure of the loss, for other spreads within a class.",
        ("fig_loss_spreads",),
    ),
}


def generate(app: Sphinx) -> None:
    """Make the figures that are out of date, from stored data where there are any, and write the pages."""
    folder = Path(app.srcdir, "generated", "figures")
    make(folder)
    scripts = {script.stem: script for script in output.scripts()}
    pages = {f"{name}.rst": page(script, folder) for name, script in scripts.items()}
    pages["index.rst"] = index(scripts, folder)
    write(Path(app.srcdir, "generated", "gallery"), pages)


def make(folder: Path) -> None:
    """Make the figures, from stored data where there are any, unless what they are made from is as it was."""
    made_from, now = folder / "made-from.txt", fingerprint(*SOURCES)
    if made_from.exists() and made_from.read_text(encoding="utf8") == now:
        return
    command = [sys.executable, "-m", "figures", "--stored", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ExtensionError(f"{' '.join(command[1:])} failed:\n{done.stdout}{done.stderr}")
    made_from.write_text(now, encoding="utf8")


def page(script: Path, folder: Path) -> str:
    """Build a page: picture or table, caption, command and script."""
    name = script.stem
    title, _ = docstring(script)
    versions = output.versions(load(folder / f"{name}.nc"))
    parts = [heading(title.rstrip(".")), shown(name, title, folder)]
    if versions:
        parts.append(f"**This is a coarse version** ({versions[0]}; the full one: {versions[1]}).")
    parts.append((folder / f"{name}.txt").read_text(encoding="utf8"))
    if (folder / f"{name}.gif").exists():
        parts.append(f".. image:: ../figures/{name}.gif\n   :alt: {title} Animated.")
    files = [
        f":download:`{text} <../figures/{name}{end}>`"
        for end, text in SUFFIXES.items()
        if (folder / f"{name}{end}").exists()
    ]
    parts += [
        "This command makes it, and the data behind it:",
        f".. code-block:: sh\n\n   python -m figures {name[4:]}",
        f"Downloads: {', '.join(files)}.",
        heading("The script", "-"),
        f".. literalinclude:: ../../../{script.relative_to(ROOT)}\n   :language: python",
    ]
    return "\n\n".join(parts) + "\n"


def shown(name: str, title: str, folder: Path) -> str:
    """Return the directive that shows the figure, or the tables of a Markdown file."""
    if (folder / f"{name}.png").exists():
        return f".. figure:: ../figures/{name}.png\n   :alt: {title}"
    return f".. include:: ../figures/{name}.md\n   :parser: myst_parser.sphinx_"


def index(scripts: dict[str, Path], folder: Path) -> str:
    """Build the index: the parts of the story, each with its panels and titles."""
    told = [name for _, names in STORY.values() for name in names]
    if sorted(told) != sorted(scripts):
        raise ExtensionError(f"STORY must name each of {sorted(scripts)} once, got {sorted(told)}")
    parts = [
        heading("Gallery"),
        "The figures and tables of the project, each from one script in ``figures/``, in the order of the "
        "story. A picture here shows one panel; its page has the whole figure, the caption, the data and "
        "the script.",
        ".. toctree::\n   :hidden:\n\n" + "".join(f"   {name}\n" for name in told),
    ]
    for part, (words, names) in STORY.items():
        parts += [heading(part, "-"), words]
        parts.append(".. container:: gallery\n\n" + "\n\n".join(card(scripts[n], folder) for n in names))
    return "\n\n".join(parts) + "\n"


def card(script: Path, folder: Path) -> str:
    """Build an entry of the index: one panel of the figure, or nothing of a table, and the title."""
    name, title = script.stem, docstring(script)[0].rstrip(".")
    link = f":doc:`{title} <{name}>`"
    if not (folder / f"{name}.thumbnail.png").exists():
        return f"   .. container:: card\n\n      Table: {link}"
    lines = [
        f"   .. figure:: ../figures/{name}.thumbnail.png",
        f"      :alt: {title}",
        f"      :target: {name}.html",
        "      :figclass: card",
        "",
        f"      {link}",
    ]
    return "\n".join(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Generate the gallery when the build begins."""
    app.connect("builder-inited", generate)
    return {"parallel_read_safe": True}
