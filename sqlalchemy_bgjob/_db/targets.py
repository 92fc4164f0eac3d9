"""Whose transaction a job belongs to: one function for every kind of session and connection.

``sqlalchemy.ext.asyncio`` is never imported here: on SQLAlchemy 2.1 the import fails without
greenlet, and a program that has one of its objects has imported it already.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    Executable,
    NestedTransaction,
    Result,
    TwoPhaseTransaction,
    update,
)
from sqlalchemy.exc import DBAPIError, UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from ..models import Models
from .errors import note_advice, sqlstate

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import (
        AsyncConnection,
        AsyncEngine,
        AsyncSession,
        async_scoped_session,
    )

T = TypeVar("T")

SyncTarget = Session | scoped_session[Any] | Connection | Engine
if TYPE_CHECKING:
    AsyncTarget = AsyncSession | async_scoped_session[Any] | AsyncConnection | AsyncEngine


_NOTES: Final = {
    "42703": "If it is the queue's table that lacks a column, the table is of another version or "
    "another program's; see `sqlalchemy-bgjob doctor`.",
    "42P01": "If it is a table of the queue, make the tables: by a migration, or by "
    "`sqlalchemy-bgjob migrate`.",
    "42501": "If it is a table of the queue, see what `sqlalchemy-bgjob grants` prints.",
}
"""What is to be done about the queue's own tables, by SQLSTATE; a trigger may have met another."""


class Unit:
    """A Session or Connection in the caller's transaction, and how to run a statement in it."""

    def __init__(self, target: Session | Connection, models: Models | None) -> None:
        self.target = target
        if models is None:
            return  # an empty bulk, which runs no statement
        bind = target if isinstance(target, Connection) else bind_of_writes(target, models)
        dialect = bind.dialect.name
        if dialect != "postgresql":
            raise ValueError(
                f"the queue is in PostgreSQL, and this target's database is {dialect!r}; give one "
                f"of the database that has the tables"
            )
        # Asked once: a get_bind may choose another follower each time.
        self._bind = bind

    def execute(
        self, statement: Executable, parameters: dict[str, Any] | None = None
    ) -> Result[Any]:
        """Run a statement in the caller's transaction, after an autoflush of the session."""
        if isinstance(self.target, Session):
            self._flush(self.target)
        try:
            return self.connection.execute(statement, parameters)
        except DBAPIError as error:
            note_advice(error)
            note = _NOTES.get(sqlstate(error) or "")
            if note is not None:
                error.add_note(note)
            raise

    def savepoint(self) -> NestedTransaction:
        """A savepoint of the connection.

        A Session's savepoint would flush even without autoflush, and its release would call the
        user's ``after_commit`` hooks while nothing is committed.
        """
        if isinstance(self.target, Session):
            self._flush(self.target)  # before it: a rollback must not undo the user's rows
        return self.connection.begin_nested()

    def flush(self) -> None:
        """Flush the session, whether it does that by itself or not."""
        if isinstance(self.target, Session) and not self.target._flushing:  # noqa: SLF001 - as below
            self.target.flush()

    def _flush(self, session: Session) -> None:
        # SQLAlchemy 2.0 flushes before some statements only; a job may refer to a new row. Hooks
        # and mapper events that run inside a flush must not flush again.
        if session.autoflush and not session._flushing:  # noqa: SLF001 - the flag of its own autoflush
            session.flush()

    @property
    def can_notify(self) -> bool:
        """Whether NOTIFY is allowed: PostgreSQL refuses it in a two-phase transaction."""
        return can_notify(self.connection)

    @property
    def connection(self) -> Connection:
        """The connection of the caller's transaction."""
        if isinstance(self.target, Connection):
            return self.target
        return self.target.connection(bind_arguments={"bind": self._bind})


def bind_of_writes(session: Session, models: Models) -> Engine | Connection:
    """The bind to which the session would write a job.

    A ``get_bind`` that sends reads to a follower tells them by ``_flushing``, as the recipes in
    SQLAlchemy's documentation do, or by the statement's class. Those recipes look for Update and
    Delete, as Inserts come in a flush. So it is asked for an Update, with ``_flushing`` set.

    Raises:
        UnboundExecutionError: The session has no bind for the queue's models.
    """
    flushing = session._flushing  # noqa: SLF001 - as above
    session._flushing = True  # noqa: SLF001
    try:
        return session.get_bind(mapper=models.Job.__mapper__, clause=update(models.job))
    except UnboundExecutionError as error:
        error.add_note(
            "The queue's models have a base class of their own: a session with binds= needs it, "
            "as in Session(binds={Base: engine, jobs.Base: engine})."
        )
        raise
    finally:
        session._flushing = flushing  # noqa: SLF001


