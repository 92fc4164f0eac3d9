"""SQL that claims: which jobs are due, in which order, and who gets them."""

from collections.abc import Callable, Iterable
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    CompoundSelect,
    DateTime,
    Executable,
    Float,
    Integer,
    Select,
    SmallInteger,
    TableValuedAlias,
    Text,
    any_,
    case,
    cast,
    column,
    func,
    literal,
    literal_column,
    not_,
    null,
    or_,
    select,
    true,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.sql.dml import ReturningUpdate
from sqlalchemy.sql.elements import Grouping
from sqlalchemy.sql.selectable import CTE
from sqlalchemy.types import UserDefinedType

from .._drafts.validation import EARLIEST
from .words import ONLY, Tables, array_parameter, at, in_order_of_claims, parameter, seconds, unnest

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

_YES: ColumnElement[bool] = true()
_QUEUE: ColumnElement[str] = parameter("queue", Text)
_QUEUED_KEY: ColumnElement[str] = literal_column("'q:'")
_LATE_COMMITS: ColumnElement[Any] = literal_column("interval '2 seconds'")
"""How far behind the clock a claim looks for jobs whose transaction was committed late."""


class _TextArray(UserDefinedType[list[str | None]]):
    """As ARRAY(Text), but each row's value stays what the driver has made of it, a list or None."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "TEXT[]"


class ClaimStatements:
    """From the head of a queue, onward from the last claim, of many queues, and row by row."""

    def __init__(self, tables: Tables) -> None:
        self._job = tables.job
        self.by_id: Callable[[bool], Executable] = cache(self._by_id)

    def _lanes(self, queue: ColumnElement[str] = _QUEUE, wanted: ColumnElement[bool] = _YES) -> CTE:
        """The queue's priorities, ascending, by one index probe each; the last row is null."""
        job = self._job.alias("first_job")
        following = self._job.alias("following_job")
        first = (
            select(job.c.priority)
            .with_hint(job, ONLY)
            .where(job.c.queue == queue, in_order_of_claims(job), wanted)
            .order_by(job.c.priority)
            .limit(1)
            .subquery("first")
        )
        lanes = select(first.c.priority).cte("lanes", recursive=True, nesting=True)
        next_priority = (
            select(func.min(following.c.priority))
            .with_hint(following, ONLY)
            .where(
                following.c.queue == queue,
                in_order_of_claims(following),
                following.c.priority > lanes.c.priority,
            )
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
        lanes: Any = self._given_lanes() if onward else self._lanes()
        due = self._job.alias("due")
        conditions: list[ColumnElement[bool]] = []
        if onward:
            conditions.append(_behind_start_of(lanes, due))
        if skipping:
            conditions.append(not_(due.c.id == any_(array_parameter("skip", Text()))))
        limit = parameter("limit", Integer)
        return self._due_in(lanes, due, value, _QUEUE, limit, conditions, lock=lock)

    def _due_in(
        self,
        lanes: Any,
        due: Any,
        value: str,
        queue: ColumnElement[str],
        limit: ColumnElement[int],
        conditions: Iterable[ColumnElement[bool]],
        *,
        lock: bool = True,
    ) -> Select[Any]:
        """A system column or id of the due jobs in these lanes of a queue, in order."""
        lane: Select[Any] = (
            select(literal_column(f"due.{value}").label("value"), *self._places(due))
            .select_from(due)
            .with_hint(due, ONLY)
            .where(
                due.c.priority == lanes.c.priority,
                in_order_of_claims(due),
                *self._is_due(due, queue),
                *conditions,
            )
            .order_by(due.c.next_run_at, due.c.id)
            .limit(limit)
        )
        if lock:
            lane = self._lock_to_claim(lane)
        return self._first_of(lanes, lane.lateral("lane"), limit)

    def _places(self, due: Any) -> tuple[ColumnElement[Any], ...]:
        """What :meth:`_first_of` must know of each job."""
        return ()

    def _first_of(self, lanes: Any, found: Any, limit: ColumnElement[int]) -> Select[Any]:
        """The first jobs of a queue, of what was found in each of its lanes."""
        # No ORDER BY here: lanes come in ascending order, and the LIMIT stops reading them.
        return select(found.c.value).select_from(lanes.join(found, true())).limit(limit)

    def _given_lanes(self) -> TableValuedAlias:
        """Where to read on in each lane. Parameters: lists priority, at, id; ascending.

        A lane without a time (null) is read from two seconds ago, for jobs whose transaction was
        committed late.
        """
        return unnest(priority=SmallInteger(), at=DateTime(timezone=True), id=Text())

    def _is_due(self, due: Any, queue: ColumnElement[str]) -> tuple[ColumnElement[bool], ...]:
        return due.c.queue == queue, due.c.next_run_at <= func.now(), due.c.claimed_by.is_(None)

    def _lock_to_claim(self, rows: Select[Any]) -> Select[Any]:
        # NO KEY: a user's row that refers to the job must not hide it. No OF: nothing else is
        # read here, and SQLAlchemy 2.0.30 can't compile it within a LATERAL.
        return rows.with_for_update(skip_locked=True, key_share=True)

    def _claim(self, locked: Select[Any], *named: ColumnElement[bool]) -> ReturningUpdate[Any]:
        job = self._job
        return (
            update(job)
            .with_hint(ONLY)
            .where(at(locked), *named)
            .values(
                claimed_by=parameter("worker", BigInteger),
                lease=job.c.lease + 1,
                attempt=job.c.attempt + 1,
                updated_at=func.now(),
                # Of scope queued: what comes from now on leads to one more run. Any other value
                # stays what it was, so the row's index entries stay too.
                unique_key=case(
                    (func.starts_with(job.c.unique_key, _QUEUED_KEY, type_=Boolean), null()),
                    else_=job.c.unique_key,
                ),
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
                # It has just been set to the transaction's time.
                seconds(job.c.updated_at - job.c.unknown_since).label("unknown_for"),
                self._extras().label("extras"),
            )
        )

    def _claim_of_queue(self, locked: Select[Any]) -> ReturningUpdate[Any]:
        return self._claim(locked, self._job.c.queue == _QUEUE)

    def _extras(self) -> ColumnElement[Any]:
        """What few jobs have: group, batch, whether cancelled, whether expired; null for most."""
        job = self._job
        used = or_(
            job.c.group_key.is_not(None),
            job.c.batch_id.is_not(None),
            job.c.cancel_at.is_not(None),
            job.c.expires_at.is_not(None),
        )
        yes: ColumnElement[str] = literal_column("'yes'", Text)
        cancelled = case((job.c.cancel_at.is_not(None), yes))
        expired = case((job.c.expires_at < job.c.updated_at, yes))
        found = case((used, array([job.c.group_key, job.c.batch_id, cancelled, expired])))
        return type_coerce(found, _TextArray())

    @cached_property
    def from_head(self) -> Executable:
        """Give due jobs of one queue to a worker. RETURNING has no order, so sort what comes back.

        Parameters: queue, limit, worker.
        """
        return self._claim_of_queue(self._due("ctid"))

    @cached_property
    def onward(self) -> Executable:
        """As :attr:`from_head`, from where the last claim stopped in each of the given lanes.

        Parameters: as there, and lists priority, at, id, one row for each lane.
        """
        return self._claim_of_queue(self._due("ctid", onward=True))

    @cached_property
    def of_queues(self) -> Executable:
        """Claim from many queues, and look at their lanes and their next due times.

        Parameter: worker. Lists queue, limits, lanes_from and lanes_to, one row for each queue: its
        lanes are those from the first to the last place in the lists priority, at and id; if the
        last is 0 they are looked up, and read from the head.

        The first row has nothing but the time. Then come rows without an id: for each queue its
        lanes, or a single row without a lane, the seconds until the lane's next scheduled job, and
        the time when they were read. Then come the claimed jobs, in no order.
        """
        claimed = self._claim(self._due_of_asked()).returning(self._job.c.queue).cte("claimed")
        asked, lanes = _asked(), self._lanes_of_asked().lateral("lanes")
        scheduled = self._job.alias("scheduled")
        next_due = (
            select(func.min(scheduled.c.next_run_at))
            .with_hint(scheduled, ONLY)
            .where(
                scheduled.c.queue == _Asked.queue,
                in_order_of_claims(scheduled),
                scheduled.c.priority == lanes.c.priority,
                scheduled.c.next_run_at > func.now(),
            )
            .correlate(lanes)
            .scalar_subquery()
        )

        def row(
            due_in: ColumnElement[Any], read_at: ColumnElement[Any], **known: Any
        ) -> Select[Any]:
            columns = [known.get(c.name, cast(null(), c.type)).label(c.name) for c in claimed.c]
            return select(*columns, due_in.label("due_in"), read_at.label("read_at"))

        no_time, now = cast(null(), Float(53)), func.clock_timestamp()
        due_in = seconds(next_due - now)
        looks = row(due_in, now, queue=_Asked.queue, priority=lanes.c.priority)
        looks = looks.select_from(asked.outerjoin(lanes, true()))
        never = cast(null(), DateTime(timezone=True))
        return row(no_time, now).union_all(looks, select(*claimed.c, no_time, never))

    def _due_of_asked(self) -> Select[Any]:
        """The addresses of due jobs of all queues, each with its own limit; locked."""
        due = self._job.alias("due")
        lanes = self._lanes_of_asked().subquery("lanes")
        behind = _behind_start_of(lanes, due)
        found = self._due_in(lanes, due, "ctid", _Asked.queue, _Asked.limit, [behind])
        found_in = found.lateral("found")
        return select(found_in.c.value).select_from(_asked().join(found_in, true()))

    def _lanes_of_asked(self) -> CompoundSelect[Any]:
        """The lanes of a queue: those given, or all there are."""
        columns: dict[str, TypeEngine[Any]] = {
            "priority": SmallInteger(),
            "at": DateTime(timezone=True),
            "id": Text(),
        }
        lists = [Grouping(array_parameter(name, item)) for name, item in columns.items()]
        given = (
            func.unnest(*(items[_Asked.lanes_from : _Asked.lanes_to] for items in lists))
            .table_valued(*(column(name, item) for name, item in columns.items()))
            .render_derived(name="given")
        )
        # No parameter: it would be named after the column, and 2.0.30 escapes the dot in that name.
        lanes = self._lanes(_Asked.queue, _Asked.lanes_to == literal_column("0"))
        found = (
            select(lanes.c.priority).where(lanes.c.priority.is_not(None)).subquery("found_lanes")
        )
        head = literal(EARLIEST, columns["at"]), literal("", columns["id"])
        return select(given.c.priority, given.c.at, given.c.id).union_all(
            select(found.c.priority, *head)
        )

    @cached_property
    def lanes(self) -> Executable:
        """The priorities that a queue's jobs have, ascending. Parameter: queue."""
        lanes = self._lanes()
        return select(lanes.c.priority).where(lanes.c.priority.is_not(None))

    @cached_property
    def any_due(self) -> Executable:
        """Whether a job of these queues is due that no worker has claimed. Parameter: list queues.

        Locked rows count.
        """
        job = self._job
        due = (
            select(job.c.id)
            .with_hint(job, ONLY)
            .where(
                job.c.queue == any_(array_parameter("queues", Text())),
                in_order_of_claims(job),
                job.c.next_run_at <= func.now(),
                job.c.claimed_by.is_(None),
            )
        )
        return select(due.exists())

    @cached_property
    def skipping(self) -> Executable:
        """As :attr:`from_head`, without some ids. Parameters: as there, and list skip."""
        return self._claim_of_queue(self._due("ctid", skipping=True))

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
            .where(due.c.id == parameter("id", Text), *self._is_due(due, _QUEUE))
        )
        return self._claim_of_queue(self._lock_to_claim(row))

    def _by_id(self, only_due: bool) -> Executable:
        """As :attr:`one`, of whichever queue: it is one column more. Parameters: worker, id.

        Unless it is *only_due*, a job that is scheduled for later is taken too. One that waits for
        a seat of its group is not.
        """
        job = self._job.alias("due")
        may_start = job.c.next_run_at <= func.now() if only_due else job.c.waits.is_not(true())
        row: Select[Any] = (
            select(literal_column("due.ctid"))
            .select_from(job)
            .with_hint(job, ONLY)
            .where(job.c.id == parameter("id", Text), job.c.claimed_by.is_(None), may_start)
        )
        return self._claim(self._lock_to_claim(row)).returning(self._job.c.queue)

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
                in_order_of_claims(job),
                job.c.priority == lanes.c.priorities,
                job.c.next_run_at > func.now(),
            )
            .correlate(lanes)
            .scalar_subquery()
        )
        times = select(earliest.label("earliest")).select_from(lanes).subquery("times")
        return select(seconds(func.min(times.c.earliest) - func.clock_timestamp()))


class _Asked:
    """The row of :func:`_asked` that a subquery of :attr:`ClaimStatements.of_queues` is about."""

    queue: ColumnElement[str] = literal_column("asked.queue", Text)
    limit: ColumnElement[int] = literal_column("asked.limits", Integer)
    lanes_from: ColumnElement[int] = literal_column("asked.lanes_from", Integer)
    lanes_to: ColumnElement[int] = literal_column("asked.lanes_to", Integer)


def _asked() -> TableValuedAlias:
    """The queues of :attr:`ClaimStatements.of_queues`."""
    return unnest("asked", queue=Text(), limits=Integer(), lanes_from=Integer(), lanes_to=Integer())


def _behind_start_of(lanes: Any, due: Any) -> ColumnElement[bool]:
    """Whether a job stands behind the position where its lane is read on."""
    start = func.coalesce(lanes.c.at, func.now() - _LATE_COMMITS)
    return tuple_(due.c.next_run_at, due.c.id) > tuple_(start, lanes.c.id)
