"""Fire schedules: enqueue their jobs, and keep the rows of those in code as the code says.

Every worker that may fire a schedule tries to, and the first one has done it.
"""

import logging
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection

from .._db.errors import doubts_session
from .._drafts.ids import new_ids
from .._handlers.schedules import Definition
from .._handlers.timetable import Due, Gap, Times, Timetable, begin, set_right, timetable
from .._sql import Statements
from .._sql.schedules import GAP
from . import run

logger = logging.getLogger("sqlalchemy_bgjob")

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
    next_at: Any  # a datetime, or None if it is astray
    last_at: datetime | None
    missed_from: datetime | None
    missed_until: datetime | None
    updated_at: datetime | None
    now: datetime

    @property
    def is_astray(self) -> bool:
        """Whether it will not fire in time; see ``FireStatements.astray``."""
        if self.next_at is None:
            return True
        gap = self.gap
        return gap is not None and gap.is_ahead(self.now) and gap.end <= self.next_at

    @property
    def gap(self) -> Gap | None:
        """The fire times that have passed unmet."""
        return gap_of(self)


def gap_of(row: Any) -> Gap | None:
    """The gap that the row of a schedule has."""
    return None if row.missed_until is None else Gap(row.missed_from, row.missed_until)


def columns_of(times: Times) -> dict[str, datetime | None]:
    """The times of a schedule by the names of their columns."""
    missed_from, missed_until = times.gap or (None, None)
    return {"next_at": times.next_at, "missed_from": missed_from, "missed_until": missed_until}


def times_of(table: Timetable, row: Any, *, meets_due: bool = False) -> dict[str, datetime | None]:
    """The times of a row that gets this timetable, as columns.

    It keeps them if it has that timetable already, or is paused; with *meets_due*, also if its time
    has come.
    """
    is_due = meets_due and row.next_at is not None and row.next_at <= row.now
    as_before = (table.expression, table.timezone) == (row.cron, row.timezone)
    if row.is_paused or is_due or (as_before and row.next_at is not None):
        return {name: getattr(row, name) for name in ("next_at", *GAP)}
    return columns_of(begin(table, row.now, gap_of(row), row.last_at))


def look_at_schedules(
    connection: Connection,
    statements: Statements,
    serves: Serves,
    *,
    left_out: Iterable[str] = (),
    astray: bool = False,
) -> list[Upcoming]:
    """The earliest schedules that a worker may fire, whether they are due or not. Commits.

    Or those that are *astray*: they will not fire in time, and :func:`put_right` mends them.
    """
    given = {**serves._asdict(), "left_out": list(left_out), "limit": LIMIT}
    its = statements.fire
    with connection.begin():
        rows: Any = run(connection, its.astray if astray else its.due, **given).all()
    return [Upcoming(*row) for row in rows]


def put_right(connection: Connection, statements: Statements, astray: Upcoming) -> None:
    """Give a schedule that would not fire in time its next time. Commits.

    Unless it was fired, paused, changed or locked since it was looked at.

    Raises:
        ValueError: Its expression or its zone is not known here.
    """
    table = timetable(astray.cron, astray.timezone)
    times = set_right(table, astray.now, astray.gap, astray.last_at, astray.updated_at)
    seen = {"name": astray.name, "seen_next_at": astray.next_at}
    with connection.begin():
        done = run(connection, statements.fire.set_right, **seen, **columns_of(times)).first()
    if done is not None:
        logger.warning(
            "the schedule %r fires next at %s, and not at %s: the server's clock had been ahead, "
            "or somebody has changed the row",
            astray.name,
            times.next_at,
            astray.next_at,
        )


def fire(connection: Connection, statements: Statements, upcoming: Upcoming, due: Due) -> bool:
    """Enqueue what is due, and move the schedule on. Commits.

    Returns False if it has fired, changed, or been locked since it was looked at.
    """
    gap = due.gap or (None, None)
    given = {
        "name": upcoming.name,
        "first": upcoming.next_at,
        "missed_from": gap[0],
        "missed_until": gap[1],
        "last": due.last,
        "following": due.following,
        "ids": new_ids(len(due.fire_times)),
        "fire_times": [at.isoformat() for at in due.fire_times],
    }
    with connection.begin():
        return run(connection, statements.fire.fire, **given).first() is not None


def keep_code(
    connection: Connection,
    statements: Statements,
    definitions: Iterable[Definition],
    *,
    starting: bool,
    on_refusal: Callable[[str, Exception], None] | None = None,
) -> list[str]:
    """Add the schedules of the code that have no row, and change rows that differ. Commits.

    Args:
        connection: Idle, outside a transaction.
        statements: Those of the tables.
        definitions: What the code says.
        starting: Whether the worker has just started; otherwise a row that differs stays for a
            while, in case it was changed by a worker of a newer release.
        on_refusal: Called with the name of one whose row is refused, as by a constraint, and the
            error; the others are kept all the same. By default the error is raised.

    Returns:
        Those that are not kept, as a row that a user has put has their name.
    """
    by_name = {made.name: made for made in definitions}
    with connection.begin():
        found = run(connection, statements.fire.in_code, names=list(by_name)).all()
    rows: dict[str, Any] = {row.name: row for row in found}
    taken = sorted(name for name, row in rows.items() if row.source != "code")
    for name, made in by_name.items():
        if name in taken:
            continue
        try:
            _keep(connection, statements, made, rows.get(name), starting=starting)
        except Exception as error:
            if on_refusal is None or doubts_session(error):
                raise  # it would be the same with the others
            on_refusal(name, error)
    return taken


def _keep(
    connection: Connection, statements: Statements, made: Definition, row: Any, *, starting: bool
) -> None:
    """Keep one of the code, whose row is as it was read, or None."""
    its = statements.fire
    if row is None:
        with connection.begin():
            now = connection.execute(statements.schedules.now).scalar_one()
            given = made.columns() | columns_of(begin(made.timetable, now))
            run(connection, its.add, **given)
    elif _differs(made, row):
        if not starting and _was_just_changed(row):
            return
        given = made.columns() | times_of(made.timetable, row, meets_due=True)
        seen = {"seen_at": row.updated_at, "seen_next_at": row.next_at}
        with connection.begin():
            run(connection, its.change, **given, **seen)
    elif not row.is_paused:
        seen_now = Upcoming(*(getattr(row, name) for name in Upcoming._fields))
        if seen_now.is_astray:
            put_right(connection, statements, seen_now)


def _was_just_changed(row: Any) -> bool:
    changed_at: datetime | None = row.updated_at
    # In both directions: if the server's clock had been ahead, that change may be of last year.
    return changed_at is not None and abs(row.now - changed_at) < TOOK_OVER


def _differs(made: Definition, row: Any) -> bool:
    return any(value != getattr(row, name) for name, value in made.columns().items())
