"""The ledger: written before the noise, whole after a kill, refused when damaged."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from empirical.privacy import ledger as privacy_ledger
from empirical.privacy.history import plan
from empirical.privacy.ledger import Ledger, LedgerError, read
from langevin.store import locks

PLAN = plan(1000, 100, delta=1e-4, steps=200, lp_share=0.25, noise_multiplier=4.0, clip=1.0)
ROOT = Path(__file__).resolve().parents[3]

# a run that notes each release of noise outside the ledger, saves every fifth step, and is killed
CHILD = """
import os, signal, sys
from pathlib import Path
from empirical.privacy.ledger import Ledger

folder, how, block, late = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "late"
resumed = (folder / "ledger").exists()
saved = folder / "saved"
from tests.empirical.privacy.test_ledger import PLAN
ledger = Ledger.resume(folder / "ledger", PLAN, head=saved.read_text() if saved.exists() else None) \
    if resumed else Ledger.create(folder / "ledger", PLAN)
released = os.open(folder / "released", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
print("ready", flush=True)
for step in range(ledger.claimed("fft"), PLAN["fft"].steps):
    if step % block == 0 and not late:
        ledger.claim("fft", block)
    os.write(released, b"x")  # the noise is out
    if how == str(step):
        os.kill(os.getpid(), signal.SIGKILL)  # between the step and the save
    if late:
        ledger.claim("fft")
    if step % 5 == 4:
        (folder / "new").write_text(ledger.head)
        os.replace(folder / "new", saved)
"""

posix = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")


def start(folder: Path, how: str, block: int = 1, when: str = "before") -> subprocess.Popen:
    code = [sys.executable, "-c", CHILD, str(folder), how, str(block), when]
    return subprocess.Popen(code, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def counts(folder: Path) -> tuple[int, int]:
    """Steps in the ledger, and steps whose noise was released."""
    return read(folder / "ledger").steps, (folder / "released").stat().st_size


@posix
@pytest.mark.parametrize("block", [1, 10])
def test_a_kill_between_step_and_save_loses_nothing(tmp_path, block):
    for step in (23, 47):  # the second in a resumed run
        run = start(tmp_path, str(step), block)
        assert run.communicate()[0] == "ready\n"
        assert run.returncode == -signal.SIGKILL
        claimed, released = counts(tmp_path)
        assert released <= claimed < released + 2 * block
    # resumed, it goes on to the end of the plan and no further
    run = start(tmp_path, "never", block)
    run.communicate()
    assert run.returncode == 0
    assert counts(tmp_path)[0] == PLAN["fft"].steps
    with Ledger.resume(tmp_path / "ledger", PLAN) as ledger, pytest.raises(LedgerError, match="is spent"):
        ledger.claim("fft")


@posix
def test_a_kill_at_any_time_loses_nothing(tmp_path):
    for _ in range(3):
        run = start(tmp_path, "never")
        assert run.stdout is not None
        run.stdout.readline()
        time.sleep(random.uniform(0.0, 0.02))
        run.kill()
        run.communicate()
        if (tmp_path / "released").exists():
            claimed, released = counts(tmp_path)
            assert released <= claimed <= released + 3  # one for each kill


@posix
def test_writing_after_the_step_would_lose_it(tmp_path):
    """Negative control: the same test sees a ledger that is written too late."""
    start(tmp_path, "23", when="late").communicate()
    claimed, released = counts(tmp_path)
    assert claimed == released - 1


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run.ledger"
    with Ledger.create(path, PLAN) as ledger:
        ledger.claim("lp", 20)
        for _ in range(3):
            ledger.claim("fft")
    return path


def test_what_is_claimed_is_what_is_accounted_for(path):
    history = read(path)
    assert [(m.name, m.steps) for m in history.mechanisms] == [("lp", 20), ("fft", 3)]
    assert history["fft"] == replace(PLAN["fft"], steps=3)
    assert (history.delta, history.samples) == (PLAN.delta, PLAN.samples)
    before = path.read_bytes()
    with Ledger.resume(path, PLAN) as ledger:
        assert ledger.claimed("lp") == 20
        ledger.claim("fft", 2)
        assert ledger.history == read(path)
    assert path.read_bytes().startswith(before)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    # plain JSON, a line for a claim
    assert json.loads(path.read_bytes().splitlines()[-1])["steps"] == 2


def test_every_flipped_bit_is_refused(path):
    whole = bytearray(path.read_bytes())
    rng = random.Random(0)
    for place in [0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(300))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(LedgerError, match=r"damaged|incomplete"):
            read(path)
        with pytest.raises(LedgerError):
            Ledger.resume(path)
    path.write_bytes(whole)
    assert read(path).steps == 23


def test_lines_left_out_or_exchanged_are_refused(path):
    lines = path.read_bytes().splitlines(keepends=True)
    for wrong in (
        lines[1:],
        lines[:2] + lines[3:],
        [*lines[:2], lines[3], lines[2], lines[4]],
        [*lines, lines[-1]],
    ):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(LedgerError, match="damaged"):
            read(path)


def test_a_torn_line_is_refused_unless_said_to_be_unreleased(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(LedgerError, match="drop_torn"):
        Ledger.resume(path, PLAN)
    with Ledger.resume(path, PLAN, drop_torn=True) as ledger:
        assert ledger.claimed("fft") == 2
        ledger.claim("fft")
    assert path.read_bytes() == whole
    # the header is never dropped, and an empty file is no ledger
    for start in (b"", whole[:10]):
        path.write_bytes(start)
        with pytest.raises(LedgerError):
            Ledger.resume(path, PLAN, drop_torn=True)


def test_whole_lines_lost_are_found_by_the_head(path):
    with Ledger.resume(path) as ledger:
        head = ledger.head
        ledger.claim("fft")
    with Ledger.resume(path, PLAN, head=head) as ledger:
        assert ledger.claimed("fft") == 4
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    assert read(path).steps == 22  # by itself it looks whole
    with pytest.raises(LedgerError, match="understates what was released"):
        Ledger.resume(path, head=head)
    for wrong in ("", "5", "0:abc", "5:abc", "-1:abc"):
        with pytest.raises(LedgerError, match="does not go through"):
            Ledger.resume(path, head=wrong)


def test_refusals(path, tmp_path):
    with pytest.raises(LedgerError, match="must not exist"):
        Ledger.create(path, PLAN)
    with pytest.raises(LedgerError, match="No such file"):
        Ledger.resume(tmp_path / "none")
    with pytest.raises(LedgerError, match="No such file"):
        Ledger.create(tmp_path / "no" / "folder", PLAN)
    with pytest.raises(LedgerError, match="plan must be that of"):
        Ledger.resume(path, replace(PLAN, delta=1e-5))
    with pytest.raises(ValueError, match="calibrate it first"):
        Ledger.create(tmp_path / "new", plan(10, 1, delta=0.01, steps=3))
    assert not (tmp_path / "new").exists()
    with Ledger.resume(path) as ledger:
        with pytest.raises(LedgerError, match=r"plan's 50 of 'lp', got 31 after 20"):
            ledger.claim("lp", 31)
        with pytest.raises(LedgerError, match="name must be one of"):
            ledger.claim("other")
        with pytest.raises(ValueError, match="steps must be at least 1"):
            ledger.claim("lp", 0)
        ledger.claim("lp", 30)
    with pytest.raises(LedgerError, match="is closed"):
        ledger.claim("fft")


@pytest.mark.skipif(locks.fcntl is None, reason="no advisory locks here")
def test_one_writer_at_a_time(path):
    with Ledger.resume(path), pytest.raises(LedgerError, match="in use by another process"):
        Ledger.resume(path)
    Ledger.resume(path).close()


@pytest.mark.parametrize("fault", ["short write", "fsync"])
def test_a_failed_write_allows_nothing_more(path, monkeypatch, fault):
    write = os.write

    def failing(*_):
        raise OSError(28, "No space left on device")

    with Ledger.resume(path) as ledger:
        if fault == "fsync":
            monkeypatch.setattr(privacy_ledger.os, "fsync", failing)
        else:
            monkeypatch.setattr(privacy_ledger.os, "write", lambda fd, line: write(fd, line[:30]))
        with pytest.raises(LedgerError, match=r"No space left|not written in full"):
            ledger.claim("fft")
        monkeypatch.undo()
        assert ledger.claimed("fft") == 3
        with pytest.raises(LedgerError, match="failed to be written before"):
            ledger.claim("fft")
    with Ledger.resume(path, PLAN, drop_torn=True) as ledger:
        # over-counted by the claim that failed, where it reached the disk
        assert ledger.claimed("fft") == (4 if fault == "fsync" else 3)


def test_no_ledger_is_left_where_making_it_failed(tmp_path, monkeypatch):
    def failing(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(privacy_ledger.os, "fsync", failing)
    with pytest.raises(LedgerError, match="No space left"):
        Ledger.create(tmp_path / "run.ledger", PLAN)
    assert not list(tmp_path.iterdir())
