"""What may be entered: entries, their limits, and how an address writes them.

Entries are plain data: the fields of `langevin.simulation.config.Simulation` that the page has controls for.
The others follow from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import bounds
from explorer.presets import PRESETS, Preset
from langevin.model.losses import LOSSES
from langevin.simulation.config import Simulation
from langevin.support import options

# of any run, whatever its time
STEPS = 500
# what the page calls data, and what `Simulation` does
DATA = {"plane": "separable", "ring": "ring", "digits": "digits"}
FILE = "file"
# data of any number of samples, and what others do not read
_GENERATED, _OF_GENERATED = ("plane", "ring"), ("samples", "spread")
# of a ring, up to which neurons start in cones (Assumptions 3.1' and 3.2')
_SEPARABLE = 3
_WIDEST = 0.26

Entries = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """What may be entered in one place.

    Attributes
    ----------
    kind : type
        int, float, str, or tuple of whole numbers.
    lowest, highest : float
        Of numbers.
    choices : tuple of str
        Of words.
    optional : bool
        Whether it may be None, written "none".
    """

    kind: type
    lowest: float = -math.inf
    highest: float = math.inf
    choices: tuple[str, ...] = ()
    optional: bool = False

    def read(self, name: str, text: str) -> Any:
        """Return the value that a text stands for.

        Raises
        ------
        ValueError
            If it is none, or beyond the limits; with what is allowed.
        """
        if self.optional and text == "none":
            return None
        try:
            value = tuple(map(int, text.split(","))) if self.kind is tuple else self.kind(text)
        except ValueError:
            raise ValueError(f"{name} must be {self.allowed}, got {text!r}") from None
        self.check(name, value)
        return value

    def check(self, name: str, value: Any) -> None:
        """Refuse a value beyond the limits."""
        if value is None and self.optional:
            return
        if value not in self.choices if self.choices else not self._inside(value):
            raise ValueError(f"{name} must be {self.allowed}, got {value!r}")

    def _inside(self, value: Any) -> bool:
        return self.kind is tuple or self.lowest <= value <= self.highest

    @property
    def allowed(self) -> str:
        """Say what is allowed."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.kind is tuple:
            return "whole numbers with commas between them"
        what = "a whole number" if self.kind is int else "a number"
        return f"{what} from {self.lowest:g} to {self.highest:g}{' or none' if self.optional else ''}"


_WORDS = options.choices(Simulation)
ENTRIES = {
    "data": Entry(str, choices=(*DATA, FILE)),
    "classes": Entry(tuple),
    "samples": Entry(int, 4, 400),
    "spread": Entry(float, 0, 0.41, optional=True),
    "width": Entry(int, 2, 128),
    "head": Entry(str, choices=_WORDS["head"]),
    "head_scale": Entry(float, 1e-3, 10, optional=True),
    "loss": Entry(str, choices=tuple(LOSSES)),
    "method": Entry(str, choices=_WORDS["method"]),
    "lp_share": Entry(float, 0.02, 0.98),
    "time": Entry(float, 0.01, 10),
    "sigma": Entry(float, 0, 10),
    "clip": Entry(float, 0.01, 100, optional=True),
    "sample_rate": Entry(float, 0.02, 1),
    "paths": Entry(int, 1, 64),
    "seed": Entry(int, 0, 2**32 - 1),
}


def entries(simulation: Simulation) -> Entries:
    """Return the entries that a simulation was built from.

    Examples
    --------
    >>> entries(PRESETS[0].simulation)["data"], entries(PRESETS[0].simulation)["time"]
    ('plane', 1.0)
    """
    names = {value: key for key, value in DATA.items()}
    found = {name: getattr(simulation, name) for name in ENTRIES}
    return found | {"data": names.get(simulation.data, FILE), "loss": simulation.loss or "logistic"}


# what an address leaves out
START = entries(PRESETS[0].simulation)


