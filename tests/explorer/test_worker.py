"""The newest request counts."""

import logging
import os
import threading
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from explorer import worker
from explorer.presets import PRESETS
from explorer.worker import Newest, Request, Workshop

FIRST = replace(PRESETS[0].simulation, width=4, paths=2)


@pytest.fixture
def workshop():
    found = Workshop()
    yield found
    found.pool.shutdown()


@pytest.fixture
def held(monkeypatch):
    """Drawing has started, may go on, and what it has been asked for."""
    started, go, drawn = threading.Event(), threading.Event(), []

    def draw(simulation, quick):
        drawn.append((simulation.seed, quick))
        started.set()
        assert go.wait(60)
        return real(simulation, quick=quick)

    real = worker.draw
    monkeypatch.setattr(worker, "draw", draw)
    return started, go, drawn


class Delivered:
    """Answers, and an event for the last one."""

    def __init__(self):
        self.answers, self.done = [], threading.Event()

    def __call__(self, answer):
        self.answers.append(answer)
        if answer.last:
            self.done.set()


def test_few_paths_come_first_and_known_views_at_once(workshop):
    simulation, got = replace(FIRST, paths=6), Delivered()
    Newest(workshop, got).ask(Request(simulation))
    assert got.done.wait(60)
    assert [answer.views.simulation.paths for answer in got.answers] == [4, 6]
    again = Delivered()
    Newest(workshop, again).ask(Request(simulation))
    assert again.done.wait(60)
    assert [answer.views for answer in again.answers] == [got.answers[-1].views]


def test_what_is_being_drawn_is_drawn_once(workshop, held):
    started, go, drawn = held
    got = [Delivered(), Delivered()]
    for delivered in got:
        Newest(workshop, delivered).ask(Request(FIRST))
    assert started.wait(60)
    # nobody takes it for done
    assert workshop.known(FIRST, quick=True) is None
    go.set()
    for delivered in got:
        assert delivered.done.wait(60)
    assert sorted(drawn) == [(1, False), (1, True)]
    assert got[0].answers[-1].views is got[1].answers[-1].views is workshop.known(FIRST)


def test_a_file_is_drawn_as_it_was_last_written(workshop, held, tmp_path):
    started, go, drawn = held
    path = tmp_path / "features.npz"

    def written(scale, at):
        np.savez(path, X=scale * np.eye(2), y=[-1, 1])
        os.utime(path, (at, at))

    got, simulation = [Delivered(), Delivered()], replace(FIRST, data=str(path))
    written(1.0, at=1_000_000_000)
    Newest(workshop, got[0]).ask(Request(simulation))
    assert started.wait(60)
    # while it is being drawn, it changes
    written(2.0, at=1_000_000_001)
    Newest(workshop, got[1]).ask(Request(simulation))
    go.set()
    for delivered in got:
        assert delivered.done.wait(60)
    # the later request shares only what was begun after the change
    assert sorted(drawn) == [(1, False), (1, True), (1, True)]
    assert got[1].answers[0].views is not got[0].answers[0].views
    assert workshop.known(simulation) is got[0].answers[-1].views is got[1].answers[-1].views
    written(1.0, at=1_000_000_002)
    assert workshop.known(simulation) is None
    path.unlink()
    assert workshop.known(simulation) is None


def test_what_failed_is_drawn_again(workshop, monkeypatch):
    real, failures = worker.draw, [MemoryError("too many")]

    def draw(simulation, quick):
        if failures:
            raise failures.pop()
        return real(simulation, quick=quick)

    monkeypatch.setattr(worker, "draw", draw)
    with pytest.raises(MemoryError, match="too many"):
        workshop.draw(FIRST, quick=True)
    assert workshop.known(FIRST, quick=True) is None
    assert workshop.draw(FIRST, quick=True) is workshop.known(FIRST, quick=True)


def test_no_other_thread_finds_a_failure(workshop, monkeypatch):
    found = []

    class Watched(Future):
        def set_exception(self, exception):
            super().set_exception(exception)
            found.append((FIRST, True) in workshop._drawn)

    def draw(simulation, quick):
        raise MemoryError("too many")

    monkeypatch.setattr(worker, "Future", Watched)
    monkeypatch.setattr(worker, "draw", draw)
    with pytest.raises(MemoryError, match="too many"):
        workshop.draw(FIRST, quick=True)
    assert found == [False]


def test_the_oldest_views_are_dropped(workshop, monkeypatch):
    monkeypatch.setattr(worker, "_KEPT", 2)
    monkeypatch.setattr(worker, "draw", lambda simulation, quick: (simulation.seed, quick))
    for seed in (1, 2, 1, 3):
        workshop.draw(replace(FIRST, seed=seed), quick=False)
    kept = [workshop.known(replace(FIRST, seed=seed)) for seed in (1, 2, 3)]
    assert kept == [(1, False), None, (3, False)]


def test_stale_requests_are_dropped(workshop, held):
    started, go, drawn = held
    got = Delivered()
    newest = Newest(workshop, got)
    newest.ask(Request(replace(FIRST, seed=1)))
    assert started.wait(60)
    for seed in (2, 3, 4):
        newest.ask(Request(replace(FIRST, seed=seed)))
    go.set()
    assert got.done.wait(60)
    assert drawn == [(1, True), (4, True), (4, False)]
    assert {answer.simulation.seed for answer in got.answers} == {4}


def test_failures_are_delivered_and_the_next_request_works(workshop):
    got = Delivered()
    newest = Newest(workshop, got)
    newest.ask(Request(replace(FIRST, clip=None), epsilon=1.0))
    assert got.done.wait(60)
    assert [(answer.views, answer.failure) for answer in got.answers] == [
        (None, "epsilon needs a clip: without clipping no noise is private")
    ]
    got.done.clear()
    newest.ask(Request(FIRST, epsilon=100.0))
    assert got.done.wait(60)
    assert got.answers[-1].views.epsilon[-1] <= 100


def test_an_answer_that_is_not_delivered_stops_nothing(workshop, caplog):
    got = Delivered()

    def deliver(answer):
        if answer.simulation.seed == 1:
            arrived.set()
            raise RuntimeError("the page has gone")
        got(answer)

    arrived, newest = threading.Event(), Newest(workshop, deliver)
    with caplog.at_level(logging.ERROR):
        newest.ask(Request(replace(FIRST, seed=1)))
        assert arrived.wait(60)
        newest.ask(Request(replace(FIRST, seed=2)))
        assert got.done.wait(60)
    assert "the page has gone" in caplog.text


def test_a_closed_session_gets_nothing(workshop):
    got = Delivered()
    newest = Newest(workshop, got)
    newest.close()
    newest.ask(Request(FIRST))
    workshop.pool.shutdown()
    assert got.answers == []
