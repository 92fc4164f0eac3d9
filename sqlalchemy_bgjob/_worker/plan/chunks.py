"""Jobs of one queue that are to share calls of their handlers, and wait for each other. Pure.

They are claimed and take no slot. A chunk starts in a free slot once it is full, or once its first
job has waited for as long as its handler says; that is never longer than a heartbeat.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

from ..._handlers.registry import JobType
from ..._lifecycle.claim import ClaimedJob

_MEMORY = 0.5
"""The weight of the newest claim in the part that such jobs have of all."""
_Waiting = dict[str, tuple[float, ClaimedJob]]


class Due(NamedTuple):
    """A chunk that is to start, and where its first job stands among those that are ready."""

    since: float
    handler: JobType[Any]
    job: ClaimedJob

    def comes_before(self, since: float, job: ClaimedJob) -> bool:
        """Whether it is to start before a job that is ready since then."""
        if job.suspect or since != self.since:
            return not job.suspect and self.since < since
        mine = self.job.priority, self.job.next_run_at, self.job.id
        return mine < (job.priority, job.next_run_at, job.id)


class Chunks:
    """The jobs that wait, by handler.

    Args:
        longest_wait: Seconds; handlers that say more get this.
    """

    def __init__(self, longest_wait: float) -> None:
        self._longest_wait = longest_wait
        self._waiting: dict[JobType[Any], _Waiting] = {}
        self._part: float | None = None
        self._size = 1

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def claimed(self, sharing: Iterable[ClaimedJob], of: int, now: float) -> None:
        """A claim has found *of* jobs; these may share calls, and wait from now on."""
        count = 0
        for job in sharing:
            count += 1
            self._size = job.handler.options.chunk
            waiting = self._waiting.setdefault(job.handler, {})
            waiting.pop(job.id, None)  # an earlier lease of the same job, which is over
            waiting[job.id] = now, job
        if of:
            part = count / of
            old = part if self._part is None else self._part
            self._part = old + _MEMORY * (part - old)

    @property
    def held(self) -> int:
        """How many slots the full chunks will take; jobs that wait for others take none yet."""
        return sum(len(waiting) // _size(handler) for handler, waiting in self._waiting.items())

    @property
    def per_run(self) -> float:
        """How many jobs of a claim fill one slot, going by the last claims."""
        part = self._part or 0.0
        return 1.0 / (1.0 - part + part / self._size)

    def first_due(self, now: float) -> Due | None:
        """The chunk that is to start first, if one is full or has waited long enough."""
        due: Due | None = None
        for handler, waiting in self._waiting.items():
            since, job = next(iter(waiting.values()))
            if len(waiting) < _size(handler) and now < self._due_at(handler):
                continue
            if due is None or Due(since, handler, job).comes_before(due.since, due.job):
                due = Due(since, handler, job)
        return due

    def take(self, handler: JobType[Any]) -> ClaimedJob:
        """Take out the next chunk of a handler: its first job, with the others as its mates."""
        waiting = self._waiting[handler]
        first, *mates = islice(waiting.values(), _size(handler))
        for _, job in (first, *mates):
            del waiting[job.id]
        if not waiting:
            del self._waiting[handler]
        lead = first[1]
        lead.mates = tuple(job for _, job in mates)
        return lead

    def due_at(self) -> float:
        """When the first of them has waited long enough; infinity if there is none."""
        return min(map(self._due_at, self._waiting), default=float("inf"))

    def _due_at(self, handler: JobType[Any]) -> float:
        since, _ = next(iter(self._waiting[handler].values()))
        return since + min(handler.options.wait, self._longest_wait)

    # ---- back --------------------------------------------------------------------------------

    def jobs(self) -> list[ClaimedJob]:
        """All that wait."""
        return [job for waiting in self._waiting.values() for _, job in waiting.values()]

    def withdraw(self, job: ClaimedJob) -> bool:
        """Take out one job; False if it does not wait here."""
        return bool(self._take_out(lambda _, one: one is job))

    def take_overdue(self, now: float, hold: float) -> list[ClaimedJob]:
        """Take out the jobs of handlers whose chunk was due *hold* seconds ago."""
        late = [handler for handler in self._waiting if now >= self._due_at(handler) + hold]
        return self._take_out(lambda handler, _: handler in late)

    def take_with_session(self) -> list[ClaimedJob]:
        """Take out the jobs whose handlers may use a session."""
        return self._take_out(lambda handler, _: handler.options.session)

    def take_all(self) -> list[ClaimedJob]:
        """Take out all."""
        return self._take_out(lambda handler, job: True)

    def _take_out(self, which: Callable[[JobType[Any], ClaimedJob], bool]) -> list[ClaimedJob]:
        taken: list[ClaimedJob] = []
        for handler, waiting in [*self._waiting.items()]:
            some = [job for _, job in waiting.values() if which(handler, job)]
            taken += some
            for job in some:
                del waiting[job.id]
            if not waiting:
                del self._waiting[handler]
        return taken


def _size(handler: JobType[Any]) -> int:
    return handler.options.chunk or 1
