"""Background jobs in PostgreSQL that live in your own SQLAlchemy metadata and transactions.

Names are imported when they are first used, so that the command line starts at once, and asyncio
is needed only by those who use ``AsyncWorker``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from ._enqueue.from_query import enqueue_from
    from ._enqueue.many import BulkResult, enqueue_many
    from ._enqueue.one import JobRef, enqueue
    from ._handlers.outcomes import Complete, MoveToDlq, Outcome, Reschedule, Retry
    from ._handlers.registry import JobType
    from ._inspect.health import Health
    from ._lifecycle.operate import Redriven
    from ._worker.run import Context
    from .aio import AsyncWorker
    from .bgjob import BGJob
    from .exceptions import (
        BGJobError,
        InvalidArg,
        JobAlreadyExists,
        SchemaOutOfDate,
        UnknownType,
        WorkerLost,
        WorkerRefused,
    )
    from .models import DeadJobMixin, JobMixin
    from .retry import constant, exponential
    from .settings import WorkerSettings
    from .telemetry import JobInfo, Observer
    from .worker import Worker

__all__ = [
    "AsyncWorker",
    "BGJob",
    "BGJobError",
    "BulkResult",
    "Complete",
    "Context",
    "DeadJobMixin",
    "Health",
    "InvalidArg",
    "JobAlreadyExists",
    "JobInfo",
    "JobMixin",
    "JobRef",
    "JobType",
    "MoveToDlq",
    "Observer",
    "Outcome",
    "Redriven",
    "Reschedule",
    "Retry",
    "SchemaOutOfDate",
    "UnknownType",
    "Worker",
    "WorkerLost",
    "WorkerRefused",
    "WorkerSettings",
    "__version__",
    "constant",
    "enqueue",
    "enqueue_from",
    "enqueue_many",
    "exponential",
]

_HOMES = {
    "_enqueue.many": ("BulkResult", "enqueue_many"),
    "_enqueue.one": ("JobRef", "enqueue"),
    "_enqueue.from_query": ("enqueue_from",),
    "_worker.run": ("Context",),
    "_inspect.health": ("Health",),
    "_lifecycle.operate": ("Redriven",),
    "_handlers.outcomes": ("Complete", "MoveToDlq", "Outcome", "Reschedule", "Retry"),
    "_handlers.registry": ("JobType",),
    "aio": ("AsyncWorker",),
    "bgjob": ("BGJob",),
    "exceptions": (
        "BGJobError",
        "InvalidArg",
        "JobAlreadyExists",
        "SchemaOutOfDate",
        "UnknownType",
        "WorkerLost",
        "WorkerRefused",
    ),
    "models": ("DeadJobMixin", "JobMixin"),
    "retry": ("constant", "exponential"),
    "settings": ("WorkerSettings",),
    "telemetry": ("JobInfo", "Observer"),
    "worker": ("Worker",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
