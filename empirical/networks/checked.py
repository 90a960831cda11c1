"""Results of tests of bodies by values, which take longer than a short run, kept for further runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

_Result = TypeVar("_Result")


class Checked:
    """What tests of bodies have found, each made once for as long as a body lives.

    For runs that share a body and change nothing in it, such as those of a grid: a change of a body in place
    would go unnoticed.

    Examples
    --------
    >>> checked, body = Checked(), nn.Identity()
    >>> checked.once(body, "mixes samples", lambda: False), checked.once(body, "mixes samples", lambda: True)
    (False, False)
    """

    def __init__(self) -> None:
        self._found: WeakKeyDictionary[nn.Module, dict[Hashable, Any]] = WeakKeyDictionary()

    def once(self, body: nn.Module, about: Hashable, test: Callable[[], _Result]) -> _Result:
        """Return what ``test`` found when it was first asked for this body and ``about``.

        Parameters
        ----------
        body : nn.Module
            The very object, not one that equals it.
        about : hashable
            Everything besides the body that the result depends on.
        test : callable
            Without arguments; what it raises is not kept.
        """
        found = self._found.setdefault(body, {})
        if about not in found:
            found[about] = test()
        return found[about]
