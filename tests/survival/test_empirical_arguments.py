"""As `test_arguments`, for fine-tuning, its accounting, the planner and grids of sweeps."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import empirical
from empirical import Recipe, Setting, Shift, Style
from empirical.planning.plan import plan_share
from langevin.sweeps import SIMULATIONS, Grid
from tests.survival.outcomes import TRIALS, attempt
from tests.survival.test_arguments import VALUES, try_anything

PLAN = empirical.plan(100, 10, delta=1e-3, steps=5, noise_multiplier=1.0)
X = np.random.default_rng(0).standard_normal((40, 3))
Y = np.arange(40) % 2

CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Recipe": (
        Recipe,
        dict(method="lp-fft", lp_share=0.5, steps=10, batch=5.0, epsilon=1.0, delta=1e-4, clip=1.0)
        | dict(clipping="flat", lr=0.1, lp_lr=0.2, drop=0.5, momentum=0.1, head="gaussian", head_scale=1.0)
        | dict(engine="auto"),
    ),
    "Setting": (
        Setting,
        dict(
            data="glyphs", size=24, images=100, shift=Shift(), body="mlp", widths=(8,), pretrain="supervised"
        )
        | dict(epochs=1, device="cpu", precision="single", features=False),
    ),
    "Shift": (Shift, dict(rotation=10.0, gain=0.5, offset=0.1)),
    "glyphs": (
        empirical.glyphs,
        dict(size=12, train=20, test=20, public=40, shift=Shift(), style=Style(), rng=0),
    ),
    "digits": (empirical.digits, dict(shift=Shift(), rng=0)),
    "plan": (
        empirical.plan,
        dict(samples=100, expected_batch=10, delta=1e-3, steps=6, noise_multiplier=1.0, clip=1.0)
        | dict(lp_share=0.5),
    ),
    "epsilon": (empirical.epsilon, dict(history=PLAN)),
    "delta": (empirical.delta, dict(history=PLAN, epsilon=1.0)),
    "mlp": (empirical.mlp, dict(shape=(1, 4, 4), widths=(8, 4), rng=0)),
    "plan_share": (
        plan_share,
        dict(X=X, y=Y, epsilon=1.0, delta=1e-3, clip=1.0, W=np.eye(3), v=np.ones(3), X_test=X, y_test=Y)
        | dict(samples=100, steps=4, batch=10.0, shares=[0.0, 1.0], activation="relu", draws=2)
        | dict(theory=False, rng=0),
    ),
    "Grid": (
        Grid,
        dict(kind=SIMULATIONS, sweep={"sigma": [0.1]}, fixed={"dt": 0.01}, record={"times": 3}),
    ),
}
# of the tables of a grid
TABLES: dict[str, dict[str, Any]] = {
    "sweep": {"sigma": [0.1, 0.2], "seed": {"count": 2}, "method": ["lp", "fft"]},
    "fixed": {"dt": 0.01, "time": 0.1, "width": 8, "clip": "none", "data": "separable"},
    "record": {"variables": ["loss"], "times": 3},
}
EXAMPLES = {"plan_share": 15}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", CALLS)
def test_the_arguments_are_right_as_they_are(name):
    """Else what follows would test nothing."""
    function, right = CALLS[name]
    assert not attempt(lambda: function(**right))[1]


@pytest.mark.parametrize("name", CALLS)
def test_any_argument_may_be_anything(name):
    try_anything(*CALLS[name], examples=EXAMPLES.get(name, 40))


@pytest.mark.parametrize("table", TABLES)
def test_any_value_of_a_grid_may_be_anything(table):
    @given(st.sampled_from([*TABLES[table], "nothing", ""]), VALUES)
    @settings(max_examples=60 * TRIALS)
    def replaced(key, value):
        tables = TABLES | {table: {**TABLES[table], key: value}}
        attempt(lambda: Grid(SIMULATIONS, **tables))

    replaced()
