"""PLACEHOLDER"""

from __future__ import annotations

import functools

from figures import output
from figures.study.fig_features import compute, draw
from langevin.support import streams

FILE = "docs/study/features-lite0.nc"


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__,
        functools.partial(compute, file=FILE),
        draw,
        size=(7.2, 4.4),
        panels=(2, 3),
        reads=[FILE],
        argv=argv,
    )


if __name__ == "__main__":
    streams.run(main)
