"""The user's cache folder."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path | None:
    """Return the folder of what can be computed again; None without a home directory.

    On Linux it is ``$XDG_CACHE_HOME/private-finetuning-dynamics``, by default in ``~/.cache``.
    """
    from platformdirs import user_cache_path

    try:
        found = user_cache_path("private-finetuning-dynamics")
    except RuntimeError:
        return None
    # earlier versions of platformdirs take a folder called "~" in the current one
    return found if found.is_absolute() else None
