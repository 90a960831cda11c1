"""Compile with numba and cache machine code on disk, verified by a digest.

Numba's own cache refuses to work without a folder to write to, fails for ever on a damaged file, and
compares the source of a function's own file only, although the machine code holds that of its callees, too.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import pickle
import warnings
from collections.abc import Callable
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numba
from numba.core import sigutils
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    IndexDataCacheFile,
    InTreeCacheLocator,
    UserWideCacheLocator,
)
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.serialize import dumps

# all compiled code is in this folder, and any of it may be part of any machine code
SOURCES = sorted(Path(__file__).parent.rglob("*.py"))


def njit(*, linked: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Apply `numba.njit` with options and cache its machine code between processes.

    Where no folder can be written, or the disk is full, each process compiles for itself, and a warning says
    so once. What is damaged, or was compiled from other sources, is compiled again and replaced.

    Parameters
    ----------
    linked : bool
        Whether the function has no machine code of its own, nor a cache: it becomes part of its callers'.
    **options
        Of numba.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        if linked:
            return numba.njit(pipeline_class=_Linking, **options)(function)
        dispatcher: Any = numba.njit(pipeline_class=_Compiling, **options)(function)
        try:
            dispatcher._cache = _Cache(function)
        except (OSError, RuntimeError) as error:  # there are no source files
            _warn(str(error))
        return dispatcher

    return decorate


class _Compiling(Compiler):
    """Compiles without a search for garbage, which takes longer the more objects there are."""

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        collecting = gc.isenabled()
        gc.disable()
        try:
            result = super().compile_extra(func)
        finally:
            if collecting:
                gc.enable()
        self._set_environments(result)
        return result

    def _set_environments(self, result: Any) -> None:
        """Give linked functions what numba gives to those with code of their own."""
        for environment in result._find_referenced_environments():
            result.codegen.set_env(environment.env_name, environment)


class _Linking(_Compiling):
    """Leaves optimisation and machine code to the callers."""

    def define_pipelines(self) -> Any:
        self.state.library = _Linked(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        return super().define_pipelines()

    def _set_environments(self, result: Any) -> None:
        pass


class _Linked(JITCodeLibrary):
    """Code that is part of other libraries alone."""

    @property
    def codegen(self) -> Any:
        return self

    def set_env(self, env_name: str, env: Any) -> None:
        """Nothing: see `_Compiling._set_environments`."""

    def get_pointer_to_function(self, name: str) -> int:
        return 0

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


@functools.cache
def _stamp() -> str:
    """Return a digest of the sources of all compiled code."""
    total = hashlib.sha256()
    for path in SOURCES:
        total.update(path.read_bytes())
    return total.hexdigest()


class _Unwritten(InTreeCacheLocator):
    """The package's own folder, read-only: an image can include its machine code."""

    def ensure_cache_path(self) -> None:
        pass


def _locators() -> list[type]:
    known = list(CompileResultCacheImpl._locator_classes)
    if not os.path.isabs(os.path.expanduser("~")):
        # without a home, it makes a folder called "~" in the current one
        known.remove(UserWideCacheLocator)
    return [*known, _Unwritten]


class _Code(CompileResultCacheImpl):
    """Machine code with its digest, so that nothing damaged is run."""

    _locator_classes = _locators()

    def reduce(self, cres: Any) -> tuple[str, bytes]:
        content = dumps(super().reduce(cres))
        return hashlib.sha256(content).hexdigest(), content

    def rebuild(self, target_context: Any, payload: tuple[str, bytes]) -> Any:
        digest, content = payload
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError("machine code is not what was written")
        return super().rebuild(target_context, pickle.loads(content))


class _Cache(FunctionCache):
    """Cache files of a function's machine code; files that cannot be read or written are skipped."""

    _impl_class = _Code

    def __init__(self, py_func: Callable[..., Any]) -> None:
        super().__init__(py_func)
        stamp = self._impl.locator.get_source_stamp(), _stamp()
        self._cache_file = IndexDataCacheFile(self.cache_path, self._impl.filename_base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)
            # processes that start at the same time can give one name to the code of two signatures
            if found is None or found.signature.args == sigutils.normalize_signature(sig)[0]:
                return found
        except Exception:  # damaged bytes can raise anything
            pass
        self._attempt(self.flush)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        self._attempt(super().save_overload, sig, data)

    def _attempt(self, write: Callable[..., None], *arguments: Any) -> None:
        try:
            write(*arguments)
        except Exception as error:  # an index damaged meanwhile can raise anything
            self.disable()
            _warn(f"{self.cache_path}: {getattr(error, 'strerror', None) or error}")


# kinds of warnings that were given
_warned: set[str] = set()


def _warn(reason: str) -> None:
    """Warn once, and not in child processes."""
    if _warned or parent_process() is not None:
        return
    _warned.add(reason)
    warnings.warn(
        f"compiled code cannot be kept, so each start compiles again: {reason}; "
        "set NUMBA_CACHE_DIR to a folder that can be written",
        stacklevel=2,
    )


# no nnan and no ninf: a diverging path has to show as one
MATH = {"reassoc", "contract", "nsz"}
JIT: dict[str, Any] = dict(nogil=True, error_model="numpy")
FAST: dict[str, Any] = dict(JIT, fastmath=MATH)
# for functions that compiled code alone calls: wrappers that unpack named tuples from Python compile slowly
INNER: dict[str, Any] = dict(JIT, no_cpython_wrapper=True, no_cfunc_wrapper=True)
# in line: a copy of its own may add in another order than the caller's, and which of them runs depends on
# whether this process has compiled the caller or read it from the cache
INNER_FAST: dict[str, Any] = dict(INNER, fastmath=MATH, forceinline=True)
# without machine code of their own, which makes callers faster to compile, but they may add in another order;
# in line: a call would pass each array of each named tuple
LINKED: dict[str, Any] = dict(INNER, linked=True, forceinline=True)
LINKED_FAST: dict[str, Any] = dict(INNER_FAST, linked=True)
