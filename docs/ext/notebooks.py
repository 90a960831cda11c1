"""Offer each page with Python code as a Jupyter notebook."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from sphinx.application import Sphinx

BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```[^\S\n]*\n?", re.M | re.S)
TITLE = re.compile(r"^# .+\n", re.M)
# directives whose text is part of the page; the others are left out
REMARKS = ("{note}", "{warning}", "{tip}")
# what only Sphinx knows, and what replaces it: labels, roles, pictures, and links within the site
SPHINX = (
    (r"^\([\w-]+\)=\n", ""),
    (r"\{[\w:]+\}`(?:([^`<]*?) <[^`>]*>|~?([^`]*))`", lambda found: f"`{found[1] or found[2]}`"),
    (r"!\[([^\]]*)\]\([^)]*\)", r"*\1*"),
    (r"\[([^\]]*)\]\((?!https?:)[\w./#-]+\)", r"\1"),
)


def notebook(page: str, macros: dict[str, str]) -> str:
    """Return a page of MyST Markdown as a notebook; its code cells are the page's blocks, in order."""
    cells, at, prose = [], 0, ""
    for found in BLOCK.finditer(page):
        language, block = found.groups()
        prose += page[at : found.start()]
        at = found.end()
        if language in ("python", "sh"):
            cells += [*text_cell(prose), nbformat.v4.new_code_cell(code(language, block))]
            prose = ""
        elif not language.startswith("{"):
            prose += found.group()
        elif language in REMARKS:
            prose += "".join(f"> {line}\n" for line in block.splitlines())
    cells += text_cell(prose + page[at:])
    used = "".join(definition(name, body) for name, body in macros.items() if re.search(rf"\{name}\b", page))
    if used:
        cells.insert(0, nbformat.v4.new_markdown_cell(f"${used}$"))
    for number, cell in enumerate(cells):
        # the same page gives the same file
        cell["id"] = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.validate(book)
    return nbformat.writes(book) + "\n"


def text_cell(prose: str) -> list[nbformat.NotebookNode]:
    """Return a cell with the text without what only Sphinx knows, or none if nothing is left."""
    for pattern, instead in SPHINX:
        prose = re.sub(pattern, instead, prose, flags=re.M)
    return [nbformat.v4.new_markdown_cell(prose.strip())] if prose.strip() else []


def code(language: str, block: str) -> str:
    """Return what a cell runs; a notebook runs a shell command after an exclamation mark."""
    if language == "python":
        return block.rstrip()
    joined = block.replace("\\\n", " ").splitlines()
    return "\n".join(line if not line or line.startswith("#") else f"!{line}" for line in joined)


def definition(name: str, body: str) -> str:
    """Return a macro of KaTeX in LaTeX."""
    arguments = "[1]" if "#1" in body else ""
    return rf"\newcommand{{{name}}}{arguments}{{{body}}}"


def offer(app: Sphinx, docname: str, source: list[str]) -> None:
    """Write the notebook of a page, and a link to it below the title."""
    if app.env.doc2path(docname).suffix != ".md":
        return
    if not any(language == "python" for language, _ in BLOCK.findall(source[0])):
        return
    file = Path(app.srcdir, "generated", "notebooks", f"{docname}.ipynb")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(notebook(source[0], app.config.notebook_macros), encoding="utf8")
    link = f"\n{{download}}`This page as a notebook </generated/notebooks/{docname}.ipynb>`\n"
    source[0] = TITLE.sub(lambda title: title.group() + link, source[0], count=1)


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the notebooks when pages are read."""
    app.add_config_value("notebook_macros", {}, "env")
    app.connect("source-read", offer)
    return {"parallel_read_safe": True}
