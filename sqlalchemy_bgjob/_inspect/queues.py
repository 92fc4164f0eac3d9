"""The queues that there are: their jobs and workers, and what operators have set."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection

from .._db.printable import printable
from .registered import ask

MANY: Final = 10_000
"""How many jobs of a priority are counted: of those that are scheduled, and of the others."""


@dataclass(frozen=True, slots=True)
class Paused:
    """A paused queue: since when, by whom, why, and until when."""

    queue: str
    at: datetime
    by: str | None
    reason: str | None
    until: datetime | None

    def __str__(self) -> str:
        by = f" by {printable(self.by)}" if self.by else ""
        until = f", until {shown(self.until)}" if self.until else ""
        reason = f": {printable(self.reason)}" if self.reason else ""
        return f"queue {self.queue!r} is paused since {shown(self.at)}{by}{until}{reason}"


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """A queue that has jobs, is served by a worker that beats, or has something set.

    Attributes:
        queue: Its name.
        due: How many of its jobs are due, as far as they are counted.
        scheduled: How many of its jobs are due later.
        running: How many of its jobs a worker holds.
        workers: How many workers serve it.
        slots: How many of its jobs these can run at once.
        set_slots: How many slots an operator has given each worker; None if nobody has.
        oldest_age: Seconds for which the first of its due jobs has been due; 0 if none is.
        stopped: Whether counting stopped before the last of its jobs, as there are too many.
        paused: Its pause; None if it is not paused.
    """

    queue: str
    due: int
    scheduled: int
    running: int
    workers: int
    slots: int
    set_slots: int | None
    oldest_age: float
    stopped: bool
    paused: Paused | None


def shown(moment: datetime) -> str:
    """A moment for people: in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def paused_queues(connection: Connection, schema: str | None, table_prefix: str) -> list[Paused]:
    """The queues that are paused now, by name."""
    return [Paused(*row) for row in ask(connection, _PAUSED, schema, table_prefix)]


def all_queues(
    connection: Connection,
    schema: str | None,
    table_prefix: str,
    *,
    many: int = MANY,
    most: int | None = None,
    lanes: int | None = None,
) -> list[QueueInfo]:
    """All queues, by name.

    Args:
        connection: In a transaction.
        schema: The tables' schema; None if they are on the search path.
        table_prefix: How the tables' names begin.
        many: How many jobs of a priority are counted, as for :data:`MANY`.
        most: How many of all priorities together: where there are so many that this is less, each
            has an equal part of it. By default there is no bound.
        lanes: Of how many queues and priorities, by name, jobs are counted; where there are more,
            counting has ``stopped``. By default there is no bound.
    """
    paused = {one.queue: one for one in paused_queues(connection, schema, table_prefix)}
    rows = ask(connection, _QUEUES, schema, table_prefix, many=many, most=most, lanes=lanes)
    return [QueueInfo(*(*row, paused.get(row.queue))) for row in rows]


_PAUSED: Final = """
    SELECT queue, paused_at, paused_by, pause_reason, resume_at
    FROM ONLY {control}
    WHERE key = '' AND paused_at IS NOT NULL
      AND (resume_at IS NULL OR resume_at > clock_timestamp())
    ORDER BY queue
"""
# A skip scan: one probe of the index for each queue and priority.
LANES: Final = """
    WITH RECURSIVE lanes AS (
      (SELECT queue, priority FROM ONLY {job} WHERE queue >= '' AND priority >= -32768
       ORDER BY queue, priority LIMIT 1)
      UNION ALL
      SELECT following.queue, following.priority FROM lanes, LATERAL (
        SELECT queue, priority FROM ONLY {job}
        WHERE queue >= lanes.queue AND priority >= -32768
          AND (queue, priority) > (lanes.queue, lanes.priority)
        ORDER BY queue, priority LIMIT 1
      ) AS following
    )
"""
"""How a statement begins that reads the lanes of all queues."""
_QUEUES: Final = (
    LANES  # noqa: S608 - two constants
    + """
    , counted AS (
      SELECT queue, priority FROM lanes LIMIT CAST(:lanes AS bigint)
    ), bound AS (
      SELECT greatest(least(CAST(:many AS bigint), CAST(:most AS bigint) / greatest(count(*), 1)),
                      1) AS each,
             coalesce(count(*) = CAST(:lanes AS bigint), false) AS is_full
      FROM counted
    ), jobs AS (
      SELECT lanes.queue, sum(begun.due) AS due, sum(later.scheduled) AS scheduled,
             sum(begun.running) AS running, min(begun.oldest) AS oldest,
             bool_or(greatest(begun.due + begun.running, later.scheduled)
                     >= (SELECT each FROM bound))
               OR (SELECT is_full FROM bound) AS stopped
      FROM counted AS lanes, LATERAL (
        SELECT count(*) FILTER (WHERE claimed_by IS NULL) AS due, count(claimed_by) AS running,
               min(next_run_at) FILTER (WHERE claimed_by IS NULL) AS oldest
        FROM (
          SELECT claimed_by, next_run_at FROM ONLY {job} AS one
          WHERE one.queue = lanes.queue AND one.priority = lanes.priority
            AND one.priority >= -32768 AND one.next_run_at <= statement_timestamp()
          ORDER BY one.next_run_at LIMIT (SELECT each FROM bound)
        ) AS few
      ) AS begun, LATERAL (
        SELECT count(*) AS scheduled FROM (
          SELECT 1 FROM ONLY {job} AS one
          WHERE one.queue = lanes.queue AND one.priority = lanes.priority
            AND one.priority >= -32768 AND one.next_run_at > statement_timestamp()
          ORDER BY one.next_run_at LIMIT (SELECT each FROM bound)
        ) AS few
      ) AS later
      GROUP BY lanes.queue
    ), given AS (
      SELECT queue, slots FROM ONLY {control}
      WHERE key = '' AND (slots IS NOT NULL OR paused_at IS NOT NULL
        AND (resume_at IS NULL OR resume_at > clock_timestamp()))
    ), served AS (
      SELECT own.key AS queue, count(*) AS workers,
             sum(coalesce(given.slots, CAST(own.value AS integer))) AS slots
      FROM ONLY {worker} AS worker
      CROSS JOIN LATERAL jsonb_each_text(CAST(worker.queues AS jsonb)) AS own
      LEFT JOIN given ON given.queue = own.key
      WHERE worker.lost_at IS NULL
        AND clock_timestamp() - worker.beat_at < worker.lease_timeout * interval '1 second'
      GROUP BY own.key
    )
    SELECT queue, CAST(coalesce(jobs.due, 0) AS bigint) AS due,
           CAST(coalesce(jobs.scheduled, 0) AS bigint) AS scheduled,
           CAST(coalesce(jobs.running, 0) AS bigint) AS running,
           CAST(coalesce(served.workers, 0) AS bigint) AS workers,
           CAST(coalesce(served.slots, 0) AS bigint) AS slots, given.slots AS set_slots,
           coalesce(CAST(extract(epoch FROM statement_timestamp() - jobs.oldest) AS float8), 0)
             AS oldest_age,
           coalesce(jobs.stopped, false) AS stopped
    FROM jobs FULL JOIN served USING (queue) FULL JOIN given USING (queue)
    ORDER BY queue
"""
)
