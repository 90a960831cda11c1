"""Grids of runs over any parameters, on Dask, into one labelled Zarr store that survives interruption.

A `Grid` says what is fixed, what is swept and what is recorded; `run_sweep` computes its cells.
"""

from langevin.sweeps.cluster import SweepError
from langevin.sweeps.grid import Grid
from langevin.sweeps.run import run_sweep
from langevin.sweeps.simulations import SIMULATIONS

__all__ = ["SIMULATIONS", "Grid", "SweepError", "run_sweep"]
