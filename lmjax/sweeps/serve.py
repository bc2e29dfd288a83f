"""The live page of a directory of runs: `lmjax sweep FILE --serve` and `lmjax runs DIR --serve`.

A read-only web server on 127.0.0.1, from the standard library. It answers GET requests for the page of all cells and
for pages of single runs; names of runs are looked up and never used as paths. Requests with another host name in the
Host header are refused, so that no website can read the page through a domain that resolves to this machine.
"""

import contextlib
import errno
import http.server
import pathlib
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import TYPE_CHECKING

from lmjax.errors import InputError
from lmjax.scaling.report.markup import digest
from lmjax.sweeps.board import Board
from lmjax.sweeps.livepage import document, overview, run_page

if TYPE_CHECKING:
    from lmjax.sweeps.cells import Cell

PORT = 8642  # tried first where no port is given
HOSTS = ("127.0.0.1", "localhost")


@contextlib.contextmanager
def served(workdir: pathlib.Path, port: int = 0, cells: "Sequence[Cell]" = ()) -> Iterator[str]:
    """Serve the live page of a directory while the context lasts; yield its address.

    Args:
        workdir: directory of runs.
        port: port to listen on; 0: PORT, or any free port if it is in use.
        cells: show only these cells of a sweep; empty: show all runs.

    Raises:
        InputError: no such directory; the port is in use or not allowed.
    """
    if not workdir.is_dir():
        raise InputError(f"no directory {workdir}; expected the directory of a sweep's runs")
    server = _listen(port)
    server.board = Board(workdir, cells)
    thread = threading.Thread(target=server.serve_forever, name="live page", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def serve_until_stopped(workdir: pathlib.Path, port: int = 0) -> int:
    """Serve the live page of a directory until Ctrl-C; return 0."""
    with served(workdir, port) as address, contextlib.suppress(KeyboardInterrupt):
        print(f"live page {address} (Ctrl-C ends it)", flush=True)
        while True:
            time.sleep(3600)
    return 0


def _listen(port):
    for number in (port,) if port else (PORT, 0):
        try:
            return Server(("127.0.0.1", number), Handler)
        except (OSError, OverflowError) as error:
            if port or getattr(error, "errno", None) != errno.EADDRINUSE:
                raise InputError(f"--serve: cannot listen on port {number} ({error}); give another") from error
    raise InputError("--serve: expected a free port, found none; give one")


class Server(http.server.ThreadingHTTPServer):
    """Serves `board`."""

    daemon_threads = True
    board: Board

    def handle_error(self, request, client_address):
        """Print an error, unless the browser closed the connection."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection. `/` is the page of all cells, `/run/NAME` that of one run; with `?part`, only the
    content, which the page requests to refresh itself."""

    server: Server
    server_version, sys_version, protocol_version, timeout = "lmjax", "", "HTTP/1.1", 30

    def do_GET(self):
        """Answer a request for a page."""
        if not self._is_local():
            self._answer(403, f"expected the Host {' or '.join(HOSTS)}; open the address that lmjax printed")
            return
        url = urllib.parse.urlsplit(self.path)
        path, board = urllib.parse.unquote(url.path), self.server.board
        name = path.removeprefix("/run/")
        rows = board.refresh()
        if path == "/":
            content = overview(board, rows)
        elif path != name and name in rows:
            content = run_page(board, rows[name])
        else:
            self._answer(404, "no such page; expected / or /run/NAME of a run")
            return
        if url.query == "part":
            self._answer(200, content, "text/html")
        else:
            self._answer(200, document(board.workdir.name, content, STYLE, SCRIPT), "text/html")

    def __getattr__(self, name):
        if name.startswith("do_"):  # every other method
            return lambda: self._answer(405, "expected GET; this page is read-only")
        raise AttributeError(name)

    def _is_local(self):
        try:
            return urllib.parse.urlsplit(f"//{self.headers['Host']}").hostname in HOSTS
        except ValueError:
            return False

    def _answer(self, code, text, kind="text/plain"):
        body = text.encode("utf8")
        self.send_response(code)
        headers = HEADERS | {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
        headers |= {"Allow": "GET"} if code == 405 else {}
        headers |= {"Connection": "close"} if code != 200 else {}  # a refused request may have a body
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format, *args):
        """Log nothing: the terminal shows the sweep."""


def _static(package, name):
    return (resources.files(package) / "static" / name).read_text("utf8")


STYLE = _static("lmjax.scaling.report", "report.css") + _static("lmjax.sweeps", "live.css")
SCRIPT = _static("lmjax.sweeps", "live.js")
POLICY = (
    f"default-src 'none'; style-src '{digest(STYLE)}'; script-src '{digest(SCRIPT)}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
