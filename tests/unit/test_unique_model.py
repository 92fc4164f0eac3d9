"""A small model of unique keys of scope queued, explored exhaustively.

Three callers, each of which changes something, enqueues a job with the same key and commits or not;
and workers that claim, look, fail once and complete. Each rule that is left out must be found to
matter.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

CALLERS = 3


class Broken(AssertionError):
    """A promise does not hold."""


def hold(condition: bool, promise: str) -> None:
    if not condition:
        raise Broken(promise)


class Job(NamedTuple):
    owner: int | None  # whose transaction has inserted it, and is open
    stage: str  # queued, running, looked, done
    keyed: bool = True
    seen: frozenset[int] = frozenset()


class State(NamedTuple):
    callers: tuple[str, ...] = ("new",) * CALLERS  # new, changed, told, committed, undone
    relied_on: tuple[int | None, ...] = (None,) * CALLERS  # the job that a caller was told of
    jobs: tuple[Job, ...] = ()
    retries: int = 1

    def caller(self, number: int, stage: str, job: int | None = None) -> State:
        callers, relied_on = list(self.callers), list(self.relied_on)
        callers[number], relied_on[number] = stage, job
        return self._replace(callers=tuple(callers), relied_on=tuple(relied_on))

    def job(self, number: int, **changes: object) -> State:
        jobs = list(self.jobs)
        jobs[number] = jobs[number]._replace(**changes)  # type: ignore[arg-type]
        return self._replace(jobs=tuple(jobs))


class Model:
    """The rules, but for those that are left out."""

    def __init__(self, *without: str) -> None:
        self._without = without

    def rule(self, name: str) -> bool:
        return name not in self._without

    def steps(self, s: State) -> Iterator[State]:
        for number, stage in enumerate(s.callers):
            if stage == "new":
                yield s.caller(number, "changed")
            elif stage == "changed":
                yield from self._enqueue(s, number)
            elif stage == "told":
                yield from self._end(s, number)
        for number in range(len(s.jobs)):
            yield from self._work(s, number)

    def _enqueue(self, s: State, number: int) -> Iterator[State]:
        with_key = [n for n, job in enumerate(s.jobs) if job.keyed and job.stage != "done"]
        if not with_key:
            new = s._replace(jobs=(*s.jobs, Job(number, "queued")))
            yield new.caller(number, "told")
        elif s.jobs[with_key[0]].owner is None:
            yield s.caller(number, "told", with_key[0])
        # Else the other caller's end is waited for.

    def _end(self, s: State, number: int) -> Iterator[State]:
        yield s.caller(number, "committed")._replace(
            jobs=tuple(job._replace(owner=None) if job.owner == number else job for job in s.jobs)
        )
        # What was inserted is gone; a place in the list is kept, so that the numbers stay.
        gone = Job(None, "done", keyed=False)
        yield s.caller(number, "undone")._replace(
            jobs=tuple(gone if job.owner == number else job for job in s.jobs)
        )

    def _work(self, s: State, number: int) -> Iterator[State]:
        job = s.jobs[number]
        locked = number in s.relied_on and self.rule("who is told holds the job back")
        if job.stage == "queued" and job.owner is None and not locked:
            keyed = job.keyed and not self.rule("a claim frees the key")
            yield s.job(number, stage="running", keyed=keyed)
        elif job.stage == "running":
            committed = frozenset(n for n, stage in enumerate(s.callers) if stage == "committed")
            yield s.job(number, stage="looked", seen=committed)
        elif job.stage == "looked":
            yield s.job(number, stage="done")
            if s.retries:
                again = not self.rule("a retry does not take the key back")
                yield s._replace(retries=s.retries - 1).job(
                    number, stage="queued", keyed=again or job.keyed, seen=frozenset()
                )


def explore(model: Model) -> int:
    """Visit every state that can be reached; how many there are.

    Raises:
        Broken: In one of them a promise does not hold.
    """
    start = State()
    todo, visited = deque([start]), {start}
    while todo:
        state = todo.popleft()
        keys = sum(job.keyed and job.stage == "queued" for job in state.jobs)
        hold(keys <= 1, "no two jobs that wait have the key")
        after = list(model.steps(state))
        if not after:
            seen = frozenset[int]().union(*(job.seen for job in state.jobs))
            committed = {n for n, stage in enumerate(state.callers) if stage == "committed"}
            hold(all(job.stage == "done" for job in state.jobs), "every job ends")
            hold(committed <= seen, "what a caller has committed is seen by a run")
        for one in after:
            if one not in visited:
                visited.add(one)
                todo.append(one)
    return len(visited)


def test_every_promise_holds_in_every_state() -> None:
    assert explore(Model()) > 500


@pytest.mark.parametrize(
    ("rule", "promise"),
    [
        ("who is told holds the job back", "is seen by a run"),
        ("a claim frees the key", "is seen by a run"),
        ("a retry does not take the key back", "no two jobs"),
    ],
)
def test_each_rule_matters(rule: str, promise: str) -> None:
    with pytest.raises(Broken, match=promise):
        explore(Model(rule))
