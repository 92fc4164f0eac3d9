"""enqueue: one job in the caller's own transaction.

Nothing is committed or closed here, except when the target is an Engine. Everything is checked
and encoded before the first statement, and a duplicate never aborts the transaction: ON CONFLICT
DO NOTHING neither waits for a running job nor raises.
"""

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack, overload

from .._db.targets import SyncTarget, Unit, run_in
from .._drafts.batch import refuse_other_tables, refuse_other_transaction
from .._drafts.draft import UNTYPED, Draft, draft
from .._drafts.options import MORE, Common, EnqueueOptions
from .._handlers.additions import Additions
from .._handlers.registry import JobType
from .._misuse import refuse_unknown
from .._sql import statements_of
from .._sql.words import parameters
from ..exceptions import JobAlreadyExists
from ..models import Models
from .checks import on_conflict_of, registered
from .unique import add_unique

if TYPE_CHECKING:
    from .._db.targets import AsyncTarget

A = TypeVar("A")

# In the order of (id, arg, *Common); built once, and not for each job.
_PARAMETERS: Final = tuple(parameters(**dict.fromkeys(("id", "arg", *Common._fields))))


@dataclass(frozen=True, slots=True)
class JobRef:
    """What ``enqueue`` returns: plain data, valid after the commit."""

    id: str
    """The id of the new job, or of the one that has this id or the unique key already."""
    inserted: bool
    """Whether the job is new; False if a job had this id, or the unique key, already."""


# The arg may be left out where the handler takes none, or also takes None.
@overload
def enqueue(
    target: SyncTarget, handler: JobType[A], arg: A, **options: Unpack[EnqueueOptions]
) -> JobRef: ...
@overload
def enqueue(
    target: SyncTarget,
    handler: JobType[A | None],
    arg: A | None = None,
    **options: Unpack[EnqueueOptions],
) -> JobRef: ...
@overload
def enqueue(
    target: "AsyncTarget", handler: JobType[A], arg: A, **options: Unpack[EnqueueOptions]
) -> Coroutine[Any, Any, JobRef]: ...
@overload
def enqueue(
    target: "AsyncTarget",
    handler: JobType[A | None],
    arg: A | None = None,
    **options: Unpack[EnqueueOptions],
) -> Coroutine[Any, Any, JobRef]: ...
def enqueue(
    target: Any, handler: JobType[Any], arg: Any = None, **options: Unpack[EnqueueOptions]
) -> Any:
    """Add one job to the caller's transaction; its commit hands the job to the workers.

    Nothing is committed or closed here, and a rollback leaves no job behind. An Engine is the
    exception: the call is a transaction of its own.

    ``enqueue(session, send_receipt, Receipt(order.id), delay=60)``

    Args:
        target: The owner of the transaction: a Session, scoped_session, Connection or Engine, or
            one of their asyncio twins (then await the result).
        handler: A function registered with ``@jobs.handler``.
        arg: What the handler gets; at most 1 MiB once encoded.
        id: An id of your own, at most 255 characters: only one live job can have it.
        queue: Another queue than the handler's, at most 128 characters.
        delay: Seconds, or a timedelta, before the first attempt, by the database's clock from the
            start of the caller's transaction; at most 100 years.
        run_at: An aware datetime instead of a delay.
        priority: -32768 to 32767, by default 0. Lower runs first; equals run in the order in which
            they are due, as far as concurrent workers allow.
        on_conflict: ``"raise"``, the default, refuses the id of a live job; with ``"ignore"`` that
            job is left as it is.
        headers: A JSON object that travels with the job, of at most 64 KiB.
        expires: Seconds or a timedelta after it is due, or an aware datetime: no attempt starts
            after that, by the database's clock. The handler's ``on_expiry`` says what becomes of
            the job.
        batch: What ``with jobs.batch(session) as batch`` gives: the job belongs to that batch. Not
            with *unique*.
        unique: A unique key, as text or as :class:`Unique`. A Unique says for how long the key
            keeps other jobs away, and what is done if a job has the key. By default that job is
            left as it is, and the returned ref has its id. If that job is queued, it does not start
            before the caller has committed, so it sees what the caller has written. A job of scope
            live that runs already may not see it. With *id* too, the id is looked at first.

    Raises:
        JobAlreadyExists: A live job has this id; or, if the unique key says ``"raise"``, one has
            the key. The transaction stays usable.
        InvalidArg: The arg, or a header, can't be stored or decoded again; the error names its
            path. Raised before any SQL.
        TypeError, ValueError: Another argument is wrong; the message says what to write. Raised
            before any SQL, too.
        RuntimeError: A trigger of yours keeps the job out, though its id is new.
    """
    refuse_unknown("enqueue", options, EnqueueOptions)
    job = registered(handler).draft(arg, options.get("id"), options)
    return _enqueue(target, handler.models, job, options, call="enqueue")


def enqueue_type(
    target: Any,
    models: Models,
    additions: Additions,
    handler: JobType[Any] | None,
    type: str,
    arg: Any,
    options: EnqueueOptions,
) -> Any:
    """As :func:`enqueue`, for a producer that knows only the type's name."""
    codec, queue = (UNTYPED, "") if handler is None else (handler.codec, handler.queue)
    options = additions.with_headers(type, queue, options)
    refuse_other_tables(options, models)
    job = draft(codec, type, queue, arg, options.get("id"), options)
    return _enqueue(target, models, job, options, call="BGJob.enqueue")


def _enqueue(target: Any, models: Models, job: Draft, options: EnqueueOptions, call: str) -> Any:
    on_conflict = on_conflict_of(options)

    def insert(unit: Unit) -> JobRef:
        if job.unique is not None:
            return _insert_unique(unit, models, job, options)
        common = job.common
        more = common.is_more
        if more:
            refuse_other_transaction(options.get("batch"), unit.connection.get_transaction())
        # The plain statement has no place for the last ones.
        given = common if more else common[: -len(MORE)]
        values = dict(zip(_PARAMETERS, (job.id, job.arg, *given), strict=False))
        statement = statements_of(models).enqueue.job(unit.can_notify, more)
        inserted = unit.execute(statement, values).first() is not None
        if not inserted and on_conflict == "raise":
            if options.get("id") is None:
                raise RuntimeError(
                    f"the job {job.id!r} can't be inserted, and no other job has its id, which is "
                    f"new; look for a trigger on the table of jobs"
                )
            raise JobAlreadyExists((job.id,))
        return JobRef(job.id, inserted)

    return run_in(target, models, insert, call=call)


def _insert_unique(unit: Unit, models: Models, job: Draft, options: EnqueueOptions) -> JobRef:
    assert job.unique is not None
    own_id = options.get("id") is not None
    (answer,) = add_unique(unit, models, [job], own_ids=own_id)
    if answer.id_is_taken and on_conflict_of(options) == "raise":
        raise JobAlreadyExists((job.id,))
    if not (answer.inserted or answer.id_is_taken) and job.unique.on_conflict == "raise":
        raise JobAlreadyExists((answer.id,), (str(job.unique.key),))
    return JobRef(answer.id, answer.inserted)
