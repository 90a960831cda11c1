"""What saving and loading raise."""

from __future__ import annotations


class StoreError(Exception):
    """A file cannot be read or written; the message says which, why, and what to do."""
