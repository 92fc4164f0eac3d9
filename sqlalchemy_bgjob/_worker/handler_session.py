"""The handler's session: opened on demand, contained, and settled in its own transaction.

The session joins a transaction that belongs to the worker. Whatever the handler calls on it, the
only COMMIT comes after the settlement, so the handler's writes and the job's end are one step:

* ``session.commit()`` protects the writes so far from a later ``rollback()``, and commits nothing
  yet. Savepoints are used only from then on; the common path needs none.
* ``session.rollback()`` and ``session.close()`` undo what was not kept, as they always do. A
  handler that returns after losing writes in this way has failed, see :mod:`.writes`. So has one
  that loses those of another session of its scoped_session, see :mod:`.other_sessions`.
* A handler that ends the transaction behind the session's back has failed, see
  :mod:`.transaction`.

The job's row is not locked while the handler runs, so the handler can't release its lock.
"""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from sqlalchemy import Connection, Engine, Transaction
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from .._db.errors import sqlstate, summary
from .._db.forks import Forked
from .._db.last_words import LastWords, complete, last_words
from .._db.printable import printable
from .._lifecycle.settle import Fate, Pending
from .._lifecycle.settle_within import settle_within
from .._points import SETTLE
from .._sql import Statements
from .._sql.words import has_written
from . import scope
from .other_sessions import OtherSessions
from .session_events import watch
from .transaction import OpenTransaction, TransactionEnded
from .unfit import blamed, fault, replace_pooled
from .writes import Writes

logger = logging.getLogger("sqlalchemy_bgjob")

_ISOLATION: Final = "isolation_level"


class JobEnded(RuntimeError):
    """A session was used after the job it belongs to had ended."""

    def __str__(self) -> str:
        return (
            "the job of this session has ended, so nothing that is done now could be committed; "
            "use ctx.session before the handler returns"
        )


