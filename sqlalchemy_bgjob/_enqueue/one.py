"""enqueue: one job in the caller's own transaction.

Nothing is committed or closed here, except when the target is an Engine. Everything is checked
and encoded before the first statement, and a duplicate never aborts the transaction: ON CONFLICT
DO NOTHING neither waits for a running job nor raises.
"""

from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .._db.targets import SyncTarget, Unit, run_in
from .._drafts.draft import UNTYPED, Draft, draft
from .._handlers.registry import JobType
from .._sql import statements_of
from .._sql.words import parameters
from ..exceptions import JobAlreadyExists
from ..models import Models
from .checks import OnConflict, check_on_conflict, registered

if TYPE_CHECKING:
    from .._db.targets import AsyncTarget

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class JobRef:
    """A job that was enqueued: plain data, valid after the commit."""

    id: str
    inserted: bool
    """False if a live job had this id, and was left as it is."""


@overload
def enqueue(
    target: SyncTarget,
    handler: JobType[A],
    arg: A | None = None,
    *,
    id: str | None = None,
    queue: str | None = None,
    delay: float | timedelta | None = None,
    run_at: datetime | None = None,
    priority: int = 0,
    on_conflict: OnConflict = "raise",
    headers: Mapping[str, Any] | None = None,
) -> JobRef: ...
@overload
def enqueue(
    target: "AsyncTarget",
    handler: JobType[A],
    arg: A | None = None,
    *,
    id: str | None = None,
    queue: str | None = None,
    delay: float | timedelta | None = None,
    run_at: datetime | None = None,
    priority: int = 0,
    on_conflict: OnConflict = "raise",
    headers: Mapping[str, Any] | None = None,
) -> Coroutine[Any, Any, JobRef]: ...
def enqueue(
    target: Any,
    handler: JobType[Any],
    arg: Any = None,
    *,
    id: str | None = None,
    queue: str | None = None,
    delay: float | timedelta | None = None,
    run_at: datetime | None = None,
    priority: int = 0,
    on_conflict: OnConflict = "raise",
    headers: Mapping[str, Any] | None = None,
) -> Any:
    """Add one job to the caller's transaction; its commit hands the job to the workers.

    Nothing is committed or closed here, and a rollback leaves no job behind. An Engine is the
    exception: it is a transaction of its own.

    Args:
        target: The unit of work that owns the job: a Session, scoped_session, Connection or Engine,
            or one of their asyncio twins (then await the result).
        handler: A function registered with ``@jobs.handler``.
        arg: What the handler gets; at most 1 MiB once encoded.
        id: An id of your own, at most 255 characters: only one live job can have it.
        queue: Another queue than the handler's.
        delay: Seconds, or a timedelta, before the first attempt; counted by the database's clock
            from the start of the caller's transaction.
        run_at: An aware datetime instead of a delay.
        priority: -32768 to 32767. Lower runs first; equals run in the order in which they are due,
            as far as concurrent workers allow.
        on_conflict: With ``"ignore"`` a live job of this id is left as it is.
        headers: A JSON object that travels with the job.

    Raises:
        JobAlreadyExists: A live job has this id; the transaction stays usable.
        InvalidArg: The arg, or a header, can't be stored or decoded again; the error names its
            path. Raised before any SQL, as are TypeError and ValueError for the other arguments.
    """
    job = registered(handler).draft(arg, id, queue, delay, run_at, priority, headers)
    check_on_conflict(on_conflict)
    return run_in(
        target,
        handler.models,
        lambda unit: _insert_one(unit, handler.models, job, on_conflict),
        call="enqueue",
    )


def enqueue_type(
    target: Any,
    models: Models,
    handler: JobType[Any] | None,
    type: str,
    arg: Any,
    *,
    id: str | None,
    queue: str,
    delay: float | timedelta | None,
    run_at: datetime | None,
    priority: int,
    on_conflict: OnConflict,
    headers: Mapping[str, Any] | None,
) -> Any:
    """As :func:`enqueue`, for a producer that knows only the type's name."""
    codec = handler.codec if handler is not None else UNTYPED
    job = draft(codec, type, queue, arg, id, delay, run_at, priority, headers)
    check_on_conflict(on_conflict)
    return run_in(
        target,
        models,
        lambda unit: _insert_one(unit, models, job, on_conflict),
        call="BGJob.enqueue",
    )


def _insert_one(unit: Unit, models: Models, job: Draft, on_conflict: OnConflict) -> JobRef:
    common = job.common
    values = parameters(
        id=job.id,
        queue=common.queue,
        type=common.type,
        arg=job.arg,
        priority=common.priority,
        headers=common.headers,
        delay=None if common.delay is None else timedelta(seconds=common.delay),
        run_at=common.run_at,
    )
    statement = statements_of(models).enqueue.job(unit.can_notify)
    inserted = unit.execute(statement, values).first() is not None
    if not inserted and on_conflict == "raise":
        raise JobAlreadyExists((job.id,))
    return JobRef(job.id, inserted)
