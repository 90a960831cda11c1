"""Show on each theory page its rows of the table of statements, which ``theory/index.md`` keeps."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

INDEX = "theory/index"
HEADER = re.compile(r"^\| statement \|.*\n\|[-|]+\|\n", re.M)
# with its label, if it has one
SECTION = re.compile(r"^(?:\([\w-]+\)=\n)?## ", re.M)


def table(index: str, page: str) -> str:
    """Return the table of statements with the rows that link to a page, or nothing if there are none."""
    header = HEADER.search(index)
    assert header, "theory/index.md has no table of statements"
    body = index[header.end() :].partition("\n\n")[0]
    rows = [row for row in body.splitlines() if re.match(rf"\| \[[^\]]+\]\({re.escape(page)}[#)]", row)]
    return f"{header.group()}{chr(10).join(rows)}\n" if rows else ""


def insert(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the table of a page before its first section."""
    folder, _, name = docname.rpartition("/")
    if folder != "theory" or docname == INDEX:
        return
    app.env.note_dependency(app.env.doc2path(INDEX))
    found = table(Path(app.env.doc2path(INDEX)).read_text(encoding="utf8"), f"{name}.md")
    if found:
        words = "The statements of this page, of [all statements](index.md#statements):"
        shown = f"{words}\n\n```{{table}}\n:class: statements\n\n{found}```\n\n"
        source[0] = SECTION.sub(lambda section: shown + section.group(), source[0], count=1)


def setup(app: Sphinx) -> dict[str, bool]:
    """Insert the tables when pages are read."""
    app.connect("source-read", insert)
    return {"parallel_read_safe": True}
