"""Play, pause and scrub: the script that moves all views to one time, in the browser alone."""

from __future__ import annotations

from typing import Any

from bokeh.models import Button, ColumnDataSource, CustomJS, Div, Slider

from explorer.panels import Panels
from explorer.views import Views

# of a frame, in milliseconds
_FRAME = 50
_NAMES = ("loss", "misaligned", "distorted", "epsilon")
# arrays are changed in place: what the server need not know is not sent to it
_SHOW = """
const F = frames.data, N = neurons.data, T = trails.data, R = readings.data;
const h = N.colour.length, m = R.time.length;
if (h === 0 || m === 0 || F.x.length !== h * m) return;
// here, as a change that the server makes while the page loads can get lost
if (slider.end !== Math.max(1, m - 1)) slider.end = Math.max(1, m - 1);
const k = Math.min(slider.value, m - 1), now = R.time[k];
for (let j = 0; j < h; j++) {
  const at = k * h + j;
  for (const key of ['x', 'y', 'zx', 'zy']) N[key][j] = F[key][at];
  N.fill[j] = F.bad[at] ? 'white' : N.colour[j];
  for (const [to, from] of [['xs', 'x'], ['ys', 'y'], ['zxs', 'zx'], ['zys', 'zy']]) {
    const way = new Array(k + 1);
    for (let t = 0; t <= k; t++) way[t] = F[from][t * h + j];
    T[to][j] = way;
  }
}
neurons.change.emit();
trails.change.emit();
for (const source of presents) { source.data.x[0] = now; source.change.emit(); }
const short = (x) => String(+x.toPrecision(3)), said = ['time ' + short(now), R.phase[k]];
for (const [key, word] of words) if (isFinite(R[key][k])) said.push(word + ' ' + short(R[key][k]));
readout.text = said.join(' · ');
"""
_STEP = """
const all = (window.explorer ??= {timers: {}}).timers;
const stop = () => { clearInterval(all[slider.id]); delete all[slider.id]; button.label = '▶ Play'; };
if (all[slider.id]) { stop(); return; }
if (slider.value >= slider.end) slider.value = 0;
button.label = '❚❚ Pause';
all[slider.id] = setInterval(() => {
  // a new run may be shorter
  slider.value = Math.min(slider.value + 1, slider.end);
  if (slider.value >= slider.end) stop();
}, frame);
"""
# once, when the first picture is there, for those who do not prefer less motion
_FIRST = """
const seen = (window.explorer ??= {timers: {}});
if (seen.played || readings.data.time.length === 0) return;
seen.played = true;
if (matchMedia('(prefers-reduced-motion: reduce)').matches) {
  slider.value = slider.end;
} else {
  setTimeout(() => play.execute(button), 300);
}
"""


class Player:
    """The controls of time.

    Attributes
    ----------
    button : Button
        Plays and pauses.
    slider : Slider
        The number of the record that is shown.
    readout : Div
        What the curves are at this time.
    on_ready : tuple of CustomJS
        To run when the page is there.
    """

    def __init__(self, panels: Panels) -> None:
        # what they show is the browser's matter: the server is not told of each frame
        here: dict[str, Any] = {"syncable": False}
        self.button = Button(label="▶ Play", button_type="primary", width=96, name="play", **here)
        self.slider = Slider(
            start=0, end=1, value=0, step=1, title=None, show_value=False, sizing_mode="stretch_width", **here
        )
        self.slider.name = "time"
        self.readout = Div(text="", name="readout", sizing_mode="stretch_width", **here)
        self.readings = ColumnDataSource({key: [] for key in ("time", "phase", *_NAMES)})
        plane = panels.plane
        shared: dict[str, Any] = {"slider": self.slider, "button": self.button, "readings": self.readings}
        show = CustomJS(
            args=shared
            | {
                "frames": plane.frames,
                "neurons": plane.neurons,
                "trails": plane.trails,
                "presents": [chart.now for chart in panels.charts],
                "readout": self.readout,
                "words": [[name, name] for name in _NAMES],
            },
            code=_SHOW,
        )
        play = CustomJS(args=shared | {"frame": _FRAME}, code=_STEP)
        first = CustomJS(args=shared | {"play": play}, code=_FIRST)
        self.slider.js_on_change("value", show)
        self.readings.js_on_change("data", show, first)
        # for what is there from the start
        self.on_ready = (show, first)
        self.button.js_on_event("button_click", play)

    def fill(self, views: Views) -> None:
        """Take the times of a simulation, after the panels have been filled."""
        found: dict[str, Any] = {
            "time": views.times,
            "epsilon": views.epsilon,
            "loss": views.curves["loss"].mean,
        }
        for name in ("misaligned", "distorted"):
            curve = views.curves.get(name)
            none = [float("nan")] * len(views.times)
            found[name] = none if curve is None else curve.mean * views.weights.width
        probing = views.times < views.probing
        found["phase"] = ["linear probing" if first else "full fine-tuning" for first in probing]
        self.readings.data = found
