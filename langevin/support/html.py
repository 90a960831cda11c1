"""Tables for notebooks."""

from __future__ import annotations

import html
from collections.abc import Mapping


def table(title: str, rows: Mapping[str, object]) -> str:
    """Return an HTML table of names and values, with everything escaped.

    Examples
    --------
    >>> table("Thing", {"a < b": True})
    '<table><caption>Thing</caption><tr><th>a &lt; b</th><td>True</td></tr></table>'
    """
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"
