"""Jobs that come by ``session.add(Job(...))``: their wake-up, and what their INSERT can't do."""

from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, FromClause, event
from sqlalchemy.orm import Mapper, SessionTransaction, object_session

from .._db.targets import can_notify
from .._drafts.batch import refuse_other_transaction
from .._handlers.made import made_of
from .._sql.words import parameters, wake_up
from ..models import JobMixin

_woken: WeakKeyDictionary[SessionTransaction, set[tuple[FromClause, str]]] = WeakKeyDictionary()


@event.listens_for(JobMixin, "before_insert", propagate=True)
def _refuse_what_it_cannot_keep(mapper: Mapper[Any], connection: Connection, job: JobMixin) -> None:
    """The ORM's INSERT is a plain one: it skips and changes nothing. And a batch may be closed."""
    made = made_of(job)
    if made is not None:
        refuse_other_transaction(made.batch, connection.get_transaction())
    unique = None if made is None else made.draft.unique
    if unique is not None and (unique.scope == "period" or unique.on_conflict != "raise"):
        raise TypeError(
            f"session.add inserts the job with the unique key {unique.key!r} by a plain INSERT, "
            f"which can't do what is to be done about a duplicate; write enqueue(session, handler, "
            f"arg, unique=...) or enqueue_many(session, [job, ...]); or give it "
            f"unique=Unique(key, on_conflict='raise'), and a duplicate fails the flush with an "
            f"IntegrityError"
        )


@event.listens_for(JobMixin, "after_insert", propagate=True)
def _wake_after_insert(mapper: Mapper[Any], connection: Connection, job: JobMixin) -> None:
    """Notify for ``session.add(Job(...))``, once for each queue and transaction or savepoint.

    A savepoint that is rolled back takes its notifications with it, so they do not count for the
    transaction around it.
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
