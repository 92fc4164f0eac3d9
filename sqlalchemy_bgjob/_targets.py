"""Whose transaction a job belongs to: one function for every kind of session and connection.

``sqlalchemy.ext.asyncio`` is never imported here: on SQLAlchemy 2.1 that fails without greenlet,
and a program that holds one of its objects has imported it already.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    Executable,
    NestedTransaction,
    Result,
    TwoPhaseTransaction,
    insert,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, scoped_session

from ._errors import note_advice
from .models import Models

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


class Unit:
    """A Session or Connection in the caller's transaction, and how to run a statement in it."""

    def __init__(self, target: Session | Connection, models: Models | None) -> None:
        self.target = target
        if models is None:
            return  # an empty bulk, of which nothing is asked
        # An insert as the clause: sessions that send reading statements to a replica go by it, and
        # would take ours for one.
        self._where = {"mapper": models.Job.__mapper__, "clause": insert(models.job)}
        bind = target if isinstance(target, Connection) else target.get_bind(**self._where)
        dialect = bind.dialect.name
        if dialect != "postgresql":
            raise ValueError(
                f"the queue is in PostgreSQL, and this target's database is {dialect!r}; give one "
                f"of the database that has the tables"
            )

    def execute(
        self, statement: Executable, parameters: dict[str, Any] | None = None
    ) -> Result[Any]:
        """Run a statement in the caller's transaction; what the session holds is flushed first."""
        if isinstance(self.target, Session):
            self._flush(self.target)
        try:
            if isinstance(self.target, Connection):
                return self.target.execute(statement, parameters)
            return self.target.execute(statement, parameters, bind_arguments=dict(self._where))
        except DBAPIError as error:
            note_advice(error)
            raise

    def savepoint(self) -> NestedTransaction:
        """A savepoint of the connection.

        One of the Session would flush whatever autoflush says, and its release would call the
        user's ``after_commit`` hooks while nothing is committed.
        """
        if isinstance(self.target, Session):
            self._flush(self.target)  # before it, or its undoing would take the user's rows along
        return self.connection.begin_nested()

    def _flush(self, session: Session) -> None:
        # SQLAlchemy 2.0 flushes before some statements only; a job may refer to a new row.
        if session.autoflush:
            session.flush()

    @property
    def can_notify(self) -> bool:
        """NOTIFY is refused in a transaction that is to be prepared for two-phase commit."""
        return can_notify(self.connection)

    @property
    def connection(self) -> Connection:
        """The connection of the transaction."""
        if isinstance(self.target, Connection):
            return self.target
        return self.target.connection(bind_arguments=dict(self._where))


def can_notify(connection: Connection) -> bool:
    """Whether the connection's transaction may use NOTIFY."""
    return not isinstance(connection.get_transaction(), TwoPhaseTransaction)


def run_in(target: object, models: Models | None, work: Callable[[Unit], T]) -> Any:
    """Do *work* in the target's transaction: its result, or for asyncio a coroutine of it.

    An Engine is a transaction of its own, committed here.

    Raises:
        TypeError: The target is none of the kinds that are accepted.
    """
    asyncio_module = sys.modules.get("sqlalchemy.ext.asyncio")
    if asyncio_module is not None:
        if isinstance(target, asyncio_module.async_scoped_session):
            target = target()
        if isinstance(target, asyncio_module.AsyncSession | asyncio_module.AsyncConnection):
            return target.run_sync(lambda sync: work(Unit(_unsharded(sync), models)))
        if isinstance(target, asyncio_module.AsyncEngine):
            return _in_own_transaction(target, models, work)
    if isinstance(target, scoped_session):
        target = target()
    if isinstance(target, Session | Connection):
        return work(Unit(_unsharded(target), models))
    if isinstance(target, Engine):
        with target.begin() as connection:
            return work(Unit(connection, models))
    raise TypeError(
        f"a job belongs to a Session, scoped_session, Connection or Engine, or to one of their "
        f"asyncio twins, not to a {type(target).__name__}"
    )


async def _in_own_transaction(
    engine: "AsyncEngine", models: Models | None, work: Callable[[Unit], T]
) -> T:
    async with engine.begin() as connection:
        return await connection.run_sync(lambda sync: work(Unit(sync, models)))


def _unsharded(target: Session | Connection) -> Session | Connection:
    module = sys.modules.get("sqlalchemy.ext.horizontal_shard")
    if module is not None and isinstance(target, module.ShardedSession):
        raise TypeError(
            "a ShardedSession would put the job on every shard; name the one it belongs to: "
            "enqueue(session.connection(bind_arguments={'shard_id': ...}), ...)"
        )
    return target
