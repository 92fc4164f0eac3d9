"""What BGJob does with records: look one up, wait for one."""

import asyncio
import time
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, cast, overload

from sqlalchemy import Connection, Engine

from ._db.targets import SyncTarget, Unit, is_async_engine, run_in
from ._drafts import validation
from ._drafts.draft import UNTYPED
from ._handlers.registry import Registry
from ._inspect.records import Found, JobRecord, find
from .models import AuditMixin, MinuteMixin, Models, Recording, RecordMixin

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from ._db.targets import AsyncTarget

LOOKS: Final = (0.05, 1.0)
"""Seconds between two looks of a wait: at first, and at most. Each is half as long again."""


class HasRecords:
    """The part of :class:`~sqlalchemy_bgjob.BGJob` that is about records."""

    models: Models
    registry: Registry

    @property
    def Record(self) -> type[RecordMixin]:  # noqa: N802 - it is a class
        """The mapped class of records. It is there with ``records=True``."""
        return cast(type[RecordMixin], self._recording().Record)

    @property
    def Minute(self) -> type[MinuteMixin]:  # noqa: N802
        """The mapped class of what workers count each minute. It is there with ``records=True``."""
        return cast(type[MinuteMixin], self._recording().Minute)

    @property
    def Audit(self) -> type[AuditMixin]:  # noqa: N802
        """The mapped class of what the dashboard and the command line have done.

        It is there with ``records=True``.
        """
        return cast(type[AuditMixin], self._recording().Audit)

    def _recording(self) -> Recording:
        recording = self.models.recording
        if recording is None:
            raise AttributeError(
                "this BGJob keeps no records: make it with BGJob(..., records=True), and run "
                "`sqlalchemy-bgjob migrate --records` or alembic revision --autogenerate"
            )
        return recording

    @overload
    def record(self, target: SyncTarget, id: str) -> JobRecord | None: ...
    @overload
    def record(self, target: "AsyncTarget", id: str) -> Coroutine[Any, Any, JobRecord | None]: ...
    def record(self, target: Any, id: str) -> Any:
        """Look up what is kept of a job: its progress while it runs, its result and end afterwards.

        The result is decoded as the handler's annotation says. If this process has no handler for
        the job, it is JSON values, or bytes.

        Args:
            target: A Session, Connection or Engine, or an asyncio twin (then await the result).
            id: The job's.

        Returns:
            The record, or None if nothing is known. Then there is no such job, its handler has no
            ``record=``, its record's time is over, or it has not ended and reported no progress.

        Raises:
            AttributeError: The BGJob was made without ``records=True``.
            InvalidArg: The result is none that the handler's annotation allows.
        """
        self._recording()
        id = validation.job_id(id)

        def work(unit: Unit) -> JobRecord | None:
            return self._decoded(self._find(unit.connection, id))

        return run_in(target, self.models, work, call="BGJob.record")

    @overload
    def wait(
        self, target: Engine, id: str, *, timeout: float | timedelta | None = None
    ) -> JobRecord | None: ...
    @overload
    def wait(
        self, target: "AsyncEngine", id: str, *, timeout: float | timedelta | None = None
    ) -> Coroutine[Any, Any, JobRecord | None]: ...
    def wait(self, target: Any, id: str, *, timeout: float | timedelta | None = None) -> Any:
        """Wait until a job has ended, in whichever way, and return its record.

        It takes an engine, as it waits: each look is a transaction of its own. It looks every 50 ms
        at first, and every second at last. Commit the job first, as others can't see it before; the
        job that follows a batch may be waited for as soon as the batch is committed. In a handler,
        don't wait for a job of the same queue, which may need this handler's slot.

        Args:
            target: An Engine, or an AsyncEngine (then await the result).
            id: The job's.
            timeout: Seconds, or a timedelta, for which it waits at most, by this process's clock;
                by default without end.

        Returns:
            The record, whose ``state`` says how the job ended. None as soon as there is neither
            such a job nor a record of it: it is unknown, or it was not recorded.

        Raises:
            TimeoutError: The time is over, and the job has not ended.
            TypeError: The target is no engine.
            AttributeError, InvalidArg: As for :meth:`record`.
        """
        self._recording()
        id = validation.job_id(id)
        looks = _looks(id, None if timeout is None else validation.seconds("timeout", timeout))
        if isinstance(target, Engine):
            return self._wait(target, id, looks)
        if is_async_engine(target):
            coroutine: Any = self._wait_async(target, id, looks)
            coroutine.__name__ = coroutine.__qualname__ = "BGJob.wait"
            return coroutine
        raise TypeError(
            f"BGJob.wait takes an Engine or AsyncEngine, not {type(target).__name__}: it waits, "
            f"and a transaction would stay open meanwhile; give it the engine"
        )

    def _wait(self, engine: Engine, id: str, looks: Iterator[float]) -> JobRecord | None:
        while True:
            with engine.begin() as connection:
                found = self._find(connection, id)
            if _is_over(found):
                return self._decoded(found)
            time.sleep(next(looks))

    async def _wait_async(
        self, engine: "AsyncEngine", id: str, looks: Iterator[float]
    ) -> JobRecord | None:
        while True:
            async with engine.begin() as connection:
                found = await connection.run_sync(self._find, id)
            if _is_over(found):
                return self._decoded(found)
            await asyncio.sleep(next(looks))

    def _find(self, connection: Connection, id: str) -> Found:
        return find(connection, self.models.schema, self.models.table_prefix, id)

    def _decoded(self, found: Found) -> JobRecord | None:
        record = found.record
        if record is None or found.result is None:
            return record
        handler = self.registry.find(record.type, record.queue)
        codec = UNTYPED if handler is None else handler.result_codec
        return replace(record, result=codec.decode(found.result, found.content_type))


def _is_over(found: Found) -> bool:
    # Job and record are read by one statement: if the job is gone it has ended, though whoever
    # ended it, a worker that does not know its type perhaps, kept no record of that.
    return not found.is_live


def _looks(id: str, timeout: float | None) -> Iterator[float]:
    """Seconds until each next look.

    Raises:
        TimeoutError: There is none.
    """
    pause, until = LOOKS[0], None if timeout is None else time.monotonic() + timeout
    while True:
        left = pause if until is None else until - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"job {id!r} has not ended within {timeout:g} s")
        yield min(pause, left)
        pause = min(pause * 1.5, LOOKS[1])
