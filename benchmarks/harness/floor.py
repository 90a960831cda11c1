"""Measure how fast this machine does the work that every implementation of a step needs, on one thread."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import binding
from scipy.linalg import blas

from langevin.engine.kernels import jit
from langevin.engine.kernels.jit import njit
from langevin.engine.kernels.normals import LANES, add_normals
from langevin.engine.layout import aligned_zeros

CHAINS = 12  # independent products in flight: more than latency times units, fewer than registers
NORMALS = 2048  # at most 16 KB: they stay in the first-level cache
GEMM_SIZES = (96, 128, 192, 384, 768)
CACHED = 2**19  # bytes that stay in the second-level cache


@dataclass
class Rates:
    """Best measured rates: flops, normals and bytes per second; bytes by size of the working set."""

    fma: float
    gemm: float
    normals: float
    copy: dict[int, float]
    read: dict[int, float]

    @property
    def peak(self) -> float:
        """Return the higher of the two rates of flops per second."""
        return max(self.fma, self.gemm)

    def best(self, other: Rates) -> Rates:
        """Return the better of two measurements, rate by rate."""
        return Rates(
            max(self.fma, other.fma),
            max(self.gemm, other.gemm),
            max(self.normals, other.normals),
            {size: max(rate, other.copy.get(size, 0.0)) for size, rate in self.copy.items()},
            {size: max(rate, other.read.get(size, 0.0)) for size, rate in self.read.items()},
        )


@dataclass(frozen=True)
class Work:
    """The work that a step of one path cannot avoid."""

    flops: float
    normals: int
    first_layer_bytes: int
    activations_bytes: int

    @classmethod
    def of(cls, X: np.ndarray, width: int, itemsize: int) -> Work:
        """Return the work for inputs ``X (n, k)``; entries that are zero up to rounding do not count."""
        samples, inputs = X.shape
        entries = int((np.abs(X) > 1e-12 * np.abs(X).max()).sum())
        return cls(
            4.0 * entries * width,
            width * inputs + width,
            width * inputs * itemsize,
            width * samples * itemsize,
        )

    @property
    def working_set(self) -> int:
        """Return the bytes of ``W`` and ``Z``."""
        return self.first_layer_bytes + self.activations_bytes

    def seconds(self, rates: Rates) -> dict[str, float]:
        """Return the time of each part: products, draws, and traffic between caches.

        The products read ``W`` and write ``Z``, the activations read and write ``Z``, the pull-back reads
        it; ``W`` is then updated and written, and noise is added: 4 passes over each.
        """
        return {
            "products": self.flops / rates.peak,
            "draws": self.normals / rates.normals,
            "traffic": 4 * self.working_set / rates.copy[self.working_set],
        }


@dataclass(frozen=True)
class OutputsWork:
    """The work that a step of one path with K outputs cannot avoid, on the expected rows of its batch.

    Attributes
    ----------
    flops : float
        Of ``A V`` and ``A^T R``; in full fine-tuning also of ``X W^T``, ``R V^T`` and ``D^T X``.
    normals : int
    parameter_bytes, batch_bytes : int
        Of what is trained, and of the features of a batch.
    gathered_bytes, source_bytes : int
        Of the rows that a batch gathers from its inputs, or features in linear probing, and of all of them.
    probing : bool
    """

    flops: float
    normals: int
    parameter_bytes: int
    batch_bytes: int
    gathered_bytes: int
    source_bytes: int
    probing: bool

    @classmethod
    def of(
        cls, X: np.ndarray, width: int, outputs: int, rate: float, itemsize: int, probing: bool
    ) -> OutputsWork:
        """Return the work for inputs ``X (n, k)``; their zeros do not count."""
        samples, inputs = X.shape
        rows, columns = rate * samples, width if probing else inputs
        products = 4 * rows * width * outputs
        normals = width * outputs
        if not probing:
            products += 2 * rows * width * outputs + 4 * rate * int((X != 0).sum()) * width
            normals += width * inputs
        return cls(
            products,
            normals,
            normals * itemsize,
            round(rows * width * itemsize),
            round(rows * columns * itemsize) if probing or rate < 1 else 0,
            samples * columns * itemsize,
            probing,
        )

    @property
    def copied(self) -> list[int]:
        """Return the sizes at which the rate of copies is needed."""
        return [] if self.probing else [self.parameter_bytes, self._block, self.source_bytes]

    @property
    def read(self) -> list[int]:
        """Return the sizes at which the rate of reading is needed."""
        return [self.source_bytes] if self.probing else []

    @property
    def _block(self) -> int:
        return min(self.batch_bytes, CACHED)

    def seconds(self, rates: Rates) -> dict[str, float]:
        """Return the time of each part, and their sum, the floor.

        In full fine-tuning parameters are read, read and written by the update, and given noise: 4 passes.
        Features are written, activated in place and read; what is pulled back to them is written and read: 6
        passes, which a block of rows can make in the second-level cache. Rows of a batch are copied.

        In linear probing the features are read once. This may overlap the products, so that the larger of the
        two counts.
        """
        products, draws = self.flops / rates.peak, self.normals / rates.normals
        if self.probing:
            traffic = self.gathered_bytes / rates.read[self.source_bytes]
            floor = max(products, traffic) + draws
        else:
            traffic = (
                4 * self.parameter_bytes / rates.copy[self.parameter_bytes]
                + 6 * self.batch_bytes / rates.copy[self._block]
                + 2 * self.gathered_bytes / rates.copy[self.source_bytes]
            )
            floor = products + draws + traffic
        return {"products": products, "draws": draws, "traffic": traffic, "floor": floor}


def measure(dtype: type, working_sets: Iterable[int], seconds: float, read_sets: Iterable[int] = ()) -> Rates:
    """Measure all rates once, each for about ``seconds``."""
    return Rates(
        _fma_rate(dtype, seconds),
        _gemm_rate(dtype, seconds),
        _normal_rate(dtype, seconds),
        {size: _copy_rate(dtype, size, seconds) for size in working_sets},
        {size: _read_rate(dtype, size, seconds) for size in read_sets},
    )


def _best_time(call: Callable[[], Any], seconds: float) -> float:
    """Return the shortest time of a call, among as many as fit, after one warm-up call."""
    call()
    best, end = np.inf, time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or best == np.inf:
        call()
        best = min(best, time.perf_counter() - start)
    return float(best)


# --- fused multiply-adds in registers ---------------------------------------------------------

_engines: dict[type, tuple[Any, Any, int]] = {}


def _vector_bytes() -> int:
    features = binding.get_host_cpu_features()
    return 64 if features.get("avx512f") else 32 if features.get("avx") else 16


def _fma_function(dtype: type) -> tuple[Any, int]:
    """Compile a loop of `CHAINS` independent multiply-adds; return it, and the flops of one iteration.

    It is written in LLVM's assembly, because a compiler may keep the elements of an array out of registers.
    """
    if dtype not in _engines:
        number = "double" if dtype is np.float64 else "float"
        lanes = _vector_bytes() // np.dtype(dtype).itemsize
        vector = f"<{lanes} x {number}>"
        fma = f"@llvm.fma.v{lanes}f{8 * np.dtype(dtype).itemsize}"
        mask = f"<{lanes} x i32> zeroinitializer"
        chains = range(CHAINS)
        code = [
            f"declare {vector} {fma}({vector}, {vector}, {vector})",
            f"define {number} @chains(i64 %turns, {number} %factor, {number} %summand) {{",
            "entry:",
        ]
        for name in ("factor", "summand"):
            code += [
                f"  %{name}0 = insertelement {vector} poison, {number} %{name}, i32 0",
                f"  %{name}s = shufflevector {vector} %{name}0, {vector} poison, {mask}",
            ]
        code += ["  br label %loop", "loop:", "  %turn = phi i64 [0, %entry], [%next, %loop]"]
        code += [f"  %x{c} = phi {vector} [%summands, %entry], [%y{c}, %loop]" for c in chains]
        code += [
            f"  %y{c} = call {vector} {fma}({vector} %x{c}, {vector} %factors, {vector} %summands)"
            for c in chains
        ]
        code += [
            "  %next = add i64 %turn, 1",
            "  %more = icmp slt i64 %next, %turns",
            "  br i1 %more, label %loop, label %end",
            "end:",
            f"  %t0 = fadd {vector} %y0, %y0",
        ]
        code += [f"  %t{c} = fadd {vector} %t{c - 1}, %y{c}" for c in chains[1:]]
        code += [
            f"  %first = extractelement {vector} %t{CHAINS - 1}, i32 0",
            f"  ret {number} %first",
            "}",
        ]
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        machine = binding.Target.from_default_triple().create_target_machine(
            cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3
        )
        engine = binding.create_mcjit_compiler(binding.parse_assembly("\n".join(code)), machine)
        engine.finalize_object()
        real = ctypes.c_double if dtype is np.float64 else ctypes.c_float
        function = ctypes.CFUNCTYPE(real, ctypes.c_int64, real, real)(engine.get_function_address("chains"))
        _engines[dtype] = engine, function, 2 * CHAINS * lanes
    _, function, flops = _engines[dtype]
    return function, flops


def _fma_rate(dtype: type, seconds: float) -> float:
    function, flops = _fma_function(dtype)
    turns = 100_000
    return flops * turns / _best_time(lambda: function(turns, 0.5, 0.25), seconds)


# --- products, draws, copies -----------------------------------------------------------------


def _gemm_rate(dtype: type, seconds: float) -> float:
    product = getattr(blas, "dgemm" if dtype is np.float64 else "sgemm")
    best = 0.0
    for size in GEMM_SIZES:
        a, b, c = (np.asfortranarray(np.ones((size, size), dtype)) for _ in range(3))
        elapsed = _best_time(lambda: product(1.0, a, b, 0.0, c, overwrite_c=True), seconds / len(GEMM_SIZES))  # noqa: B023
        best = max(best, 2.0 * size**3 / elapsed)
    return best


@njit(**jit.JIT)
def _draw(x, scale, times, words):
    for turn in range(times):
        add_normals(x, x.size, scale, turn, 0, 0, np.uint64(1), np.uint64(2), words)


def _normal_rate(dtype: type, seconds: float) -> float:
    x, words, times = aligned_zeros((NORMALS,), dtype), np.zeros((4, LANES), np.uint32), 100
    return NORMALS * times / _best_time(lambda: _draw(x, dtype(1e-3), times, words), seconds)


@njit(**jit.FAST)
def _scale_in_place(x, factor, times):
    for _ in range(times):
        for i in range(x.size):
            x[i] *= factor


@njit(**jit.JIT)
def _copy(x, y, times):
    for _ in range(times):
        y[:] = x


def _copy_rate(dtype: type, size: int, seconds: float) -> float:
    """Return the bytes read and written per second on a working set of ``size`` bytes.

    This is the better of a copy of one half to the other and a pass that overwrites all of it.
    """
    count = size // np.dtype(dtype).itemsize // 2
    x, y = aligned_zeros((count,), dtype), aligned_zeros((count,), dtype)
    both = aligned_zeros((2 * count,), dtype)
    times = max(1, 2_000_000 // size)
    copied = _best_time(lambda: _copy(x, y, times), seconds / 2)
    scaled = _best_time(lambda: _scale_in_place(both, dtype(1), times), seconds / 2)
    return max(size / copied, 2 * size / scaled) * times


@njit(**jit.FAST)
def _total(x):
    total = x.dtype.type(0)
    for i in range(x.size):
        total += x[i]
    return total


def _read_rate(dtype: type, size: int, seconds: float) -> float:
    """Return the bytes read per second from a working set of ``size`` bytes."""
    x = aligned_zeros((size // np.dtype(dtype).itemsize,), dtype)
    x[:] = 1  # pages that were never written would all be the same one
    return size / _best_time(lambda: _total(x), seconds)
