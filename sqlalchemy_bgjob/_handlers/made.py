"""The drafts behind ``handler.job(...)``, for ``enqueue_many``, which sends no ORM objects."""

from typing import Any, Final, NamedTuple

from sqlalchemy.orm.attributes import instance_state

from .._drafts.batch import OpenBatch
from .._drafts.draft import Draft
from ..models import Models

_KEY: Final = "bgjob.made"
_SENT: Final = "bgjob.sent"


class Made(NamedTuple):
    """A job's draft, the values of its columns, and its batch."""

    draft: Draft
    models: Models
    values: dict[str, Any]
    batch: OpenBatch | None

    def changed(self, job: Any) -> list[str]:
        """The columns that were assigned since then."""
        now = _values(job)
        return sorted(name for name in now if self.values.get(name) is not now[name])


def remember(job: Any, draft: Draft, models: Models, batch: OpenBatch | None) -> None:
    """Keep a job's draft, present values and batch in SQLAlchemy's state of the object."""
    # No WeakKeyDictionary: a column's value may hold the job, which would then live forever.
    instance_state(job).info[_KEY] = Made(draft, models, _values(job), batch)


def made_of(job: Any) -> Made | None:
    """What :func:`remember` kept of a job; None if ``handler.job(...)`` did not make it."""
    made: Made | None = instance_state(job).info.get(_KEY)
    return made


def was_sent(job: Any) -> bool:
    """Whether the job may be in the database: it was flushed, or asked for here before."""
    state = instance_state(job)
    sent = state.has_identity or _SENT in state.info
    state.info[_SENT] = True
    return sent


def _values(job: Any) -> dict[str, Any]:
    values = dict(job.__dict__)
    del values["_sa_instance_state"]
    return values
