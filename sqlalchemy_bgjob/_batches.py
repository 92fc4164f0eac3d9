"""What BGJob does with batches: begin one, look at one."""

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any, Final, cast, overload

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, scoped_session

from ._db.targets import SyncTarget, Unit, is_async_engine, is_autocommit, run_in
from ._drafts import validation
from ._drafts.batch import OnDead, OpenBatch, refuse_other_transaction
from ._drafts.draft import Draft
from ._handlers.made import made_of
from ._inspect.batches import BatchInfo, batch
from ._lifecycle.batches import close
from ._sql import statements_of
from ._sql.batches import INSERTED
from .models import BatchMixin, JobMixin, Models

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

    from ._db.targets import AsyncTarget

    AsyncUnit = AsyncSession | async_scoped_session[Any] | AsyncConnection

SyncUnit = Session | scoped_session[Any] | Connection
_CALL: Final = "BGJob.batch"


class HasBatches:
    """The part of :class:`~sqlalchemy_bgjob.BGJob` that is about batches."""

    models: Models

    @property
    def Batch(self) -> type[BatchMixin]:  # noqa: N802 - it is a class
        """The mapped class of batches."""
        return cast(type[BatchMixin], self.models.Batch)

    @overload
    def batch(
        self, target: SyncUnit, *, then: JobMixin | None = None, on_dead: OnDead = "continue"
    ) -> AbstractContextManager[OpenBatch]: ...
    @overload
    def batch(
        self, target: "AsyncUnit", *, then: JobMixin | None = None, on_dead: OnDead = "continue"
    ) -> AbstractAsyncContextManager[OpenBatch]: ...
    def batch(
        self, target: Any, *, then: JobMixin | None = None, on_dead: OnDead = "continue"
    ) -> Any:
        """Enqueue jobs that belong together, and one job that runs after the last of them.

        ``with jobs.batch(session, then=report.job(month)) as batch:`` and in it
        ``enqueue(session, render, page, batch=batch)``. All ways to enqueue take ``batch=``. The
        block ends by a statement that counts the jobs, and the caller commits all of it together;
        what a block that raised has enqueued belongs to no batch, so roll it back.

        The batch is finished when none of its jobs waits or runs: each is complete, cancelled,
        expired or dead. Then *then* is enqueued, exactly once: by the worker that ended the last
        one, or within a minute or two if that worker was killed just then, or if the last one was
        cancelled by you. A batch without jobs is finished at once.

        Args:
            target: A Session, scoped_session or Connection, or an asyncio twin (then
                ``async with``); the same as for the jobs.
            then: The job that follows, made by ``handler.job(arg)``, of any handler of this BGJob.
                Its id will be ``batch.then_id``.
            on_dead: ``"continue"``, the default, takes a dead job for one that has ended. With
                ``"stop"`` the batch waits until it is redriven and ends, or is deleted.

        Raises:
            TypeError: The target is an engine, or *then* was not made by ``handler.job(...)``.
            ValueError: *then* has options that a batch does not keep, or the connection commits
                each statement by itself. At the end of the block: the transaction in which it began
                is over.
        """
        if isinstance(target, Engine) or is_async_engine(target):
            raise TypeError(
                "a batch and its jobs are one transaction, and an engine would make several; give "
                "a Session, or the connection of engine.begin()"
            )
        made = OpenBatch(self.models, None if then is None else self._follower(then), on_dead)
        return _Block(self.models, target, made)

    def _follower(self, then: object) -> Draft:
        made = made_of(then) if isinstance(then, JobMixin) else None
        if made is None:
            raise TypeError(
                f"then= takes a job made by handler.job(...), not {type(then).__name__}"
            )
        if made.models is not self.models:
            raise ValueError("then= is a job of another BGJob()")
        if changed := made.changed(then):
            raise ValueError(
                f"{', '.join(changed)} of then= was set after handler.job(...), and a batch does "
                f"not keep it; let its handler enqueue such a job"
            )
        draft, common = made.draft, made.draft.common
        given = {
            "delay=": common.delay,
            "run_at=": common.run_at,
            "priority=": common.priority or None,
            "expires=": common.expires_in or common.expires_at,
            "batch=": common.batch_id,
            "unique=": draft.unique,
        }
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise ValueError(
                f"then= is a job of an arg, a queue and headers, and this one has "
                f"{', '.join(extra)}; let its handler enqueue such a job"
            )
        lacking = [
            column.name
            for column in self.models.job.c
            if not (column.nullable or column.default or column.server_default)
            and column.name not in INSERTED
        ]
        if lacking:
            raise ValueError(
                f"the table of jobs has a column of yours that must have a value, "
                f"{', '.join(lacking)}, and what follows a batch is inserted without it; give it a "
                f"server_default or a default, or let it be null"
            )
        return draft

    @overload
    def batch_info(self, target: SyncTarget, id: str) -> BatchInfo | None: ...
    @overload
    def batch_info(
        self, target: "AsyncTarget", id: str
    ) -> Coroutine[Any, Any, BatchInfo | None]: ...
    def batch_info(self, target: Any, id: str) -> Any:
        """How far a batch has come; None if there is none of this id, or not any more.

        It counts the jobs that are left. A worker deletes batches that have long been finished, see
        its setting ``batch_keep``.

        Args:
            target: A Session, Connection or Engine, or an asyncio twin (then await the result).
            id: The batch's.
        """
        id = validation.name("id", id)
        models = self.models

        def work(unit: Unit) -> BatchInfo | None:
            return batch(unit.connection, models.schema, models.table_prefix, id)

        return run_in(target, models, work, call="BGJob.batch_info")


class _Block:
    """The block of a batch, of either kind."""

    def __init__(self, models: Models, target: Any, batch: OpenBatch) -> None:
        self._models, self._target, self._batch = models, target, batch

    def _begin(self, unit: Unit) -> OpenBatch:
        connection = unit.connection
        if is_autocommit(connection):
            raise ValueError(
                "a batch needs a transaction, and this connection is in AUTOCOMMIT; "
                "use execution_options(isolation_level='READ COMMITTED')"
            )
        # As its first statement would.
        self._batch.transaction = connection.get_transaction() or connection.begin()
        return self._batch

    def _close(self, unit: Unit) -> None:
        refuse_other_transaction(self._batch, unit.connection.get_transaction())
        close(unit, statements_of(self._models), self._batch)

    def _do(self, work: Callable[[Unit], Any]) -> Any:
        return run_in(self._target, self._models, work, call=_CALL)

    def _do_now(self, work: Callable[[Unit], Any]) -> Any:
        done = self._do(work)
        if iscoroutine(done):
            done.close()
            raise TypeError("this target is asynchronous: write `async with jobs.batch(...)`")
        return done

    def __enter__(self) -> OpenBatch:
        batch: OpenBatch = self._do_now(self._begin)
        return batch

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._do_now(self._close)
        finally:
            self._batch.transaction = None

    async def __aenter__(self) -> OpenBatch:
        begun = self._do(self._begin)
        if not iscoroutine(begun):
            self._batch.transaction = None
            raise TypeError("this target is synchronous: write `with jobs.batch(...)`")
        batch: OpenBatch = await begun
        return batch

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                await self._do(self._close)
        finally:
            self._batch.transaction = None
