"""Describe the machine and the software of a benchmark. This module does not import NumPy."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from importlib import metadata
from typing import Any

from langevin.support.machine import processor

# they override OpenBLAS's choice of kernels and of blocks, and so the speed of every product
OPENBLAS_OVERRIDES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
# JAX on the processor with one thread: NPROC is the size of XLA's thread pool
XLA_SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "NPROC": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}
PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "torch", "torchsde", "jax", "jaxlib", "diffrax", "equinox")


def restart_without_overrides() -> None:
    """Restart this command in `clean_environment` if necessary: libraries read the environment only once."""
    clean = clean_environment()
    if clean == dict(os.environ):
        return
    print("# restarted without overrides, XLA on one thread", flush=True)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], clean)


def clean_environment() -> dict[str, str]:
    """Return the environment without variables that change a library's speed, and with `XLA_SETTINGS`."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in OPENBLAS_OVERRIDES and not key.startswith(("JAX_", "XLA_"))
    }
    return kept | XLA_SETTINGS


def take_one_processor() -> None:
    """Confine this process and its children to one processor, so that extra threads cannot help."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def slug(name: str | None = None) -> str:
    """A machine's name, by default the processor's, fit for a file name."""
    return re.sub(r"[^a-z0-9]+", "-", (name or processor()).lower()).strip("-")


def describe() -> dict[str, Any]:
    """Return machine, processor, versions and BLAS libraries of this process, and the time."""
    from llvmlite import binding
    from threadpoolctl import threadpool_info

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "llvm_processor": binding.get_host_cpu_name(),
        "processors": os.cpu_count(),
        "processors_used": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load": [round(value, 2) for value in os.getloadavg()],
        "versions": versions,
        "environment": {name: os.environ.get(name) for name in (*OPENBLAS_OVERRIDES, *XLA_SETTINGS)},
        "blas": [
            {key: pool.get(key) for key in ("internal_api", "version", "architecture", "num_threads")}
            for pool in threadpool_info()
            if pool["user_api"] == "blas"
        ],
    }
