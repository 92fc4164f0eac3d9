"""enqueue, enqueue_many: jobs in the caller's own transaction.

Nothing is committed or closed here, except when the target is an Engine. Everything is checked
and encoded before the first statement, and a duplicate never aborts the transaction: ON CONFLICT
DO NOTHING neither waits for a running job nor raises.
"""

import json
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, overload
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, FromClause, event, inspect
from sqlalchemy.orm import Mapper, SessionTransaction, object_session

from .._db.targets import SyncTarget, Unit, can_notify, run_in
from .._drafts import validation
from .._drafts.draft import UNTYPED, Draft, draft, in_chunks, with_ids
from .._handlers.registry import JobType, column_values
from .._misuse import name_of
from .._sql import statements_of
from .._sql.words import parameters, wake_up
from ..exceptions import JobAlreadyExists
from ..models import JobMixin, Models
from .copy import BLOCK, WORTH_IT, can_copy, copy

if TYPE_CHECKING:
    from .._db.targets import AsyncTarget

A = TypeVar("A")

OnConflict = Literal["raise", "ignore"]

_CHUNK_JOBS: Final = 5_000
_CHUNK_BYTES: Final = 8 * 1_048_576


@dataclass(frozen=True, slots=True)
class JobRef:
    """A job that was enqueued: plain data, valid after the commit."""

    id: str
    inserted: bool
    """False if a live job had this id, and was left as it is."""


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What a bulk enqueue did."""

    inserted: int
    """How many jobs are new."""
    duplicates: tuple[str, ...]
    """The ids, of those that were given, that live jobs had already, sorted."""


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
    statement = statements_of(models).insert_job(unit.can_notify)
    inserted = unit.execute(statement, values).first() is not None
    if not inserted and on_conflict == "raise":
        raise JobAlreadyExists((job.id,))
    return JobRef(job.id, inserted)


# ---- many ----------------------------------------------------------------------------------------


@overload
def enqueue_many(
    target: SyncTarget,
    handler: JobType[A],
    args: Iterable[A],
    *,
    ids: Iterable[str] | None = None,
    queue: str | None = None,
    delay: float | timedelta | None = None,
    run_at: datetime | None = None,
    priority: int = 0,
    on_conflict: OnConflict = "raise",
    headers: Mapping[str, Any] | None = None,
) -> BulkResult: ...
@overload
def enqueue_many(
    target: "AsyncTarget",
    handler: JobType[A],
    args: Iterable[A],
    *,
    ids: Iterable[str] | None = None,
    queue: str | None = None,
    delay: float | timedelta | None = None,
    run_at: datetime | None = None,
    priority: int = 0,
    on_conflict: OnConflict = "raise",
    headers: Mapping[str, Any] | None = None,
) -> Coroutine[Any, Any, BulkResult]: ...
@overload
def enqueue_many(
    target: SyncTarget, handler: Iterable[JobMixin], *, on_conflict: OnConflict = "raise"
) -> BulkResult: ...
@overload
def enqueue_many(
    target: "AsyncTarget", handler: Iterable[JobMixin], *, on_conflict: OnConflict = "raise"
) -> Coroutine[Any, Any, BulkResult]: ...
def enqueue_many(
    target: Any,
    handler: Any,
    args: Iterable[Any] | None = None,
    *,
    ids: Iterable[str] | None = None,
    queue: str | None = None,
    delay: float | timedelta | None = None,
    run_at: datetime | None = None,
    priority: int = 0,
    on_conflict: OnConflict = "raise",
    headers: Mapping[str, Any] | None = None,
) -> Any:
    """Add many jobs to the caller's transaction, set by set: one statement for each 5,000 jobs.

    Either one handler and its args, or a list of jobs of any handlers: ``[a.job(x), b.job(y)]``.
    All of them are checked and encoded before the first statement; but while many thousands go by
    COPY, in a savepoint, the later ones are encoded as the server takes in those before.

    Args:
        target: As for :func:`enqueue`.
        handler: A registered handler, or jobs made by ``handler.job(...)``.
        args: An arg for each job.
        ids: An id of your own for each job, as many as args.
        queue, delay, run_at, priority, headers: As for :func:`enqueue`; the same for all.
        on_conflict: ``"raise"`` is all or nothing: with a duplicate no job is added.
            ``"ignore"`` adds the others, and tells which they were.

    Raises:
        JobAlreadyExists: Live jobs have some of these ids; the transaction stays usable.
        InvalidArg: As for :func:`enqueue`; the path begins with the job's index.
    """
    check_on_conflict(on_conflict)
    models: Models | None
    if isinstance(handler, JobType) or callable(handler):
        models = registered(handler).models
        if not isinstance(args, Iterable):
            raise TypeError(
                "enqueue_many(target, handler, args) needs args, a list with one for each job; a "
                "single job is enqueued by enqueue(target, handler, arg)"
            )
        own_ids = ids is not None
        jobs = _jobs_of(handler, args, ids, queue, delay, run_at, priority, headers)
    else:
        given = {"args": args, "ids": ids, "queue": queue, "delay": delay, "run_at": run_at}
        extra = [name for name, value in given.items() if value is not None]
        if extra or priority or headers:
            raise TypeError("with a list of jobs, what each is like is said in handler.job(...)")
        taken, models = _taken_from(handler)
        own_ids = len({job.id for job in taken}) < len(taken)  # the same job twice
        jobs = _Jobs(taken, iter(()), len(taken))
    return run_in(
        target,
        models,
        lambda unit: _insert_many(unit, models, jobs, on_conflict, own_ids),
        call="enqueue_many",
    )


@dataclass(frozen=True, slots=True)
class _Jobs:
    """What to enqueue: jobs that are encoded, and those that will be when they are asked for.

    The latter differ from the former in nothing but their args.
    """

    first: list[Draft]
    rest: Iterator[Draft]
    count: int

    def all_at_once(self) -> bool:
        """Whether all of them are known to be in order."""
        return len(self.first) == self.count

    def __iter__(self) -> Iterator[Draft]:
        """Go over them, once."""
        return chain(self.first, self.rest)


def _jobs_of(
    handler: JobType[Any],
    args: Iterable[Any],
    ids: Iterable[str] | None,
    queue: str | None,
    delay: float | timedelta | None,
    run_at: datetime | None,
    priority: int,
    headers: Mapping[str, Any] | None,
) -> _Jobs:
    given = list(args)
    own = None if ids is None else [validation.job_id(id) for id in ids]
    if own is not None and len(own) != len(given):
        raise ValueError(f"{len(own)} ids for {len(given)} args; give an id for each, or none")
    jobs = handler.drafts(given, own, queue, delay, run_at, priority, headers)
    return _Jobs(list(islice(jobs, BLOCK)), jobs, len(given))


def _taken_from(jobs: object) -> tuple[list[Draft], Models | None]:
    if not isinstance(jobs, Iterable):
        raise TypeError(f"enqueue_many takes a handler or jobs, not {type(jobs).__name__}")
    taken: list[Draft] = []
    models: Models | None = None
    for job in jobs:
        if not isinstance(job, JobMixin) or "_bgjob" not in job.__dict__:
            raise TypeError(
                f"enqueue_many takes jobs made by handler.job(...), not {type(job).__name__}; "
                f"other rows go by session.add_all()"
            )
        if inspect(job).session is not None:
            raise ValueError(f"job {job.id!r} is in a session already, which will insert it")
        new, its_models, was = job.__dict__["_bgjob"]
        changed = [name for name, value in column_values(job).items() if was.get(name) is not value]
        if changed:
            raise ValueError(
                f"{', '.join(sorted(changed))} of a job was set after handler.job(...), and a bulk "
                f"statement would not know it; add such jobs by session.add_all()"
            )
        if models is not None and its_models is not models:
            raise ValueError("the jobs are of different BGJob() instances")
        models = its_models
        taken.append(new)
    return taken, models


def _insert_many(
    unit: Unit, models: Models | None, jobs: _Jobs, on_conflict: OnConflict, own_ids: bool
) -> BulkResult:
    if models is None or not jobs.count:
        return BulkResult(0, ())
    if not own_ids:
        if not _copied(unit, models, jobs):
            _insert(unit, models, list(jobs))
        return BulkResult(jobs.count, ())
    everything = list(jobs)
    if on_conflict == "ignore":
        inserted = _insert(unit, models, everything)
        return BulkResult(len(inserted), _missing(everything, inserted))
    with Undo(unit) as undo:
        inserted = _insert(unit, models, everything)
        duplicates = _missing(everything, inserted)
        if duplicates:
            undo.now()
            raise JobAlreadyExists(duplicates)
    return BulkResult(len(inserted), ())


def _insert(unit: Unit, models: Models, jobs: Iterable[Draft]) -> set[str]:
    """Add jobs by one statement for each few thousand; the ids of those that are new."""
    statement = statements_of(models).insert_jobs(unit.can_notify)
    inserted: set[str] = set()
    # Sorted, so that two producers with the same ids wait for each other in one order.
    ordered = sorted(jobs, key=lambda job: job.id)
    for chunk in in_chunks(ordered, _CHUNK_JOBS, _CHUNK_BYTES):
        inserted.update(unit.execute(statement, _columns(chunk)).scalars())
    return inserted


def _copied(unit: Unit, models: Models, jobs: _Jobs) -> bool:
    """Add jobs with new ids by COPY, if that is possible here and worth it."""
    if jobs.count < WORTH_IT or not can_copy(unit.connection, models.job):
        return False
    statements = statements_of(models)
    now = unit.execute(statements.before_copy).scalar()
    if now is None:
        return False
    # A bad arg among the later ones ends the COPY, and must not end the caller's transaction.
    with nullcontext() if jobs.all_at_once() else Undo(unit):
        copy(unit.connection, models.job, jobs, now)
    if unit.can_notify:
        for queue in sorted({job.common.queue for job in jobs.first}):
            unit.execute(statements.notify, parameters(queue=queue))
    return True


def _missing(jobs: Iterable[Draft], inserted: set[str]) -> tuple[str, ...]:
    seen: set[str] = set()
    missing: set[str] = set()
    for job in jobs:
        if job.id not in inserted or job.id in seen:
            missing.add(job.id)
        seen.add(job.id)
    return tuple(sorted(missing))


class Undo:
    """A savepoint around a bulk statement, so that all or nothing costs the caller nothing."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def __enter__(self) -> Self:
        self._savepoint = self._unit.savepoint()
        return self

    def now(self) -> None:
        self._savepoint.rollback()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._savepoint.is_active:
            if kind is None:
                self._savepoint.commit()
            else:
                self._savepoint.rollback()


