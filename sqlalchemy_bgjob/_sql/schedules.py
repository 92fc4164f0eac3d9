"""SQL of schedules: fire them, keep them as the code says, and what users do to them.

A schedule fires by one statement, which moves its ``next_at`` from the fire time that was due to
the next one, and inserts the job. It matches no row if somebody has moved ``next_at`` before. So a
fire time is met once at most, whoever tries, and nobody leads. Rows that are locked are passed by:
a worker that was frozen, or a user's open transaction, holds up no worker's loop.
"""

from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Executable,
    Float,
    Integer,
    LargeBinary,
    Select,
    SmallInteger,
    Text,
    and_,
    any_,
    case,
    cast,
    delete,
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
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.types import TypeEngine

from .._drafts.unique import OF_SCHEDULES
from ..settings import SMALL_STEP
from .words import ONLY, SECOND, Tables, array_parameter, at, parameter, unnest, woken

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEDULE_HEADER: Final = "bgjob-schedule"
"""The header of a job that names the schedule which has enqueued it."""
FIRE_TIME_HEADER: Final = "bgjob-fire-time"
"""The header that says for which fire time, as ISO 8601 in UTC."""
KEY_PREFIX: Final = f"q:{OF_SCHEDULES}"
"""Begins the unique key of jobs whose schedule skips a fire time while one of them is queued."""
CHANGED: Final = ""
"""What is notified on the channel of jobs that were given back when schedules have changed: the
payload there is the name of a queue, and no queue has this one."""

_moment: Final = DateTime(timezone=True)
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


_TIMES: Final = ("next_at", "last_at", "missed_from", "missed_until")
_SEEN: Final = ("name", "cron", "timezone", "missed", *_TIMES)


