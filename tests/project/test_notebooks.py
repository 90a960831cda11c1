"""How objects show themselves in a notebook."""

import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest

from bounds import Band
from langevin import GramWeights, Phase, Problem, Schedule, Weights
from langevin.support import plots

mpl.use("Agg")

NASTY = "<b>cat & 'dog'</b>"
SHOWN = {
    "problem": Problem(np.eye(3), [NASTY, "eel", "eel"], loss="softmax"),
    "many classes": Problem(np.eye(40), np.arange(40), loss="ovr"),
    "real targets": Problem(np.eye(3), np.eye(3), loss="square"),
    "weights": Weights(np.eye(3), np.ones((3, 2))),
    "Gram": GramWeights(np.eye(3), np.ones(3), 10**9),
    "schedule": Schedule([Phase("lp", 0.5), Phase("fft", 1.0, 0.5, 1.0), Phase("lp", 2.0)]),
    "band": Band([0.0, 1.0], 0.0, [1.0, np.inf], [True, False], f"where {NASTY}", "new (4b)"),
    "no band": Band([0.0, 1.0], np.nan, np.nan, False, "nowhere", "new (4b)"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_line_and_a_table(name):
    thing = SHOWN[name]
    line, table = repr(thing), thing._repr_html_()
    assert "\n" not in line
    assert len(line) < 250
    assert line.startswith(f"{type(thing).__name__}(")
    # well formed: nothing of the user's is markup
    root = ET.fromstring(table)
    assert {element.tag for element in root.iter()} == {"table", "caption", "tr", "th", "td"}
    # an unescaped one is found
    with pytest.raises(ET.ParseError):
        ET.fromstring(f"<td>{NASTY}</td>".replace("&", "& <"))


def test_what_is_said():
    assert NASTY in "".join(ET.fromstring(SHOWN["problem"]._repr_html_()).itertext())
    assert "0: 1, 1: 1" in SHOWN["many classes"]._repr_html_()
    assert SHOWN["many classes"]._repr_html_().count(": 1,") == 20
    assert "width 1000000000" in repr(SHOWN["Gram"])
    assert re.search(r"phase 3, from time 1\.5</th><td>LP for time 2", SHOWN["schedule"]._repr_html_())
    assert "last, at time 0, in [0, 1]" in repr(SHOWN["band"])
    assert "valid at 0 of 2 times; reason: nowhere" in repr(SHOWN["no band"])


def test_a_band_is_drawn_where_it_holds():
    band = Band([0.0, 1.0, 2.0], [0.0, 1.0, 0.0], [1.0, 2.0, 0.0], [True, True, False], "why", "new")
    ax = band.plot(color=plots.METHODS["fft"], label="band")
    (shade,) = ax.collections
    points = shade.get_paths()[0].vertices
    assert points[:, 0].max() == 1.0
    assert (points[:, 1].min(), points[:, 1].max()) == (0.0, 2.0)
    assert ax.get_title() == "holds until time 1: why"
    assert band.plot(ax) is ax
    whole = Band([0.0, 1.0], 0.0, 1.0, True, "", "new").plot()
    assert whole.get_title() == ""
    assert SHOWN["no band"].plot().get_title() == "holds nowhere: nowhere"
