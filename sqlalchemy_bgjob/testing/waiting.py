"""Wait for a real worker, beside which a test runs."""

import asyncio
import time
from collections.abc import Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, overload

from sqlalchemy import Engine

from .._db.targets import Unit
from .._drafts import validation
from .._enqueue.one import JobRef
from .._sql.words import parameters
from .target import OnTarget, is_engine

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__tracebackhide__: Final = True
_ASK_EVERY: Final = 0.02


class Waiting(OnTarget):
    """What a test does beside a worker."""

    @overload
    def wait_for(
        self, engine: Engine, *jobs: JobRef | str, timeout: float | timedelta = 30.0
    ) -> None: ...
    @overload
    def wait_for(
        self, engine: "AsyncEngine", *jobs: JobRef | str, timeout: float | timedelta = 30.0
    ) -> Coroutine[Any, Any, None]: ...
    def wait_for(self, engine: Any, *jobs: JobRef | str, timeout: float | timedelta = 30.0) -> Any:
        """Wait until a real worker has done these jobs, or all that there are.

        Args:
            engine: An Engine, or an AsyncEngine: then await the result. Each look is a transaction
                of its own, so commit the jobs first.
            *jobs: What ``enqueue`` has returned, or ids; without any, all live jobs. Where a live
                job has the id of one that was dead before, the live one is waited for. If it is
                done before the first look, the dead one fails the wait: prune that before
                the job is enqueued.
            timeout: Seconds, or a timedelta, by this process's clock.

        Raises:
            TypeError: The target is no engine. Its transaction might never see the end.
            AssertionError: One of them is dead, or they are not done in time; it names them.
        """
        if not is_engine(engine):
            raise TypeError(
                "wait_for looks in transactions of its own: give it an Engine or an AsyncEngine"
            )
        ids = [job.id if isinstance(job, JobRef) else job for job in jobs]
        looks = _Looks(validation.seconds("timeout", timeout))
        given = parameters(ids=ids, every=not ids)

        def left(unit: Unit) -> list[Any]:
            return list(unit.execute(self._statements.operate.not_done, given))

        def ask() -> Any:
            return self._in(engine, left, "wait_for")

        async def wait() -> None:
            while not looks.are_over(await ask()):  # noqa: ASYNC110 - nobody tells when a job is done
                await asyncio.sleep(_ASK_EVERY)

        if not isinstance(engine, Engine):
            return self._kept("wait_for", wait())
        while not looks.are_over(ask()):
            time.sleep(_ASK_EVERY)
        return None


class _Looks:
    """What the looks of one wait find."""

    def __init__(self, limit: float) -> None:
        self._limit, self._deadline = limit, time.monotonic() + limit
        self._before: set[str] | None = None
        """The dead jobs whose ids belonged to live ones at the first look."""

    def are_over(self, found: list[Any]) -> bool:
        if self._before is None:
            live = {row.id for row in found if row.dead_id is None}
            self._before = {row.dead_id for row in found if row.dead_id and row.id in live}
        waiting = [row for row in found if row.dead_id not in self._before]
        for row in waiting:
            if row.dead_id is not None:
                raise AssertionError(f"job {row.id} ({row.type}) is dead: {row.last_error}")
        if waiting and time.monotonic() >= self._deadline:
            raise AssertionError(_late(waiting, self._limit))
        return not waiting


def _late(waiting: list[Any], limit: float) -> str:
    """Which jobs are not done, and what holds up the first one."""
    names = ", ".join(f"{row.id} ({row.type}, attempt {row.attempt})" for row in waiting[:3])
    more = f" and {len(waiting) - 3} more" if waiting[3:] else ""
    first = waiting[0]
    if first.last_error:
        why = f"the last error of the first one: {first.last_error}"
    elif not first.attempt:
        why = "the first one was never started: does a worker serve its queue, and is it due?"
    else:
        why = "the first one runs, or waits for its next attempt"
    return f"not done after {limit:g} s: {names}{more}; {why}"
