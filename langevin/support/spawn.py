"""Worker processes import the main module again: what this requires of a script."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import FrameType


def require_importable_main(instead: str) -> None:
    """Refuse to start worker processes that would run the calling script again, or cannot find it.

    Parameters
    ----------
    instead : str
        How to do without worker processes, which ends the message.

    Raises
    ------
    ValueError
        If the script is read from standard input, or no ``if __name__ == "__main__":`` precedes the line that
        calls this. Only the main thread is checked.
    """
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", "")
    file = getattr(main, "__file__", None)
    # workers do not import these: a package that is run, an interactive session, python -c
    if file is None or name.rpartition(".")[2] == "__main__":
        return
    if not Path(file).exists():
        raise ValueError(
            f"workers import the script that starts them, which is not possible from {file}: "
            f"save it to a file, or {instead}"
        )
    frame: FrameType | None = sys._getframe()
    while frame is not None and not (frame.f_globals is vars(main) and frame.f_code.co_name == "<module>"):
        frame = frame.f_back
    if frame is not None and not _guarded(Path(file), frame.f_lineno):
        raise ValueError(
            "workers import the script that starts them, and would run it again: put line "
            f'{frame.f_lineno} of {file} under if __name__ == "__main__":, or {instead}'
        )


def _guarded(file: Path, line: int) -> bool:
    """Whether a line may run only for a certain ``__name__``."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return True
    tests = [node.test for node in ast.walk(tree) if isinstance(node, ast.If) and node.lineno <= line]
    return any(isinstance(part, ast.Name) and part.id == "__name__" for t in tests for part in ast.walk(t))
