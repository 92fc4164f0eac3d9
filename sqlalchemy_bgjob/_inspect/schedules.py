"""The schedules as their rows have them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, column

from .._sql.words import moment
from .registered import ask


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """A schedule: what it enqueues, when, and its pause if it has one.

    ``source`` is ``code`` or ``data``. ``next_at`` is None while it is paused.
    """

    name: str
    source: str
    type: str
    queue: str
    cron: str
    timezone: str
    missed: str
    overlap: str
    next_at: datetime | None
    last_at: datetime | None
    paused_at: datetime | None
    paused_by: str | None
    pause_reason: str | None
    now: datetime


def schedules(
    connection: Connection, schema: str | None, table_prefix: str, *, most: int
) -> list[ScheduleInfo]:
    """Up to *most* schedules, by name."""
    return [ScheduleInfo(*row) for row in ask(connection, _ALL, schema, table_prefix, most=most)]


_TIMES: Final = ", ".join(str(moment(column(name))) for name in ("next_at", "last_at", "paused_at"))
_ALL: Final = f"""
    SELECT name, source, type, queue, cron, timezone, missed, overlap, {_TIMES},
           paused_by, pause_reason, clock_timestamp()
    FROM ONLY {{schedule}} ORDER BY name LIMIT :most
"""  # noqa: S608 - no value is in it
