"""The live page: a server of one page and its records, for this machine alone."""

from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

from .page import as_json, script_hash

LONGEST = 2000  # characters of a request's path and query
HTML, JSON, TEXT = "text/html", "application/json", "text/plain"

Answer = Callable[[dict[str, str]], dict[str, Any]]


def serve(document: str, answer: Answer, port: int, ready: Callable[[str], None]) -> None:
    """Serve a page on the loopback interface until Ctrl-C.

    Parameters
    ----------
    document : str
        The page, without a record.
    answer : callable
        From the names and values of a query to a record. The page shows a ValueError.
    port : int
        0 for any free port.
    ready : callable
        Is called with the address of the page.

    Raises
    ------
    OSError
        If the port is taken.
    """
    try:
        server = Server(("127.0.0.1", port), Handler)
    except OSError as error:
        raise OSError(f"--port {port} cannot be used ({error.strerror}): pass another") from None
    server.document, server.answer = document, answer
    with server, suppress(KeyboardInterrupt):
        ready(f"http://127.0.0.1:{server.server_port}/")
        server.serve_forever()


class Server(ThreadingHTTPServer):
    """Threads, because a browser may open a connection and not use it. They keep no state."""

    daemon_threads = True
    document: str
    answer: Answer


class Handler(BaseHTTPRequestHandler):
    """Answers ``GET /`` and ``GET /record?text=...`` to pages of the same origin."""

    server: Server
    timeout = 10  # seconds to wait for a request

    def do_GET(self) -> None:
        """Answer, or refuse in one line of text."""
        path, _, query = self.path.partition("?")
        if not self._is_from_here():
            self._send(403, "only pages of this server are answered", TEXT)
        elif len(self.path) > LONGEST:
            self._send(414, f"the request is longer than {LONGEST} characters", TEXT)
        elif path == "/record":
            self._send_record(query)
        elif self.path == "/":
            self._send(200, self.server.document, HTML)
        else:
            self._send(404, "there are only / and /record?text=...", TEXT)

    def _is_from_here(self) -> bool:
        """Whether the request names this server, and no page of another origin sent it."""
        hosts = [f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")]
        host = self.headers.get("Host")
        return (
            host in hosts
            and self.headers.get("Origin") in (None, f"http://{host}")
            and self.headers.get("Sec-Fetch-Site") in (None, "none", "same-origin")
        )

    def _send_record(self, query: str) -> None:
        try:
            pairs = parse_qsl(query, keep_blank_values=True, errors="strict")
            found = self.server.answer(dict(pairs))
        except (ValueError, OverflowError, MemoryError) as error:
            found = {"error": " ".join(str(error).split())}
        self._send(200, as_json(found), JSON)

    def _send(self, status: int, body: str, kind: str) -> None:
        data = body.encode()
        policy = f"default-src 'none'; script-src '{script_hash()}'; style-src 'unsafe-inline'"
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(data)),
            "Content-Security-Policy": f"{policy}; img-src data:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def send_error(self, code: int, *_: Any, **__: Any) -> None:
        """Refuse what is no GET in the same form."""
        self._send(code, "only GET / and GET /record?text=... are answered", TEXT)

    def handle(self) -> None:
        """A browser may end a connection early."""
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""
