"""The engines of the command line: the application's own, named as ``module:object``, or of a URL.

An application may connect in ways that no URL can express: ``connect_args``, creators, listeners
and execution options. So each command that connects accepts the application's engine.
"""

import asyncio
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine
from sqlalchemy import pool as sqlalchemy_pool
from sqlalchemy.exc import DBAPIError

from .._db.errors import database_message, lost_connection, sqlstate
from .._db.frames import users_place
from ..exceptions import SchemaOutOfDate
from . import loader
from .exits import DATABASE, FAILED, SCHEMA, USAGE, CommandError
from .urls import database_url

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")

_POOLS: Final = sqlalchemy_pool.Pool.__module__


def load_engine(target: str, app_dir: Path) -> "Engine | AsyncEngine":
    """Load the application's own Engine or AsyncEngine.

    Raises:
        CommandError: It can't be found, or is something else.
    """
    found = loader.load(target, app_dir, example="app:engine")
    # Without greenlet there is no AsyncEngine, and its module must not be imported.
    if isinstance(found, Engine) or isinstance(getattr(found, "sync_engine", None), Engine):
        return cast("Engine | AsyncEngine", found)
    raise CommandError(
        USAGE, f"{target!r} is of type {type(found).__name__!r}, not Engine or AsyncEngine"
    )


def load_sync_engine(target: str, app_dir: Path) -> Engine:
    """Load the application's own Engine for functions.

    Raises:
        CommandError: It can't be found, or is something else.
    """
    found = loader.load(target, app_dir, example="app:sync_engine")
    if isinstance(found, Engine):
        return found
    raise CommandError(USAGE, f"{target!r} is of type {type(found).__name__!r}, not Engine")


def run_in_transaction(
    url: str | None, target: str | None, app_dir: Path, action: Callable[[Connection], T]
) -> T:
    """As :func:`run_connected`, with *action* in one transaction."""

    def act(connection: Connection) -> T:
        with connection.begin():
            return action(connection)

    return run_connected(url, target, app_dir, act)


def run_connected(
    url: str | None, target: str | None, app_dir: Path, action: Callable[[Connection], T]
) -> T:
    """Connect by any driver, and run *action*; its result. Transactions are READ COMMITTED.

    Args:
        url: Where to connect; not used with *target*.
        target: Names an engine of the application, see :func:`load_engine`.
        app_dir: Where to look for modules after Python's own path.
        action: Gets the connection; it begins and ends its own transactions.

    Raises:
        CommandError: There is no such engine, the database refuses, or the schema is out of date.
    """
    connected = False

    def act(connection: Connection) -> T:
        nonlocal connected
        connected = True
        # Over the engine's own level: under AUTOCOMMIT half a migration could stay.
        connection.execution_options(isolation_level="READ COMMITTED")
        return action(connection)

    async def run(engine: "AsyncEngine") -> T:
        try:
            async with engine.connect() as connection:
                return await connection.run_sync(act)
        finally:
            await engine.dispose()

    try:
        engine = load_engine(target, app_dir) if target else _engine_for(database_url(url))
        if not isinstance(engine, Engine):
            return asyncio.run(run(engine))
        try:
            with engine.connect() as connection:
                return act(connection)
        finally:
            engine.dispose()
    except CommandError:
        raise
    except SchemaOutOfDate as error:
        raise CommandError(SCHEMA, str(error)) from None
    except Exception as error:
        # SQLAlchemy 2.0 does not wrap the errors that asyncpg raises when it connects.
        if isinstance(error, DBAPIError | OSError) or sqlstate(error) is not None:
            raise _database_error(error) from None
        if not connected:
            raise cant_connect(error, target) from None
        raise


def _engine_for(url: URL) -> "Engine | AsyncEngine":
    if url.get_driver_name() == "asyncpg":
        return make_async_engine(url, poolclass=NullPool)
    return create_engine(url, poolclass=NullPool)


def make_async_engine(url: URL, **options: Any) -> "AsyncEngine":
    """Make an AsyncEngine from a URL.

    Raises:
        CommandError: greenlet, which an AsyncEngine needs, is not installed, or the URL is wrong.
    """
    try:
        from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415

        return create_async_engine(url, **options)
    except (ImportError, ValueError) as error:
        if "greenlet" not in str(error):
            raise cant_connect(error, None) from None
        raise CommandError(
            USAGE, 'asyncio needs greenlet; pip install "sqlalchemy-bgjob[asyncio]"'
        ) from None


def _database_error(error: BaseException) -> CommandError:
    """The error in the database's words: no statement of a command holds the values of rows."""
    code = sqlstate(error)
    refused = code is None or lost_connection(error) or code[:2] in {"28", "3D"}
    problem = f"the database refuses: {database_message(error)}"
    if advice := _ADVICE.get(code or "", _ADVICE_OF_CONNECTING if code is None else None):
        problem = f"{problem}; {advice}"
    return CommandError(DATABASE if refused else FAILED, problem)


# psycopg does not tell the code of what it meets while it connects.
_ADVICE_OF_CONNECTING: Final = (
    "look whether the server runs and can be reached from here, and whether the URL's user, "
    "password and database are right"
)
_ADVICE: Final = {
    "28P01": "correct the URL's user or password",
    "28000": "correct the URL's user or password, or let the server's pg_hba.conf admit it",
    "3D000": "correct the URL's database, or create it",
    "42501": "sqlalchemy-bgjob grants prints what each kind of role needs, and only a role that "
    "may create tables can migrate",
    "42P01": "if a table of records is missing, run sqlalchemy-bgjob migrate --records",
    "53300": "try again, or raise the server's max_connections",
}
"""By SQLSTATE: what to do next."""


def failed_to_connect(error: BaseException) -> bool:
    """Whether an error was raised by what opens a connection: a driver, creator or listener."""
    return any(
        frame.f_code.co_name == "__connect" and frame.f_globals.get("__name__") == _POOLS
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def cant_connect(error: BaseException, target: str | None) -> CommandError:
    """The CommandError for an error raised while connecting, by a driver or the application.

    Their messages may quote the arguments, so passwords are masked.
    """
    problem = f"{type(error).__name__}: {database_message(error)}"
    if target is None:
        return CommandError(
            USAGE,
            f"the driver can't connect by this database URL: {problem}; correct the URL, or "
            f"name an engine of your own by --engine",
        )
    place = users_place(error)
    where = f" ({place})" if place else ""
    return CommandError(
        USAGE,
        f"the engine {target!r} can't connect: {problem}{where}; correct its URL, its "
        f"connect_args, or what makes its connections",
    )
