"""SQL of queue control: what operators set for a queue, and what workers read of it.

A row is there only while something is set. A pause that has an end is over when that has passed by
the server's clock: nobody has to change the row.
"""

from functools import cached_property
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Executable,
    FromClause,
    Integer,
    Interval,
    ScalarSelect,
    Text,
    and_,
    case,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as pg_insert

from .words import ONLY, Tables, in_order_of_claims, moment, parameter, seconds

CHANGED: Final = ""
"""What workers are told on the channel of all when something was set. No queue has this name, so
workers of earlier releases pass it by."""

_QUEUE: Final[ColumnElement[str]] = parameter("queue", Text)


def is_paused(control: FromClause) -> ColumnElement[bool]:
    """Whether a pause has begun and is not over, by the server's clock."""
    lasts = or_(control.c.resume_at.is_(None), control.c.resume_at > func.clock_timestamp())
    return and_(control.c.paused_at.is_not(None), lasts)


def what_is_set(control: FromClause) -> ScalarSelect[Any]:
    """One JSON value for a worker to compare: ``{queue: [is it paused, slots]}``; null for none."""
    pair = func.jsonb_build_array(is_paused(control), control.c.slots)
    return (
        select(func.jsonb_object_agg(control.c.queue, pair, type_=JSONB))
        .with_hint(control, ONLY)
        .where(_matters(control))
        .scalar_subquery()
    )


def _matters(control: FromClause) -> ColumnElement[bool]:
    return and_(control.c.key == "", or_(is_paused(control), control.c.slots.is_not(None)))


class ControlStatements:
    """Pause, resume, the number of slots; and what workers read of these."""

    def __init__(self, tables: Tables) -> None:
        self._control, self._job = tables.control, tables.job
        self._channel = tables.channel

    # ---- operators --------------------------------------------------------------------------

    @cached_property
    def pause(self) -> Executable:
        """Pause a queue; returns whether it was not paused before. When that began is kept.

        Parameters: queue, by, reason, and until (a moment) or during (timedelta), or neither.
        """
        control, now = self._control, func.statement_timestamp()
        until = func.coalesce(
            cast(parameter("until", DateTime(timezone=True)), DateTime(timezone=True)),
            now + cast(parameter("during", Interval), Interval),
        )
        new = pg_insert(control).values(
            queue=_QUEUE,
            key="",
            paused_at=now,
            paused_by=parameter("by", Text),
            pause_reason=parameter("reason", Text),
            resume_at=until,
            updated_at=now,
        )
        given = new.excluded
        return new.on_conflict_do_update(
            index_elements=[control.c.queue, control.c.key],
            set_={
                "paused_at": case((is_paused(control), control.c.paused_at), else_=now),
                "paused_by": given.paused_by,
                "pause_reason": given.pause_reason,
                "resume_at": given.resume_at,
                "updated_at": now,
            },
        ).returning(control.c.paused_at == control.c.updated_at)

    @cached_property
    def set_slots(self) -> Executable:
        """Set how many slots each worker has for a queue. Parameters: queue, slots."""
        control, now = self._control, func.statement_timestamp()
        new = pg_insert(control).values(
            queue=_QUEUE, key="", slots=parameter("slots", Integer), updated_at=now
        )
        return new.on_conflict_do_update(
            index_elements=[control.c.queue, control.c.key],
            set_={"slots": new.excluded.slots, "updated_at": now},
        )

    @cached_property
    def lock(self) -> Executable:
        """Lock a queue's row; whether it is paused, its slots, whether it has a limit or a rate.

        Without the lock, two who take back one thing each would leave a row with nothing in it.
        Parameter: queue.
        """
        control = self._control
        limited = or_(control.c.max_running.is_not(None), control.c.rate.is_not(None))
        return (
            select(is_paused(control), control.c.slots, limited)
            .with_hint(control, ONLY)
            .where(*self._row)
            .with_for_update()
        )

    @cached_property
    def resume(self) -> Executable:
        """End a queue's pause, and keep what else is set. Parameter: queue."""
        return self._set(paused_at=None, paused_by=None, pause_reason=None, resume_at=None)

    @cached_property
    def unset_slots(self) -> Executable:
        """Let each worker have its own number of slots, and keep what else is set.

        Parameter: queue.
        """
        return self._set(slots=None)

    def _set(self, **values: None) -> Executable:
        return (
            update(self._control)
            .with_hint(ONLY)
            .where(*self._row)
            .values(updated_at=func.statement_timestamp(), **values)
        )

    @cached_property
    def remove(self) -> Executable:
        """Remove a queue's row, in which nothing more is set. Parameter: queue."""
        return delete(self._control).with_hint(ONLY).where(*self._row)

    @property
    def _row(self) -> tuple[ColumnElement[bool], ...]:
        return self._control.c.queue == _QUEUE, self._control.c.key == ""

    @cached_property
    def tell(self) -> Executable:
        """Notify all workers, at this transaction's COMMIT, that something was set.

        Not only those that serve the queue: one that registers meanwhile is in no snapshot yet.
        """
        told = func.pg_notify(literal(self._channel, Text), literal(CHANGED, Text))
        return select(cast(told, Text))

    @cached_property
    def running(self) -> Executable:
        """How many jobs of a queue run. Reads all of its jobs. Parameter: queue."""
        job = self._job
        return (
            select(func.count())
            .select_from(job)
            .with_hint(job, ONLY)
            .where(job.c.queue == _QUEUE, in_order_of_claims(job), job.c.claimed_by.is_not(None))
        )

    # ---- workers ----------------------------------------------------------------------------

    @cached_property
    def state(self) -> Executable:
        """What is set for queues.

        Queue, whether it is paused, the seconds until that is over, by whom, why, until when; and
        slots.
        """
        control = self._control
        until = moment(control.c.resume_at)
        return (
            select(
                control.c.queue,
                is_paused(control),
                seconds(until - func.clock_timestamp()),
                control.c.paused_by,
                control.c.pause_reason,
                until,
                control.c.slots,
            )
            .with_hint(control, ONLY)
            .where(_matters(control))
        )
