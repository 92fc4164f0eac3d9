"""Every SQL statement of the queue, as SQLAlchemy Core constructs.

Nothing here executes: a :class:`Statements` builds each statement of one set of tables once, with
named parameters, and hands it out. The threaded and the asyncio worker therefore send the same SQL.

* Rows are locked inside an ``ARRAY(SELECT ctid ... SKIP LOCKED)``, which is evaluated once: the
  LIMIT holds whichever plan is chosen, and the rows are then fetched by address, so no statistics
  can turn the join into a scan of the table. A locked row cannot move.
* A settlement names the id, the lease and the worker. If anyone has claimed the job since, it
  matches no row, and the late result is dropped.
* A hot statement touches one queue only.
"""

from collections.abc import Mapping
from functools import cache, cached_property
from hashlib import sha1
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    Boolean,
    ColumnElement,
    DateTime,
    Executable,
    Float,
    FromClause,
    Integer,
    Interval,
    LargeBinary,
    Select,
    SmallInteger,
    Table,
    TableValuedAlias,
    Text,
    and_,
    any_,
    bindparam,
    case,
    cast,
    column,
    delete,
    extract,
    func,
    insert,
    literal,
    literal_column,
    not_,
    or_,
    select,
    table,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, REGCLASS
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.sql.selectable import CTE

from ._errors import describe
from ._frozen import qualified
from .exceptions import WorkerLost
from .models import Models, lease_at_insert

if TYPE_CHECKING:
    from collections.abc import Callable

_CTID: ColumnElement[Any] = literal_column("ctid")
_SECOND: ColumnElement[Any] = literal_column("interval '1 second'")
_LATE_COMMITS: ColumnElement[Any] = literal_column("interval '2 seconds'")
"""How far behind the clock a claim looks for jobs whose transaction was committed late."""

APPLICATION_NAME_PREFIX = "bgjob/"
PARAMETER_PREFIX = "given_"

_activity = table(
    "pg_stat_activity",
    column("pid", Integer),
    column("backend_start", DateTime(timezone=True)),
    column("application_name", Text),
    column("usename", Text),
    column("datname", Text),
    column("state", Text),
    schema="pg_catalog",
)
_bgwriter = table(
    "pg_stat_bgwriter", column("stats_reset", DateTime(timezone=True)), schema="pg_catalog"
)


def application_name(worker_id: int) -> str:
    """The name that all sessions of a worker carry, so that others can tell them."""
    return f"{APPLICATION_NAME_PREFIX}{worker_id}"


def _given(name: str, type_: Any) -> BindParameter[Any]:
    # Prefixed: SQLAlchemy keeps the columns' own names for the values of an INSERT or UPDATE.
    return bindparam(f"{PARAMETER_PREFIX}{name}", type_=type_)


def parameters(**values: Any) -> dict[str, Any]:
    """Values for the parameters that the statements' docstrings name."""
    return {f"{PARAMETER_PREFIX}{name}": value for name, value in values.items()}


def channel_name(schema: str | None, table_prefix: str) -> str:
    """The name on which workers LISTEN: one for each set of tables, at most 63 bytes."""
    full_name = f"{schema or ''}.{table_prefix}"
    return f"bgjob_{sha1(full_name.encode(), usedforsecurity=False).hexdigest()[:12]}"


@cache
def wake_up(schema: str | None, table_prefix: str) -> Executable:
    """Wake the workers that wait for a queue, at this transaction's commit. Parameter: queue."""
    worker = table(f"{table_prefix}worker", column("id"), column("waits_for", JSONB), schema=schema)
    queue = _given("queue", Text)
    notified = func.pg_notify(channel_name(schema, table_prefix), queue)
    return select(cast(notified, Text)).where(awaited(worker, queue))


