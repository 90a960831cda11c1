"""Matrix products and triangular factors, by SciPy's BLAS and LAPACK."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import scipy.linalg.cython_blas as cython_blas
import scipy.linalg.cython_lapack as cython_lapack
from llvmlite import binding
from numba import types
from numba.extending import overload

from langevin.engine.kernels.jit import INNER_FAST, njit
from langevin.engine.kernels.types import REFLECTORS


def _routine(module: Any, name: str, arguments: int) -> types.ExternalFunction:
    """Make a routine of SciPy's BLAS or LAPACK callable from compiled code; all arguments are addresses."""
    capsule = module.__pyx_capi__[name]
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    symbol = f"langevin_{name}"
    binding.add_symbol(symbol, get_pointer(capsule, get_name(capsule)))
    return types.ExternalFunction(symbol, types.void(*[types.uintp] * arguments))


_DGEMM, _SGEMM = (_routine(cython_blas, name, 13) for name in ("dgemm", "sgemm"))
_DTPQRT, _STPQRT = (_routine(cython_lapack, name, 12) for name in ("dtpqrt", "stpqrt"))


def address(array):
    """Address of an array's first element, signed like the offsets that are added to it."""
    raise NotImplementedError("compiled code only")


@overload(address)
def _address_overload(array):
    return lambda array: np.int64(array.ctypes.data)


def gemm(trans, m, n, k, a, lda, b, ldb, c, ldc, ints, scalars):
    """``C = alpha A op(B) + beta C``, by addresses, in BLAS's order of columns."""
    raise NotImplementedError("compiled code only")


@overload(gemm)
def _gemm_overload(trans, m, n, k, a, lda, b, ldb, c, ldc, ints, scalars):
    routine = _DGEMM if scalars.dtype == types.float64 else _SGEMM

    def gemm(trans, m, n, k, a, lda, b, ldb, c, ldc, ints, scalars):
        ints[0], ints[1], ints[2], ints[3], ints[4], ints[5] = m, n, k, lda, ldb, ldc
        ints[6] = 78  # "N"
        ints[7] = 84 if trans else 78  # "T"
        at = ints.ctypes.data
        alpha = scalars.ctypes.data
        beta = alpha + scalars.itemsize
        routine(at + 24, at + 28, at, at + 4, at + 8, alpha, a, at + 12, b, at + 16, beta, c, at + 20)

    return gemm


@njit(**INNER_FAST)
def householder(triangle, stack, rows):
    """Bring ``stack`` below an upper triangular ``triangle`` into it; columns lie contiguously."""
    for j in range(triangle.shape[0]):
        b, corner, squared = stack[j], triangle[j, j], triangle.dtype.type(0)
        for i in range(rows):
            squared += b[i] * b[i]
        if squared == 0:
            continue
        norm = math.copysign(math.sqrt(corner * corner + squared), -corner)
        triangle[j, j] = norm
        for i in range(rows):
            b[i] /= corner - norm
        rate = (norm - corner) / norm
        for c in range(j + 1, triangle.shape[0]):
            x, t = stack[c], triangle[c, j]
            for i in range(rows):
                t += b[i] * x[i]
            t *= rate
            triangle[c, j] -= t
            for i in range(rows):
                x[i] -= t * b[i]


def tpqrt(triangle, stack, rows, reflectors, ints):
    """QR of a triangle on top of a stack of rows, by addresses."""
    raise NotImplementedError("compiled code only")


@overload(tpqrt)
def _tpqrt_overload(triangle, stack, rows, reflectors, ints):
    """`_householder` by LAPACK."""
    routine = _DTPQRT if triangle.dtype == types.float64 else _STPQRT

    def tpqrt(triangle, stack, rows, reflectors, ints):
        ints[0], ints[1], ints[2], ints[3] = rows, triangle.shape[0], 0, REFLECTORS
        ints[4], ints[5], ints[6] = triangle.shape[1], stack.shape[1], REFLECTORS
        at, t, work = ints.ctypes.data, reflectors[0].ctypes.data, reflectors[1].ctypes.data
        a, b = triangle.ctypes.data, stack.ctypes.data
        routine(at, at + 4, at + 8, at + 12, a, at + 16, b, at + 20, t, at + 24, work, at + 28)

    return tpqrt
