"""The wake-up of jobs that come by ``session.add(Job(...))``."""

from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, FromClause, event
from sqlalchemy.orm import Mapper, SessionTransaction, object_session

from .._db.targets import can_notify
from .._sql.words import parameters, wake_up
from ..models import JobMixin

_woken: WeakKeyDictionary[SessionTransaction, set[tuple[FromClause, str]]] = WeakKeyDictionary()


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
