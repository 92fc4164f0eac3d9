"""What a handler has written through its session, and whether that was undone before it returned.

A return means that the work is done. So writes must not be lost silently before it:

* ``close()``, ``reset()``, ``invalidate()`` and a scoped_session's ``remove()`` undo what was not
  kept by ``commit()``. That is hardly meant: the attempt has failed.
* A ``rollback()`` that leaves nothing of the handler's writes counts as meant only if the handler
  goes on to write, or returns an outcome.

The client sees this without further statements: flushes and statements that write by their kind,
text by its first word. The server is asked only before something is undone, and only if the handler
took the connection itself or sent several statements as one text.
"""

import re
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from sqlalchemy import ExecutableDDLElement
from sqlalchemy.orm import Session, SessionTransaction

from .._db.sql_text import first_word_at, may_be_several, sql_of
from .transaction import TransactionEnded, refuse_to_end

_READS: Final = re.compile(
    r"(?:select|values|table|show|explain|set|reset|fetch|move|"
    r"declare|close|lock|savepoint|release|rollback|listen|unlisten|with(?!.*\b(?:insert|update|delete|"
    r"merge)\b))\b",
    re.IGNORECASE | re.DOTALL,
)


def reads(sql: str) -> bool:
    """Whether a text is known to write nothing, by its first word."""
    return _READS.match(sql, first_word_at(sql)) is not None


def writes(statement: Any) -> bool:
    """Whether a statement that SQLAlchemy builds writes."""
    return getattr(statement, "is_dml", False) or isinstance(statement, ExecutableDDLElement)


class WritesUndone(RuntimeError):
    """A handler returned although its writes through the session were undone."""


class Undone(Enum):
    """How a handler's writes were undone; the value is the text of the error."""

    CLOSED = (
        "ctx.session was closed, or removed from its scope, over writes that are lost now; let the "
        "worker enter the context that closes it (around=), or call ctx.session.commit() first"
    )
    ROLLED_BACK = (
        "ctx.session was rolled back, and nothing is left of what the handler wrote; "
        "if that is meant, return an outcome, such as Complete()"
    )


