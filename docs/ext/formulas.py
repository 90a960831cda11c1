"""Render formulas while pages are written in parallel: one server of KaTeX, a connection per process."""

from __future__ import annotations

import os
import socket

from sphinx.application import Sphinx
from sphinxcontrib.katex import KaTeXServer


def start(app: Sphinx) -> None:
    """Start the server before Sphinx divides into processes."""
    if app.config.katex_prerender and os.name == "posix":
        KaTeXServer.get()


def connect() -> None:
    """Give a new process its own connection; answers to two processes on one connection would mix."""
    server = KaTeXServer.katex_server
    if server is not None:
        server.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.sock.connect(str(server.rundir / "katex.sock"))


os.register_at_fork(after_in_child=connect)


def setup(app: Sphinx) -> dict[str, bool]:
    """Start the server once the extension of KaTeX has read its settings."""
    app.connect("builder-inited", start, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
