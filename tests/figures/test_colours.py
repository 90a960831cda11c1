"""Colours have one home, `langevin.support.plots`."""

import re

import pytest

from figures.output import ROOT

HOME = ROOT / "langevin" / "support" / "plots.py"
MODULES = [
    path
    for folder in ("langevin", "bounds", "empirical", "figures")
    for path in (ROOT / folder).rglob("*.py")
]
COLOUR = re.compile(r"[\"'](#[0-9a-fA-F]{6})[\"']")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_names_one(path):
    found = COLOUR.findall(path.read_text(encoding="utf8"))
    assert bool(found) == (path == HOME), f"take a colour of langevin.support.plots, not {found}"
