"""One queue of a worker: its slots, the jobs in them, and those that are ready. Pure."""

from collections import deque
from dataclasses import dataclass, field
from math import ceil
from typing import Final

from ..._lifecycle.claim import ClaimedJob
from .chunks import Chunks
from .lanes import Lanes
from .polling import Polling

AHEAD: Final = 0.05
"""Seconds of work that may be claimed ahead of the slots."""
SHORT: Final = 0.002
"""Mean seconds of a run below which the loop may claim more before it starts ready jobs."""
MOST_UNWRITTEN: Final = 1_000
"""Unwritten settlements of a queue at which claims from it stop: jobs that have run and are not
settled run again when this worker ends."""
_SHORTEST_RUN: Final = 0.0001
_MEMORY: Final = 0.1  # the weight of the newest run in the mean


@dataclass(slots=True)
class Queue:
    """What the planner knows of one queue.

    Attributes:
        name: Its name.
        given: How many of its jobs run at a time, at the most, as the worker was told.
        lost: How many of these are taken for good, by runs that were given up and go on.
        polling: When to look at it.
        slots: How many of its jobs may run at a time now; kept, as each start asks for it.
        running: How many slots are taken.
        ready: Jobs that are claimed and not started, each with the time of its claim.
        lanes: Where to look.
        mean: Mean seconds of a run; None before the first.
        no_ahead_until: Until then nothing is claimed ahead of the slots.
        stuck: Jobs were handed back, and no run has ended since.
        unwritten: Settlements that failed, and will be tried again.
        progress: A run has ended since the loop last claimed or started one.
        refused_together: The last claim of it and others was refused: it is claimed from alone.
        paused: An operator has paused it, or it is not known yet whether one has.
        chunks: Jobs that are to share calls, and wait for others; None until there was one.
    """

    name: str
    given: int
    polling: Polling
    lost: int = 0
    slots: int = field(init=False)
    running: int = 0
    ready: deque[tuple[float, ClaimedJob]] = field(default_factory=deque)
    lanes: Lanes = field(default_factory=Lanes)
    mean: float | None = None
    no_ahead_until: float = 0.0
    stuck: bool = False
    unwritten: int = 0
    progress: bool = False
    refused_together: bool = False
    paused: bool = False
    chunks: Chunks | None = None

    def __post_init__(self) -> None:
        self._count_slots()

    def control(self, slots: int, *, paused: bool) -> bool:
        """Obey an operator; returns whether more may be claimed than before."""
        resumed, more = self.paused and not paused, slots > self.given
        self.given, self.paused = slots, paused
        self._count_slots()
        if resumed:
            self.lanes.forget()  # jobs of any priority may have come meanwhile
        return resumed or more

    def lose_slot(self) -> None:
        """A run was given up, and goes on: its slot serves no other."""
        self.running -= 1
        self.lost += 1
        self._count_slots()

    def regain_slot(self) -> None:
        """A run that was given up has ended."""
        self.lost -= 1
        self._count_slots()

    def _count_slots(self) -> None:
        self.slots = max(self.given - self.lost, 0)

    @property
    def waits(self) -> bool:
        """Whether producers are to notify."""
        return self.polling.waits and not self.paused

    @property
    def moves_on(self) -> bool:
        """Whether the runs of short jobs take up ready jobs by themselves, one after another.

        While they do, an early claim delays no start: more busy slots would not be faster. Each
        early claim needs another run that has ended.
        """
        return self.progress and self.running > 0 and (self.mean or 0.0) < SHORT

    def ended(self, seconds: float) -> None:
        """A run ended, and its slot is free."""
        self.running -= 1
        self.stuck = False
        self.progress = True
        mean = self.mean
        self.mean = seconds if mean is None else mean + _MEMORY * (seconds - mean)

    def ahead(self, now: float, most: int) -> int:
        """How many jobs may be claimed ahead of the slots, at most that many."""
        if self.mean is None or self.stuck or now < self.no_ahead_until:
            return 0
        return min(most, int(self.slots * AHEAD / max(self.mean, _SHORTEST_RUN)))

    def is_free_soon(self, now: float) -> bool:
        """Whether a slot is free, or jobs are so short that one will be soon."""
        if self.unwritten >= MOST_UNWRITTEN:
            return False
        return self.slots - self.running > self.held or self.ahead(now, 1) > 0

    @property
    def held(self) -> float:
        """How many slots the jobs that are claimed and not started will take."""
        return len(self.ready) + (self.chunks.held if self.chunks else 0)

    def room(self, now: float, most: int) -> int:
        """For how many jobs there is room in a claim of at most that many."""
        if self.paused or self.unwritten >= MOST_UNWRITTEN:
            return 0
        free = self.slots - self.running
        # Two batches: one is claimed while the one before is worked on.
        ahead = self.ahead(now, 2 * most)
        if self.chunks is not None:
            return self._room_with_chunks(self.chunks.per_run, free, ahead, most)
        ready = len(self.ready)
        room = free + ahead - ready
        # Half a batch at least, unless a slot is idle: many small claims cost more than one.
        if room <= 0 or not (free > ready or room * 2 > ahead or room * 2 > most):
            return 0
        return min(room, most)

    def _room_with_chunks(self, per_run: float, free: int, ahead: int, most: int) -> int:
        """The same where *per_run* jobs of a claim fill one slot."""
        runs_ahead = min(ahead, 2 * most / per_run)
        room = min(ceil((free + runs_ahead - self.held) * per_run), most)
        idle = free > self.held
        return room if room > 0 and (idle or room * 2 > min(runs_ahead * per_run, most)) else 0

    def start_next(self, now: float) -> ClaimedJob | None:
        """Take the next job for a free slot, with its mates; None if there is no job or no slot."""
        if self.paused or self.running >= self.slots:
            return None
        job = self._take_chunk(self.chunks, now) if self.chunks is not None else None
        if job is None:
            if not self.ready:
                return None
            job = self.ready.popleft()[1]
        self.running += 1
        return job

    def _take_chunk(self, chunks: Chunks, now: float) -> ClaimedJob | None:
        due = chunks.first_due(now)
        if due is None or (self.ready and not due.comes_before(*self.ready[0])):
            return None
        return chunks.take(due.handler)

    def withdraw(self, job: ClaimedJob) -> bool:
        """Take out a job that is not to start; False if it is not here."""
        if self.chunks and self.chunks.withdraw(job):
            return True
        before = len(self.ready)
        self.ready = deque(entry for entry in self.ready if entry[1] is not job)
        return len(self.ready) < before

    def take_with_session(self) -> list[ClaimedJob]:
        """Take out the jobs whose handlers use a session."""
        back = [job for _, job in self.ready if job.handler.options.session]
        self.ready = deque(entry for entry in self.ready if not entry[1].handler.options.session)
        return back + self.chunks.take_with_session() if self.chunks else back

    def forget_ready(self) -> None:
        """Forget the jobs that have not started."""
        self.ready.clear()
        if self.chunks:
            self.chunks.take_all()

    def hand_back(
        self, now: float, hold: float, *, closed: bool, may_start: bool
    ) -> list[ClaimedJob]:
        """Take out jobs that are not to be held: all if the queue is *closed*, or paused.

        Else those that had no slot for *hold* seconds.
        """
        full = self.running >= self.slots
        closed = closed or self.paused
        if not (closed or full or not may_start):
            return []
        back: list[ClaimedJob] = []
        if self.chunks:
            back += self.chunks.take_all() if closed else self.chunks.take_overdue(now, hold)
        # A suspect job may take the worker and its other jobs down, so it is not held: any worker
        # with a free slot may have it. Suspect jobs stand in front.
        at_once = closed or (bool(self.ready) and self.ready[0][1].suspect and full)
        if self.ready and (at_once or now >= self.ready[0][0] + hold):
            keep: deque[tuple[float, ClaimedJob]] = deque()
            for since, job in self.ready:
                if closed or now >= since + hold or (job.suspect and full):
                    back.append(job)
                else:
                    keep.append((since, job))
            self.ready = keep
        if back:
            # Or a worker with a long run would keep claiming and handing back the same jobs.
            self.stuck, self.no_ahead_until = True, now + hold
            self.lanes.request_head_scan()
        return back
