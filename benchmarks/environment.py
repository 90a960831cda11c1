"""The machine and the software that a benchmark runs on. Imports no NumPy."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

# they override OpenBLAS's choice of kernels and of blocks, and so the speed of every product
OPENBLAS_OVERRIDES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "torch", "torchsde")


def restart_without_overrides() -> None:
    """Run this very command again without `OPENBLAS_OVERRIDES`, if any is set: OpenBLAS reads them once."""
    found = {name: os.environ[name] for name in OPENBLAS_OVERRIDES if name in os.environ}
    if not found:
        return
    print(f"# started again without {' '.join(f'{k}={v}' for k, v in found.items())}", flush=True)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], clean_environment())


def clean_environment() -> dict[str, str]:
    """The environment without `OPENBLAS_OVERRIDES`."""
    return {k: v for k, v in os.environ.items() if k not in OPENBLAS_OVERRIDES}


def processor() -> str:
    """Model name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def slug() -> str:
    """The processor's name, fit for a file name."""
    return re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")


def describe() -> dict[str, Any]:
    """Machine, processor, versions and BLAS libraries of this process."""
    from llvmlite import binding
    from threadpoolctl import threadpool_info

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "llvm_processor": binding.get_host_cpu_name(),
        "processors": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "versions": versions,
        "openblas_overrides": {name: os.environ.get(name) for name in OPENBLAS_OVERRIDES},
        "blas": [
            {key: pool.get(key) for key in ("internal_api", "version", "architecture", "num_threads")}
            for pool in threadpool_info()
            if pool["user_api"] == "blas"
        ],
    }
