"""Which step a worker takes next. Pure: no I/O, no clock, no threads; the time is an argument.

A queue has *slots* (its concurrency), jobs that run in them, and jobs that are *ready*: claimed and
not started. How many jobs are claimed ahead of the slots follows from how long the handlers take:
as many as would be started within 50 ms, so that short jobs come in large batches and long jobs
wait in the table, where other workers can take them.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from ..._lifecycle.claim import ClaimedJob, Look, Position
from ..._lifecycle.settle import Pending
from ...settings import WorkerSettings
from .chunks import Chunks
from .due import DueQueues
from .lanes import Lanes
from .outbox import LINGER, Outbox
from .polling import Polling
from .queue import Queue
from .steps import Announce, Claim, Finished, HandBack, PassOn, Settle, Start, Step, Wait
from .telling import Telling

SETTLED_IN: Final = 0.100
"""Seconds after which a settlement comes before anything else."""
PATIENCE: Final = 0.2
"""Seconds by which a regular head scan is late if a wake-up asked for the claim."""
TOGETHER: Final = 0.2
"""Seconds by which a poll or a head scan comes early to share a statement; a fifth of the poll
interval if that is shorter."""
AGAIN: Final = 0.1
"""Seconds between looks of a worker that may not start or claim whether it may again."""


class Planner:
    """The state of a worker's queues, and the rule that picks the next step."""

    def __init__(
        self, queues: Mapping[str, int], settings: WorkerSettings, by_time: Collection[str] = ()
    ) -> None:
        self._queues = {
            name: Queue(
                name, slots, Polling(settings.poll_interval), lanes=Lanes(by_time=name in by_time)
            )
            for name, slots in queues.items()
        }
        self._settings, self._most = settings, settings.max_claim
        self._outbox = Outbox()
        self._due = DueQueues(self._queues.values())
        self._holding: dict[str, Queue] = {}  # those with jobs that are claimed and not started
        self._running = 0  # slots that are taken, of all queues
        self._telling = Telling()
        self.listening = False
        """Whether notifications arrive."""
        self.draining = False

    # ---- what happened ----------------------------------------------------------------------

    def claimed(self, queue: str, jobs: Iterable[ClaimedJob], now: float) -> None:
        """Take in the jobs of a claim; suspect ones go first."""
        q = self._queues[queue]
        jobs = list(jobs)
        for job in reversed([job for job in jobs if job.suspect]):
            q.ready.appendleft((now, job))
        q.ready.extend([(now, job) for job in jobs if not (job.suspect or job.shares)])
        sharing = [job for job in jobs if job.shares]
        if sharing and q.chunks is None:
            q.chunks = Chunks(self._settings.heartbeat_interval)
        if q.chunks is not None:
            q.chunks.claimed(sharing, len(jobs), now)
        self._changed_hold(q)

    def is_scanned_next(self, queue: str, now: float) -> bool:
        """Whether the head of a queue is looked at next, if a claim that reads on finds nothing."""
        return self._queues[queue].lanes.is_scanned_next(now)

    def head_scanned(
        self, queue: str, priorities: Sequence[int], seconds: float, now: float
    ) -> None:
        """A claim from the head took *seconds*, and found these lanes; :meth:`polled` follows."""
        self._queues[queue].lanes.head_scanned(priorities, seconds, now, told=self.listening)

    def polled(
        self,
        queue: str,
        limit: int,
        found: int,
        due_in: float | None,
        now: float,
        *,
        listening: bool,
        last: Position | None = None,
    ) -> None:
        """A claim has ended: plan the next one.

        Args:
            queue: The queue that was claimed from.
            limit: How many jobs the claim could take.
            found: How many it took.
            due_in: Seconds until the next job is due, or infinity; None if that was not asked.
            now: The monotonic time.
            listening: Whether notifications arrive.
            last: The last job that it took; None if it did not take them in order of the lanes.
        """
        q = self._queues[queue]
        q.refused_together = False
        self.listening = listening
        if found < limit:
            q.lanes.read(None, now, found=found > 0)
        elif last is not None:
            q.lanes.read(last, now, found=True)
        else:
            q.lanes.forget()
        q.polling.polled(
            found,
            now,
            limit=limit,
            due_in=due_in,
            scan_in=q.lanes.head_scan_in(now),
            listening=listening,
        )
        self._changed(q)

    def wake(self, queue: str | None, now: float, *, new: bool = False, others: int = 0) -> None:
        """A notification: look at this queue, or at all of them, at once.

        With *new* it tells of new jobs; otherwise of any, including jobs that were given back.
        *others* is how many more workers wait for it that were not woken.
        """
        for q in self._of(queue):
            q.polling.wake(now, others=others)
            if new:
                q.lanes.notified()
            else:
                q.lanes.request_head_scan()
            self._changed(q)

    def _of(self, queue: str | None) -> Iterable[Queue]:
        """The queue of that name if there is one; without a name all of them."""
        if queue is None:
            return self._queues.values()
        return (self._queues[queue],) if queue in self._queues else ()

    def claim_alone(self, queue: str, now: float) -> None:
        """The database refused a claim of several queues: claim from this one alone, soon."""
        self.wake(queue, now)
        self._queues[queue].refused_together = True

    def refused(self, queue: str, until: float, now: float) -> None:
        """The database refused a claim, and no single row is to blame: leave the queue alone.

        The next claim still looks for the jobs that this one was to find.
        """
        self.wake(queue, now)
        self._queues[queue].polling.refused(until)
        self._changed(self._queues[queue])

    def expect(self, queue: str, at: float) -> None:
        """A job will be due at that time: look at the queue then, if not before."""
        for q in self._of(queue):
            q.polling.expect(at)
            self._changed(q)

    def claim_sent(self, queue: str, now: float, *, from_head: bool = False) -> None:
        """A claim was sent: a notification from now on asks for another one."""
        q = self._queues[queue]
        if from_head:
            q.lanes.head_scan_sent()
        if q.polling.sent(now) and not from_head:
            q.lanes.notified()

    def passed_on(self, queues: Iterable[str]) -> None:
        """Another worker is woken for each of these queues."""
        for q in (self._queues[queue] for queue in queues):
            q.polling.passed_on()
            self._changed(q)

    def announced(self, queues: tuple[str, ...] | None) -> None:
        """Producers were told where this worker waits; None while it is unknown what they see."""
        known = self._telling.announced(queues)
        for q in self._queues.values():
            q.polling.announced(q.name in known)
            self._changed(q)

    def control(self, slots: Mapping[str, int], paused: Collection[str], now: float) -> None:
        """Operators have set the slots of each queue, and which of them are paused."""
        for q in self._queues.values():
            if q.control(slots[q.name], paused=q.name in paused):
                self.wake(q.name, now)
            self._changed(q)

    def finished(self, job: ClaimedJob, seconds: float) -> None:
        """A run ended and its slot is free."""
        self._queues[job.queue].ended(seconds)
        self._running -= 1

    def settle(self, item: Pending, now: float) -> None:
        """Write a settlement soon."""
        self._outbox.add(item, now)

    def settle_later(self, item: Pending, at: float) -> None:
        """Write a settlement, not before the given time; for the first time, or after failures."""
        self._outbox.add_later(item, at)
        self._queues[item.job.queue].unwritten += item.tries == 1

    def written(self, item: Pending) -> None:
        """A settlement that had failed before was written, or its lease is lost."""
        self._queues[item.job.queue].unwritten -= 1

    def not_started(self, job: ClaimedJob) -> None:
        """A job could not be started: its slot is free, and the mean run time unchanged."""
        self._queues[job.queue].running -= 1
        self._running -= 1

    def withdraw(self, job: ClaimedJob) -> bool:
        """Take out a ready job that is not to start; False if it is not ready any more."""
        q = self._queues[job.queue]
        found = q.withdraw(job)
        self._changed_hold(q)
        return found

    def lose_slot(self, queue: str) -> None:
        """A run was given up, and goes on: its slot serves no other."""
        self._queues[queue].lose_slot()
        self._running -= 1

    def regain_slot(self, queue: str) -> None:
        """A run that was given up has ended."""
        if (q := self._queues.get(queue)) is not None:
            q.regain_slot()

    def put_off(self, job: ClaimedJob, until: float, now: float) -> list[ClaimedJob]:
        """A run found no connection for its session: claim nothing from its queue until then.

        Returns the ready jobs that may want one too, to be handed back.
        """
        q = self._queues[job.queue]
        self.not_started(job)
        self._pause(job.queue, until, now)
        q.stuck = True  # claim no more than may be started
        back = q.take_with_session()
        self._changed_hold(q)
        return back

    def go_on(self, queue: str, now: float) -> None:
        """A session has found a connection: claim again, unless claims are refused."""
        self._pause(queue, now, now)

    def _pause(self, queue: str, until: float, now: float) -> None:
        self.wake(queue, now)
        self._queues[queue].polling.pause(until)
        self._changed(self._queues[queue])

    def settled(self, job: ClaimedJob) -> None:
        """A job was settled by its own run: drop its settlements that wait to be written."""
        for item in self._outbox.items():
            if item.job is job and item.tries:
                self.written(item)
        self._outbox.drop(job)

    def forget_ready(self) -> None:
        """Forget all ready jobs: their leases were lost."""
        for q in self._holding.values():
            q.forget_ready()
        self._holding.clear()

    def _changed(self, q: Queue) -> None:
        """Whatever depends on when a queue is polled, or who is told of it, follows."""
        self._due.changed(q)
        self._telling.changed(q)

    def _changed_hold(self, q: Queue) -> None:
        if q.ready or q.chunks:
            self._holding[q.name] = q
        else:
            self._holding.pop(q.name, None)

    # ---- what follows -----------------------------------------------------------------------

    def next_start(self, queue: str, now: float) -> ClaimedJob | None:
        """The next job for a free slot, if there are both; it counts as running from now on.

        Its mates start with it.
        """
        if self.draining:
            return None
        q = self._queues[queue]
        job = q.start_next(now)
        if job is not None:
            self._running += 1
            self._changed_hold(q)
        return job

    def next_step(self, now: float, *, may_start: bool, may_claim: bool) -> Step:
        """The next step at the monotonic time *now*.

        Args:
            now: Seconds of a monotonic clock.
            may_start: Whether the worker has beaten lately enough to start a job.
            may_claim: Whether the worker is registered and its connection is up.
        """
        if may_claim and (back := self._to_hand_back(now, may_start=may_start)):
            return HandBack(tuple(back))
        # However much there is to claim or to start, ended jobs must be settled soon.
        if may_claim and (items := self._to_settle(now, self._most, SETTLED_IN)):
            return Settle(items)
        claims = may_claim and may_start and not self.draining
        if claims and (claim := self._to_claim(now, early=True)):
            return claim
        if may_start:
            for q in self._holding.values():
                job = self.next_start(q.name, now)
                if job is not None:
                    q.progress = False
                    return Start(job)
        if may_claim and (step := self._to_tell(now, may_start=may_start)):
            return step
        # Before small batches of settlements: while one is written, ready jobs may run out.
        if claims and (claim := self._to_claim(now)):
            return claim
        if may_claim and (items := self._to_settle(now, self._most / 2, LINGER)):
            return Settle(items)
        if self.draining and not self.busy:
            return Finished()
        if not (may_start and may_claim):
            return Wait(AGAIN)  # the heart or the connection wakes the worker when it is up
        return Wait(self._until_next(now))

    @property
    def busy(self) -> bool:
        """Whether anything runs, is ready, or waits to be settled."""
        return bool(self._outbox) or self._at_work

    @property
    def _at_work(self) -> bool:
        return self._running > 0 or bool(self._holding)

    def unsettled(self) -> list[Pending]:
        """What waits to be settled."""
        return self._outbox.items()

    def ready(self) -> list[ClaimedJob]:
        """What is claimed and not started."""
        ready = [job for q in self._holding.values() for _, job in q.ready]
        return ready + [job for q in self._holding.values() if q.chunks for job in q.chunks.jobs()]

    def needs_attention(self, queue: str, now: float) -> bool:
        """Whether a run that ended in this queue leaves something for the loop to do now."""
        waiting = self._outbox.waiting
        if waiting == 1 or waiting * 2 >= self._most:
            return True
        q = self._queues[queue]
        return not q.ready or (q.polling.is_due(now) and q.room(now, self._most) > 0)

    def _to_tell(self, now: float, *, may_start: bool) -> PassOn | Announce | None:
        """Wake others in this worker's place, or tell producers where this one waits."""
        step = self._telling.to_pass_on(now, looks=may_start and not self.draining)
        if self.draining and not self.busy:
            return step  # its row goes away, and with it what it waits for
        if not (may_start or self.draining):
            return step
        # A draining worker takes nothing: a job must not wake it instead of another. Nor does
        # any worker of a paused queue.
        waits = self.listening and not self.draining
        return self._telling.to_announce(waits=waits) or step

    def _to_claim(self, now: float, *, early: bool = False) -> Claim | None:
        """What to claim; *early*, that is before starts, only from queues that move on.

        A regular poll takes along the queues that are due soon, so that many idle queues cost one
        statement.
        """
        most = self._most
        due = [
            (q, room)
            for q in self._due.at(now)
            if (not early or q.moves_on) and (room := q.room(now, most))
        ]
        if not due:
            return None
        alone = due[0][0].refused_together
        taken = due[:1] if alone else [(q, n) for q, n in due if not q.refused_together][:most]
        woken = any(q.polling.woken for q, _ in taken)
        looks = [self._look(q, min(room, most // len(taken)), now) for q, room in taken]
        if not (early or woken or alone):
            looks += self._looks_soon(now, most - sum(look.limit for look in looks))
        self._due.give_way(q for q, _ in taken)
        return Claim(tuple(looks))

    def _looks_soon(self, now: float, most: int) -> list[Look]:
        """Looks for at most that many jobs at queues whose regular polls are due soon."""
        ahead = min(TOGETHER, self._settings.poll_interval / 5)
        soon = [
            (q, room)
            for q in self._queues.values()
            if not q.refused_together
            and q.polling.is_due_within(ahead, now)
            and (room := q.room(now, self._most))
        ][:most]
        return [self._look(q, min(room, most // len(soon)), now) for q, room in soon]

    def _look(self, q: Queue, limit: int, now: float) -> Look:
        q.progress = False
        # A head scan that is due must not delay a job that was just committed.
        ahead = -PATIENCE if q.polling.woken else TOGETHER
        onward = q.lanes.onward(now, ahead, contended=q.polling.contended)
        asks_due = onward is not None and not q.polling.is_likely(now)
        return Look(q.name, limit, onward, asks_due, q.lanes.by_time)

    def _to_settle(self, now: float, batch: float, linger: float) -> tuple[Pending, ...]:
        """What to settle: at *batch* items, after *linger* seconds, or when all else is idle."""
        if not self._outbox.bring_due(now):
            return ()
        at_once = self.draining or self._outbox.is_due(now, batch, linger)
        return self._outbox.take(now, self._most * 2) if at_once or not self._at_work else ()

    def _to_hand_back(self, now: float, *, may_start: bool) -> list[ClaimedJob]:
        hold = self._settings.hold_timeout
        back: list[ClaimedJob] = []
        for q in [*self._holding.values()]:
            back += q.hand_back(now, hold, closed=self.draining, may_start=may_start)
            self._changed_hold(q)
        return back

    def _until_next(self, now: float) -> float:
        times = [now + self._settings.poll_interval, self._outbox.due_at(now)]
        for q in self._holding.values():
            full = q.running >= q.slots
            if q.ready and full:
                times.append(q.ready[0][0] + self._settings.hold_timeout)
            if q.chunks:
                times.append(q.chunks.due_at() + (self._settings.hold_timeout if full else 0.0))
        if not self.draining:
            times += [now for q in self._due.at(now) if q.room(now, self._most)]
            times.append(self._due.next_at())
        return max(min(times) - now, 0.0)
