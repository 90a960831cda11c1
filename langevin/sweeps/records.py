"""Results of finished jobs, in a file of JSON lines that is only appended to, or in memory."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

from langevin.store import locks
from langevin.sweeps.jobs import Outcome
from langevin.sweeps.parameters import plain

# of a line
_START = b'{"key": "'


class Job(Protocol):
    """What results are stored by."""

    @property
    def key(self) -> str:
        """Digest of everything that they depend on."""
        ...

    @property
    def about(self) -> dict[str, Any]:
        """What else a line says, for readers of the file."""
        ...


class RecordsError(Exception):
    """A file of cells cannot be written or trusted."""


class Records:
    """Numbers by job, read from a file and appended to it, one line at a time.

    A failed job is stored with its error and computed again by the next run; the last line of a job counts.
    An incomplete last line is cut off.

    Parameters
    ----------
    path : str, Path or None
        None: in memory only.
    name : str
        What errors call the file: the argument that names it.

    Raises
    ------
    RecordsError
        If the file cannot be written, is in use, or is no such file.
    """

    def __init__(self, path: str | Path | None = None, name: str = "cells") -> None:
        self._name = name
        self._path = None if path is None else Path(path)
        self._found: dict[str, dict[str, float]] = {}
        self.failed: dict[str, str] = {}
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b", buffering=0)
        except OSError as error:
            raise self._error(
                f"cannot be written: {error.strerror}: name a file in a folder that can"
            ) from None
        try:
            if not locks.lock(self._file):
                raise self._error("is in use by another process: take another file")
            self._read()
        except BaseException:
            self._file.close()
            raise
        # those of earlier runs are computed again
        self.failed.clear()

    def _error(self, problem: str) -> RecordsError:
        return RecordsError(f"{self._name} {str(self._path)!r} {problem}")

    def _read(self) -> None:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                if entry.pop("digest") != _digest(entry):
                    raise ValueError("its digest differs")
                self._keep(entry["key"], entry.get("values"), entry.get("error"))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise self._error(
                    f"is damaged in line {number} ({error!r}): remove that line, or take another file"
                ) from None
        torn = data[whole:]
        if torn[: len(_START)] != _START[: len(torn)]:
            raise self._error("is damaged at its end: remove the last line, or take another file")
        if torn:
            self._file.truncate(whole)

    def _keep(self, key: str, values: dict[str, Any] | None, error: str | None) -> None:
        self._found.pop(key, None)
        self.failed.pop(key, None)
        if values is None:
            self.failed[key] = str(error)
        else:
            self._found[key] = {name: float(value) for name, value in values.items()}

    def get(self, job: Job) -> dict[str, float] | None:
        """Results of a job, or None if it is not finished or failed."""
        return self._found.get(job.key)

    def done(self, job: Job) -> bool:
        """Whether a job is finished, or failed in this run."""
        return job.key in self._found or job.key in self.failed

    def add(self, job: Job, outcome: Outcome) -> None:
        """Store the results of a job, or its error."""
        found, error = outcome
        values = None if error else plain(found)
        self._keep(job.key, values, error)
        if self._path is None:
            return
        entry = {"key": job.key, **plain(job.about)} | ({"error": error} if error else {"values": values})
        line = json.dumps(entry | {"digest": _digest(entry)}) + "\n"
        try:
            # a single write, so that a line is complete or cut off at its end
            if self._file.write(line.encode()) != len(line):
                raise OSError(0, "the disk is full")
            os.fsync(self._file.fileno())
        except OSError as failure:
            raise self._error(f"cannot be written: {failure.strerror}") from None

    def close(self) -> None:
        """Close the file, which also unlocks it."""
        if self._path is not None:
            self._file.close()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _digest(entry: dict[str, Any]) -> str:
    """Digest of a line, which detects changed numbers."""
    return hashlib.sha256(json.dumps(entry).encode()).hexdigest()[:16]
