"""What a worker logs at its start: version, kind, database, queues, handlers; or that it waits."""

import logging
from collections.abc import Collection, Mapping
from typing import Final

from sqlalchemy import Engine

from .._db.connections import connects_by_url
from .._db.printable import enumerated
from .._handlers.registry import Registry
from .._version import __version__

logger = logging.getLogger("sqlalchemy_bgjob")

START_TIMEOUT: Final = 10.0
"""Seconds for which a start waits until the worker is registered."""


def log_start(
    kind: str,
    engine: Engine,
    queues: Mapping[str, int],
    registry: Registry,
    *,
    by_time: Collection[str] = (),
) -> None:
    """Log the start line, at INFO.

    Args:
        kind: What the worker runs handlers in.
        engine: Its URL tells the database; no password is shown, nor any other parameter.
        queues: Concurrency by queue.
        registry: The handlers.
        by_time: The queues that are read by time.
    """
    logger.info(
        "worker of %s, sqlalchemy-bgjob %s: %s; queues %s; handlers %s",
        kind,
        __version__,
        describe_database(engine),
        enumerated(
            f"{name}:{slots}{':time' if name in by_time else ''}"
            for name, slots in sorted(queues.items())
        ),
        describe_handlers(registry),
    )


def describe_database(engine: Engine) -> str:
    """The database's name and host as in the URL, and nothing more of it."""
    if not connects_by_url(engine):
        return "the database that the engine's creator connects to"
    url = engine.url
    given = url.query.get("host", ())
    hosts = [given] if isinstance(given, str) else list(given)
    if not hosts and url.host:
        # Only after the last "@": before it may be the rest of a password that was not escaped.
        host = url.host.rpartition("@")[2]
        hosts = [host if url.port is None else f"{host}:{url.port}"]
    if not hosts and not url.database:
        # connect_args, a listener or the driver's defaults may name it.
        return "a database that the URL does not name"
    name = f"database {url.database!r}" if url.database else "a database"
    return f"{name} at {', '.join(hosts)}" if hosts else name


def describe_handlers(registry: Registry) -> str:
    """The types of handlers; "*" is the default handler of a queue."""
    names = sorted(h.type if h.type != "*" else f"* (queue {h.queue})" for h in registry)
    return enumerated(names)


def say_it_waits() -> None:
    """Log that a start returns before the worker is registered."""
    logger.warning(
        "the worker has not begun within %g s, as the database can't be worked on yet; "
        "it goes on trying, and observers hear why",
        START_TIMEOUT,
    )
