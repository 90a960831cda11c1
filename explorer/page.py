"""The page of one session: presets, controls, charts, and what takes a run further."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import panel as pn

from explorer import further, limits
from explorer.controls import Controls
from explorer.panels import Panels
from explorer.player import Player
from explorer.presets import PRESETS, Said, describe
from explorer.views import Views
from explorer.worker import Answer, Newest, Request, Workshop
from langevin.model.problem import Problem
from langevin.simulation.config import Simulation

TITLE = "Private fine-tuning, moving"
_KEY = (
    "Each dot is a neuron <i>w<sub>j</sub></i> of the network, in the colour of its class; hollow while its "
    "head is misaligned. Coloured lines: one path with noise. Grey lines and squares: without noise. "
    "Triangles: samples, scaled to the frame."
)
_CONES = " Shaded: the cone of directions that respond to one class alone."
_PROJECTED = " Inputs are projected onto the plane of their class means."
_COMPUTING = (
    "<p><b>The first picture is being computed.</b> After an installation or an update, the simulator is "
    "compiled first, once: this can take half a minute.</p>"
)
_CHARTS = ("loss", "distance", "shares", "accuracy", "confusion", "epsilon")
# in the head of the page: it is as wide as the screen
HEAD = """{% block postamble %}
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body { font-family: system-ui, sans-serif; color: #1f2328; background: white; }</style>
{% endblock %}"""
_TEXT = ":host { font-size: 15px; line-height: 1.45; } p { margin: 4px 0; } a { color: #0b5394; }"
_CODE = (
    "pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f8fa; padding: 10px; margin: 0; }"
)


class Page:
    """What one tab shows.

    Parameters
    ----------
    workshop : Workshop
    parameters : mapping
        Of the address.
    file : str, optional
        The user's data.
    """

    def __init__(self, workshop: Workshop, parameters: Mapping[str, str], file: str | None = None) -> None:
        self._file, self._document, self._location = file, pn.state.curdoc, pn.state.location
        self.panels, self._changed = Panels(), 0.0
        self._budget: float | None = None
        self._ready = False
        self._latest: Answer | None = None
        self._shown: Answer | None = None
        self.player = Player(self.panels)
        self._newest = Newest(workshop, self._deliver)
        self.controls = Controls(file is not None, self._entered)
        self._said, self._status, self._why = (pn.pane.HTML("", **_wide(_TEXT)) for _ in range(3))
        self._notes = {name: pn.pane.HTML("", **_wide(_TEXT, margin=(0, 10))) for name in _CHARTS}
        self._key = pn.pane.HTML(_KEY, **_wide(":host { font-size: 13px; color: #444; }", margin=(0, 10)))
        self._code = {name: pn.pane.HTML("", **_wide(_CODE)) for name in ("command", "python")}
        self._links = pn.pane.HTML("", **_wide(_TEXT))
        self._presets = {
            preset.key: pn.widgets.Button(name=preset.title, margin=4, on_click=self._choose(preset.key))
            for preset in PRESETS
        }
        entries, wrong = limits.read(parameters, file)
        self.controls.show(entries)
        self._filled: tuple[Views, limits.Entries] | None = None
        self._said.object = _COMPUTING
        given = limits.simulation(entries, file)
        known = workshop.known(given) or workshop.known(given, quick=True)
        if known is not None:
            self._fill(known, entries)
        # of the address, until something else is entered
        self._wrong = "; ".join(wrong)
        self._complain(self._wrong)
        self._ask()
        if self._document is not None:
            pn.state.onload(self._loaded)
            self._document.js_on_event("document_ready", *self.player.on_ready)
            self._document.on_session_destroyed(lambda _: self._newest.close())

    def layout(self) -> Any:
        """Return all of the page."""
        head = pn.pane.HTML(
            f"<h1>{TITLE}</h1><p>What clipped, noisy gradients do to a two-layer network: every control runs "
            "the simulation, and the theorems' bounds are drawn over it.</p>",
            **_wide("h1 { font-size: 22px; margin: 8px 0 2px; } p { margin: 0; font-size: 15px; }"),
        )
        time_row = pn.pane.Bokeh(_row(self.player.button, self.player.slider), **_wide())
        plane = pn.Column(
            pn.pane.Bokeh(self.panels.plane.figure, sizing_mode="stretch_width", margin=0),
            time_row,
            pn.pane.Bokeh(self.player.readout, **_wide(margin=(0, 10))),
            self._key,
            **_flexible(560),
        )
        titles = {"command": "The command", "python": "The Python"}
        taken = pn.Accordion(
            *(
                (title, pn.Column(self._code[key], sizing_mode="stretch_width"))
                for key, title in titles.items()
            ),
            sizing_mode="stretch_width",
            margin=0,
        )
        return pn.Column(
            head,
            _line(*self._presets.values()),
            self._said,
            self._why,
            _line(plane, self._control_grid()),
            self._status,
            _line(*map(self._chart, _CHARTS)),
            pn.pane.HTML("<h2>Take it further</h2>", **_wide("h2 { font-size: 18px; margin: 8px 0 2px; }")),
            self._links,
            taken,
            sizing_mode="stretch_width",
            styles={
                "max-width": "1400px",
                "margin": "0 auto",
                "padding": "0 10px",
                "box-sizing": "border-box",
            },
        )

    def _control_grid(self) -> Any:
        widgets = self.controls.widgets
        grid = (
            ":host { display: grid !important; grid-template-columns: 1fr 1fr; align-items: end; "
            "align-content: start; gap: 2px; }"
        )
        order = (
            *("data", "classes", "digits", "samples", "width", "loss", "head", "head_scale"),
            *("method", "lp_share", "sigma", "epsilon", "clipped", "clip", "sample_rate", "time"),
            *("paths", "seed"),
        )
        return pn.Column(*(widgets[name] for name in order), **_flexible(330, grid))

    def _chart(self, name: str) -> Any:
        figure = self.panels.confusion.figure if name == "confusion" else getattr(self.panels, name).figure
        shown = pn.pane.Bokeh(figure, sizing_mode="stretch_width", margin=0)
        return pn.Column(shown, self._notes[name], **_flexible(340))

    def _choose(self, key: str) -> Any:
        def chosen(_: Any) -> None:
            preset = next(preset for preset in PRESETS if preset.key == key)
            self.controls.show(limits.entries(preset.simulation))
            self._entered(None)

        return chosen

    def _entered(self, budget: float | None) -> None:
        self._changed, self._wrong = time.perf_counter(), ""
        self._status.object = _RUNNING
        self._ask(budget)

    def _ask(self, budget: float | None = None) -> None:
        """Request what is entered, or say why that cannot be."""
        self._budget = budget
        try:
            simulation = limits.simulation(self.controls.entries, self._file)
        except (ValueError, TypeError) as error:
            self._complain(str(error))
            self._status.object = ""
            return
        self._newest.ask(Request(simulation, budget))

    def _complain(self, why: str) -> None:
        """Say what is wrong; nothing if ``why`` is empty."""
        said = f'<p role="alert" style="color: #a40000">{html.escape(why)}</p>' if why else ""
        self._why.object = said

    def _deliver(self, answer: Answer) -> None:
        """Show an answer, from a thread of the workshop."""
        self._latest = answer
        if self._document is None:
            return
        try:
            self._document.add_next_tick_callback(self._catch_up)
        except RuntimeError:
            # the tab has been closed
            self._newest.close()

    def _loaded(self) -> None:
        self._ready = True
        self._catch_up()

    def _catch_up(self) -> None:
        """Show the latest answer, unless it is shown already, in one message to the browser.

        Not before the page is there: what is sent while it loads can get lost.
        """
        answer = self._latest
        if self._ready and answer is not None and answer is not self._shown:
            self._shown = answer
            with pn.io.hold(self._document):
                self._show(answer)

    def _show(self, answer: Answer) -> None:
        self._complain(answer.failure or self._wrong)
        entries = limits.entries(answer.simulation)
        if answer.views is None:
            self._status.object = ""
            if self._filled is None:
                self._said.object = ""
            return
        if self._budget is not None:
            self.controls.show(self.controls.entries | {"sigma": entries["sigma"]})
        self._fill(answer.views, entries)
        paths, wanted = answer.views.simulation.paths, answer.simulation.paths
        said = "all paths and bounds" if answer.last else f"{paths} of {wanted} paths; bounds are coming"
        if self._changed:
            said += f", {time.perf_counter() - self._changed:.2f} s after the change"
        self._status.object = _state(said)
        if answer.last and self._location is not None:
            self._location.search = f"?{urlencode(limits.query(entries))}"

    def _fill(self, views: Views, entries: limits.Entries) -> None:
        """Show views of what is entered in all places, unless they are there."""
        self.controls.show_epsilon(float(views.epsilon[-1]), views.accountant)
        if self._filled is not None and self._filled[0] is views and self._filled[1] == entries:
            return
        self._filled = views, entries
        self.panels.fill(views)
        self.player.fill(views)
        for name, pane in self._notes.items():
            key = "" if name == "confusion" else getattr(self.panels, name).key
            note = html.escape(self.panels.notes[name])
            pane.object = f'<div style="font-size: 13px">{key}<div style="color: #555">{note}</div></div>'
        shaded, projected = _CONES if views.plane.cones else "", "" if views.plane.flat else _PROJECTED
        self._key.object = _KEY + shaded + projected
        # a quick picture is not what a link means
        preset = limits.preset_of(entries)
        for key, button in self._presets.items():
            button.button_type = "primary" if preset and preset.key == key else "default"
        said = (preset.says if preset else describe)(views)
        self._said.object = _sentences(preset.title if preset else "Your own run", said)
        self._take(limits.simulation(entries, self._file), views.problem)

    def _take(self, simulation: Simulation, problem: Problem) -> None:
        """Write what takes a run further."""
        parameters = urlencode(limits.query(limits.entries(simulation)))
        self._code["command"].object = f"<pre>{html.escape(further.command(simulation))}</pre>"
        self._code["python"].object = f"<pre>{html.escape(further.python(simulation, problem))}</pre>"
        path = self._location.pathname if self._location is not None else ""
        self._links.object = (
            f'<p><a href="{path}/run.nc?{parameters}" download="run.nc">Save the run</a> as netCDF, with its '
            f'bounds and report (the command below writes the same file); <a href="{path}?{parameters}" '
            'target="_blank">link to this state</a>.</p>'
        )


def _state(said: str) -> str:
    return f'<p style="color: #555">{said}</p>'


_RUNNING = _state("the simulation is running")


def _wide(style: str = "", margin: Any = (2, 0)) -> dict[str, Any]:
    return {"sizing_mode": "stretch_width", "margin": margin, "stylesheets": [style] if style else []}


def _line(*parts: Any) -> Any:
    """Return a row that wraps; `pn.FlexBox` does the same, but takes long to make and to draw."""
    # Panel's hidden button for scrolling down would take its place in the row
    style = (
        ":host { display: flex !important; flex-flow: row wrap; align-items: flex-start; } "
        ".scroll-button { display: none; }"
    )
    return pn.Column(*parts, stylesheets=[style], sizing_mode="stretch_width", margin=0)


def _flexible(least: int, style: str = "") -> dict[str, Any]:
    """Return the layout of a part that takes its share of a line, of at least so many pixels."""
    # important: what Bokeh gives the children of a column comes later
    flex = f"flex: 1 1 {least}px !important; min-width: min(100%, {least}px); box-sizing: border-box;"
    return {"stylesheets": [f":host {{ {flex} }}", style], "margin": (4, 0), "sizing_mode": "stretch_width"}


def _row(*models: Any) -> Any:
    from bokeh.layouts import row

    return row(*models, sizing_mode="stretch_width")


def _sentences(title: str, said: Said) -> str:
    first, second, theorem = map(html.escape, said)
    return f"<p><b>{html.escape(title)}.</b> {first} {second}</p><p><b>In theory.</b> {theorem}</p>"
