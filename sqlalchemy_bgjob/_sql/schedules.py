"""SQL of what users do to schedules, and what all statements of schedules are made of.

How workers fire them is in :mod:`.fire`.
"""

from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Executable,
    LargeBinary,
    Select,
    SmallInteger,
    Text,
    any_,
    cast,
    delete,
    func,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.types import TypeEngine

from .words import ONLY, Tables, array_parameter, moment, parameter, woken_by

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEDULE_HEADER: Final = "bgjob-schedule"
"""The header of a job that names the schedule which has enqueued it."""
FIRE_TIME_HEADER: Final = "bgjob-fire-time"
"""The header that says for which fire time, as ISO 8601 in UTC."""
CHANGED: Final = ""
"""What is notified on the channel of jobs that were given back when schedules have changed: the
payload there is the name of a queue, and no queue has this one."""

_TYPES: Final[dict[str, TypeEngine[Any]]] = {
    "name": Text(),
    "type": Text(),
    "queue": Text(),
    "priority": SmallInteger(),
    "arg": LargeBinary(),
    "headers": JSONB(none_as_null=True),
    "cron": Text(),
    "timezone": Text(),
    "missed": Text(),
    "overlap": Text(),
}
DEFINITION: Final = tuple(_TYPES)
"""The columns that the author of a schedule decides."""
GAP: Final = ("missed_from", "missed_until")
"""The columns of its gap."""
TIMES: Final = ("next_at", "last_at", *GAP)
"""The columns from which the times of a schedule follow."""


def given_moment(name: str) -> ColumnElement[Any]:
    """A parameter that is a time, or null."""
    type_ = DateTime(timezone=True)
    return cast(parameter(name, type_), type_)


def given_columns(source: str) -> dict[str, ColumnElement[Any]]:
    """What is written of a new or changed row.

    Parameters: the columns in DEFINITION and GAP, and next_at.
    """
    given = {name: cast(parameter(name, type), type) for name, type in _TYPES.items()}
    times = {name: given_moment(name) for name in ("next_at", *GAP)}
    return {**given, **times, "source": literal(source, Text)}


class ScheduledJobs:
    """How the jobs of schedules are inserted."""

    def __init__(self, tables: Tables) -> None:
        self._tables, self._schedule, self._job = tables, tables.schedule, tables.job

    def _jobs(
        self, of: Any, id: ColumnElement[Any], fire_time: ColumnElement[Any], key: Any
    ) -> Select[Any]:
        """Rows of jobs as a schedule says; due now, and not in the past, which is read no more."""
        marks = func.jsonb_build_object(
            literal(SCHEDULE_HEADER, Text), of.c.name, literal(FIRE_TIME_HEADER, Text), fire_time
        )
        own = func.coalesce(cast(of.c.headers, JSONB), cast(literal("{}", Text), JSONB))
        headers = own.op("||", return_type=JSONB())(marks)
        columns = (of.c.queue, of.c.type, of.c.arg, of.c.priority, headers)
        return select(id, *columns, func.now(), cast(key, Text))

    def _insert(self, rows: Select[Any]) -> Any:
        job = self._job
        names = ["id", "queue", "type", "arg", "priority", "headers", "next_run_at", "unique_key"]
        # Of a unique index of the user's a conflict is an error, or a fire time would be lost.
        inserted = (
            pg_insert(job)
            .from_select(names, rows)
            .on_conflict_do_nothing(
                index_elements=[job.c.unique_key], index_where=job.c.unique_key.is_not(None)
            )
        )
        return inserted.returning(job.c.queue)