def _columns(jobs: Sequence[Draft]) -> dict[str, Any]:
    commons = [job.common for job in jobs]
    return parameters(
        ids=[id for id, _ in with_ids(jobs)],
        queues=[common.queue for common in commons],
        types=[common.type for common in commons],
        args=[job.arg for job in jobs],
        priorities=[common.priority for common in commons],
        headers=[json.dumps(common.headers) if common.headers else None for common in commons],
        delays=[common.delay for common in commons],
        run_ats=[common.run_at for common in commons],
    )


# ---- what they share -----------------------------------------------------------------------------


def registered(handler: object) -> JobType[Any]:
    """The handler; a TypeError that says what to do if it is none."""
    if isinstance(handler, str):
        raise TypeError(
            f"{handler!r} is a str, not a registered handler; by the name of its type a job is "
            f"enqueued with jobs.enqueue(target, {handler!r}, arg)"
        )
    if not isinstance(handler, JobType):
        name = name_of(handler)
        raise TypeError(
            f"{name} is not a registered handler; decorate it with @jobs.handler(...), or use "
            f"jobs.enqueue(target, 'type', arg, queue=...) where the handler can't be imported"
        )
    return handler


def check_on_conflict(on_conflict: str) -> None:
    """A ValueError for what is no such word."""
    if on_conflict not in ("raise", "ignore"):
        raise ValueError(f"on_conflict={on_conflict!r} is neither 'raise' nor 'ignore'")


_woken: WeakKeyDictionary[SessionTransaction, set[tuple[FromClause, str]]] = WeakKeyDictionary()


@event.listens_for(JobMixin, "after_insert", propagate=True)
def _wake_after_insert(mapper: Mapper[Any], connection: Connection, job: JobMixin) -> None:
    """The wake-up of ``session.add(Job(...))``: once for each queue and (sub)transaction.

    Within a savepoint that is rolled back the notification goes with it, so what was said there
    does not count for the transaction around it.
    """
    session = object_session(job)
    if session is None or connection.dialect.name != "postgresql" or not can_notify(connection):
        return
    transaction = session.get_nested_transaction() or session.get_transaction()
    if transaction is None:
        return
    table = mapper.base_mapper.local_table
    prefix = table.name.removesuffix("job")  # type: ignore[attr-defined]
    woken = _woken.setdefault(transaction, set())
    if (table, job.queue) not in woken:
        woken.add((table, job.queue))
        statement = wake_up(table.schema, prefix)
        connection.execute(statement, parameters(queue=job.queue))
