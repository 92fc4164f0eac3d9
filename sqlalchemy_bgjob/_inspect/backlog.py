"""What waits in all queues, and who serves them: one look of the leader, for monitoring."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from .queues import QueueInfo, all_queues
from .registered import ask

MOST_DEAD: Final = 100_000
"""The most dead jobs that are counted: there is no end to them, and the look must stay cheap."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in all queues of these tables, whoever serves them."""

    queues: tuple[QueueInfo, ...]
    """The queues by name, each with its jobs, its workers, its slots and its pause."""
    dead: int
    """How many dead jobs there are, counted up to 100,000."""
    workers: int
    """How many workers beat."""
    valid_for: float
    """Seconds for which it holds; if no other one follows by then, another worker is the leader."""


def look(
    connection: Connection, schema: str | None, table_prefix: str, *, interval: float
) -> Backlog:
    """Look at all queues; the caller ends the transaction. *interval* is that of the looks."""
    queues = all_queues(connection, schema, table_prefix)
    ((dead, workers),) = ask(connection, _COUNTS, schema, table_prefix, most=MOST_DEAD)
    return Backlog(tuple(queues), dead, workers, 2.0 * interval + 5.0)


_COUNTS: Final = """
    SELECT (SELECT count(*) FROM (SELECT job_id FROM ONLY {dead_job} LIMIT :most) AS few),
           (SELECT count(*) FROM ONLY {worker}
            WHERE lost_at IS NULL
              AND clock_timestamp() - beat_at < lease_timeout * interval '1 second')
"""
