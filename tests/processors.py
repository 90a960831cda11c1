"""Run tests with another processor's arithmetic: ``python -m tests.processors old --threads 4 tests/theory``.

Compilers, BLAS and vectorised functions choose their code for the processor, so the processor determines
how results are rounded. This command makes them use the code for another one. Other arguments go to pytest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROCESSORS: dict[str, dict[str, str]] = {
    "native": {},
    # no AVX at all
    "old": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "NUMBA_CPU_NAME": "generic",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OPENBLAS_CORETYPE": "Nehalem",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "AVX2",
        "NUMBA_CPU_NAME": "haswell",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "zen": {"NUMBA_CPU_NAME": "znver1", "OPENBLAS_CORETYPE": "Zen"},
    # requires AVX-512
    "skylake": {"NUMBA_CPU_NAME": "skylake-avx512", "OPENBLAS_CORETYPE": "SkylakeX"},
}
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def environment(processor: str, threads: int | None = None) -> dict[str, str]:
    """Return variables that make libraries compute as a processor does; compiled code has its own cache."""
    found = dict(PROCESSORS[processor])
    if processor == "old":
        from numpy._core import _multiarray_umath as numpy_code  # type: ignore[attr-defined]

        there = [name for name in numpy_code.__cpu_dispatch__ if numpy_code.__cpu_features__[name]]
        found["NPY_DISABLE_CPU_FEATURES"] = " ".join(there)
    if found:
        # features of the named processor, not of this one
        found["NUMBA_CPU_FEATURES"] = ""
        found["NUMBA_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"numba-{processor}")
    if threads:
        found.update((name, str(threads)) for name in THREADS)
    return found


def described() -> str:
    """Describe the arithmetic of this process, and which part of it was requested."""
    import llvmlite.binding
    import numpy  # noqa: F401
    import threadpoolctl

    blas = {pool.get("architecture") for pool in threadpoolctl.threadpool_info()}
    names = {name for wanted in PROCESSORS.values() for name in wanted} | {*THREADS}
    asked = [f"{name}={os.environ[name]}" for name in sorted(names & os.environ.keys())]
    here = f"{llvmlite.binding.get_host_cpu_name()}, BLAS {'/'.join(sorted(filter(None, blas)))}"
    return f"arithmetic: {here}, {os.cpu_count()} processors; set: {' '.join(asked) or 'nothing'}"


def main(argv: list[str] | None = None) -> int:
    """Run pytest in such an environment and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.processors", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("processor", choices=PROCESSORS)
    parser.add_argument("--threads", type=int, help="of every library; by default as many as they take")
    args, rest = parser.parse_known_args(argv)
    environ = os.environ | environment(args.processor, args.threads)
    return subprocess.run([sys.executable, "-m", "pytest", *rest], env=environ).returncode


if __name__ == "__main__":
    sys.exit(main())
