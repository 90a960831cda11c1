"""The built documentation is complete, has no warnings, needs no network, and can be read on a phone."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests import browser

ROOT = Path(__file__).resolve().parents[2]
# what a page loads by itself; links may lead anywhere
LOADS = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}
LATEX = re.compile(r"\\(frac|sigma|lambda|sum|sqrt|le|ge|alpha|theta|norm|E|text|tilde)\b|\$\$|\\[(\[]")


class Page(HTMLParser):
    """The anchors, links, loaded files, and text (without code and sources of formulas) of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []
        self.formulas = 0
        # numbered lists of one item: a sentence of which a line begins with "1."
        self.lone: list[str] = []
        self._lists: list[tuple[str, list[str]]] = []
        self._silent = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the anchors, links and loaded files of a tag."""
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            if tag == "a" and name == "href" and value:
                self.links.append(value)
            if (tag, name) in LOADS and value:
                self.loads.append(value)
            self.formulas += (name, value) == ("class", "katex")
        if tag in ("ol", "ul"):
            self._lists.append((tag, []))
        if tag == "li" and self._lists:
            self._lists[-1][1].append("")
        if tag in ("code", "pre", "script", "style", "annotation"):
            self._silent += 1

    def handle_endtag(self, tag: str) -> None:
        """Resume collecting text after code, and look at a list that ends."""
        if tag in ("ol", "ul") and self._lists:
            kind, items = self._lists.pop()
            if kind == "ol" and len(items) == 1:
                self.lone.append(items[0][:40].strip())
        if tag in ("code", "pre", "script", "style", "annotation"):
            self._silent -= 1

    def handle_data(self, data: str) -> None:
        """Keep text."""
        if self._lists and self._lists[-1][1]:
            self._lists[-1][1][-1] += data
        if not self._silent:
            self.text.append(data)


def faults(site: Path) -> list[str]:
    """List broken links, files loaded from other hosts, LaTeX that was not rendered, and broken sentences."""
    pages = {path: Page(path.read_text(encoding="utf8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name} loads {target}" for target in page.loads if urlsplit(target).netloc]
        for target in page.links + page.loads:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not there.exists():
                found.append(f"{name} links to {target}, which is not there")
            elif parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].anchors:
                found.append(f"{name} links to {target}: no such place")
        found += [f"{name} shows {match.group()}" for match in LATEX.finditer(" ".join(page.text))]
        found += [f"{name} has a list of one item: {item}" for item in page.lone]
    for sheet in sorted(site.rglob("*.css")):
        for target in re.findall(r"url\(([^)]+)\)|@import[^;]+", sheet.read_text(encoding="utf8")):
            if re.match(r"[\"']?(https?:)?//", target):
                found.append(f"{sheet.relative_to(site)} loads {target}")
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet", "-j", "auto", "docs", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site(site):
    assert faults(site) == []
    page = (site / "theory" / "approximation.html").read_text(encoding="utf8")
    assert Page(page).formulas > 20
    assert page.count('<details class="proof">') == page.count("∎") > 8
    names = Page((site / "api.html").read_text(encoding="utf8")).links
    assert len({name for name in names if "#bounds." in name}) > 40


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="nowhere.html">x</a>', "not there"),
        ('<a href="index.html#nowhere">x</a>', "no such place"),
        ('<script src="https://cdn.example/x.js"></script>', "loads https"),
        ('<img src="gone.png">', "not there"),
        (r"<p>\frac{1}{2}</p>", "shows"),
        ("<p>until it reaches</p><ol><li>After that</li></ol>", "list of one item: After that"),
    ],
)
def test_a_fault_is_detected(tmp_path, body, fault):
    (tmp_path / "index.html").write_text(f"<html><body id='top'>{body}</body></html>")
    assert any(fault in text for text in faults(tmp_path))


def test_a_correct_page_passes(tmp_path):
    (tmp_path / "index.html").write_text(
        r'<p id="a">x</p><a href="#a">y</a><code>\frac</code><ol><li>1<ul><li>a</ul><li>2</ol>'
    )
    assert faults(tmp_path) == []


def test_style_and_renderer_of_formulas_have_the_same_version():
    katex = pytest.importorskip("sphinxcontrib.katex")
    sheet = (ROOT / "docs" / "_static" / "katex" / "katex.min.css").read_text()
    assert f'content:"{katex.katex_version}"' in sheet


AUDIT = (Path(__file__).parent / "audit.js").read_text(encoding="utf8")
needs_browser = pytest.mark.skipif(not browser.available(), reason=browser.ABSENT)


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", browser.WIDTHS)
def test_pages_can_be_read_in_any_window(site, width, dark):
    # the pages of modules are many and alike
    pages = [page for page in sorted(site.rglob("*.html")) if page.parent.name != "api"]
    assert len(pages) > 40
    found = {}
    with browser.driver() as driver, browser.browser(driver, width, dark) as window:
        for page in pages:
            window.open(page.as_uri())
            assert window.run("return document.documentElement.clientWidth") <= width
            found[str(page.relative_to(site))] = window.run(AUDIT)
    assert {name: faults for name, faults in found.items() if faults} == {}


@pytest.mark.slow
@needs_browser
def test_proofs_are_folded_on_the_screen_and_open_on_paper(site):
    heights = "return [...document.querySelectorAll('details.proof')].map((e) => e.offsetHeight)"
    with browser.driver() as driver, browser.browser(driver, browser.WIDTHS[1]) as window:
        window.open((site / "theory" / "privacy.html").as_uri())
        folded = window.run(heights)
        window.print_media()
        opened = window.run(heights)
    assert len(folded) > 3
    assert all(before < 40 < after for before, after in zip(folded, opened, strict=True))


@needs_browser
def test_what_cannot_be_read_is_found(tmp_path):
    cases = {
        "<p style='width: 2000px'>x</p>": "the page is",
        "<p style='width: 2000px'>y</p>": "too wide",
        "<div style='overflow: auto'><p style='width: 2000px'>x</p></div>": "scrolls without a sign",
        "<div style='overflow: hidden'><p style='width: 2000px'>x</p></div>": "cut off",
        "<img src='data:,' >": "no description",
        "<svg><path d='M0 0'/></svg>": "no description",
        "<p style='color: #999'>x</p>": "contrast 2.85",
        "<details><summary>Proof</summary><p style='color: #999'>x</p></details>": "contrast",
        "<p>x</p><img src='data:,' alt='A square.'><div style='overflow: auto; background: "
        "linear-gradient(red, white)'><p style='width: 2000px'></p></div>": "",
    }
    page = tmp_path / "page.html"
    with browser.driver() as driver, browser.browser(driver, browser.WIDTHS[0]) as window:
        for body, fault in cases.items():
            head = "<!doctype html><meta name='viewport' content='width=device-width'>"
            page.write_text(f"{head}<main>{body}</main>", encoding="utf8")
            window.open(page.as_uri())
            found = window.run(AUDIT)
            assert any(fault in text for text in found) if fault else found == []
