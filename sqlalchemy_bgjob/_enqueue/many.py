"""enqueue_many: any number of jobs, all or none, in the caller's own transaction.

Jobs are checked and encoded before the first one is sent; of a long COPY, only the first block is.
"""

from collections.abc import Coroutine, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from msgspec.structs import replace
from sqlalchemy import inspect

from .._db.targets import Savepoint, SyncTarget, Unit, run_in
from .._drafts import validation
from .._drafts.batch import OpenBatch, refuse_other_transaction
from .._drafts.draft import Draft, in_chunks, with_ids
from .._drafts.options import NOTHING, BulkOptions, OnConflict
from .._handlers.made import made_of, was_sent
from .._handlers.registry import JobType
from .._misuse import refuse_unknown
from .._sql import statements_of
from .._sql.words import parameters
from ..exceptions import JobAlreadyExists
from ..models import JobMixin, Models
from .checks import on_conflict_of, registered
from .columns import CHUNK_BYTES, CHUNK_JOBS, columns_of
from .copy import BLOCK, WORTH_IT, can_copy, copy
from .one import JobRef
from .unique import Answer, add_unique

if TYPE_CHECKING:
    from .._db.targets import AsyncTarget

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What ``enqueue_many`` returns: plain data, valid after the commit."""

    inserted: int
    """How many jobs are new."""
    duplicates: tuple[str, ...]
    """The given ids that live jobs had already, or that were given twice; sorted."""
    refs: tuple[JobRef, ...] = ()
    """With unique keys, the job that won for each one that was given, in their order."""


@overload
def enqueue_many(
    target: SyncTarget,
    handler: JobType[A],
    args: Iterable[A],
    **options: Unpack[BulkOptions],
) -> BulkResult: ...
@overload
def enqueue_many(
    target: "AsyncTarget",
    handler: JobType[A],
    args: Iterable[A],
    **options: Unpack[BulkOptions],
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
    **options: Unpack[BulkOptions],
) -> Any:
    """Add many jobs to the caller's transaction: by COPY, or one statement for each 5,000 jobs.

    Pass one handler and its args, ``enqueue_many(session, sync, [7, 8, 9])``, or a list of jobs of
    any handlers, ``enqueue_many(session, [a.job(x), b.job(y)])``. The caller commits; an Engine is
    a transaction of its own.

    All jobs are checked and encoded before the first statement. The exception is a COPY of more
    than 2,000 jobs, which is within a savepoint: later jobs are encoded while the server takes in
    those before.

    Args:
        target: As for :func:`enqueue`.
        handler: A registered handler, or jobs made by ``handler.job(...)``.
        args: An arg for each job.
        ids: An id of your own for each job, as many as args. With these there is no COPY.
        on_conflict: ``"raise"``, the default, is all or nothing: with a duplicate no job is added.
            ``"ignore"`` adds the others, and the result names the duplicates.
        unique: A function that makes the unique key of each arg: text, a Unique, or None for
            none. With it there is no COPY.
        **options: All others as for :func:`enqueue`; the same for all jobs.

    Raises:
        JobAlreadyExists: Live jobs have some of these ids, or an id is given twice; or jobs have
            some of the unique keys, and these say ``"raise"``. The transaction stays usable.
        InvalidArg: As for :func:`enqueue`; the path begins with the job's index.
        TypeError, ValueError: Another argument is wrong; the message says what to write.
    """
    refuse_unknown("enqueue_many", options, BulkOptions)
    on_conflict = on_conflict_of(options)
    if isinstance(handler, JobType) or callable(handler):
        jobs = _of_handler(registered(handler), args, options)
    else:
        jobs = _of_objects(handler, args, options)
    return run_in(
        target,
        jobs.models,
        lambda unit: _insert_many(unit, jobs, on_conflict),
        call="enqueue_many",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Jobs:
    """The jobs to enqueue: the first are encoded, the rest will be as they are iterated.

    All of the rest have the options of the first.
    """

    models: Models | None
    """None if there are no jobs."""
    first: list[Draft]
    rest: Iterator[Draft]
    count: int
    may_exist: bool
    """Whether some ids may be taken; newly made ones are not."""
    keyed: bool
    """Whether some have unique keys."""
    batches: set[OpenBatch | None]
    """To which they belong."""

    def all_at_once(self) -> bool:
        """Whether all are encoded already, so that none can be refused later."""
        return len(self.first) == self.count

    def __iter__(self) -> Iterator[Draft]:
        """Iterate over the jobs, once."""
        return chain(self.first, self.rest)


def _of_handler(handler: JobType[Any], args: object, options: BulkOptions) -> _Jobs:
    """A job of one handler for each arg."""
    if not isinstance(args, Iterable):
        raise TypeError(
            "enqueue_many(target, handler, args) needs args, a list with one for each job; a "
            "single job is enqueued by enqueue(target, handler, arg)"
        )
    given, ids = list(args), options.get("ids")
    own = None if ids is None else [validation.job_id(id) for id in ids]
    if own is not None and len(own) != len(given):
        raise ValueError(f"{len(own)} ids for {len(given)} args; give an id for each, or none")
    unique_of = options.get("unique")
    if unique_of is not None and not callable(unique_of):
        raise TypeError(
            "unique= of enqueue_many is a function of each arg, as all jobs of one key would be "
            "one job: unique=lambda arg: f'sync:{arg.id}'"
        )
    drafts = handler.drafts(given, own, options, unique_of)
    return _Jobs(
        models=handler.models,
        first=list(islice(drafts, BLOCK)),
        rest=drafts,
        count=len(given),
        may_exist=own is not None,
        keyed=unique_of is not None,
        batches={options.get("batch")},
    )


def _of_objects(jobs: object, args: object, options: BulkOptions) -> _Jobs:
    """The jobs that ``handler.job(...)`` made."""
    extra = [
        n for n, v in options.items() if n != "on_conflict" and v not in (None, NOTHING.get(n))
    ]
    if args is not None or extra:
        raise TypeError(
            "enqueue_many of a list of jobs takes no option but on_conflict=; give the others to "
            "handler.job(...)"
        )
    if not isinstance(jobs, Iterable):
        raise TypeError(f"enqueue_many takes a handler or jobs, not {type(jobs).__name__}")
    drafts: list[Draft] = []
    models: Models | None = None
    may_exist = False
    batches = set[OpenBatch | None]()
    for job in jobs:
        made = made_of(job) if isinstance(job, JobMixin) else None
        if made is None:
            raise TypeError(
                f"enqueue_many takes jobs made by handler.job(...), not {type(job).__name__}; "
                f"other rows go by session.add_all()"
            )
        if inspect(job).session is not None:
            raise ValueError(f"job {job.id!r} is in a session already, which will insert it")
        changed = made.changed(job)
        if changed:
            raise ValueError(
                f"{', '.join(changed)} of a job was set after handler.job(...), and a bulk "
                f"statement would not know it; add such jobs by session.add_all()"
            )
        if models is not None and made.models is not models:
            raise ValueError(
                "the jobs are of different BGJob() instances; call enqueue_many once for each"
            )
        models = made.models
        drafts.append(made.draft)
        batches.add(made.batch)
        may_exist |= was_sent(job)  # also if it is here twice
    return _Jobs(
        models=models,
        first=drafts,
        rest=iter(()),
        count=len(drafts),
        may_exist=may_exist,
        keyed=any(draft.unique is not None for draft in drafts),
        batches=batches,
    )


def _insert_many(unit: Unit, jobs: _Jobs, on_conflict: OnConflict) -> BulkResult:
    models = jobs.models
    if models is None or not jobs.count:
        return BulkResult(0, ())
    for batch in jobs.batches:
        refuse_other_transaction(batch, unit.connection.get_transaction())
    if jobs.keyed:
        return _insert_keyed(unit, models, list(jobs), on_conflict, own_ids=jobs.may_exist)
    if not jobs.may_exist:
        count = _copied(unit, models, jobs)
        if count is None:
            count = len(_insert(unit, models, list(jobs)))
        return BulkResult(count, ())
    everything = list(jobs)
    if on_conflict == "ignore":
        inserted = _insert(unit, models, everything)
        return BulkResult(len(inserted), _missing(everything, inserted))
    with Savepoint(unit) as savepoint:
        inserted = _insert(unit, models, everything)
        duplicates = _missing(everything, inserted)
        if duplicates:
            savepoint.rollback()
            raise JobAlreadyExists(duplicates)
    return BulkResult(len(inserted), ())


def _insert(unit: Unit, models: Models, jobs: Iterable[Draft]) -> set[str]:
    """Add jobs by one statement for each few thousand; returns the ids that are new."""
    inserted: set[str] = set()
    # Sorted, so that two producers with the same ids can't deadlock.
    ordered = sorted(jobs, key=lambda job: job.id)
    for chunk in in_chunks(ordered, CHUNK_JOBS, CHUNK_BYTES):
        more = any(job.common.is_more for job in chunk)
        statement = statements_of(models).enqueue.jobs(unit.can_notify, more)
        inserted.update(unit.execute(statement, columns_of(chunk, with_more=more)).scalars())
    return inserted


def _insert_keyed(
    unit: Unit, models: Models, jobs: list[Draft], on_conflict: OnConflict, *, own_ids: bool
) -> BulkResult:
    """Add jobs of which some have unique keys, and tell of each what became of it."""
    # Their ids are told, so they are made here.
    filled = [replace(job, id=id) for id, job in with_ids(jobs)]
    keyed = [job for job in filled if job.unique is not None]
    others = [job for job in filled if job.unique is None]
    with Savepoint(unit) as savepoint:
        inserted = _insert(unit, models, others) if others else set()
        answers = iter(add_unique(unit, models, keyed, own_ids=own_ids))
        seen: set[str] = set()
        refs: list[JobRef] = []
        taken: set[str] = set()
        refused: dict[str, str] = {}  # keys, and the ids of their jobs
        for job in filled:
            answer = _of_id(job, inserted, seen) if job.unique is None else next(answers)
            refs.append(JobRef(answer.id, answer.inserted))
            if answer.id_is_taken:
                taken.add(answer.id)
            elif job.unique and not answer.inserted and job.unique.on_conflict == "raise":
                refused[str(job.unique.key)] = answer.id
        duplicates = tuple(sorted(taken))
        if refused or (duplicates and on_conflict == "raise"):
            savepoint.rollback()
            if duplicates and on_conflict == "raise":
                raise JobAlreadyExists(duplicates)
            raise JobAlreadyExists(tuple(refused.values()), tuple(refused))
    return BulkResult(sum(ref.inserted for ref in refs), duplicates, tuple(refs))


def _of_id(job: Draft, inserted: set[str], seen: set[str]) -> Answer:
    """What became of a job without a key."""
    new = job.id in inserted and job.id not in seen
    seen.add(job.id)
    return Answer(job.id, new, id_is_taken=not new)


def _copied(unit: Unit, models: Models, jobs: _Jobs) -> int | None:
    """Add jobs with new ids by COPY; how many. None if it is not possible here, or not worth it."""
    if jobs.count < WORTH_IT or not can_copy(unit.connection, models.job):
        return None
    statements = statements_of(models)
    now = unit.execute(statements.enqueue.before_copy).scalar()
    if now is None:
        return None
    # A bad arg among the later jobs ends the COPY, and must not abort the caller's transaction.
    with nullcontext() if jobs.all_at_once() else Savepoint(unit):
        count = copy(unit.connection, models.job, jobs, now)
    if unit.can_notify:
        for queue in sorted({job.common.queue for job in jobs.first}):
            unit.execute(statements.enqueue.notify, parameters(queue=queue))
    return count


def _missing(jobs: Iterable[Draft], inserted: set[str]) -> tuple[str, ...]:
    seen: set[str] = set()
    missing: set[str] = set()
    for job in jobs:
        if job.id not in inserted or job.id in seen:
            missing.add(job.id)
        seen.add(job.id)
    return tuple(sorted(missing))
