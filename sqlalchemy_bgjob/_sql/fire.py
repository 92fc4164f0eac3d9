"""SQL by which workers fire schedules, and keep those of the code as the code says.

A schedule fires by one statement, which moves its ``next_at`` from the fire time that was due to
the next one, and inserts the job. It matches no row if somebody has moved ``next_at`` before. So a
fire time is met once at most, whoever tries, and nobody leads. Rows that are locked are passed by:
a worker that was frozen, or a user's open transaction, holds up no worker's loop.
"""

from functools import cached_property
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Executable,
    Float,
    Integer,
    Select,
    Text,
    and_,
    any_,
    case,
    func,
    literal,
    literal_column,
    not_,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as pg_insert

from .._drafts.unique import OF_SCHEDULES
from ..settings import SMALL_STEP
from .schedules import DEFINITION, GAP, TIMES, ScheduledJobs, given_columns, given_moment
from .words import (
    FIRST_MOMENT,
    LAST_MOMENT,
    ONLY,
    SECOND,
    Tables,
    array_parameter,
    at,
    moment,
    parameter,
    unnest,
    woken_by,
)

KEY_PREFIX: Final = f"q:{OF_SCHEDULES}"
"""Begins the unique key of jobs whose schedule skips a fire time while one of them is queued."""


class FireStatements(ScheduledJobs):
    """What workers do to schedules."""

    @cached_property
    def due(self) -> Executable:
        """The schedules that a worker may fire, the earliest first, and the server's time.

        Locks nothing. Parameters: limit, list left_out (names), and those of :func:`any_due`.
        """
        schedule = self._schedule
        return self._mine(moment(schedule.c.next_at).is_not(None)).order_by(
            schedule.c.next_at, schedule.c.name
        )

    @cached_property
    def astray(self) -> Executable:
        """Those that will not fire in time: next_at is missing, or the clock had been ahead.

        Locks nothing. Columns and parameters: as for :attr:`due`.
        """
        return self._mine(_is_astray(self._schedule, func.clock_timestamp()))

    def _mine(self, condition: ColumnElement[bool]) -> Select[Any]:
        schedule = self._schedule
        of_code = and_(
            schedule.c.source == "code", schedule.c.name == any_(array_parameter("names", Text()))
        )
        return (
            select(
                *(schedule.c[name] for name in ("name", "cron", "timezone", "missed")),
                *(moment(schedule.c[name]) for name in (*TIMES, "updated_at")),
                func.clock_timestamp(),
            )
            .with_hint(schedule, ONLY)
            .where(
                or_(of_code, _of_data(self._tables)),
                schedule.c.paused_at.is_(None),
                condition,
                not_(schedule.c.name == any_(array_parameter("left_out", Text()))),
            )
            .limit(parameter("limit", Integer))
        )

    @cached_property
    def set_right(self) -> Executable:
        """Give a schedule other times, if it is as it was seen; returns its name.

        Parameters: name, seen_next_at, next_at, missed_from, missed_until.
        """
        schedule = self._schedule
        held = schedule.alias("held")
        as_seen = moment(held.c.next_at).is_not_distinct_from(given_moment("seen_next_at"))
        locked = self._locked(held, as_seen, held.c.paused_at.is_(None))
        return (
            update(schedule)
            .with_hint(ONLY)
            .where(at(locked))
            .values(**{name: given_moment(name) for name in ("next_at", *GAP)})
            .returning(schedule.c.name)
        )

    def _locked(self, held: Any, *conditions: ColumnElement[bool]) -> Select[Any]:
        """The address of a schedule that is as it was seen, and that nobody else has locked."""
        return (
            select(literal_column("held.ctid"))
            .select_from(held)
            .with_hint(held, ONLY)
            .where(held.c.name == parameter("name", Text), *conditions)
            .with_for_update(of=held, skip_locked=True)
        )

    @cached_property
    def fire(self) -> Executable:
        """Move a schedule on from a fire time, and insert a job for each given one.

        Returns how many jobs were inserted; no row if the schedule has been moved on, paused,
        changed or locked meanwhile, and then nothing happens. Parameters: name, first (the fire
        time that next_at names), last, following, missed_from, missed_until, and lists ids,
        fire_times (as text).
        """
        schedule = self._schedule
        held = schedule.alias("held")
        fired = (
            update(schedule)
            .with_hint(ONLY)
            .where(at(self._locked(held, self._is_due(held))))
            .values(
                next_at=given_moment("following"),
                last_at=func.greatest(schedule.c.last_at, given_moment("last")),
                **{name: given_moment(name) for name in GAP},
            )
            .returning(*(schedule.c[name] for name in DEFINITION))
            .cte("fired")
        )
        given = unnest(ids=Text(), fire_times=Text())
        key = literal(KEY_PREFIX, Text) + fired.c.name
        waits = self._job.alias("waits")
        # Asked first: beside a row that somebody is deleting, the INSERT would wait for the end of
        # that transaction.
        is_queued = (
            select(waits.c.id).with_hint(waits, ONLY).where(waits.c.unique_key == key).exists()
        )
        skips = fired.c.overlap == "skip"
        rows = (
            self._jobs(fired, given.c.ids, given.c.fire_times, case((skips, key), else_=null()))
            .select_from(fired.join(given, true()))
            .where(not_(and_(skips, is_queued)))
        )
        inserted = self._insert(rows).cte("inserted")
        count = select(func.count()).select_from(inserted).scalar_subquery()
        return select(count, woken_by(self._tables, inserted)).select_from(fired)

    def _is_due(self, held: Any) -> ColumnElement[bool]:
        """That nobody has met this fire time; see the tests' mutants."""
        return and_(
            held.c.next_at == given_moment("first"),
            held.c.next_at <= func.clock_timestamp(),
            held.c.paused_at.is_(None),
        )

    # ---- schedules of the code --------------------------------------------------------------

    @cached_property
    def in_code(self) -> Executable:
        """The rows of schedules that a worker has in its code. Parameter: list names."""
        schedule = self._schedule
        times = ("updated_at", *TIMES)
        return (
            select(
                *(schedule.c[name] for name in (*DEFINITION, "source")),
                *(moment(schedule.c[name]).label(name) for name in times),
                schedule.c.paused_at.is_not(None).label("is_paused"),
                func.clock_timestamp().label("now"),
            )
            .with_hint(schedule, ONLY)
            .where(schedule.c.name == any_(array_parameter("names", Text())))
        )

    @cached_property
    def add(self) -> Executable:
        """Add a schedule of the code, unless there is one of this name.

        Parameters: those of :func:`.schedules.given_columns`.
        """
        return pg_insert(self._schedule).values(**given_columns("code")).on_conflict_do_nothing()

    @cached_property
    def change(self) -> Executable:
        """Change a row as the code says, if it is as it was seen; returns its name.

        Parameters: as for add, and seen_at, seen_next_at (its updated_at and next_at, as seen).
        """
        schedule = self._schedule
        held = schedule.alias("held")
        locked = self._locked(
            held,
            held.c.source == "code",
            moment(held.c.updated_at).is_not_distinct_from(given_moment("seen_at")),
            moment(held.c.next_at).is_not_distinct_from(given_moment("seen_next_at")),
        )
        return (
            update(schedule)
            .with_hint(ONLY)
            .where(at(locked))
            .values(**given_columns("code"), updated_at=func.clock_timestamp())
            .returning(schedule.c.name)
        )


