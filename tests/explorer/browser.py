"""The explorer in a real browser: what the tests ask of it, and the screenshots of the documentation.

``python -m tests.explorer.browser FOLDER [PRESET ...]`` writes screenshots of presets at 1280 and 390 pixels,
and explore.png, the one of docs/howto.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WIDE, NARROW = (1280, 900), (390, 844)
# the preset of the documentation's screenshot
DOCUMENTED = "probing"
# a machine under load may take long
PATIENCE = 120.0
# models by type and title or name, and their elements, in the shadow of others
_HELPERS = """
const doc = window.Bokeh?.documents[0];
const models = doc ? [...doc._all_models.values()] : [];
const model = (title) => models.find((m) => m.title === title || m.label === title || m.name === title);
const deep = (root, selector) => {
  const found = [...root.querySelectorAll(selector)];
  for (const at of root.querySelectorAll('*'))
    if (at.shadowRoot) found.push(...deep(at.shadowRoot, selector));
  return found;
};
const view = (title) => Bokeh.index.find_one_by_id(model(title).id);
const inside = (title, selector) => deep(view(title).el.shadowRoot, selector)[0];
"""


def chromium():
    """Paths of Debian's browser and its driver, '' where there is none."""
    return [shutil.which(name) or "" for name in ("chromium", "chromedriver")]


@contextmanager
def served(*options, **environment):
    """Run the command in an environment, and yield the address that it prints."""
    command = [sys.executable, "-m", "langevin.explore", "--no-browser", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        process.stdout.close()


@contextmanager
def opened(url, size=WIDE, downloads=None, script=""):
    """Open an address in a browser of its own, and yield a `Tab`; a script runs before those of the page."""
    from selenium import webdriver

    binary, driver = chromium()
    options: Any = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--window-size={size[0]},{size[1]}")
    if downloads is not None:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    if size[0] < 500:
        metrics = {"width": size[0], "height": size[1], "pixelRatio": 1}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        window.set_script_timeout(PATIENCE)
        if script:
            window.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        window.get(url)
        yield Tab(window)
    finally:
        window.quit()


class Tab:
    """A page of the explorer."""

    def __init__(self, window):
        self.window = window

    def run(self, script, *values):
        """Run JavaScript with `_HELPERS`."""
        return self.window.execute_script(_HELPERS + script, *values)

    def until(self, script, *values):
        """Wait for a script to return something, and return it and the seconds that took."""
        started = time.perf_counter()
        while time.perf_counter() - started < PATIENCE:
            found = self.run(script, *values)
            if found:
                return found, time.perf_counter() - started
            time.sleep(0.01)
        raise AssertionError(f"not within {PATIENCE:g} s: {script}")

    @property
    def readout(self):
        return self.run("return model('readout')?.text")

    def text(self):
        """All that is written on the page."""
        return self.run(
            "return deep(document, 'p, span, pre, div.bk-clearfix').map((e) => e.textContent).join('\\n')"
        )

    def drawn(self):
        """Wait for all paths and bounds of the last request."""
        self.until("return model('readout')?.text")
        return self.until("return deep(document, 'p').some((e) => e.textContent.startsWith('all paths'))")

    def press(self, title, keys):
        """Move a slider by the keyboard."""
        self._act(title, ".noUi-handle", lambda element: element.send_keys(keys))

    def click(self, title):
        """Click a button."""
        self._act(title, "button", lambda element: element.click())

    def _act(self, title, selector, act):
        """Do something with an element of a widget, which may be made again at any time."""
        from selenium.common.exceptions import StaleElementReferenceException

        for _ in range(10):
            try:
                return act(self.run("return inside(...arguments)", title, selector))
            except StaleElementReferenceException:
                continue
        raise AssertionError(f"{title} does not stay")

    def value(self, title):
        return self.run("return model(arguments[0]).value", title)

    def width(self):
        """Number of neurons that are drawn."""
        return self.run(
            "return models.find((m) => m.type === 'ColumnDataSource' && m.data.fill).data.fill.length"
        )

    def scrolls(self):
        """Whether the page is wider than the window."""
        return self.run("return document.documentElement.scrollWidth > window.innerWidth")

    def errors(self):
        """What the console says of errors."""
        return [entry["message"] for entry in self.window.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self):
        """Addresses that the page has asked for."""
        entries = (json.loads(entry["message"])["message"] for entry in self.window.get_log("performance"))
        return [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]

    def at_end(self):
        """Stop, and show the last time."""
        self.until("return window.explorer?.played")
        time.sleep(0.5)
        if "Play" not in self.run("return model('play').label"):
            self.click("play")
        self.run("const s = model('time'); s.value = s.end;")
        time.sleep(0.5)

    def screenshot(self, path):
        """Write the whole page, in a window that is as high as the page."""
        width, height = self.run("return [innerWidth, document.documentElement.scrollHeight]")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        time.sleep(1.0)
        self.window.save_screenshot(str(path))


def main(folder, *keys):
    """Write screenshots of presets, of all by default, and of one of them for the documentation."""
    from explorer.presets import PRESETS

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    with served() as url:
        # a window as high as the page, in which all charts are drawn at once
        for size in ((WIDE[0], 1700), (NARROW[0], 3500)):
            for key in keys or [preset.key for preset in PRESETS]:
                with opened(f"{url}?preset={key}", size) as tab:
                    tab.drawn()
                    tab.at_end()
                    tab.screenshot(out / f"{key}-{size[0]}.png")
                    print(key, size[0], "scrolls" if tab.scrolls() else "fits", tab.errors())
    if (out / f"{DOCUMENTED}-{WIDE[0]}.png").exists():
        from PIL import Image

        page = Image.open(out / f"{DOCUMENTED}-{WIDE[0]}.png").convert("RGB")
        # few colours, for a small file
        page.quantize(128).save(out / "explore.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
