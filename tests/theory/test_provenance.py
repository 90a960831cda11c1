"""Every public function says where its statement is from and shows how it is called."""

import inspect

import pytest

import bounds

FUNCTIONS = [name for name in dir(bounds) if inspect.isfunction(getattr(bounds, name))]
# how a statement's source is given
SOURCES = ("re-derived", "new", "[1]_", "[2]_")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_provenance_and_example(name):
    text = inspect.getdoc(getattr(bounds, name)) or ""
    assert ">>> " in text
    assert any(source in text.lower().split("references")[0] for source in SOURCES)
    # a citation has its reference
    for mark in ("[1]", "[2]"):
        assert (mark + "_" in text) == (".. " + mark in text)


def test_theorem_2_2_alone_is_the_papers_to_the_letter():
    found = [
        name for name in FUNCTIONS if "theorem 2.2 of [1]" in (getattr(bounds, name).__doc__ or "").lower()
    ]
    assert found == ["approximation_error"]
