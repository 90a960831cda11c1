"""The explorer in a real browser: it loads, moves, plays and saves, on a screen and on a telephone."""

import http.client
import sys
import urllib.error
import urllib.parse
import urllib.request

import pytest

from tests.explorer import browser
from tests.helpers import execute

if not all(browser.chromium()):
    pytest.skip("needs chromium and chromedriver, which Debian has", allow_module_level=True)
pytest.importorskip("panel")
pytest.importorskip("selenium")
from selenium.webdriver.common.keys import Keys

SIZES = pytest.mark.parametrize("size", [browser.WIDE, browser.NARROW], ids=lambda size: str(size[0]))


@pytest.fixture(scope="module")
def url():
    with browser.served() as found:
        yield found


@SIZES
def test_the_page_loads_moves_and_plays(url, size):
    with browser.opened(url, size) as tab:
        tab.drawn()
        assert "A misaligned head distorts." in tab.text()
        assert tab.width() == 32
        assert not tab.scrolls()
        # a slider: more neurons
        tab.press("Width (neurons)", Keys.ARROW_RIGHT)
        tab.until("return models.some((m) => m.data?.fill?.length === 34)")
        tab.until("return location.search === '?width=34'")
        assert "Your own run." in tab.text()
        # noise and budget show each other
        before = tab.value("Budget epsilon")
        tab.press("Noise sigma", Keys.ARROW_RIGHT)
        tab.until("return model('Budget epsilon').value < arguments[0]", before)
        # time
        tab.at_end()
        end = tab.value("time")
        tab.click("play")
        tab.until("const t = model('time').value; return t > 2 && t < arguments[0]", end)
        tab.click("play")
        stopped = tab.value("time")
        readout = tab.readout
        assert readout.startswith("time ")
        assert 0 < stopped < end
        tab.press("time", Keys.ARROW_RIGHT)
        tab.until("return model('readout').text !== arguments[0]", readout)
        assert tab.errors() == []
        assert {urllib.parse.urlsplit(asked).hostname for asked in tab.requests()} <= {"127.0.0.1", None, ""}


def test_presets_change_everything_and_the_address(url):
    from explorer.presets import PRESETS

    with browser.opened(url) as tab:
        tab.drawn()
        for preset in PRESETS[::-1]:
            title = preset.title
            tab.click(title)
            tab.until("return deep(document, 'p').some((e) => e.textContent.startsWith(arguments[0]))", title)
            tab.until("return location.search === arguments[0]", f"?preset={preset.key}")
        assert tab.errors() == []


def test_a_link_opens_the_state_that_it_names(url):
    with browser.opened(f"{url}?data=ring&classes=3&loss=softmax&samples=12&width=8&paths=4") as tab:
        tab.drawn()
        assert tab.width() == 8
        assert tab.value("Classes on the ring") == 3
        assert tab.value("Data") == "ring"


def test_bad_addresses_say_why(url):
    with browser.opened(f"{url}?sigma=-1&width=<b>8</b>") as tab:
        tab.drawn()
        said = tab.run("return deep(document, '[role=alert]')[0].textContent")
        assert "sigma must be a number from 0 to 10, got -1.0" in said
        assert "'<b>8</b>'" in said


def test_the_run_is_saved(url, tmp_path):
    with browser.opened(f"{url}?width=6&samples=8&paths=2", downloads=tmp_path) as tab:
        tab.drawn()
        tab.run("deep(document, 'a').find((a) => a.textContent === 'Save the run').click()")
        tab.until("return true")
        saved = tmp_path / "run.nc"
        for _ in range(1200):
            if saved.exists():
                break
            tab.until("return new Promise((done) => setTimeout(() => done(true), 100))")
        from langevin.store import files

        run = files.load(saved)
        assert dict(run.sizes)["path"] == 2
        assert "squared_distance_upper" in run


def test_two_tabs_do_not_disturb_each_other(url):
    with browser.opened(url) as first, browser.opened(f"{url}?preset=zero") as second:
        first.drawn()
        second.drawn()
        first.press("Width (neurons)", Keys.ARROW_LEFT)
        second.press("Width (neurons)", Keys.ARROW_RIGHT)
        first.until("return models.some((m) => m.data?.fill?.length === 30)")
        second.until("return models.some((m) => m.data?.fill?.length === 34)")
        assert first.value("Head at the start") == "gaussian"
        assert second.value("Head at the start") == "zero"


def status(address):
    """HTTP status of an address that is refused."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(address)
    with caught.value as refused:
        return refused.code


@pytest.mark.slow
def test_the_benchmark_prints_its_table():
    done = execute([sys.executable, "-m", "benchmarks.explorer", "--quick"], cwd=browser.ROOT, check=True)
    for row in (
        "page: first picture",
        "slider, new value: first picture",
        "slider, earlier value: all paths",
    ):
        assert done.stdout.count(f"| {row}") == 1


def test_nobody_without_the_token_gets_anything(url):
    parts = urllib.parse.urlsplit(url)
    assert parts.hostname == "127.0.0.1"
    assert len(parts.path) > 20
    for path in ("/", "/explore", "/run.nc", parts.path[:-1], f"{parts.path[:-1]}/run.nc"):
        assert status(f"http://{parts.netloc}{path}") == 404
    assert status(f"{url}/run.nc?width=0") == 400
    # nor does a page of another site that knows it
    handshake = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    handshake |= {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Origin": "http://example.org"}
    connection = http.client.HTTPConnection(parts.netloc)
    connection.request("GET", f"{parts.path}/ws", headers=handshake)
    assert connection.getresponse().status == 403
    connection.close()
