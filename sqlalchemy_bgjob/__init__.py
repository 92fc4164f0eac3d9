"""Background jobs in PostgreSQL that live in your own SQLAlchemy metadata and transactions.

Names are imported on first use, so that the command line starts at once, and only users of
``AsyncWorker`` need asyncio.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:
    # "as" is what makes a name public to type checkers, which can't read __all__ below.
    # isort: off
    from ._drafts.batch import OpenBatch as OpenBatch
    from ._drafts.unique import Unique as Unique
    from ._enqueue.from_query import enqueue_from as enqueue_from
    from ._enqueue.many import BulkResult as BulkResult, enqueue_many as enqueue_many
    from ._enqueue.one import JobRef as JobRef, enqueue as enqueue
    from ._handlers.outcomes import (
        Cancelled as Cancelled,
        Complete as Complete,
        Expired as Expired,
        MoveToDlq as MoveToDlq,
        Outcome as Outcome,
        Reschedule as Reschedule,
        Retry as Retry,
    )
    from ._handlers.registry import JobType as JobType
    from ._handlers.timetable import next_fire_time as next_fire_time
    from ._inspect.backlog import Backlog as Backlog
    from ._inspect.batches import BatchInfo as BatchInfo
    from ._inspect.health import Health as Health
    from ._inspect.pressure import Pressure as Pressure
    from ._inspect.records import JobRecord as JobRecord, Progress as Progress
    from ._job_context import JobLogFilter as JobLogFilter
    from ._lifecycle.cancel import CancelResult as CancelResult
    from ._lifecycle.dead_jobs import DeadSummary as DeadSummary
    from ._lifecycle.operate import Redriven as Redriven
    from ._lifespan import lifespan as lifespan
    from ._worker.run import Context as Context
    from .aio import AsyncWorker as AsyncWorker
    from .bgjob import BGJob as BGJob
    from .exceptions import (
        BGJobError as BGJobError,
        InvalidArg as InvalidArg,
        InvalidResult as InvalidResult,
        JobAlreadyExists as JobAlreadyExists,
        RecordsOutOfDate as RecordsOutOfDate,
        SchemaOutOfDate as SchemaOutOfDate,
        UnknownType as UnknownType,
        WorkerLost as WorkerLost,
        WorkerRefused as WorkerRefused,
        WorkerStuck as WorkerStuck,
    )
    from .models import (
        DeadJobMixin as DeadJobMixin,
        JobMixin as JobMixin,
        PastError as PastError,
    )
    from .retry import (
        GIVE_UP as GIVE_UP,
        constant as constant,
        exponential as exponential,
        on_exception as on_exception,
        retry_after as retry_after,
        steps as steps,
    )
    from .settings import Queue as Queue, WorkerSettings as WorkerSettings
    from .telemetry import (
        FinishedRun as FinishedRun,
        JobInfo as JobInfo,
        Observer as Observer,
    )
    from .worker import Worker as Worker
    # isort: on

_HOMES = {
    "_drafts.batch": ("OpenBatch",),
    "_drafts.unique": ("Unique",),
    "_enqueue.from_query": ("enqueue_from",),
    "_enqueue.many": ("BulkResult", "enqueue_many"),
    "_enqueue.one": ("JobRef", "enqueue"),
    "_handlers.outcomes": (
        "Cancelled",
        "Complete",
        "Expired",
        "MoveToDlq",
        "Outcome",
        "Reschedule",
        "Retry",
    ),
    "_handlers.registry": ("JobType",),
    "_handlers.timetable": ("next_fire_time",),
    "_inspect.backlog": ("Backlog",),
    "_inspect.batches": ("BatchInfo",),
    "_inspect.health": ("Health",),
    "_inspect.pressure": ("Pressure",),
    "_inspect.records": ("JobRecord", "Progress"),
    "_job_context": ("JobLogFilter",),
    "_lifecycle.cancel": ("CancelResult",),
    "_lifecycle.dead_jobs": ("DeadSummary",),
    "_lifecycle.operate": ("Redriven",),
    "_lifespan": ("lifespan",),
    "_worker.run": ("Context",),
    "aio": ("AsyncWorker",),
    "bgjob": ("BGJob",),
    "exceptions": (
        "BGJobError",
        "InvalidArg",
        "InvalidResult",
        "JobAlreadyExists",
        "RecordsOutOfDate",
        "SchemaOutOfDate",
        "UnknownType",
        "WorkerLost",
        "WorkerRefused",
        "WorkerStuck",
    ),
    "models": ("DeadJobMixin", "JobMixin", "PastError"),
    "retry": ("GIVE_UP", "constant", "exponential", "on_exception", "retry_after", "steps"),
    "settings": ("Queue", "WorkerSettings"),
    "telemetry": ("FinishedRun", "JobInfo", "Observer"),
    "worker": ("Worker",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_NEEDS_GREENLET = frozenset({"AsyncWorker"})


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return _names()
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def _names() -> list[str]:
    """The names for ``import *``, which would fail for all if one can't be imported."""
    try:
        import_module("greenlet")
        missing: frozenset[str] = frozenset()
    except ImportError:
        missing = _NEEDS_GREENLET
    return ["__version__", *(name for name in _HOME_OF if name not in missing)]


def __dir__() -> list[str]:
    return sorted(_names())
