"""Colours, fonts, letters and labels that all figures of the project share."""

from __future__ import annotations

import itertools
import string
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# colours of Okabe and Ito, which colour-blind eyes tell apart, and dark enough for text
METHODS = {"lp": "#009e73", "fft": "#d55e00", "lp-fft": "#0072b2"}
NAMES = {"lp": "LP", "fft": "FFT", "lp-fft": "LP-FFT"}
# other schedules, and whatever is common to all methods
OTHER = "0.25"
# for what is not a method: classes, states of neurons, statements
PURPLE, GOLD, GREY = "#7a5195", "#b07d00", "0.5"
CLASSES = {1: PURPLE, -1: GOLD}
SHARES = {"misaligned": GOLD, "distorted": PURPLE, "dead": GREY}
# of a quantity, from little to much
LEVELS = ("#b79ccb", PURPLE, "#34204a")
# categories without a colour of their own
SKY = "#56b4e9"
CYCLE = (PURPLE, GOLD, SKY, "#cc79a7", "#999999", "black")
# where lines coincide, the thinner one is drawn on top of the wider one
WIDTHS = {"lp": 3.0, "fft": 2.0, "lp-fft": 1.2}

# readable in print at a column's width; one font for text and mathematics
STYLE: dict[str, Any] = {
    "figure.dpi": 120,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "savefig.bbox": "standard",
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.prop_cycle": f"cycler(color={[colour.removeprefix('#') for colour in CYCLE]})",
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "svg.hashsalt": "figures",
}
_LABEL_SIZE = 7.0


class End(NamedTuple):
    """The label of a line, at its last value."""

    value: float
    text: str
    colour: str


def method_of(phases: Iterable[str]) -> str:
    """Return the name of a sequence of phases in `METHODS`, or the names of its phases joined.

    Examples
    --------
    >>> method_of(["lp", "fft", "fft"]), method_of(["fft"]), method_of(["fft", "lp"])
    ('lp-fft', 'fft', 'fft-lp')
    """
    return "-".join(method for method, _ in itertools.groupby(phases))


def method_colour(name: str) -> str:
    """Return the colour of a method by its name in text.

    Examples
    --------
    >>> method_colour("DP-LP-FFT") == METHODS["lp-fft"]
    True
    """
    return METHODS[name.removeprefix("DP-").lower()]


def paler(colour: str, depth: float) -> tuple[float, ...]:
    """Return a paler shade of a colour: at depth 1 the colour itself, at 0 white."""
    from matplotlib.colors import to_rgb

    return tuple(1 - depth * (1 - part) for part in to_rgb(colour))


def darker(colour: str) -> tuple[float, ...]:
    """Return a darker shade of a colour, which is seen on top of it."""
    from matplotlib.colors import to_rgb

    return tuple(0.6 * part for part in to_rgb(colour))


def hexadecimal(colour: str) -> str:
    """Return a colour as browsers read it.

    Examples
    --------
    >>> hexadecimal(GREY), hexadecimal(PURPLE)
    ('#808080', '#7a5195')
    """
    from matplotlib.colors import to_hex

    return to_hex(colour)


def dashes(place: int, count: int) -> tuple[int, tuple[int, int]]:
    """Return the dashes of one of ``count`` lines, which fill each other's gaps where the lines coincide."""
    return (3 * place, (3, max(2, 3 * (count - 1))))


def letters(axes: Iterable[Any]) -> None:
    """Begin the titles of panels with letters, in bold."""
    for letter, ax in zip(string.ascii_lowercase, axes, strict=False):
        title = ax.get_title()
        ax.set_title("")
        ax.set_title(rf"$\mathbf{{{letter}}}$  {title}".rstrip(), loc="left")


def label_ends(ax: Any, ends: Sequence[End], *, wrap: int = 18, size: float = _LABEL_SIZE) -> None:
    """Write labels right of the axes at the ends of lines, moved apart where they would overlap.

    The limits and scales of the axes must be final.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    ends : sequence of End
        Those outside the limits are written at the nearest edge.
    wrap : int
        Characters per line of a label.
    size : float
        Of the font, in points.
    """
    if not ends:
        return
    to_axes, right = ax.transScale + ax.transLimits, ax.get_xlim()[1]
    at = [min(1.0, max(0.0, float(to_axes.transform((right, end.value))[1]))) for end in ends]
    texts = [textwrap.fill(end.text, wrap) for end in ends]
    line = 1.2 * size / 72 / _height(ax)
    heights = [line * (text.count("\n") + 1) for text in texts]
    places = _apart(at, heights)
    for end, text, own, place in zip(ends, texts, at, places, strict=True):
        ax.annotate(
            text,
            (1.0, own),
            (1.06, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=end.colour,
            fontsize=size,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 1},
        )


def _height(ax: Any) -> float:
    """Return the height of axes in inches before the layout leaves room for labels, roughly."""
    rows = ax.get_subplotspec().get_gridspec().nrows if ax.get_subplotspec() else 1
    return 0.6 * ax.figure.get_figheight() / rows


def _apart(at: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Return places near ``at``, in the same order, at which labels of such heights do not overlap."""
    order = sorted(range(len(at)), key=lambda i: at[i])
    # groups of labels that touch: their members, and the middle of the group
    groups: list[tuple[list[int], float]] = []
    for i in order:
        groups.append(([i], at[i]))
        while len(groups) > 1 and _reach(groups[-2], heights, 1) > _reach(groups[-1], heights, -1):
            (lower, _), (upper, _) = groups[-2:]
            members = lower + upper
            groups[-2:] = [(members, sum(at[k] for k in members) / len(members))]
    places = [0.0] * len(at)
    for members, middle in groups:
        bottom = middle - sum(heights[k] for k in members) / 2
        for k in members:
            places[k] = bottom + heights[k] / 2
            bottom += heights[k]
    return places


def _reach(group: tuple[list[int], float], heights: Sequence[float], side: int) -> float:
    members, middle = group
    return middle + side * sum(heights[k] for k in members) / 2
