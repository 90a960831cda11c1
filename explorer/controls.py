"""The controls of the page: a widget for each entry, within its limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import panel as pn
from bokeh.models import CustomJSTickFormatter

from explorer import limits
from explorer.limits import ENTRIES, Entries

# smallest noise of the slider
_LEAST = 1e-3
_BUDGET = "Budget epsilon"
_EPSILON = (0.1, 1000.0)
_DEFAULT_SCALE = "1/√width"
_SCALES = (_DEFAULT_SCALE, "0.05", "0.1", "0.2", "0.5", "1")
_DIGITS = ("3, 8", "4, 9", "1, 7", "3, 5, 8", "0, 1, 2, 3")
_WIDE = {"sizing_mode": "stretch_width", "margin": (4, 8)}
_DATA = {
    "Two classes, plane": "plane",
    "Classes on a ring": "ring",
    "Handwritten digits": "digits",
    "Your file": limits.FILE,
}
_METHODS = {"LP": "lp", "FFT": "fft", "LP-FFT": "lp-fft"}


class Logarithmic:
    """A slider over powers of ten.

    Attributes
    ----------
    widget : FloatSlider
        Of the logarithm to base 10; it shows the number itself.
    """

    def __init__(self, label: str, lowest: float, highest: float) -> None:
        self._exact, self._label = lowest, label
        start, end = math.log10(lowest), math.log10(highest)
        self.widget = pn.widgets.FloatSlider(
            name=label,
            start=start,
            end=end,
            step=(end - start) / 200,
            format=CustomJSTickFormatter(code="return String(+Math.pow(10, tick).toPrecision(3));"),
            **_WIDE,
        )

    @property
    def value(self) -> float:
        """What the slider stands at, in three digits; or exactly what it was set to."""
        near = self._exact > 0 and abs(math.log10(self._exact) - self.widget.value) < 1e-9
        return self._exact if near else float(f"{10**self.widget.value:.3g}")

    def set(self, value: float) -> None:
        """Stand at a value; beyond the ends, at the nearest end, with the value in the label."""
        self._exact = value
        place = math.log10(value) if value > 0 else -math.inf
        inside = self.widget.start - 1e-9 <= place <= self.widget.end + 1e-9
        self.widget.param.update(
            value=min(max(place, self.widget.start), self.widget.end),
            name=self._label if inside else f"{self._label}: {value:.3g}",
            show_value=inside,
        )


class Controls:
    """Widgets for all entries.

    Parameters
    ----------
    has_file : bool
        Whether the user gave a file.
    on_change : callable
        Called after the user has changed an entry, with the budget if that is what was moved.
    """

    def __init__(self, has_file: bool, on_change: Callable[[float | None], None]) -> None:
        self._on_change, self._silent = on_change, False
        self._found: Entries = dict(limits.START)
        known = {label: key for label, key in _DATA.items() if has_file or key != limits.FILE}
        share = ENTRIES["lp_share"]
        self.widgets: dict[str, Any] = {
            "data": pn.widgets.Select(name="Data", options=known, **_WIDE),
            "classes": pn.widgets.IntSlider(name="Classes on the ring", start=2, end=6, **_WIDE),
            "digits": pn.widgets.Select(name="Digits", options=[*_DIGITS], **_WIDE),
            "samples": self._whole("Samples", "samples"),
            "width": self._whole("Width (neurons)", "width"),
            "head": pn.widgets.Select(name="Head at the start", options=[*ENTRIES["head"].choices], **_WIDE),
            "head_scale": pn.widgets.Select(name="Head's scale", options=[*_SCALES], **_WIDE),
            "loss": pn.widgets.Select(name="Loss", options=[], **_WIDE),
            "method": pn.widgets.RadioButtonGroup(name="Method", options=_METHODS, **_WIDE),
            "lp_share": pn.widgets.FloatSlider(
                name="LP share of the time", start=share.lowest, end=share.highest, step=0.02, **_WIDE
            ),
            "clipped": pn.widgets.Checkbox(name="Clip gradients", **_WIDE),
            "sample_rate": pn.widgets.FloatSlider(
                name="Sampling rate", start=ENTRIES["sample_rate"].lowest, end=1, step=0.02, **_WIDE
            ),
            "paths": pn.widgets.DiscreteSlider(name="Paths", options=[1, 4, 16, 64], **_WIDE),
            "seed": pn.widgets.IntInput(name="Seed", start=0, end=int(ENTRIES["seed"].highest), **_WIDE),
        }
        self.logs = {
            "sigma": Logarithmic("Noise sigma", _LEAST, ENTRIES["sigma"].highest),
            "epsilon": Logarithmic(_BUDGET, *_EPSILON),
            "clip": Logarithmic("Clip C", 0.1, 10),
            "time": Logarithmic("Time", ENTRIES["time"].lowest, ENTRIES["time"].highest),
        }
        # until a run says what it spends
        self.logs["epsilon"].widget.show_value = False
        self.widgets |= {name: slider.widget for name, slider in self.logs.items()}
        for name, widget in self.widgets.items():
            # Panel waits 50 ms for further changes; here all but the newest are dropped anyway
            widget._debounce = 0
            widget.param.watch(lambda _, name=name: self._changed(name), "value")

    @staticmethod
    def _whole(label: str, name: str) -> Any:
        entry = ENTRIES[name]
        return pn.widgets.IntSlider(
            name=label, start=int(entry.lowest), end=int(entry.highest), step=2, **_WIDE
        )

    @property
    def entries(self) -> Entries:
        """What is entered."""
        return dict(self._found)

    def show(self, found: Entries) -> None:
        """Set all widgets, without a call of ``on_change``."""
        self._found, self._silent = dict(found), True
        try:
            self._show(found)
        finally:
            self._silent = False

    def show_epsilon(self, epsilon: float, why: str) -> None:
        """Set the budget that the noise spends, or say why there is none."""
        self._silent = True
        known = math.isfinite(epsilon) and epsilon > 0
        try:
            if known:
                self.logs["epsilon"].set(epsilon)
            else:
                name = f"No epsilon ({why or 'there is no noise'})"
                self.widgets["epsilon"].param.update(name=name, show_value=False)
            self.widgets["epsilon"].disabled = self._found["clip"] is None
        finally:
            self._silent = False

    def _show(self, found: Entries) -> None:
        """Set the widgets, which must be silent."""
        data, classes = found["data"], found["classes"]
        self.widgets["data"].value = data
        for name, shown in {
            "classes": data == "ring",
            "digits": data == "digits",
            "samples": data in ("plane", "ring"),
        }.items():
            self.widgets[name].visible = shown
        if data == "ring":
            self.widgets["classes"].value = classes[0]
        if data == "digits":
            self._choose("digits", ", ".join(map(str, classes)))
        scale = found["head_scale"]
        self._choose("head_scale", _DEFAULT_SCALE if scale is None else f"{scale:g}")
        self.widgets["loss"].options = limits.losses(data, classes)
        simple = ("samples", "width", "head", "loss", "method", "lp_share", "sample_rate")
        for name in (*simple, "seed"):
            self.widgets[name].value = found[name]
        paths = sorted({*self.widgets["paths"].options, found["paths"]})
        self.widgets["paths"].param.update(options=paths, value=found["paths"])
        self.widgets["clipped"].value = found["clip"] is not None
        self.widgets["clip"].disabled = found["clip"] is None
        self.logs["clip"].set(found["clip"] or self.logs["clip"].value)
        self.logs["sigma"].set(found["sigma"])
        self.logs["time"].set(found["time"])
        self.widgets["lp_share"].disabled = found["method"] != "lp-fft"
        self.widgets["head_scale"].disabled = found["head"] == "zero"

    def _choose(self, name: str, label: str) -> None:
        """Select a value that may be new."""
        widget = self.widgets[name]
        if label not in widget.options:
            widget.options = [*widget.options, label]
        widget.value = label

    def _changed(self, name: str) -> None:
        """Take what the user has entered."""
        if self._silent:
            return
        value = self.widgets[name].value
        if value is None:
            return
        found, budget = dict(self._found), None
        if name == "epsilon":
            budget = self.logs["epsilon"].value
            self.show_epsilon(budget, "")
        elif name in ("clip", "clipped"):
            found["clip"] = self.logs["clip"].value if self.widgets["clipped"].value else None
        elif name in self.logs:
            found[name] = self.logs[name].value
        elif name == "classes":
            found["classes"] = (value,)
        elif name == "digits":
            found["classes"] = tuple(map(int, value.split(",")))
        elif name == "head_scale":
            found["head_scale"] = None if value == _DEFAULT_SCALE else float(value)
        else:
            found[name] = value
        if name == "data":
            found["classes"] = {"ring": (5,), "digits": (3, 8)}.get(value, limits.START["classes"])
        allowed = limits.losses(found["data"], found["classes"])
        if found["loss"] not in allowed:
            found["loss"] = allowed[0]
        self.show(found)
        self._on_change(budget)
