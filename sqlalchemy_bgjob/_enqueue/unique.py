"""Jobs with unique keys: add them, or find those that are there, in the caller's transaction.

What each statement does about a duplicate, and why no update of the caller is lost, is told in
``_sql/unique.py``. Here they are run in the order of the keys, so that bulks can't deadlock: nobody
waits for a key while he holds a greater one.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

from .._db.targets import Savepoint, Unit
from .._drafts.draft import Draft, in_chunks
from .._drafts.unique import Unique
from .._sql import statements_of
from .._sql.unique import UniqueStatements
from ..models import Models
from .columns import CHUNK_BYTES, CHUNK_JOBS, columns_of

_TRIES: Final = 100
_Found = dict[str, tuple[str, bool | None]]
"""By stored key the id of the job that has it, and whether it is new; None if it was kept out."""


class Answer(NamedTuple):
    """Which job has a key."""

    id: str
    inserted: bool
    """Whether it is new."""
    id_is_taken: bool = False
    """Whether a live job has the id that the caller gave; then that id is this one."""


def add_unique(unit: Unit, models: Models, jobs: Sequence[Draft], *, own_ids: bool) -> list[Answer]:
    """Add jobs that have ids and unique keys, or find those that are there; who won, for each.

    Duplicates are treated as their keys say, but none is raised: that is left to the caller. Of
    several jobs with one key, at most the first is told that it is new.

    Args:
        unit: The caller's transaction.
        models: Whose tables.
        jobs: Jobs with ids.
        own_ids: Whether live jobs may have some of these ids.

    Raises:
        RuntimeError: Something that is not a key keeps a job out, such as a trigger.
    """
    statements = statements_of(models).unique
    ordered = sorted(enumerate(jobs), key=lambda item: _place(_key_of(item[1])))
    found: list[Answer] = []
    for (scope, policy), some in groupby(
        (job for _, job in ordered), key=lambda job: _kind(_key_of(job))
    ):
        for chunk in in_chunks(some, CHUNK_JOBS, CHUNK_BYTES):
            if scope == "period":
                found += _in_period(unit, statements, chunk)
            elif policy == "skip":
                found += _find(unit, statements, chunk, own_ids=own_ids)
            else:
                change = statements.replace if policy == "replace" else statements.earlier
                rows = unit.execute(change(unit.can_notify), _columns(chunk)).all()
                found += _told(chunk, _keys(rows))
    answers = dict(zip((place for place, _ in ordered), found, strict=True))
    return [answers[place] for place in range(len(jobs))]


def _key_of(job: Draft) -> Unique:
    assert job.unique is not None
    return job.unique


def _place(unique: Unique) -> tuple[bool, str]:
    """The order in which everybody takes keys: that of the table, and that of its index."""
    return unique.scope == "period", unique.stored


def _kind(unique: Unique) -> tuple[str, str]:
    """Keys of one kind can go into one statement."""
    policy = unique.on_conflict
    return unique.scope, "skip" if policy == "raise" else policy


def _columns(jobs: Sequence[Draft]) -> dict[str, Any]:
    return columns_of(jobs, unique_key=[_key_of(job).stored for job in jobs])


def _keys(rows: Sequence[Any]) -> _Found:
    return {key: (id, inserted) for key, id, inserted in rows if key is not None}


def _told(jobs: Sequence[Draft], found: _Found) -> list[Answer]:
    answers = []
    seen: set[str] = set()
    for job in jobs:
        key = _key_of(job).stored
        id, inserted = found.get(key, ("", None))
        if inserted is None:
            raise _kept_out(job)
        answers.append(Answer(id, inserted and key not in seen))
        seen.add(key)
    return answers


def _find(
    unit: Unit, statements: UniqueStatements, jobs: Sequence[Draft], *, own_ids: bool
) -> list[Answer]:
    """Leave what is there as it is, and lock what is queued.

    If some job has come or gone meanwhile, all is undone and tried in two halves: so a key is not
    waited for while greater ones are held, and there is less and less time for others to come.
    """
    if len(jobs) == 1:
        return [_find_one(unit, statements, jobs[0], own_ids=own_ids)]
    with Savepoint(unit) as savepoint:
        statement = statements.find(unit.can_notify, own_ids, False)
        answers = _answers(jobs, unit.execute(statement, _columns(jobs)).all())
        if answers is not None:
            return answers
        savepoint.rollback()
    half = len(jobs) // 2
    return [
        *_find(unit, statements, jobs[:half], own_ids=own_ids),
        *_find(unit, statements, jobs[half:], own_ids=own_ids),
    ]


def _find_one(unit: Unit, statements: UniqueStatements, job: Draft, *, own_ids: bool) -> Answer:
    given = _columns([job])
    for number in range(_TRIES):
        statement = statements.find(unit.can_notify, own_ids, number > 0)
        answers = _answers([job], unit.execute(statement, given).all())
        if answers is not None:
            return answers[0]
    raise _kept_out(job)


def _answers(jobs: Sequence[Draft], rows: Sequence[Any]) -> list[Answer] | None:
    """What the rows tell of each job; None if they tell nothing of some."""
    found = _keys(rows)
    # A job that ended while the statement ran may be seen although its id was free for the new one.
    new = {id for key, id, inserted in rows if key is not None and inserted}
    taken = {id for key, id, _ in rows if key is None} - new
    if not all(job.id in taken or _key_of(job).stored in found for job in jobs):
        return None
    told = iter(_told([job for job in jobs if job.id not in taken], found))
    return [
        Answer(job.id, inserted=False, id_is_taken=True) if job.id in taken else next(told)
        for job in jobs
    ]


def _in_period(unit: Unit, statements: UniqueStatements, jobs: Sequence[Draft]) -> list[Answer]:
    statement = statements.in_period(unit.can_notify)
    found: _Found = {}
    left = jobs
    for _ in range(_TRIES):
        columns = columns_of(
            left,
            unique_key=[_key_of(job).stored for job in left],
            period=[_key_of(job).seconds for job in left],
        )
        found |= _keys(unit.execute(statement, columns).all())
        left = [job for job in left if _key_of(job).stored not in found]
        if not left:
            return _told(jobs, found)
    raise _kept_out(left[0])


def _kept_out(job: Draft) -> RuntimeError:
    return RuntimeError(
        f"the job with the unique key {_key_of(job).key!r} can't be inserted, and no other job has "
        f"the key; look for a trigger, or a unique constraint of your own, on the table of jobs"
    )
