"""What becomes of one session's transactions, told to whoever watches it."""

from typing import Final, Protocol

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

_WATCHER: Final = "_bgjob_watcher"


class Watcher(Protocol):
    """Who is told what becomes of one session's transactions."""

    def is_of(self, session: Session) -> bool:
        """Whether this is the session that is watched."""

    def after_commit(self, session: Session) -> None:
        """A transaction or savepoint of the session was committed."""

    def after_rollback(self, session: Session) -> None:
        """One was rolled back."""

    def after_transaction_end(self, ended: SessionTransaction) -> None:
        """One is over, in whatever way."""


def watch(session: Session, watcher: Watcher | None) -> None:
    """Tell *watcher* from now on what becomes of the session's transactions; or nobody."""
    if watcher is None:
        session.info.pop(_WATCHER, None)
    else:
        session.info[_WATCHER] = watcher


# For all sessions, once: listening to each one of its own took a twentieth of a small job's time.


@event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    watcher = _watcher_of(session)
    if watcher is not None:
        watcher.after_commit(session)


@event.listens_for(Session, "after_rollback")
def _after_rollback(session: Session) -> None:
    watcher = _watcher_of(session)
    if watcher is not None:
        watcher.after_rollback(session)


@event.listens_for(Session, "after_transaction_end")
def _after_transaction_end(session: Session, ended: SessionTransaction) -> None:
    watcher = _watcher_of(session)
    if watcher is not None:
        watcher.after_transaction_end(ended)


def _watcher_of(session: Session) -> Watcher | None:
    watcher: Watcher | None = session.info.get(_WATCHER)
    # A handler may make a session of its own with the info of this one.
    return watcher if watcher is not None and watcher.is_of(session) else None
