"""A headless Chromium for tests of built pages, driven through chromedriver's HTTP interface (WebDriver)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ABSENT = "needs chromium and chromedriver"
# the size of a phone, and of a laptop's window
WIDTHS = (390, 1280)


def available() -> bool:
    """Tell whether the machine has Chromium and its driver."""
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Browser:
    """A window of a given width.

    Parameters
    ----------
    driver : str
        Address of chromedriver.
    width : int
        In CSS pixels; 600 and less is a phone's screen.
    dark : bool
        Whether the page learns that its reader prefers dark colours.
    """

    def __init__(self, driver: str, width: int, dark: bool = False) -> None:
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
        options: dict[str, Any] = {"args": arguments + ["--force-dark-mode"] * dark}
        if width <= 600:
            metrics = {"width": width, "height": 844, "pixelRatio": 1, "mobile": True}
            options["mobileEmulation"] = {"deviceMetrics": metrics}
        logs = {"browser": "ALL"}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
        answer = _call("POST", f"{driver}/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"{driver}/session/{answer['sessionId']}"

    def open(self, address: str) -> None:
        """Load a page and wait until it is complete."""
        _call("POST", f"{self._session}/url", {"url": address})
        # on a busy machine the driver may return earlier
        while self.run("return document.readyState") != "complete":
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """Run the body of a JavaScript function in the page and return what it returns."""
        return _call("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def press(self, key: str) -> None:
        """Press a key, by WebDriver's character for it, where the focus is."""
        actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        _call(
            "POST", f"{self._session}/actions", {"actions": [{"type": "key", "id": "k", "actions": actions}]}
        )

    def errors(self) -> list[str]:
        """Return what the page has written to the console as errors since the last call."""
        found = _call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in found if entry["level"] == "SEVERE"]

    def print_media(self) -> None:
        """Lay the page out as on paper."""
        self._emulate({"media": "print"})

    def less_motion(self) -> None:
        """Let the page learn that its reader prefers less motion."""
        self._emulate({"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]})

    def _emulate(self, media: dict[str, Any]) -> None:
        body = {"cmd": "Emulation.setEmulatedMedia", "params": media}
        _call("POST", f"{self._session}/goog/cdp/execute", body)

    def close(self) -> None:
        """Close the window."""
        _call("DELETE", self._session)


@contextmanager
def driver() -> Iterator[str]:
    """Start chromedriver on a free port and yield its address."""
    command = ["chromedriver", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            started = (re.search(r"started successfully on port (\d+)", line) for line in process.stdout)
            port = next(found[1] for found in started if found)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextmanager
def browser(address: str, width: int, dark: bool = False) -> Iterator[Browser]:
    """Yield a window, and close it."""
    window = Browser(address, width, dark)
    try:
        yield window
    finally:
        window.close()


def _call(method: str, address: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    # no proxy: the driver is on this machine
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as answer:
        return json.load(answer)["value"]
