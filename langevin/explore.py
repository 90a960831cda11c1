"""The command ``python -m langevin.explore``: the theory moving, in the browser."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from langevin.support import install, options, signals, streams
from langevin.support.command import as_option, fail


@dataclass(frozen=True)
class Exploring:
    """Options of ``python -m langevin.explore``.

    Parameters
    ----------
    data : str or None
        Your data, next to those that the page has: a file of classes, .npz with X and y, .csv or .parquet.
    port : int
        Port on this machine; 0 for any free one.
    browser : bool
        Open the page in the browser.
    """

    data: str | None = field(default=None, metadata={"metavar": "FILE"})
    port: int = 0
    browser: bool = True


def parser() -> options.Parser:
    """Command line of the explorer."""
    p = options.Parser(
        "python -m langevin.explore",
        description="Explore in the browser what DP fine-tuning does to a small network: move a slider, and "
        "the simulation runs again, with the theorems' bounds over it.",
        epilog="The page is served on this machine alone (127.0.0.1), under an address with a random token; "
        "nothing is fetched from a network. Ctrl-C ends it.",
    )
    p.add("page", (Exploring, "data port browser"))
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    with signals.interruptible() as status:
        try:
            return _serve(argv)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return status()


def _serve(argv: list[str] | None) -> int:
    command = parser()
    args, _ = command.parse(argv)
    try:
        _check(args.data, args.port)
    except (ValueError, MemoryError) as error:
        command.error(as_option(command, str(error), command.renamed))
    try:
        from explorer.serve import Server
    except ModuleNotFoundError as error:
        return fail(command, f"{error.name} is not installed: {install.command('explore')}")
    try:
        server = Server(args.port, args.data)
    except OSError as error:
        return fail(command, f"port {args.port} cannot be used: {error}; take another one, or 0 for any")
    print(f"{server.url}\nCtrl-C ends it.", flush=True)
    server.run(browser=args.browser)
    return 0


def _check(data: str | None, port: int) -> None:
    """Refuse a file that is no problem, and a port that is none."""
    if not 0 <= port < 2**16:
        raise ValueError(f"port must lie in [0, 65535], got {port}")
    if data is not None:
        from langevin.data import files

        if not files.is_file(data):
            raise ValueError(f"data must be {files.ALLOWED}, got {data!r}")
        if not Path(data).exists():
            raise ValueError(f"data {data} does not exist")


if __name__ == "__main__":
    streams.run(main)
