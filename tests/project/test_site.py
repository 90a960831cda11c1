"""The built documentation is complete, has no warnings, and needs no network."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

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
        if tag in ("code", "pre", "script", "style", "annotation"):
            self._silent += 1

    def handle_endtag(self, tag: str) -> None:
        """Resume collecting text after code."""
        if tag in ("code", "pre", "script", "style", "annotation"):
            self._silent -= 1

    def handle_data(self, data: str) -> None:
        """Keep text."""
        if not self._silent:
            self.text.append(data)


def faults(site: Path) -> list[str]:
    """List broken links, files loaded from other hosts, and LaTeX that was not rendered."""
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
    for sheet in sorted(site.rglob("*.css")):
        for target in re.findall(r"url\(([^)]+)\)|@import[^;]+", sheet.read_text(encoding="utf8")):
            if re.match(r"[\"']?(https?:)?//", target):
                found.append(f"{sheet.relative_to(site)} loads {target}")
    return found


@pytest.mark.slow
def test_the_site(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet", "docs", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert faults(tmp_path) == []
    assert Page((tmp_path / "theory" / "approximation.html").read_text()).formulas > 20


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="nowhere.html">x</a>', "not there"),
        ('<a href="index.html#nowhere">x</a>', "no such place"),
        ('<script src="https://cdn.example/x.js"></script>', "loads https"),
        ('<img src="gone.png">', "not there"),
        (r"<p>\frac{1}{2}</p>", "shows"),
    ],
)
def test_a_fault_is_detected(tmp_path, body, fault):
    (tmp_path / "index.html").write_text(f"<html><body id='top'>{body}</body></html>")
    assert any(fault in text for text in faults(tmp_path))


def test_a_correct_page_passes(tmp_path):
    (tmp_path / "index.html").write_text(r'<p id="a">x</p><a href="#a">y</a><code>\frac</code>')
    assert faults(tmp_path) == []


def test_style_and_renderer_of_formulas_have_the_same_version():
    katex = pytest.importorskip("sphinxcontrib.katex")
    sheet = (ROOT / "docs" / "_static" / "katex" / "katex.min.css").read_text()
    assert f'content:"{katex.katex_version}"' in sheet
