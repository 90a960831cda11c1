"""PLACEHOLDER"""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures import output
from figures.study import studies
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

STUDIES = ("lite0", "lite0-60k", "elpv", "elpv-poly")


def compute(quick: bool = False) -> xr.Dataset:
    """Collect means and standard errors of the committed studies."""
    return studies.collect(STUDIES)


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(__file__, compute, studies.tabulate, reads=studies.paths(STUDIES), argv=argv)


if __name__ == "__main__":
    streams.run(main)
