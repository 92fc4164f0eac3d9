"""The options of a job, declared and checked once for all ways to enqueue.

``enqueue`` says what each means.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple, Self, TypedDict

from . import validation

OnConflict = Literal["raise", "ignore"]


class JobOptions(TypedDict, total=False):
    """What may be said of a job, or of all jobs of one call."""

    queue: str | None
    delay: float | timedelta | None
    run_at: datetime | None
    priority: int
    headers: Mapping[str, Any] | None


class InsertOptions(JobOptions, total=False):
    """Options of jobs that a statement inserts: it can leave duplicates out."""

    on_conflict: OnConflict


class EnqueueOptions(InsertOptions, total=False):
    """Options of one job."""

    id: str | None


class BulkOptions(InsertOptions, total=False):
    """Options of many jobs."""

    ids: Iterable[str] | None


class Common(NamedTuple):
    """What the options of one call come to, checked: the same for all its jobs.

    Each field is a parameter of the INSERT of one job. Each but the last two, which make
    ``next_run_at``, is a column too.
    """

    queue: str
    type: str
    priority: int
    headers: dict[str, Any] | None
    delay: timedelta | None
    run_at: datetime | None

    @classmethod
    def of(cls, type: str, queue: str, options: JobOptions) -> Self:
        """Check everything but the headers, which :meth:`with_headers` adds.

        Args:
            type: Of the jobs.
            queue: Where they go unless the options name another one.
            options: What the caller gave.
        """
        get = options.get
        delay, run_at = validation.start(get("delay"), get("run_at"))
        other = get("queue")
        queue = validation.name("queue", queue if other is None else other)
        type = validation.name("type", type)
        return cls(queue, type, validation.priority(get("priority", 0)), None, delay, run_at)

    def with_headers(self, options: JobOptions, content_type: str | None = None) -> Self:
        """The same with the caller's headers, and that of the arg's content type."""
        given = options.get("headers")
        if given is None and content_type is None:
            return self
        return self._replace(headers=validation.headers(given, content_type))


NOTHING: Final[Mapping[str, Any]] = {"priority": 0, "headers": {}}
"""Values of options that say as much as None."""
COLUMNS: Final = ("queue", "type", "priority", "headers")
