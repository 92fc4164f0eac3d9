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
    """The part of :class:`~sqlalchemy_bgjob.BGJob` that is about whole queues."""

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

        Every worker obeys within a second of the commit: it claims nothing more from the queue, and
        hands back the jobs that it has claimed and not started. Running jobs go on. Jobs may be
        enqueued as before. The queue need not exist yet. :meth:`work_one` still takes its jobs.

        A second call for a paused queue replaces *by*, *reason* and *until*.

        Args:
            target: A Session, Connection or Engine, or an asyncio twin (then await the result).
            queue: Its name.
            by: Who pauses it, for other operators to read; at most 1,000 characters.
            reason: Why; at most 1,000 characters.
            until: When the pause ends by itself, by the database's clock: an aware datetime, or
                seconds or a timedelta from now. By default it has no end.

        Returns:
            False if the queue was paused already.

        Raises:
            ValueError: A name or text is too long, or *until* has passed by this machine's clock.
        """
        statements = statements_of(self.models)
        return control.pause(self.models, statements, target, queue, by, reason, until)

    @overload
    def resume(self, target: SyncTarget, queue: str) -> bool: ...
    @overload
    def resume(self, target: "AsyncTarget", queue: str) -> Coroutine[Any, Any, bool]: ...
    def resume(self, target: Any, queue: str) -> Any:
        """Let workers claim from a paused queue again.

        The caller commits, and every worker obeys within a second.

        Args:
            target: A Session, Connection or Engine, or an asyncio twin (then await the result).
            queue: Its name.

        Returns:
            False if the queue was not paused.
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
        """Pause a queue, and wait until none of its jobs runs. It stays paused.

        The pause is a transaction of its own, which is committed here, and so is each look at the
        jobs that run. So the call takes an engine: the transaction of a session would stay open
        while it waits, and no worker would see the pause.

        It waits for 1.5 s at least, by which time every worker has seen the pause. Each look counts
        the queue's jobs. Where a look takes long, as with a million jobs, looks become rarer.

        Args:
            target: An Engine, or an AsyncEngine (then await the result).
            queue: Its name.
            timeout: Seconds, or a timedelta, for which it waits at most; by default without end.
            by, reason, until: As for :meth:`pause`.

        Returns:
            How many jobs still run, which is 0 unless the timeout is over.

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

        The caller commits, and every worker that serves the queue obeys within a second. If more
        jobs run than are now allowed, they go on to their end. The engine's pool does not grow:
        with more slots than connections, handlers wait for ``ctx.session``.

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

        It counts due jobs up to 10,001, by the index that claims use, so it is fast beside millions
        of scheduled jobs. While the queue is paused both numbers are 0, as more workers would not
        help.

        Args:
            target: A Session, Connection or Engine, or an asyncio twin (then await the result).
            queue: Its name.
        """
        return pressure(self.models, target, queue)
