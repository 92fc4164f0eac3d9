"""What BGJob does with whole queues: pause, resume, drain, slots, and how much waits."""

from collections.abc import Coroutine
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, overload

from sqlalchemy import Engine

from ._db.targets import SyncTarget
from ._inspect.pressure import Pressure, pressure
from ._lifecycle import control
from ._sql import statements_of
from .models import Models

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from ._db.targets import AsyncTarget

Until = datetime | timedelta | float


class QueueMethods:
    """Methods of :class:`BGJob` that name a queue, and no job."""

    models: Models

    @overload
    def pause(
        self,
        target: SyncTarget,
        queue: str,
        *,
        by: str | None = None,
        reason: str | None = None,
        until: Until | None = None,
    ) -> bool: ...
    @overload
    def pause(
        self,
        target: "AsyncTarget",
        queue: str,
        *,
        by: str | None = None,
        reason: str | None = None,
        until: Until | None = None,
    ) -> Coroutine[Any, Any, bool]: ...
    def pause(
        self,
        target: Any,
        queue: str,
        *,
        by: str | None = None,
        reason: str | None = None,
        until: Until | None = None,
    ) -> Any:
        """Let no worker claim from a queue, from the caller's commit on, until it is resumed.

        Every worker obeys within a second: it claims nothing more of the queue, and hands back what
        it has claimed and not started. Running jobs go on. Jobs may be enqueued as before. The
        queue need not exist yet. ``work_one`` is a call of your own, and works on a paused queue.

        A second call for a paused queue replaces *by*, *reason* and *until*.

        Args:
            target: A Session, Connection or Engine, or an asyncio twin (then await the result).
            queue: Its name.
            by: Who pauses it, for those who wonder; at most 1,000 characters, as *reason*.
            reason: Why.
            until: When the pause is over by itself, by the database's clock: an aware datetime, or
                seconds or a timedelta from now. By default it has no end.

        Returns:
            False if the queue was paused already.

        Raises:
            ValueError: A name or text is too long, or *until* is over already.
        """
        statements = statements_of(self.models)
        return control.pause(self.models, statements, target, queue, by, reason, until)

    @overload
    def resume(self, target: SyncTarget, queue: str) -> bool: ...
    @overload
    def resume(self, target: "AsyncTarget", queue: str) -> Coroutine[Any, Any, bool]: ...
    def resume(self, target: Any, queue: str) -> Any:
        """Let workers claim from a paused queue again; False if it was not paused.

        The caller commits, and every worker obeys within a second.
        """
        return control.resume(self.models, statements_of(self.models), target, queue)

    @overload
    def drain(
        self,
        target: Engine,
        queue: str,
        *,
        timeout: float | timedelta | None = None,
        by: str | None = None,
        reason: str | None = None,
        until: Until | None = None,
    ) -> int: ...
    @overload
    def drain(
        self,
        target: "AsyncEngine",
        queue: str,
        *,
        timeout: float | timedelta | None = None,
        by: str | None = None,
        reason: str | None = None,
        until: Until | None = None,
    ) -> Coroutine[Any, Any, int]: ...
    def drain(
        self,
        target: Any,
        queue: str,
        *,
        timeout: float | timedelta | None = None,
        by: str | None = None,
        reason: str | None = None,
        until: Until | None = None,
    ) -> Any:
        """Pause a queue, and wait until none of its jobs runs; it stays paused.

        It takes an engine, as it waits: the pause is a transaction of its own, and so is each look.
        It waits for 1.5 s at least, by which time every worker has seen the pause. Each look counts
        the queue's jobs, which takes long where there are a million of them; looks are the rarer
        for that.

        Args:
            target: An Engine, or an AsyncEngine (then await the result).
            queue: Its name.
            timeout: Seconds, or a timedelta, for which it waits at most; by default without end.
            by, reason, until: As for :meth:`pause`.

        Returns:
            The number of jobs that still run, which is 0 unless the timeout is over.

        Raises:
            TypeError: The target is no engine.
            ValueError: As for :meth:`pause`.
        """
        statements = statements_of(self.models)
        return control.drain(self.models, statements, target, queue, timeout, by, reason, until)

    @overload
    def set_slots(self, target: SyncTarget, queue: str, slots: int | None) -> None: ...
    @overload
    def set_slots(
        self, target: "AsyncTarget", queue: str, slots: int | None
    ) -> Coroutine[Any, Any, None]: ...
    def set_slots(self, target: Any, queue: str, slots: int | None) -> Any:
        """Set how many jobs of a queue each worker runs at once, instead of its own number.

        The caller commits, and every worker that serves the queue obeys within a second. Where
        fewer are allowed than run, those go on to their end. The engine's pool stays as it is: with
        more slots than connections, handlers wait for ``ctx.session``.

        Args:
            target: A Session, Connection or Engine, or an asyncio twin (then await the result).
            queue: Its name.
            slots: 1 to 10,000; None gives each worker the number that it was started with.

        Raises:
            ValueError: *slots* is out of range. To claim nothing, pause the queue.
        """
        return control.set_slots(self.models, statements_of(self.models), target, queue, slots)

    @overload
    def pressure(self, target: SyncTarget, queue: str) -> Pressure: ...
    @overload
    def pressure(self, target: "AsyncTarget", queue: str) -> Coroutine[Any, Any, Pressure]: ...
    def pressure(self, target: Any, queue: str) -> Any:
        """How many jobs of a queue wait for a worker, and for how long: for autoscalers and alerts.

        It counts up to 10,001 due jobs, priority by priority through the index of claims, and reads
        no scheduled ones. While the queue is paused both are 0: more workers would not help.

        Args:
            target: A Session, Connection or Engine, or an asyncio twin (then await the result).
            queue: Its name.
        """
        return pressure(self.models, target, queue)
