"""What the tests of sweeps share: a grid that was computed once, and Dask's logging as it was."""

import logging

import pytest
import xarray as xr

from langevin.sweeps import SIMULATIONS, Grid, run_sweep
from tests.langevin.sweeps.test_sweep_run import GRID


@pytest.fixture(scope="package")
def alone(tmp_path_factory) -> xr.Dataset:
    """The grid on one thread of this process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "grid.toml").write_text(GRID)
    grid, _ = Grid.read(folder / "grid.toml", {"simulate": lambda: SIMULATIONS})
    return run_sweep(grid, folder / "s.zarr", workers=1, threads=True).load()


@pytest.fixture
def logging_kept(monkeypatch):
    """Restore what the command changes for its whole process: logging and the environment."""
    for name in ("DASK_LOGGING__DISTRIBUTED", "PYTHONWARNINGS"):
        # so that they are restored
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    before = logging.root.manager.disable
    yield
    logging.disable(before)
