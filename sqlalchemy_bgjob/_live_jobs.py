"""What BGJob does with live jobs, beside cancelling them: run now."""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, overload

from sqlalchemy import ColumnElement

from ._db.targets import SyncTarget
from ._lifecycle.operate import run_now
from ._sql import statements_of
from .models import Models

if TYPE_CHECKING:
    from ._db.targets import AsyncTarget


class LiveJobVerbs:
    """The part of :class:`~sqlalchemy_bgjob.BGJob` that is about live jobs."""

    models: Models

    @overload
    def run_now(
        self, target: SyncTarget, where: ColumnElement[bool], *, limit: int | None = None
    ) -> int: ...
    @overload
    def run_now(
        self, target: "AsyncTarget", where: ColumnElement[bool], *, limit: int | None = None
    ) -> Coroutine[Any, Any, int]: ...
    def run_now(self, target: Any, where: ColumnElement[bool], *, limit: int | None = None) -> Any:
        """Make jobs due that are scheduled for later, or wait for a retry; returns how many.

        Jobs that run or are due already are left alone, and so are those that wait for others of
        their group. The caller commits.

        Args:
            target: A Session, Connection or Engine, or an asyncio twin (then await the result).
            where: Which live jobs, for example ``jobs.Job.id == "report-7"``.
            limit: The most to make due.
        """
        return run_now(self.models, statements_of(self.models), target, where, limit)
