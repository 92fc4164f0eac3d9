"""SQL that claims: which jobs are due, in which order, and who gets them."""

from functools import cached_property
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Executable,
    Integer,
    Select,
    SmallInteger,
    TableValuedAlias,
    Text,
    any_,
    func,
    literal_column,
    not_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.sql.selectable import CTE

from .words import ONLY, Tables, array_parameter, at, parameter, seconds, unnest

_LATE_COMMITS: ColumnElement[Any] = literal_column("interval '2 seconds'")
"""How far behind the clock a claim looks for jobs whose transaction was committed late."""


class ClaimStatements:
    """From the head of a queue, onward from the last claim, and row by row."""

    def __init__(self, tables: Tables) -> None:
        self._job = tables.job

    def _lanes(self) -> CTE:
        """The queue's priorities, ascending, by one index probe each; the last row is null."""
        job = self._job.alias("first_job")
        following = self._job.alias("following_job")
        queue = parameter("queue", Text)
        first = (
            select(job.c.priority)
            .with_hint(job, ONLY)
            .where(job.c.queue == queue)
            .order_by(job.c.priority)
            .limit(1)
            .subquery("first")
        )
        lanes = select(first.c.priority).cte("lanes", recursive=True)
        next_priority = (
            select(func.min(following.c.priority))
            .with_hint(following, ONLY)
            .where(following.c.queue == queue, following.c.priority > lanes.c.priority)
            .scalar_subquery()
        )
        return lanes.union_all(select(next_priority).where(lanes.c.priority.is_not(None)))

    def _due(
        self, value: str, *, onward: bool = False, skipping: bool = False, lock: bool = True
    ) -> Select[Any]:
        """A system column or id of the due jobs of one queue, in order. Parameters: queue, limit.

        Each (queue, priority) is a lane, and read by itself in the index's order. One range over
        all priorities would walk every scheduled row of the lower ones.

        Args:
            value: What is selected of each job.
            onward: The lanes are given, and each is read on from where the last claim stopped. So
                no index entry of a job that is gone is walked twice, even while an old transaction
                keeps vacuum from removing it. Else the lanes are looked up, and read from the head.
            skipping: Leave out the ids in the parameter skip.
            lock: Lock the rows, and pass over those that somebody else has locked.
        """
        due = self._job.alias("due")
        limit = parameter("limit", Integer)
        lanes: Any = self._given_lanes() if onward else self._lanes()
        lane: Select[Any] = (
            select(literal_column(f"due.{value}").label("value"))
            .select_from(due)
            .with_hint(due, ONLY)
            .where(due.c.priority == lanes.c.priority, *self._is_due(due))
            .order_by(due.c.next_run_at, due.c.id)
            .limit(limit)
        )
        if onward:
            start = func.coalesce(lanes.c.at, func.now() - _LATE_COMMITS)
            lane = lane.where(tuple_(due.c.next_run_at, due.c.id) > tuple_(start, lanes.c.id))
        if skipping:
            lane = lane.where(not_(due.c.id == any_(array_parameter("skip", Text()))))
        if lock:
            lane = self._lock_to_claim(lane)
        found = lane.lateral("lane")
        # No ORDER BY here: lanes come in ascending order, and the LIMIT stops reading them.
        return select(found.c.value).select_from(lanes.join(found, true())).limit(limit)

    def _given_lanes(self) -> TableValuedAlias:
        """Where to read on in each lane. Parameters: lists priority, at, id; ascending.

        A lane without a time (null) is read from two seconds ago, for jobs whose transaction was
        committed late.
        """
        return unnest(priority=SmallInteger(), at=DateTime(timezone=True), id=Text())

    def _is_due(self, due: Any) -> tuple[ColumnElement[bool], ...]:
        return (
            due.c.queue == parameter("queue", Text),
            due.c.next_run_at <= func.now(),
            due.c.claimed_by.is_(None),
        )

    def _lock_to_claim(self, rows: Select[Any]) -> Select[Any]:
        # NO KEY: a user's row that refers to the job must not hide it. No OF: nothing else is
        # read here, and SQLAlchemy 2.0.30 can't compile it within a LATERAL.
        return rows.with_for_update(skip_locked=True, key_share=True)

    def _claim(self, locked: Select[Any]) -> Executable:
        job = self._job
        return (
            update(job)
            .with_hint(ONLY)
            .where(at(locked))
            .values(
                claimed_by=parameter("worker", BigInteger),
                lease=job.c.lease + 1,
                attempt=job.c.attempt + 1,
                updated_at=func.now(),
            )
            .returning(
                job.c.id,
                job.c.type,
                job.c.arg,
                job.c.priority,
                job.c.attempt,
                job.c.crashes,
                job.c.lease,
                job.c.last_error,
                job.c.headers,
                job.c.next_run_at,
                job.c.created_at,
                job.c.updated_at,
                seconds(func.now() - job.c.unknown_since).label("unknown_for"),
            )
        )

    @cached_property
    def from_head(self) -> Executable:
        """Give due jobs of one queue to a worker. RETURNING has no order, so sort what comes back.

        Parameters: queue, limit, worker.
        """
        return self._claim(self._due("ctid"))

    @cached_property
    def onward(self) -> Executable:
        """As :attr:`from_head`, from where the last claim stopped in each of the given lanes.

        Parameters: as there, and lists priority, at, id, one row for each lane.
        """
        return self._claim(self._due("ctid", onward=True))

    @cached_property
    def lanes(self) -> Executable:
        """The priorities that a queue's jobs have, ascending. Parameter: queue."""
        lanes = self._lanes()
        return select(lanes.c.priority).where(lanes.c.priority.is_not(None))

    @cached_property
    def skipping(self) -> Executable:
        """As :attr:`from_head`, without some ids. Parameters: as there, and list skip."""
        return self._claim(self._due("ctid", skipping=True))

    @cached_property
    def due_ids(self) -> Executable:
        """What :attr:`skipping` would take, in order and not locked. Parameters: as there."""
        return self._due("id", skipping=True, lock=False)

    @cached_property
    def one(self) -> Executable:
        """As :attr:`from_head`, for one job if it is still due. Parameters: queue, worker, id."""
        due = self._job.alias("due")
        row: Select[Any] = (
            select(literal_column("due.ctid"))
            .select_from(due)
            .with_hint(due, ONLY)
            .where(due.c.id == parameter("id", Text), *self._is_due(due))
        )
        return self._claim(self._lock_to_claim(row))

    @cached_property
    def next_due(self) -> Executable:
        """Seconds until the next scheduled job; null if there is none.

        Parameters: queue, and list priorities: the lanes to look at.
        """
        lanes = unnest(priorities=SmallInteger())
        job = self._job.alias("scheduled")
        earliest = (
            select(func.min(job.c.next_run_at))
            .with_hint(job, ONLY)
            .where(
                job.c.queue == parameter("queue", Text),
                job.c.priority == lanes.c.priorities,
                job.c.next_run_at > func.now(),
            )
            .correlate(lanes)
            .scalar_subquery()
        )
        times = select(earliest.label("earliest")).select_from(lanes).subquery("times")
        return select(seconds(func.min(times.c.earliest) - func.clock_timestamp()))
