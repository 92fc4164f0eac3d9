"""Applications for the command line: one of functions, one of coroutines, one of both.

All share the same table names, so each test uses one of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
from sqlalchemy import MetaData, Text, create_engine, event, make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlalchemy_bgjob import BGJob, Context, constant
from support.databases import with_driver
from support.tables import new_queue
from support.waiting import wait_until, wait_until_async

if TYPE_CHECKING:
    from collections.abc import Iterator

POISON_ATTEMPTS = 4

metadata = MetaData()


class Base(DeclarativeBase):
    metadata = metadata


class Note(Base):
    """What a job has done."""

    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    words: Mapped[str] = mapped_column(Text)


functions = BGJob(Base)
coroutines = new_queue()
both = new_queue()
nothing = new_queue()


def make_functions() -> BGJob[Any, Any]:
    return functions


def say_started(folder: str) -> None:
    Path(folder, "started").touch()


class OwnSession(Session):
    """The application's own class."""


class OwnAsyncSession(AsyncSession):
    """The same for coroutines."""


own_sessions = sessionmaker(class_=OwnSession)
own_async_sessions = async_sessionmaker(class_=OwnAsyncSession)


def engine() -> Any:
    return create_engine(os.environ["APP_URL"], pool_size=5)


def async_engine() -> Any:
    return create_async_engine(os.environ["APP_URL"], pool_size=5)


def asyncpg_engine() -> Any:
    return create_async_engine(with_driver(os.environ["APP_URL"], "asyncpg"), pool_size=5)


def tenant_engine() -> Any:
    """Connects to the schema "tenant", which no URL says, and in AUTOCOMMIT."""
    return create_engine(
        os.environ["APP_URL"],
        isolation_level="AUTOCOMMIT",
        execution_options={"schema_translate_map": {None: "tenant"}},
    )


def tenant_asyncpg_engine() -> Any:
    """The same by a listener."""
    made = asyncpg_engine()

    @event.listens_for(made.sync_engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("SET LOCAL search_path = tenant")

    return made


def engine_of_one_loop() -> Any:
    """Its connections can be made in the event loop only that has made the first."""
    url = make_url(os.environ["APP_URL"]).set(drivername="postgresql")
    loops: list[Any] = []

    async def connect() -> Any:
        loops.append(asyncio.get_running_loop())
        if loops[-1] is not loops[0]:
            raise RuntimeError("this belongs to a different event loop")
        return await asyncpg.connect(url.render_as_string(hide_password=False))

    return create_async_engine("postgresql+asyncpg://", async_creator=connect, pool_size=5)


def misspelt_engine() -> Any:
    return create_async_engine(os.environ["APP_URL"], connect_args={"no_such": 3}, pool_size=5)


def misspelt_asyncpg_engine() -> Any:
    url = with_driver(os.environ["APP_URL"], "asyncpg")
    return create_async_engine(url, connect_args={"no_such": 3}, pool_size=5)


def tokenless_engine() -> Any:
    """An engine whose passwords are looked up where there are none."""
    made = async_engine()

    @event.listens_for(made.sync_engine, "do_connect")
    def look_up(*args: Any) -> None:
        raise LookupError("no token")

    return made


idle_engine = create_engine("postgresql+psycopg://h/d")
idle_asyncpg = create_async_engine("postgresql+asyncpg://h/d")


class Asgi:
    """What a web framework calls an application."""

    async def __call__(self, *args: object) -> None: ...


asgi = Asgi()


class FlaskLike:
    """Has a BGJob, and properties that work within a request only."""

    jobs = functions

    @property
    def engine(self) -> Any:
        raise RuntimeError("working outside of application context")


flask_like = FlaskLike()


async def make_later() -> BGJob[Any, Any]:
    return functions


@functions.handler("note")
@both.handler("note")
def note(ctx: Context[Session], words: str) -> None:
    """Write a row, and with which class of session."""
    ctx.session.add(Note(words=f"{words} {type(ctx.session).__name__}"))


@coroutines.handler("note")
@both.handler("anote")
async def async_note(ctx: Context[AsyncSession], words: str) -> None:
    ctx.session.add(Note(words=f"{words} {type(ctx.session).__name__}"))


@functions.handler("block")
def block(ctx: Context[Session], folder: str) -> None:
    """Say that it runs, and go on when it may."""
    say_started(folder)
    wait_until(Path(folder, "go").exists, 120)


@coroutines.handler("block")
async def async_block(ctx: Context[AsyncSession], folder: str) -> None:
    say_started(folder)
    await wait_until_async(Path(folder, "go").exists, 120)


@coroutines.handler("block_loop")
async def block_loop(ctx: Context[AsyncSession], folder: str) -> None:
    """A coroutine as none should be: the event loop stands still."""
    say_started(folder)
    wait_until(Path(folder, "go").exists, 120)


@coroutines.handler("deaf", timeout=0.05, grace=0.05, retry=constant(3600))
async def async_deaf(ctx: Context[AsyncSession]) -> None:
    """Goes on whatever it is told, until its process ends."""
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.01)


@contextmanager
def lifespan() -> Iterator[dict[str, int]]:
    """Yields what shows in which process it was entered."""
    yield {"pid": os.getpid()}


@functions.handler("log")
def log(ctx: Context[Session], words: str) -> None:
    """Log what the worker's lifespan has yielded, and whatever else."""
    logging.getLogger("shop").info("%s, state %s", words, ctx.state)


@functions.handler("fail")
def fail(ctx: Context[Session], words: str) -> None:
    raise ValueError(words)


@functions.handler("kill")
def kill(ctx: Context[Session]) -> None:
    """A job that takes its process down at its first attempt."""
    if ctx.job.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()


@functions.handler("poison", max_attempts=POISON_ATTEMPTS)
def poison(ctx: Context[Session]) -> None:
    """A job that takes its process down whenever it runs."""
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
