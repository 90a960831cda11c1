"""The page of presets without a server: its numbers are the engine's, and it moves in a browser."""

import importlib
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from explorer.presets import PRESETS, describe
from explorer.views import draw
from langevin.solvers.diffusion import euler_maruyama
from langevin.solvers.trajectory import trajectory
from langevin.solvers.zeroth import zeroth_order
from tests import browser
from tests.project.test_site import faults

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "docs" / "_static"
BY_KEY = {preset.key: preset for preset in PRESETS}
# of the small site: one preset, at its own value and another
KEY, OTHER, OWN = "probing", 0, 1
LEFT = "\ue012"


@pytest.fixture(scope="module")
def extension():
    """Import the extension as Sphinx does."""
    pytest.importorskip("sphinx")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs" / "ext"))
        yield importlib.import_module("presets")


@pytest.fixture(scope="module")
def sweep(extension):
    return replace(extension.SWEEPS[KEY], values=(0.1, 0.6), own=OWN)


@pytest.fixture(scope="module")
def site(extension, sweep, tmp_path_factory):
    """Build a site of the page with one preset, and return its source and the site."""
    pytest.importorskip("furo")
    Sphinx = pytest.importorskip("sphinx.application").Sphinx
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    (source / "howto").mkdir()
    (source / "howto" / "explore.rst").write_text("Explore\n=======\n")
    contents = f"   {extension.PAGE}\n   howto/explore\n"
    (source / "index.rst").write_text(f"Site\n====\n\n.. toctree::\n\n{contents}")
    (source / "conf.py").write_text(
        "html_theme, html_show_sourcelink, html_copy_source = 'furo', False, False\n"
        f"extensions = ['presets']\nhtml_static_path = [{str(STATIC)!r}]\nhtml_css_files = ['site.css']\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extension, "SWEEPS", {KEY: sweep})
        doctrees = built / ".doctrees"
        Sphinx(source, source, built, doctrees, "html", status=None, warningiserror=True).build()
    return source, built


@pytest.fixture(scope="module")
def stored(extension, site):
    return json.loads((site[0] / extension.PAGE).with_name(f"{KEY}.json").read_text(encoding="utf8"))


def differences(extension, found, simulation, box):
    """How far stored numbers are from the engine's, in units of what rounding may change."""
    start = simulation.start()
    given = (start.problem, start.weights, simulation.schedule)
    times = simulation.schedule.default_times(101)
    same: dict[str, Any] = dict(dt=simulation.dt, times=times)
    names = ("loss", "misaligned", "distorted")
    paths = euler_maruyama(*given, **same, rng=simulation.seed, paths=16, reduce="span", observables=names)
    zeroth = zeroth_order(*given, **same, reduce="span", observables=names[1:])
    every = slice(None, None, extension.EVERY)
    # four digits
    exact: dict[tuple[str, ...], np.ndarray] = {("times",): times}
    for name in names:
        key = name if name == "loss" else f"{name}_share"
        exact[key, "mean"] = paths[name].values.mean(axis=0)
        exact[key, "zeroth"] = zeroth[name].values
    exact["loss", "low"], exact["loss", "high"] = np.quantile(paths["loss"].values, [0.05, 0.95], axis=0)
    wrong = {}
    for key, values in exact.items():
        numbers = found
        for part in key:
            numbers = numbers[part]
        wrong[key] = np.max(np.abs(numbers - values[every]) / (5e-4 * np.abs(values[every]) + 1e-12))
    # coordinates are whole numbers
    asked: dict[str, Any] = dict(rng=simulation.seed, observables=names)
    for name, noisy in (("neurons", True), ("zeroth", False)):
        W, _ = trajectory(*given, **same, **asked, noisy=noisy)
        places = np.reshape(found[name], W[every].shape) * box.half / extension.HALF + box.centre
        wrong[name] = np.abs(places - W[every]).max() / (0.5 * box.half / extension.HALF * (1 + 1e-9))
    return wrong


def test_the_numbers_are_those_of_the_engine_but_for_rounding(extension, sweep, stored):
    simulations = sweep.simulations(BY_KEY[KEY])
    box = extension.Box.around([draw(simulation) for simulation in simulations])
    for place, simulation in enumerate(simulations):
        wrong = differences(extension, stored["runs"][place], simulation, box)
        assert max(wrong.values()) <= 1, wrong
    # the run of the other value is another
    wrong = differences(extension, stored["runs"][OTHER], simulations[OWN], box)
    assert wrong.pop(("times",)) <= 1
    assert min(wrong.values()) > 10, wrong


def test_sentences_and_states_are_those_of_the_runs(extension, sweep, stored):
    for run, simulation in zip(stored["runs"], sweep.simulations(BY_KEY[KEY]), strict=True):
        views = draw(simulation)
        assert run["said"].lower() == " ".join(describe(views)).lower()
        states = np.array(list(run["misaligned"]), int).reshape(-1, views.weights.width)
        assert (states == views.plane.misaligned[:: extension.EVERY]).all()
        assert run["epsilon"] == pytest.approx(views.epsilon[-1], rel=5e-4)
    assert stored["said"] == list(BY_KEY[KEY].says(draw(BY_KEY[KEY].simulation)))


def test_each_preset_has_a_slider_and_is_one_of_its_values(extension):
    assert list(extension.SWEEPS) == list(BY_KEY)
    for key, sweep in extension.SWEEPS.items():
        simulations, preset = sweep.simulations(BY_KEY[key]), BY_KEY[key].simulation
        same = []
        for simulation in simulations:
            start, expected = simulation.start(), preset.start()
            weights = np.allclose(start.weights.v, expected.weights.v, rtol=1e-12)
            same.append(weights and list(simulation.schedule) == list(preset.schedule))
        assert len(simulations) == 7
        assert [place for place, found in enumerate(same) if found] == [sweep.own], key


def test_the_page_has_what_it_needs_and_no_more(extension, site, stored):
    _, built = site
    assert faults(built) == []
    path = built / f"{extension.PAGE}.html"
    page = path.read_text(encoding="utf8")
    for sentence in stored["said"]:
        # Sphinx sets curly apostrophes
        assert sentence.replace("'", "\u2019") in page
    place = re.search(r'<div class="preset".*?</script></div>', page, re.S)
    assert place
    assert re.search(r'<img alt="Neurons.*?<script type="application/json">', place[0], re.S)
    data = place[0].partition('json">')[2].partition("</script>")[0]
    assert json.loads(data) == stored
    # all presets at all values
    of_run, runs = path.stat().st_size / 2, sum(len(sweep.values) for sweep in extension.SWEEPS.values())
    assert of_run * runs < 1.5e6
    script = (STATIC / "presets.js").read_text(encoding="utf8")
    assert len(script.splitlines()) < 300
    assert not re.search(r"fetch\(|XMLHttpRequest|import\b|https?://(?!www\.w3\.org/2000/svg)", script)
    # other pages do without the script
    assert "presets.js" in page
    assert "presets.js" not in (built / "index.html").read_text(encoding="utf8")


def test_unchanged_sources_are_not_simulated_again(extension, sweep, site, monkeypatch):
    source, _ = site
    app = type("App", (), {"srcdir": source})
    monkeypatch.setattr(extension, "SWEEPS", {KEY: sweep})
    made = []
    monkeypatch.setattr(extension, "make", made.append)
    extension.generate(app)
    assert not made
    monkeypatch.setattr(extension, "SOURCES", ("explorer",))
    extension.generate(app)
    assert made


def test_a_fingerprint_tells_files_apart(extension):
    fingerprint = importlib.import_module("pages").fingerprint
    first, second = fingerprint("docs/ext/presets.py"), fingerprint("docs/ext/gallery.py")
    assert first == fingerprint("docs/ext/presets.py") != second
    assert fingerprint("docs/ext") not in (first, second)


# of the first preset on the page
_DRAWN = """
const place = document.querySelector('.preset');
const d = (s) => [...place.querySelectorAll(s)].map((e) => e.outerHTML).join();
return {neurons: d('.neuron'), loss: d('.line.loss'), now: d('.now'), text: d('.readout'), said: d('.said'),
  button: d('button'), time: +place.querySelectorAll('input')[1].value};
"""
_MOVE = """
const input = document.querySelectorAll('.preset input')[{which}];
input.value = {value};
input.dispatchEvent(new Event('input', {{bubbles: true}}));
"""


def until(condition, patience=60):
    """Wait for a condition on a busy machine."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def driver():
    if not browser.available():
        pytest.skip(browser.ABSENT)
    with browser.driver() as address:
        yield address


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False), (1280, True)])
def test_sliders_change_the_drawing(extension, site, stored, driver, width, dark):
    audit = (ROOT / "tests" / "project" / "audit.js").read_text(encoding="utf8")
    with browser.browser(driver, width, dark) as window:
        window.open(f"{site[1].as_uri()}/{extension.PAGE}.html")
        assert window.run("return document.querySelectorAll('.preset img, .preset svg.plane').length") == 1
        first = window.run(_DRAWN)
        window.run(_MOVE.format(which=1, value=10))
        second = window.run(_DRAWN)
        assert {key for key in first if first[key] != second[key]} == {"neurons", "now", "text", "time"}
        window.run(_MOVE.format(which=0, value=OTHER))
        third = window.run(_DRAWN)
        assert {key for key in first if third[key] != second[key]} == {"neurons", "loss", "text", "said"}
        centre = re.findall(r'cx="(-?\d+)" cy="(-?\d+)"', third["neurons"])[0]
        at = 2 * 10 * len(stored["own"])
        assert [int(x) for x in centre] == stored["runs"][OTHER]["neurons"][at : at + 2]
        # by the keyboard: the time's slider, and the button
        window.run("document.querySelectorAll('.preset input')[1].focus()")
        window.press(LEFT)
        assert window.run(_DRAWN)["time"] == 9
        window.run("document.querySelector('.preset button').focus()")
        window.press(" ")
        until(lambda: window.run(_DRAWN)["time"] > 12)
        window.press(" ")
        assert "Play" in window.run(_DRAWN)["button"]
        assert window.run(audit) == []
        assert window.errors() == []
        window.run("setTimeout(() => { throw Error('a control') }, 0)")
        until(lambda: any("a control" in text for text in window.errors()))


def test_less_motion_shows_a_few_still_pictures(extension, site, driver):
    with browser.browser(driver, 1280) as window:
        window.less_motion()
        window.open(f"{site[1].as_uri()}/{extension.PAGE}.html")
        window.run("document.querySelector('.preset button').click()")
        seen = set()

        def ended():
            seen.add(window.run(_DRAWN)["time"])
            return "Play" in window.run(_DRAWN)["button"]

        until(ended)
        assert len(seen) > 1
        assert seen <= {0, 10, 20, 30, 40, 50}
