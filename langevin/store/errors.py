"""What saving and loading raise."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class StoreError(Exception):
    """A file cannot be read or written; the message says which, why, and what to do."""
