"""Database URLs as users give them, and the driver that they mean.

A URL without a driver, as hosting platforms hand them out, means psycopg2 to SQLAlchemy 2.0 and
psycopg to 2.1, installed or not. Here it means the first of psycopg, asyncpg and psycopg2 that is
installed, and the log says which.
"""

import importlib.util
import logging
from typing import Final

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from .exits import USAGE, CommandError

logger = logging.getLogger("sqlalchemy_bgjob")

DRIVERS: Final = ("psycopg", "asyncpg", "psycopg2")
"""By preference: psycopg serves both threads and asyncio."""
ASYNC_DRIVERS: Final = frozenset({"psycopg", "psycopg_async", "asyncpg"})

_ASYNCPG_TAKES: Final = frozenset(
    {
        *("host", "port", "user", "password", "database", "passfile", "ssl", "direct_tls"),
        *("target_session_attrs", "command_timeout", "krbsrvname", "gsslib"),
        *("prepared_statement_cache_size", "plugin"),  # SQLAlchemy's
    }
)
"""URL parameters that asyncpg accepts as text; with any other it raises a TypeError."""
_LIBPQ_TAKES_TOO: Final = frozenset(
    {"host", "port", "passfile", "ssl", "target_session_attrs", "krbsrvname", "gsslib"}
)
"""Those that mean the same to libpq, where "ssl" is "sslmode"."""


def is_installed(module: str) -> bool:
    """Whether a top-level module could be imported."""
    return importlib.util.find_spec(module) is not None


def database_url(given: str | None) -> URL:
    """Parse a database URL, and make sure of a driver that is installed.

    Raises:
        CommandError: There is no URL, it is not for PostgreSQL, or its driver is not installed.
    """
    if not given:
        raise CommandError(
            USAGE,
            "no database; give --database-url postgresql+psycopg://user:password@host/database, "
            "or set DATABASE_URL",
        )
    not_understood = CommandError(
        USAGE,
        "the database URL is not understood; write it like "
        "postgresql+psycopg://user:password@host:5432/database, special characters of the "
        "password as %XX",
    )
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):  # their messages may quote the password
        raise not_understood from None
    if "@" in (url.host or ""):  # part of a password, which the driver's errors would quote
        raise not_understood
    backend, _, driver = url.drivername.partition("+")
    if backend not in {"postgresql", "postgres"}:
        raise CommandError(
            USAGE, f"the queue needs PostgreSQL, and the database URL is for {backend!r}"
        )
    if not driver:
        driver = _first_installed()
        logger.info("the database URL names no driver: using %s", driver)
    elif _module(driver) not in DRIVERS:
        raise CommandError(
            USAGE,
            f"the driver {driver!r} of the database URL is not known; use one of "
            f"{', '.join(DRIVERS)}",
        )
    elif not is_installed(_module(driver)):
        others = ", ".join(name for name in DRIVERS if is_installed(name)) or "none"
        raise CommandError(
            USAGE,
            f"the driver {driver!r} of the database URL is not installed; "
            f'pip install "sqlalchemy-bgjob[{_module(driver)}]" (installed: {others})',
        )
    url = url.set(drivername=f"postgresql+{driver}")
    return _for_asyncpg(url) if driver == "asyncpg" else url


def _for_asyncpg(url: URL) -> URL:
    """The URL with asyncpg's parameters; hosting platforms write those of libpq."""
    query = dict(url.query)
    if "sslmode" in query and "ssl" not in query:
        query["ssl"] = query.pop("sslmode")
    unknown = sorted(set(query) - _ASYNCPG_TAKES)
    if unknown:
        raise CommandError(
            USAGE,
            f"asyncpg takes no {', '.join(map(repr, unknown))} from a database URL; leave it out, "
            f"write postgresql+psycopg://, or name an engine of your own by --engine, with what "
            f"asyncpg has for it in connect_args",
        )
    return url.set(query=query)


def sync_url(url: URL) -> URL | None:
    """The same database through a driver for threads; None if no installed one can take the URL."""
    driver = url.get_driver_name()
    if driver != "asyncpg":
        return url
    for name in ("psycopg", "psycopg2"):
        if is_installed(name) and set(url.query) <= _LIBPQ_TAKES_TOO:
            query = {("sslmode" if key == "ssl" else key): v for key, v in url.query.items()}
            return url.set(drivername=f"postgresql+{name}", query=query)
    return None


def _module(driver: str) -> str:
    return "psycopg" if driver == "psycopg_async" else driver


def _first_installed() -> str:
    for driver in DRIVERS:
        if is_installed(driver):
            return driver
    raise CommandError(
        USAGE, 'no PostgreSQL driver is installed; pip install "sqlalchemy-bgjob[psycopg]"'
    )
