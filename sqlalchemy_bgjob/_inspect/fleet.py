"""The workers in full: what each serves and runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection

from .queues import LANES
from .registered import ask

MANY: Final = 1_000
"""How many jobs of a priority are looked at for those that run: its first ones."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A registered worker.

    Attributes:
        id, hostname, pid, version: Of its process.
        queues: How many slots it was started with, by queue.
        started_at, beat_at: When it registered, and its last heartbeat.
        silent_for: Seconds since that, by the server's clock.
        lease_timeout: Seconds of silence after which others take its jobs.
        lost: Whether they have done so.
        listens: Whether it hears of new jobs at once; else it polls.
        running: How many of its jobs were found.
        now: The server's clock.
    """

    id: int
    hostname: str
    pid: int
    version: str
    queues: dict[str, int]
    started_at: datetime
    beat_at: datetime
    silent_for: float
    lease_timeout: float
    lost: bool
    listens: bool
    running: int
    now: datetime

    @property
    def alive(self) -> bool:
        """Whether nobody may take its jobs."""
        return not self.lost and self.silent_for < self.lease_timeout


@dataclass(frozen=True, slots=True)
class Process:
    """Where a worker runs."""

    hostname: str
    pid: int


def workers(connection: Connection, schema: str | None, table_prefix: str) -> list[WorkerInfo]:
    """All workers, by host and process."""
    rows = ask(connection, _WORKERS, schema, table_prefix, many=MANY)
    return [WorkerInfo(**{**row._asdict(), "queues": _queues(row.queues)}) for row in rows]


def _queues(value: Any) -> dict[str, int]:
    """Only what a worker of this library writes."""
    if not isinstance(value, dict):
        return {}
    return {str(name): slots for name, slots in value.items() if isinstance(slots, int)}


def serving(
    connection: Connection, schema: str | None, table_prefix: str, queues: Iterable[str]
) -> dict[str, list[Process]]:
    """The processes of workers that beat and serve these queues, by queue; then by host and pid."""
    found: dict[str, list[Process]] = {}
    for queue, *process in ask(connection, _SERVING, schema, table_prefix, queues=[*queues]):
        found.setdefault(queue, []).append(Process(*process))
    return found


_SERVING: Final = """
    SELECT own.queue, worker.hostname, worker.pid
    FROM ONLY {worker} AS worker
    CROSS JOIN LATERAL jsonb_object_keys(CAST(worker.queues AS jsonb)) AS own (queue)
    WHERE own.queue = ANY(CAST(:queues AS text[])) AND worker.lost_at IS NULL
      AND clock_timestamp() - worker.beat_at < worker.lease_timeout * interval '1 second'
    ORDER BY worker.hostname, worker.pid
"""
_WORKERS: Final = (
    LANES  # noqa: S608 - two constants
    + """
    , served AS (
      SELECT DISTINCT own.queue FROM ONLY {worker} AS worker
      CROSS JOIN LATERAL jsonb_object_keys(CAST(worker.queues AS jsonb)) AS own (queue)
    ), held AS (
      SELECT claimed_by AS worker_id, count(*) AS running
      FROM lanes JOIN served USING (queue), LATERAL (
        SELECT claimed_by FROM ONLY {job} AS one
        WHERE one.queue = lanes.queue AND one.priority = lanes.priority
          AND one.priority >= -32768 AND one.next_run_at <= statement_timestamp()
        ORDER BY one.next_run_at LIMIT :many
      ) AS few
      WHERE claimed_by IS NOT NULL GROUP BY claimed_by
    )
    SELECT id, hostname, pid, version, queues, started_at, beat_at,
           CAST(extract(epoch FROM clock_timestamp() - beat_at) AS float8) AS silent_for,
           lease_timeout, lost_at IS NOT NULL AS lost, listener_pid IS NOT NULL AS listens,
           CAST(coalesce(held.running, 0) AS bigint) AS running, clock_timestamp() AS now
    FROM ONLY {worker} AS worker LEFT JOIN held ON held.worker_id = worker.id
    ORDER BY hostname, pid, id
"""
)
