"""The options of a job, declared once for all ways to enqueue. `enqueue` says what each means."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict

OnConflict = Literal["raise", "ignore"]


class JobOptions(TypedDict, total=False):
    """What may be said of a job, or of all jobs of one call."""

    queue: str | None
    delay: float | timedelta | None
    run_at: datetime | None
    priority: int
    headers: Mapping[str, Any] | None


class InsertOptions(JobOptions, total=False):
    """And where a statement inserts them, which can leave duplicates out."""

    on_conflict: OnConflict


class EnqueueOptions(InsertOptions, total=False):
    """And where there is one job."""

    id: str | None


class BulkOptions(InsertOptions, total=False):
    """And where there are many."""

    ids: Iterable[str] | None
