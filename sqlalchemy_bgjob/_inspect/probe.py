"""``sqlalchemy-bgjob check``: whether the workers of one host beat."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from .._db.encodings import storable
from ..schema import check
from ..schema._versions import qualified, translated


@dataclass(frozen=True, slots=True)
class Beating:
    """A registered worker.

    Attributes:
        id: Its id.
        pid: That of its process.
        seconds: Since its last heartbeat, by the server's clock.
        lease_timeout: Seconds of silence after which others take its jobs.
        lost: Whether they have done so.
    """

    id: int
    pid: int
    seconds: float
    lease_timeout: float
    lost: bool

    @property
    def alive(self) -> bool:
        """Whether nobody may take its jobs."""
        return not self.lost and self.seconds < self.lease_timeout


def workers_of(
    connection: Connection, *, schema: str | None, table_prefix: str, host: str, pid: int | None
) -> list[Beating]:
    """The workers of a host, or of one of its processes; the latest heartbeat first.

    Raises:
        SchemaOutOfDate: The tables are missing or of another version.
    """
    check(connection, schema=schema, table_prefix=table_prefix)
    worker = qualified(translated(connection, schema), f"{table_prefix}worker")
    given = {"host": storable(connection, host), "pid": pid}
    rows = connection.execute(text(_WORKERS.format(worker=worker)), given)
    return [Beating(*row) for row in rows]


_WORKERS: Final = """
    SELECT id, pid, CAST(extract(epoch FROM clock_timestamp() - beat_at) AS float8),
           lease_timeout, lost_at IS NOT NULL
    FROM ONLY {worker}
    WHERE hostname = :host AND pid = coalesce(CAST(:pid AS integer), pid)
    ORDER BY beat_at DESC
"""
