"""Fire schedules: enqueue their jobs, and keep the rows of those in code as the code says.

Every worker that may fire a schedule tries to, and the first one has done it.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection

from .._drafts.ids import new_ids
from .._handlers.schedules import Definition
from .._handlers.timetable import Due
from .._sql import Statements
from .._sql.schedules import DEFINITION
from . import run

TOOK_OVER: Final = timedelta(seconds=60)
"""How long a row stays as another worker's code has left it, before this one's holds again. While
a deploy goes on there are workers of both, and without it they would change it at every look."""
LIMIT: Final = 100
"""How many schedules are looked at together."""


class Serves(NamedTuple):
    """Which schedules a worker may fire.

    Attributes:
        names: Those that it has in its code.
        queues: Of those put as rows, the ones whose jobs go to these queues, which it serves.
        types: And whose type is among these, which it knows,
        open_queues: or whose queue is among these, of which it knows all types.
    """

    names: list[str]
    queues: list[str]
    types: list[str]
    open_queues: list[str]


NO_SCHEDULES: Final = Serves([], [], [], [])


class Upcoming(NamedTuple):
    """A schedule that is not paused, and the server's time when it was read."""

    name: str
    cron: str
    timezone: str
    missed: str
    next_at: datetime
    now: datetime


def look_at_schedules(
    connection: Connection, statements: Statements, serves: Serves, *, left_out: Iterable[str] = ()
) -> list[Upcoming]:
    """The earliest schedules that a worker may fire, whether they are due or not. Commits."""
    given = {**serves._asdict(), "left_out": list(left_out), "limit": LIMIT}
    with connection.begin():
        rows: Any = run(connection, statements.schedules.due, **given).all()
    return [Upcoming(*row) for row in rows]


def fire(connection: Connection, statements: Statements, upcoming: Upcoming, due: Due) -> bool:
    """Enqueue what is due, and move the schedule on. Commits.

    Returns False if it has fired, changed, or been locked since it was looked at.
    """
    given = {
        "name": upcoming.name,
        "first": upcoming.next_at,
        "last": due.last,
        "following": due.following,
        "ids": new_ids(len(due.fire_times)),
        "fire_times": [at.isoformat() for at in due.fire_times],
    }
    with connection.begin():
        return run(connection, statements.schedules.fire, **given).first() is not None


def keep_code(
    connection: Connection,
    statements: Statements,
    definitions: Iterable[Definition],
    *,
    starting: bool,
) -> list[str]:
    """Add the schedules of the code that have no row, and change rows that differ. Commits.

    Args:
        connection: Idle, outside a transaction.
        statements: Those of the tables.
        definitions: What the code says.
        starting: Whether the worker has just started; otherwise a row that differs stays for a
            while, in case it was changed by a worker of a newer release.

    Returns:
        Those that are not kept, as a row that a user has put has their name.
    """
    schedules = statements.schedules
    by_name = {made.name: made for made in definitions}
    with connection.begin():
        found = run(connection, schedules.in_code, names=list(by_name)).mappings().all()
    rows = {row["name"]: row for row in found}
    for name, made in by_name.items():
        row = rows.get(name)
        if row is None:
            with connection.begin():
                now = connection.execute(schedules.now).scalar_one()
                given = {**made.columns(), "next_at": made.timetable.after(now)}
                run(connection, schedules.add, **given)
        elif row["source"] == "code" and _differs(made, row):
            if not starting and row["now"] - row["updated_at"] < TOOK_OVER:
                continue
            given = {**made.columns(), "next_at": _next_at(made, row)}
            seen = {"seen_at": row["updated_at"], "seen_next_at": row["next_at"]}
            with connection.begin():
                run(connection, schedules.change, **given, **seen)
    return sorted(name for name, row in rows.items() if row["source"] != "code")


def _differs(made: Definition, row: Any) -> bool:
    return any(value != row[name] for name, value in made.columns().items() if name in DEFINITION)


def _next_at(made: Definition, row: Any) -> datetime | None:
    """When a changed schedule fires next; a time that is due already is still met."""
    next_at: datetime | None = row["next_at"]
    if next_at is None or next_at <= row["now"]:
        return next_at
    if (made.cron, made.timezone) == (row["cron"], row["timezone"]):
        return next_at
    last_at = row["last_at"]
    return made.timetable.after(row["now"] if last_at is None else max(row["now"], last_at))
