"""Finished cells of grids of fine-tunings, in a file that is only appended to."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empirical.recipe import Recipe
from empirical.setting import Setting

try:
    import fcntl
except ImportError:  # no advisory locks on this system
    fcntl = None

# of the cells' meaning: cells of another are computed anew
_FORMAT = 1
# of a line
_START = b'{"key": "'


@dataclass(frozen=True)
class Cell:
    """One fine-tuning of a grid."""

    setting: Setting
    recipe: Recipe
    seed: int

    @property
    def key(self) -> str:
        """A digest of all that the result depends on."""
        about = dict(version=_FORMAT, setting=self.setting.as_dict(), recipe=self.recipe.as_dict())
        text = json.dumps(about | {"seed": self.seed}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


class RecordsError(Exception):
    """A file of cells that cannot be written or trusted."""


class Records:
    """Finished cells, in a file of JSON lines that is appended to a line at once, or in memory.

    A cell is looked up by its full description. One that failed is there with its error; it is tried again
    in another run, and the last line counts. An incomplete last line is cut off: its cell is computed again.

    Parameters
    ----------
    path : str, Path or None

    Raises
    ------
    RecordsError
        If the file cannot be written, is in use, or is no such file.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._found: dict[str, dict[str, float]] = {}
        self.failed: dict[str, str] = {}
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b", buffering=0)
        except OSError as error:
            raise RecordsError(f"cells {str(path)!r} cannot be written: {error.strerror}") from None
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise
        # those of earlier runs are tried again
        self.failed.clear()

    def _read(self) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RecordsError(
                    f"cells {str(self._path)!r} is in use by another process: take another file"
                ) from None
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                if entry.pop("digest") != _digest(entry):
                    raise ValueError("it is not what was written")
                self._keep(entry["key"], entry.get("values"), entry.get("error"))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise RecordsError(
                    f"cells {str(self._path)!r} is damaged in line {number} ({error!r}): remove that line, "
                    "or take another file"
                ) from None
        torn = data[whole:]
        if torn[: len(_START)] != _START[: len(torn)]:
            raise RecordsError(
                f"cells {str(self._path)!r} is damaged at its end: remove that line, or take another file"
            )
        if torn:
            self._file.truncate(whole)

    def _keep(self, key: str, values: dict[str, Any] | None, error: str | None) -> None:
        self._found.pop(key, None)
        self.failed.pop(key, None)
        if values is None:
            self.failed[key] = str(error)
        else:
            self._found[key] = {name: float(value) for name, value in values.items()}

    def get(self, cell: Cell) -> dict[str, float] | None:
        """Results of a cell, if it is done and did not fail."""
        return self._found.get(cell.key)

    def done(self, cell: Cell) -> bool:
        """Whether a cell is done, or failed in this run."""
        return cell.key in self._found or cell.key in self.failed

    def add(self, cell: Cell, outcome: dict[str, float] | str) -> None:
        """Record results, or the error that a cell ended with."""
        failed = isinstance(outcome, str)
        values = None if failed else {name: plain(value) for name, value in outcome.items()}
        self._keep(cell.key, values, outcome if failed else None)
        if self._path is None:
            return
        about = {name: plain(value) for name, value in cell.recipe.as_dict().items()}
        entry = {"key": cell.key, "recipe": about, "seed": cell.seed}
        entry |= {"error": outcome} if failed else {"values": values}
        line = json.dumps(entry | {"digest": _digest(entry)}) + "\n"
        try:
            # one write, so that a line is there or cut off at the end
            if self._file.write(line.encode()) != len(line):
                raise OSError(0, "the disk is full")
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RecordsError(f"cells {str(self._path)!r} cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Close the file, which also unlocks it."""
        if self._path is not None:
            self._file.close()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _digest(entry: dict[str, Any]) -> str:
    """Of a line, by which a changed number is found."""
    return hashlib.sha256(json.dumps(entry).encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """A number that JSON knows, or its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
