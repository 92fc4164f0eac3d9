"""Which step a worker takes next. Pure: no I/O, no clock, no threads; the time is an argument.

A queue has *slots* (its concurrency), jobs that run in them, and jobs that are *ready*: claimed and
not started. How many jobs are claimed ahead of the slots follows from how long the handlers take:
as many as would be started within 50 ms, so that short jobs come in large batches and long jobs
wait in the table, where other workers can take them.
"""

import random
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ._lifecycle import ClaimedJob, Fate, Pending
from .settings import WorkerSettings

AHEAD: Final = 0.05
"""Seconds of work that may be claimed ahead of the slots."""
LINGER: Final = 0.010
"""The longest a settlement waits for others to share its statement, in seconds."""
FIRST_POLL: Final = 0.005
"""After work, a queue without notifications is looked at again this soon, then half as often."""
AGAIN: Final = 0.1
"""Seconds until a worker that can't go on looks whether it can."""
_RETRY_LOCKED: Final = (0.05, 5.0)
_RETRY_REFUSED: Final = (1.0, 60.0)
_SHORTEST_RUN: Final = 0.0001
_MEMORY: Final = 0.1  # the weight of the newest run in the mean


@dataclass(frozen=True, slots=True)
class Claim:
    """Take up to *limit* due jobs of a queue."""

    queue: str
    limit: int


@dataclass(frozen=True, slots=True)
class Start:
    """Run a job that was claimed."""

    job: ClaimedJob


@dataclass(frozen=True, slots=True)
class Settle:
    """Write these settlements."""

    items: tuple[Pending, ...]


