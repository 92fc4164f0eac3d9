"""One look at all that moves: queues, workers, running jobs, and how fast jobs come and go."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, text

from .._sql import Statements
from .._sql.search_terms import parse
from ..models import Models
from ..schema._names import qualified, translated
from .fleet import WorkerInfo, workers
from .jobs import JobInfo, live_page
from .queues import QueueInfo, all_queues

_MOST_RUNNING: Final = 50
"""How many running jobs are read."""
_SCAN: Final = 2_000
"""How many jobs are looked at for those that run: they were due before most others."""


@dataclass(frozen=True, slots=True)
class Glance:
    """What one look has seen.

    Attributes:
        now: The server's clock.
        queues: All queues; those that are furthest behind first.
        workers: All registered workers, by host and process.
        running: Running jobs, up to so many; those that were due first at the top.
        inserted, deleted: How many jobs have ever come into the table of live jobs and left it, by
            the server's statistics, which are a second late. They begin anew after a crash.
    """

    now: datetime
    queues: list[QueueInfo]
    workers: list[WorkerInfo]
    running: list[JobInfo]
    inserted: int
    deleted: int


@dataclass(frozen=True, slots=True)
class Rates:
    """What has changed a second, between two looks.

    Attributes:
        arrived, left: Jobs that came into the table of live jobs, and that left it.
        growth: By how many jobs each queue has grown, of those that were counted in full.
    """

    arrived: float
    left: float
    growth: Mapping[str, float]


def glance(connection: Connection, models: Models, statements: Statements) -> Glance:
    """Look at everything; the caller ends the transaction."""
    tables = models.schema, models.table_prefix
    name = qualified(translated(connection, models.schema), f"{models.table_prefix}job")
    now, inserted, deleted = connection.execute(_COUNTERS, {"job": name}).one()
    queues = sorted(all_queues(connection, *tables), key=lambda one: -one.oldest_age)
    page = live_page(connection, statements, parse("state:running"), size=_MOST_RUNNING, scan=_SCAN)
    return Glance(now, queues, workers(connection, *tables), page.rows, inserted, deleted)


def rates(before: Glance, after: Glance) -> Rates | None:
    """What has changed a second; None if that is unknown, as after a restart of the statistics."""
    seconds = (after.now - before.now).total_seconds()
    arrived, left = after.inserted - before.inserted, after.deleted - before.deleted
    if seconds <= 0 or arrived < 0 or left < 0:
        return None
    sizes = {one.queue: _size(one) for one in before.queues if not one.stopped}
    growth = {
        one.queue: (_size(one) - sizes[one.queue]) / seconds
        for one in after.queues
        if one.queue in sizes and not one.stopped
    }
    return Rates(arrived / seconds, left / seconds, growth)


def _size(queue: QueueInfo) -> int:
    return queue.due + queue.scheduled + queue.running


_COUNTERS: Final = text(
    "SELECT clock_timestamp() AS now, pg_stat_get_tuples_inserted(job) AS inserted,"
    " pg_stat_get_tuples_deleted(job) AS deleted FROM to_regclass(CAST(:job AS text)) AS job"
)
