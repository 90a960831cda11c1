"""Captions say what their pictures show: their numbers are those of the data, none is typed."""

import ast
import importlib
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import xarray as xr

import langevin
from figures import cache, output, wording
from figures.__main__ import scripts
from figures.study import fig_heads
from figures.tables import tab_small
from figures.theory import fig_assumptions, fig_neurons
from langevin.store import files
from tests.helpers import random_problem, random_weights

SIMULATED = (
    *("budget", "clipping", "clipping_share", "error", "heads", "linear", "loss", "loss_spreads", "width"),
)
# statements, assumptions, definitions
NAMED = re.compile(
    r"(Theorems?|Assumptions?|Section|section|question)[\s\w]*\d(\.\d)?'?((,| and| to)\s\d(\.\d)?'?)*"
    r"|\((\d\.\d,? ?|and )+[^)]*\)|\b\d['a-f(]|``[^`]*``"
)
TYPED = re.compile(r"\d+\.\d+|\d+(?= ?(%|±|points|seeds|paths|runs|samples|data sets|budgets))|\d{2,}")


class Stop(Exception):
    """The first simulation of a figure."""


def figure(topic: str) -> Any:
    return importlib.import_module(scripts()[topic])


def template(topic: str) -> str:
    return (figure(topic).__doc__ or "").partition("\n\n")[2]


def data_of(topic: str) -> xr.Dataset:
    """The data of the full figure: stored, or read from the study."""
    script = figure(topic)
    stored = cache.ROOT / cache.stored(script.__file__)
    data = files.load(stored) if stored.exists() else script.compute()
    return script.collect(data) if hasattr(script, "collect") else data


def typed(text: str) -> list[str]:
    """Numbers of a caption that neither name a statement nor come from the data."""
    return [match.group() for match in TYPED.finditer(NAMED.sub("", text))]


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("topic", SIMULATED)
def test_paths_and_steps(monkeypatch, topic, quick):
    def spy(problem, weights, schedule, *, dt, paths, **_):
        raise Stop(paths, round(schedule.duration / dt))

    monkeypatch.setattr(langevin, "euler_maruyama", spy)
    with pytest.raises(Stop) as caught:
        figure(topic).compute(quick)
    paths, steps = caught.value.args
    said = output.chosen(figure(topic).SETTINGS, quick)
    assert said.get("paths", said.get("paths of each")) == paths
    assert said.get("steps", steps) == steps


@pytest.mark.parametrize("quick", [True, False])
def test_bodies_are_pre_trained_as_said(monkeypatch, quick):
    import empirical

    made = []

    def spy(name, **options):
        made.append((name, options["epochs"], options.get("images"), options.get("size")))
        if name == "glyphs":
            raise Stop

    monkeypatch.setattr(empirical, "Setting", spy)
    # what comes before takes long
    monkeypatch.setattr(langevin, "digits", lambda *_, **__: (random_problem(0), random_weights(0)))
    with pytest.raises(Stop):
        list(fig_assumptions.cases(quick))
    _, digits, glyphs, images, size = output.chosen(fig_assumptions.SETTINGS, quick).values()
    assert made == [("digits", digits, None, None), ("glyphs", glyphs, images, size)]


# known beforehand, and the same in all versions
FIXED = {"heads": ["20"]}  # degrees


@pytest.mark.parametrize("topic", scripts())
def test_no_number_of_a_caption_is_typed(topic):
    assert typed(template(topic)) == FIXED.get(topic, [])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("means of 20 seeds", ["20"]),
        ("At epsilon 0.3 it loses 4.0 ± 0.2 points", ["0.3", "4.0", "0.2"]),
        ("25 to 45 % of the pairs", ["25", "45"]),
        ("the mean of 3 seeds", ["3"]),
        (
            "Theorems 4.2 and 4.3, as Assumptions 3.1' and 3.2' state (3.4 and 5.1, new), like ``2 n C t``",
            [],
        ),
        ("bounded by (4b, new) and 5c; the theory says 1", []),
    ],
)
def test_typed_numbers_are_found(text, found):
    assert typed(text) == found


@pytest.mark.parametrize("topic", scripts())
def test_captions_are_complete_and_name_no_machine(topic):
    script, data = figure(topic), data_of(topic)
    text = output.quoted(script.__file__, getattr(script, "caption", None), data)
    assert not re.search(r"[{}]|nan|\d\.\d{5}", text)
    machine = str(data.attrs.get("machine", "a planet"))
    assert not re.search(r"AMD|EPYC|NVIDIA|Intel|Xeon|[HA]\d00\b", text)
    assert machine not in text


def test_a_caption_follows_the_data():
    data = data_of("heads")
    told = output.quoted(fig_heads.__file__, fig_heads.caption, data)
    at = {"head": "zero", "arm": "fft", "epsilon": 0.3}
    gain, error = (100 * float(data[name].sel(at)) for name in ("gain", "gain_error"))
    assert f"gains {gain:.1f} ± {error:.1f} points of accuracy with a zero head" in " ".join(told.split())
    other = output.quoted(fig_heads.__file__, fig_heads.caption, data.assign(gain=2 * data.gain))
    assert f"gains {2 * gain:.1f} ±" in " ".join(other.split())


def test_a_caption_counts_what_was_computed():
    data = data_of("neurons")
    assert fig_neurons.caption(data)["paths"] == wording.counts(data)["noisy paths"]
    assert fig_neurons.caption(data)["neurons"] == len(data.classes)
    said = fig_neurons.caption(data.assign_attrs(drawn='{"noisy paths": 7}'))
    assert said["paths"] == 7


def test_budgets_at_which_probing_is_ahead_are_those_of_the_table():
    data = tab_small.compute()
    said = tab_small.caption(data)
    ahead = (data["mean"].sel(arm="lp") - data["mean"].sel(arm="fft")).min("study")
    assert said["above"] == wording.listed(ahead.epsilon.values[ahead.values > 0].tolist())
    assert said["above"] != "none"


@pytest.fixture
def gallery(monkeypatch):
    """The Sphinx extension, also where Sphinx is not installed."""
    if find_spec("sphinx") is None:
        for name in ("sphinx", "sphinx.application", "sphinx.errors"):
            monkeypatch.setitem(sys.modules, name, SimpleNamespace(Sphinx=None, ExtensionError=Exception))
    monkeypatch.syspath_prepend(output.ROOT / "docs" / "ext")
    for name in ("pages", "gallery"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module("gallery")


def test_the_story_has_every_figure_once(gallery, tmp_path):
    stems = {script.stem: script for script in output.scripts()}
    told = gallery.index(stems, tmp_path)
    for name, script in stems.items():
        title = (ast.get_docstring(ast.parse(script.read_text())) or "").partition("\n\n")[0]
        assert " ".join(title.split()).rstrip(".") in told, name
    del stems["fig_loss"]
    with pytest.raises(Exception, match="STORY must name each"):
        gallery.index(stems, tmp_path)


def test_a_page_of_the_gallery_shows_the_caption_of_its_data(gallery, tmp_path):
    script = Path(fig_heads.__file__)
    for drawn in ('{"data sets": 20}', '{"data sets": 2}'):
        data = xr.Dataset(attrs={"drawn": drawn, "full": '{"data sets": 20}'})
        files.save(data, tmp_path / "fig_heads.nc")
        (tmp_path / "fig_heads.txt").write_text("What it shows.\n")
        text = gallery.page(script, tmp_path)
        assert "What it shows." in text
        assert ("coarse version" in text) == ('"data sets": 2}' in drawn)
