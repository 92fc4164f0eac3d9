"""``ctx.session`` of ``work_one``: made on demand, within a savepoint of the caller's transaction.

A scoped_session that makes it gives it while the handler runs, in all scopes but those that have a
session already: the caller's own stays the caller's. What the handler loses of its writes is an
error by the same rules as in a worker, see :mod:`.writes` and :mod:`.other_sessions`.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from .._db.forks import Forked
from . import scope
from .other_sessions import OtherSessions
from .session_events import watch
from .writes import Writes


class CallersSession:
    """The session of one handler.

    Args:
        connection: The caller's.
        factory: Makes the user's session; None for SQLAlchemy's own.
        is_coroutine: Whether the handler is one; a function gets no AsyncSession.
    """

    def __init__(
        self, connection: Connection, factory: Callable[[], Any] | None, *, is_coroutine: bool
    ) -> None:
        self._connection, self._factory = connection, factory
        self._is_coroutine = is_coroutine
        self._process = os.getpid()
        self._outer: Any = None
        self._session: Session | None = None
        self._writes: Writes | None = None
        self._others = OtherSessions()

    @contextmanager
    def in_scope(self) -> Iterator[None]:
        """Let a scoped_session give this session meanwhile, and watch the others that it makes."""
        registry = getattr(self._factory, "registry", None)
        if registry is None or self._connection.dialect.is_async:
            yield
            return
        _ = self.session
        try:
            with scope.beside(registry, self._session, self._others.watch):
                yield
        finally:
            self._others.stop()

    @property
    def session(self) -> Any:
        """What the handler gets: a Session or an AsyncSession."""
        if self._outer is None:
            self._outer = self._make()
        return self._outer

    def _make(self) -> Any:
        is_async, factory = self._connection.dialect.is_async, self._factory
        if factory is None:
            factory = sys.modules["sqlalchemy.ext.asyncio"].AsyncSession if is_async else Session
        # A scoped_session may hold the caller's own session: the handler gets another one.
        outer = getattr(factory, "session_factory", factory)()
        session: Session = getattr(outer, "sync_session", outer)
        self._session = session
        session.join_transaction_mode = "create_savepoint"
        session.twophase = False
        # The caller's transaction has written already: the server can't tell what the handler has.
        self._writes = Writes(session, lambda: False)
        session.get_bind = self._get_bind  # type: ignore[method-assign]
        watch(session, self._writes)
        return outer if self._is_coroutine else session  # a function awaits nothing

    def _get_bind(self, *args: Any, **kwargs: Any) -> Connection:
        if os.getpid() != self._process:
            raise Forked
        assert self._writes is not None
        self._writes.bound(args, kwargs)
        return self._connection

    def commit(self, *, outcome_was_named: bool) -> None:
        """Keep what the handler has written, as a part of the caller's transaction.

        Raises:
            WritesUndone: It was lost before the handler returned.
            TransactionEnded: The handler has tried to end the transaction by SQL.
        """
        if self._session is None or self._writes is None:
            return
        self._session.commit()
        self._writes.check(outcome_was_named=outcome_was_named)
        self._others.check(self._writes, outcome_was_named=outcome_was_named)
        self._close(self._session)

    def discard(self) -> None:
        """Undo what was not committed."""
        if self._session is not None and self._writes is not None:
            self._writes.stop()
            self._close(self._session)

    def _close(self, session: Session) -> None:
        session.close()
        watch(session, None)