def any_due(tables: Tables) -> ColumnElement[bool]:
    """Whether a schedule that was put as a row is due, or astray, and this worker may fire it.

    Parameters: lists queues (that it serves), types (that it knows), and open_queues (of which it
    knows all types).
    """
    schedule, now = tables.schedule, func.now()  # by an index, as it is stable

    def any_that(condition: ColumnElement[bool]) -> ColumnElement[bool]:
        mine = schedule.c.paused_at.is_(None), _of_data(tables)
        return select(schedule.c.name).with_hint(schedule, ONLY).where(condition, *mine).exists()

    return or_(any_that(schedule.c.next_at <= now), any_that(_is_astray(schedule, now)))


def _is_astray(schedule: Any, now: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether it has no next time, or one behind what was met by a clock that has been set back."""
    next_at, until = schedule.c.next_at, schedule.c.missed_until
    then = now + literal(SMALL_STEP, Float(53)) * SECOND
    return or_(
        next_at.is_(None),
        next_at < FIRST_MOMENT,
        next_at > LAST_MOMENT,
        and_(until > then, next_at >= until),
    )


def _of_data(tables: Tables) -> ColumnElement[bool]:
    schedule = tables.schedule
    queues, types, open_queues = (
        array_parameter(name, Text()) for name in ("queues", "types", "open_queues")
    )
    return and_(
        schedule.c.source == "data",
        schedule.c.queue == any_(queues),
        or_(schedule.c.type == any_(types), schedule.c.queue == any_(open_queues)),
    )
