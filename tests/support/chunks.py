"""A handler that takes chunks, and notes what it was called for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy.util import greenlet_spawn

from sqlalchemy_bgjob import Context, JobType, constant

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from support.running import Workbench

SLOW = constant(3600.0)
"""No retry that asks the policy comes in time."""


class Chunks:
    """A handler that notes its calls, and the jobs of which it was told.

    Args:
        bench: Where it runs.
        body: Called with ctx, the args and the session; what it returns is returned.
        options: Those of the handler.
    """

    def __init__(
        self,
        bench: Workbench,
        body: Callable[[Any, list[Any], Any], Any] = lambda ctx, args, session: None,
        *,
        uses_session: bool = True,
        of: Any = list,
        **options: Any,
    ) -> None:
        self.bench, self.body = bench, body
        self.calls: list[list[Any]] = []
        handler: Any = bench.jobs.handler
        register = handler("chunks", **{"chunk": 10, "retry": SLOW} | options)

        if not bench.flavor.is_async:

            def function(ctx: Context[Session], args: Any) -> Any:
                return self._called(ctx.session if uses_session else None, ctx, args)

            function.__annotations__["args"] = of
            self.handler = cast("JobType[Any]", register(function))
            return

        async def coroutine(ctx: Context[AsyncSession], args: Any) -> Any:
            if uses_session:
                return await ctx.session.run_sync(self._called, ctx, args)
            return await greenlet_spawn(self._called, None, ctx, args)

        coroutine.__annotations__["args"] = of
        self.handler = cast("JobType[Any]", register(coroutine))

    def _called(self, session: Any, ctx: Context[Any], args: list[Any]) -> Any:
        self.calls.append(args)
        assert len(ctx.jobs) == len(args)
        if session is not None:
            for job in ctx.jobs:
                session.add(self.bench.Note(job_id=job.id, text="written"))
            session.flush()
        return self.body(ctx, args, session)

    def enqueue(self, *args: Any) -> list[str]:
        """Jobs of these args, in this order."""
        return [self.bench.enqueue(self.handler, arg) for arg in args]

    @property
    def sizes(self) -> list[int]:
        return [len(args) for args in self.calls]

    def notes(self, ids: list[str]) -> list[list[str]]:
        return [self.bench.notes(job_id) for job_id in ids]