@dataclass(frozen=True, slots=True)
class HandBack:
    """Queue these jobs again, unstarted and attempt unspent."""

    jobs: tuple[ClaimedJob, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do for so many seconds, unless something happens."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Finished:
    """Drained: nothing runs, nothing is ready, all is settled."""


Step = Claim | Start | Settle | HandBack | Wait | Finished


@dataclass(slots=True)
class _Queue:
    name: str
    slots: int
    running: int = 0
    ready: deque[tuple[float, ClaimedJob]] = field(default_factory=deque)
    mean: float | None = None
    poll_at: float = 0.0
    pause: float = FIRST_POLL
    no_ahead_until: float = 0.0
    stuck: bool = False  # jobs were handed back, and no run has ended since
    woken: bool = False

    def ahead(self, now: float, most: int) -> int:
        if self.mean is None or self.stuck or now < self.no_ahead_until:
            return 0
        return min(most, int(self.slots * AHEAD / max(self.mean, _SHORTEST_RUN)))


class Core:
    """The state of a worker's queues, and the rule that picks the next step."""

    def __init__(self, queues: Mapping[str, int], settings: WorkerSettings) -> None:
        self._queues = {name: _Queue(name, slots) for name, slots in queues.items()}
        self._settings = settings
        self._outbox: deque[tuple[float, Pending]] = deque()
        self._turn = deque(self._queues.values())
        self.draining = False

    # ---- what happened ----------------------------------------------------------------------

    def claimed(self, queue: str, jobs: Iterable[ClaimedJob], now: float) -> None:
        """Jobs came back from a claim; those that may kill their worker go first."""
        q = self._queues[queue]
        jobs = list(jobs)
        for job in reversed([job for job in jobs if job.careful]):
            q.ready.appendleft((now, job))
        q.ready.extend((now, job) for job in jobs if not job.careful)

    def polled(
        self,
        queue: str,
        limit: int,
        found: int,
        due_in: float | None,
        now: float,
        *,
        listening: bool,
    ) -> None:
        """A claim ended: when is the next one worth its while?"""
        q = self._queues[queue]
        if found:
            q.pause = FIRST_POLL
        if found >= limit or q.woken:
            q.woken = False
            q.poll_at = now
            return
        longest = self._settings.poll_interval
        if listening and not found:
            pause = longest
        else:
            pause, q.pause = q.pause, min(q.pause * 2, longest)
        pause *= random.uniform(0.9, 1.0)  # workers that started together part company
        if due_in is not None:
            pause = min(pause, max(due_in, 0.0) + 0.001)
        q.poll_at = now + pause

    def wake(self, queue: str | None, now: float) -> None:
        """A notification: look at this queue, or at all of them, at once."""
        for q in self._queues.values():
            if queue is None or q.name == queue:
                q.woken = True
                q.poll_at = min(q.poll_at, now)

    def expect(self, queue: str, at: float) -> None:
        """A job will be due at that time: look at the queue then, if not before."""
        if (q := self._queues.get(queue)) is not None:
            q.poll_at = min(q.poll_at, at)

    def claim_sent(self, queue: str) -> None:
        """A claim is on its way: a notification from now on asks for another one."""
        self._queues[queue].woken = False

    def finished(self, job: ClaimedJob, seconds: float) -> None:
        """A run ended and its slot is free."""
        q = self._queues[job.queue]
        q.running -= 1
        q.stuck = False
        q.mean = seconds if q.mean is None else q.mean + _MEMORY * (seconds - q.mean)

    def settle_later(self, item: Pending, at: float) -> None:
        """A settlement to write, not before the given time."""
        self._outbox.append((at, item))

    def not_started(self, job: ClaimedJob) -> None:
        """A job could not be started: its slot is free, and nothing was learnt from it."""
        self._queues[job.queue].running -= 1

    def settled(self, job: ClaimedJob) -> None:
        """A job was settled otherwise: what waits to be written of it is void."""
        self._outbox = deque(entry for entry in self._outbox if entry[1].job is not job)

    def forget_ready(self) -> list[ClaimedJob]:
        """The lease of everything ready was lost: forget it."""
        lost = []
        for q in self._queues.values():
            lost += [job for _, job in q.ready]
            q.ready.clear()
        return lost

    # ---- what follows -----------------------------------------------------------------------

    def next_start(self, queue: str) -> ClaimedJob | None:
        """The job to run in a slot that is free now; it counts as running from here on."""
        q = self._queues[queue]
        if self.draining or not q.ready or q.running >= q.slots:
            return None
        q.running += 1
        return q.ready.popleft()[1]

    def next_step(self, now: float, *, may_start: bool, may_claim: bool) -> Step:
        """The next step at the monotonic time *now*.

        Args:
            now: Seconds of a monotonic clock.
            may_start: Whether the worker has beaten lately enough to start a job.
            may_claim: Whether the worker is registered and its connection is up.
        """
        if may_claim and (back := self._to_hand_back(now)):
            return HandBack(tuple(back))
        if may_start:
            for q in self._queues.values():
                job = self.next_start(q.name)
                if job is not None:
                    return Start(job)
        if may_claim and (items := self._to_settle(now)):
            return Settle(items)
        if self.draining:
            if not self.busy:
                return Finished()
        elif may_claim and may_start:
            for _ in range(len(self._turn)):
                q = self._turn[0]
                self._turn.rotate(-1)  # queues take turns
                if (limit := self._room(q, now)) and q.poll_at <= now:
                    return Claim(q.name, limit)
        if not (may_start and may_claim):
            return Wait(AGAIN)  # the heart or the connection wakes the worker when it is up
        return Wait(self._until_next(now))

    @property
    def busy(self) -> bool:
        """Whether anything runs, is ready, or waits to be settled."""
        return bool(self._outbox) or any(q.running or q.ready for q in self._queues.values())

    @property
    def running(self) -> int:
        """How many jobs run."""
        return sum(q.running for q in self._queues.values())

    def unsettled(self) -> list[Pending]:
        """What waits to be settled."""
        return [item for _, item in self._outbox]

    def ready(self) -> list[ClaimedJob]:
        """What is claimed and not started."""
        return [job for q in self._queues.values() for _, job in q.ready]

    def _room(self, q: _Queue, now: float) -> int:
        free = q.slots - q.running
        ahead = q.ahead(now, self._settings.max_claim)
        room = min(free + ahead - len(q.ready), self._settings.max_claim)
        # Half a batch at least, unless a slot is idle: many small claims cost more than one.
        return room if room > 0 and (free > len(q.ready) or room * 2 > ahead) else 0

    def _to_settle(self, now: float) -> tuple[Pending, ...]:
        due = [item for at, item in self._outbox if at <= now]
        if not due:
            return ()
        oldest = min(at for at, _ in self._outbox)
        idle = not any(q.running or q.ready for q in self._queues.values())
        enough = idle or self.draining or len(due) * 2 >= self._settings.max_claim
        if not enough and now < oldest + LINGER:
            return ()
        due = due[: self._settings.max_claim * 2]
        taken = {id(item) for item in due}
        self._outbox = deque(entry for entry in self._outbox if id(entry[1]) not in taken)
        return tuple(due)

    def _to_hand_back(self, now: float) -> list[ClaimedJob]:
        back: list[ClaimedJob] = []
        for q in self._queues.values():
            if not q.ready:
                continue
            full = q.running >= q.slots
            keep: deque[tuple[float, ClaimedJob]] = deque()
            for since, job in q.ready:
                held_too_long = full and now >= since + self._settings.hold_timeout
                # A job that may take the worker down with it must not drag others along, so it is
                # not held: whoever has a free slot may have it.
                if self.draining or held_too_long or (job.careful and full):
                    back.append(job)
                else:
                    keep.append((since, job))
            if len(keep) < len(q.ready):
                q.ready = keep
                # Or a long run makes its worker claim and hand back the same jobs all the time.
                q.stuck, q.no_ahead_until = True, now + self._settings.hold_timeout
        return back

    def _until_next(self, now: float) -> float:
        times = [now + self._settings.poll_interval]
        times += [at if at > now else at + LINGER for at, _ in self._outbox]
        for q in self._queues.values():
            if q.ready and q.running >= q.slots:
                times.append(q.ready[0][0] + self._settings.hold_timeout)
            if not self.draining and self._room(q, now):
                times.append(q.poll_at)
        return max(min(times) - now, 0.0)


def settle_again_after(fate: Fate, tries: int) -> float:
    """Seconds until a settlement that was not written is tried again, after so many tries."""
    first, last = _RETRY_LOCKED if fate is Fate.LOCKED else _RETRY_REFUSED
    return float(min(first * 2 ** min(tries, 10), last))  # a row may stay locked for days
