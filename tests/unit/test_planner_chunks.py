"""Jobs that are to share calls: how they wait, and when which of them start. No database."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob._worker.plan.chunks import Chunks
from sqlalchemy_bgjob._worker.plan.steps import Claim, HandBack, Start, Wait
from support.planning import (
    MOMENT,
    NOW,
    caught_up,
    claim_all,
    core,
    done,
    job,
    jobs,
    running,
    start_all,
    step,
)
from support.tables import new_queue

if TYPE_CHECKING:
    from sqlalchemy_bgjob import JobType
    from sqlalchemy_bgjob._lifecycle.claim import ClaimedJob


def handler(chunk: int = 3, wait: float = 1.0, **options: Any) -> JobType[Any]:
    return new_queue().handler("t", chunk=chunk, wait=wait, **options)(lambda ctx, args: None)


def sharing(number: int, of: JobType[Any], first: int = 0) -> list[ClaimedJob]:
    """Jobs that may share a call of a handler."""
    return [
        replace(job(f"chunk-{n}"), handler=of, shares=True) for n in range(first, first + number)
    ]


def ids(lead: ClaimedJob | None) -> list[str]:
    assert lead is not None
    return [lead.id, *(mate.id for mate in lead.mates)]


def limit(planner: Any, now: float = NOW) -> int:
    found = step(planner, now)
    assert isinstance(found, Claim)
    return found.looks[0].limit


def test_a_full_chunk_starts_in_one_slot() -> None:
    two = core(2)
    claim_all(two, sharing(7, handler()))

    first, second = start_all(two)

    assert ids(first) == ["chunk-0", "chunk-1", "chunk-2"]
    assert ids(second) == ["chunk-3", "chunk-4", "chunk-5"]
    assert running(two) == 2
    assert [one.id for one in two.ready()] == ["chunk-6"]


def test_the_rest_starts_once_its_first_job_has_waited() -> None:
    three = core(3)
    given = sharing(2, handler(wait=0.5))
    claim_all(three, given[:1])
    claim_all(three, given[1:], NOW + 0.4)
    caught_up(three, now=NOW + 0.4)

    waiting = step(three, NOW + 0.4)
    assert isinstance(waiting, Wait)
    assert waiting.seconds == pytest.approx(0.1)
    (lead,) = start_all(three, NOW + 0.5)

    assert ids(lead) == ["chunk-0", "chunk-1"]


def test_a_wait_is_never_longer_than_a_heartbeat() -> None:
    one = core(1, heartbeat_interval=2.0)
    claim_all(one, sharing(1, handler(wait=3600)))

    assert not start_all(one, NOW + 1.9)
    assert start_all(one, NOW + 2.0)


def test_without_a_wait_it_starts_with_what_there_is() -> None:
    one = core(1)
    claim_all(one, sharing(2, handler(wait=0)))

    assert [ids(lead) for lead in start_all(one)] == [["chunk-0", "chunk-1"]]


def test_handlers_do_not_share_calls_with_each_other() -> None:
    two = core(2)
    claim_all(two, [*sharing(1, handler(wait=0)), *sharing(1, handler(wait=0), 1)])

    assert [ids(lead) for lead in start_all(two)] == [["chunk-0"], ["chunk-1"]]


def test_jobs_that_wait_take_no_slot() -> None:
    """A single job of the queue starts at once, and is claimed as if they were not there."""
    one = core(1)
    claim_all(one, sharing(1, handler()))
    claim_all(one, jobs(1))

    assert [lead.id for lead in start_all(one)] == ["job-0"]


def test_what_was_claimed_first_starts_first() -> None:
    """Within a claim by the order of the queue."""
    one = core(1)
    early, late = sharing(1, handler(wait=0)), jobs(1)
    late[0].next_run_at = MOMENT + timedelta(seconds=1)
    claim_all(one, [*late, *early])
    (started,) = start_all(one)
    one.finished(started, 1.0)
    assert started is early[0]

    claim_all(one, sharing(1, handler(wait=0), 1), NOW + 0.1)
    assert [lead.id for lead in start_all(one, NOW + 0.1)] == ["job-0"]


def test_a_suspect_job_comes_before_chunks() -> None:
    one = core(1)
    claim_all(one, [*sharing(3, handler()), *jobs(1, suspect=True)])

    assert [lead.id for lead in start_all(one)] == ["job-0"]


def test_a_claim_fills_chunks_instead_of_slots() -> None:
    """Once such jobs were seen; those that wait for others take no slot yet."""
    two = core(2, max_claim=1_000)
    assert limit(two) == 2
    claim_all(two, sharing(2, handler(chunk=100)))

    assert limit(two) == 200


def test_jobs_that_wait_for_others_hold_up_no_claim() -> None:
    """Of two types in one slot, a job each: the others of both must be found."""
    one = core(1, max_claim=1_000)
    claim_all(one, [*sharing(1, handler(chunk=2)), *sharing(1, handler(chunk=2))])

    assert limit(one) > 0


def test_claims_of_few_such_jobs_stay_small() -> None:
    """So that the other jobs of the queue find free slots, here or elsewhere."""
    ten = core(10)
    claim_all(ten, [*sharing(1, handler(chunk=100)), *jobs(9)])

    assert len(start_all(ten)) == 9
    assert limit(ten, NOW + 0.01) <= 2


def test_a_chunk_without_a_slot_goes_back_after_a_while() -> None:
    one = core(1, hold_timeout=1.0)
    claim_all(one, jobs(1))
    start_all(one)
    claim_all(one, sharing(2, handler(wait=0.5)))

    assert not isinstance(step(one, NOW + 1.4), HandBack)
    back = step(one, NOW + 1.5)

    assert isinstance(back, HandBack)
    assert len(back.jobs) == 2
    assert not one.ready()


@pytest.mark.parametrize("closed", ["drain", "pause"])
def test_nothing_waits_in_a_queue_that_is_closed(closed: str) -> None:
    one = core(1)
    claim_all(one, sharing(2, handler()))
    if closed == "drain":
        one.draining = True
    else:
        one.control({"q": 1}, {"q"}, NOW)

    back = step(one)

    assert isinstance(back, HandBack)
    assert len(back.jobs) == 2
    assert one.next_start("q", NOW + 60) is None


def test_a_worker_with_jobs_that_wait_is_busy() -> None:
    one = core(1)
    claim_all(one, sharing(1, handler()))
    assert one.busy

    one.forget_ready()

    assert not one.busy


def test_one_that_waits_can_be_withdrawn() -> None:
    one = core(1)
    first, second = sharing(2, handler())
    claim_all(one, [first, second])

    assert one.withdraw(first)
    assert not one.withdraw(first)
    assert one.ready() == [second]


def test_without_connections_only_those_with_a_session_go_back() -> None:
    three = core(3)
    claim_all(three, [replace(job("a"), handler=handler())])
    (lead,) = start_all(three)
    quiet = sharing(1, handler(session=False), 1)
    claim_all(three, [*sharing(1, handler()), *quiet])

    back = three.put_off(lead, NOW + 5, NOW)

    assert [one.id for one in back] == ["chunk-0"]
    assert three.ready() == quiet


def test_a_newer_lease_takes_the_place_of_an_older_one() -> None:
    """A job that was rescued and claimed again is not twice in a chunk."""
    of = handler(chunk=2)
    (old,), (new,) = sharing(1, of), sharing(1, of)
    chunks = Chunks(5.0)

    chunks.claimed([old], 1, NOW)
    chunks.claimed([new], 1, NOW + 1)

    assert chunks.jobs() == [new]


def test_a_slot_that_is_free_again_takes_a_chunk() -> None:
    one = core(1)
    claim_all(one, sharing(6, handler()))
    (lead,) = start_all(one)
    one.finished(lead, 0.01)
    one.settle(done(lead), NOW)

    assert ids(one.next_start("q", NOW)) == ["chunk-3", "chunk-4", "chunk-5"]
    assert not isinstance(step(one), Start)
