"""What each chart shows of `Views`."""

from __future__ import annotations

import numpy as np

import bounds
from explorer.charts import GREY, Chart, Confusion, PlaneChart, extent, numbers
from explorer.views import Curve, Views
from langevin.support import plots
from langevin.support.validate import FloatArray

_STATEMENTS = {"paper": "solid", "monotone": "dashed", "ode": "dotdash", "lambert": "dotted"}
_ACCURACIES = {"accuracy": plots.GOLD, "test_accuracy": plots.PURPLE}
# of lines that may coincide, the wider one below
_WIDTHS = {"accuracy": 4.0, "dead": 3.0}
_SHARES = {name: plots.hexadecimal(plots.SHARES[name]) for name in ("dead", "misaligned", "distorted")}
_LIGHT = plots.hexadecimal(plots.GREY)
# share of the times at which a band has to lie within the axis
_INFORMATIVE = 0.2
_CHARTS = ("loss", "distance", "shares", "accuracy", "epsilon")


class Panels:
    """All charts of a page, and a note below each.

    Attributes
    ----------
    notes : dict of str to str
        What is said below each chart, by its name; plain text.
    """

    def __init__(self) -> None:
        self.plane, self.confusion = PlaneChart(), Confusion()
        self.loss = Chart("Training loss (sum over samples)", log=True)
        self.distance = Chart("Squared distance to the noise-free path", log=True)
        self.shares = Chart("Share of neurons")
        self.accuracy = Chart("Accuracy")
        self.epsilon = Chart("Privacy spent: epsilon")
        self.notes: dict[str, str] = dict.fromkeys((*_CHARTS, "confusion"), "")
        self.loss.band("expected", _LIGHT, 0.15)
        self.loss.band("proved", _LIGHT, 0.4)
        for chart in (self.loss, self.distance):
            chart.band("paths", GREY)
            chart.line("mean", GREY)
        self.loss.line("zeroth", GREY, "dashed", 1.5)
        for kind, dash in _STATEMENTS.items():
            self.distance.line(kind, GREY, dash, 1.5)
        for chart, colours in ((self.shares, _SHARES), (self.accuracy, _ACCURACIES)):
            for name, colour in colours.items():
                chart.line(name, colour, width=_WIDTHS.get(name, 2.0))
                chart.line(f"zeroth_{name}", colour, "dashed", 1.5)
        self.epsilon.line("epsilon", GREY)

    @property
    def charts(self) -> list[Chart]:
        """Those over time."""
        return [getattr(self, name) for name in _CHARTS]

    def fill(self, views: Views) -> None:
        """Show a simulation."""
        colour = plots.METHODS[views.simulation.method]
        for chart in (self.loss, self.distance):
            for name in ("paths", "mean"):
                chart.recolour(name, colour)
        self.epsilon.recolour("epsilon", colour)
        self._fill_loss(views)
        self._fill_distance(views)
        self._fill_curves(views, "shares", self.shares, _SHARES)
        self._fill_curves(views, "accuracy", self.accuracy, _ACCURACIES)
        self._fill_epsilon(views)
        self.confusion.fill(views)
        self.notes["confusion"] = _confusion_note(views)
        self.plane.fill(views)

    def _fill_loss(self, views: Views) -> None:
        curve, theorems = views.curves["loss"], views.theorems
        parts, labels = _simulated(curve, views)
        notes = []
        if curve.zeroth is not None:
            parts["zeroth"], labels["zeroth"] = (curve.zeroth,), "without noise"
        shown = [*numbers(curve)]
        if theorems.zeroth_loss is not None:
            band = theorems.zeroth_loss
            # at the start it is known anyway
            if band.valid[1:].any():
                parts["proved"], labels["proved"] = (band.lower, band.upper), "proved, without noise"
                shown += parts["proved"]
            if band.reason:
                notes.append(f"proved band ends: {band.reason}")
        if theorems.expected_loss is not None and theorems.expected_loss.valid.any():
            band = theorems.expected_loss
            last = np.flatnonzero(band.valid)[-1]
            notes.append(
                f"expected loss proved to lie in [{band.lower[last]:.3g}, {band.upper[last]:.3g}] at time "
                f"{band.times[last]:.3g}"
            )
            # a band that soon leaves the axis would shade all of it
            if (band.upper < extent(*shown, log=True)[1]).mean() > _INFORMATIVE:
                parts["expected"], labels["expected"] = (band.lower, band.upper), "proved, expectation"
        elif theorems.expected_loss is not None:
            notes.append(f"no certified interval: {theorems.expected_loss.reason}")
        self.notes["loss"] = "; ".join(notes)
        self.loss.fill(views, parts, labels, extent(*shown, log=True, ratio=1e-5))

    def _fill_distance(self, views: Views) -> None:
        curve = views.curves["squared_distance"]
        parts, labels = _simulated(curve, views)
        notes, tops = [], []
        for kind, band in views.theorems.distance.items():
            # all are 0 at the start
            if band.valid[1:].any():
                parts[kind], labels[kind] = (band.upper,), name_of(band)
                tops.append(band.upper)
            if band.reason:
                notes.append(f"{name_of(band)} ends: {band.reason}")
        low, high = extent(*numbers(curve), log=True, ratio=1e-4)
        self.notes["distance"] = "; ".join(dict.fromkeys(notes))
        if tops:
            high = max(high, extent(*tops, log=True)[1])
        self.distance.fill(views, parts, labels, (low, high))

    def _fill_curves(self, views: Views, key: str, chart: Chart, colours: dict[str, str]) -> None:
        """Fill a chart of shares, each with its noise-free line."""
        parts: dict[str, tuple[FloatArray, ...]] = {}
        labels, shown = {}, []
        for name in colours:
            if name not in views.curves:
                continue
            curve = views.curves[name]
            parts[name], labels[name] = (curve.mean,), _WORDS.get(name, name)
            shown.append(curve.mean)
            if curve.zeroth is not None:
                parts[f"zeroth_{name}"] = (curve.zeroth,)
                shown.append(curve.zeroth)
        self.notes[key] = "dashed: without noise" if parts else "not defined for these data"
        low, high = extent(*(shown or [np.zeros(1)]), log=False, least=0.05)
        chart.fill(views, parts, labels, (low, 1.04) if key == "accuracy" else (low, high))

    def _fill_epsilon(self, views: Views) -> None:
        known = np.isfinite(views.epsilon).all()
        parts = {"epsilon": (views.epsilon,)} if known else {}
        self.notes["epsilon"] = (
            f"epsilon {views.epsilon[-1]:.3g} at delta {views.delta:g} for the whole run"
            if known
            else views.accountant or "without noise nothing is private"
        )
        high = extent(views.epsilon, log=False, least=1e-3)
        self.epsilon.fill(views, parts, {"epsilon": "spent by this time"} if known else {}, high)


_WORDS = {"accuracy": "training", "test_accuracy": "held out"}


def name_of(band: bounds.Band) -> str:
    """Return the name of a statement.

    Examples
    --------
    >>> name_of(bounds.Band([0.0], 0.0, 1.0, True, "", "new (1a): Theorem 2.2 of [1], sharper"))
    'new (1a): Theorem 2.2 of the paper, sharper'
    """
    return band.source.replace("[1]", "the paper")


def _simulated(curve: Curve, views: Views) -> tuple[dict[str, tuple[FloatArray, ...]], dict[str, str]]:
    """Return the mean and the band of paths, and their label."""
    paths = views.simulation.paths
    label = "one path" if paths == 1 else f"mean, 90 % of {paths} paths"
    return {"paths": (curve.low, curve.high), "mean": (curve.mean,)}, {"mean": label}


def _confusion_note(views: Views) -> str:
    if views.confusion is None:
        return "not defined for these data"
    held_out = "held-out" if views.problem.X_test is not None else "training"
    return f"mean numbers of {held_out} samples"
