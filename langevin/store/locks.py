"""Locks on open files; the system lets go of them when the process ends, however it ends."""

from __future__ import annotations

from typing import IO

try:
    import fcntl
except ImportError:  # no advisory locks on this system
    fcntl = None


def lock(file: int | IO, *, wait: bool = False) -> bool:
    """Lock an open file, or a descriptor, until it is closed; always succeeds on systems without locks.

    Parameters
    ----------
    file : int or file
    wait : bool
        Wait until nobody else holds the lock.

    Returns
    -------
    bool
        Whether it is locked: False if another process holds it.

    Raises
    ------
    OSError
        If the file system has no locks.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
