"""What BGJob does with dead jobs: redrive, prune, sum up."""

from collections.abc import Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from sqlalchemy import ColumnElement

from ._db.targets import SyncTarget
from ._lifecycle.dead_jobs import DeadSummary, summary
from ._lifecycle.operate import Redriven, prune, redrive
from ._sql import statements_of
from .models import Models

if TYPE_CHECKING:
    from ._db.targets import AsyncTarget


class RedriveOptions(TypedDict, total=False):
    """Options of a redrive, for type checkers."""

    delay: float | timedelta
    limit: int | None
    per_second: float | None


class DeadJobVerbs:
    """The part of :class:`~sqlalchemy_bgjob.BGJob` that is about dead jobs."""

    models: Models

    @overload
    def redrive(
        self,
        target: SyncTarget,
        where: ColumnElement[bool],
        *,
        dry_run: Literal[False] = False,
        **options: Unpack[RedriveOptions],
    ) -> Redriven: ...
    @overload
    def redrive(
        self,
        target: SyncTarget,
        where: ColumnElement[bool],
        *,
        dry_run: Literal[True],
        **options: Unpack[RedriveOptions],
    ) -> dict[str, int]: ...
    @overload
    def redrive(
        self,
        target: "AsyncTarget",
        where: ColumnElement[bool],
        *,
        dry_run: Literal[False] = False,
        **options: Unpack[RedriveOptions],
    ) -> Coroutine[Any, Any, Redriven]: ...
    @overload
    def redrive(
        self,
        target: "AsyncTarget",
        where: ColumnElement[bool],
        *,
        dry_run: Literal[True],
        **options: Unpack[RedriveOptions],
    ) -> Coroutine[Any, Any, dict[str, int]]: ...
    def redrive(
        self,
        target: Any,
        where: ColumnElement[bool],
        *,
        delay: float | timedelta = 0,
        limit: int | None = None,
        per_second: float | None = None,
        dry_run: bool = False,
    ) -> Any:
        """Bring dead jobs back into their queues, with all attempts and the arg that they have now.

        A job stays dead while a live one has its id or its unique key. If several dead jobs have
        one id, or one unique key, the one that died last comes back. The history of errors is kept;
        an expiry is not. The caller commits.

        Args:
            target: A Session, Connection or Engine, or an asyncio twin (then await the result).
            where: Which dead jobs, for example ``jobs.DeadJob.type == "send_receipt"``.
            delay: Seconds, or a timedelta, until they are due, by the database's clock from the
                start of the transaction; by default 0.
            limit: How many dead jobs are taken at most, those that died first; by default all.
                Of a job that died several times, the last one of those taken comes back.
            per_second: How many of them fall due in a second, from 0.001 to a million. Those that
                died first come first. By default all fall due at once.
            dry_run: True changes nothing, and returns how many would come back now.

        Returns:
            A :class:`~sqlalchemy_bgjob.Redriven`, with the ids of those that came back and of those
            that did not. With *dry_run*, a dict of counts by type.

        Raises:
            TypeError, ValueError: An argument is no such number, or out of its range.
        """
        return redrive(
            self.models,
            statements_of(self.models),
            target,
            where,
            delay,
            limit,
            per_second=per_second,
            dry_run=dry_run,
        )

    @overload
    def prune(
        self,
        target: SyncTarget,
        older_than: float | timedelta,
        where: ColumnElement[bool] | None = None,
        *,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> int: ...
    @overload
    def prune(
        self,
        target: "AsyncTarget",
        older_than: float | timedelta,
        where: ColumnElement[bool] | None = None,
        *,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> Coroutine[Any, Any, int]: ...
    def prune(
        self,
        target: Any,
        older_than: float | timedelta,
        where: ColumnElement[bool] | None = None,
        *,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> Any:
        """Delete jobs that died long ago, the oldest first. The caller commits.

        Workers do it by themselves with the setting ``dead_keep``.

        Args:
            target: A Session, Connection or Engine, or an asyncio twin (then await the result).
            older_than: Seconds, or a timedelta, since they were moved to the DLQ, by the database's
                clock.
            where: Which of these; all, by default.
            limit: The most to delete in this transaction; by default all.
            dry_run: True deletes nothing, and only counts.

        Returns:
            How many were deleted, or would be.

        Raises:
            TypeError, ValueError: An argument is no such number, or out of its range.
        """
        statements = statements_of(self.models)
        return prune(self.models, statements, target, older_than, where, limit, dry_run=dry_run)

    @overload
    def dead_summary(
        self,
        target: SyncTarget,
        where: ColumnElement[bool] | None = None,
        *,
        limit: int | None = 100,
    ) -> list[DeadSummary]: ...
    @overload
    def dead_summary(
        self,
        target: "AsyncTarget",
        where: ColumnElement[bool] | None = None,
        *,
        limit: int | None = 100,
    ) -> Coroutine[Any, Any, list[DeadSummary]]: ...
    def dead_summary(
        self,
        target: Any,
        where: ColumnElement[bool] | None = None,
        *,
        limit: int | None = 100,
    ) -> Any:
        """Count dead jobs by their type and the type of their error, the most frequent first.

        It is one statement, which reads all the dead jobs that *where* finds.

        Args:
            target: A Session, Connection or Engine, or an asyncio twin (then await the result).
            where: Which dead jobs; all, by default.
            limit: The most lines, by default 100; None for all.
        """
        return summary(self.models, statements_of(self.models), target, where, limit)
