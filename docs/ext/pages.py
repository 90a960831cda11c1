"""Helpers for pages that are generated when the site is built."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def heading(text: str, mark: str = "=") -> str:
    """Return a reStructuredText heading."""
    return f"{text}\n{mark * len(text)}\n"


def write(folder: Path, wanted: dict[str, str]) -> None:
    """Write the wanted pages and delete all others; unchanged pages keep their time, so Sphinx skips them."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in {path.name for path in folder.glob("*.rst")} - set(wanted):
        (folder / stale).unlink()
    for name, text in wanted.items():
        page = folder / name
        if not page.exists() or page.read_text(encoding="utf8") != text:
            page.write_text(text, encoding="utf8")


def docstring(source: Path) -> tuple[str, str]:
    """Return the first paragraph and the rest of a module's docstring, without importing it."""
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf8"))) or ""
    first, _, rest = text.partition("\n\n")
    return " ".join(first.split()), rest


def fingerprint(*places: str) -> str:
    """Return a digest of files of the project, and of all files in folders of it."""
    found = hashlib.sha256()
    for place in places:
        for path in sorted((ROOT / place).rglob("*")) or [ROOT / place]:
            if path.is_file() and "__pycache__" not in path.parts:
                found.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
                found.update(path.read_bytes())
    return found.hexdigest()
