"""The sessions that a handler's scoped_session makes beside ``ctx.session``, and their writes.

A scope within the job's, such as an application context of Flask's that the handler enters, has a
session of its own. Its commit is not the job's: what the handler writes there is kept if it commits
there, and lost without a word otherwise, most often when the scope ends. As a return means that the
work is done, the attempt has failed then.
"""

from typing import Any, Final

from sqlalchemy import Connection, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction

from .._db.sql_text import sql_of
from .._db.targets import is_autocommit
from .._sql.words import has_written
from .session_events import watch
from .transaction import TransactionEnded, refuse_to_end
from .writes import Undone, Writes, WritesUndone

_LOST: Final = (
    "another session than ctx.session, which the handler's scoped_session has made for a scope "
    "within the job's, {}; leave out that scope, such as `with app.app_context():`, or end it with "
    "a commit() or rollback() of its session"
)
_CLOSED: Final = "was closed, or removed from its scope, over writes that are lost now"
_OPEN: Final = "was left open with writes that nobody commits"
_ROLLED_BACK: Final = (
    "a session of the handler's scoped_session was rolled back, and nothing is left of what the "
    "handler wrote; if that is meant, return an outcome, such as Complete()"
)


class OtherSessions:
    """The other sessions of one run."""

    __slots__ = ("_watched",)

    def __init__(self) -> None:
        self._watched: list[_OtherWrites] = []

    def watch(self, session: Session) -> None:
        """Watch a session that was made just now."""
        self._watched.append(_OtherWrites(session))

    def check(self, joined: Writes, *, outcome_was_named: bool) -> None:
        """Check a handler that has returned.

        Args:
            joined: The writes of ``ctx.session``, which was flushed.
            outcome_was_named: Whether the handler returned an outcome, and not None.

        Raises:
            WritesUndone: What it had written in one of the sessions is lost, and that does not
                count as meant.
        """
        for writes in self._watched:
            if writes.undone is Undone.CLOSED:
                raise WritesUndone(_LOST.format(_CLOSED))
            if writes.are_pending():
                raise WritesUndone(_LOST.format(_OPEN))
        if outcome_was_named or any(writes.are_left() for writes in (joined, *self._watched)):
            return
        if any(writes.undone is not None for writes in self._watched):
            raise WritesUndone(_ROLLED_BACK)

    def stop(self) -> None:
        """Stop watching: the run is over."""
        while self._watched:
            self._watched.pop().stop()


class _OtherWrites(Writes):
    """The writes of a session whose transactions are the handler's own."""

    __slots__ = ("_connections", "_get_bind")

    def __init__(self, session: Session) -> None:
        super().__init__(session, self._server_knows)
        self._connections: list[Connection] = []  # of the open transaction
        self._get_bind = session.get_bind
        session.get_bind = self._bind  # type: ignore[method-assign]
        event.listen(session, "after_begin", self._began)
        watch(session, self)

    def stop(self) -> None:
        """Stop watching: from now on the session is the application's alone."""
        super().stop()
        watch(self._session, None)
        event.remove(self._session, "after_begin", self._began)

    def _bind(self, *args: Any, **kwargs: Any) -> Any:
        self.bound(args, kwargs)
        return self._get_bind(*args, **kwargs)

    def _began(self, _: Session, __: SessionTransaction, connection: Connection) -> None:
        self._connections.append(connection)

    def _server_knows(self) -> bool:
        try:
            return any(connection.scalar(has_written()) for connection in self._connections)
        except SQLAlchemyError:  # aborted by an error that the handler has seen, or no PostgreSQL
            return False

    def _executed(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        sql = sql_of(statement)
        try:
            if sql is not None:
                refuse_to_end(sql)
        except TransactionEnded:  # as its own, it may
            result = self._execute(statement, *args, **kwargs)
            self._kept = True
            super()._forget()
            return result
        return super()._executed(statement, *args, **kwargs)

    def _wrote(self) -> None:
        if not all(is_autocommit(connection) for connection in self._connections):
            super()._wrote()

    def _forget(self) -> None:
        super()._forget()
        self._connections.clear()
