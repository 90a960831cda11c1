"""The figures of the page, in Bokeh: made once, and filled with `Views` again and again."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from bokeh.core.properties import value
from bokeh.models import (
    CDSView,
    ColumnDataSource,
    CustomJSTickFormatter,
    FactorRange,
    FixedTicker,
    Line,
    MultiLine,
    Range1d,
    Rect,
    Scatter,
    Segment,
    Span,
    Text,
    VArea,
    VSpan,
)
from bokeh.models.glyphs import Patches
from bokeh.plotting import figure

from explorer.views import Curve, Views
from langevin.support import plots
from langevin.support.validate import FloatArray

GREY = plots.hexadecimal(plots.OTHER)
HEIGHT = 270
# width over height of the plane
ASPECT = 1.6
_LABELS = {"size": "13px", "font": "system-ui, sans-serif"}
_SHORTEST = 1e-9


def class_colours(count: int) -> list[str]:
    """Return the colours of classes, in the order of their labels; of two, those of -1 and +1."""
    if count <= 2:
        return [plots.CLASSES[-1], plots.CLASSES[1]][:count]
    return [plots.CYCLE[k % len(plots.CYCLE)] for k in range(count)]


def blank(title: str, *, log: bool = False) -> Any:
    """Return a figure over diffusion time that fills its column."""
    found = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        title=title,
        y_axis_type="log" if log else "linear",
        x_range=Range1d(start=0, end=1),
        y_range=Range1d(start=0.1, end=1),
        toolbar_location=None,
        tools="",
    )
    found.xaxis.axis_label = "diffusion time"
    _style(found)
    return found


def _style(found: Any) -> None:
    found.title.text_font_size = "14px"
    found.title.text_font_style = "bold"
    found.title.text_font = _LABELS["font"]
    found.axis.axis_label_text_font_style = "normal"
    found.axis.axis_label_text_font = found.axis.major_label_text_font = _LABELS["font"]
    found.axis.axis_label_text_font_size = _LABELS["size"]
    found.axis.major_label_text_font_size = "12px"
    found.axis.minor_tick_line_color = None
    found.grid.grid_line_color = "#eeeeee"
    found.outline_line_color = None


class Chart:
    """Curves over time with a line at the present.

    Attributes
    ----------
    figure : bokeh figure
    now : ColumnDataSource
        The present.
    key : str
        What lines and bands mean, in HTML.
    """

    def __init__(self, title: str, *, log: bool = False) -> None:
        self.figure, self.log = blank(title, log=log), log
        # filled by the page's script
        self.now = ColumnDataSource({"x": [0.0]})
        # what moves is above the rest, on a canvas of its own: the others are not drawn again
        self.figure.add_glyph(self.now, VSpan(x="x", line_color="black", line_width=1), level="overlay")
        self.change = Span(
            location=0, dimension="height", line_color="#999999", line_dash="dotted", visible=False
        )
        self.figure.add_layout(self.change)
        # one source for all: fewer models and messages
        self._source: Any = ColumnDataSource({"x": []})
        self._view = CDSView()
        self._columns: dict[str, tuple[str, ...]] = {}
        # glyphs, and their dashes
        self._glyphs: dict[str, tuple[Any, str]] = {}
        self.key = ""
        # changed in place: another model would have the document look for all of its models again
        self._ticker = FixedTicker(ticks=[])
        if log:
            self.figure.yaxis.update(formatter=_powers(), ticker=self._ticker)

    def line(self, name: str, colour: str, dash: str = "solid", width: float = 2.0) -> None:
        """Add a line, to be filled by `fill`."""
        glyph = Line(x="x", y=name, line_color=colour, line_dash=dash, line_width=width)
        self._add(name, (name,), glyph, dash)

    def band(self, name: str, colour: str, alpha: float = 0.2) -> None:
        """Add a band, to be filled by `fill`."""
        low, high = f"{name} low", f"{name} high"
        glyph = VArea(x="x", y1=low, y2=high, fill_color=colour, fill_alpha=alpha)
        self._add(name, (low, high), glyph, "")

    def _add(self, name: str, columns: tuple[str, ...], glyph: Any, dash: str) -> None:
        for column in columns:
            self._source.add([], column)
        self._columns[name] = columns
        # without the copies for selected points that `figure.line` makes
        self.figure.add_glyph(self._source, glyph, view=self._view)
        self._glyphs[name] = glyph, dash

    def recolour(self, name: str, colour: str) -> None:
        """Change the colour of a line or a band."""
        glyph, _ = self._glyphs[name]
        setattr(glyph, "line_color" if hasattr(glyph, "line_color") else "fill_color", colour)

    def fill(
        self,
        views: Views,
        parts: Mapping[str, tuple[FloatArray, ...]],
        labels: Mapping[str, str],
        reach: tuple[float, float],
    ) -> None:
        """Show arrays over time.

        Parameters
        ----------
        views : Views
        parts : mapping
            From names of lines to ``(y,)`` and of bands to ``(low, high)``; those left out are not drawn.
        labels : mapping
            From those that are drawn to their labels, in the order of the key; those left out have none.
        reach : tuple of float
            Limits of the y axis.
        """
        low, high = reach
        self.figure.x_range.update(start=0, end=float(views.times[-1]))
        self.figure.y_range.update(start=low, end=high)
        # a log axis has no zero, and a band ends where the axis does
        bottom, top = (low / 10, high * 10) if self.log else (2 * low - high, 2 * high - low)
        found = {"x": views.times}
        for name, columns in self._columns.items():
            arrays = parts.get(name, (np.full(len(views.times), np.nan),) * len(columns))
            for column, values in zip(columns, arrays, strict=True):
                found[column] = np.clip(values, bottom, top)
                if self.log and len(arrays) == 1:
                    found[column] = np.where(values > 0, found[column], np.nan)
        self._source.data = found
        if self.log:
            self._ticker.ticks = _ticks(low, high)
        self.key = "".join(_key(*self._glyphs[name], text) for name, text in labels.items() if name in parts)
        inside = 0 < views.probing < views.times[-1]
        self.change.update(location=views.probing, visible=inside)


_DASHES = {"dashed": "5 3", "dotted": "1.5 2.5", "dotdash": "1.5 2.5 5 2.5", "solid": "none"}


def _key(glyph: Any, dash: str, text: str) -> str:
    """Return a small picture of a line or a band, and its label, in HTML."""
    if dash:
        drawn = (
            f'<line x1="0" y1="6" x2="24" y2="6" stroke="{glyph.line_color}" stroke-width="2" '
            f'stroke-dasharray="{_DASHES[dash]}"/>'
        )
    else:
        drawn = f'<rect width="24" height="12" fill="{glyph.fill_color}" opacity="{glyph.fill_alpha}"/>'
    picture = f'<svg width="24" height="12" style="vertical-align: -1px">{drawn}</svg>'
    return f'<span style="display: inline-block; margin-right: 12px">{picture} {html.escape(text)}</span> '


def _ticks(low: float, high: float) -> list[float]:
    """Return about four to eight round numbers on a logarithmic axis.

    Examples
    --------
    >>> _ticks(0.4, 16.0)
    [0.5, 1.0, 2.0, 5.0, 10.0]
    >>> _ticks(1e-3, 2e3)
    [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]
    """
    decades = math.log10(high / low)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    within = (1, 2, 5) if decades < 2.5 else (1,)
    every = max(1, round(decades / 7))
    ticks = [float(f"{m}e{p}") for p in range(first, last + 1) if p % every == 0 for m in within]
    return [tick for tick in ticks if low <= tick <= high]


def _powers() -> CustomJSTickFormatter:
    """Return a formatter of logarithmic axes that writes plain numbers where they are short."""
    return CustomJSTickFormatter(
        code="return (tick >= 1e-4 && tick < 1e5) ? String(+tick.toPrecision(6)) : tick.toExponential(0);"
    )


def extent(*arrays: FloatArray, log: bool, least: float = 0.0, ratio: float = 1e-4) -> tuple[float, float]:
    """Return the limits of an axis for some arrays.

    Parameters
    ----------
    log : bool
        Whether the axis is logarithmic; ``ratio`` then is the smallest part of it that is shown.
    least : float
        Largest lower limit, or the smallest range, of a linear axis.
    """
    values = np.concatenate([np.ravel(array) for array in arrays])
    values = values[np.isfinite(values)]
    if log:
        values = values[values > 0]
        top = float(values.max(initial=_SHORTEST))
        bottom = max(float(values.min(initial=top)), top * ratio)
        return bottom / 1.3, max(top, bottom * 2) * 1.3
    top = max(float(values.max(initial=0.0)), least)
    return -0.02 * top, 1.06 * top or 1.0


def numbers(curve: Curve) -> tuple[FloatArray, ...]:
    """Return what of a curve determines the limits of its axis."""
    return (curve.mean, curve.low, curve.high, *(() if curve.zeroth is None else (curve.zeroth,)))


class PlaneChart:
    """Neurons in the plane; the page's script moves them.

    Attributes
    ----------
    figure : bokeh figure
    frames : ColumnDataSource
        All times of all neurons, one after the other: row ``t h + j``.
    neurons : ColumnDataSource
        The neurons at the present.
    trails : ColumnDataSource
        Their ways until then.
    """

    def __init__(self) -> None:
        self.figure = figure(
            sizing_mode="scale_width",
            aspect_ratio=ASPECT,
            x_range=Range1d(start=-1, end=1),
            y_range=Range1d(start=-1, end=1),
            toolbar_location=None,
            tools="",
            min_border=0,
        )
        self.figure.axis.visible = False
        self.figure.grid.visible = False
        self.figure.outline_line_color = "#dddddd"
        self.cones: Any = ColumnDataSource({"x": [], "y": [], "colour": []})
        self.samples: Any = ColumnDataSource({"x": [], "y": [], "colour": [], "alpha": []})
        self.frames: Any = ColumnDataSource({key: [] for key in ("x", "y", "zx", "zy", "bad")})
        self.neurons: Any = ColumnDataSource({key: [] for key in ("x", "y", "zx", "zy", "colour", "fill")})
        self.trails: Any = ColumnDataSource({key: [] for key in ("xs", "ys", "zxs", "zys", "colour")})
        plot = self.figure
        places: dict[str, Any] = {"x": "x", "y": "y"}
        coloured: dict[str, Any] = {"line_color": "colour"}
        grey: dict[str, Any] = {"line_color": GREY}
        parts: list[tuple[Any, Any]] = [
            (self.cones, Patches(xs="x", ys="y", fill_color="colour", fill_alpha=0.09, line_color=None)),
            (self.samples, Segment(x0=0, y0=0, x1="x", y1="y", line_alpha="alpha", **coloured)),
            (
                self.samples,
                Scatter(
                    **places,
                    **coloured,
                    marker=value("triangle"),
                    size=5,
                    fill_color="colour",
                    fill_alpha=0.6,
                    line_alpha=0.6,
                ),
            ),
            (self.trails, MultiLine(xs="xs", ys="ys", line_alpha=0.45, **coloured)),
            (self.trails, MultiLine(xs="zxs", ys="zys", line_width=1.4, **grey)),
            (self.neurons, Scatter(x="zx", y="zy", **grey, marker=value("square"), size=3, fill_color=GREY)),
            (self.neurons, Scatter(**places, **coloured, size=9, line_width=2, fill_color="fill")),
        ]
        for source, glyph in parts:
            plot.add_glyph(
                source, glyph, level="glyph" if source in (self.cones, self.samples) else "overlay"
            )

    def fill(self, views: Views) -> None:
        """Show a simulation at its start."""
        plane, places = views.plane, views.plane.neurons
        colours = class_colours(len(plane.classes)) or [GREY]
        both = np.concatenate([places, plane.zeroth])
        both = both[np.isfinite(both).all(axis=-1)]
        reach = 1.12 * max(np.abs(both[:, 0]).max() / ASPECT, np.abs(both[:, 1]).max(), 1e-6)
        self.figure.x_range.update(start=-reach * ASPECT, end=reach * ASPECT)
        self.figure.y_range.update(start=-reach, end=reach)
        lengths = np.linalg.norm(plane.samples, axis=1).max()
        samples = plane.samples * (0.92 * reach / max(lengths, 1e-300))
        of_samples = [colours[label] if label >= 0 else GREY for label in plane.labels]
        faint = [min(0.25, 5 / len(samples))] * len(samples)
        self.samples.data = {"x": samples[:, 0], "y": samples[:, 1], "colour": of_samples, "alpha": faint}
        sides = {k: _wedge(start, end, 3 * ASPECT * reach) for k, (start, end) in plane.cones.items()}
        self.cones.data = {
            "x": [side[0] for side in sides.values()],
            "y": [side[1] for side in sides.values()],
            "colour": [colours[k] for k in sides],
        }
        own = [colours[k] for k in plane.own]
        count = len(own)
        start = {"x": places[0, :, 0], "y": places[0, :, 1]}
        start |= {"zx": plane.zeroth[0, :, 0], "zy": plane.zeroth[0, :, 1]}
        self.trails.data = {key: [[]] * count for key in ("xs", "ys", "zxs", "zys")} | {"colour": own}
        self.neurons.data = start | {"colour": own, "fill": own}
        # last: the page's script draws the present from it
        self.frames.data = {
            "x": places[..., 0].ravel(),
            "y": places[..., 1].ravel(),
            "zx": plane.zeroth[..., 0].ravel(),
            "zy": plane.zeroth[..., 1].ravel(),
            "bad": plane.misaligned.ravel().astype(np.uint8),
        }


def _wedge(start: float, end: float, radius: float) -> tuple[FloatArray, FloatArray]:
    turns = np.linspace(start, end, 40)
    return np.append(0.0, radius * np.cos(turns)), np.append(0.0, radius * np.sin(turns))


class Confusion:
    """Mean numbers of samples by class and prediction, at the end."""

    def __init__(self) -> None:
        self.source: Any = ColumnDataSource({key: [] for key in ("x", "y", "share", "text", "ink")})
        found: Any = figure(
            height=HEIGHT,
            sizing_mode="stretch_width",
            title="Predictions at the end",
            x_range=FactorRange(),
            y_range=FactorRange(),
            toolbar_location=None,
            tools="",
        )
        self.figure = found
        _style(found)
        found.grid.visible = False
        found.xaxis.axis_label, found.yaxis.axis_label = "predicted", "class"
        cell = Rect(
            x="x",
            y="y",
            width=0.96,
            height=0.96,
            fill_color=plots.PURPLE,
            fill_alpha="share",
            line_color=plots.PURPLE,
        )
        found.add_glyph(self.source, cell)
        number = Text(
            x="x",
            y="y",
            text="text",
            text_align="center",
            text_baseline="middle",
            text_font_size="12px",
            text_color="ink",
        )
        found.add_glyph(self.source, number)

    def fill(self, views: Views) -> None:
        """Show a simulation."""
        counts, names = views.confusion, list(views.plane.classes)
        if counts is None:
            names, counts = [], np.zeros((0, 0))
        self.figure.visible = bool(names)
        self.figure.x_range.factors, self.figure.y_range.factors = names, names[::-1]
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)
        cells = [(i, j) for i in range(len(names)) for j in range(len(names))]
        self.source.data = {
            "x": [names[j] for _, j in cells],
            "y": [names[i] for i, _ in cells],
            "share": [float(shares[cell]) for cell in cells],
            "text": [f"{counts[cell]:.3g}" for cell in cells],
            "ink": ["white" if shares[cell] > 0.5 else "black" for cell in cells],
        }
