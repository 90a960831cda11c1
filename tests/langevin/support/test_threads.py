"""How many threads a call takes: those of the machine, or a limit of the thread that asks."""

from concurrent.futures import ThreadPoolExecutor

from langevin.support.threads import at_most, available_threads


def test_a_limit_holds_inside_and_for_its_own_thread_alone():
    every = available_threads()
    with ThreadPoolExecutor(1) as other, at_most(1):
        assert available_threads() == 1
        assert other.submit(available_threads).result() == every
        with at_most(every + 5):
            assert available_threads() == every
        assert available_threads() == 1
    assert available_threads() == every