def is_autocommit(connection: Connection) -> bool:
    """Whether each statement would be committed by itself, so that there is no transaction."""
    # Not by truth: sqlite3, to which a session may have a bind too, says -1 and means no.
    return getattr(connection.connection.dbapi_connection, "autocommit", False) is True


def can_notify(connection: Connection) -> bool:
    """Whether the connection's transaction may use NOTIFY."""
    return not isinstance(connection.get_transaction(), TwoPhaseTransaction)


def run_in(target: object, models: Models | None, work: Callable[[Unit], T], *, call: str) -> Any:
    """Do *work* in the target's transaction: its result, or for asyncio a coroutine of it.

    For an Engine a transaction is begun and committed here. The coroutine is named after the *call*
    that the user wrote, for Python's warning that it was never awaited.

    Raises:
        TypeError: The target is of no accepted kind.
    """
    asyncio_module = sys.modules.get("sqlalchemy.ext.asyncio")
    if asyncio_module is not None:
        if isinstance(target, asyncio_module.async_scoped_session):
            target = target()
        if isinstance(target, asyncio_module.AsyncSession | asyncio_module.AsyncConnection):
            return _named(call, target.run_sync(lambda sync: work(Unit(_unsharded(sync), models))))
        if isinstance(target, asyncio_module.AsyncEngine):
            return _named(call, _in_own_transaction(target, models, work))
    if isinstance(target, scoped_session):
        target = target()
    if isinstance(target, Session | Connection):
        return work(Unit(_unsharded(target), models))
    if isinstance(target, Engine):
        with target.connect() as connection:
            return _in_its_own(connection, models, work)
    what = f"the class {target.__name__}" if isinstance(target, type) else type(target).__name__
    do = f"give one of these to {call} first, and call what makes sessions: SessionLocal()"
    if hasattr(target, "cursor"):
        do = (
            "let SQLAlchemy open the driver's connection, by engine.begin(), and take the driver's "
            "cursor of the same transaction from connection.connection.cursor()"
        )
    raise TypeError(
        f"a job belongs to a Session, scoped_session, Connection or Engine, or to one of their "
        f"asyncio twins, not to {what}; {do}"
    )


def is_async_engine(target: object) -> bool:
    """Whether a target is an AsyncEngine. An AsyncConnection has its attributes too."""
    asyncio_module = sys.modules.get("sqlalchemy.ext.asyncio")
    return asyncio_module is not None and isinstance(target, asyncio_module.AsyncEngine)


def _named(call: str, coroutine: Any) -> Any:
    with suppress(AttributeError):  # a subclass may return something else
        coroutine.__name__ = coroutine.__qualname__ = call
    return coroutine


async def _in_own_transaction(
    engine: "AsyncEngine", models: Models | None, work: Callable[[Unit], T]
) -> T:
    async with engine.connect() as connection:
        return await connection.run_sync(_in_its_own, models, work)


def _in_its_own(connection: Connection, models: Models | None, work: Callable[[Unit], T]) -> T:
    """Do *work* in a transaction of a new connection, also where its engine has AUTOCOMMIT.

    That may have been set past SQLAlchemy, by an argument or a listener of "connect". Then the pool
    would not restore what an execution option changes, so the driver is told here, and told back.
    """
    alone = is_autocommit(connection)
    driver: Any = connection.connection.dbapi_connection
    if alone:
        connection.dialect.set_isolation_level(driver, "READ COMMITTED")
    try:
        with connection.begin():
            return work(Unit(connection, models))
    finally:
        if alone and not connection.invalidated:
            connection.dialect.set_isolation_level(driver, "AUTOCOMMIT")


def _unsharded(target: Session | Connection) -> Session | Connection:
    module = sys.modules.get("sqlalchemy.ext.horizontal_shard")
    if module is not None and isinstance(target, module.ShardedSession):
        raise TypeError(
            "a ShardedSession would put the job on every shard; name the one it belongs to: "
            "enqueue(session.connection(bind_arguments={'shard_id': ...}), ...)"
        )
    return target


class Savepoint:
    """A savepoint around a bulk statement: if it fails, the caller's transaction stays usable."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def __enter__(self) -> Self:
        self._savepoint = self._unit.savepoint()
        return self

    def rollback(self) -> None:
        """Roll back to where it began."""
        self._savepoint.rollback()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._savepoint.is_active:
            if kind is None:
                self._savepoint.commit()
            else:
                self._savepoint.rollback()
