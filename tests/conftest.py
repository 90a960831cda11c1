"""For all tests: no limit of time but their own, and a header that says whose arithmetic they have."""

import os

from hypothesis import HealthCheck, settings

from tests import processors

# on a busy machine examples take long to draw, and processes to answer each other
settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")
for name in ("CONNECT", "TCP"):
    os.environ.setdefault(f"DASK_DISTRIBUTED__COMM__TIMEOUTS__{name}", "600s")
if "PYTEST_XDIST_WORKER" in os.environ:
    # there is a worker for each processor: more threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_report_header() -> str:
    return processors.described()
