"""Every public function says where its statement is from and shows how it is called."""

import inspect

import numpy as np
import pytest

import bounds
from langevin.model.schedule import Schedule
from tests.theory import strategies

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


@pytest.mark.parametrize("name", ["sandwich", "conserved_rates", "lp_expected_loss", "lp_expected_head"])
@pytest.mark.parametrize("schedule", [Schedule.lp(time=0.1), Schedule.fft(time=0.1, clip=1.0)])
@pytest.mark.parametrize("loss", ["square", "softmax", "ovr"])
def test_of_several_outputs_no_statement_is_the_papers(name, schedule, loss):
    problem, weights = strategies.several(np.random.default_rng(0), K=3, loss=loss, activation="linear")
    assert getattr(bounds, name)(problem, weights, schedule, [0.1]).source.startswith("new")
    problem, weights = strategies.general(np.random.default_rng(0), loss="square", activation="linear")
    assert "replaces" in getattr(bounds, name)(problem, weights, schedule, [0.1]).source
