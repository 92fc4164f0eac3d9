"""Where the test kit works: in the transaction of a target, and never without being awaited."""

import inspect
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine

from .._db.targets import Unit, run_in
from .._sql import statements_of
from ..bgjob import BGJob

__tracebackhide__: Final = True
"""Of pytest: a failed assertion shows the line of the test, and not how it was looked at."""


class Failed(NamedTuple):
    """What a test is to be told."""

    error: BaseException


class OnTarget:
    """What the parts of the kit share: the application's BGJob, and the way into a transaction."""

    def __init__(self, jobs: BGJob[Any, Any]) -> None:
        self.jobs = jobs
        self._statements = statements_of(jobs.models)
        self._promised: list[tuple[str, Any]] = []

    def check_awaited(self) -> None:
        """Fail if the result of a call was never awaited. The fixture does so after each test.

        Raises:
            AssertionError: A call has done nothing, as its ``await`` is missing; it names the call.
        """
        promised, self._promised = self._promised, []
        forgotten = [(name, each) for name, each in promised if _is_untouched(each)]
        for _, each in forgotten:
            each.close()
        if forgotten:
            call = f"bgjob.{forgotten[0][0]}(...)"
            more = f", and {len(forgotten) - 1} more" if forgotten[1:] else ""
            raise AssertionError(f"{call} was never awaited{more}: write `await {call}`")

    def _in(self, target: Any, work: Callable[[Unit], Any], name: str) -> Any:
        """Do *work* in the target's transaction: its result, or for asyncio a coroutine of it.

        A Failed that it returns is raised here, out of which pytest shows the line of the test.
        """
        models, call = self.jobs.models, f"JobKit.{name}"
        if not is_async(target):
            return _unless_failed(run_in(target, models, work, call=call))

        async def later() -> Any:
            return _unless_failed(await run_in(target, models, work, call=call))

        promised: Any = later()
        promised.__name__ = promised.__qualname__ = call
        return self._kept(name, promised)

    def _kept(self, name: str, result: Any) -> Any:
        """Remember the result of the method *name*, if it is to be awaited."""
        if inspect.iscoroutine(result):
            self._promised = [(of, each) for of, each in self._promised if _is_untouched(each)]
            self._promised.append((name, result))
        return result


def _unless_failed(result: Any) -> Any:
    if isinstance(result, Failed):
        raise result.error
    return result


def _is_untouched(coroutine: Any) -> bool:
    return inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED


def is_async(target: object) -> bool:
    """Whether it is a session, connection or engine of asyncio."""
    module = sys.modules.get("sqlalchemy.ext.asyncio")
    return module is not None and isinstance(
        target,
        module.AsyncSession
        | module.AsyncConnection
        | module.AsyncEngine
        | module.async_scoped_session,
    )


def is_engine(target: object) -> bool:
    """Whether it is an Engine or an AsyncEngine, with transactions of its own."""
    module = sys.modules.get("sqlalchemy.ext.asyncio")
    return isinstance(target, Engine) or (
        module is not None and isinstance(target, module.AsyncEngine)
    )
