"""Settings of all tests: no time limits by default, and a header that names the arithmetic in use."""

import os

from hypothesis import HealthCheck, settings

from tests import processors

# on a busy machine, examples are slow to draw and processes are slow to respond
settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")
for name in ("CONNECT", "TCP"):
    os.environ.setdefault(f"DASK_DISTRIBUTED__COMM__TIMEOUTS__{name}", "600s")
if "PYTEST_XDIST_WORKER" in os.environ:
    # one worker runs on each processor: more threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_report_header() -> str:
    return processors.described()
