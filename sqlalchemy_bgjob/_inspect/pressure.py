"""How much of a queue waits for workers: by one statement, which autoscalers can run by themselves.

It is cheap however many jobs there are: each priority of the queue is found by one probe of the
claim's index, its first due job by another, and counting stops at :data:`MOST` rows.
"""

from dataclasses import dataclass
from typing import Any, Final

from .._db.targets import Unit, run_in
from .._drafts import validation
from ..models import Models
from .registered import ask, with_names

MOST: Final = 10_001
"""The most due jobs that are counted: more than 10,000."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """How much of a queue waits for workers. While the queue is paused, both numbers are 0."""

    due: int
    """How many jobs are due and not claimed; 10,001 means more than 10,000."""
    oldest_age: float
    """Seconds for which the first of them has been due; 0 if none is."""


def pressure(models: Models, target: Any, queue: str) -> Any:
    """See :meth:`BGJob.pressure`."""
    queue = validation.name("queue", queue)

    def work(unit: Unit) -> Pressure:
        where = models.schema, models.table_prefix
        (row,) = ask(unit.connection, _PRESSURE, *where, queue=queue)
        return Pressure(*row)

    return run_in(target, models, work, call="BGJob.pressure")


def pressure_sql(queue: str, *, schema: str | None, table_prefix: str) -> str:
    """A SELECT of one number, the due jobs of a queue, with all names and values in it."""
    literal = "'" + queue.replace("'", "''") + "'"
    if "\\" in literal:  # where standard_conforming_strings is off, it would escape something
        literal = "E" + literal.replace("\\", "\\\\")
    parts = with_names(_PRESSURE, schema, table_prefix).split(":queue")
    counted = literal.join(parts).rstrip()
    return f"SELECT due FROM ({counted}\n) AS pressure"  # noqa: S608 - all is quoted


# Not now(), which stands still in a transaction that goes on.
_PRESSURE: Final = """
  WITH RECURSIVE lanes AS (
    (SELECT priority FROM ONLY {job} WHERE queue = :queue AND priority >= -32768
     ORDER BY priority LIMIT 1)
    UNION ALL
    SELECT (SELECT min(following.priority) FROM ONLY {job} AS following
            WHERE following.queue = :queue AND following.priority >= -32768
              AND following.priority > lanes.priority)
    FROM lanes WHERE lanes.priority IS NOT NULL
  ), heads AS (
    SELECT head.next_run_at FROM lanes, LATERAL (
      SELECT one.next_run_at FROM ONLY {job} AS one
      WHERE one.queue = :queue AND one.priority = lanes.priority AND one.priority >= -32768
        AND one.next_run_at <= statement_timestamp() AND one.claimed_by IS NULL
      ORDER BY one.next_run_at LIMIT 1
    ) AS head
  ), few AS (
    SELECT 1 FROM lanes, LATERAL (
      SELECT 1 FROM ONLY {job} AS one
      WHERE one.queue = :queue AND one.priority = lanes.priority AND one.priority >= -32768
        AND one.next_run_at <= statement_timestamp() AND one.claimed_by IS NULL
      ORDER BY one.next_run_at LIMIT 10001
    ) AS due LIMIT 10001
  ), state AS (
    SELECT NOT EXISTS (
      SELECT 1 FROM ONLY {control} AS control
      WHERE control.queue = :queue AND control.key = '' AND control.paused_at IS NOT NULL
        AND (control.resume_at IS NULL OR control.resume_at > clock_timestamp())
    ) AS is_open
  )
  SELECT CASE WHEN is_open THEN (SELECT count(*) FROM few) ELSE 0 END AS due,
         CASE WHEN is_open THEN coalesce(
           (SELECT CAST(extract(epoch FROM statement_timestamp() - min(next_run_at)) AS float8)
            FROM heads), 0) ELSE 0 END AS oldest_age
  FROM state
"""
