"""Make the standard streams of a command accept any text, even without a reader."""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

# what is printed beyond ASCII, for terminals that have no more
_PLAIN = {"±": "+-", "ε": "epsilon", "°": " degrees", "µ": "u"}
_STREAMS = ("stdin", "stdout", "stderr")


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command in this process, and exit with its status.

    A stream that is closed or full, or whose reader has left, stops no work: results are saved before they
    are printed. Where the command itself succeeds but its standard output is lost, the status is 141 if the
    reader left, as shells have it of a program that SIGPIPE ends, and otherwise 1, with a message. Characters
    that an encoding lacks are written in other words.
    """
    codecs.register_error("plain", _plain)
    for number, name in enumerate(_STREAMS):
        _open(number, name)
    try:
        status: Any = main()
    except SystemExit as end:
        status = end.code
    sys.stdout.flush()
    error = getattr(_raw(sys.stdout), "error", None)
    if error is not None and not status:
        status = 1
        if isinstance(error, BrokenPipeError):
            status = 128 + getattr(signal, "SIGPIPE", 13)
        else:
            print(f"error: standard output could not be written: {error.strerror}", file=sys.stderr)
    sys.exit(status)


class _Output(io.FileIO):
    """A file that accepts all text without failing, and keeps the first error."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        rest = memoryview(data).cast("B")
        while rest and self.error is None:
            try:
                written = super().write(rest)
            except OSError as error:
                self.error = error
            else:
                # nothing, where a pipe that does not block is full
                rest = rest[written or 0 :]
        return memoryview(data).nbytes


def _open(number: int, name: str) -> None:
    """Replace a standard stream with one that cannot fail."""
    stream = getattr(sys, name)
    if stream is None:
        # closed: the next file to be opened would get its number, and what libraries write to it
        null = os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(null, True)
        setattr(sys, name, open(null, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
        return
    if number == 0 or not isinstance(stream, io.TextIOWrapper):
        return
    stream.flush()
    raw = _raw(stream)
    if type(raw) is not io.FileIO:
        # a console of Windows
        stream.reconfigure(errors="plain")
        return
    output = _Output(raw.fileno(), "w", closefd=False)
    wrapped = io.TextIOWrapper(
        output if stream.buffer is raw else io.BufferedWriter(output),
        encoding=stream.encoding,
        errors="plain",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    setattr(sys, name, wrapped)


def _raw(stream: Any) -> Any:
    """Return the file below a text stream, which is unbuffered under ``python -u``."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Error handler of codecs: another spelling of one character."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    return _PLAIN.get(character, ascii(character)[1:-1]), error.start + 1
