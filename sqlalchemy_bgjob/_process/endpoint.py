"""``/healthz``, ``/readyz`` and ``/metrics`` of one worker process, over plain HTTP.

Each request has a thread of its own, so that one slow client holds up no probe. No request reads
the database, and whoever connects too often closes only their own oldest connection.
"""

import errno
import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar, Final, NamedTuple, Self

from .._db.errors import summary
from .exits import FAILED, USAGE, CommandError

logger = logging.getLogger("sqlalchemy_bgjob")

MOST_CONNECTIONS: Final = 16
"""How many are open at once; one more closes the oldest."""
TIMEOUT: Final = 5.0
"""Seconds that a client may be silent, or may take to read an answer."""
TEXT: Final = "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """What is sent."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT


Page = Callable[[str], Answer]
"""Makes the answer, from the request's Accept header."""


class Endpoint:
    """Answers in threads of its own until it is closed; a context manager.

    Raises:
        CommandError: The address can't be listened on.
    """

    def __init__(self, host: str, port: int, pages: Mapping[str, Page]) -> None:
        server = _server(host, pages)
        try:
            self._server = server((host, port), server.handler)
        except OSError as error:
            shown = f"[{host}]" if ":" in host else host
            reason = error.strerror or error
            # A port that is taken may be free soon, and then a supervisor's next try succeeds.
            code = FAILED if error.errno == errno.EADDRINUSE else USAGE
            raise CommandError(code, f"can't listen on {shown}:{port}: {reason}") from None
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="bgjob-http", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A server that keeps the newest connections. Not HTTPServer, which asks DNS for its name."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    handler: ClassVar[type[BaseHTTPRequestHandler]]

    def __init__(self, *args: Any) -> None:
        self._open: dict[Any, None] = {}  # in the order in which they came
        self._lock = threading.Lock()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) >= MOST_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with suppress(OSError):  # its thread closes it
                    oldest.shutdown(socket.SHUT_RDWR)
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a client of the probes has gone: %r", sys.exception())


def _server(host: str, pages: Mapping[str, Page]) -> type[_Server]:
    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            page = pages.get(self.path.partition("?")[0])
            if page is None:
                known = "\n".join(pages)
                answer = Answer(HTTPStatus.NOT_FOUND, f"there are:\n{known}\n".encode())
            else:
                answer = _made(page, self.headers.get("Accept", ""))
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if with_body:
                self.wfile.write(answer.body)

        def version_string(self) -> str:
            return "sqlalchemy-bgjob"

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing: a probe comes every few seconds."""

    class Server(_Server):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        handler = Handler

    return Server


def _made(page: Page, accept: str) -> Answer:
    try:
        return page(accept)
    except Exception as error:  # a collector of the application's, for example
        logger.warning("no answer can be made: %s", summary(error))
        return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}\n".encode())


def probe(holds: Callable[[], bool], words: str, otherwise: str) -> Page:
    """Make a page that answers 200 with some words while something holds, and else 503."""

    def page(accept: str) -> Answer:
        if holds():
            return Answer(HTTPStatus.OK, f"{words}\n".encode())
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{otherwise}\n".encode())

    return page


def metrics_page() -> Page:
    """The page of the registry of prometheus-client, or what to install."""
    try:
        from prometheus_client import REGISTRY, exposition  # noqa: PLC0415 - it may be absent
    except ImportError:
        return lambda accept: Answer(
            HTTPStatus.NOT_IMPLEMENTED, b'pip install "sqlalchemy-bgjob[prometheus]"\n'
        )

    def page(accept: str) -> Answer:
        encode, content_type = exposition.choose_encoder(accept)
        return Answer(HTTPStatus.OK, encode(REGISTRY), content_type)

    return page
