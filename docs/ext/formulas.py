"""Render formulas while pages are written in parallel: one server of KaTeX, a connection per process."""

from __future__ import annotations

import os
import socket

from sphinx.application import Sphinx
from sphinxcontrib.katex import KaTeXServer

# on a busy machine, a new server's socket may exist before it listens
TRIES = 3


def start(app: Sphinx) -> None:
    """Start the server before Sphinx divides into processes."""
    if not app.config.katex_prerender or os.name != "posix":
        return
    for left in reversed(range(TRIES)):
        try:
            KaTeXServer.get()
            return
        except ConnectionRefusedError:
            if not left:
                raise


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
