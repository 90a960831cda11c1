"""Pages with code: run it, and compare what they show of its output and its pictures with what comes.

A block in the language ``output`` shows what the block before it prints, where ``...`` stands for any text.
A picture in a folder ``pictures`` is the file of that name that the page's code writes. A block of TOML whose
first line is ``# name.toml`` is written to that file. This rewrites what a page shows and its pictures, and
keeps outputs that are right:

    python -m tests.project.documents docs/start.md
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.helpers import execute

ROOT = Path(__file__).resolve().parents[2]
# commands that are not run here, with the reason
NOT_HERE = {
    "make install": "it sets up an environment",
    "make simulate": "the continuous integration runs it",
    "make test": "the continuous integration runs it",
    ". .venv/bin/activate": "the tests run in an environment of their own",
}
# options that shorten slow commands without a shown output: of an option given twice, the last value counts
SMALLER = {
    "langevin.simulate --": "--paths 2",
    "bounds.plan wine.csv": "--draws 4 --steps 20",
    "bounds.plan features.npz": "--draws 4",
    "bounds.plan layer.npz": "--draws 4",
    "bounds.plan --data": "--draws 4 --steps 20 --pretrain-epochs 2",
    "--method lp-fft --lp-share": "--pretrain-epochs 2",
    "--methods ": "--data glyphs --size 24 --images 200 --body mlp --batch 50 "
    "--methods lp lp-fft --shares .5 --epsilons 1 --seeds 1 --trials 1 --tuning-seeds 1 --steps 2 "
    "--pretrain-epochs 1 --device cpu --workers 1",
}
# runs our commands in the page's own process, unless they start others: imports take longer than most of them
RUN = """
import runpy, shlex, subprocess, sys

def _begin(block):
    sys.stdout.flush()
    print(f"\\x1e{block}", flush=True)

def _run(command):
    words = shlex.split(command)
    if words[:2] != ["python", "-m"] or words[-2:] == ["--workers", "2"]:
        subprocess.run(["bash", "-euc", command], check=True)
        return
    sys.argv[1:] = words[3:]
    try:
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise subprocess.CalledProcessError(end.code, command) from None
"""
# blocks in these languages are not run
SILENT = {"text", "bibtex"}
RUNS = {"python", "sh", "toml"}
# of the values of all pixels, 0 to 255; letters on another processor may differ in their edges
PICTURES_DIFFER = 1.0


class Block(NamedTuple):
    """A fenced block of a page, and the output that is shown for it.

    Attributes
    ----------
    language, text : str
    shown : str or None
        None where no block of output follows.
    """

    language: str
    text: str
    shown: str | None = None


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks that are no directives, in order, each with its output."""
    found: list[Block] = []
    end = 0
    for match in re.finditer(r"^```([^\n`]*)\n(.*?)^```", text, re.M | re.S):
        language, block = match.groups()
        follows = not text[end : match.start()].strip()
        end = match.end()
        if language == "output":
            if not found or not follows or found[-1].language not in RUNS or found[-1].shown is not None:
                raise ValueError(f"output must follow the block that prints it, got {block!r}")
            found[-1] = found[-1]._replace(shown=block)
        elif not language.startswith("{"):
            found.append(Block(language, block))
    return found


def commands(block: str) -> list[str]:
    """Return the commands of a shell block; a backslash continues a line, and comments are skipped."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def shortened(command: str) -> str:
    """The command with options that make it quick."""
    return " ".join([command, *(more for words, more in SMALLER.items() if words in command)])


def program(text: str) -> str:
    """Turn a page into a Python program: its blocks in order, all Python in one namespace."""
    parts = [RUN]
    for k, block in enumerate(blocks(text)):
        parts.append(f"_begin({k})")
        if block.language == "python":
            parts.append(block.text)
        elif block.language == "toml":
            name = block.text.splitlines()[0].removeprefix("# ")
            parts.append(f"open({name!r}, 'w').write({block.text!r})")
        elif block.language == "sh":
            for command in commands(block.text):
                if command not in NOT_HERE:
                    said = command if block.shown is not None else shortened(command)
                    parts.append(f"_run({said!r})")
    return "\n".join(parts)


def run(text: str, folder: Path) -> list[str]:
    """Run a page in an empty folder and return what each of its blocks prints."""
    file = folder / "page.py"
    file.write_text(program(text), encoding="utf8")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "agg",
    }
    done = execute([sys.executable, str(file)], cwd=folder, env=environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return [part.partition("\n")[2] for part in done.stdout.split("\x1e")[1:]]


def agrees(shown: str, came: str) -> bool:
    """Tell whether a shown output came, up to blanks at ends of lines; ``...`` stands for any text."""
    shown, came = ("\n".join(map(str.rstrip, text.rstrip().splitlines())) + "\n" for text in (shown, came))
    says_something = bool(re.search(r"\w", shown))
    return says_something and doctest.OutputChecker().check_output(shown, came, doctest.ELLIPSIS)


def pictures(text: str) -> list[str]:
    """Return the paths of the pictures that the page's own code writes."""
    return re.findall(r"!\[[^\]]*\]\(((?:[^)\s]*/)?pictures/[^)\s]+)\)", text)


def difference(first: Path, second: Path) -> float:
    """Return the root mean square difference of the values of two pictures; infinite between two sizes."""
    from matplotlib.image import imread

    values: list[Any] = [255.0 * imread(path)[..., :3] for path in (first, second)]
    if values[0].shape != values[1].shape:
        return float("inf")
    return float(np.sqrt(np.mean((values[0] - values[1]) ** 2)))


def faults(page: Path, folder: Path) -> list[str]:
    """Run a page and list the shown outputs and pictures that are not what comes."""
    text = page.read_text(encoding="utf8")
    found = [
        f"shown:\n{block.shown}\ncame:\n{came}"
        for block, came in zip(blocks(text), run(text, folder), strict=True)
        if block.shown is not None and not agrees(block.shown, came)
    ]
    for target in pictures(text):
        written, kept = folder / Path(target).name, page.parent / target
        if not written.exists() or not kept.exists() or difference(written, kept) > PICTURES_DIFFER:
            found.append(f"{target} is not what the page's code draws")
    return found


def rewrite(page: Path) -> None:
    """Replace the outputs and pictures of a page that are not what comes."""
    with tempfile.TemporaryDirectory() as folder:
        text = page.read_text(encoding="utf8")
        printed = run(text, Path(folder))
        for block, came in zip(blocks(text), printed, strict=True):
            if block.shown is not None and not agrees(block.shown, came):
                old = f"```{block.language}\n{block.text}```\n\n```output\n{block.shown}```"
                assert old in text, f"output must follow its block after one empty line: {block.shown!r}"
                text = text.replace(old, f"```{block.language}\n{block.text}```\n\n```output\n{came}```")
        page.write_text(text, encoding="utf8")
        for target in pictures(text):
            kept = page.parent / target
            kept.parent.mkdir(exist_ok=True)
            shutil.copy(Path(folder, kept.name), kept)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        rewrite(Path(name))
