"""A TCP proxy before PostgreSQL, with which a test breaks connections where it wants to.

It runs in a thread of its own, so that a test of threads and a test of coroutines use it alike.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from sqlalchemy.engine import make_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

Direction = Literal["client", "server"]
_COMMITTED = b"COMMIT\x00"
"""The end of the server's answer to a COMMIT, and of the COMMIT itself as psycopg sends it."""
_COMMITS = (b"COMMIT\x00", b"COMMIT;\x00")
_IDLE = b"Z\x00\x00\x00\x05I"
"""The end of the server's answer to what left no transaction open."""
_ENCRYPT = {80_877_103, 80_877_104}
"""What a client asks first, before it says who it is: for TLS, and for GSSAPI."""


@dataclass
class _Cut:
    """Break the first COMMIT that follows *marker* on a connection."""

    marker: bytes
    sent_by: Direction
    arrives: bool
    hangs: bool
    times: int = 1


@dataclass(eq=False)
class _Link:
    """One client's connection and ours to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    marked: _Cut | None = None
    cutting: bool = False
    hangs: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def abort(self) -> None:
        for writer in (self.client, self.server):
            with suppress(OSError):
                raw = writer.get_extra_info("socket")
                # A reset, as after a crash of the other side, and no polite end.
                raw.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
                )
            writer.transport.abort()


class Proxy:
    """Passes on what comes until it is told otherwise. All methods may be called from a test.

    Attributes:
        port: Where it listens on 127.0.0.1.
        cuts: How many COMMITs it has broken.
        refusals: How many new connections it has refused.
        replacements: How often it has put other words into a client's mouth.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self._target = (parsed.host or "127.0.0.1", parsed.port or 5432)
        self._url = parsed
        self._loop = asyncio.new_event_loop()
        self._links: set[_Link] = set()
        self._cuts: list[_Cut] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._closing = asyncio.Event()
        self._refusing = False
        self._refusal: bytes | None = None
        self._replaced: tuple[bytes, bytes] | None = None
        self.cuts = 0
        self.refusals = 0
        self.replacements = 0
        self.port = 0
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """The database's URL, through this proxy."""
        there = self._url.set(host="127.0.0.1", port=self.port)
        return there.render_as_string(hide_password=False)

    @property
    def connections(self) -> int:
        return len(self._links)

    # ---- what a test does -----------------------------------------------------------------------

    def cut_commit(
        self, marker: str, *, sent_by: Direction, arrives: bool = True, hangs: bool = False
    ) -> None:
        """Let a COMMIT reach the server, swallow its answer, and reset the connection.

        Meant is the first COMMIT on a connection over which *marker* went, sent by the server in
        a row (a claim returns types) or by the client in a parameter (a settlement names ids). A
        row that comes with the end of its statement's own transaction is such an answer itself.
        Unless it *arrives*, the connection is reset before the server hears of it. When it *hangs*,
        there is no reset, and the client waits.
        """
        self._call(lambda: self._cuts.append(_Cut(marker.encode(), sent_by, arrives, hangs)))

    def reset(self) -> None:
        """Reset all connections; new ones are passed on."""
        self._call(self._abort_all)

    def refuse(self, sqlstate: str | None = None, words: str = "", *, keep: bool = False) -> None:
        """Reset all connections, and new ones too; those with an error of a server, if given.

        With *keep* the connections that there are stay, as at a limit of the server's.
        """
        fields = f"SFATAL\0VFATAL\0C{sqlstate}\0M{words}\0\0".encode()
        error = b"E" + (len(fields) + 4).to_bytes(4, "big") + fields

        def refuse() -> None:
            self._refusing, self._refusal = True, None if sqlstate is None else error
            if not keep:
                self._abort_all()

        self._call(refuse)

    def replace(self, words: str, others: str) -> None:
        """Let the server read *others*, of the same length, for *words* that a client sends."""
        assert len(words) == len(others)
        self._replaced = words.encode(), others.encode()

    def blackhole(self) -> None:
        """Pass on nothing any more, and close nothing."""
        self._call(self._flowing.clear)

    def pass_on(self) -> None:
        """Pass on everything again, what was held back included."""

        def flow() -> None:
            self._refusing = False
            self._flowing.set()

        self._call(flow)

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._accept, "127.0.0.1", 0), self._loop
        )
        self._server = starting.result(timeout=10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, action: Callable[[], Any]) -> None:
        done: Future[None] = Future()

        def act() -> None:
            action()
            done.set_result(None)

        self._loop.call_soon_threadsafe(act)
        done.result(timeout=10)

    # ---- in the loop ----------------------------------------------------------------------------

    async def _close(self) -> None:
        self._server.close()
        tasks = [task for link in self._links for task in link.tasks]
        self._flowing.set()
        self._closing.set()
        self._abort_all()
        if tasks:
            await asyncio.wait(tasks, timeout=5)
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if rest:
            await asyncio.wait(rest, timeout=5)

    def _abort_all(self) -> None:
        for link in list(self._links):
            link.abort()

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if self._refusing:
            self.refusals += 1
            with suppress(OSError, EOFError):
                await self._answer_refusal(reader, client)
            client.transport.abort()
            return
        try:
            from_server, server = await asyncio.open_connection(*self._target)
        except OSError:
            client.transport.abort()
            return
        link = _Link(client, server)
        self._links.add(link)
        link.tasks = [
            asyncio.ensure_future(self._pump(link, reader, server, "client")),
            asyncio.ensure_future(self._pump(link, from_server, client, "server")),
        ]
        await asyncio.wait(link.tasks)
        self._links.discard(link)

    async def _answer_refusal(
        self, reader: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        if self._refusal is None:
            return
        while True:
            size = int.from_bytes(await reader.readexactly(4), "big")
            rest = await reader.readexactly(size - 4)
            if int.from_bytes(rest[:4], "big") not in _ENCRYPT:
                break
            client.write(b"N")
        client.write(self._refusal)
        client.write_eof()
        await client.drain()
        await reader.read()  # until the client has read it and leaves

    async def _pump(
        self,
        link: _Link,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        sender: Direction,
    ) -> None:
        try:
            while data := await reader.read(65_536):
                await self._flowing.wait()
                if sender == "client" and self._replaced and self._replaced[0] in data:
                    data = data.replace(*self._replaced)
                    self.replacements += 1
                if self._look(link, data, sender):
                    break
                if link.cutting and sender == "server":
                    if _COMMITTED in data:
                        self.cuts += 1
                        break
                    continue
                writer.write(data)
                await writer.drain()
        except (OSError, asyncio.CancelledError):
            pass
        # However one side ended, the other one ends too; in a black hole it does not hear of it.
        await self._flowing.wait()
        if link.hangs:
            await self._closing.wait()
        link.abort()

    def _look(self, link: _Link, data: bytes, sender: Direction) -> bool:
        """Take note of what goes by; true if the connection is to be reset at once."""
        if link.marked is None:
            for cut in self._cuts:
                if cut.times and cut.sent_by == sender and cut.marker in data:
                    if sender == "server" and cut.arrives and data.endswith(_IDLE):
                        # A statement that has committed by itself, and this is its answer.
                        cut.times -= 1
                        link.hangs = cut.hangs
                        self.cuts += 1
                        return True
                    link.marked = cut
        if (
            link.marked is not None
            and sender == "client"
            and not link.cutting
            and any(commit in data for commit in _COMMITS)
        ):
            cut, link.marked = link.marked, None
            if cut.times:
                cut.times -= 1
                link.hangs = cut.hangs
                link.cutting = cut.arrives
                self.cuts += not cut.arrives
                return not cut.arrives
        return False
