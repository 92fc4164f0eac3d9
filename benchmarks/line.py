"""The line between a program and the server: with a round trip of its own, and one can cut it."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import make_url

from sqlalchemy_bgjob._bench.program import Program

OF_OURS: Final = "BGJOB_DATABASE_URL"
_CHUNK: Final = 65_536
_Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Line:
    """Passes on what comes, each way half a round trip later.

    Args:
        near: The program at this end of the line.
        round_trip: Seconds.
    """

    def __init__(self, near: Program, *, round_trip: float = 0.0) -> None:
        self._near = near
        # Ours is told by its environment, the others by their arguments.
        self._url = make_url(near.environment.get(OF_OURS, near.dsn))
        self._delay = round_trip / 2
        self._listens = Future[asyncio.AbstractEventLoop]()
        self._ends = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_cut = False
        self._port = 0

    @property
    def far(self) -> Program:
        """The program at the other end of the line."""
        url = self._url.set(host="127.0.0.1", port=self._port, query={})
        there = url.render_as_string(hide_password=False)
        if OF_OURS not in self._near.environment:
            return replace(self._near, dsn=there)
        environment = {**self._near.environment, OF_OURS: there}
        return replace(self._near, environment=environment, here=None)

    def cut(self) -> None:
        """Reset all connections, and refuse new ones."""
        self._loop.call_soon_threadsafe(self._cut)

    def mend(self) -> None:
        """Pass on again."""

        def mend() -> None:
            self._is_cut = False

        self._loop.call_soon_threadsafe(mend)

    def _cut(self) -> None:
        self._is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    def _connect(self) -> Awaitable[_Opened]:
        query: Any = self._url.query
        if (folder := query.get("host", self._url.host or "127.0.0.1")).startswith("/"):
            port = query.get("port", self._url.port or 5432)
            return asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{port}")
        return asyncio.open_connection(folder, self._url.port or 5432)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        both = {writer, server_writer}
        self._writers |= both
        try:
            await asyncio.gather(
                self._pass(reader, server_writer), self._pass(server_reader, writer)
            )
        finally:
            self._writers -= both
            for one in both:
                one.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        send: Callable[[bytes], object] = writer.write
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._delay:
                    self._loop.call_later(self._delay, send, data)
                else:
                    send(data)
            await asyncio.sleep(self._delay)  # until the last of it is sent
            writer.close()

    async def _serve(self) -> None:
        async with await asyncio.start_server(self._accept, "127.0.0.1", 0) as server:
            self._port = server.sockets[0].getsockname()[1]
            self._listens.set_result(asyncio.get_running_loop())
            await self._ends.wait()
            self._cut()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="line")
        self._thread.start()
        self._loop = self._listens.result(10)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._ends.set)
        self._thread.join(10)
