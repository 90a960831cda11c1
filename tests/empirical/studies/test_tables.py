"""Tables of grids: planted differences are found, none is made of noise."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import binom

from empirical.studies.tables import Table, best_share, paired, shares_table, summary, table

ARMS = ["lp", "fft", "fft-drop", "lp-fft 0.25", "lp-fft 0.5"]
SHARES = [1.0, 0.0, np.nan, 0.25, 0.5]
EPSILONS = [0.3, 1.0, np.inf]


def make_run(effects: np.ndarray | float = 0.0, seeds: int = 20, rng: int = 0) -> xr.Dataset:
    """Accuracies with an effect of the seed that is common to all arms, and noise a tenth of it."""
    random = np.random.default_rng(rng)
    shape = (len(ARMS), len(EPSILONS))
    common = 0.1 * random.standard_normal((len(EPSILONS), seeds))
    noise = 0.01 * random.standard_normal((*shape, seeds))
    values = 0.5 + np.broadcast_to(effects, shape)[..., None] + common + noise
    return xr.Dataset(
        {"test_accuracy": (("arm", "epsilon", "seed"), values)},
        {
            "arm": ARMS,
            "method": ("arm", [arm.split()[0] for arm in ARMS]),
            "share": ("arm", SHARES),
            "epsilon": EPSILONS,
        },
    )


def planted(arm: int, epsilon: int, effect: float) -> np.ndarray:
    effects = np.zeros((len(ARMS), len(EPSILONS)))
    effects[arm, epsilon] = effect
    return effects


def test_means_and_standard_errors() -> None:
    run = make_run()
    found = summary(run)
    values = run.test_accuracy.values
    np.testing.assert_allclose(found["mean"], values.mean(-1))
    np.testing.assert_allclose(found.standard_error, values.std(-1, ddof=1) / np.sqrt(20))
    with pytest.raises(ValueError, match="measure must be one of"):
        summary(run, "speed")


def test_missing_seeds_are_left_out_in_pairs() -> None:
    run = make_run()
    values = run.test_accuracy.values
    values[0, 0, 3] = values[1, 0, 5] = np.nan
    found = paired(run, "lp").sel(arm="fft", epsilon=0.3)
    both = np.delete(values[1, 0] - values[0, 0], [3, 5])
    assert found["count"] == 18
    assert found["mean"] == pytest.approx(both.mean())
    values[:, 1, 1:] = np.nan
    alone = paired(run, "lp").sel(arm="fft", epsilon=1)
    assert alone["count"] == 1
    assert np.isnan(alone.standard_error)
    assert not alone.significant


def test_a_planted_difference_is_found_and_only_that() -> None:
    found = paired(make_run(planted(3, 1, 0.02)), "lp")
    expected = planted(3, 1, 1.0) > 0
    assert (found.significant.values == expected).all()
    at = found.sel(arm="lp-fft 0.25", epsilon=1)
    assert abs(at["mean"] - 0.02) < 4 * at.standard_error
    # without pairs the seeds' effect would hide it
    unpaired = np.hypot(*summary(make_run()).standard_error.values[[0, 3], 1])
    assert at.standard_error < unpaired / 3


def test_noise_is_not_called_significant() -> None:
    tables, alone = 200, 0
    false = 0
    for rng in range(tables):
        found = paired(make_run(rng=rng), "lp")
        false += bool(found.significant.any())
        alone += bool((np.abs(found["mean"]) > 2.09 * found.standard_error).any())
    assert false <= binom.ppf(0.999, tables, 0.05)
    # twelve tests at 5 % each: the control
    assert alone > binom.ppf(0.999, tables, 0.05)


def test_equal_differences_are_not_tested() -> None:
    run = make_run(seeds=2)
    run.test_accuracy.values[:] = 0.5
    run.test_accuracy.values[1] = 0.6
    assert not paired(run, "lp").significant.any()


def test_an_unknown_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="reference must be one of 'lp', 'fft'"):
        paired(make_run(), "adam")


@pytest.mark.parametrize(("arm", "share"), [(0, 1.0), (1, 0.0), (4, 0.5)])
def test_the_best_share_is_found(arm: int, share: float) -> None:
    # fft-drop is no share, whatever it scores
    effects = planted(arm, 0, 0.05) + planted(2, 0, 0.2)
    found = best_share(make_run(effects)).sel(epsilon=0.3)
    assert found.share == share
    assert found.runner_up != share
    assert abs(found.gain - 0.05) < 5 * found.standard_error
    control = best_share(make_run()).sel(epsilon=0.3)
    assert control.gain < 0.02


def test_shares_that_are_missing_are_not_compared() -> None:
    run = make_run()
    run.test_accuracy.values[4, 0] = np.nan
    assert np.isnan(best_share(run).sel(epsilon=0.3).share)
    assert np.isfinite(best_share(run).sel(epsilon=1.0).share)
    assert "-" in shares_table(run).text().splitlines()[1]
    with pytest.raises(ValueError, match="at least two arms"):
        best_share(run.isel(arm=[2, 0]))


def test_columns_are_aligned() -> None:
    lines = table(make_run(planted(3, 1, 0.02)), "lp").text().splitlines()
    assert lines[0].split() == ["test", "accuracy", "less", "that", "of", "lp"] + [
        word for epsilon in ("0.3", "1", "inf") for word in ("epsilon", epsilon)
    ]
    assert len(lines) == len(ARMS)
    assert len({line.index("±") for line in lines[1:]}) == 1
    (starred,) = (line for line in lines if "*" in line)
    assert starred.startswith("lp-fft 0.25")


def test_markdown_has_a_cell_for_each_column() -> None:
    lines = table(make_run()).markdown().splitlines()
    assert lines[1] == "|---|---:|---:|---:|"
    assert {line.count("|") for line in lines} == {5}
    assert len(lines) == 2 + len(ARMS)


def test_numbers_have_three_decimals() -> None:
    run = make_run(seeds=2)
    run.test_accuracy.values[:] = 0.5
    run.test_accuracy.values[1, :, 1] = 0.6
    run.test_accuracy.values[2] = np.nan
    rows = {row[0]: row[1] for row in table(run).rows}
    assert (rows["lp"], rows["fft"], rows["fft-drop"]) == ("0.500 ± 0.000", "0.550 ± 0.050", "-")
    rows = {row[0]: row[1] for row in table(run, "fft").rows}
    assert rows["lp"] == "-0.050 ± 0.050 "
    assert Table(["a"], []).text() == "a"


def test_latex() -> None:
    made = Table(["data", "method", "ε = 1"], [["50 %", "lp_fft", "0.5 ± 0.1"]], labels=2)
    assert made.latex().splitlines() == [
        r"\begin{tabular}{llr}",
        r"\toprule",
        r"data & method & $\varepsilon$ = 1 \\",
        r"\midrule",
        r"50 \% & lp\_fft & 0.5 $\pm$ 0.1 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert made.markdown().splitlines()[1] == "|---|---|---:|"
