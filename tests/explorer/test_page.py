"""The page without a browser: what it says before there is a picture, and what a picture changes."""

from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest

pytest.importorskip("panel")
import panel as pn

from explorer import limits, worker
from explorer.controls import Controls, Logarithmic
from explorer.page import Page
from explorer.panels import Panels
from explorer.presets import PRESETS
from explorer.views import draw
from explorer.worker import Workshop

# Panel 2 will have `label` in its place
pytestmark = pytest.mark.filterwarnings("ignore:Widget.name:PendingDeprecationWarning")
SMALL = replace(PRESETS[1].simulation, samples=12, width=6, paths=2)
ADDRESS = {"preset": "probing", "samples": "12", "width": "6", "paths": "2"}


@pytest.fixture
def workshop():
    found = Workshop()
    yield found
    found.pool.shutdown()


def test_it_says_that_the_first_picture_is_being_computed(workshop, monkeypatch):
    # nothing is drawn before the page is there
    monkeypatch.setattr(worker.Newest, "ask", lambda self, request: None)
    assert "being computed" in Page(workshop, ADDRESS)._said.object
    workshop.draw(SMALL, quick=True)
    known = Page(workshop, ADDRESS)._said.object
    assert "being computed" not in known
    assert "Your own run" in known


def test_what_is_ready_before_the_page_is_there_waits_for_it(workshop, monkeypatch):
    monkeypatch.setattr(worker.Newest, "ask", lambda self, request: None)
    page, views = Page(workshop, ADDRESS), workshop.draw(SMALL, quick=False)
    page._deliver(worker.Answer(SMALL, views, "", last=True))
    page._catch_up()
    # the browser would lose it, and the server take it for shown
    assert page._status.object == ""
    assert page._filled is None
    page._loaded()
    assert "all paths and bounds" in page._status.object
    assert page._filled is not None
    page._entered(None)
    assert "running" in page._status.object


def test_a_slider_names_a_value_beyond_its_ends():
    slider = Logarithmic("Noise sigma", 1e-3, 10)
    for value, shown in ((0.5, None), (50, "50"), (0, "0"), (10, None), (1e-3, None)):
        slider.set(value)
        assert slider.widget.name == ("Noise sigma" if shown is None else f"Noise sigma: {shown}")
        assert slider.widget.show_value == (shown is None)
    controls = Controls(False, lambda budget: None)
    assert not controls.widgets["epsilon"].show_value
    for epsilon, why, name in (
        (253e3, "", "Budget epsilon: 2.53e+05"),
        (np.inf, "", "No epsilon (there is no noise)"),
        (2.0, "", "Budget epsilon"),
    ):
        controls.show_epsilon(epsilon, why)
        assert controls.widgets["epsilon"].name == name


def test_a_slider_is_not_waited_for():
    """Panel keeps its wait in an attribute that is not public, and may give it another name."""
    document = Mock()
    for slider in (Controls(False, lambda budget: None).widgets["width"], pn.widgets.IntSlider()):
        slider._server_change(document, "a model", None, "value", 1, 2)
    own, usual = (call.args[1] for call in document.add_timeout_callback.call_args_list)
    assert own == 0 < usual


# five classes on a ring leave no directions to one alone
RING = {"data": "ring", "classes": "5", "loss": "softmax"}


@pytest.mark.parametrize(("more", "shaded"), [({}, True), (RING, False)])
def test_the_key_is_of_what_is_drawn(workshop, monkeypatch, more, shaded):
    monkeypatch.setattr(worker.Newest, "ask", lambda self, request: None)
    address = ADDRESS | more
    entries, wrong = limits.read(address)
    assert wrong == []
    assert bool(workshop.draw(limits.simulation(entries), quick=True).plane.cones) == shaded
    assert ("Shaded" in Page(workshop, address)._key.object) == shaded


def test_a_picture_changes_models_in_place():
    panels = Panels()
    panels.fill(draw(SMALL, quick=True))
    before = {name: set(getattr(panels, name).figure.references()) for name in ("loss", "distance", "plane")}
    data = panels.loss._source.data
    panels.fill(draw(replace(SMALL, sigma=0.5), quick=True))
    assert panels.loss._source.data is not data
    for name, models in before.items():
        assert set(getattr(panels, name).figure.references()) == models


def test_lines_that_a_run_does_not_have_are_not_drawn():
    panels = Panels()
    panels.fill(draw(SMALL))
    assert np.isfinite(panels.distance._source.data["ode"][1:]).all()
    assert "new (1b)" in panels.distance.key
    panels.fill(draw(SMALL, quick=True))
    assert np.isnan(panels.distance._source.data["ode"]).all()
    assert "new (1b)" not in panels.distance.key
