"""The context that an application enters around each job: around its run and its commit.

So what ends with it, such as Flask's scoped session, ends after the job was settled. It is entered
in the job's own thread or task. What fails on the way in is a failed attempt; what fails on the way
out comes too late for that, and is logged.
"""

import logging
from collections.abc import Callable
from typing import Any

from ._errors import summary

logger = logging.getLogger("sqlalchemy_bgjob")


def check_around(around: object) -> None:
    """Refuse what can't be called, as a context manager that would serve one job only.

    Raises:
        TypeError: It is neither None nor a callable.
    """
    # One of contextlib's can be called too, as a decorator.
    entered = hasattr(around, "__enter__") and not isinstance(around, type)
    if around is not None and (entered or not callable(around)):
        raise TypeError(
            f"around= takes a callable that returns a context manager, such as app.app_context, "
            f"not a {type(around).__name__}"
        )


class Around:
    """One entering of it.

    Args:
        make: Returns a context manager, or for coroutines an asynchronous one.
        job_id: Whose it is.
    """

    __slots__ = ("_job_id", "_make", "_manager")

    def __init__(self, make: Callable[[], Any], job_id: str) -> None:
        self._make, self._job_id = make, job_id
        self._manager: Any = None  # once it was entered

    def enter(self) -> None:
        """Enter it for a function.

        Raises:
            TypeError: It is none that a function could enter.
        """
        manager = self._make()
        if not hasattr(manager, "__enter__"):
            raise TypeError(
                f"around= gave a {type(manager).__name__}, which is no context manager that a "
                f"function can enter; only coroutines can enter an asynchronous one"
            )
        manager.__enter__()
        self._manager = manager

    async def enter_async(self) -> None:
        """Enter it for a coroutine: the asynchronous way if it has one."""
        manager = self._make()
        if not hasattr(manager, "__aenter__"):
            self._make = lambda: manager
            self.enter()
            return
        await manager.__aenter__()
        self._manager = manager

    def leave(self, error: BaseException | None) -> None:
        """Leave it, with the error that the handler raised. Never raises."""
        manager, self._manager = self._manager, None
        if manager is None or not hasattr(manager, "__exit__"):
            return
        try:
            manager.__exit__(*_told(error))
        except BaseException as late:
            self._log(late)

    async def leave_async(self, error: BaseException | None) -> None:
        """Leave it in the way in which it was entered. Never raises."""
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
