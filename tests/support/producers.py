"""Every kind of session and connection that a job can be enqueued in, behind one face.

The face is asyncio's, so that one test body runs for all of them; the synchronous kinds answer
without waiting.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from support.databases import with_driver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")

SYNC = (
    "Session",
    "scoped_session",
    "Connection",
    "Engine",
    "SQLModel",
    "Flask",
)
ASYNC = ("AsyncSession", "async_scoped_session", "AsyncConnection", "AsyncEngine")
KINDS = (
    *(f"{kind}-psycopg" for kind in SYNC),
    "Session-psycopg2",
    "Connection-psycopg2",
    *(f"{kind}-{driver}" for driver in ("psycopg", "asyncpg") for kind in ASYNC),
)
UNITS = tuple(kind for kind in KINDS if "Engine" not in kind)
"""Those whose transaction is the caller's."""
FEW_UNITS = (
    "Session-psycopg",
    "Flask-psycopg",
    "Connection-psycopg2",
    "AsyncSession-asyncpg",
    "AsyncConnection-psycopg",
)
"""One for each way to join it, where the subject is above the target."""


class Producer:
    """A target, and its transaction."""

    def __init__(self, target: Any, engine: Engine) -> None:
        self.target = target
        self.engine = engine
        """The synchronous engine below, for events."""
        self._transaction: Any = None

    async def do(self, result: Any) -> Any:
        """The result of an enqueue in this target; awaited where it is a coroutine."""
        return await result if inspect.isawaitable(result) else result

    @property
    def is_session(self) -> bool:
        return hasattr(self.target, "add")

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        return await self.do(self.target.execute(statement, parameters))

    async def begin(self) -> None:
        """Open the transaction explicitly; sessions and connections do it by themselves too."""
        await self.do(self.target.begin())

    async def commit(self) -> None:
        await self.do(self.target.commit())

    async def rollback(self) -> None:
        await self.do(self.target.rollback())

    async def savepoint(self) -> Any:
        return await self.do(self.target.begin_nested())


@functools.lru_cache(maxsize=8)
def _engine(url: str) -> Engine:
    """It keeps what it has compiled for the next target, and no connection."""
    return create_engine(url)


@functools.lru_cache(maxsize=8)
def _async_engine(url: str) -> AsyncEngine:
    """The same for asyncio."""
    from sqlalchemy.ext.asyncio import create_async_engine

    return create_async_engine(url)


@asynccontextmanager
async def producer(kind: str, url: str) -> AsyncIterator[Producer]:
    """Open a target of a kind such as ``"Session-psycopg"``; what is not committed is undone."""
    name, driver = kind.split("-")
    if name in ASYNC:
        async with _async_producer(name, with_driver(url, driver)) as made:
            yield made
        return
    engine = _engine(with_driver(url, driver)).execution_options()  # its events are its own
    try:
        for made in _sync_producer(name, engine):
            yield made
    finally:
        engine.dispose()


def produce(kind: str, engine: Engine, body: Callable[[Producer], Awaitable[T]]) -> T:
    """What *body* makes of a target of this kind, in the engine's database."""

    async def main() -> T:
        async with producer(kind, engine.url.render_as_string(hide_password=False)) as made:
            return await body(made)

    return asyncio.run(main())


def _sync_producer(name: str, engine: Engine) -> Iterator[Producer]:
    match name:
        case "Session":
            with Session(engine) as session:
                yield Producer(session, engine)
        case "scoped_session":
            scoped = scoped_session(sessionmaker(engine))
            try:
                yield Producer(scoped, engine)
            finally:
                scoped.remove()
        case "Connection":
            with engine.connect() as connection:
                yield Producer(connection, engine)
        case "Engine":
            yield Producer(engine, engine)
        case "SQLModel":
            import sqlmodel

            with sqlmodel.Session(engine) as session:
                yield Producer(session, engine)
        case "Flask":
            yield from _flask(engine)
        case _:
            raise ValueError(name)


def _flask(engine: Engine) -> Iterator[Producer]:
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy

    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = engine.url.render_as_string(hide_password=False)
    db = SQLAlchemy(app)
    with app.app_context():
        try:
            yield Producer(db.session, db.engine)
        finally:
            db.session.remove()
            db.engine.dispose()


@asynccontextmanager
async def _async_producer(name: str, url: str) -> AsyncIterator[Producer]:
    from sqlalchemy.ext.asyncio import (
        AsyncSession,
        async_scoped_session,
        async_sessionmaker,
    )

    engine = _async_engine(url).execution_options()
    try:
        match name:
            case "AsyncSession":
                async with AsyncSession(engine) as session:
                    yield Producer(session, engine.sync_engine)
            case "async_scoped_session":
                scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: 1)
                try:
                    yield Producer(scoped, engine.sync_engine)
                finally:
                    await scoped.remove()
            case "AsyncConnection":
                async with engine.connect() as connection:
                    yield Producer(connection, engine.sync_engine)
            case "AsyncEngine":
                yield Producer(engine, engine.sync_engine)
            case _:
                raise ValueError(name)
    finally:
        await engine.dispose()


class Sent:
    """The statements that an engine or connection sends while this is open."""

    def __init__(self, target: Engine | Connection) -> None:
        self._target = target
        self.statements: list[str] = []

    def __enter__(self) -> Self:
        event.listen(self._target, "before_cursor_execute", self._note)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(self._target, "before_cursor_execute", self._note)

    def _note(self, connection: Any, cursor: Any, statement: str, *_: object) -> None:
        self.statements.append(statement)

    def inserts(self) -> list[str]:
        return [statement for statement in self.statements if "INSERT INTO" in statement]
