"""Find where this package is installed, and how to install what is missing."""

from __future__ import annotations

import os
from pathlib import Path

_NAME = "private-finetuning-dynamics"
# packages of other extras than that of DP-SGD
_EXTRAS = {
    "bokeh": "sweep",
    "dask": "sweep",
    "distributed": "sweep",
    "panel": "explore",
    "safetensors": "vision",
    "timm": "vision",
    "torchvision": "vision",
    "transformers": "vision",
}


def checkout() -> str | None:
    """Return the project's folder (with figures, README and Makefile) unless this is an installed wheel."""
    root = str(Path(__file__).resolve().parents[2])
    wanted = ("Makefile", "README.md", "pyproject.toml", "figures")
    return root if all(os.path.exists(os.path.join(root, name)) for name in wanted) else None


def command(extra: str) -> str:
    """Return the command that installs an extra."""
    root = checkout()
    if root is None:
        return f"pip install '{_NAME}[{extra}]'"
    return f"pip install -e '{'.' if is_current(root) else root}[{extra}]'"


def is_current(folder: str) -> bool:
    """Tell whether a folder is the working directory of this process."""
    try:
        return os.path.samefile(folder, os.curdir)
    except OSError:  # its own was removed
        return False


def extra_of(package: str) -> str:
    """Return the extra that installs a package."""
    return _EXTRAS.get(package.partition(".")[0], "dpsgd")
