"""The line that a worker logs at its start: version, kind, database, queues and handlers."""

import logging
from collections.abc import Mapping
from typing import Final

from sqlalchemy import URL

from ._registry import Registry
from ._version import __version__

logger = logging.getLogger("sqlalchemy_bgjob")

_MOST_NAMED: Final = 20


def log_start(kind: str, url: URL, queues: Mapping[str, int], registry: Registry) -> None:
    """Log it, at INFO.

    Args:
        kind: What the worker runs handlers in.
        url: Of its engine; the password is not shown, nor any other parameter.
        queues: Concurrency by queue.
        registry: The handlers.
    """
    logger.info(
        "worker of %s, sqlalchemy-bgjob %s: %s; queues %s; handlers %s",
        kind,
        __version__,
        describe_database(url),
        ", ".join(f"{name}:{slots}" for name, slots in sorted(queues.items())),
        describe_handlers(registry),
    )


def describe_database(url: URL) -> str:
    """A database by name and host."""
    name = f"database {url.database!r}" if url.database else "the driver's default database"
    given = url.query.get("host", ())
    hosts = [given] if isinstance(given, str) else list(given)
    if not hosts and url.host:
        # After the last "@": before it is the rest of a password that was not escaped.
        host = url.host.rpartition("@")[2]
        hosts = [host if url.port is None else f"{host}:{url.port}"]
    return f"{name} at {', '.join(hosts) or 'its default host'}"


def describe_handlers(registry: Registry) -> str:
    """The types of handlers; "*" is the default handler of a queue."""
    names = sorted(h.type if h.type != "*" else f"* (queue {h.queue})" for h in registry)
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
