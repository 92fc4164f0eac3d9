"""Close a batch, finish it once its jobs have ended, and forget it when it is old.

Whoever commits the end of a job of a batch looks afterwards whether the batch is over. What nobody
has looked at, since a worker was killed in between, or since a user's transaction has cancelled the
last job, the leader finds; see :mod:`.._worker.batch_sweep`.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from math import inf
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from .._db.errors import doubts_session, lost_connection, ran_out_of_time, summary
from .._db.targets import Unit, can_notify
from .._drafts.batch import OpenBatch
from .._handlers.outcomes import ENDED
from .._sql import Statements
from .._sql.words import parameters
from . import run
from .delete_one_by_one import delete_one_by_one, is_due_to_a_row
from .settle import Pending

logger = logging.getLogger("sqlalchemy_bgjob")


def close(unit: Unit, statements: Statements, batch: OpenBatch) -> None:
    """Insert the row of a batch, beside its jobs; the caller commits."""
    unit.flush()
    then = batch.then
    given: dict[str, Any] = {
        "id": batch.id,
        "on_dead": batch.on_dead,
        "then_queue": then and then.common.queue,
        "then_type": then and then.common.type,
        "then_arg": then and then.arg,
        "then_headers": then and then.common.headers,
    }
    unit.execute(statements.batches.close(unit.can_notify), parameters(**given))


def batches_of(items: Iterable[Pending]) -> set[str]:
    """The batches of jobs that have ended, of some settlements."""
    return {
        batch
        for item in items
        if item.job.extras and item.settlement.kind in ENDED and (batch := item.job.batch)
    }


def finish(connection: Connection, statements: Statements, ids: Iterable[str]) -> list[str]:
    """Finish those batches that are over; their ids. Commits, unless the caller has begun.

    If the job that follows one of them is refused, by a constraint or a trigger of the user's, each
    is finished by itself: that one is left as it is, and the log names it. In the caller's
    transaction each statement is within a savepoint.

    Raises:
        DBAPIError: It may not be due to one of them: the connection was lost, time ran out, or all
            were refused, as the role may not; the log names the first one.
    """
    ids, finished = sorted(ids), list[str]()
    begin = connection.begin_nested if connection.in_transaction() else connection.begin
    parts, refused = [ids], dict[str, DBAPIError]()
    while parts:
        part = parts.pop()
        try:
            with begin():
                finished += finish_within(connection, statements, part)
        except DBAPIError as error:
            if lost_connection(error) or ran_out_of_time(error):
                raise
            if len(part) > 1:
                parts = [[id] for id in part]
            else:
                refused[part[0]] = error
    for id, why in refused.items():
        if doubts_session(why) and len(refused) == len(ids):
            # A trigger may raise what a missing privilege does.
            words = "batch %s, or what follows it, is refused: %s; others will look again"
            logger.warning(words, id, summary(why))
            raise why
        words = "batch %s is over, and what follows is refused: %s; when that is mended, it follows"
        logger.warning(words, id, summary(why))
    return finished


def finish_within(connection: Connection, statements: Statements, ids: list[str]) -> list[str]:
    """Finish those batches that are over, or none; their ids. The caller commits."""
    statement = statements.batches.finish(can_notify(connection))
    return list(run(connection, statement, ids=ids).scalars())


class Looked(NamedTuple):
    """What a look at some batches has come to.

    Attributes:
        last: The id from which on the next one looks; None if there is nothing behind.
        ids: Those that are finished now, or were deleted.
        refused: Why others could not be deleted, by their ids.
    """

    last: str | None
    ids: list[str]
    refused: Mapping[str, Exception] = MappingProxyType({})


def look_through(
    connection: Connection, statements: Statements, *, after: str, limit: int
) -> Looked:
    """Finish those of the unfinished batches that are over. Commits.

    A batch that somebody has locked is left to a later call.

    Args:
        connection: Idle, outside a transaction.
        statements: Those of the tables.
        after: The id from which on it looks, without it.
        limit: How many it looks at.
    """
    with connection.begin():
        statement = statements.batches.unfinished
        ids = list(run(connection, statement, after=after, limit=limit).scalars())
    finished = finish(connection, statements, ids) if ids else []
    return Looked(ids[-1] if len(ids) == limit else None, finished)


def forget(
    connection: Connection,
    statements: Statements,
    *,
    after: str,
    limit: int,
    keep: float,
    skip: Collection[str] = (),
    until: float = inf,
) -> Looked:
    """Delete batches that were finished more than *keep* seconds ago. Commits.

    By the database's clock. It reads from the one that was made first up to those that are younger
    than that; see :func:`look_through`. If one of them refuses to go, each is deleted by itself,
    until the monotonic time *until*, or as long as not all may refuse.

    Args:
        connection: Idle, outside a transaction.
        statements: Those of the tables.
        after: The id from which on it looks, without it.
        limit: How many it looks at.
        keep: For how long they are kept.
        skip: The ids of those that are left alone.
        until: When it stops, if it deletes them one by one.

    Raises:
        DBAPIError: It may not be due to one of them: the connection was lost, time ran out, or all
            that were tried have refused, as the role may not; the log names the first one.
    """
    its = statements.batches
    with connection.begin():
        rows: Any = run(connection, its.oldest, after=after, limit=limit, keep=keep).all()
    old = [id for id, _, is_old in rows if is_old and id not in skip]
    last = rows[-1][0] if len(rows) == limit and rows[-1][1] else None
    if not old:
        return Looked(last, [])

    def delete(*ids: str) -> list[str]:
        return list(run(connection, its.forget, ids=list(ids)).scalars())

    try:
        with connection.begin():
            forgotten = delete(*old)
    except Exception as error:
        if not is_due_to_a_row(error):
            raise
    else:
        return Looked(last, forgotten)
    tried = delete_one_by_one(connection, "batch", old, lambda one: bool(delete(one)), until=until)
    return Looked(tried.stopped_at or last, tried.deleted, tried.refused)
