"""Stages of a recipe and their budget."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bounds.privacy.noise import USED
from empirical.privacy.spent import epsilon
from empirical.recipe import METHODS, Recipe

SAMPLES = 1000


# one phase, two with a release, a selection with a release: the others have such parts by other names
DIFFERENT = {("lp", "gaussian"), ("lp-fft", "prototype"), ("sparse", "prototype")}


@pytest.mark.parametrize(
    ("method", "head"),
    [
        pytest.param(method, head, marks=[] if (method, head) in DIFFERENT else [pytest.mark.slow])
        for method in METHODS
        for head in ("gaussian", "prototype")
    ],
)
def test_whole_budget_is_kept_and_used(method: Any, head: Any) -> None:
    history = Recipe(method, steps=20, batch=100, epsilon=1.0, head=head).history(SAMPLES)
    assert USED <= epsilon(history) <= 1.0
    assert epsilon(history, accountant="pld") <= 1.0
    assert history.steps == 20 + (head == "prototype")


def test_total_is_the_same_for_every_share() -> None:
    found = {epsilon(Recipe(lp_share=share, steps=20, batch=100).history(SAMPLES)) for share in (0, 0.3, 1)}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({"method": "lp"}, [("lp", "head", 10)]),
        ({"method": "fft"}, [("fft", "all", 10)]),
        ({"method": "lp-fft"}, [("lp", "head", 5), ("lp-fft", "all", 5)]),
        ({"method": "lp-fft", "lp_share": 0.0}, [("lp-fft", "all", 10)]),
        ({"method": "lp-fft", "lp_share": 1.0}, [("lp", "head", 10)]),
        ({"method": "lora", "lp_share": 0.2}, [("lp", "head", 2), ("lora", "lora", 8)]),
        ({"method": "sparse"}, [("sparse", "sparse", 9)]),
        ({"method": "sparse", "selection": "magnitude"}, [("sparse", "sparse", 10)]),
    ],
)
def test_stages(options: dict[str, Any], stages: list[tuple[str, str, int]]) -> None:
    recipe = Recipe(**options, steps=10)
    assert [(s.name, s.subset, s.steps) for s in recipe.stages] == stages
    names = [m.name for m in recipe.history(SAMPLES).mechanisms]
    assert ("selection" in names) == (options == {"method": "sparse"})
    assert [(s.name, s.steps) for s in recipe.phases] == [
        (m.name, m.steps) for m in recipe.history(SAMPLES).mechanisms
    ]


def test_rates() -> None:
    probing, rest = Recipe("lp-fft", steps=8, lr=0.5, lp_lr=2.0, drop=0.1).stages
    assert [probing.rate(step) for step in range(4)] == [2.0] * 4
    assert [rest.rate(step) for step in range(4)] == [0.5, 0.5, 0.05, 0.05]
    (only,) = Recipe("lp", steps=2, lr=0.5, drop=0.1).stages
    assert [only.rate(step) for step in range(2)] == [0.5, 0.05]


def test_without_noise() -> None:
    recipe = Recipe(epsilon=math.inf, clip=None)
    assert not recipe.private
    assert {m.noise_multiplier for m in recipe.history(SAMPLES).mechanisms} == {0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dp"}, "method must be one of"),
        ({"epsilon": 0}, "epsilon must be positive"),
        ({"epsilon": math.nan}, "epsilon must be finite"),
        ({"clip": None}, "clip must be positive with epsilon=1 .*without a bound"),
        ({"clip": None, "epsilon": math.inf, "clipping": "normalised"}, "clip must be positive"),
        ({"clip": -1.0}, "clip must be positive or None, got -1.0"),
        ({"method": "fft", "lp_share": 0.5}, "lp_share must be 0 for 'fft', got 0.5: use 'lp-fft'"),
        ({"lp_share": 0.01, "steps": 10}, "lp_share must leave a step to each stage"),
        ({"lp_share": 1.5}, r"lp_share must lie in \[0, 1\]"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"method": "sparse", "steps": 1}, "steps must leave one to select"),
        ({"momentum": 1.0}, "momentum must be below 1"),
        ({"density": 1.5}, r"density must lie in \(0, 1\]"),
        ({"delta": 1.0}, "delta must be below 1"),
        ({"lr": math.inf}, "lr must be finite"),
        ({"lp_lr": 1e300}, r"lp_lr must be at most 1e\+30, in single precision"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_batch_beyond_the_samples() -> None:
    with pytest.raises(ValueError, match="expected_batch must be at most samples=50, got 110"):
        Recipe().history(50)