def simulation(found: Mapping[str, Any], file: str | None = None) -> Simulation:
    """Return the simulation of entries; what the data do not use has its default.

    Parameters
    ----------
    found : mapping
        A value for each of `ENTRIES`.
    file : str, optional
        The user's data.

    Raises
    ------
    ValueError, TypeError
        On values beyond the limits, or that contradict each other.
    """
    values = dict(found)
    for name, entry in ENTRIES.items():
        entry.check(name, values[name])
    data = values.pop("data")
    if data == FILE and file is None:
        raise ValueError("data must be plane, ring or digits, got file: start with --data features.npz")
    default = Simulation()
    counted = data == "ring"
    if data in ("plane", FILE):
        values["classes"] = default.classes
    elif counted and len(values["classes"]) > 1:
        raise ValueError(f"classes must be one number on a ring, got {_text(values['classes'])}")
    elif data == "digits" and len(values["classes"]) == 1:
        raise ValueError(f"classes must be two digits or more, such as 3,8, got {_text(values['classes'])}")
    allowed = losses(data, values["classes"])
    if values["loss"] not in allowed:
        raise ValueError(f"loss must be {' or '.join(allowed)} for these classes, got {values['loss']!r}")
    if data not in _GENERATED:
        values |= {"samples": default.samples, "spread": None}
    fixed: dict[str, Any] = dict(dt=values["time"] / STEPS, reduce="span")
    fixed["data"] = file if data == FILE else DATA[data]
    if data == "plane":
        fixed["dim"] = 2
    if counted and values["classes"][0] <= _SEPARABLE and (values["spread"] or 0) <= _WIDEST:
        fixed["features"] = "collapsed"
    return Simulation(**values | fixed)


def with_epsilon(given: Simulation, epsilon: float, delta: float) -> Simulation:
    """Return the simulation with the noise that spends ``epsilon``, rounded up to four digits.

    Raises
    ------
    ValueError
        Without clipping, or where no noise that may be entered spends it.
    """
    if given.clip is None:
        raise ValueError("epsilon needs a clip: without clipping no noise is private")
    noisy = replace(given, sigma=given.sigma or 1.0)
    found = bounds.calibrate(noisy.schedule, "sigma", epsilon=epsilon, delta=delta, dt=given.dt)
    sigma = found.phases[0].sigma
    unit = 10.0 ** (math.floor(math.log10(sigma)) - 3)
    rounded = float(f"{math.ceil(sigma / unit) * unit:.4g}")
    if rounded > ENTRIES["sigma"].highest:
        raise ValueError(f"epsilon must be larger here, got {epsilon:g}: it takes sigma {rounded:g}")
    return replace(given, sigma=rounded)


def query(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of an address that stand for entries: a preset, or what differs from `START`.

    Examples
    --------
    >>> query(START | {"sigma": 0.5, "clip": None})
    {'sigma': '0.5', 'clip': 'none'}
    >>> query(entries(PRESETS[2].simulation))
    {'preset': 'noise'}
    """
    preset = preset_of(found)
    if preset is not None:
        return {"preset": preset.key}
    unread = () if found["data"] in _GENERATED else _OF_GENERATED
    return {name: _text(found[name]) for name in ENTRIES if found[name] != START[name] and name not in unread}


def preset_of(found: Mapping[str, Any]) -> Preset | None:
    """Return the preset that has these entries, if there is one."""
    return next((preset for preset in PRESETS if entries(preset.simulation) == dict(found)), None)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def read(parameters: Mapping[str, str], file: str | None = None) -> tuple[Entries, list[str]]:
    """Return the entries that the parameters of an address stand for, and what was wrong with them.

    A parameter that is wrong is left out; entries that contradict each other are replaced by `START`.

    Examples
    --------
    >>> found, notes = read({"sigma": "much", "width": "8"})
    >>> found["width"], found["sigma"] == START["sigma"], notes
    (8, True, ["sigma must be a number from 0 to 10, got 'much'"])
    """
    found, notes = dict(START), []
    keys = {preset.key: entries(preset.simulation) for preset in PRESETS}
    for name, text in parameters.items():
        if name == "preset" and text in keys:
            found |= keys[text]
        elif name == "preset":
            notes.append(f"preset must be one of {', '.join(keys)}, got {text!r}")
        elif name not in ENTRIES:
            notes.append(f"unknown parameter {name!r} in the address")
        else:
            try:
                found[name] = ENTRIES[name].read(name, text)
            except ValueError as error:
                notes.append(str(error))
    try:
        simulation(found, file)
    except (ValueError, TypeError) as error:
        return dict(START), [*notes, str(error)]
    return found, notes


def losses(data: str, classes: tuple[int, ...]) -> list[str]:
    """Return the losses that data of these classes allow.

    Examples
    --------
    >>> losses("ring", (5,)), losses("plane", (3, 8))[:2]
    (['softmax', 'ovr'], ['logistic', 'square'])
    """
    count = classes[0] if len(classes) == 1 else len(classes)
    several = data in ("ring", "digits") and count > 2
    return [name for name, loss in LOSSES.items() if loss.classes or not several]
