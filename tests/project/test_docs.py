"""The code in the README and the documentation runs, and their links lead to existing files."""

import itertools
import os
import re
import sys
from pathlib import Path

import pytest

from tests.helpers import execute

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    str(page.relative_to(ROOT)): page
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "generated" not in page.parts
}
# commands that are not run here, with the reason
NOT_HERE = {
    "make install": "it sets up an environment",
    "make simulate": "the continuous integration runs it",
    "make test": "the continuous integration runs it",
    ". .venv/bin/activate": "the tests run in an environment of their own",
}
# options that shorten slow commands: of an option given twice, the last value counts
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


def blocks(text: str) -> list[tuple[str, str]]:
    """Return language and text of each fenced block that is not a directive, in order."""
    found = re.findall(r"^```([^\n`]*)\n(.*?)^```", text, re.M | re.S)
    return [(language, block) for language, block in found if not language.startswith("{")]


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
    for language, block in blocks(text):
        if language == "python":
            parts.append(block)
        elif language == "sh":
            for command in commands(block):
                if command not in NOT_HERE:
                    parts.append(f"_run({shortened(command)!r})")
    return "\n".join(parts)


def run(text: str, folder: Path) -> str:
    """Run a page in an empty folder and return what it prints."""
    file = folder / "page.py"
    file.write_text(program(text), encoding="utf8")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "agg",
    }
    done = execute([sys.executable, str(file)], cwd=folder, env=environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if blocks(page.read_text())])
def test_code_blocks_of_a_page_run(tmp_path, name):
    text = PAGES[name].read_text(encoding="utf8")
    unknown = {language for language, _ in blocks(text)} - {"python", "sh"} - SILENT
    assert not unknown, "unknown language of a block: use python or sh, or text for a block that is not run"
    out = run(text, tmp_path)
    if name == "README.md":
        assert "zeroth-order loss enclosed: True" in out


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```python\nx = 1\n```\n\n```sh\nfalse\n```\n", "CalledProcessError"),
        ("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", "AssertionError"),
        ("```sh\npython -m langevin.simulate --no-such-option\n```\n", "CalledProcessError"),
    ],
)
def test_a_page_that_fails_is_detected(tmp_path, page, error):
    with pytest.raises(AssertionError, match=error):
        run(page, tmp_path)


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text()
    for name, page in PAGES.items():
        for target in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", page.read_text(), re.M):
            assert f"\n{''.join(target)}:" in makefile, (name, target)


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_exist(name):
    text = re.sub(r"```.*?```", "", PAGES[name].read_text(encoding="utf8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, _ = target.partition("#")
        if not target.startswith(("https://", "mailto:")) and path and "generated/" not in path:
            assert (PAGES[name].parent / path).exists(), target


@pytest.mark.parametrize("name", PAGES)
def test_pages_of_the_gallery_have_a_script(name):
    topics = re.findall(r"generated/gallery/((?:fig|tab)_\w+)", PAGES[name].read_text(encoding="utf8"))
    assert set(topics) <= {path.stem for path in (ROOT / "figures").glob("*/*.py")}


def broken_sentences(text: str) -> list[str]:
    """List lines of paragraphs that Markdown reads as an item, a quotation or a heading.

    Such a line begins with ``1.``, a sign or a hash, after a line that ends within a sentence.
    """
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    starts = re.compile(r"(?:1[.)]|[-+*>]|#{1,6}) ")
    inside = re.compile(r"\s|[-+*>|#:!]|\d+[.)] |$")
    pairs = itertools.pairwise(text.splitlines())
    return [
        line
        for before, line in pairs
        if starts.match(line) and not inside.match(before) and re.search(r"[\w,$})\]]$", before.rstrip())
    ]


@pytest.mark.parametrize("name", PAGES)
def test_no_sentence_turns_into_a_list(name):
    assert broken_sentences(PAGES[name].read_text(encoding="utf8")) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("until a margin first reaches\n1. After that it changes.\n", 1),
        ("the sum $a\n- b$ is small\n", 1),
        ("a loss of more\n> 3 is large\n", 1),
        ("*Statement.*\n1. The first.\n2. The second.\n", 0),
        ("Two things:\n\n- a\n- b\n", 0),
        ("Two things:\n- a thing\n- another\n", 0),
        ("```sh\nls\n# a comment\n```\n", 0),
        ("in 2 out of\n2. This stays a sentence, as no list begins with 2.\n", 0),
    ],
)
def test_a_broken_sentence_is_found(text, count):
    assert len(broken_sentences(text)) == count
