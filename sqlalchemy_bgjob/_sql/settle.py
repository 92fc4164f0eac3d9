"""SQL that settles. Each statement is fenced: it names the id, the lease and the worker.

If the job has been claimed, rescued or handed back since, it matches no row, and the late
settlement changes nothing.
"""

from collections.abc import Callable
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    DateTime,
    Delete,
    Executable,
    Float,
    Integer,
    LargeBinary,
    Select,
    Table,
    TableValuedAlias,
    Text,
    and_,
    case,
    cast,
    delete,
    func,
    insert,
    literal_column,
    not_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.selectable import CTE

from .error_history import appended
from .records import LEFT, kept_columns, not_locked, noted
from .words import (
    CLOCK,
    ONLY,
    Tables,
    array_parameter,
    at,
    each_held,
    later,
    parameter,
    transaction_id,
    unnest,
)

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

_QUEUE: ColumnElement[str] = parameter("queue", Text)


class SettleStatements:
    """Complete, release, bury; and questions for when an answer was lost or a row is locked.

    Args:
        tables: Whose statements.
        of_queues: The given jobs may be of several queues: lists queues take the place of queue.
    """

    def __init__(self, tables: Tables, *, of_queues: bool = False) -> None:
        self._job, self._dead = tables.job, tables.dead
        self._of_queues = of_queues
        self._named = () if of_queues else (tables.job.c.queue == _QUEUE,)
        self._record = None if tables.recording is None else tables.recording.record
        self.lock: Callable[..., Executable] = cache(self._lock)
        self.free: Callable[..., Executable] = cache(self._free)

    def _held(
        self, given: TableValuedAlias, *, keeps_key: bool = False, record: Table | None = None
    ) -> Select[Any]:
        """Lock the given jobs that this worker still holds, and return their addresses.

        The fence is the lease and not the attempt: attempts are refunded, so a value can recur. A
        row that somebody else has locked is passed over. To wait for it, lock it first, by
        :attr:`lock`: a statement that waits here would find the row at an address that its snapshot
        does not know, if it was changed meanwhile.

        Args:
            given: Ids and leases.
            keeps_key: The row stays, so a foreign key that points at it does not stand in the way.
            record: The table of records, if these jobs leave one. A job whose record somebody else
                has locked is passed over too.
        """
        return self._one_by_one(
            given,
            literal_column("held.ctid"),
            lambda held, one: _with_record(
                one.with_for_update(skip_locked=True, key_share=keeps_key), held.c.id, record
            ),
        )

    def _one_by_one(
        self,
        given: TableValuedAlias,
        value: ColumnElement[Any],
        complete: Callable[[Any, Select[Any]], Select[Any]],
    ) -> Select[Any]:
        """A value of each given job that this worker still holds."""
        holder = parameter("worker", BigInteger)
        queue = given.c.queues if self._of_queues else _QUEUE
        return each_held(self._job, given, value, holder, complete, queue)

    def _given(self, **lists: "TypeEngine[Any]") -> TableValuedAlias:
        """A row for each given job: which it is, its lease, and these lists."""
        queues = {"queues": Text()} if self._of_queues else {}
        return unnest(**queues, ids=Text(), leases=BigInteger(), **lists)

    @cached_property
    def complete(self) -> Executable:
        """Delete jobs that are done. Returns how many, the xid, and their ids if not all were held.

        Parameters: queue, worker, and lists ids, leases.
        """
        given = self._given()
        gone = self._taken(given).returning(self._job.c.id).cte("gone")
        return self._counted(gone)

    @cached_property
    def complete_recorded(self) -> Executable:
        """As :attr:`complete`, and write the records of these jobs.

        Parameters: as complete, and lists as :data:`.records.LEFT`.
        """
        assert self._record is not None
        given = self._given(**LEFT)
        taken = self._taken(given, record=self._record)
        gone = taken.returning(*kept_columns(self._job)).cte("gone")
        no_error = literal_column("NULL", Text)
        written = noted(self._record, gone, given, attempt=gone.c.attempt, error=no_error)
        return self._counted(gone).add_cte(written)

    def _taken(self, given: TableValuedAlias, *, record: Table | None = None) -> Delete:
        held = self._held(given, record=record)
        return delete(self._job).with_hint(ONLY).where(*self._named, at(held))

    def _counted(self, gone: CTE) -> Select[Any]:
        count = func.count()
        all_gone = count == func.cardinality(array_parameter("ids", Text()))
        which = case((not_(all_gone), func.array_agg(gone.c.id, type_=ARRAY(Text))))
        # A transaction that has written nothing has no id, and must not get one here.
        return select(count, case((count > 0, transaction_id())), which).select_from(gone)

    @cached_property
    def complete_one(self) -> Executable:
        """As :attr:`complete`, for one job; returns the xid.

        Parameters: queue, worker, id, lease.
        """
        job = self._job
        held = job.alias("held")
        locked: Select[Any] = (
            select(literal_column("held.ctid"))
            .select_from(held)
            .with_hint(held, ONLY)
            .where(
                held.c.queue == _QUEUE,
                held.c.id == parameter("id", Text),
                held.c.lease == parameter("lease", BigInteger),
                held.c.claimed_by == parameter("worker", BigInteger),
            )
            .with_for_update(skip_locked=True)
        )
        done = delete(job).with_hint(ONLY).where(*self._named, at(locked))
        return done.returning(transaction_id())

    @cached_property
    def release(self) -> Executable:
        """Queue jobs again; returns id and xid of each.

        Parameters: queue, worker, and lists ids, leases, refunds, moments, delays (seconds; if both
        are null, next_run_at stays), errors, keep_errors, args, new_args, headers (JSON text),
        unknowns.
        """
        job = self._job
        given = self._given(
            refunds=Integer(),
            moments=DateTime(timezone=True),
            delays=Float(53),
            errors=Text(),
            keep_errors=Boolean(),
            args=LargeBinary(),
            new_args=Boolean(),
            headers=Text(),
            unknowns=Boolean(),
        )
        # An attempt that is refunded has not failed: it found no connection, or was interrupted.
        has_failed = and_(given.c.errors.is_not(None), given.c.refunds == literal_column("0"))
        history = appended(
            job.c.errors, attempt=job.c.attempt, worker=job.c.claimed_by, error=given.c.errors
        )
        return (
            update(job)
            .with_hint(ONLY)
            # The empty string keeps the planner from searching by id: rows are found by address.
            .where(
                *self._named,
                at(self._held(given, keeps_key=True)),
                job.c.id.concat(literal_column("''")) == given.c.ids,
            )
            .values(
                claimed_by=None,
                lease=job.c.lease + 1,
                attempt=func.greatest(job.c.attempt - given.c.refunds, 0),
                # A job that is to be cancelled stays due, so that its next claim does so soon.
                next_run_at=case(
                    (job.c.cancel_at.is_not(None), job.c.next_run_at),
                    else_=func.coalesce(given.c.moments, later(given.c.delays), job.c.next_run_at),
                ),
                last_error=case((given.c.keep_errors, job.c.last_error), else_=given.c.errors),
                errors=case((has_failed, history), else_=job.c.errors),
                arg=case((given.c.new_args, given.c.args), else_=job.c.arg),
                headers=case((given.c.new_args, cast(given.c.headers, JSONB)), else_=job.c.headers),
                unknown_since=case(
                    (given.c.unknowns, func.coalesce(job.c.unknown_since, CLOCK.c.now))
                ),
                updated_at=func.now(),
            )
            .returning(job.c.id, transaction_id())
        )

    @cached_property
    def bury(self) -> Executable:
        """Move jobs to the dead table; returns id and xid of each.

        Parameters: queue, worker, and lists ids, leases, dead_ids, refunds, errors.
        """
        return self._moved()

    @cached_property
    def bury_recorded(self) -> Executable:
        """As :attr:`bury`, and write the records of these jobs.

        Parameters: as bury, and lists as :data:`.records.LEFT`.
        """
        return self._moved(self._record)

    def _moved(self, record: Table | None = None) -> Executable:
        job, dead = self._job, self._dead
        given = self._given(
            dead_ids=Text(),
            refunds=Integer(),
            errors=Text(),
            **({} if record is None else LEFT),
        )
        moved = self._taken(given, record=record).returning(*job.c).cte("moved")
        attempt = func.greatest(moved.c.attempt - given.c.refunds, 0)
        history = appended(
            moved.c.errors, attempt=attempt, worker=moved.c.claimed_by, error=given.c.errors
        )
        values: dict[str, Any] = {
            "id": given.c.dead_ids,
            "job_id": moved.c.id,
            "job_created_at": moved.c.created_at,
            "job_updated_at": moved.c.updated_at,
            "moved_at": func.clock_timestamp(),
            "attempt": attempt,
            "last_error": func.coalesce(given.c.errors, moved.c.last_error),
            "errors": case((given.c.errors.is_not(None), history), else_=moved.c.errors),
        }
        # The rest by name, the user's own columns among them where both tables have them.
        values |= {
            c.name: moved.c[c.name] for c in dead.c if c.name not in values and c.name in moved.c
        }
        rows = select(*values.values()).select_from(moved.join(given, moved.c.id == given.c.ids))
        bury = insert(dead).from_select(list(values), rows)
        if record is not None:
            error = values["last_error"]
            bury = bury.add_cte(noted(record, moved, given, attempt=attempt, error=error))
        return bury.returning(dead.c.job_id, transaction_id())

    @cached_property
    def still_held(self) -> Executable:
        """Ids of the given jobs that this worker holds, locked or not. Parameters: as complete."""
        given = self._given()
        return self._one_by_one(
            given, literal_column("held.id", Text), lambda held, one: one.limit(1)
        )

    @cached_property
    def asked(self) -> Executable:
        """Ids of the given jobs that this worker is to cancel. Parameters: as complete."""
        given = self._given()
        return self._one_by_one(
            given,
            literal_column("held.id", Text),
            lambda held, one: one.where(held.c.cancel_at.is_not(None)).limit(1),
        )

    def _free(self, recorded: bool = False) -> Executable:
        """Lock those that nobody else has locked, and return their ids. Parameters: as complete.

        If they leave records, a job is not free while somebody has locked its record.
        """
        return self._locked(wait=False, recorded=recorded)

    def _lock(self, keeps_key: bool, recorded: bool = False) -> Executable:
        """Lock all of them, and the records that they leave; wait for who has.

        With *keeps_key* the rows will stay, see :meth:`_held`. Parameters: as complete.
        """
        return self._locked(wait=True, keeps_key=keeps_key, recorded=recorded)

    def _locked(self, *, wait: bool, recorded: bool, keeps_key: bool = False) -> Executable:
        given = self._given()
        return self._one_by_one(
            given,
            literal_column("held.id", Text),
            lambda held, one: _with_record(
                one.with_for_update(skip_locked=not wait, key_share=keeps_key),
                held.c.id,
                self._record if recorded else None,
                wait=wait,
            ),
        )

    @cached_property
    def note_error(self) -> Executable:
        """Write last_error of a job that can't be settled. Parameters: as complete, and error."""
        given = self._given()
        job = self._job
        return (
            update(job)
            .with_hint(ONLY)
            .where(*self._named, at(self._held(given, keeps_key=True)))
            .values(last_error=parameter("error", Text), updated_at=func.now())
        )

    @cached_property
    def transaction_status(self) -> Executable:
        """committed, aborted or in progress. Parameter: xid, as text."""
        xid = cast(parameter("xid", Text), Text).op("::")(literal_column("xid8"))
        return select(cast(func.pg_xact_status(xid), Text))


def _with_record(
    one: Select[Any], job_id: ColumnElement[str], record: Table | None, *, wait: bool = False
) -> Select[Any]:
    """The SELECT of one job, if nobody has locked its record either, or after a *wait* for that."""
    return one if record is None else one.where(not_locked(record, job_id, wait=wait))
