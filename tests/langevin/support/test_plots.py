"""Labels at the ends of lines, and what the figure of a run shows."""

import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties

from langevin import Schedule, collapsed_features, euler_maruyama, orthogonally_separable, plot, zeroth_order
from langevin.support import plots

mpl.use("Agg")


def overlaps(places, heights) -> int:
    """Number of pairs of labels that overlap."""
    ends = [(p - h / 2, p + h / 2) for p, h in zip(places, heights, strict=True)]
    return sum(a[1] > b[0] + 1e-12 and b[1] > a[0] + 1e-12 for a, b in itertools.combinations(ends, 2))


@pytest.mark.parametrize("seed", range(20))
def test_labels_do_not_overlap_and_keep_their_order(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 8))
    at, heights = rng.uniform(0, 0.5, count).tolist(), rng.uniform(0.02, 0.2, count).tolist()
    places = plots._apart(at, heights)
    assert overlaps(places, heights) == 0
    assert list(np.argsort(places)) == list(np.argsort(at))


def test_labels_that_have_room_stay():
    assert plots._apart([0.1, 0.9], [0.1, 0.1]) == pytest.approx([0.1, 0.9])
    assert overlaps([0.1, 0.15], [0.1, 0.1]) == 1


@pytest.mark.parametrize("count", [2, 3, 4])
def test_lines_that_coincide_show_all_of_their_dashes(count):
    """Each point of a period is covered by at most one line, and each line covers some."""
    patterns = [plots.dashes(place, count) for place in range(count)]
    period = sum(patterns[0][1])
    assert {sum(pattern) for _, pattern in patterns} == {period}
    at = np.arange(period) + 0.5
    # matplotlib starts ``offset`` into the pattern
    covered = np.array([(at + offset) % period < pattern[0] for offset, pattern in patterns])
    assert covered.any(axis=1).all()
    assert covered.sum(axis=0).max() == 1


def contrast(colour: str) -> float:
    """Ratio of luminances of a colour and white."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return 1.05 / (float(linear @ np.array([0.2126, 0.7152, 0.0722])) + 0.05)


def test_methods_differ_and_can_be_read_on_white():
    assert len(set(plots.METHODS.values())) == len(plots.METHODS)
    for colour in (*plots.METHODS.values(), *plots.CLASSES.values(), *plots.SHARES.values()):
        # of large text and graphics
        assert contrast(colour) >= 3, colour
    assert contrast("#e69f00") < 3


@pytest.fixture(scope="module")
def run():
    problem = orthogonally_separable(samples=20, dim=5, rng=0)
    weights = collapsed_features(problem, width=8, rng=0)
    schedule = Schedule.lp_fft(lp_time=0.1, fft_time=0.2, sigma=0.1, clip=1.0)
    return (
        euler_maruyama(problem, weights, schedule, dt=0.01, paths=3, rng=0),
        zeroth_order(problem, weights, schedule, dt=0.01),
    )


def test_a_run_from_python_is_drawn(run):
    axes = plot(run[0])
    assert [ax.get_title(loc="left") for ax in axes] == [rf"$\mathbf{{{x}}}$" for x in "abc"]
    assert axes[0].get_ylabel() == "training loss (sum over samples)"
    # every entry of the legend is drawn, and none twice
    (legend,) = axes[0].figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["diffusion: mean and 90 % of paths", "full fine-tuning begins"]
    assert axes[0].get_lines()[0].get_color() == plots.METHODS["lp-fft"]
    # the reader's own style is left alone
    assert mpl.rcParams["font.size"] == mpl.rcParamsDefault["font.size"]


def test_a_zeroth_order_run_is_drawn(run):
    axes = plot(run[1])
    assert len(axes) == 2
    assert np.isfinite(axes[0].get_lines()[0].get_ydata()).all()
    (legend,) = axes[0].figure.legends
    assert legend.get_texts()[0].get_text() == "zeroth order: without noise"


def test_text_and_mathematics_have_one_font():
    with plt.style.context(plots.STYLE):
        text = FontProperties(family=mpl.rcParams["font.family"]).get_name()
        assert mpl.rcParams["mathtext.fontset"] == text.lower().replace(" ", "")
