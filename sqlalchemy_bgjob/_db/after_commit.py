"""Calls that wait for the COMMIT of a connection's outermost transaction.

SQLAlchemy's own hooks fire too early for this: a session's ``after_commit`` also fires when a
savepoint is released, and a connection's ``commit`` before the COMMIT is sent. So the ``commit``
event only remembers; the calls are made at the connection's next event, which comes after the
COMMIT has returned: its next BEGIN, or its way back to the pool. A COMMIT that fails makes none.
"""

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

Call = Callable[[], None]

_WAITING: Final = "bgjob_after_commit"  # until the transaction's COMMIT
_COMMITTED: Final = "bgjob_committed"  # until that COMMIT has returned


def after_commit(connection: Connection, call: Call) -> None:
    """Make *call* once this transaction's COMMIT has returned; a rollback forgets it.

    A rollback to a savepoint forgets only what was asked for inside it, which is the caller's to
    arrange: calls are tied to the outermost transaction.
    """
    _listen(connection.engine)
    connection.info.setdefault(_WAITING, []).append(call)


def others_listen(engine: Engine) -> bool:
    """Whether anybody else wants to hear when transactions of this engine begin and commit."""
    own = (_on_next_event, _on_commit)
    listeners = (*engine.dispatch.begin, *engine.dispatch.commit)
    return any(listener not in own for listener in listeners)


def _listen(engine: Engine) -> None:
    target: Any
    for target, name, listener in (
        (engine, "commit", _on_commit),
        (engine, "commit_twophase", _on_commit_twophase),
        (engine, "rollback", _on_rollback),
        (engine, "rollback_twophase", _on_rollback_twophase),
        (engine, "begin", _on_next_event),
        (engine, "begin_twophase", _on_next_begin_twophase),
        (engine.dialect, "handle_error", _on_error),
        (engine.pool, "reset", _on_reset),
    ):
        # Not event.contains(), which asks by id(): a pool that engine.dispose() has replaced leaves
        # its id behind, and whatever gets that address next would pass for listened to.
        if listener not in getattr(target.dispatch, name):
            event.listen(target, name, listener)


def _on_commit(connection: Connection) -> None:
    info = _info(connection)
    calls = info.pop(_WAITING, None)
    if calls:
        info[_COMMITTED] = calls


def _on_commit_twophase(connection: Connection, xid: Any, is_prepared: bool) -> None:
    _on_commit(connection)


def _on_rollback(connection: Connection) -> None:
    _info(connection).pop(_WAITING, None)


def _on_rollback_twophase(connection: Connection, xid: Any, is_prepared: bool) -> None:
    _on_rollback(connection)


def _on_next_event(connection: Connection) -> None:
    _make(_info(connection))


def _on_next_begin_twophase(connection: Connection, xid: Any) -> None:
    _on_next_event(connection)


def _info(connection: Connection) -> dict[str, Any]:
    # A connection that was lost can't be asked until it is rolled back; what it had is forgotten.
    return {} if connection.invalidated else connection.info


def _on_error(context: ExceptionContext) -> None:
    # After the commit event and before the next one, only the COMMIT itself can have failed.
    if context.connection is not None and not context.connection.closed:
        context.connection.info.pop(_COMMITTED, None)


def _on_reset(dbapi_connection: Any, record: Any, state: Any) -> None:
    record.info.pop(_WAITING, None)
    _make(record.info)


def _make(info: dict[str, Any]) -> None:
    for call in info.pop(_COMMITTED, ()):
        call()
