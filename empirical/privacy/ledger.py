"""The privacy ledger, which records releases on disk before they are made."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from empirical.privacy.history import History
from langevin.store import atomic, locks
from langevin.support import validate

_FORMAT = 1


class LedgerError(Exception):
    """A ledger cannot be written, is damaged, or does not allow the request."""


class Ledger:
    """Steps claimed from a plan, in an append-only file of JSON lines.

    `claim` steps *before* their noise is drawn and released: it returns once the record is on disk (written
    at once, then fsync). So after a crash or ``kill -9`` at any moment the record holds every step that was
    made, and at most the ``steps`` of the last claim in addition: 1 over-counted for claims of one step.
    Each line carries the SHA-256 of itself and of all lines before it; a file that does not check out is
    refused. That finds damage, not forgery. Lines lost *whole* from the end are found by `resume` with the
    `head` that was saved with the weights.

    What may be claimed is the plan: never other mechanisms, nor more steps. So the epsilon of what was
    released never exceeds the plan's. Steps repeated after a crash are claimed, and counted, again, *unless*
    they draw the same noise to the last bit from the same weights and batches: such a replay releases nothing
    new, and continues claiming at `claimed`.

    One process at a time: the file is locked while it is open, where the system has ``flock``.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from empirical.privacy.history import plan
    >>> planned = plan(1000, 100, delta=1e-4, steps=100, lp_share=0.25, noise_multiplier=4.0)
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "run.ledger")
    ...     with Ledger.create(path, planned) as ledger:
    ...         ledger.claim("lp")  # and only then the noisy step
    ...     with Ledger.resume(path, planned) as ledger:
    ...         ledger.claim("lp", steps=10)  # one write for a block of ten
    ...         ledger.claimed("lp"), ledger.history.steps
    (11, 11)
    """

    def __init__(self, path: Path, plan: History, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._state = _State(plan)
        self._broken = False

    @classmethod
    def create(cls, path: str | Path, plan: History) -> Ledger:
        """Start a ledger; the file appears complete or not at all.

        Parameters
        ----------
        path : str or Path
            A file that does not exist, in an existing folder of a file system with hard links.
        plan : History
            With every noise multiplier given.

        Raises
        ------
        LedgerError
            If the file exists or cannot be written.
        """
        path = Path(path)
        for m in plan.mechanisms:
            if m.noise_multiplier is None:
                raise ValueError(
                    f"plan must have every noise_multiplier, got None in {m.name!r}: calibrate it first"
                )
        with _errors(path):
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            os.close(descriptor)
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_APPEND)
                ledger = cls(path, plan, descriptor)
                try:
                    ledger._lock()
                    ledger._append({"format": _FORMAT, "plan": plan.as_dict()})
                    # in contrast to a rename, this never replaces a ledger that is there
                    os.link(temporary, path)
                    atomic.flush(path.parent)
                except BaseException:
                    ledger.close()
                    raise
            except FileExistsError:
                raise LedgerError(
                    f"path must not exist, got {str(path)!r}: resume it, or use another"
                ) from None
            finally:
                os.unlink(temporary)
        return ledger

    @classmethod
    def resume(
        cls,
        path: str | Path,
        plan: History | None = None,
        *,
        head: str | None = None,
        drop_torn: bool = False,
    ) -> Ledger:
        """Open a ledger to append to it.

        Parameters
        ----------
        path : str or Path
        plan : History, optional
            What the run is about to do; refused if the ledger was started for anything else.
        head : str, optional
            `head` as saved with the weights; refused if the ledger does not go through it.
        drop_torn : bool
            Cut off an incomplete last line. That is right after a power failure or on a full disk: its
            `claim` never returned, so nothing was released on it. Not otherwise.

        Raises
        ------
        LedgerError
            If there is no such file, it is damaged, in use, or fails ``plan`` or ``head``.
        """
        path = Path(path)
        with _errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
            try:
                ledger = cls(path, History((), 0.5), descriptor)
                ledger._lock()
                data = path.read_bytes()
                whole = data.rfind(b"\n") + 1
                if drop_torn and 0 < whole < len(data):
                    os.ftruncate(descriptor, whole)
                    os.fsync(descriptor)
                    data = data[:whole]
                ledger._state = _parse(path, data)
                ledger._check(plan, head)
            except BaseException:
                os.close(descriptor)
                raise
        return ledger

    @property
    def plan(self) -> History:
        """Return the plan of steps that may be claimed."""
        return self._state.plan

    @property
    def history(self) -> History:
        """Return the claimed steps: the history to account for."""
        return self._state.history

    @property
    def head(self) -> str:
        """Number of lines and the last one's digest, to be saved with the weights."""
        return f"{len(self._state.digests)}:{self._state.digests[-1]}"

    def claimed(self, name: str) -> int:
        """Return the steps of the mechanism ``name`` claimed so far."""
        if name not in self._state.claimed:
            raise LedgerError(f"name must be one of {list(self._state.claimed)}, got {name!r}")
        return self._state.claimed[name]

    def claim(self, name: str, steps: int = 1) -> None:
        """Record ``steps`` more of the mechanism ``name``; release their noise only after this returns.

        Raises
        ------
        LedgerError
            If the plan has no such steps left, or the write failed; then nothing may be released, and the
            ledger accepts no more claims.
        """
        steps = validate.integer("steps", steps, 1)
        done, allowed = self.claimed(name), self.plan[name].steps
        if done + steps > allowed:
            raise LedgerError(
                f"steps must keep within the plan's {allowed} of {name!r}, got {steps} after {done}: "
                "the budget is spent, stop here"
            )
        with _errors(self._path):
            self._append({"mechanism": name, "steps": steps})
        self._state.claimed[name] += steps

    def close(self) -> None:
        """Close the file, which also unlocks it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        if not locks.lock(self._descriptor):
            raise LedgerError(f"{self._path} is in use by another process: wait for it to end")

    def _append(self, entry: dict[str, Any]) -> None:
        if self._descriptor < 0 or self._broken:
            why = "is closed" if self._descriptor < 0 else "failed to be written before"
            raise LedgerError(f"{self._path} {why}: resume it")
        digest = _digest(self._state.digests, entry)
        line = (json.dumps(entry | {"digest": digest}) + "\n").encode()
        # whatever fails from here on, what is on disk is not known
        self._broken = True
        if os.write(self._descriptor, line) != len(line):
            raise LedgerError(
                f"{self._path} was not written in full: free some disk, then resume with drop_torn"
            )
        os.fsync(self._descriptor)
        self._broken = False
        self._state.digests.append(digest)

    def _check(self, plan: History | None, head: str | None) -> None:
        if plan is not None and plan != self.plan:
            raise LedgerError(f"plan must be that of {self._path}, {self.plan}, got {plan}: use another path")
        if head is not None:
            count, _, digest = head.partition(":")
            digests = self._state.digests
            if (
                not count.isdecimal()
                or not 0 < int(count) <= len(digests)
                or digests[int(count) - 1] != digest
            ):
                raise LedgerError(
                    f"{self._path} does not go through the head {head!r} saved with the weights: it was cut "
                    "off or replaced, and understates what was released; restore it from a backup"
                )


class _State:
    """The content of a ledger."""

    def __init__(self, plan: History) -> None:
        self.plan = plan
        self.claimed = {m.name: 0 for m in plan.mechanisms}
        self.digests: list[str] = []

    @property
    def history(self) -> History:
        done = [replace(m, steps=self.claimed[m.name]) for m in self.plan.mechanisms if self.claimed[m.name]]
        return replace(self.plan, mechanisms=done)


def read(path: str | Path) -> History:
    """Return the steps claimed in a ledger, without opening it for writing.

    Lines lost whole from the end go unnoticed here; `Ledger.resume` finds them, by the head that is saved
    with the weights.

    Raises
    ------
    LedgerError
        If there is no such file, or it is damaged.
    """
    path = Path(path)
    with _errors(path):
        return _parse(path, path.read_bytes()).history


def _digest(before: list[str], entry: dict[str, Any]) -> str:
    text = json.dumps(entry, sort_keys=True)
    return hashlib.sha256(((before[-1] if before else "") + text).encode()).hexdigest()


def _parse(path: Path, data: bytes) -> _State:
    """Check every line against the digests and the plan."""
    if not data.endswith(b"\n"):
        raise LedgerError(
            f"{path} ends in an incomplete line: after a power failure or on a full disk resume with "
            "drop_torn, otherwise restore it from a backup"
        )
    state, digests = None, []
    for number, line in enumerate(data[:-1].split(b"\n"), 1):
        try:
            entry = json.loads(line)
            digest = entry.pop("digest")
            if digest != _digest(digests, entry):
                raise ValueError("its digest does not match")
            digests.append(digest)
            if state is None:
                if entry["format"] != _FORMAT:
                    raise ValueError(f"format {entry['format']!r} is not {_FORMAT}")
                state = _State(History.from_dict(entry["plan"]))
            else:
                name = entry["mechanism"]
                state.claimed[name] += validate.integer("steps", entry["steps"], 1)
                if state.claimed[name] > state.plan[name].steps:
                    raise ValueError(f"more steps of {name!r} than the plan has")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LedgerError(
                f"{path} is damaged in line {number} ({error}): restore it from a backup; nothing in it can "
                "be trusted from there on"
            ) from None
    assert state is not None  # there was one line at least
    state.digests = digests
    return state


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn errors of the system into `LedgerError`."""
    try:
        yield
    except OSError as error:
        raise LedgerError(f"ledger {path} failed: {error.strerror or error}") from error
