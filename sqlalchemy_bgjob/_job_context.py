"""Which job runs here, for log records. Light: the supervisor, without SQLAlchemy, imports it too.

The worker sets :data:`running` in the context of the job's own thread or task. So it also holds in
the tasks, and in the threads of ``asyncio.to_thread``, that a handler starts.
"""

import logging
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, Final

running: Final[ContextVar[Any]] = ContextVar("sqlalchemy_bgjob.running", default=None)
"""The run whose handler is called here; None outside of handlers."""

REQUEST_ID: Final = "request_id"
"""The header that log records have besides the job, unless others are named."""
JOB_FIELDS: Final = ("job_id", "job_type", "queue", "attempt", REQUEST_ID)
"""What such a record has, in the order of a line."""


class JobLogFilter(logging.Filter):
    """Gives log records that are written while a handler runs the fields of its job.

    The fields are ``job_id``, ``job_type``, ``queue`` and ``attempt``, and the named headers of the
    job. Outside of handlers a record gets none of them: give the formatter ``defaults``. A field
    that a record has already stays. The filter lets every record pass. In a call for several jobs a
    record gets no ``job_id``, and those headers in which all the jobs agree.

    Add it to a logging handler, ``handler.addFilter(JobLogFilter())``, and not to a logger, whose
    filters don't see the records of other loggers. If there is a ``QueueHandler``, add it to that
    one: what comes after it runs in another thread.

    Args:
        headers: The headers to show, where a job has them; by default ``request_id``.
    """

    def __init__(self, headers: Iterable[str] = (REQUEST_ID,)) -> None:
        super().__init__()
        self._headers = tuple(headers)

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; always True."""
        run = running.get()
        if run is not None:
            job, *others = run.jobs
            fields = vars(record)
            if not others:
                fields.setdefault("job_id", job.id)
            fields.setdefault("job_type", job.type)
            fields.setdefault("queue", job.queue)
            fields.setdefault("attempt", job.attempt)
            headers = job.headers if isinstance(job.headers, dict) else {}  # SQL writes any JSON
            for name in self._headers:
                if name in headers and all(_has(one, name, headers[name]) for one in others):
                    fields.setdefault(name, headers[name])
        return True


def _has(job: Any, name: str, value: object) -> bool:
    headers = job.headers if isinstance(job.headers, dict) else {}
    return name in headers and bool(headers[name] == value)
