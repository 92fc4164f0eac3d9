"""The options of a job, declared and checked once for all ways to enqueue.

``enqueue`` says what each means.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self, TypedDict

from . import validation
from .batch import OpenBatch, batch_id
from .unique import Unique

if TYPE_CHECKING:
    from sqlalchemy import ColumnExpressionArgument

OnConflict = Literal["raise", "ignore"]


class JobOptions(TypedDict, total=False):
    """Options of a job, or of all jobs of one call."""

    queue: str | None
    delay: float | timedelta | None
    run_at: datetime | None
    priority: int
    headers: Mapping[str, Any] | None
    expires: float | timedelta | datetime | None
    batch: OpenBatch | None


class OneJobOptions(JobOptions, total=False):
    """Options of one job, made or enqueued."""

    unique: str | Unique | None


class InsertOptions(JobOptions, total=False):
    """Options of jobs that the library's own statements insert, which can skip duplicates."""

    on_conflict: OnConflict


class EnqueueOptions(InsertOptions, OneJobOptions, total=False):
    """Options of one job."""

    id: str | None


class BulkOptions(InsertOptions, total=False):
    """Options of many jobs."""

    ids: Iterable[str] | None
    unique: Callable[[Any], str | Unique | None] | None


class QueryOptions(InsertOptions, total=False):
    """Options of the jobs of a query's rows."""

    unique: "ColumnExpressionArgument[Any] | Unique | None"


class Common(NamedTuple):
    """The checked options of one call, which all its jobs share.

    Each field is a parameter of the INSERT of one job. The first four are columns too, and so is
    the last one; the others make ``next_run_at`` and ``expires_at``.
    """

    queue: str
    type: str
    priority: int
    headers: dict[str, Any] | None
    delay: timedelta | None
    run_at: datetime | None
    expires_in: timedelta | None = None
    expires_at: datetime | None = None
    batch_id: str | None = None

    @classmethod
    def of(cls, type: str, queue: str, options: JobOptions) -> Self:
        """Check everything but the headers, which :meth:`with_headers` adds.

        Args:
            type: The type of the jobs.
            queue: Their queue, unless the options name another one.
            options: What the caller gave.
        """
        get = options.get
        delay, run_at = validation.start(get("delay"), get("run_at"))
        other = get("queue")
        queue = validation.name("queue", queue if other is None else other)
        type = validation.name("type", type)
        priority = validation.priority(get("priority", 0))
        expiry = validation.expiry(get("expires"), run_at)
        return cls(queue, type, priority, None, delay, run_at, *expiry, batch_id(options))

    @property
    def is_more(self) -> bool:
        """Whether its jobs have what few have: an end of their time, or a batch."""
        return self[_PLAIN:] != _NOTHING_MORE

    def with_headers(self, options: JobOptions, content_type: str | None = None) -> Self:
        """A copy with the caller's headers and the arg's content type."""
        given = options.get("headers")
        if given is None and content_type is None:
            return self
        return self._replace(headers=validation.headers(given, content_type))


_PLAIN: Final = Common._fields.index("expires_in")
MORE: Final = Common._fields[_PLAIN:]
"""The fields that few jobs have, and of which the plain statements know nothing."""
_NOTHING_MORE: Final = (None,) * len(MORE)
NOTHING: Final[Mapping[str, Any]] = {"priority": 0, "headers": {}}
"""For these options, the values that mean the same as None."""
COLUMNS: Final = ("queue", "type", "priority", "headers")
