"""The registered workers, and how a statement of this room names the queue's tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, text

from .._db.encodings import storable
from ..schema._names import qualified, translated
from ..schema._records_1 import RECORD_KINDS
from ..schema._table_kinds import KINDS


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered worker.

    Attributes:
        id: Its id.
        pid: That of its process.
        hostname: Where that runs.
        seconds: Since its last heartbeat, by the server's clock.
        lease_timeout: Seconds of silence after which others take its jobs.
        lost: Whether they have done so.
    """

    id: int
    pid: int
    hostname: str
    seconds: float
    lease_timeout: float
    lost: bool

    @property
    def alive(self) -> bool:
        """Whether nobody may take its jobs."""
        return not self.lost and self.seconds < self.lease_timeout


def registered(
    connection: Connection,
    schema: str | None,
    table_prefix: str,
    *,
    host: str | None = None,
    pid: int | None = None,
) -> list[Registered]:
    """All workers, or those of a host or of one process; the latest heartbeat first."""
    given = {"host": storable(connection, host), "pid": pid}
    return [Registered(*row) for row in ask(connection, _WORKERS, schema, table_prefix, **given)]


def ask(
    connection: Connection, sql: str, schema: str | None, table_prefix: str, **given: Any
) -> Sequence[Any]:
    """The rows of a statement in which ``{job}``, ``{worker}`` and the like stand for tables."""
    where = translated(connection, schema)
    named = with_names(sql, where, table_prefix, for_text=True)
    return connection.execute(text(named), given).all()


def with_names(sql: str, schema: str | None, table_prefix: str, *, for_text: bool = False) -> str:
    """A statement with the tables' names in it; text() would take a colon there for a parameter."""
    names = {kind: qualified(schema, f"{table_prefix}{kind}") for kind in (*KINDS, *RECORD_KINDS)}
    colon = "\\:" if for_text else ":"
    return sql.format(**{kind: name.replace(":", colon) for kind, name in names.items()})


_WORKERS: Final = """
    SELECT id, pid, hostname, CAST(extract(epoch FROM clock_timestamp() - beat_at) AS float8),
           lease_timeout, lost_at IS NOT NULL
    FROM ONLY {worker}
    WHERE hostname = coalesce(CAST(:host AS text), hostname)
      AND pid = coalesce(CAST(:pid AS integer), pid)
    ORDER BY beat_at DESC
"""
