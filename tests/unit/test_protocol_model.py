"""A small model of claim, heartbeat, rescue and settlement, explored exhaustively.

One job that is enqueued up to twice under the same id, two workers, and up to two faults: a
worker that falls silent, one that crashes, an answer that is lost. What the model says is safe, the
tests of the code then look for in the code; each rule that is left out must be found to matter.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

LIVES, FAULTS, RETRIES = 2, 2, 1
Holder = tuple[int, int]  # a worker, and its how manieth registration


class Row(NamedTuple):
    lease: int
    holder: Holder | None


class Run(NamedTuple):
    """A claim as its worker knows it."""

    holder: Holder
    lease: int
    life: int
    stage: str  # claimed, running, handled; or unanswered: settled, without knowing it


class Worker(NamedTuple):
    registration: int = 0
    alive: bool = True
    beats: bool = True  # lately, by the server's clock
    lost: bool = False  # its row says so
    unsure: bool = False  # a claim was not answered
    runs: frozenset[Run] = frozenset()


class State(NamedTuple):
    row: Row | None = None
    life: int = -1
    top: int = 0  # above all leases so far, as the server's clock is
    effects: tuple[int, ...] = (0,) * LIVES
    workers: tuple[Worker, Worker] = (Worker(), Worker())
    faults: int = FAULTS
    retries: int = RETRIES

    def put(self, number: int, **changes: object) -> State:
        workers = list(self.workers)
        workers[number] = workers[number]._replace(**changes)  # type: ignore[arg-type]
        return self._replace(workers=(workers[0], workers[1]))

    def affect(self, life: int) -> State:
        counts = list(self.effects)
        counts[life] += 1
        return self._replace(effects=tuple(counts))


class Broken(AssertionError):
    """A promise does not hold."""


def hold(condition: bool, promise: str) -> None:
    if not condition:
        raise Broken(promise)


Step = tuple[State, bool]  # and whether a fault led there


class Model:
    """The rules, but for those that are left out."""

    def __init__(self, *without: str) -> None:
        self._without = without

    def rule(self, name: str) -> bool:
        return name not in self._without

    def steps(self, s: State) -> Iterator[Step]:
        if s.row is None and s.life + 1 < LIVES:
            lease = s.top + 1 if self.rule("a lease never recurs") else 0
            yield s._replace(row=Row(lease, None), life=s.life + 1, top=s.top + 1), False
        for number, worker in enumerate(s.workers):
            yield from self._beating(s, number, worker)
            yield from self._rescue(s, number, worker)
            if worker.alive:
                yield from self._claiming(s, number, worker)
                for run in worker.runs:
                    yield from self._running(s, number, worker, run)

    def _beating(self, s: State, number: int, worker: Worker) -> Iterator[Step]:
        if worker.beats and not worker.alive:
            yield s.put(number, beats=False), False
        if s.faults and worker.alive:
            less = s._replace(faults=s.faults - 1)
            if worker.beats:
                yield less.put(number, beats=False), True
            if number == 0:
                yield less.put(number, alive=False, runs=frozenset()), True
        if not worker.alive:
            return
        if not worker.lost:
            yield s.put(number, beats=True), False
            return
        runs = worker.runs
        if self.rule("forget what is ready when lost"):
            runs = frozenset(run for run in runs if run.stage != "claimed")
        again = worker.registration + 1
        yield s.put(number, registration=again, lost=False, beats=True, runs=runs), False

    def _claiming(self, s: State, number: int, worker: Worker) -> Iterator[Step]:
        me = number, worker.registration
        if s.row is not None and s.row.holder is None and len(worker.runs) < 2:
            lease = s.row.lease + 1
            claimed = s._replace(row=Row(lease, me), top=max(s.top, lease))
            run = Run(me, lease, s.life, "claimed")
            yield claimed.put(number, runs=worker.runs | {run}), False
            if s.faults:
                yield claimed._replace(faults=s.faults - 1).put(number, unsure=True), True
        if worker.unsure and self.rule("hand back what was claimed unanswered"):
            known = {(run.holder, run.lease) for run in worker.runs}
            unknown = s.row is not None and s.row.holder is not None and s.row.holder[0] == number
            if s.row is not None and unknown and (s.row.holder, s.row.lease) not in known:
                s = s._replace(row=Row(s.row.lease + 1, None), top=max(s.top, s.row.lease + 1))
            yield s.put(number, unsure=False), False

    def _running(self, s: State, number: int, worker: Worker, run: Run) -> Iterator[Step]:
        others = worker.runs - {run}

        def stage(name: str) -> frozenset[Run]:
            return others | {run._replace(stage=name)}

        if run.stage == "claimed":
            if worker.beats or not self.rule("start only after a fresh beat"):
                hold(s.row == Row(run.lease, run.holder), "a job is started by who holds it")
                yield s.put(number, runs=stage("running")), False
        elif run.stage == "running":
            handled = s.put(number, runs=stage("handled"))
            in_one = self.rule("effects commit with the settlement")
            yield handled if in_one else handled.affect(run.life), False
        else:
            yield from self._settling(s, number, run, others)

    def _settling(self, s: State, number: int, run: Run, others: frozenset[Run]) -> Iterator[Step]:
        dropped = s.put(number, runs=others)
        row = s.row
        lease = not self.rule("the lease is in the fence") or (row and row.lease == run.lease)
        holder = not self.rule("the holder is in the fence") or (row and row.holder == run.holder)
        if row is None or not lease or not holder:
            yield dropped, False
            return
        hold(row == Row(run.lease, run.holder), "a settlement changes what its own claim left")
        if s.retries and run.stage == "handled":
            retried = s._replace(row=Row(row.lease, None), retries=s.retries - 1)
            yield retried.put(number, runs=others), False
        done = s._replace(row=None)
        if self.rule("effects commit with the settlement"):
            done = done.affect(run.life)
        yield done.put(number, runs=others), False
        if s.faults and run.stage == "handled":
            unanswered = others | {run._replace(stage="unanswered")}
            yield done._replace(faults=s.faults - 1).put(number, runs=unanswered), True

    def _rescue(self, s: State, number: int, worker: Worker) -> Iterator[Step]:
        judge = s.workers[1 - number]
        if not judge.alive or not judge.beats or judge.lost:
            return
        silent = not worker.beats or not self.rule("only the silent are judged")
        if silent and not worker.lost:
            hold(not worker.beats, "nothing is taken from a worker that beats")
            marked = s.put(number, lost=True) if self.rule("the lost are marked") else s
            if s.row is not None and s.row.holder == (number, worker.registration):
                yield marked._replace(row=Row(s.row.lease, None)), False
            else:
                yield marked, False
        holder = s.row.holder if s.row is not None else None
        if s.row is not None and holder is not None and self.rule("orphans are looked for"):
            owner = s.workers[holder[0]]
            if owner.lost or owner.registration != holder[1]:
                yield s._replace(row=Row(s.row.lease, None)), False


def explore(model: Model, start: State) -> int:
    """Visit every state that can be reached from *start*; how many there are.

    Raises:
        Broken: In one of them a promise does not hold, or from one of them the jobs can't end.
    """
    before: dict[State, list[State]] = defaultdict(list)
    todo, seen = deque([start]), {start}
    while todo:  # breadth first, so that a broken promise is found by its shortest way
        state = todo.popleft()
        hold(max(state.effects) <= 1, "a job has its effects at most once")
        ended = state.effects[: state.life + (state.row is None)]
        hold(all(ended), "a job that is gone has had its effects")
        for after, fault in model.steps(state):
            if not fault:
                before[after].append(state)
            if after not in seen:
                seen.add(after)
                todo.append(after)
    todo = deque(state for state in seen if sum(state.effects) == LIVES and state.row is None)
    can_end = set(todo)
    while todo:
        for state in before[todo.pop()]:
            if state not in can_end:
                can_end.add(state)
                todo.append(state)
    hold(can_end == seen, "whatever has happened, every job ends if nothing else does")
    return len(seen)


def test_every_promise_holds_in_every_state() -> None:
    assert explore(Model(), State()) > 10_000


@pytest.mark.parametrize(
    ("rule", "promise"),
    [
        ("a lease never recurs", "a job has its effects at most once"),
        ("the lease is in the fence", "a settlement changes"),
        ("the holder is in the fence", "a settlement changes"),
        ("effects commit with the settlement", "at most once"),
        ("start only after a fresh beat", "started by who holds it"),
        ("forget what is ready when lost", "started by who holds it"),
        ("the lost are marked", "started by who holds it"),
        ("only the silent are judged", "taken from a worker that beats"),
        ("hand back what was claimed unanswered", "every job ends"),
        ("orphans are looked for", "every job ends"),
    ],
)
def test_each_rule_matters(rule: str, promise: str | None) -> None:
    """One fault is enough to see it."""
    with pytest.raises(Broken, match=promise):
        explore(Model(rule), State(faults=1))
