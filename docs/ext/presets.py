"""Generate the page of the explorer's presets that needs no server: runs over one parameter, made beforehand.

Each preset is simulated at a few values of the parameter that its sentences are about. A JSON file holds what
``_static/presets.js`` draws, and a picture is shown where there are no scripts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pages import fingerprint, heading, write
from sphinx.application import Sphinx

from langevin.support import plots

if TYPE_CHECKING:
    from explorer.presets import Preset
    from explorer.views import Curve, Views
    from langevin.simulation.config import Simulation

PAGE = "generated/presets/index"
# what the runs and pictures are made from
SOURCES = ("langevin", "bounds", "explorer", "docs/ext/presets.py")
# every second record is shown
EVERY = 2
# half the height of the plane in units of stored coordinates, and its width over its height
HALF, ASPECT = 1000, 1.6
STATES = ("misaligned", "distorted")


@dataclass(frozen=True)
class Sweep:
    """The parameter of a preset that its slider changes.

    Attributes
    ----------
    parameter : str
        Field of `Simulation`.
    words : str
        What the slider is called.
    values : tuple of float
    own : int
        Place of the preset's own value in ``values``.
    rest : dict
        Other fields to replace, without effect at the preset's own value.
    """

    parameter: str
    words: str
    values: tuple[float, ...]
    own: int
    rest: dict[str, str]

    def simulations(self, preset: Preset) -> list[Simulation]:
        """Return a simulation per value."""
        changes: list[dict[str, Any]] = [{self.parameter: value, **self.rest} for value in self.values]
        return [replace(preset.simulation, **change) for change in changes]


_SHARES = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
# root mean squares of the head's entries, from a quarter of the default to twice as much
_SCALES = tuple(factor / 32**0.5 for factor in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0))
SWEEPS = {
    "misaligned": Sweep("head_scale", "head scale", _SCALES, 3, {}),
    "probing": Sweep("lp_share", "share of linear probing", _SHARES, 4, {}),
    "noise": Sweep("sigma", "sigma", (0.0, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7), 5, {}),
    "zero": Sweep("lp_share", "share of linear probing", _SHARES, 0, {"method": "lp-fft"}),
    "budget": Sweep("time", "time paid for", (0.0125, 0.025, 0.0375, 0.05, 0.075, 0.1, 0.15), 3, {}),
}


@dataclass(frozen=True)
class Box:
    """The part of the plane that is shown.

    Attributes
    ----------
    centre : ndarray, shape (2,)
    half : float
        Half its height.
    """

    centre: np.ndarray
    half: float

    @classmethod
    def around(cls, views: list[Views]) -> Box:
        """Return the smallest box, with a margin, that holds the origin and all neurons at all times."""
        ways = [places.reshape(-1, 2) for v in views for places in (v.plane.neurons, v.plane.zeroth)]
        found = np.concatenate([np.zeros((1, 2)), *ways])
        low, high = found.min(axis=0), found.max(axis=0)
        return cls((low + high) / 2, 0.54 * float(max((high - low) / [ASPECT, 1])))

    def coordinates(self, places: np.ndarray) -> list[int]:
        """Return places, shape (..., 2), in thousandths of half the height from the centre, in one list."""
        return ((places - self.centre) * (HALF / self.half)).round().astype(int).ravel().tolist()


def generate(app: Sphinx) -> None:
    """Simulate, unless nothing the runs are made from has changed, and write the page."""
    folder = Path(app.srcdir, PAGE).parent
    folder.mkdir(parents=True, exist_ok=True)
    made_from, now = folder / "made-from.txt", fingerprint(*SOURCES)
    if not made_from.exists() or made_from.read_text(encoding="utf8") != now:
        make(folder)
        made_from.write_text(now, encoding="utf8")
    stored = [(folder / f"{key}.json").read_text(encoding="utf8") for key in SWEEPS]
    write(folder, {"index.rst": page(stored)})


def make(folder: Path) -> None:
    """Simulate all presets at all values, and write a JSON file and a picture of each."""
    from explorer.presets import PRESETS
    from explorer.views import draw

    presets = {preset.key: preset for preset in PRESETS}
    for key, sweep in SWEEPS.items():
        views = [draw(simulation) for simulation in sweep.simulations(presets[key])]
        found = json.dumps(record(presets[key], sweep, views), allow_nan=False, separators=(",", ":"))
        (folder / f"{key}.json").write_text(found, encoding="utf8")
        picture(views[sweep.own], folder / f"{key}.png")


def record(preset: Preset, sweep: Sweep, views: list[Views]) -> dict[str, Any]:
    """Return what the page shows of a preset, rounded.

    Parameters
    ----------
    views : list of Views
        One per value of the sweep.
    """
    own, box = views[sweep.own], Box.around(views)
    plane, said = own.plane, preset.says(own)
    samples = plane.samples * (HALF / np.linalg.norm(plane.samples, axis=1).max())
    classes = range(len(plane.classes))
    return {
        "key": preset.key,
        "title": preset.title,
        "said": [said.first, said.second, said.theorem],
        "parameter": sweep.words,
        "own_value": sweep.own,
        "paths": own.simulation.paths,
        "classes": [str(value) for value in plane.classes],
        "own": plane.own.tolist(),
        "origin": box.coordinates(np.zeros(2)),
        "samples": [samples[plane.labels == k].round().astype(int).ravel().tolist() for k in classes],
        "cones": [[round(side, 4) for side in plane.cones[k]] for k in classes],
        "highest": digits(
            [max(max(v.curves["loss"].high.max(), v.curves["loss"].mean.max()) for v in views)]
        )[0],
        "runs": [run(value, v, box) for value, v in zip(sweep.values, views, strict=True)],
    }


def run(value: float, views: Views, box: Box) -> dict[str, Any]:
    """Return what the page shows of one run, with coordinates in a box."""
    from explorer.presets import describe

    plane, epsilon = views.plane, float(views.epsilon[-1])
    loss = views.curves["loss"]
    bands = {"mean": loss.mean, "low": loss.low, "high": loss.high, "zeroth": without_noise(loss)}
    found: dict[str, Any] = {
        "text": f"{value:.3g}",
        "epsilon": digits([epsilon])[0] if np.isfinite(epsilon) else None,
        "times": digits(views.times[::EVERY]),
        "probing": views.probing,
        "neurons": box.coordinates(plane.neurons[::EVERY]),
        "zeroth": box.coordinates(plane.zeroth[::EVERY]),
        "misaligned": "".join(str(int(state)) for state in plane.misaligned[::EVERY].ravel()),
        "loss": {name: digits(values[::EVERY]) for name, values in bands.items()},
        "said": sentence(describe(views)),
    }
    for name in STATES:
        curve = views.curves[name]
        shares = {"mean": curve.mean, "zeroth": without_noise(curve)}
        found[f"{name}_share"] = {key: digits(values[::EVERY]) for key, values in shares.items()}
    return found


def sentence(said: Iterable[str]) -> str:
    """Join sentences, to follow a colon."""
    text = " ".join(said)
    return text[0].lower() + text[1:]


def without_noise(curve: Curve) -> np.ndarray:
    """Return the zeroth-order values of a curve that has them."""
    assert curve.zeroth is not None
    return curve.zeroth


def digits(values: Iterable[float]) -> list[float]:
    """Return numbers with four significant digits."""
    return [float(f"{value:.4g}") for value in values]


def picture(views: Views, file: Path) -> None:
    """Draw a run at its end, for readers without scripts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours, plane, times = (plots.CLASSES[-1], plots.CLASSES[1]), views.plane, views.times
    box = Box.around([views])
    sides = np.array([-ASPECT, ASPECT]) * box.half
    with plt.style.context(plots.STYLE):
        figure, (left, loss, shares) = plt.subplots(1, 3, figsize=(7.2, 2.2), width_ratios=(1.6, 1, 1))
        left.plot(*plane.zeroth.transpose(2, 0, 1), color=plots.GREY, lw=0.8)
        for k, colour in enumerate(colours):
            ways = plane.neurons[:, plane.own == k]
            bad = plane.misaligned[-1, plane.own == k]
            left.plot(*ways.transpose(2, 0, 1), color=colour, lw=0.5, alpha=0.5)
            left.plot(*ways[-1, ~bad].T, "o", color=colour, label=f"class {plane.classes[k]}")
            left.plot(*ways[-1, bad].T, "o", color=colour, mfc="white")
        left.set(xlim=box.centre[0] + sides, ylim=box.centre[1] + sides / ASPECT, aspect="equal")
        left.set(xticks=[], yticks=[], title="neurons (hollow: misaligned)")
        curve = views.curves["loss"]
        loss.fill_between(times, curve.low, curve.high, color=plots.OTHER, alpha=0.2, lw=0)
        loss.plot(times, curve.mean, color=plots.OTHER)
        loss.set(title="loss, sum over samples", ylim=(0, None))
        for name in STATES:
            colour, state = plots.SHARES[name], views.curves[name]
            shares.plot(times, 100 * state.mean, color=colour, label=name)
            shares.plot(times, 100 * without_noise(state), color=colour, ls="--")
        shares.set(title="share of neurons, %", ylim=(-3, 100))
        for axis in (loss, shares):
            axis.set_xlabel("time")
        left.legend(loc="upper left")
        shares.legend(loc="upper right")
        figure.savefig(file, dpi=150, metadata={"Software": None})
        plt.close(figure)


