"""The numbers and tables in the study's pages are those of the committed results."""

import re

import numpy as np
import pytest

from figures.study import fig_best_share, fig_gains, pages, regret
from figures.tables import tab_calibration, tab_regret
from langevin.store import files


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.name)
def test_pages_are_up_to_date(page):
    text = page.read_text(encoding="utf8")
    assert len(pages.VALUE.findall(text)) > 10
    assert pages.written(text) == text, "run python -m figures.study.pages"
    # one other digit would be found
    number = re.search(r"(<!--=[^\n]+?-->[^<]*?)(\d)", text)
    assert number is not None
    wrong = text[: number.start(2)] + str((int(number[2]) + 1) % 10) + text[number.end(2) :]
    assert pages.written(wrong) == text


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.name)
def test_no_line_of_prose_begins_with_a_comment(page):
    """Markdown takes such a line for HTML as a whole."""
    for line in page.read_text(encoding="utf8").splitlines():
        if line.lstrip().startswith("<!--"):
            assert re.fullmatch(r"<!--=[^>]+-->|<!--/-->", line), line


def test_a_number_in_a_line_and_a_table_on_its_own():
    text = "It gains <!--=gain digits-turned 1 3-->0<!--/--> points.\n\n<!--=shares-->\n\n| a |\n\n<!--/-->\n"
    found = regret.measured("digits-turned").sel(epsilon=3)
    gain = 100 * (found.sel(share=1) - found.sel(share=0)).values
    written = pages.written(text)
    expected = f"{gain.mean():+.1f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.1f}"
    assert f"-->{expected}<!--/--> points.\n\n<!--=shares-->\n\n| best lp share" in written
    # of each task: theory, sources, measured, next best and what it lost
    assert written.count("\n| ") == 1 + len(regret.TASKS) * (4 + len(regret.PLANS))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("guess 1", r"must be one of accuracy, .* got 'guess'"),
        (
            "of tab_calibration optimism all_twelve elsewhere",
            "a place .* must be a coordinate .* 'elsewhere'",
        ),
        (
            "of tab_calibration optimism all_twelve",
            "optimism of tab_calibration needs one coordinate of each",
        ),
    ],
)
def test_an_unknown_value_is_refused(query, message):
    with pytest.raises(ValueError, match=message):
        pages.written(f"<!--={query}-->2<!--/-->")


def test_one_number_of_a_table():
    data = tab_calibration.compute().sel(group="all twelve", source="private features")
    at = "all_twelve private_features"
    # which has no error
    assert pages.found(f"of tab_calibration optimism {at}") == f"{float(data.optimism):.3f}"
    assert pages.found(f"of tab_calibration called {at} 0.02") == f"{float(data.called.sel(near=0.02)):.3f}"
    row = tab_regret.compute().sel(group="six new tasks", rule="all LP", budget="ε = 3")
    expected = f"{float(row['mean']):.3f} ± {float(row.standard_error):.3f}"
    assert pages.found("of tab_regret mean six_new_tasks all_LP ε_=_3") == expected


def test_losses_are_those_of_the_table():
    data = tab_regret.compute()
    for rule in ("private features", *regret.RULES):
        at = data.sel(group="six earlier tasks", budget="all budgets", rule=rule)
        said = pages.lost(str(rule).replace(" ", "_"))
        assert said == f"{100 * float(at['mean']):.1f} ± {100 * float(at.standard_error):.1f}"


def test_gains_are_paired_by_seed():
    data = fig_gains.compute()
    task, share, epsilon = "digits-turned", 0.25, 3.0
    run = files.load(pages.cache.ROOT / f"docs/study/{task}.nc").test_accuracy.sel(epsilon=epsilon)
    gain = (run.sel(arm="lp-fft 0.25") - run.sel(arm="fft")).values
    at = data.sel(task=task, share=share, epsilon=epsilon)
    assert float(at.gain) == pytest.approx(gain.mean())
    assert float(at.error) == pytest.approx(gain.std(ddof=1) / len(gain) ** 0.5)
    assert 0.0 not in data.share


def test_what_the_figures_of_the_study_draw():
    shares = fig_best_share.compute()
    best = regret.accuracies().sel(task=list(regret.TASKS)).mean("seed").idxmax("share")
    assert np.array_equal(shares.measured.transpose(*best.dims), best)
    assert (shares.measured != shares.runner_up).all()