class Writes:
    """The writes of one handler's session.

    Args:
        session: The one that the handler uses.
        ask: Asks the server whether the open transaction has written; False where it can't tell.
    """

    __slots__ = (
        "_ask",
        "_connection",
        "_execute",
        "_flushing",
        "_kept",
        "_off",
        "_refusal",
        "_session",
        "_taken",
        "_where",
        "undone",
    )

    def __init__(self, session: Session, ask: Callable[[], bool]) -> None:
        self._session, self._ask = session, ask
        self._where: set[SessionTransaction | None] = set()
        """The savepoints with writes that are not kept yet; None for outside of all."""
        self._flushing = False
        self._taken = False  # the handler may have written what only the server knows of
        self._kept = False
        self._off = False
        self._refusal: TransactionEnded | None = None
        self.undone: Undone | None = None
        # On the instance, so that it works for any session class of the application.
        self._execute = session._execute_internal  # noqa: SLF001 - what all ways to execute call
        session._execute_internal = self._executed  # type: ignore[method-assign] # noqa: SLF001
        self._connection = session.connection
        session.connection = self._take  # type: ignore[method-assign, assignment]
        close, reset, invalidate = session.close, session.reset, session.invalidate
        session.close = lambda: self._undo(Undone.CLOSED, close)  # type: ignore[method-assign]
        session.reset = lambda: self._undo(Undone.CLOSED, reset)  # type: ignore[method-assign]
        session.invalidate = lambda: self._undo(  # type: ignore[method-assign]
            Undone.CLOSED, invalidate
        )
        rollback = session.rollback
        session.rollback = lambda: self._undo(  # type: ignore[method-assign]
            Undone.ROLLED_BACK, rollback
        )

    def check(self, *, outcome_was_named: bool) -> None:
        """Check a handler that has returned, once its session was flushed.

        Raises:
            WritesUndone: Its writes were undone, and that does not count as meant.
            TransactionEnded: It has tried to end the transaction by SQL.
        """
        self.stop()
        if self._refusal is not None:
            raise self._refusal
        undone = self.undone
        if undone is Undone.CLOSED or (undone is not None and not outcome_was_named):
            raise WritesUndone(undone.value)

    def are_left(self) -> bool:
        """Whether the handler has flushed or committed writes that were not undone."""
        return self._kept or bool(self._where)

    def are_pending(self) -> bool:
        """Whether there are writes that ``commit()`` has not kept; those not flushed count too."""
        return self._has_written()

    def stop(self) -> None:
        """Stop watching: from now on the worker uses the session."""
        self._off = True

    # ---- what is written ----------------------------------------------------------------------

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Note a call of ``get_bind``; True if it may lead to writes that the client can't see.

        A flush passes the mapper as the one positional argument, a statement passes itself. A call
        with neither gives the connection to the handler; and of a text with several statements only
        the first word is looked at.
        """
        if args:
            self._flushing = True
            return False
        if "clause" in kwargs:
            sql = sql_of(kwargs["clause"])
            if sql is None or not may_be_several(sql):
                return False
        self._taken = True
        return True

    def _executed(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        sql = sql_of(statement)
        if sql is not None:
            try:
                refuse_to_end(sql)
            except TransactionEnded as refusal:
                self._refusal = refusal  # in case the handler swallows it
                raise
        result = self._execute(statement, *args, **kwargs)  # refuses what is no statement
        if writes(statement) if sql is None else not reads(sql):
            self._wrote()
        return result

    def _take(self, bind_arguments: Any = None, **kwargs: Any) -> Any:
        # Enqueue, cancel and redrive name the bind that they are about to write to.
        to_write = bool(bind_arguments) and "bind" in bind_arguments
        connection = self._connection(bind_arguments, **kwargs)
        if to_write:
            self._wrote()
        return connection

    def _wrote(self) -> None:
        self._where.add(self._session.get_nested_transaction())
        if self.undone is Undone.ROLLED_BACK:
            self.undone = None  # the handler went on to write

    # ---- what is undone -----------------------------------------------------------------------

    def _undo(self, how: Undone, undo: Callable[[], None]) -> None:
        if not self._off and (how is Undone.CLOSED or not self._kept) and self._has_written():
            self._lost(how)
        undo()

    def _lost(self, how: Undone) -> None:
        if self.undone is not Undone.CLOSED:
            self.undone = how

    def _has_written(self) -> bool:
        session = self._session
        return bool(
            self._where
            or session.new
            or session.deleted
            or any(session.is_modified(instance) for instance in session.dirty)
            or (self._taken and self._ask())
        )

    # ---- what the session tells ---------------------------------------------------------------

    def is_of(self, session: Session) -> bool:
        """Whether this is the session that is watched."""
        return session is self._session

    def after_commit(self, session: Session) -> None:
        """Keep the writes; those of a released savepoint pass to the transaction around it."""
        nested = session.get_nested_transaction()
        if nested is None:
            self._kept = self._kept or self._taken or bool(self._where)
            self._forget()
        elif nested in self._where:
            around = nested.parent
            while around is not None and not around.nested:
                around = around.parent
            self._where.add(around)

    def after_rollback(self, session: Session) -> None:
        """Also called if a flush failed, or an exception left a ``with session.begin()``."""
        self._flushing = False
        if session.in_nested_transaction():
            return
        if self._where and not self._kept and not self._off:
            self._lost(Undone.ROLLED_BACK)
        self._forget()

    def after_transaction_end(self, ended: SessionTransaction) -> None:
        """A flush, a savepoint or the whole transaction is over."""
        if ended.nested:
            self._where.discard(ended)
        elif ended.parent is None:
            self._forget()
        elif self._flushing:
            self._flushing = False
            self._wrote()

    def _forget(self) -> None:
        self._where.clear()
        self._taken = False
