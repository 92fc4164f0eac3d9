"""Tells a watcher what becomes of one session's transactions."""

from typing import Final, Protocol

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

_WATCHER: Final = "_bgjob_watcher"


class Watcher(Protocol):
    """Is told what becomes of one session's transactions."""

    def is_of(self, session: Session) -> bool:
        """Whether this is the session that is watched."""

    def after_commit(self, session: Session) -> None:
        """A transaction or savepoint of the session was committed."""

    def after_rollback(self, session: Session) -> None:
        """A transaction or savepoint was rolled back."""

    def after_transaction_end(self, ended: SessionTransaction) -> None:
        """A transaction or savepoint is over, committed or not."""


def watch(session: Session, watcher: Watcher | None) -> None:
    """Tell *watcher* what becomes of the session's transactions; with None, tell nobody."""
    if watcher is None:
        session.info.pop(_WATCHER, None)
    else:
        session.info[_WATCHER] = watcher


# Once for all sessions: a listener for each session took a twentieth of a small job's time.


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
    # A handler may make another session with this one's info.
    return watcher if watcher is not None and watcher.is_of(session) else None
