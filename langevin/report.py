"""The command ``python -m langevin.report``: the report and the figure of a saved run, made again."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from langevin.support import options, signals, streams
from langevin.support.command import as_option, fail, plot_target

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class ReportOptions:
    """Options of ``python -m langevin.report``.

    Parameters
    ----------
    run : str
        Saved run: file.nc or folder.zarr.
    plot : str or None
        Draw the figure (default: next to the run).
    json : bool
        Print the report as JSON.
    """

    run: str = field(metadata={"positional": True, "metavar": "RUN"})
    plot: str | None = field(default=None, metadata={"metavar": "FILE", "nargs": "?", "const": ""})
    json: bool = False


def parser() -> options.Parser:
    """Command line of the report."""
    p = options.Parser(
        "python -m langevin.report",
        "[option ...] RUN",
        description="Print the report of a saved run again, and draw its figure, without simulating.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage.",
    )
    p.add("report", (ReportOptions, "run plot json"))
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    with signals.interruptible() as status:
        try:
            return _report(argv)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return status()


def _report(argv: list[str] | None) -> int:
    command = parser()
    args, _ = command.parse(argv)
    from langevin.simulation import figure, text
    from langevin.store import errors, files

    try:
        plot = None if args.plot is None else plot_target(args.plot or Path(args.run).with_suffix(".png"))
        run = files.load(args.run)
        report = _stored(run)
        if "plan" in run.attrs:
            raise ValueError(
                f"{args.run} holds a plan: give a run of langevin.simulate; bounds.plan reports plans"
            )
        if report is None and plot is None:
            raise ValueError(
                f"{args.run} holds no report: langevin.simulate did not save it; take --plot for its figure"
            )
    except (ValueError, TypeError, MemoryError, errors.StoreError) as error:
        command.error(as_option(command, str(error), command.renamed))
    if report is not None:
        try:
            print(json.dumps(report, indent=2, allow_nan=False) if args.json else text.text(report))
        except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
            return fail(command, f"the report in {args.run} is not one of langevin.simulate: {error!r}")
    if plot is not None:
        try:
            figure.draw(run, plot)
        except (OSError, ValueError) as error:
            return fail(command, f"plot {plot} could not be drawn: {error}")
        if not args.json:
            print(f"{'plot':<18} {plot}")
    return 0


def _stored(run: xr.Dataset) -> dict | None:
    """Return the report that was saved with a run, if there is one."""
    try:
        return json.loads(run.attrs["report"])
    except (KeyError, TypeError, ValueError):
        return None


if __name__ == "__main__":
    streams.run(main)
