"""The arithmetic of another processor is used and reported."""

import os
import platform
import sys

import pytest

from tests.helpers import execute
from tests.processors import environment

ROUNDED = """
import numba, numpy as np, torch
from tests.processors import described
print(torch.backends.cpu.get_cpu_capability(), numba.config.CPU_NAME, numba.config.CPU_FEATURES or 'none')
print(described())
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names are those of x86")
def test_libraries_use_the_code_of_the_named_processor():
    env = os.environ | environment("old", threads=3)
    first, second = execute([sys.executable, "-c", ROUNDED], env=env, check=True).stdout.splitlines()
    assert first == "DEFAULT generic none"
    assert "Nehalem" in second
    assert "ATEN_CPU_CAPABILITY=default" in second
    assert "OMP_NUM_THREADS=3" in second
    assert environment("native") == {}
