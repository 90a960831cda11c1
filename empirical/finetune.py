"""The command ``python -m empirical.finetune``: one private fine-tuning, or a grid with equal tuning."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from empirical.studies.compare import run_grid_command
from empirical.studies.single import run_single
from empirical.studies.talk import Refused
from langevin.support import signals, streams
from langevin.support.command import as_option


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    advice = "nothing is kept"
    with signals.interruptible() as status:
        try:
            from empirical.studies import options

            command = options.parser()
            args, is_grid = options.read(command, argv)
            try:
                return (run_grid_command if is_grid else run_single)(args, command)
            except Refused as error:
                names = command.renamed | options.NAMES | ({"epsilon": "epsilons"} if is_grid else {})
                command.error(as_option(command, str(error), names))
            except KeyboardInterrupt:
                advice = _advice(args, is_grid)
                raise
        except KeyboardInterrupt:
            print(f"\ninterrupted; {advice}", file=sys.stderr)
            return status()


def _advice(args: argparse.Namespace, is_grid: bool) -> str:
    """What there is after an interruption, and how to resume."""
    if is_grid:
        return f"what is finished is in {args.cells}: repeat the command to resume"
    if args.checkpoint and Path(args.checkpoint).exists():
        return f"kept in {args.checkpoint}: run the same command with --resume to continue"
    if args.checkpoint:
        return "there is nothing to keep yet"
    return "nothing is kept; with --checkpoint FILE it would be"


if __name__ == "__main__":
    streams.run(main)