class HandlerSession:
    """The session of one run, and the transaction it lives in.

    Args:
        connect: Takes a connection for this run; called at the first statement.
        disconnect: Gives the connection back.
        factory: Makes the user's session: a class, a sessionmaker, or a scoped_session, which then
            gives this session for the length of the run.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        disconnect: Callable[[Connection], None],
        factory: Callable[[], Any],
        engine: Engine,
    ) -> None:
        self._connect, self._disconnect = connect, disconnect
        self._factory = factory
        self._engine = engine
        self._outer: Any = None
        self._session: Session | None = None
        self._writes: Writes | None = None
        self._others: OtherSessions | None = None
        self._connection: Connection | None = None
        self._last_words: LastWords | None = None
        self._root: Transaction | None = None
        self._open: OpenTransaction | None = None  # the root, as the driver and the server see it
        self._kept = False  # the handler has called commit()
        self._ended_in_order = False  # by commit() or rollback(), not by close()
        self._settling = False
        self._over = False
        self._process = os.getpid()
        self.reached = False
        """Whether this run has ever had a connection."""
        self.unconnected: BaseException | None = None
        """Why this run has never had a connection, though its handler asked for one."""

    @property
    def session(self) -> Any:
        """What the handler gets: a Session or an AsyncSession."""
        if self._outer is None:
            self._outer = self._make()
            session: Session = getattr(self._outer, "sync_session", self._outer)
            self._session = session
            session.join_transaction_mode = "rollback_only"
            session.twophase = False  # it is part of the worker's transaction
            # On the instance, so that a session class with its own get_bind joins too.
            self._original_get_bind = session.get_bind
            session.get_bind = self._get_bind  # type: ignore[method-assign]
            self._writes = Writes(session, self._has_written)
            watch(session, self)
        return self._outer

    def enter_scope(self) -> None:
        """Let a scoped_session give this run's session before the handler first calls it."""
        _ = self.session

    def _make(self) -> Any:
        registry = getattr(self._factory, "registry", None)
        if registry is None:
            return self._factory()
        session = self._factory.session_factory()  # type: ignore[attr-defined]
        # An AsyncSession only now: tasks that the handler starts have their own scopes.
        if not hasattr(session, "sync_session"):
            self._others = OtherSessions()
        scope.enter(registry, session, None if self._others is None else self._others.watch)
        return session

    # ---- the session's side -------------------------------------------------------------------

    def _get_bind(self, *args: Any, **kwargs: Any) -> Any:
        assert self._writes is not None
        bind = self._bind(args, kwargs)
        connection = self._connection
        if self._writes.bound(args, kwargs) and bind is connection is not None:
            assert self._open is not None
            try:
                self._open.mark()
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise
                # Aborted by an error that the handler has already seen.
        return bind

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            bind = self._original_get_bind(*args, **kwargs)
        except Exception:
            # Unbound; or a get_bind that fails, as Flask's does after its app context has ended.
            return self._joined()
        if not self._same_database(bind.engine):
            return bind  # another database keeps its own engine; its commit follows ours
        # The session's engine may translate schemas, or log: its options apply here too.
        options = {k: v for k, v in bind.get_execution_options().items() if k != _ISOLATION}
        connection = self._joined()
        return connection.execution_options(**options) if options else connection

    def _same_database(self, engine: Engine) -> bool:
        if engine.pool is self._engine.pool:
            return True
        mine, its = ((e.url.host, e.url.port, e.url.database) for e in (self._engine, engine))
        # A URL without host, port and database, as beside a creator function, proves nothing.
        return mine == its and mine != (None, None, None)

    def _joined(self) -> Connection:
        if os.getpid() != self._process:
            raise Forked
        if self._over:
            raise JobEnded  # or this connection would never be given back
        if self._connection is not None and self._root is None and self._connection.invalidated:
            # Not a reconnect of the same one, which would use the engine's isolation level.
            connection, self._connection = self._connection, None
            self._disconnect(connection)
        if self._connection is None:
            self._connection = self._first_connection()
            self._last_words = last_words(self._connection)
        connection = self._connection
        if self._root is None:
            self._root, self._open = connection.begin(), OpenTransaction(connection)
        elif not self._intact():
            raise TransactionEnded
        elif self._open is not None:
            self._open.look()
        if self._kept and not connection.in_nested_transaction():
            connection.begin_nested()
        return connection

    def _first_connection(self) -> Connection:
        if self.reached:
            return self._connect()
        try:
            connection = self._connect()
        except BaseException as error:
            self.unconnected = error
            raise
        self.reached, self.unconnected = True, None
        return connection

    def _intact(self) -> bool:
        connection = self._connection
        return (
            connection is not None
            and not connection.invalidated
            and self._root is not None
            and self._root.is_active
            and connection.get_transaction() is self._root
        )

    def is_of(self, session: Session) -> bool:
        """Whether this is the handler's session."""
        return session is self._session

    def _has_written(self) -> bool:
        """Whether the server says that the transaction has written; False if it can't tell."""
        connection = self._connection
        if connection is None or self._kept or not self._intact():
            return False
        try:
            return bool(connection.scalar(has_written()))
        except DBAPIError:  # aborted by an error that the handler has already seen
            return False

    def after_commit(self, session: Session) -> None:
        """The handler has called commit()."""
        assert self._writes is not None
        self._writes.after_commit(session)
        # The event also fires when one of the handler's savepoints is released.
        if self._settling or session.in_nested_transaction():
            return
        self._kept = self._ended_in_order = True
        nested = self._connection.get_nested_transaction() if self._connection else None
        if nested is not None:
            nested.commit()

    def after_rollback(self, session: Session) -> None:
        """The handler has called rollback(), or a flush has failed."""
        assert self._writes is not None
        self._writes.after_rollback(session)
        if not session.in_nested_transaction():
            self._ended_in_order = True

    def after_transaction_end(self, ended: SessionTransaction) -> None:
        """A transaction of the session is over: by commit(), rollback() or close()."""
        assert self._writes is not None
        self._writes.after_transaction_end(ended)
        if self._settling or ended.parent is not None:
            return
        in_order, self._ended_in_order = self._ended_in_order, False
        if self._connection is None or self._root is None:
            return
        if not in_order and self._intact():
            # close() does not roll a joined transaction back, so undo here what was not kept.
            nested = self._connection.get_nested_transaction()
            if nested is not None:
                nested.rollback()
            elif not self._kept:
                self._root.rollback()
        if (in_order and not self._root.is_active) or (not in_order and not self._kept):
            self._root = None
            self._kept = False

    # ---- the worker's side --------------------------------------------------------------------

    def complete(self, error: BaseException) -> None:
        """Add to an error of the run why the server ended the session, if it did."""
        complete(error, self._last_words)

    def unfit(self, error: BaseException) -> BaseException | None:
        """The error that failed the run, if it is the session's fault; then ends the session."""
        connection, found = self._connection, blamed(error)
        if connection is None or connection.invalidated or found is None:
            return None
        self._settling = True
        if self._writes is not None:
            self._writes.stop()
        try:
            if self._session is not None:
                self._session.close()
            transaction = connection.get_transaction()
            if transaction is not None:
                transaction.rollback()
            told = fault(connection, found)
            if told is not None:
                replace_pooled(connection, found)
            return told
        except Exception as strange:  # the connection is lost by now, which proves nothing
            logger.debug("asking a handler's session: %s", summary(strange))
            return None

    def commit(
        self, statements: Statements, items: Sequence[Pending], *, outcome_was_named: bool
    ) -> Fate | None:
        """Flush, settle and commit in one transaction; None if no statement ever ran.

        Args:
            statements: Those of the tables.
            items: What is to be settled: all of it, or nothing is committed.
            outcome_was_named: Whether the handler returned an outcome, and not None.

        Raises:
            WritesUndone: What the handler had written was lost before it returned.
            TransactionEnded: The handler has ended the transaction.
            RowMissing, RowKept: A job can't be settled here. Whether its lease was lost, only the
                worker's own settlement can tell.
            Exception: Nothing was committed, unless the COMMIT got no answer: then *items* have
                the transaction's id.
        """
        session = self._session
        if session is None:
            return None
        transaction = session.get_transaction()
        if transaction is not None:
            # What commit() does first: the before_commit hooks, and the flush. The rest of it
            # follows the real COMMIT, so that after_commit hooks tell the truth.
            transaction._prepare_impl()  # noqa: SLF001 - there is no public way
        assert self._writes is not None
        self._writes.check(outcome_was_named=outcome_was_named)
        if self._others is not None:
            self._others.check(self._writes, outcome_was_named=outcome_was_named)
        connection = self._connection
        if connection is None or (self._root is None and not connection.in_transaction()):
            self._settling = True
            if transaction is not None:
                session.commit()  # for its hooks; no statement ran here
            self._release()
            return None
        if not self._intact():
            raise TransactionEnded
        if self._open is not None:
            self._open.check()
        self._settling = True
        nested = connection.get_nested_transaction()
        if nested is not None:
            nested.commit()
        xid = settle_within(connection, statements, items)
        _note_transaction(items, xid)
        connection.commit()
        if SETTLE.listeners:
            SETTLE.reached(list(items))
        _note_transaction(items, None)
        if transaction is not None:
            try:
                session.commit()
            except BaseException as error:  # a hook's own failure; the job is settled
                logger.error(
                    "job %s: after the commit: %s",
                    printable(items[0].job.id),
                    summary(error, place=True),
                )
        self._release()
        return Fate.SETTLED

    def discard(self) -> None:
        """Undo everything and give the connection back, whatever state they are in."""
        self._settling = True
        if self._writes is not None:
            self._writes.stop()  # nobody will be told of undone writes, so do not look for them
        # Whatever is raised, even by a late cancellation, the connection must be given back.
        if self._session is not None:
            with suppress(BaseException):
                self._session.close()
        self._release()

    def _release(self) -> None:
        self._over = True
        connection, self._connection = self._connection, None
        if self._session is not None:
            with suppress(BaseException):
                self._session.close()
            watch(self._session, None)
        registry = getattr(self._factory, "registry", None)
        if registry is not None and self._session is not None:
            scope.leave(registry)
        if self._others is not None:
            self._others.stop()
        if connection is not None:
            with suppress(BaseException):  # a cancellation: the connection is given back anyway
                self._disconnect(connection)


def _note_transaction(items: Sequence[Pending], xid: str | None) -> None:
    """Which transaction is to settle them, while the answer to its COMMIT is waited for."""
    for item in items:
        item.xid, item.if_committed = xid, item.settlement


def explain_commit_error(error: BaseException) -> BaseException:
    """Rephrase the error of a commit to say what the handler did."""
    if sqlstate(error) == "25P02":
        return RuntimeError(
            "the handler swallowed a database error, so its transaction can't be committed; "
            "let the error out, or run the statement in session.begin_nested()"
        )
    return error
