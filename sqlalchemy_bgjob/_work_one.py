"""``jobs.work_one``: a job in the caller's own transaction, without a worker."""

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, overload

from ._db.targets import SyncTarget
from ._handlers.outcomes import Outcome
from ._handlers.registry import Registry
from ._worker.work_one import work_one
from .models import Models

if TYPE_CHECKING:
    from ._db.targets import AsyncTarget


class HasWorkOne:
    """The part of :class:`~sqlalchemy_bgjob.BGJob` that runs one job."""

    models: Models
    registry: Registry

    @overload
    def work_one(
        self,
        target: SyncTarget,
        queue: str | None = None,
        handler: Callable[..., Any] | None = None,
        *,
        id: str | None = None,
        due: bool = True,
        session_factory: Callable[[], Any] | None = None,
        state: Any = None,
    ) -> Outcome | None: ...
    @overload
    def work_one(
        self,
        target: "AsyncTarget",
        queue: str | None = None,
        handler: Callable[..., Any] | None = None,
        *,
        id: str | None = None,
        due: bool = True,
        session_factory: Callable[[], Any] | None = None,
        state: Any = None,
    ) -> Coroutine[Any, Any, Outcome | None]: ...
    def work_one(
        self,
        target: Any,
        queue: str | None = None,
        handler: Callable[..., Any] | None = None,
        *,
        id: str | None = None,
        due: bool = True,
        session_factory: Callable[[], Any] | None = None,
        state: Any = None,
    ) -> Any:
        """Run one due job within the caller's own transaction, without a worker.

        The job is locked, run and settled in that transaction, and the caller's commit decides. If
        the caller rolls back or dies, the job is queued as before, and its attempt is not spent. So
        a job that takes the process down is retried without end here, unlike in a worker. It runs
        jobs of a paused queue too.

        If something ends the handler that is no failure, such as a cancellation or a
        KeyboardInterrupt, it is raised here. The handler's writes are undone then, and the job is
        handed back, so the caller may go on and commit.

        Args:
            target: A Session or Connection, or an asyncio twin (then await the result, and the
                handler may be a coroutine). An Engine is a transaction of its own.
            queue: Where to look: its first due job, by priority.
            handler: A function ``f(ctx)`` or ``f(ctx, arg)`` for a job of any type;
                by default the registered handler of its type.
            id: Instead of a queue, the id of the job.
            due: With *id*, False takes the job also if it is scheduled for later.
            session_factory: Makes ``ctx.session``; by default ``Session`` or ``AsyncSession``. A
                scoped_session also gives it while the handler runs, in each scope that has no
                session yet; writes that the handler loses in further ones fail the attempt. With
                an asyncio target neither is so, as other tasks share the thread.
            state: What ``ctx.state`` is; there is no ``lifespan=`` here.

        Returns:
            None if there is no such job, a worker holds it, or somebody has locked its row.
            Otherwise the outcome. It is that of the handler; or a Retry for what it raised, also
            if the job had no attempt left and moved to the DLQ; or Cancelled, Expired or MoveToDlq,
            for a job that must not start. If no handler here can run the job, as its type is
            unknown, or its handler is a coroutine and the target is not of asyncio, it is a
            Reschedule; once that has been so for 300 s, it is a MoveToDlq.

        Raises:
            TypeError: Neither a queue nor an id is given, or both; or *handler* is a coroutine, and
                the target is not of asyncio.
            ValueError: The connection is in AUTOCOMMIT, where run and settlement are not atomic.
        """
        return work_one(
            self.models,
            self.registry,
            target,
            queue,
            handler,
            session_factory,
            state,
            id=id,
            due=due,
        )
