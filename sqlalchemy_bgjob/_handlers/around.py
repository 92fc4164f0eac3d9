"""The context that an application enters around each job: around its run and its commit.

It is left after the settlement, so whatever it ends, such as Flask's scoped session, lasts until
then. It is entered in the job's own thread or task. An error on the way in is a failed attempt; an
error on the way out comes too late for that, and is logged. If there is no context to enter, the
job is not at fault: its attempt is refunded.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from .._db.errors import summary
from ..exceptions import NoContextManager
from .kinds import makes_async_context, makes_no_context, what_it_is

logger = logging.getLogger("sqlalchemy_bgjob")


def check_around(around: object, *, functions: Iterable[str]) -> None:
    """Refuse an *around* that no job could enter, or no function where functions are served.

    Args:
        around: None, or what :class:`Around` calls.
        functions: The served types whose handlers are functions.

    Raises:
        TypeError: It can't be called, would serve one job only, or never gives a context manager
            that can be entered.
    """
    if around is None:
        return
    if makes_no_context(around):
        raise TypeError(
            f"around= takes a callable that returns a context manager, such as app.app_context, "
            f"not {what_it_is(around)}; of a generator @contextlib.contextmanager makes one"
        )
    served = sorted(functions)
    if served and makes_async_context(around):
        raise TypeError(
            f"around= returns an asynchronous context manager, which the functions that handle "
            f"{', '.join(map(repr, served))} can't enter; give one that has __enter__, or serve "
            f"their queues by a worker without it"
        )


class Around:
    """The application's context around one job.

    Args:
        make: Returns a context manager, or for coroutines an asynchronous one.
        job_id: The job's id, for the log.
    """

    __slots__ = ("_job_id", "_make", "_manager")

    def __init__(self, make: Callable[[], Any], job_id: str) -> None:
        self._make, self._job_id = make, job_id
        self._manager: Any = None  # set once entered

    def enter(self) -> None:
        """Enter the context for a function.

        Raises:
            NoContextManager: There is none that a function could enter.
        """
        self._enter(self._made())

    def _made(self) -> Any:
        try:
            return self._make()
        except Exception as error:
            raise NoContextManager("failed when it was called") from error

    def _enter(self, manager: Any) -> None:
        if not hasattr(manager, "__enter__"):
            only = "that a function can enter; only coroutines can enter an asynchronous one"
            words = only if hasattr(manager, "__aenter__") else "at all"
            given = None if manager is None else f"an object of type {type(manager).__name__}"
            raise NoContextManager(f"gave {given}, which is no context manager {words}")
        manager.__enter__()
        self._manager = manager

    async def enter_async(self) -> None:
        """Enter the context for a coroutine, asynchronously if it can be."""
        manager = self._made()
        if not hasattr(manager, "__aenter__"):
            self._enter(manager)
            return
        await manager.__aenter__()
        self._manager = manager

    def leave(self, error: BaseException | None) -> None:
        """Leave the context, with the error that the handler raised. Never raises."""
        manager, self._manager = self._manager, None
        if manager is None or not hasattr(manager, "__exit__"):
            return
        try:
            manager.__exit__(*_told(error))
        except BaseException as late:
            self._log(late)

    async def leave_async(self, error: BaseException | None) -> None:
        """Leave the context the way it was entered. Never raises."""
        if not hasattr(self._manager, "__aexit__"):
            self.leave(error)
            return
        manager, self._manager = self._manager, None
        try:
            await manager.__aexit__(*_told(error))
        except BaseException as late:
            self._log(late)

    def _log(self, error: BaseException) -> None:
        words = "job %s: the context around it failed when it was left: %s"
        logger.error(words, self._job_id, summary(error))


def _told(error: BaseException | None) -> tuple[Any, Any, Any]:
    return (type(error), error, error.__traceback__) if error is not None else (None, None, None)
