"""Files and folders that appear complete or not at all, whenever the process is killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from langevin.store import locks

# folders of work under way end so, and hold the folder that is being replaced under this name
_SUFFIX, _REPLACED = ".writing", ".replaced"


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a path for writing a file or folder, which then replaces the target.

    It lies in a separate folder next to the target, locked while it is written. What a killed
    process left there is removed by the next write, or by `clear`.

    Raises
    ------
    OSError
        If it cannot be written; the target is as it was.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "note.txt")) as path:
    ...         _ = path.write_text("whole")
    ...     os.listdir(folder), Path(folder, "note.txt").read_text()
    (['note.txt'], 'whole')
    """
    clear(target)
    folder, lock = _folder(target)
    try:
        path = folder / target.name
        yield path
        _sync(path)
        if target.is_dir() and path.is_dir():
            # no call of the system's exchanges folders; `clear` ends what is cut short here
            os.replace(target, folder / _REPLACED)
        os.replace(path, target)
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _folder(target: Path) -> tuple[Path, int | None]:
    """Make a new folder next to the target, and lock it."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=_SUFFIX))
        lock = _lock(folder)
        # another process may have cleared it before it was locked
        if folder.exists():
            return folder, lock
        if lock is not None:
            os.close(lock)


def write_text(target: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf8")


def clear(target: Path) -> None:
    """Remove what killed processes left while writing the target, and complete an unfinished replacement."""
    for folder in target.parent.glob(f".{escape(target.name)}.*{_SUFFIX}"):
        # no lock: another process is at work there, or there are no locks
        if (lock := _lock(folder)) is not None:
            try:
                if (folder / _REPLACED).exists() and not target.exists():
                    os.replace(folder / target.name, target)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder for this process and return its descriptor; None if that fails."""
    if locks.fcntl is None:
        return None
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        with suppress(OSError):
            if locks.lock(descriptor):
                return descriptor
        os.close(descriptor)
    return None


def flush(path: Path, flags: int = os.O_RDONLY) -> None:
    """Bring a file, or a folder's entries, to disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    """Flush a file, or a folder with its contents, to disk."""
    if path.is_dir():
        for inner in path.iterdir():
            _sync(inner)
        _sync_folder(path)
    else:
        flush(path, os.O_RDWR)


def _sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk, if the system supports it."""
    with suppress(OSError):
        flush(folder)
