"""How a call may end: right, or refused in words of our own; all else is a finding."""

from __future__ import annotations

import linecache
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers import Limit

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = tuple(str(ROOT / name) for name in ("langevin", "bounds", "empirical", "figures"))
# of one call; the longest needs a tenth of this
SECONDS = 300.0
# of what is random
TRIALS = int(os.environ.get("SOAK_TRIALS", "1"))


class Finding(AssertionError):
    """A hang, an error of another's making, or a curve that is not finite."""


@contextmanager
def no_hang(seconds: float = SECONDS) -> Iterator[None]:
    """Turn what reaches a `Limit` into a `Finding`, in the main thread."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    limit = Limit(seconds)

    def look(*_: Any) -> None:
        if limit.left <= 0:
            raise Finding(f"it hangs: more than {seconds:g} s")
        signal.setitimer(signal.ITIMER_REAL, max(0.01, limit.left))

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def ours(error: BaseException) -> bool:
    """Whether an error was raised by a ``raise`` of this project, and so says what it has to say."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    assert place.lineno is not None
    return place.filename.startswith(PACKAGES) and linecache.getline(
        place.filename, place.lineno
    ).strip().startswith("raise ")


def attempt(call: Callable[[], Any], *, seconds: float = SECONDS) -> tuple[Any, str]:
    """Return what ``call`` returns and '', or None and the refusal.

    Raises
    ------
    Finding
        If it hangs, or ends with an error that this project did not mean.
    """
    try:
        with no_hang(seconds), warnings.catch_warnings():
            # what is rounded is said to be; numbers out of range are looked for in the result
            warnings.simplefilter("ignore")
            return call(), ""
    except Finding:
        raise
    except Exception as error:
        if not ours(error):
            raise Finding("".join(traceback.format_exception(error)[-3:])) from error
        if len(str(error).split()) < 4:
            raise Finding(f"it says too little: {error!r}") from error
        return None, f"{type(error).__name__}: {error}"


def finite(found: Any, where: str = "result") -> None:
    """Require that numbers are finite, wherever they are said to be there."""
    import xarray as xr

    from bounds import Band

    if isinstance(found, Band):
        lower, upper = found.lower[found.valid], found.upper[found.valid]
        if not (np.isfinite(lower).all() and np.isfinite(upper).all() and (lower <= upper).all()):
            raise Finding(f"{where}: a band of {lower} to {upper}")
    elif isinstance(found, xr.Dataset):
        for name in found.data_vars:
            if not np.isfinite(found[name]).all():
                raise Finding(f"{where}: {name} is not finite")
    elif isinstance(found, float | np.ndarray) and np.isnan(found).any():
        raise Finding(f"{where} is not a number")
