"""How many threads a call takes: those of the machine, or a limit of the thread that asks."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from langevin.support.threads import aside, at_most, available_threads


def test_a_limit_holds_inside_and_for_its_own_thread_alone():
    every = available_threads()
    with ThreadPoolExecutor(1) as other, at_most(1):
        assert available_threads() == 1
        assert other.submit(available_threads).result() == every
        with at_most(every + 5):
            assert available_threads() == every
        assert available_threads() == 1
    assert available_threads() == every


def test_a_call_aside_has_its_result_or_its_failure():
    assert aside(divmod, 7, 2).result() == (3, 1)
    with pytest.raises(ZeroDivisionError):
        aside(divmod, 7, 0).result()
    # nothing waits for one that goes on
    go, found = threading.Event(), []
    task = aside(lambda: go.wait() and found.append(threading.current_thread().daemon))
    assert not task.done()
    go.set()
    task.result()
    assert found == [True]