class ScheduleStatements:
    """What workers and users do to schedules."""

    def __init__(self, tables: Tables) -> None:
        self._tables, self._schedule, self._job = tables, tables.schedule, tables.job
        self.run_now: Callable[[bool], Executable] = cache(self._run_now)

    # ---- a worker ---------------------------------------------------------------------------

    @cached_property
    def due(self) -> Executable:
        """The schedules that a worker may fire, the earliest first, and the server's time.

        Locks nothing. Parameters: limit, list left_out (names), and those of :func:`any_due`.
        """
        schedule = self._schedule
        # SQL may have written infinity
        return self._mine(func.isfinite(schedule.c.next_at)).order_by(
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
        columns = (schedule.c[name] for name in _SEEN)
        of_code = and_(
            schedule.c.source == "code", schedule.c.name == any_(array_parameter("names", Text()))
        )
        return (
            select(*columns, func.clock_timestamp())
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
        """Give a schedule another next_at, if it is as it was seen; returns its name.

        Parameters: name, seen_next_at, next_at.
        """
        schedule = self._schedule
        held = schedule.alias("held")
        seen = cast(parameter("seen_next_at", _moment), _moment)
        locked: Select[Any] = (
            select(literal_column("held.ctid"))
            .select_from(held)
            .with_hint(held, ONLY)
            .where(
                held.c.name == parameter("name", Text),
                held.c.next_at.is_not_distinct_from(seen),
                held.c.paused_at.is_(None),
            )
            .with_for_update(of=held, skip_locked=True)
        )
        return (
            update(schedule)
            .with_hint(ONLY)
            .where(at(locked))
            .values(next_at=cast(parameter("next_at", _moment), _moment))
            .returning(schedule.c.name)
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
        locked: Select[Any] = (
            select(literal_column("held.ctid"))
            .select_from(held)
            .with_hint(held, ONLY)
            .where(held.c.name == parameter("name", Text), self._is_due(held))
            .with_for_update(of=held, skip_locked=True)
        )
        fired = (
            update(schedule)
            .with_hint(ONLY)
            .where(at(locked))
            .values(
                next_at=cast(parameter("following", _moment), _moment),
                last_at=func.greatest(
                    schedule.c.last_at, cast(parameter("last", _moment), _moment)
                ),
                **{
                    name: cast(parameter(name, _moment), _moment)
                    for name in ("missed_from", "missed_until")
                },
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
        return select(count, self._woken(inserted)).select_from(fired)

    def _is_due(self, held: Any) -> ColumnElement[bool]:
        """That nobody has met this fire time; see the tests' mutants."""
        return and_(
            held.c.next_at == parameter("first", _moment),
            held.c.next_at <= func.clock_timestamp(),
            held.c.paused_at.is_(None),
        )

    @cached_property
    def in_code(self) -> Executable:
        """The rows of schedules that a worker has in its code. Parameter: list names."""
        schedule = self._schedule
        columns = (*DEFINITION, "source", "updated_at", "paused_at", *_TIMES)
        return (
            select(*(schedule.c[name] for name in columns), func.clock_timestamp().label("now"))
            .with_hint(schedule, ONLY)
            .where(schedule.c.name == any_(array_parameter("names", Text())))
        )

    @cached_property
    def add(self) -> Executable:
        """Add a schedule of the code, unless there is one of this name.

        Parameters: the columns in DEFINITION, and next_at.
        """
        return pg_insert(self._schedule).values(**self._values("code")).on_conflict_do_nothing()

    @cached_property
    def change(self) -> Executable:
        """Change a row as the code says, if it is as it was seen; returns its name.

        Parameters: as for add, and seen_at, seen_next_at (its updated_at and next_at, as seen).
        """
        schedule = self._schedule
        held = schedule.alias("held")
        seen_next = cast(parameter("seen_next_at", _moment), _moment)
        locked: Select[Any] = (
            select(literal_column("held.ctid"))
            .select_from(held)
            .with_hint(held, ONLY)
            .where(
                held.c.name == parameter("name", Text),
                held.c.source == "code",
                held.c.updated_at == parameter("seen_at", _moment),
                held.c.next_at.is_not_distinct_from(seen_next),
            )
            .with_for_update(of=held, skip_locked=True)
        )
        return (
            update(schedule)
            .with_hint(ONLY)
            .where(at(locked))
            .values(**self._values("code"), updated_at=func.clock_timestamp())
            .returning(schedule.c.name)
        )

    # ---- users ------------------------------------------------------------------------------

    @cached_property
    def now(self) -> Executable:
        """The server's time."""
        return select(func.clock_timestamp())

    @cached_property
    def put(self) -> Executable:
        """Add a schedule as a row, or change it; no row comes back if the code has its name.

        One that fires at the same times as before keeps its next_at, and a paused one stays so.
        Returns next_at. Parameters: as for add.
        """
        schedule = self._schedule
        insert = pg_insert(schedule).values(**self._values("data"))
        new = insert.excluded
        as_before = and_(schedule.c.cron == new.cron, schedule.c.timezone == new.timezone)
        kept = or_(as_before, schedule.c.paused_at.is_not(None))
        changed = {name: new[name] for name in DEFINITION if name != "name"}
        return insert.on_conflict_do_update(
            index_elements=[schedule.c.name],
            set_={
                **changed,
                "next_at": case((kept, schedule.c.next_at), else_=new.next_at),
                "updated_at": func.clock_timestamp(),
            },
            where=schedule.c.source == "data",
        ).returning(schedule.c.next_at)

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
    def paused(self) -> Executable:
        """Lock a paused schedule's row; returns cron, timezone and the server's time.

        Parameter: name.
        """
        schedule = self._schedule
        return (
            select(schedule.c.cron, schedule.c.timezone, func.clock_timestamp().label("now"))
            .with_hint(schedule, ONLY)
            .where(schedule.c.name == parameter("name", Text), schedule.c.paused_at.is_not(None))
            .with_for_update()
        )

    @cached_property
    def resume(self) -> Executable:
        """Let a schedule fire again. Parameters: name, next_at."""
        schedule = self._schedule
        return (
            update(schedule)
            .with_hint(ONLY)
            .where(schedule.c.name == parameter("name", Text))
            .values(
                next_at=parameter("next_at", _moment),
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
        return select(done.c.queue, self._woken(done)).select_from(done)

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
                it.c.next_at <= parameter("until", _moment),
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

    # ---- what they are made of --------------------------------------------------------------

    def _values(self, source: str) -> dict[str, Any]:
        given = {name: cast(parameter(name, type), type) for name, type in _TYPES.items()}
        next_at = cast(parameter("next_at", _moment), _moment)
        return {**given, "source": literal(source, Text), "next_at": next_at}

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
        inserted = pg_insert(job).from_select(names, rows).on_conflict_do_nothing()
        return inserted.returning(job.c.queue)

    def _woken(self, inserted: Any) -> ColumnElement[Any]:
        queues = select(inserted.c.queue).distinct().subquery("queues")
        worker, channel = self._tables.worker, self._tables.channel
        notified = woken(worker, channel, queues.c.queue).lateral("notified")
        sent = select(func.sum(notified.c.count)).select_from(queues.join(notified, true()))
        return sent.scalar_subquery()


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
    finite = func.isfinite(next_at), func.isfinite(schedule.c.missed_from)
    return or_(next_at.is_(None), and_(until > then, next_at >= until, *finite))


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
