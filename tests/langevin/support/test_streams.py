"""Commands whose standard streams are closed, full, abandoned by their reader, or ASCII."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from langevin import Schedule, euler_maruyama
from tests.helpers import random_problem, random_weights
from tests.project.test_imports import ROOT

DOORS = (
    "langevin",
    "langevin.simulate",
    "langevin.report",
    "langevin.explore",
    "langevin.sweep",
    "bounds.plan",
    "empirical.finetune",
    "figures",
)
TOY = """
import os, sys
from langevin.support import streams

def main():
    print("0.5 ± 0.1, ε = 1", flush="flush" in sys.argv)
    print("talk ±", file=sys.stderr)
    assert sys.stdin is not None and not sys.stderr.isatty()
    with open("saved", "w") as file:
        file.write(f"{file.fileno() > 2}")
    if "long" in sys.argv:
        print("line\\n" * 100_000)
    return 3 if "fails" in sys.argv else 0

streams.run(main)
"""
FULL = Path("/dev/full")


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf8", "PYTHONUNBUFFERED": "", **more}


def start(command: list[str], folder: Path, redirected: str = "", **more: str):
    """Run a command under a shell that redirects its streams; nobody reads ``OUT``."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            ["bash", "-c", f'exec "$@" {redirected.replace("OUT", f">&{writer}")}', "bash", *command],
            cwd=folder,
            env=environment(**more),
            capture_output=True,
            pass_fds=[writer],
        )
    finally:
        os.close(writer)


@pytest.fixture
def toy(tmp_path):
    (tmp_path / "toy.py").write_text(TOY, encoding="utf8")

    def work(*arguments: str, redirected: str = "", options: tuple[str, ...] = (), **more: str):
        (tmp_path / "saved").unlink(missing_ok=True)
        done = start([sys.executable, *options, "toy.py", *arguments], tmp_path, redirected, **more)
        assert (tmp_path / "saved").read_text() == "True", done.stderr
        return done

    return work


def test_ordinary_streams(toy):
    done = toy()
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (
        0,
        "0.5 ± 0.1, ε = 1\n",
        "talk ±\n",
    )


@pytest.mark.parametrize("redirected", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_streams(toy, redirected):
    done = toy(redirected=redirected)
    assert done.returncode == 0
    assert b"Error" not in done.stdout + done.stderr
    assert (b"talk" in done.stdout + done.stderr) == ("2>" not in redirected)


@pytest.mark.parametrize("arguments", [(), ("flush",), ("long",)])
@pytest.mark.parametrize("options", [(), ("-u",)])
def test_a_reader_that_left(toy, arguments, options):
    done = toy(*arguments, redirected="OUT", options=options)
    assert (done.returncode, done.stderr.decode()) == (141, "talk ±\n")
    assert toy(*arguments, "fails", redirected="OUT 2>&1", options=options).returncode == 3


@pytest.mark.skipif(not FULL.exists(), reason="no such device here")
@pytest.mark.parametrize("options", [(), ("-u",)])
def test_a_full_disk(toy, options):
    done = toy(redirected=">/dev/full", options=options)
    said = "talk ±\nerror: standard output could not be written: No space left on device\n"
    assert (done.returncode, done.stderr.decode()) == (1, said)
    assert toy("fails", redirected=">/dev/full", options=options).returncode == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_ascii(toy, settings):
    done = toy(**settings)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0.5 +- 0.1, epsilon = 1\n", b"talk +-\n")


def test_other_encodings(tmp_path):
    code = "from langevin.support import streams; streams.run(lambda: print('± ε 中'))"
    for encoding, said in [
        ("latin-1", b"\xb1 epsilon \\u4e2d\n"),
        ("utf8", "± ε 中\n".encode()),
        ("ascii", b"+- epsilon \\u4e2d\n"),
    ]:
        done = start([sys.executable, "-c", code], tmp_path, PYTHONIOENCODING=encoding)
        assert (done.returncode, done.stdout) == (0, said), encoding
    # the control
    code = "print('±')"
    done = start([sys.executable, "-c", code], tmp_path, PYTHONIOENCODING="ascii")
    assert b"UnicodeEncodeError" in done.stderr


def test_a_program_without_a_console_can_ask_for_progress(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    problem, weights = random_problem(0), random_weights(0)
    schedule = Schedule.fft(time=0.1, sigma=0.1, clip=1.0)
    run = euler_maruyama(problem, weights, schedule, dt=0.05, paths=2, rng=0, progress=True)
    assert run.sizes["path"] == 2


@pytest.mark.parametrize("door", DOORS)
def test_every_command_handles_closed_streams(tmp_path, door):
    command = [sys.executable, "-m", door, "--help"]
    for redirected, status in [("2>&-", 0), ("OUT", 141), (">&- 2>&-", 0)]:
        done = start(command, tmp_path, redirected)
        assert (done.returncode, done.stderr) == (status, b""), redirected


@pytest.mark.parametrize("door", DOORS)
def test_every_command_prints_its_help_in_any_terminal(tmp_path, door):
    command = [sys.executable, "-m", door, "--help"]
    for columns in ("0", "1"):
        done = start(command, tmp_path, COLUMNS=columns, TERM="", PYTHONIOENCODING="ascii")
        assert (done.returncode, done.stderr) == (0, b""), columns
        assert len(done.stdout) > 200