class ScheduleStatements(ScheduledJobs):
    """What users do to schedules."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        self.run_now: Callable[[bool], Executable] = cache(self._run_now)

    @cached_property
    def now(self) -> Executable:
        """The server's time."""
        return select(func.clock_timestamp())

    @cached_property
    def locked(self) -> Executable:
        """Lock a schedule's row, and read what its next times follow from.

        Returns source, cron, timezone, is_paused, the columns in TIMES, and the server's time.
        Parameter: name.
        """
        schedule = self._schedule
        return (
            select(
                *(schedule.c[name] for name in ("source", "cron", "timezone")),
                schedule.c.paused_at.is_not(None).label("is_paused"),
                *(moment(schedule.c[name]).label(name) for name in TIMES),
                func.clock_timestamp().label("now"),
            )
            .with_hint(schedule, ONLY)
            .where(schedule.c.name == parameter("name", Text))
            .with_for_update()
        )

    @cached_property
    def add(self) -> Executable:
        """Add a schedule as a row; no row comes back if there is one of its name.

        Parameters: those of :func:`given_columns`.
        """
        insert = pg_insert(self._schedule).values(**given_columns("data"))
        return insert.on_conflict_do_nothing().returning(self._schedule.c.name)

    @cached_property
    def change(self) -> Executable:
        """Change a schedule that is locked. Parameters: as for add."""
        schedule, given = self._schedule, given_columns("data")
        return (
            update(schedule)
            .with_hint(ONLY)
            .where(schedule.c.name == given["name"])
            .values(**given, updated_at=func.clock_timestamp())
        )

    @cached_property
    def pause(self) -> Executable:
        """Pause a schedule, or say anew who has and why; returns its name.

        Parameters: name, by, reason.
        """
        schedule = self._schedule
        return (
            update(schedule)
            .with_hint(ONLY)
            .where(schedule.c.name == parameter("name", Text))
            .values(
                next_at=None,  # nobody who has seen an earlier one can fire it
                paused_at=func.coalesce(schedule.c.paused_at, func.now()),
                paused_by=cast(parameter("by", Text), Text),
                pause_reason=cast(parameter("reason", Text), Text),
                updated_at=func.clock_timestamp(),
            )
            .returning(schedule.c.name)
        )

    @cached_property
    def resume(self) -> Executable:
        """Let a schedule fire again. Parameters: name, next_at, missed_from, missed_until."""
        schedule = self._schedule
        return (
            update(schedule)
            .with_hint(ONLY)
            .where(schedule.c.name == parameter("name", Text))
            .values(
                **{name: given_moment(name) for name in ("next_at", *GAP)},
                paused_at=None,
                paused_by=None,
                pause_reason=None,
                updated_at=func.clock_timestamp(),
            )
        )

    @cached_property
    def remove(self) -> Executable:
        """Delete a schedule; returns its name. Parameter: name."""
        schedule = self._schedule
        return (
            delete(schedule)
            .with_hint(ONLY)
            .where(schedule.c.name == parameter("name", Text))
            .returning(schedule.c.name)
        )

    def _run_now(self, notify: bool) -> Executable:
        """Insert a job as the schedule would, now; no row comes back if there is no such schedule.

        Parameters: name, id, fire_time (as text).
        """
        schedule = self._schedule
        id, time = (cast(parameter(name, Text), Text) for name in ("id", "fire_time"))
        rows = (
            self._jobs(schedule, id, time, null())
            .select_from(schedule)
            .with_hint(schedule, ONLY)
            .where(schedule.c.name == parameter("name", Text))
        )
        if not notify:
            inserted: Executable = self._insert(rows)
            return inserted
        done = self._insert(rows).cte("inserted")
        return select(done.c.queue, woken_by(self._tables, done)).select_from(done)

    @cached_property
    def make_due(self) -> Executable:
        """For tests: let the schedule that is the next one to fire be due now.

        Returns its name, cron, timezone, meant_for (when it would have fired) and next_at; no row
        comes back if none fires until then. Parameters: list names (empty for all), until.
        """
        schedule = self._schedule
        it, names = schedule.alias("it"), array_parameter("names", Text())
        found = (
            select(it.c.name, it.c.next_at)
            .with_hint(it, ONLY)
            .where(
                or_(func.cardinality(names) == 0, it.c.name == any_(names)),
                it.c.paused_at.is_(None),
                it.c.next_at <= given_moment("until"),
                moment(it.c.next_at).is_not(None),
            )
            .order_by(it.c.next_at, it.c.name)
            .limit(1)
            .cte("found")
        )
        columns = (schedule.c[name] for name in ("name", "cron", "timezone", "next_at"))
        return (
            update(schedule)
            .with_hint(ONLY)
            .where(schedule.c.name == found.c.name)
            .values(next_at=func.now())
            .returning(*columns, found.c.next_at.label("meant_for"))
        )

    @cached_property
    def notify(self) -> Executable:
        """Tell all workers, at this transaction's COMMIT, that schedules have changed."""
        channel = self._tables.channel_of_given_back
        return select(cast(func.pg_notify(channel, literal(CHANGED, Text)), Text))
