"""The limits of the tests detect a hang, but not a process that merely waits on a busy machine."""

import subprocess
import sys
import time

import pytest

from tests import helpers
from tests.helpers import Limit, execute, finish, until

PIPE = subprocess.PIPE
SPINNING, SLEEPING = "while True: pass", "import time; time.sleep(1000)"


def test_output_and_exit_status_of_a_process():
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    done = execute([sys.executable, "-c", code])
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    with pytest.raises(AssertionError, match=r"ended with 3:\nout"):
        execute([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("code", [SPINNING, SLEEPING], ids=["works", "waits"])
def test_a_hang_is_found_and_killed(code):
    started = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    with pytest.raises(AssertionError, match="hangs"):
        execute([sys.executable, "-c", started], seconds=0.2)


def test_a_limit_counts_processor_time_and_elapsed_time(monkeypatch):
    clock = {"elapsed": 100.0, "used": 100.0}
    monkeypatch.setattr(helpers.time, "monotonic", lambda: clock["elapsed"])
    monkeypatch.setattr(helpers, "processor_time", lambda pid: clock["used"])
    limit = Limit(10.0)
    # waiting for other processes
    clock["elapsed"] += 35.0
    assert limit.left == 5.0
    # many threads at once
    clock.update(elapsed=105.0, used=500.0)
    assert limit.left == 5.0
    clock["elapsed"] += 5.0
    assert limit.left == 0.0
    clock.update(elapsed=140.0, used=100.0)
    assert limit.left == 0.0


def test_waiting_for_a_condition_that_holds_and_one_that_never_does():
    began = time.process_time()
    assert until(lambda: "found" if time.process_time() > began + 1e-3 else "") == "found"
    with pytest.raises(AssertionError, match="never came"):
        until(lambda: False, seconds=0.01)
    # if the process ends first, waiting stops
    program = [sys.executable, "-c", "print('gone')"]
    with (
        subprocess.Popen(program, stdout=PIPE, text=True) as process,
        pytest.raises(AssertionError, match="gone"),
    ):
        until(lambda: False, process)
    with subprocess.Popen(program, stdout=PIPE, text=True) as process:
        assert finish(process) == ("gone\n", None)