def awaited(worker: FromClause, queue: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a worker waits for this queue to be notified of.

    Every COMMIT that notifies takes a lock which those of all other databases wait for, and most
    notifications would tell busy workers what they find by themselves.
    """
    waits_for = cast(worker.c.waits_for, JSONB)
    return select(worker.c.id).where(waits_for.has_key(queue)).exists()


def _array(name: str, item: Any) -> ColumnElement[Any]:
    # The cast types an empty list, and spares drivers that send text from guessing.
    return cast(_given(name, ARRAY(item)), ARRAY(item))


def _unnest(**columns: Any) -> TableValuedAlias:
    """Rows made of parallel array parameters: ``unnest(ids, leases, ...)``."""
    arrays = [_array(name, item) for name, item in columns.items()]
    return (
        func.unnest(*arrays)
        .table_valued(*(column(name, item) for name, item in columns.items()), name="given")
        .render_derived()
    )


def _at(locked: Select[Any]) -> ColumnElement[bool]:
    """Rows at the addresses that a locking SELECT of one ctid column returns."""
    return any_(func.array(locked.scalar_subquery())) == _CTID


def _seconds(interval: ColumnElement[Any]) -> ColumnElement[float]:
    return cast(extract("epoch", interval), Float(53))


class GiveBack(NamedTuple):
    """One statement for all jobs, and what it takes to do the same one by one."""

    together: Executable
    ids: Executable
    one: Executable
    """Takes the further parameter id."""


class Statements:
    """The statements of one set of tables. Their parameters are named in each docstring."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._job: Table = models.job
        self._dead: Table = models.dead_job
        self._worker: Table = models.worker
        self.channel = channel_name(models.schema, models.table_prefix)
        self.channel_of_given_back = f"{self.channel}_given_back"
        # Built once for each combination of flags: building costs more than sending.
        self.insert_job: Callable[[bool], Executable] = cache(self._insert_job)
        self.insert_jobs: Callable[[bool], Executable] = cache(self._insert_jobs)
        self.complete: Callable[[bool], Executable] = cache(self._complete)
        self.release: Callable[[bool], Executable] = cache(self._release)
        self.bury: Callable[[bool], Executable] = cache(self._bury)
        self.notify_given_back: Callable[[bool], Executable] = cache(self._notify_given_back)

    @property
    def table_names(self) -> list[str]:
        """The tables' names, quoted, as PostgreSQL's functions take them: that of jobs is first."""
        tables = (self._job, self._dead, self._worker)
        return [qualified(table.schema, table.name) for table in tables]

    # ---- enqueue ---------------------------------------------------------------------------

    def _insert_job(self, notify: bool) -> Executable:
        """One job, and with *notify* its wake-up in the same statement.

        Returns its id, or nothing if it exists. Parameters: id, queue, type, arg,
        priority, headers, delay (timedelta) or null, run_at or null.
        """
        job = self._job
        inserted = (
            pg_insert(job)
            .values(
                id=_given("id", Text),
                queue=_given("queue", Text),
                type=_given("type", Text),
                arg=_given("arg", LargeBinary),
                priority=_given("priority", SmallInteger),
                headers=_given("headers", JSONB(none_as_null=True)),
                next_run_at=_start(_given("delay", Interval), _run_at_parameter()),
            )
            .on_conflict_do_nothing(index_elements=[job.c.id])
            .returning(job.c.id)
        )
        if not notify:
            return inserted
        done = inserted.cte("inserted")
        queue = _given("queue", Text)
        notified = case((awaited(self._worker, queue), func.pg_notify(self.channel, queue)))
        return select(done.c.id, cast(notified, Text))

    def _insert_jobs(self, notify: bool) -> Executable:
        """Many jobs in one statement, one row for each that did not exist: its id.

        Parameters: lists ids, queues, types, args, priorities, headers (JSON text), delays
        (seconds or null), and run_ats; all of the same length.
        """
        given = _unnest(
            ids=Text(),
            queues=Text(),
            types=Text(),
            args=LargeBinary(),
            priorities=SmallInteger(),
            headers=Text(),
            delays=Float(53),
            run_ats=DateTime(timezone=True),
        )
        rows = select(
            given.c.ids,
            given.c.queues,
            given.c.types,
            given.c.args,
            given.c.priorities,
            cast(given.c.headers, JSONB),
            _start(given.c.delays * _SECOND, given.c.run_ats),
        )
        return self._insert_from(rows, notify=notify)

    @cached_property
    def before_copy(self) -> Executable:
        """When the transaction began; null where COPY is refused for the table's row security.

        It opens the transaction: SQLAlchemy sends BEGIN with the first statement of its own, and
        a COPY before it would be committed by itself.
        """
        name = literal(self.table_names[0], Text)
        secured = func.row_security_active(cast(name, REGCLASS))
        return select(case((not_(secured), func.now())))

    def insert_from(
        self, source: Select[Any], *, notify: bool, ignore_duplicates: bool
    ) -> Executable:
        """``INSERT ... SELECT`` from the user's own query; one row for each new job: its id.

        The labels id, delay (seconds) and priority are the job's own; all others become the JSON
        object of the arg. Parameters: queue, type, headers, run_at, and delay (timedelta) and
        priority unless they are labels.
        """
        rows = source.subquery("source")
        # By name and not by key: the names are what to_jsonb sees.
        given = {column.name: column for column in rows.c}
        # The star makes it the row, also where a column is called source.
        arg: ColumnElement[Any] = func.to_jsonb(literal_column("source.*"), type_=JSONB)
        for name in sorted({"id", "delay", "priority"} & set(given)):
            arg = arg.op("-", return_type=JSONB())(literal(name, Text))
        one = select(
            cast(given["id"], Text) if "id" in given else _uuid7(),
            cast(_given("queue", Text), Text),
            cast(_given("type", Text), Text),
            func.convert_to(cast(arg, Text), "UTF8"),
            cast(given["priority"], SmallInteger)
            if "priority" in given
            else cast(_given("priority", SmallInteger), SmallInteger),
            cast(_given("headers", JSONB(none_as_null=True)), JSONB),
            _start(
                given["delay"] * _SECOND
                if "delay" in given
                else cast(_given("delay", Interval), Interval),
                cast(_given("run_at", DateTime(timezone=True)), DateTime(timezone=True)),
            ),
        ).select_from(rows)
        return self._insert_from(one, notify=notify, ignore_duplicates=ignore_duplicates)

    def _insert_from(
        self, rows: Select[Any], *, notify: bool, ignore_duplicates: bool = True
    ) -> Executable:
        job = self._job
        names = ["id", "queue", "type", "arg", "priority", "headers", "next_run_at"]
        inserted = pg_insert(job).from_select(names, rows)
        if ignore_duplicates:
            inserted = inserted.on_conflict_do_nothing(index_elements=[job.c.id])
        if not notify:
            return inserted.returning(job.c.id)
        # A user's own query may name a CTE or a table "inserted".
        done = inserted.returning(job.c.id, job.c.queue).cte("bgjob_inserted")
        # One notification for each queue, not for each job.
        queues = select(done.c.queue).distinct().subquery("queues")
        notified = func.pg_notify(self.channel, queues.c.queue)
        woken = (
            select(func.count(notified).label("count"))
            .where(awaited(self._worker, queues.c.queue))
            .subquery("woken")
        )
        return select(done.c.id).select_from(done.join(woken, true()))

    @cached_property
    def notify(self) -> Executable:
        """See :func:`wake_up`."""
        return wake_up(self._models.schema, self._models.table_prefix)

    def _notify_given_back(self, everybody: bool) -> Executable:
        """Tell workers at this transaction's commit: jobs of a queue were given back.

        They stand where busy workers do not look. So with *everybody*, for what is rare, it is not
        only for those who wait. Parameter: queue.
        """
        queue = _given("queue", Text)
        notified = select(cast(func.pg_notify(self.channel_of_given_back, queue), Text))
        return notified if everybody else notified.where(awaited(self._worker, queue))

    # ---- claim -----------------------------------------------------------------------------

    def _lanes(self) -> CTE:
        """The queue's priorities, ascending, by one index probe each; the last row is null."""
        job = self._job.alias("first_job")
        following = self._job.alias("following_job")
        queue = _given("queue", Text)
        first = (
            select(job.c.priority)
            .where(job.c.queue == queue)
            .order_by(job.c.priority)
            .limit(1)
            .subquery("first")
        )
        lanes = select(first.c.priority).cte("lanes", recursive=True)
        next_priority = (
            select(func.min(following.c.priority))
            .where(following.c.queue == queue, following.c.priority > lanes.c.priority)
            .scalar_subquery()
        )
        return lanes.union_all(select(next_priority).where(lanes.c.priority.is_not(None)))

    def _due(
        self, value: str, *, onward: bool = False, skipping: bool = False, lock: bool = True
    ) -> Select[Any]:
        """A system column or id of the due jobs of one queue, in order. Parameters: queue, limit.

        Each (queue, priority) is a lane, read by itself in the index's own order: one range over
        all priorities would walk every scheduled row of the lower ones. The lanes are looked up
        and read from their heads; or, *onward*, they are given, and read from where the last claim
        has stopped: then no entry of a job that is gone is walked twice, however long a transaction
        keeps the server from removing it. With *skipping*, the ids in the parameter skip are left
        out.
        """
        due = self._job.alias("due")
        limit = _given("limit", Integer)
        lanes: Any = self._given_lanes() if onward else self._lanes()
        lane: Select[Any] = (
            select(literal_column(f"due.{value}").label("value"))
            .select_from(due)
            .where(due.c.priority == lanes.c.priority, *self._is_due(due))
            .order_by(due.c.next_run_at, due.c.id)
            .limit(limit)
        )
        if onward:
            start = func.coalesce(lanes.c.at, func.now() - _LATE_COMMITS)
            lane = lane.where(tuple_(due.c.next_run_at, due.c.id) > tuple_(start, lanes.c.id))
        if skipping:
            lane = lane.where(not_(due.c.id == any_(_array("skip", Text()))))
        if lock:
            lane = self._lock_to_claim(lane)
        found = lane.lateral("lane")
        # No ORDER BY here: lanes come in ascending order, and the LIMIT stops reading them.
        return select(found.c.value).select_from(lanes.join(found, true())).limit(limit)

    def _given_lanes(self) -> TableValuedAlias:
        """Where to read on in each lane. Parameters: lists priority, at, id; ascending.

        Without a time (null), from two seconds ago: what was committed late is seen at once.
        """
        return _unnest(priority=SmallInteger(), at=DateTime(timezone=True), id=Text())

    def _is_due(self, due: Any) -> tuple[ColumnElement[bool], ...]:
        return (
            due.c.queue == _given("queue", Text),
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
            .where(_at(locked))
            .values(
                claimed_by=_given("worker", BigInteger),
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
                _seconds(func.now() - job.c.unknown_since).label("unknown_for"),
            )
        )

    @cached_property
    def claim(self) -> Executable:
        """Give due jobs of one queue to a worker; RETURNING has no order: sort.

        Parameters: queue, limit, worker.
        """
        return self._claim(self._due("ctid"))

    @cached_property
    def claim_onward(self) -> Executable:
        """As :attr:`claim`, from where the last claim has stopped in each of the given lanes.

        Parameters: as claim, and lists priority, at, id, one row for each lane.
        """
        return self._claim(self._due("ctid", onward=True))

    @cached_property
    def lanes(self) -> Executable:
        """The priorities that a queue's jobs have, ascending. Parameter: queue."""
        lanes = self._lanes()
        return select(lanes.c.priority).where(lanes.c.priority.is_not(None))

    @cached_property
    def claim_others(self) -> Executable:
        """As :attr:`claim`, without rows that refused. Parameters: as claim, and the list skip."""
        return self._claim(self._due("ctid", skipping=True))

    @cached_property
    def due_ids(self) -> Executable:
        """What :attr:`claim_others` would take, in order and not locked. Parameters: as there."""
        return self._due("id", skipping=True, lock=False)

    @cached_property
    def claim_one(self) -> Executable:
        """As :attr:`claim`, for one job if it is still due. Parameters: queue, worker, id."""
        due = self._job.alias("due")
        row: Select[Any] = (
            select(literal_column("due.ctid"))
            .select_from(due)
            .where(due.c.id == _given("id", Text), *self._is_due(due))
        )
        return self._claim(self._lock_to_claim(row))

    @cached_property
    def next_due(self) -> Executable:
        """Seconds until the next scheduled job; null if there is none.

        Parameters: queue, and list priorities: the lanes to look at.
        """
        lanes = _unnest(priorities=SmallInteger())
        job = self._job.alias("scheduled")
        earliest = (
            select(func.min(job.c.next_run_at))
            .where(
                job.c.queue == _given("queue", Text),
                job.c.priority == lanes.c.priorities,
                job.c.next_run_at > func.now(),
            )
            .correlate(lanes)
            .scalar_subquery()
        )
        times = select(earliest.label("earliest")).select_from(lanes).subquery("times")
        return select(_seconds(func.min(times.c.earliest) - func.clock_timestamp()))

    # ---- settle ----------------------------------------------------------------------------

    def _held(self, given: TableValuedAlias, *, wait: bool, keeps_key: bool = False) -> Select[Any]:
        """The addresses of the given jobs that this worker still holds, locked.

        Not `attempt`: reschedule and redrive give attempts back, so a value can recur. A batch does
        not wait for a row that somebody else has locked; a handler's own transaction does. Where
        the row stays, a foreign key that points at it does not stand in the way.
        """
        return self._one_by_one(
            given,
            literal_column("held.ctid"),
            lambda held, one: one.with_for_update(skip_locked=not wait, key_share=keeps_key),
        )

    def _one_by_one(
        self,
        given: TableValuedAlias,
        value: ColumnElement[Any],
        complete: "Callable[[Any, Select[Any]], Select[Any]]",
    ) -> Select[Any]:
        """A value of each given job that this worker still holds.

        A LATERAL that can't be pulled up: one look into the primary key for each job, whatever
        the statistics say. Joined in the open, the same was a nested loop over all pairs, or a
        scan of the queue's part of the claim's index, see tests/test_plans.py. So the queue, which
        would invite the latter, is not named.
        """
        held = self._job.alias("held")
        one = select(value.label("value")).where(
            held.c.id == given.c.ids,
            held.c.lease == given.c.leases,
            held.c.claimed_by == _given("worker", BigInteger),
        )
        found = complete(held, one.select_from(held)).lateral("found")
        return select(found.c.value).select_from(given.join(found, true()))

    def _complete(self, wait: bool) -> Executable:
        """Delete jobs that are done; returns how many, the xid, and if some were not, the ids.

        Parameters: worker, and lists ids, leases. With *wait*, wait for locked rows.
        """
        given = _unnest(ids=Text(), leases=BigInteger())
        job = self._job
        gone = delete(job).where(_at(self._held(given, wait=wait))).returning(job.c.id).cte("gone")
        count = func.count()
        all_gone = count == func.cardinality(_array("ids", Text()))
        which = case((not_(all_gone), func.array_agg(gone.c.id, type_=ARRAY(Text))))
        # Where nothing was done, none is assigned.
        return select(count, case((count > 0, _xid())), which).select_from(gone)

    @cached_property
    def complete_one(self) -> Executable:
        """As :meth:`complete`, for one job and without waiting; returns the xid.

        Parameters: worker, id, lease.
        """
        job = self._job
        held = job.alias("held")
        locked: Select[Any] = (
            select(literal_column("held.ctid"))
            .select_from(held)
            .where(
                held.c.id == _given("id", Text),
                held.c.lease == _given("lease", BigInteger),
                held.c.claimed_by == _given("worker", BigInteger),
            )
            .with_for_update(skip_locked=True)
        )
        return delete(job).where(_at(locked)).returning(_xid())

    def _release(self, wait: bool) -> Executable:
        """Queue jobs again; returns id and xid of each.

        Parameters: worker, and lists ids, leases, give_backs, delays (seconds; null keeps
        next_run_at), errors, keep_errors, args, new_args, headers (JSON text), unknowns.
        """
        job = self._job
        given = _unnest(
            ids=Text(),
            leases=BigInteger(),
            give_backs=Integer(),
            delays=Float(53),
            errors=Text(),
            keep_errors=Boolean(),
            args=LargeBinary(),
            new_args=Boolean(),
            headers=Text(),
            unknowns=Boolean(),
        )
        again = func.clock_timestamp() + given.c.delays * _SECOND
        return (
            update(job)
            .where(_at(self._held(given, wait=wait, keeps_key=True)), job.c.id == given.c.ids)
            .values(
                claimed_by=None,
                lease=job.c.lease + 1,
                attempt=func.greatest(job.c.attempt - given.c.give_backs, 0),
                next_run_at=func.coalesce(again, job.c.next_run_at),
                last_error=case((given.c.keep_errors, job.c.last_error), else_=given.c.errors),
                arg=case((given.c.new_args, given.c.args), else_=job.c.arg),
                headers=case((given.c.new_args, cast(given.c.headers, JSONB)), else_=job.c.headers),
                unknown_since=case(
                    (given.c.unknowns, func.coalesce(job.c.unknown_since, func.now()))
                ),
                updated_at=func.now(),
            )
            .returning(job.c.id, _xid())
        )

    def _bury(self, wait: bool) -> Executable:
        """Move jobs to the dead table; returns id and xid of each.

        Parameters: worker, and lists ids, leases, dead_ids, give_backs, errors.
        """
        job, dead = self._job, self._dead
        given = _unnest(
            ids=Text(), leases=BigInteger(), dead_ids=Text(), give_backs=Integer(), errors=Text()
        )
        moved = delete(job).where(_at(self._held(given, wait=wait))).returning(*job.c).cte("moved")
        values: dict[str, Any] = {
            "id": given.c.dead_ids,
            "job_id": moved.c.id,
            "job_created_at": moved.c.created_at,
            "job_updated_at": moved.c.updated_at,
            "moved_at": func.clock_timestamp(),
            "attempt": func.greatest(moved.c.attempt - given.c.give_backs, 0),
            "last_error": func.coalesce(given.c.errors, moved.c.last_error),
        }
        # The rest by name, the user's own columns among them where both tables have them.
        values |= {
            c.name: moved.c[c.name] for c in dead.c if c.name not in values and c.name in moved.c
        }
        rows = select(*values.values()).select_from(moved.join(given, moved.c.id == given.c.ids))
        return insert(dead).from_select(list(values), rows).returning(dead.c.job_id, _xid())

    @cached_property
    def still_held(self) -> Executable:
        """Which of the given jobs this worker holds, locked or not. Parameters as in complete."""
        given = _unnest(ids=Text(), leases=BigInteger())
        return self._one_by_one(
            given, literal_column("held.id", Text), lambda held, one: one.limit(1)
        )

    @cached_property
    def note_error(self) -> Executable:
        """Write last_error of a job that can't be settled. Parameters: as complete, and error."""
        given = _unnest(ids=Text(), leases=BigInteger())
        job = self._job
        return (
            update(job)
            .where(_at(self._held(given, wait=False, keeps_key=True)))
            .values(last_error=_given("error", Text), updated_at=func.now())
        )

    @cached_property
    def transaction_status(self) -> Executable:
        """committed, aborted or in progress. Parameter: xid, as text."""
        xid = cast(_given("xid", Text), Text).op("::")(literal_column("xid8"))
        return select(cast(func.pg_xact_status(xid), Text))

    @cached_property
    def hand_back_others(self) -> "GiveBack":
        """Queue again, attempt unspent, all that a worker has claimed but for the jobs it knows of.

        By lease too: it may know of an earlier claim of the same job. Reads the whole table: for
        after an outage. Parameters: worker, and lists ids, leases (those it knows of).
        """
        job = self._job
        held = job.alias("held")
        given = _unnest(ids=Text(), leases=BigInteger())
        known = (
            select(given.c.ids)
            .where(given.c.ids == held.c.id, given.c.leases == held.c.lease)
            .exists()
        )
        mine = and_(held.c.claimed_by == _given("worker", BigInteger), not_(known))
        unspent = func.greatest(job.c.attempt - 1, 0)
        return self._give_back(held, mine, {"attempt": unspent})

    # ---- operate ---------------------------------------------------------------------------

    @cached_property
    def cancel(self) -> Executable:
        """Delete a job that no worker has claimed; returns its id. Parameter: id."""
        job = self._job
        return (
            delete(job)
            .where(job.c.id == _given("id", Text), job.c.claimed_by.is_(None))
            .returning(job.c.id)
        )

    def redrive(self, where: ColumnElement[bool], limit: int | None) -> Executable:
        """Bring dead jobs back, of each job id the one that died last.

        Returns job_id, queue, and whether it was brought back, of each that *where* finds: it stays
        dead while a live job has its id. Parameter: delay (timedelta).
        """
        job, dead = self._job, self._dead
        # All columns from here: what somebody has edited while this waited is what runs.
        found = (
            select(*dead.c).where(where).order_by(*self._dead_order).limit(limit).with_for_update()
        ).cte("found")
        newest_first = (found.c.moved_at.desc(), found.c.id.desc())
        place = func.row_number().over(partition_by=found.c.job_id, order_by=newest_first)
        ranked = select(*found.c, place.label("place")).subquery("ranked")
        last = select(*ranked.c).where(ranked.c.place == 1).cte("last")
        values: dict[str, Any] = {
            "id": last.c.job_id,
            # Above all that this job had, and above those of a later one of the same id.
            "lease": func.greatest(last.c.lease + 1, lease_at_insert()),
            "attempt": literal(0, Integer),
            "crashes": literal(0, Integer),
            "next_run_at": func.now() + _given("delay", Interval),
            "created_at": last.c.job_created_at,
            "updated_at": func.now(),
        }
        values |= {
            c.name: last.c[c.name] for c in job.c if c.name not in values and c.name in last.c
        }
        back = (
            pg_insert(job)
            .from_select(list(values), select(*values.values()))
            .on_conflict_do_nothing(index_elements=[job.c.id])
            .returning(job.c.id)
            .cte("back")
        )
        gone = (
            delete(dead)
            .where(dead.c.id == last.c.id, last.c.job_id == back.c.id)
            .returning(dead.c.id)
            .cte("gone")
        )
        return select(found.c.job_id, found.c.queue, gone.c.id.is_not(None)).select_from(
            found.outerjoin(gone, gone.c.id == found.c.id)
        )

    def prune(self, where: ColumnElement[bool], limit: int | None) -> Executable:
        """Delete dead jobs, the oldest first; returns how many. Parameter: age (timedelta)."""
        dead = self._dead
        # By id and not by address: a row that was edited while this waited has a new one.
        old = (
            select(dead.c.id)
            .where(dead.c.moved_at < func.now() - _given("age", Interval), where)
            .order_by(*self._dead_order)
            .limit(limit)
            .with_for_update()
            .cte("old")
        )
        gone = delete(dead).where(dead.c.id == old.c.id).returning(dead.c.id).cte("gone")
        return select(func.count()).select_from(gone)

    @property
    def _dead_order(self) -> tuple[ColumnElement[Any], ...]:
        """In which order dead jobs are locked by all, so that nobody waits in a circle."""
        return self._dead.c.moved_at, self._dead.c.id

    @cached_property
    def grow_older(self) -> tuple[Executable, ...]:
        """Put all times of all jobs, live and dead, back. Parameter: by (timedelta)."""
        by = _given("by", Interval)
        times = {
            self._job: ("next_run_at", "created_at", "updated_at", "unknown_since"),
            self._dead: ("next_run_at", "job_created_at", "job_updated_at", "moved_at"),
        }
        return tuple(
            update(table).values({name: table.c[name] - by for name in names})
            for table, names in times.items()
        )

    @cached_property
    def wake_all(self) -> Executable:
        """Wake all workers that wait, for whatever they wait."""
        waits_for = cast(self._worker.c.waits_for, JSONB)
        queues = (
            func.jsonb_array_elements_text(waits_for)
            .table_valued("queue", name="awaited")
            .render_derived()
        )
        notified = func.pg_notify(self.channel, queues.c.queue)
        return select(cast(notified, Text)).select_from(self._worker.join(queues, true()))

    # ---- workers ---------------------------------------------------------------------------

    @cached_property
    def register(self) -> Executable:
        """A new worker's row. Parameters: id, hostname, pid, version, queues, lease_timeout."""
        return insert(self._worker).values(
            id=_given("id", BigInteger),
            hostname=_given("hostname", Text),
            pid=_given("pid", Integer),
            version=_given("version", Text),
            queues=_given("queues", JSONB),
            lease_timeout=_given("lease_timeout", Float(53)),
            started_at=func.clock_timestamp(),
            beat_at=func.clock_timestamp(),
        )

    @cached_property
    def unregister(self) -> Executable:
        """Remove a worker's row. Parameter: worker."""
        return delete(self._worker).where(self._worker.c.id == _given("worker", BigInteger))

    @cached_property
    def beat(self) -> Executable:
        """Say that a worker lives; no row comes back once its jobs were taken from it.

        Returns the seconds since its last beat.
        Parameters: worker, listener_pid, listener_started_at.
        """
        worker = self._worker
        me = _given("worker", BigInteger)
        before = select(worker.c.id, worker.c.beat_at).where(worker.c.id == me).subquery("before")
        return (
            update(worker)
            .where(worker.c.id == me, worker.c.lost_at.is_(None), before.c.id == worker.c.id)
            .values(
                beat_at=func.clock_timestamp(),
                listener_pid=_given("listener_pid", Integer),
                listener_started_at=_given("listener_started_at", DateTime(timezone=True)),
            )
            .returning(_seconds(func.clock_timestamp() - before.c.beat_at))
        )

    @cached_property
    def announce(self) -> Executable:
        """Name the queues in which a worker waits. Parameters: worker, and list queues."""
        worker = self._worker
        return (
            update(worker)
            .where(worker.c.id == _given("worker", BigInteger), worker.c.lost_at.is_(None))
            .values(waits_for=_given("queues", JSONB))
        )

    @cached_property
    def listener_session(self) -> Executable:
        """Pid and start of this very session; the start is null where it is hidden."""
        return select(_activity.c.pid, _activity.c.backend_start).where(
            _activity.c.pid == func.pg_backend_pid()
        )

    @cached_property
    def silent_workers(self) -> Executable:
        """Lock the rows of workers whose last beat is older than their own lease_timeout.

        None, unless the judge has been connected for as long, and has itself beaten lately by the
        clock that it judges by: after an outage or a jump of that clock everyone looks silent.
        Parameters: judge, connected (seconds).
        """
        worker = self._worker
        judge = worker.alias("judge")
        silence = func.clock_timestamp() - worker.c.beat_at
        fit = (
            select(judge.c.id)
            .where(
                judge.c.id == _given("judge", BigInteger),
                judge.c.lost_at.is_(None),
                func.clock_timestamp() - judge.c.beat_at < judge.c.lease_timeout / 2 * _SECOND,
            )
            .exists()
        )
        return self._lock_workers(
            and_(
                silence > worker.c.lease_timeout * _SECOND,
                worker.c.lease_timeout <= _given("connected", Float(53)),
                fit,
            )
        )

    @cached_property
    def lost_workers(self) -> Executable:
        """Lock the rows of workers that were found lost, while some job of theirs was locked."""
        worker = self._worker
        return (
            select(worker.c.id)
            .where(worker.c.lost_at.is_not(None))
            .with_for_update(skip_locked=True)
        )

    @cached_property
    def is_eldest(self) -> Executable:
        """Whether a worker is the one, of those that beat, that does what one of them has to do.

        Two may be for a moment, and none where the one with the smallest id has just ended.
        Parameters: worker.
        """
        worker = self._worker
        me = _given("worker", BigInteger)
        beating = and_(
            worker.c.lost_at.is_(None),
            func.clock_timestamp() - worker.c.beat_at < worker.c.lease_timeout * _SECOND,
        )
        return select(func.min(worker.c.id) == me).where(beating)

    @cached_property
    def ended_workers(self) -> Executable:
        """Workers whose listening session is gone: id and the last beat, to be looked at twice.

        A session that is idle, in a transaction or not, ends at once with its process, so one that
        exists proves that the process lives; one that is hidden from this role may be it. A restart
        of the server ends sessions of the living, so sessions from before it prove nothing.
        """
        worker = self._worker
        return select(worker.c.id, worker.c.beat_at).where(self._ended())

    @cached_property
    def ended_again(self) -> Executable:
        """Lock a worker's row if its session is still gone and it has not beaten.

        Parameters: worker, beat_at.
        """
        worker = self._worker
        return self._lock_workers(
            and_(
                worker.c.id == _given("worker", BigInteger),
                worker.c.beat_at == _given("beat_at", DateTime(timezone=True)),
                self._ended(),
            )
        )

    def _ended(self) -> ColumnElement[bool]:
        worker = self._worker
        session = _activity.alias("session")
        exists = (
            select(session.c.pid)
            .where(
                or_(
                    and_(
                        session.c.pid == worker.c.listener_pid,
                        func.coalesce(session.c.backend_start, worker.c.listener_started_at)
                        == worker.c.listener_started_at,
                    ),
                    and_(
                        session.c.application_name
                        == literal(APPLICATION_NAME_PREFIX, Text) + cast(worker.c.id, Text),
                        # Whoever asks is active, and alive.
                        or_(
                            session.c.state.is_distinct_from("active"),
                            session.c.pid == func.pg_backend_pid(),
                        ),
                    ),
                )
            )
            .exists()
        )
        # After the crash of one session the server ends all others, and begins anew without being
        # started anew; its statistics tell.
        began = func.greatest(
            func.pg_postmaster_start_time(), select(_bgwriter.c.stats_reset).scalar_subquery()
        )
        return and_(
            worker.c.lost_at.is_(None),
            worker.c.listener_pid.is_not(None),
            worker.c.listener_started_at > began,
            not_(exists),
        )

    def _lock_workers(self, condition: ColumnElement[bool]) -> Select[Any]:
        worker = self._worker
        return (
            select(worker.c.id)
            .where(worker.c.lost_at.is_(None), condition)
            .with_for_update(skip_locked=True)
        )

    @cached_property
    def end_sessions(self) -> Executable:
        """End a lost worker's sessions, so that row locks of a frozen handler block nobody.

        Waits up to a second for each. Parameters: name (see application_name).
        """
        return select(func.count(func.pg_terminate_backend(_activity.c.pid, 1000))).where(
            _activity.c.application_name == _given("name", Text),
            _activity.c.usename == func.current_user(),
            _activity.c.datname == func.current_database(),
            _activity.c.pid != func.pg_backend_pid(),
        )

    @cached_property
    def mark_lost(self) -> Executable:
        """It waits for nothing any more, either. Parameter: worker."""
        worker = self._worker
        return (
            update(worker)
            .where(worker.c.id == _given("worker", BigInteger), worker.c.lost_at.is_(None))
            .values(lost_at=func.clock_timestamp(), waits_for=literal([], JSONB))
        )

    @cached_property
    def give_back(self) -> "GiveBack":
        """Queue a lost worker's jobs again; returns the queue of each. Parameter: worker."""
        held = self._job.alias("held")
        return self._rescue(held, held.c.claimed_by == _given("worker", BigInteger))

    @cached_property
    def give_back_orphans(self) -> "GiveBack":
        """Queue jobs again whose claim names no worker that exists; returns the queue of each."""
        held = self._job.alias("held")
        known = select(self._worker.c.id).where(self._worker.c.id == held.c.claimed_by).exists()
        return self._rescue(held, and_(held.c.claimed_by.is_not(None), not_(known)))

    def _rescue(self, held: Any, condition: ColumnElement[bool]) -> "GiveBack":
        job = self._job
        # The first time at once; then after a random wait, so that the jobs of one crash part
        # company, and the one that kills its workers is soon alone with the blame.
        # The inner LEAST keeps the power from overflowing.
        longest = func.least(60, func.power(2, func.least(job.c.crashes, 10)))
        wait = func.random() * longest * _SECOND
        values = {
            "crashes": job.c.crashes + 1,
            "next_run_at": case(
                (job.c.crashes > 0, func.clock_timestamp() + wait), else_=job.c.next_run_at
            ),
            "last_error": literal(describe(WorkerLost()), Text),
        }
        return self._give_back(held, condition, values)

    def _give_back(
        self, held: Any, condition: ColumnElement[bool], values: Mapping[str, Any]
    ) -> "GiveBack":
        return GiveBack(
            together=self._queue_again(held, condition, values),
            ids=select(held.c.id).where(condition),
            one=self._queue_again(held, and_(condition, held.c.id == _given("id", Text)), values),
        )

    def _queue_again(
        self, held: Any, condition: ColumnElement[bool], values: Mapping[str, Any]
    ) -> Executable:
        job = self._job
        locked: Select[Any] = (
            select(literal_column("held.ctid"))
            .select_from(held)
            .where(condition)
            .with_for_update(of=held, skip_locked=True, key_share=True)
        )
        return (
            update(job)
            .where(_at(locked))
            .values(claimed_by=None, lease=job.c.lease + 1, updated_at=func.now(), **values)
            .returning(job.c.queue)
        )

    @cached_property
    def holds_any(self) -> Executable:
        """Whether a worker still holds a job. Parameter: worker."""
        held = select(self._job.c.id).where(self._job.c.claimed_by == _given("worker", BigInteger))
        return select(held.exists())


def _start(delay: ColumnElement[Any], run_at: ColumnElement[Any]) -> ColumnElement[Any]:
    """When a new job is due: run_at, or so long after the caller's transaction began."""
    return func.coalesce(run_at, func.now() + delay, func.now())


def _run_at_parameter() -> ColumnElement[Any]:
    return _given("run_at", DateTime(timezone=True))


def _uuid7() -> ColumnElement[str]:
    """UUIDv7 text that grows from row to row; ``uuidv7()`` came only with PostgreSQL 18.

    The time is the statement's; below it the 12 bits of rand_a count the rows, and what overflows
    them adds to the milliseconds.
    """
    now = func.floor(extract("epoch", func.statement_timestamp()) * 1000)
    counted = cast(now, BigInteger) * 4096 + func.row_number().over()
    time = func.lpad(func.to_hex(counted), 15, "0")
    rest = func.substr(cast(func.gen_random_uuid(), Text), 19)  # the dash, the variant, 62 bits
    parts = (func.substr(time, 1, 8), "-", func.substr(time, 9, 4), "-7", func.substr(time, 13, 3))
    return func.concat(*parts, rest)


def _xid() -> ColumnElement[str]:
    """This transaction's id, by which a COMMIT whose answer was lost can be looked up."""
    return cast(func.pg_current_xact_id(), Text).label("xid")
