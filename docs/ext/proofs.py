"""Fold the proofs: from a paragraph that begins with *Proof.* or *Derivation.* to the one that ends it.

The end of a proof is marked with ∎; a derivation is one paragraph. Readers open a proof with the mouse or the
keyboard; the search finds its text, and on paper it is open.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

BEGIN = re.compile(r"(Proof|Derivation)\b.*\.$")
END = "∎"
logger = logging.getLogger(__name__)


class Folded(nodes.General, nodes.Element):
    """A proof, behind its title."""


class Title(nodes.TextElement):
    """What shows of a folded proof."""


class FoldProofs(SphinxTransform):
    """Move each proof of a page into a node of its own."""

    default_priority = 400

    def apply(self, **_: Any) -> None:
        """Fold the proofs, and warn of a proof without an end."""
        for paragraph in list(self.document.findall(nodes.paragraph)):
            if begins(paragraph):
                fold(paragraph)


def begins(paragraph: nodes.paragraph) -> bool:
    """Tell whether a paragraph begins a proof or a derivation."""
    first = paragraph.children[0] if paragraph.children else None
    return isinstance(first, nodes.emphasis) and bool(BEGIN.match(first.astext()))


def fold(paragraph: nodes.paragraph) -> None:
    """Fold the proof that begins with a paragraph; its first words become the title."""
    parent, title = paragraph.parent, paragraph[0].astext().rstrip(".")
    start = stop = parent.index(paragraph)
    if title.startswith("Proof"):
        ends = (at for at, node in enumerate(parent[start:], start) if END in node.astext())
        stop = next(ends, -1)
        if stop < 0:
            logger.warning("this proof has no end: mark it with %s", END, location=paragraph)
            return
    content = parent[start : stop + 1]
    paragraph.pop(0)
    if isinstance(first := paragraph[0], nodes.Text):
        paragraph[0] = nodes.Text(first.lstrip())
    parent[start : stop + 1] = [Folded("", Title("", title), *content)]


def visit_folded(writer: Any, _: nodes.Node) -> None:
    """Open the fold."""
    writer.body.append('<details class="proof">')


def depart_folded(writer: Any, _: nodes.Node) -> None:
    """Close the fold."""
    writer.body.append("</details>\n")


def visit_title(writer: Any, _: nodes.Node) -> None:
    """Begin what always shows."""
    writer.body.append("<summary>")


def depart_title(writer: Any, _: nodes.Node) -> None:
    """End what always shows."""
    writer.body.append("</summary>\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the nodes and the transform."""
    app.add_node(Folded, html=(visit_folded, depart_folded))
    app.add_node(Title, html=(visit_title, depart_title))
    app.add_transform(FoldProofs)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
