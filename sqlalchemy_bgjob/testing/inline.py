"""Jobs run as soon as the code under test commits: :class:`Inline`.

The moment is the commit, and not the enqueue or a flush: what a job is to see may be written after
both, and a transaction that is rolled back has no jobs. They run just before it, in the same
transaction, so that a test can roll all of it back.
"""

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy import Connection, event
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from .._db.targets import Unit, bind_of_writes
from .target import is_async, is_engine

if TYPE_CHECKING:
    from .._handlers.outcomes import Outcome
    from .working import Working


__tracebackhide__: Final = True


class Inline:
    """A block in which commits run jobs; :meth:`JobKit.inline` makes it.

    Attributes:
        outcomes: The outcomes of the jobs that have run, in their order.
    """

    def __init__(
        self,
        kit: "Working",
        target: Any,
        *,
        raise_errors: bool,
        session_factory: Callable[[], Any] | None,
    ) -> None:
        if is_engine(target):
            raise TypeError(
                "inline runs jobs at the commits of a session: give it a Session, or a Connection "
                "for all sessions that are bound to it"
            )
        self.outcomes: list[Outcome] = []
        self._kit, self._target, self._session_factory = kit, target, session_factory
        self._raise_errors = raise_errors
        self._errors: list[BaseException] = []
        self._too_many: RuntimeError | None = None
        self._is_ours = _whose(target, kit)
        self._is_working = False

    def __enter__(self) -> Self:
        if is_async(self._target):
            raise TypeError("of sessions of asyncio write `async with bgjob.inline(...)`")
        return self._begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if error is None and self._has_more():
                self._kit._in(self._target, self._work, "inline")  # noqa: SLF001 - a part of it
        finally:
            self._end(error)

    async def __aenter__(self) -> Self:
        if not is_async(self._target):
            raise TypeError("of sessions without asyncio write `with bgjob.inline(...)`")
        return self._begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if error is None and self._has_more():
                await self._kit._in(self._target, self._work, "inline")  # noqa: SLF001
        finally:
            self._end(error)

    def _begin(self) -> Self:
        event.listen(Session, "before_commit", self._before_commit)
        return self

    def _has_more(self) -> bool:
        """Whether a transaction is open, whose jobs no commit has run."""
        target = self._target
        registry = getattr(target, "registry", None)
        if registry is not None:
            try:
                if not registry.has():
                    return False
            except RuntimeError:  # of Flask, outside of its context: no session is there
                return False
            target = target()
        return bool(target.in_transaction())

    def _end(self, error: BaseException | None) -> None:
        event.remove(Session, "before_commit", self._before_commit)
        failed = self._errors if self._raise_errors else []
        if self._too_many is not None:
            failed = [self._too_many, *failed]
        if not failed:
            return
        if error is not None:
            for each in failed:
                words = "In this block" if each is self._too_many else "A job has failed before"
                error.add_note(f"{words}: {type(each).__name__}: {each}")
            return
        first, *others = failed
        for each in others:
            first.add_note(f"Another job has failed too: {type(each).__name__}: {each}")
        raise first

    def _before_commit(self, session: Session) -> None:
        # The commit of a savepoint hands nothing to the workers. And a handler's session commits
        # too, while its job is worked on.
        if self._is_working or session.in_nested_transaction() or not self._is_ours(session):
            return
        session.flush()  # also without autoflush; the commit would do it later
        self._work(Unit(session, self._kit.jobs.models))

    def _work(self, unit: Unit) -> None:
        if self._too_many is not None:
            return
        self._is_working = True
        try:
            self._too_many = self._kit._work_all(  # noqa: SLF001
                unit, (), self.outcomes, self._errors, session_factory=self._session_factory
            )
        finally:
            self._is_working = False


def _whose(target: Any, kit: "Working") -> Callable[[Session], bool]:
    """Which sessions' commits run jobs."""
    sync = getattr(target, "sync_session", None) or getattr(target, "sync_connection", target)
    if isinstance(target, scoped_session) and isinstance(target.session_factory, sessionmaker):
        made: type[Session] = target.session_factory.class_  # a class of this factory's own
        return lambda session: isinstance(session, made)
    if hasattr(target, "registry"):
        sync = getattr(target(), "sync_session", target())
    if isinstance(sync, Session):
        return lambda session: session is sync
    if not isinstance(sync, Connection):
        raise TypeError(
            f"inline runs jobs at the commits of a session: give it a Session or a Connection, or "
            f"one of their asyncio twins, not {type(target).__name__}"
        )

    def is_bound(session: Session) -> bool:
        with suppress(UnboundExecutionError):
            return bind_of_writes(session, kit.jobs.models) is sync
        return False

    return is_bound
