"""The server of the page: on this machine alone, under an address that nobody guesses."""

from __future__ import annotations

import asyncio
import logging
import secrets
import webbrowser
from typing import Any

import panel as pn
from tornado.ioloop import IOLoop
from tornado.web import RequestHandler

from explorer import further, limits
from explorer.page import HEAD, TITLE, Page
from explorer.presets import PRESETS
from explorer.worker import Newest, Request, Workshop
from langevin.support.threads import one_blas_thread

ADDRESS = "127.0.0.1"
# it warns of each tab that is closed while something is on its way
logging.getLogger("bokeh.server.views.ws").setLevel(logging.ERROR)


class SaveHandler(RequestHandler):
    """Sends the run of an address as netCDF."""

    def initialize(self, workshop: Workshop, file: str | None) -> None:
        """Take what the handler needs."""
        self._workshop, self._file = workshop, file

    async def get(self) -> None:
        """Compute the run on a thread, and send it."""
        given = {name: self.get_query_argument(name) for name in self.request.query_arguments}
        entries, wrong = limits.read(given, self._file)
        if wrong:
            self.set_status(400)
            self.finish("; ".join(wrong))
            return
        simulation = limits.simulation(entries, self._file)
        loop = asyncio.get_running_loop()
        try:
            content = await loop.run_in_executor(self._workshop.pool, further.save, simulation)
        except OSError as error:
            self.set_status(500)
            self.finish(str(error))
            return
        self.set_header("Content-Type", "application/x-netcdf")
        self.set_header("Content-Disposition", 'attachment; filename="run.nc"')
        self.finish(content)


class Server:
    """The explorer on a port of this machine.

    Parameters
    ----------
    port : int
        0 for any free one.
    file : str, optional
        The user's data.

    Attributes
    ----------
    url : str
        With a token, without which there is no page.
    """

    def __init__(self, port: int = 0, file: str | None = None) -> None:
        token = secrets.token_urlsafe(16)
        self.workshop = workshop = Workshop()

        # Panel takes a plain function alone
        def page() -> Any:
            given = {name: values[-1].decode() for name, values in pn.state.session_args.items()}
            document: Any = pn.state.curdoc
            document.template = HEAD
            return Page(workshop, given, file).layout()

        self._server: Any = pn.io.server.get_server(
            {token: page},
            port=port,
            address=ADDRESS,
            title=TITLE,
            # no list of pages, which would tell the token
            use_index=False,
            redirect_root=False,
            extra_patterns=[
                (rf"/{token}/run\.nc", SaveHandler, {"workshop": workshop, "file": file}),
            ],
            websocket_origin=[f"{ADDRESS}:{port}", f"localhost:{port}"] if port else None,
        )
        self.url = f"http://{ADDRESS}:{self._server.port}/{token}"

    def run(self, *, browser: bool) -> None:
        """Serve until a KeyboardInterrupt."""
        loop = IOLoop.current()
        # the picture of the first tab, and the compiled code of all
        Newest(self.workshop, lambda _: None).ask(Request(PRESETS[0].simulation))
        self._server.start()
        if browser:
            loop.add_callback(webbrowser.open, self.url)
        try:
            with one_blas_thread():
                loop.start()
        finally:
            self._server.stop()
            self.workshop.pool.shutdown(wait=False, cancel_futures=True)
