"""SQL that cancels: queued jobs are deleted, and the workers of running ones are asked."""

from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Float,
    Select,
    Text,
    cast,
    delete,
    func,
    literal,
    literal_column,
    null,
    select,
    update,
)

from .records import cancelled, kept_columns
from .words import ONLY, Tables, Wakeup, in_order_of_locks, own_channel, parameter, unnest

if TYPE_CHECKING:
    from collections.abc import Callable


class CancelStatements:
    """Cancel one job, or those that a condition finds."""

    def __init__(self, tables: Tables) -> None:
        self._job, self._channel = tables.job, tables.channel
        self._record = None if tables.recording is None else tables.recording.record
        self.one: Callable[[bool], Executable] = cache(self._one)

    def _one(self, notify: bool) -> Executable:
        """As :meth:`where`, for one job. Parameter: id."""
        return self.where(self._job.c.id == parameter("id", Text), None, notify=notify)

    def where(
        self, condition: ColumnElement[bool], limit: int | None, *, notify: bool
    ) -> Executable:
        """Delete jobs that no worker holds, and mark the others; how many of each.

        With *notify*, each worker that holds one of them is told at this transaction's COMMIT.
        Where there are records, parameters: lists types, queues and keeps (seconds), where the type
        of a queue's default handler is ``*``; and rest, the seconds for all others.
        """
        job = self._job
        # Locked first: what a job is, queued or running, must not change between the two below. NO
        # KEY, as a user's row may refer to a running job. By id and not by address: a row that was
        # changed while this waited has a new one.
        found = (
            select(job.c.id, job.c.claimed_by)
            .with_hint(job, ONLY)
            .where(condition)
            .order_by(*in_order_of_locks(job))
            .limit(limit)
            .with_for_update(key_share=True)
            .cte("found")
        )
        deleted = (
            delete(job)
            .with_hint(ONLY)
            .where(job.c.id == found.c.id, found.c.claimed_by.is_(None))
            .returning(*([job.c.id] if self._record is None else kept_columns(job)))
            .cte("deleted")
        )
        asked = (
            update(job)
            .with_hint(ONLY)
            .where(job.c.id == found.c.id, found.c.claimed_by.is_not(None))
            .values(cancel_at=func.coalesce(job.c.cancel_at, func.now()))
            .returning(job.c.claimed_by)
            .cte("asked")
        )
        count: Any = func.count()
        told: Select[Any] = select(
            select(count).select_from(deleted).scalar_subquery().label("cancelled"),
            select(count).select_from(asked).scalar_subquery().label("asked"),
            (self._told(asked).scalar_subquery() if notify else null()).label("told"),
        )
        if self._record is None:
            return told
        given = unnest(types=Text(), queues=Text(), keeps=Float(53))
        return told.add_cte(cancelled(self._record, deleted, given, parameter("rest", Float(53))))

    def _told(self, asked: Any) -> Select[Any]:
        """Notify the holders, each once. The jobs are not named: anybody may notify."""
        holders = select(asked.c.claimed_by).distinct().subquery("holders")
        own = literal(own_channel(self._channel, ""), Text) + cast(holders.c.claimed_by, Text)
        reason: ColumnElement[str] = literal_column(f"'{Wakeup.CANCEL.value}'")
        return select(func.count(func.pg_notify(own, reason))).select_from(holders)
