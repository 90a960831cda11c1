"""What ``python -m langevin.explore`` is made of: a model of arrays and sentences, and a page that shows it.

- `explorer.views`, `explorer.plane`: a simulation to the arrays of all views;
- `explorer.presets`: the paper's story in five simulations, with sentences about what each run shows;
- `explorer.limits`: what may be entered, and the address;
- `explorer.further`: the command and the Python of a run, and the saved run;
- `explorer.worker`: computation on threads, of the newest request;
- `explorer.charts`, `explorer.panels`, `explorer.page`, `explorer.serve`: the page in the browser.

Only the last line needs Panel and Bokeh.
"""
