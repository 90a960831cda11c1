"""The newest request counts."""

import threading
from dataclasses import replace

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


def test_stale_requests_are_dropped(workshop, monkeypatch):
    started, go, drawn = threading.Event(), threading.Event(), []

    def draw(simulation, quick):
        drawn.append((simulation.seed, quick))
        started.set()
        assert go.wait(60)
        return real(simulation, quick=quick)

    real = worker.draw
    monkeypatch.setattr(worker, "draw", draw)
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


def test_a_closed_session_gets_nothing(workshop):
    got = Delivered()
    newest = Newest(workshop, got)
    newest.close()
    newest.ask(Request(FIRST))
    workshop.pool.shutdown()
    assert got.answers == []
