"""Captions say what their pictures show: the counts that they quote are those that are computed."""

import ast
import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import xarray as xr

import langevin
from figures import output
from figures.__main__ import scripts
from figures.study import fig_features, fig_heads
from figures.study.study_features import FILE
from figures.theory import fig_assumptions
from langevin.store import files
from tests.helpers import random_problem, random_weights

SIMULATED = (
    *("budget", "clipping", "clipping_share", "error", "heads", "linear", "loss", "loss_spreads", "width"),
)
WORDS = {3: "Three", 4: "four"}


class Stop(Exception):
    """The first simulation of a figure."""


def figure(topic: str) -> Any:
    return importlib.import_module(scripts()[topic])


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


def test_features_are_measured_as_said():
    """The figure has no quick version, as it reads the committed study."""
    runs = files.load(output.ROOT / FILE)
    caption = " ".join((fig_features.__doc__ or "").split())
    assert f"means of {runs.sizes['seed']} seeds" in caption
    assert f"{int(runs.step[-1])} steps of DP-SGD" in caption
    assert not hasattr(fig_features, "SETTINGS")


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


@pytest.mark.parametrize(
    ("topic", "name", "said"),
    [
        ("assumptions", "pairs of classes", "{} pairs of classes"),
        ("clipping", "seeds of DP-SGD", "means of {} seeds"),
        ("heads", "data sets", "means of {} data sets"),
        ("neurons", "noisy paths", "middle 80 % of {}"),
    ],
)
def test_captions_count_as_the_full_version_does(topic, name, said):
    count = figure(topic).SETTINGS[name][1]
    caption = " ".join(figure(topic).__doc__.split())
    assert any(said.format(spelled) in caption for spelled in (count, WORDS.get(count)))


def test_a_page_of_the_gallery_says_which_version_it_shows(monkeypatch, tmp_path):
    if find_spec("sphinx") is None:
        for name in ("sphinx", "sphinx.application", "sphinx.errors"):
            monkeypatch.setitem(sys.modules, name, SimpleNamespace(Sphinx=None, ExtensionError=Exception))
    monkeypatch.syspath_prepend(output.ROOT / "docs" / "ext")
    for name in ("pages", "gallery"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    gallery = importlib.import_module("gallery")
    script = Path(fig_heads.__file__)
    for quick in (True, False):
        data = xr.Dataset(attrs={"quick": int(quick)})
        for version, coarse in (("drawn", quick), ("full", False)):
            data.attrs[version] = json.dumps(output.chosen(fig_heads.SETTINGS, coarse))
        files.save(data, tmp_path / "fig_heads.nc")
        text = gallery.page(script, tmp_path)
        assert ("This picture is a quick version" in text) == quick
        assert ("data sets: 2, paths of each: 4" in text) == quick
        caption = (ast.get_docstring(ast.parse(script.read_text())) or "").partition("\n\n")[2]
        if quick:
            assert text.index("full version (data sets: 20, paths of each: 16)") < text.index(caption)
