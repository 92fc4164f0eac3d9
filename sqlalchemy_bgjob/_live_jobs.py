"""What BGJob does with live jobs, beside cancelling them: run now, edit."""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Unpack, overload

from sqlalchemy import ColumnElement

from ._db.targets import SyncTarget
from ._handlers.registry import Registry
from ._lifecycle.edit import Edited, EditOptions, edit
from ._lifecycle.operate import run_now
from ._sql import statements_of
from .models import Models

if TYPE_CHECKING:
    from ._db.targets import AsyncTarget


class LiveJobVerbs:
    """The part of :class:`~sqlalchemy_bgjob.BGJob` that is about live jobs."""

    models: Models
    registry: Registry

    @overload
    def run_now(
        self, target: SyncTarget, where: ColumnElement[bool], *, limit: int | None = None
    ) -> int: ...
    @overload
    def run_now(
        self, target: "AsyncTarget", where: ColumnElement[bool], *, limit: int | None = None
    ) -> Coroutine[Any, Any, int]: ...
    def run_now(self, target: Any, where: ColumnElement[bool], *, limit: int | None = None) -> Any:
        """Make jobs due now that are scheduled for later, or that wait for a retry.

        Jobs that run, or that are due already, are left alone, and so are those that wait for
        others of their group. The caller commits.

        Args:
            target: A Session, Connection or Engine, or an asyncio twin (then await the result).
            where: Which live jobs, for example ``jobs.Job.id == "report-7"``.
            limit: The most to make due, from 1; by default all.

        Returns:
            How many jobs were made due.

        Raises:
            TypeError, ValueError: *limit* is no number from 1.
        """
        return run_now(self.models, statements_of(self.models), target, where, limit)

    @overload
    def edit(
        self,
        target: SyncTarget,
        id: str,
        *,
        lease: int | None = None,
        **changes: Unpack[EditOptions],
    ) -> Edited: ...
    @overload
    def edit(
        self,
        target: "AsyncTarget",
        id: str,
        *,
        lease: int | None = None,
        **changes: Unpack[EditOptions],
    ) -> Coroutine[Any, Any, Edited]: ...
    def edit(
        self, target: Any, id: str, *, lease: int | None = None, **changes: Unpack[EditOptions]
    ) -> Any:
        """Give a queued job another arg, headers, priority or time; a running one stays as it is.

        The caller commits, and soon: until then no worker claims the job. Its id, unique key and
        attempts stay, and so do the headers of the library, whose names begin with ``bgjob-``.

        Args:
            target: A Session, Connection or Engine, or an asyncio twin (then await the result).
            id: The job's.
            lease: ``job.lease`` as it was when you looked. If a worker has claimed the job since,
                or somebody has changed it, by an edit or by its unique key, nothing is changed. By
                default the job is changed if it is queued now.
            changes: ``arg``, which is checked as the handler takes it; ``headers``, which replace
                those that there are; ``priority``; and either ``run_at``, an aware datetime, or
                ``delay``, seconds or a timedelta from the start of the transaction, by the
                database's clock. What is left out stays as it is.

        Returns:
            ``"edited"``; or, if nothing was changed, ``"running"``; ``"changed"`` for another
            lease; ``"waiting"`` if a time was given for a job that waits for others of its group;
            None if there is no such job.

        Raises:
            InvalidArg: The arg or a header can't be stored, or the handler does not take it.
            TypeError: There is nothing to change, or a value is of another type.
            ValueError: The job would expire before *run_at*, or a value is out of range.
        """
        return edit(
            self.models, statements_of(self.models), self.registry, target, id, lease, changes
        )
