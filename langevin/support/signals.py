"""SIGINT and SIGTERM while something must not be cut short."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any, NoReturn


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Turn SIGTERM into a KeyboardInterrupt; yield a function that returns the exit status."""
    received = [signal.SIGINT]

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield lambda: 128 + received[-1]
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def shielded() -> Iterator[None]:
    """Block further signals while the work of an interrupted run is saved."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Deferred:
    """Defer SIGINT and SIGTERM until a critical section ends."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for number in self._received:
            signal.raise_signal(number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)

    @property
    def waiting(self) -> bool:
        """Tell whether a signal has arrived."""
        return bool(self._received)

    def answer(self) -> None:
        """Deliver the signals that have arrived."""
        while self._received:
            number = self._received.pop()
            signal.signal(number, self._before[number])
            try:
                signal.raise_signal(number)
            finally:
                signal.signal(number, self._receive)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Start processes that ignore Ctrl-C, which a terminal sends to all processes of a command.

    Threads and processes inherit which signals are blocked where they start.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # which unblocks signals in the thread that starts it
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
