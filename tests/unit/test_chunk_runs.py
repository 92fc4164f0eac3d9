"""What a run comes to for each of its jobs, of which a chunk has several. No database."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import pytest
from sqlalchemy import MetaData

from sqlalchemy_bgjob import BGJob, Complete, Context, Retry
from sqlalchemy_bgjob._handlers.outcomes import CANCELLED, Cancelled, Kind
from sqlalchemy_bgjob._lifecycle.settle import Pending
from sqlalchemy_bgjob._worker.attempt import Attempt, Environment
from sqlalchemy_bgjob._worker.call import begin, cancelled, conclude
from sqlalchemy_bgjob._worker.chunk import ChunkRun
from sqlalchemy_bgjob._worker.hands import Hands
from sqlalchemy_bgjob.settings import WorkerSettings
from support.planning import job

jobs = BGJob(MetaData())


@jobs.handler("t", chunk=3)
def handler(ctx: Context[Any], args: list[int]) -> None: ...


def chunk(*args: str) -> ChunkRun:
    """Of jobs a, b, c with these args."""
    first, *mates = (
        replace(job(name), arg=arg.encode(), handler=handler)
        for name, arg in zip("abc", args, strict=False)
    )
    return ChunkRun(replace(first, mates=tuple(mates)), handler)


def ask(run: ChunkRun, *ids: str) -> None:
    for one in run.jobs:
        if one.id in ids:
            run.ask(one)


def kinds(run: ChunkRun, returned: object) -> dict[str, tuple[str, bool]]:
    """How each job ends, and whether the writes of the call are kept for that."""
    return {
        end.job.id: (end.settlement.kind.value, end.keeps_writes)
        for end in conclude(run, returned, None)
    }


@pytest.mark.parametrize("returned", [None, {}, {"a": Retry(60)}, {"a": Retry(60), "b": None}])
def test_nothing_is_kept_of_a_call_whose_jobs_are_all_cancelled(returned: object) -> None:
    run = chunk("1", "2")
    run.args()
    ask(run, "a", "b")

    assert run.is_given_up(returned)
    assert kinds(run, returned) == dict.fromkeys("ab", ("cancelled", False))


def test_what_is_complete_keeps_what_was_written() -> None:
    run = chunk("1", "2")
    run.args()
    ask(run, "a", "b")
    returned = {"a": Complete()}

    assert not run.is_given_up(returned)
    assert kinds(run, returned) == {"a": ("completed", True), "b": ("cancelled", True)}


def test_the_others_are_all_that_the_call_is_for() -> None:
    """Beside a job whose arg can't be decoded, and that nobody cancels."""
    run = chunk("1", "two", "3")
    assert run.args() == [1, 3]
    ask(run, "a")
    assert run.asked_at is None
    ask(run, "c")
    assert run.asked_at is not None

    ends = {end.job.id: end.settlement.kind for end in cancelled(run)}
    assert ends == {"a": Kind.CANCELLED, "b": Kind.DEAD, "c": Kind.CANCELLED}
    assert kinds(run, None) == {
        "a": ("cancelled", False),
        "b": ("dead", False),
        "c": ("cancelled", False),
    }


def test_a_bad_arg_of_a_cancelled_job_is_no_failure() -> None:
    run = chunk("1", "two")
    run.args()
    ask(run, "b")

    assert kinds(run, None) == {"a": ("completed", True), "b": ("cancelled", False)}


def test_a_call_for_nothing_but_cancelled_jobs_is_left_out() -> None:
    """They were cancelled before the worker knew which args can be decoded."""
    run = chunk("1", "two", "3")
    ask(run, "a", "c")
    assert run.asked_at is None

    with pytest.raises(Cancelled):
        begin(run, lambda: None)

    assert run.is_given_up(Cancelled())


def test_a_flush_without_a_connection_puts_off_those_it_was_for() -> None:
    """A job whose arg can't be decoded is dead all the same, and has one end."""
    run = chunk("1", "two")
    run.args()
    attempt = Attempt(Environment(*[MagicMock()] * 5), run)
    lacks = TimeoutError("no connection")
    attempt._unit = MagicMock(unconnected=None)

    def commit(*_: object, **__: object) -> None:
        attempt._unit.unconnected = lacks
        raise lacks

    attempt._unit.commit = commit
    attempt._unit.unfit.return_value = None

    ends = [(item.job.id, item.settlement.kind) for item in attempt.end(None, None)]

    assert ends == [("a", Kind.RESCHEDULED), ("b", Kind.DEAD)]


# ---- what a run leaves for its record -----------------------------------------------------------


def test_an_interrupted_run_leaves_when_it_began() -> None:
    hands = Hands(MagicMock(), MagicMock(), {"q": 1}, WorkerSettings())
    hands.planner = MagicMock()
    run = chunk("1", "2")
    run.begin()
    run.started_at -= 5
    ask(run, "a")

    items = hands.interrupt(run)

    assert [item.settlement.kind for item in items] == [Kind.CANCELLED, Kind.HANDED_BACK]
    assert all(5 <= item.seconds < 3600 for item in items)


def test_a_run_that_never_began_has_no_time() -> None:
    run = chunk("1")
    items = [Pending(run.job, CANCELLED)]

    run.leave(items, time.monotonic())

    assert items[0].seconds == 0
