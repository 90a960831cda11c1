"""Where this package runs from, and how to install what is missing there."""

from __future__ import annotations

import os
from pathlib import Path

_NAME = "private-finetuning-dynamics"
# packages of other extras than that of DP-SGD
_EXTRAS = {
    "bokeh": "sweep",
    "dask": "sweep",
    "distributed": "sweep",
    "safetensors": "vision",
    "timm": "vision",
    "torchvision": "vision",
    "transformers": "vision",
}


def checkout() -> str | None:
    """The project's folder, where this is not an installed wheel: it has the figures, the README and make."""
    root = str(Path(__file__).resolve().parents[2])
    wanted = ("Makefile", "README.md", "pyproject.toml", "figures")
    return root if all(os.path.exists(os.path.join(root, name)) for name in wanted) else None


def command(extra: str) -> str:
    """What to type for an extra."""
    root = checkout()
    if root is None:
        return f"pip install '{_NAME}[{extra}]'"
    return f"pip install -e '{'.' if is_current(root) else root}[{extra}]'"


def is_current(folder: str) -> bool:
    """Whether this process works in a folder."""
    try:
        return os.path.samefile(folder, os.curdir)
    except OSError:  # its own was removed
        return False


def extra_of(package: str) -> str:
    """The extra that brings a package."""
    return _EXTRAS.get(package.partition(".")[0], "dpsgd")
