"""Subclasses that override code which solvers and bounds reimplement are refused, never ignored."""

from dataclasses import dataclass

import numpy as np
import pytest

from langevin import GramWeights, Phase, Problem, Schedule, Weights, euler_maruyama
from tests.survival.test_arguments import CALLS

# callables that take a problem and only draw weights from its samples
DRAW = ("collapsed_features", "gaussian_gram", "prototype_head")


class Leaky(Problem):
    def activate(self, z):
        return np.where(z > 0, z, 0.1 * z)


class Wide(Weights):
    @property
    def width(self):
        return 1000


class Long(Schedule):
    @property
    def duration(self):
        return 10.0


DERIVED = {
    "problem": (lambda p: Leaky(p.X, p.y, p.activation, p.loss), r"langevin\.Problem\.activate, as Leaky"),
    "weights": (lambda w: Wide(w.W, w.v), r"langevin\.Weights\.width, as Wide"),
    "schedule": (lambda s: Long(s.phases), r"langevin\.Schedule\.duration, as Long"),
}


PAIRS = [(c, n) for c, (_, given) in CALLS.items() if c not in DRAW for n in DERIVED if n in given]


@pytest.mark.parametrize(("call", "name"), PAIRS)
def test_they_are_refused_everywhere(call, name):
    function, arguments = CALLS[call]
    derive, message = DERIVED[name]
    with pytest.raises(TypeError, match=f"{name} must not override {message} does"):
        function(**{**arguments, name: derive(arguments[name])})


@pytest.mark.parametrize(
    "attribute", ["activate", "slope", "features", "outputs", "losses", "residuals", "gradient_norms"]
)
def test_every_method_of_a_problem_counts(attribute):
    _, arguments = CALLS["euler_maruyama"]
    derived = type("Derived", (Problem,), {attribute: getattr(Problem, attribute)})
    other = type("Other", (derived,), {})(arguments["problem"].X, arguments["problem"].y)
    with pytest.raises(
        TypeError, match=f"problem must not override langevin.Problem.{attribute}, as Derived"
    ):
        euler_maruyama(**{**arguments, "problem": other})


def test_phases_and_gram_weights_count_too():
    quiet = type("Quiet", (Phase,), {"sigma": property(lambda self: 0.0, lambda self, value: None)})
    with pytest.raises((TypeError, AttributeError), match="sigma"):
        Schedule([quiet("lp", 1.0)])
    narrow = type("Narrow", (GramWeights,), {"width": property(lambda self: 1)})
    _, arguments = CALLS["sandwich"]
    given = arguments["weights"]
    with pytest.raises(TypeError, match=r"weights must not override langevin\.GramWeights\.width, as Narrow"):
        CALLS["sandwich"][0](**{**arguments, "weights": narrow(given.W, given.v, 10)})


def test_subclasses_that_only_add_are_accepted():
    @dataclass(frozen=True, eq=False, init=False)
    class Named(Problem):
        name: str = ""

        @classmethod
        def example(cls):
            return cls([[1.0, 2.0], [3.0, -1.0], [0.5, 1.0]], [1, -1, 1])

        def __init__(self, X, y, name="named"):
            super().__init__(X, y)
            object.__setattr__(self, "name", name)

    function, arguments = CALLS["euler_maruyama"]
    plain, named = function(**arguments), function(**{**arguments, "problem": Named.example()})
    assert (plain.loss == named.loss).all()
