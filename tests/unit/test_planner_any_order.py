"""The planner in any order of events: no slot is taken twice, and no job gets lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sqlalchemy_bgjob._worker.plan.outbox import LINGER
from sqlalchemy_bgjob._worker.plan.planner import Planner
from sqlalchemy_bgjob._worker.plan.steps import (
    Announce,
    Claim,
    Finished,
    HandBack,
    Settle,
    Start,
    Step,
    Wait,
)
from sqlalchemy_bgjob.settings import WorkerSettings
from support.planning import (
    NOW,
    done,
    job,
    running,
)

if TYPE_CHECKING:
    from sqlalchemy_bgjob._lifecycle.claim import ClaimedJob, Look


@dataclass
class World:
    """The table and the handlers, as the core's driver sees them."""

    due: list[str] = field(default_factory=list)
    running: list[ClaimedJob] = field(default_factory=list)
    settled: list[str] = field(default_factory=list)
    suspect: set[str] = field(default_factory=set)


class Machine(RuleBasedStateMachine):
    """A worker with two queues, whatever its handlers and its connection do."""

    def __init__(self) -> None:
        super().__init__()
        self.options = WorkerSettings(max_claim=6)
        self.slots = {"a": 1, "b": 3}
        self.core = Planner(self.slots, self.options)
        self.world = {name: World() for name in self.slots}
        self.now = NOW
        self.numbers = count()
        self.known: set[str] = set()
        self.finished = False
        self.paused: set[str] = set()

    # -- what the world does

    @precondition(lambda self: not self.finished)
    @rule(queue=st.sampled_from("ab"), number=st.integers(1, 12), suspect=st.booleans())
    def enqueue(self, queue: str, number: int, suspect: bool) -> None:
        new = [f"{queue}{next(self.numbers)}" for _ in range(number)]
        self.known |= set(new)
        self.world[queue].due += new
        if suspect:
            self.world[queue].suspect |= set(new)
        self.core.wake(queue, self.now)

    @precondition(lambda self: any(world.running for world in self.world.values()))
    @rule(data=st.data(), seconds=st.sampled_from([0.0, 0.0001, 0.01, 1.0, 100.0]))
    def a_handler_ends(self, data: st.DataObject, seconds: float) -> None:
        queue = data.draw(st.sampled_from([q for q in self.world if self.world[q].running]))
        ran = self.world[queue].running
        ended = ran.pop(data.draw(st.integers(0, len(ran) - 1)))
        self.core.finished(ended, seconds)
        self.core.settle(done(ended), self.now)
        if data.draw(st.booleans()) and (following := self.core.next_start(queue, self.now)):
            assert queue not in self.paused
            ran.append(following)
            assert len(ran) <= self.slots[queue]

    @rule(seconds=st.sampled_from([0.000_1, 0.005, 0.02, 0.5, 1.5]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(queue=st.sampled_from("ab"), slots=st.integers(1, 4), paused=st.booleans())
    def an_operator(self, queue: str, slots: int, paused: bool) -> None:
        """Fewer slots end no run."""
        self.slots[queue] = slots
        (self.paused.add if paused else self.paused.discard)(queue)
        self.core.control(self.slots, self.paused, self.now)

    @rule()
    def stop(self) -> None:
        self.core.draining = True

    @precondition(lambda self: not self.finished)
    @rule(may_start=st.booleans(), may_claim=st.booleans(), answers=st.booleans())
    def one_step(self, may_start: bool, may_claim: bool, answers: bool) -> None:
        self.take(may_start, may_claim, answers)

    @precondition(lambda self: not self.finished)
    @rule()
    def steps_until_it_waits(self) -> None:
        """With all in order a wait must come, and must be a real one."""
        for _ in range(1_000):
            following = self.take(may_start=True, may_claim=True, answers=True)
            if isinstance(following, Finished):
                return
            if isinstance(following, Wait):
                assert following.seconds > 0, "a busy loop"
                self.nothing_lingers()
                return
        raise AssertionError("1,000 steps without a wait")

    # -- what the driver does

    def take(self, may_start: bool, may_claim: bool, answers: bool) -> Step:
        following = self.core.next_step(self.now, may_start=may_start, may_claim=may_claim)
        match following:
            case Start(started):
                assert may_start
                assert started.queue not in self.paused
                assert len(self.world[started.queue].running) < self.slots[started.queue]
                self.world[started.queue].running.append(started)
            case Announce(queues):
                assert may_claim
                assert not self.paused.intersection(queues)
                self.core.announced(queues if answers else None)
            case Claim(looks):
                assert may_claim
                assert may_start
                assert not self.core.draining
                self.claim(looks, answers)
            case Settle(items):
                assert may_claim
                for item in items:
                    if answers:
                        self.world[item.job.queue].settled.append(item.job.id)
                    else:
                        self.core.settle(item, 0.0)
            case HandBack(back):
                assert may_claim
                for one in back:
                    self.world[one.queue].due.append(one.id)
            case Wait(seconds):
                assert 0 <= seconds <= self.options.poll_interval
            case Finished():
                assert self.core.draining
                assert not any(world.running for world in self.world.values())
                self.finished = True
        return following

    def claim(self, looks: tuple[Look, ...], answers: bool) -> None:
        assert len({look.queue for look in looks}) == len(looks)
        assert not self.paused.intersection(look.queue for look in looks)
        for queue, limit, onward, *_ in looks:
            assert 1 <= limit <= self.options.max_claim
            self.core.claim_sent(queue, self.now, from_head=onward is None)
        assert sum(look.limit for look in looks) <= self.options.max_claim
        for queue, limit, onward, *_ in looks:
            if answers:
                self.answer(queue, limit, from_head=onward is None)
            else:
                self.core.wake(queue, self.now)

    def answer(self, queue: str, limit: int, *, from_head: bool) -> None:
        world = self.world[queue]
        got, world.due = world.due[:limit], world.due[limit:]
        claimed = [job(id, queue=queue, suspect=id in world.suspect) for id in got]
        self.core.claimed(queue, claimed, self.now)
        if from_head:
            self.core.head_scanned(queue, [0], 0.0, self.now)
        self.core.polled(queue, limit, len(got), None, self.now, listening=True)

    # -- what must hold

    @invariant()
    def each_slot_is_known(self) -> None:
        assert running(self.core) == sum(len(world.running) for world in self.world.values())

    @invariant()
    def each_job_is_in_one_place(self) -> None:
        places: list[str] = []
        for world in self.world.values():
            places += world.due + world.settled + [one.id for one in world.running]
        places += [one.id for one in self.core.ready()]
        places += [item.job.id for item in self.core.unsettled()]
        assert sorted(places) == sorted(self.known)

    def nothing_lingers(self) -> None:
        """At a wait: nothing is due, no slot is idle beside a job, nothing suspect is held."""
        ready = Counter(one.queue for one in self.core.ready())
        for queue, slots in self.slots.items():
            if len(self.world[queue].running) < slots:
                assert not ready[queue]
        assert not any(one.suspect for one in self.core.ready())
        self.now += LINGER
        ends = (Wait, Finished)
        while not isinstance(self.take(may_start=True, may_claim=True, answers=True), ends):
            pass
        assert not self.core.unsettled()

    def teardown(self) -> None:
        """Whatever happened, a stop with time to spare ends."""
        self.core.draining = True
        for _ in range(1_000):
            following = self.take(may_start=True, may_claim=True, answers=True)
            if isinstance(following, Finished):
                break
            if isinstance(following, Wait):
                self.now += max(following.seconds, 0.001)
                for world in self.world.values():
                    for ended in world.running:
                        self.core.finished(ended, 0.01)
                        self.core.settle(done(ended), self.now)
                    world.running = []
        assert self.finished
        self.each_job_is_in_one_place()
        assert not self.core.ready()
        assert not self.core.unsettled()


TestAnyOrder = Machine.TestCase
TestAnyOrder.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
