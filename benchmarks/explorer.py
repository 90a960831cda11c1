"""Measure the explorer in headless Chromium: from an address to a picture, from a key to the next.

``python -m benchmarks.explorer`` prints a table and saves it in ``benchmarks/results``. With ``--quick``
nothing is saved. The browser runs on the same processors as the server, with an empty cache for each page.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from typing import Any

from benchmarks.harness import environment
from benchmarks.harness.tables import brief, keep, table
from tests.explorer import browser

# seconds
AIMS = {"page: first picture": 2.0, "slider, new value: first picture": 0.3}
PAGES, MOVES = 5, 8
SLIDERS = ("Width (neurons)", "Noise sigma")
_STAGES = {"message": "message", "first": "first picture", "all": "all paths, bounds"}
# what a page sees of itself, asked once a frame: the time of a frame that follows what has changed
_WATCH = """
(() => {
  const seen = window.seen = {};
  const models = () => [...(window.Bokeh?.documents[0]?._all_models.values() ?? [])];
  let frames = null, before = null, pressed = false;
  const mark = (name) => { if (!(name in seen)) requestAnimationFrame((now) => { seen[name] ??= now; }); };
  addEventListener('keydown', (event) => {
    if (!pressed) { seen.key = event.timeStamp; pressed = true; }
  }, true);
  window.watch = () => { for (const key in seen) delete seen[key]; before = frames?.data; pressed = false; };
  const look = () => {
    // first, as models that are being made may lack what is read below
    requestAnimationFrame(look);
    const all = models(), said = (text) => all.some((m) => m.text?.includes?.(text));
    frames = all.find((m) => m.data?.bad !== undefined) ?? frames;
    if (said('being computed')) mark('message');
    const drawn = frames && frames.data !== before && frames.data.x.length > 0;
    if (drawn) mark('first');
    if (drawn && said('all paths')) mark('all');
  };
  look();
})();
"""


def page(url: str, times: dict[str, list[float]], name: str) -> None:
    """Open a page in a browser of its own, and note seconds since navigation started."""
    with browser.opened(url, script=_WATCH) as tab:
        found = _seen(tab)
        for key, label in _STAGES.items():
            if key in found:
                times.setdefault(f"{name}: {label}", []).append(found[key] / 1e3)


def moves(url: str, count: int, times: dict[str, list[float]]) -> None:
    """Press keys on sliders, and note seconds since the key."""
    from selenium.webdriver.common.keys import Keys

    with browser.opened(url, script=_WATCH) as tab:
        tab.drawn()
        tab.at_end()
        for title in SLIDERS:
            # there, and the way back
            for what, key in (("new", Keys.ARROW_RIGHT), ("earlier", Keys.ARROW_LEFT)):
                for _ in range(count):
                    # nothing may be left of the last one
                    time.sleep(0.5)
                    tab.run("watch()")
                    tab.press(title, key)
                    found = _seen(tab)
                    for stage in ("first", "all"):
                        seconds = (found[stage] - found["key"]) / 1e3
                        times.setdefault(f"slider, {what} value: {_STAGES[stage]}", []).append(seconds)


def _seen(tab: browser.Tab) -> dict[str, float]:
    """Wait until all is drawn, and return the times at which it was."""
    return tab.until("return 'all' in seen && seen")[0]


def text(record: dict[str, Any]) -> str:
    """Return the table."""
    rows = [
        [
            name,
            f"{statistics.median(values):.2f}",
            f"{min(values):.2f} to {max(values):.2f}",
            f"{AIMS[name]:g}" if name in AIMS else "",
        ]
        for name, values in record["seconds"].items()
    ]
    machine = record["machine"]
    return (
        f"# The explorer on {machine['processor']}, {machine['started']}\n\n"
        f"Headless Chromium on the same {machine['processors_used']} processors; load at the start "
        f"{machine['load'][0]}\n\n{table(['seconds', 'median', 'range', 'aim'], rows)}"
    )


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explorer", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short trial run: nothing is saved")
    quick = parser.parse_args().quick
    if not all(browser.chromium()):
        sys.exit("benchmarks.explorer needs chromium and chromedriver, which Debian has")
    environment.restart_without_overrides()
    times: dict[str, list[float]] = {}
    record = {"machine": environment.describe(), "seconds": times}
    if not quick:
        with tempfile.TemporaryDirectory() as cache, browser.served(NUMBA_CACHE_DIR=cache) as url:
            page(url, times, "page, while the simulator is compiled")
    with browser.served() as url:
        page(url, times, "page, the first of a server")
        for _ in range(1 if quick else PAGES):
            page(url, times, "page")
        moves(url, 1 if quick else MOVES, times)
    print(text(record))
    if not quick:
        keep(f"explorer-{brief(environment.processor())}", record, text(record))


if __name__ == "__main__":
    main()
