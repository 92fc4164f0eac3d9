"""SQL of the operator: run now, edit, redrive, prune; and what ages all rows, for tests."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    DateTime,
    Executable,
    Float,
    Integer,
    Interval,
    LargeBinary,
    SmallInteger,
    Text,
    any_,
    case,
    cast,
    delete,
    func,
    literal,
    not_,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as pg_insert

from ..models import lease_at_insert
from .words import ONLY, SECOND, Tables, array_parameter, in_order_of_locks, parameter


class OperateStatements:
    """What users do to jobs, without a worker."""

    def __init__(self, tables: Tables) -> None:
        self._job, self._dead, self._worker = tables.job, tables.dead, tables.worker
        self._control, self._period = tables.control, tables.unique_period
        self._channel = tables.channel

    def redrive(
        self, where: ColumnElement[bool], limit: int | None, *, spaced: bool = False
    ) -> Executable:
        """Bring dead jobs back: of each job id the one that died last.

        Returns job_id, queue, and whether it was brought back, for each dead job that *where*
        finds. A job stays dead while a live job has its id or its unique key. Parameters: delay
        (timedelta), and with *spaced* per_second: how many fall due in a second, those that died
        first before the others.
        """
        job, dead = self._job, self._dead
        # All columns from here: what somebody has edited while this waited is what runs.
        found = (
            select(*dead.c)
            .with_hint(dead, ONLY)
            .where(where)
            .order_by(*self._dead_order)
            .limit(limit)
            .with_for_update()
            .cte("found")
        )
        newest_first = (found.c.moved_at.desc(), found.c.id.desc())
        place = func.row_number().over(partition_by=found.c.job_id, order_by=newest_first)
        ranked = select(*found.c, place.label("place")).subquery("ranked")
        last = select(*ranked.c).where(ranked.c.place == 1).cte("last")
        due_at = func.now() + parameter("delay", Interval)
        if spaced:
            number = func.row_number().over(order_by=(last.c.moved_at, last.c.id))
            due_at += (number - 1) / parameter("per_second", Float(53)) * SECOND
        values: dict[str, Any] = {
            "id": last.c.job_id,
            # Above every lease of this job, and of a later job with the same id.
            "lease": func.greatest(last.c.lease + 1, lease_at_insert()),
            "attempt": literal(0, Integer),
            "crashes": literal(0, Integer),
            "next_run_at": due_at,
            "created_at": last.c.job_created_at,
            "updated_at": func.now(),
        }
        values |= {
            c.name: last.c[c.name] for c in job.c if c.name not in values and c.name in last.c
        }
        # In the order in which a bulk enqueue takes keys and ids, so that the two never wait for
        # each other in a circle. Of two with one key, the one that died last comes first.
        key = last.c.unique_key.collate("C").nulls_first()
        keyed = case((last.c.unique_key.is_not(None), last.c.moved_at))
        rows = select(*values.values()).order_by(key, keyed.desc(), last.c.job_id.collate("C"))
        back = (
            pg_insert(job)
            .from_select(list(values), rows)
            .on_conflict_do_nothing()  # whichever unique index it is
            .returning(job.c.id)
            .cte("back")
        )
        gone = (
            delete(dead)
            .with_hint(ONLY)
            .where(dead.c.id == last.c.id, last.c.job_id == back.c.id)
            .returning(dead.c.id)
            .cte("gone")
        )
        return select(found.c.job_id, found.c.queue, gone.c.id.is_not(None)).select_from(
            found.outerjoin(gone, gone.c.id == found.c.id)
        )

    def run_now(self, where: ColumnElement[bool], limit: int | None) -> Executable:
        """Make scheduled jobs due, by their ids; returns the queue of each.

        Those that run, that are due, or that wait for a seat of their group are left alone.
        """
        job = self._job
        found = (
            select(job.c.id)
            .with_hint(job, ONLY)
            .where(
                where,
                job.c.claimed_by.is_(None),
                job.c.next_run_at > func.now(),
                job.c.waits.is_not(True),
            )
            .order_by(*in_order_of_locks(job))
            .limit(limit)
            .with_for_update(key_share=True)
            .cte("found")
        )
        return (
            update(job)
            .with_hint(ONLY)
            .where(job.c.id == found.c.id, job.c.claimed_by.is_(None))
            .values(next_run_at=func.now(), updated_at=func.now())
            .returning(job.c.queue)
        )

    @cached_property
    def to_edit(self) -> Executable:
        """Lock a job, and tell what of it an edit depends on. Parameter: id."""
        job = self._job
        names = ("type", "queue", "lease", "claimed_by", "waits", "expires_at", "headers")
        return (
            select(*(job.c[name] for name in names), func.now().label("now"))
            .with_hint(job, ONLY)
            .where(job.c.id == parameter("id", Text))
            .with_for_update(key_share=True)
        )

    def edit(self, names: Iterable[str]) -> Executable:
        """Give a queued job, which is locked, new values; whether it is due then.

        The lease grows: who has seen the job as it was before can't edit it by that. Parameters:
        id, and the columns that *names* has.
        """
        job = self._job
        types: dict[str, Any] = {
            "arg": LargeBinary,
            "headers": JSONB(none_as_null=True),
            "priority": SmallInteger,
            "next_run_at": DateTime(timezone=True),
        }
        values: dict[str, Any] = {name: parameter(name, types[name]) for name in names}
        return (
            update(job)
            .with_hint(ONLY)
            .where(job.c.id == parameter("id", Text), job.c.claimed_by.is_(None))
            .values(lease=job.c.lease + 1, updated_at=func.now(), **values)
            .returning((job.c.next_run_at <= func.now()).label("is_due"))
        )

    def prune(self, where: ColumnElement[bool], limit: int | None) -> Executable:
        """Delete dead jobs, the oldest first; returns how many. Parameter: age (timedelta)."""
        dead = self._dead
        # By id and not by address: a row that was edited while this waited has a new one.
        old = (
            select(dead.c.id)
            .with_hint(dead, ONLY)
            .where(dead.c.moved_at < func.now() - parameter("age", Interval), where)
            .order_by(*self._dead_order)
            .limit(limit)
            .with_for_update()
            .cte("old")
        )
        done = delete(dead).with_hint(ONLY).where(dead.c.id == old.c.id)
        gone = done.returning(dead.c.id).cte("gone")
        return select(func.count()).select_from(gone)

    @property
    def _dead_order(self) -> tuple[ColumnElement[Any], ...]:
        """The order in which everybody locks dead jobs, so that there is no deadlock."""
        return self._dead.c.moved_at, self._dead.c.id

    @cached_property
    def live_jobs(self) -> Executable:
        """All jobs, in the order of work, and of each the key whose period it began."""
        job, period = self._job, self._period
        order = job.c.queue, job.c.priority, job.c.next_run_at, job.c.id
        return (
            select(job, period.c.key.label("period_key"))
            .select_from(job.outerjoin(period, period.c.job_id == job.c.id))
            .with_hint(job, ONLY)
            .with_hint(period, ONLY)
            .order_by(*order)
        )

    @cached_property
    def due_queue(self) -> Executable:
        """The queue of the job that is to run first.

        Parameters: lists queues (empty for all) and passed_by, which are left out.
        """
        job = self._job
        queues, passed_by = (array_parameter(name, Text()) for name in ("queues", "passed_by"))
        return (
            select(job.c.queue)
            .with_hint(job, ONLY)
            .where(
                job.c.claimed_by.is_(None),
                job.c.next_run_at <= func.now(),
                or_(func.cardinality(queues) == 0, job.c.queue == any_(queues)),
                not_(job.c.queue == any_(passed_by)),
            )
            .order_by(job.c.priority, job.c.next_run_at, job.c.id)
            .limit(1)
        )

    @cached_property
    def not_done(self) -> Executable:
        """Live and dead jobs; dead_id is null for those that live.

        Parameters: list ids, or every (whether they are all asked for).
        """
        job, dead = self._job, self._dead
        ids, every = array_parameter("ids", Text()), parameter("every", Boolean)
        columns = ("type", "attempt", "last_error")
        dead_id = cast(null(), Text).label("dead_id")
        live = (
            select(job.c.id, *(job.c[name] for name in columns), dead_id)
            .with_hint(job, ONLY)
            .where(or_(every, job.c.id == any_(ids)))
        )
        ended = (
            select(dead.c.job_id, *(dead.c[name] for name in columns), dead.c.id)
            .with_hint(dead, ONLY)
            .where(or_(every, dead.c.job_id == any_(ids)))
        )
        return live.union_all(ended)

    @cached_property
    def grow_older(self) -> tuple[Executable, ...]:
        """Make all jobs older, live and dead, pauses, and periods of unique keys: moves all times.

        Parameter: by (timedelta).
        """
        # In a transaction that has gone on for a while, what is due is judged by its start.
        by = parameter("by", Interval) + (func.statement_timestamp() - func.now())
        times = {
            self._job: (
                "next_run_at",
                "created_at",
                "updated_at",
                "unknown_since",
                "expires_at",
            ),
            self._dead: ("next_run_at", "job_created_at", "job_updated_at", "moved_at"),
            self._control: ("paused_at", "resume_at", "updated_at"),
            self._period: ("until",),
        }
        return tuple(
            update(table).with_hint(ONLY).values({name: table.c[name] - by for name in names})
            for table, names in times.items()
        )

    @cached_property
    def wake_all(self) -> Executable:
        """Notify the queues for which some worker waits."""
        waits_for = cast(self._worker.c.waits_for, JSONB)
        queues = (
            func.jsonb_array_elements_text(waits_for)
            .table_valued("queue", name="awaited")
            .render_derived()
        )
        notified = func.pg_notify(self._channel, queues.c.queue)
        waiting = self._worker.join(queues, true())
        return select(cast(notified, Text)).select_from(waiting).with_hint(self._worker, ONLY)