def page(stored: list[str]) -> str:
    """Build the page from the JSON of each preset."""
    parts = [
        heading("Presets without a server"),
        "The paper's story in five simulations. Everything on this page was simulated when the site was "
        "built: it needs no server and no network. Each preset has a slider for the time and one for a "
        "parameter; *Play* moves the time. ``python -m langevin.explore`` opens the page on which every "
        "parameter can be changed: see :doc:`/howto/explore`.",
    ]
    for text in stored:
        data = json.loads(text)
        first, second, theorem = data["said"]
        parts += [heading(data["title"], "-"), f"{first} {second}", theorem, embedded(data["key"], text)]
        parts.append(f"Download: :download:`the numbers <{data['key']}.json>` (JSON).")
    return "\n\n".join(parts) + "\n"


def embedded(key: str, text: str) -> str:
    """Return the element that the page's script fills: a picture, and the data.

    The data are part of the page, as browsers do not let a script read other files of a site on the disk.
    """
    first, second = (plots.CLASSES[sign] for sign in (-1, 1))
    colours = {
        "first-class": first,
        "second-class": second,
        "common": plots.hexadecimal(plots.OTHER),
        "misaligned-heads": plots.SHARES["misaligned"],
        "distorted-neurons": plots.SHARES["distorted"],
    }
    style = "; ".join(f"--{name}: {colour}" for name, colour in colours.items())
    alt = "Neurons in the plane at the end; loss and shares of neurons over time; grey, dashed: without noise"
    data = text.replace("</", r"<\/")
    lines = [
        f'.. raw:: html\n\n   <div class="preset" id="preset-{key}" style="{style}">',
        f".. image:: {key}.png\n   :alt: {alt}",
        f'.. raw:: html\n\n   <script type="application/json">{data}</script></div>',
    ]
    return "\n\n".join(lines)


def assets(app: Sphinx, pagename: str, *_: object) -> None:
    """Add the script and the style to this page alone."""
    if pagename == PAGE:
        app.add_css_file("presets.css")
        app.add_js_file("presets.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    """Generate the page when the build begins."""
    app.connect("builder-inited", generate)
    app.connect("html-page-context", assets)
    return {"parallel_read_safe": True}
