"""The checker of histories objects to each thing that must not be."""

from __future__ import annotations

from typing import Any

import pytest

from support.history import Found, History
from support.record import Change, record_problems

LINES: list[dict[str, Any]] = [
    {"event": "start", "id": "a", "lease": 5, "pid": 1, "at": 1.0},
    {"event": "killed", "killed_pid": 1, "pid": 9, "at": 2.0},
    {"event": "start", "id": "a", "lease": 7, "pid": 2, "at": 3.0},
    {"event": "retried", "id": "a", "lease": 7, "pid": 2, "at": 4.0},
    {"event": "start", "id": "a", "lease": 8, "pid": 2, "at": 5.0},
    {"event": "completed", "id": "a", "lease": 8, "pid": 2, "at": 6.0},
    {"event": "start", "id": "b", "lease": 3, "pid": 2, "at": 1.5},
    {"event": "dead", "id": "b", "lease": 3, "pid": 2, "at": 2.5},
]
"""One job that was killed, failed and completed, and one that is dead."""
FOUND = Found(dead=frozenset("b"), effects={"a": 1})


def problems(*more: dict[str, Any], without: tuple[int, ...] = (), **options: Any) -> list[str]:
    found = options.pop("found", FOUND)
    lines = [line for number, line in enumerate(LINES) if number not in without]
    expected = {
        "committed": frozenset("ab"),
        "with_effects": frozenset("ab"),
        "rolled_back": frozenset("r"),
        "faults": 1,
        **options,
    }
    return History([*lines, *more], **expected).problems(found)


def test_what_is_allowed_is_no_problem() -> None:
    assert problems() == []


def test_what_was_handed_back_may_start_elsewhere_at_once() -> None:
    assert problems(without=(1,), handed_back=frozenset({("a", 5)})) == []


@pytest.mark.parametrize(
    ("found", "options"),
    [
        ("c: committed, and never started", {"committed": frozenset("abc")}),
        ("a: started 3 times with 1 failures and 0 faults", {"faults": 0}),
        ("a: started with lease 7 while 5 went on", {"without": (1,)}),
        ("a: not ended", {"found": Found(left=frozenset("a"), dead=frozenset("b"))}),
        ("a: gone, and completed 0 times", {"without": (1, 5)}),
        ("a: 0 effects instead of 1", {"found": Found(dead=frozenset("b"))}),
        ("a: 2 effects instead of 1", {"found": Found(dead=frozenset("b"), effects={"a": 2})}),
        (
            "b: 1 effects instead of 0",
            {"found": Found(dead=frozenset("b"), effects={"a": 1, "b": 1})},
        ),
        ("b: both queued and dead", {"found": Found(left=frozenset("b"), dead=frozenset("b"))}),
    ],
)
def test_what_is_missing_or_too_much(found: str, options: dict[str, Any]) -> None:
    assert found in problems(**options)


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ("r: rolled back, and started", {"event": "start", "id": "r", "lease": 1}),
        ("a: 2 settlements of lease 8", {"event": "completed", "id": "a", "lease": 8}),
        ("a: 2 settlements of lease 7", {"event": "completed", "id": "a", "lease": 7}),
        ("b: ended 2 times", {"event": "completed", "id": "b", "lease": 4}),
        (
            "b: started more than once under one lease: [3, 3]",
            {"event": "start", "id": "b", "lease": 3},
        ),
        (
            "a: lease 8 ended it, and 9 had been started",
            {"event": "start", "id": "a", "lease": 9},
        ),
        (
            "a: started 4 times with 1 failures and 1 faults",
            {"event": "start", "id": "a", "lease": 9},
        ),
    ],
)
def test_what_must_not_be_there(found: str, line: dict[str, Any]) -> None:
    assert found in problems({"pid": 3, "at": 9.0, **line})


def test_a_schedule_fires_once_for_each_time() -> None:
    """A job that starts again is still one."""
    starts: list[dict[str, Any]] = [
        {"event": "start", "id": id, "lease": lease, "pid": 4, "at": at, "schedule": "s"}
        | {"fire_time": time}
        for id, lease, at, time in [("x", 1, 1.0, "t1"), ("x", 2, 2.0, "t1"), ("y", 3, 3.0, "t2")]
    ]
    twice = {**starts[0], "id": "z"}

    assert problems(*starts, schedules={"s": ["t1", "t2"]}) == []
    assert problems(*starts, schedules={"s": ["t1", "t2", "t3"]}) == ["s: never fired for t3"]
    assert problems(*starts, twice, schedules={"s": []}) == ["s: fired 2 times for t1"]


def test_a_frozen_worker_may_be_told_late_that_its_lease_is_lost() -> None:
    late = {"event": "lease_lost", "id": "a", "lease": 5, "pid": 1, "at": 30.0}

    assert problems(late, without=(1,)) == []


def test_a_start_that_a_stopped_process_comes_to_late_is_in_vain() -> None:
    """It had been claimed before the others; its worker finds the lease lost."""
    late = [
        {"event": "start", "id": "a", "lease": 6, "pid": 3, "at": 7.0},
        {"event": "lease_lost", "id": "a", "lease": 6, "pid": 3, "at": 8.0},
    ]

    assert problems(*late, faults=2) == []
    assert problems(late[0], faults=2) == ["a: started with lease 7 while 6 went on"]
    settled = {"event": "retried", "id": "a", "lease": 6, "pid": 3, "at": 8.0}
    assert "a: lease 6 was settled, and 8 had been started" in problems(late[0], settled, faults=2)


CANCELLED = {"event": "cancelled", "id": "a", "lease": 8, "pid": 2, "at": 6.0}


def test_a_cancelled_job_ends_once_and_has_no_effects() -> None:
    found = Found(dead=frozenset("b"))

    assert problems(CANCELLED, without=(5,), asked={"a": 8}, found=found) == []
    assert "a: ended 2 times" in problems(CANCELLED, asked={"a": 8})
    assert "a: 1 effects instead of 0" in problems(CANCELLED, without=(5,), asked={"a": 8})
    assert problems(asked={"a": 8}) == [], "it may complete first"


def test_nobody_is_cancelled_unasked_or_started_later() -> None:
    found = Found(dead=frozenset("b"))

    assert problems(CANCELLED, without=(5,), found=found) == [
        "a: ended as cancelled, and nobody had cancelled it"
    ]
    assert problems(asked={"a": 7}) == ["a: cancelled under lease 7, and started under 8"]


def test_what_is_claimed_too_late_never_starts_and_nothing_else_expires() -> None:
    dropped = {"event": "expired", "id": "c", "lease": 2, "pid": 2, "at": 6.0}
    late = frozenset({("c", 2)})

    assert problems(dropped, committed=frozenset("abc"), late=late) == []
    assert problems(dropped, committed=frozenset("abc")) == [
        "c: committed, and never started",
        "c: ended as expired with lease 2, and was not too late",
    ]
    assert problems(late=frozenset({("b", 3)})) == [
        "b: started with lease 3, by which it was claimed too late"
    ]
    assert "c: ended 2 times" in problems(dropped, dropped, committed=frozenset("abc"), late=late)


def test_nothing_starts_in_a_pause_that_was_seen() -> None:
    assert problems(pauses=[(0.1, 0.9), (5.1, 6.0)]) == []
    assert problems(pauses=[(3.5, 5.5)]) == ["a: started in a pause, 1.500 s after it was seen"]


def test_a_job_that_was_cancelled_unstarted_is_gone_in_silence() -> None:
    assert problems(committed=frozenset("abc"), cancelled=frozenset("c")) == []


def test_a_second_life_is_one_more_of_everything() -> None:
    """An id that was enqueued again after its end."""
    again = [
        {"event": "start", "id": "a", "lease": 9, "pid": 2, "at": 7.0},
        {"event": "completed", "id": "a", "lease": 9, "pid": 2, "at": 8.0},
    ]
    found = Found(dead=frozenset("b"), effects={"a": 2})

    assert problems(*again, lives={"a": 2}, found=found) == []
    assert problems(*again, found=found) != []
    assert problems(*again, lives={"a": 2}) == ["a: 1 effects instead of 2"]


def test_a_change_that_a_caller_was_told_of_must_be_seen() -> None:
    """By a run that has committed; and the job that he was told of starts after his COMMIT."""
    told = {"event": "told", "key": "k", "change": 7, "job": "a", "pid": 3, "at": 9.0}
    seen = Found(dead=frozenset("b"), effects={"a": 1}, seen=frozenset({7}))

    assert problems(told | {"committing": 0.9}, found=seen) == []
    assert problems(told | {"committing": 0.9}) == [
        "k: change 7 was committed, and no run has seen it"
    ]
    assert problems(told | {"committing": 1.1}, found=seen) == [
        "k: change 7 was committed when a had been started"
    ]


INSERTED = Change("INSERT", "a", lease=5, key="q:k")
CLAIMED = Change("UPDATE", "a", 5, None, 6, 1, key_before="q:k")


def test_a_key_of_scope_queued_is_free_once_its_job_is_claimed() -> None:
    assert record_problems([INSERTED, CLAIMED, Change("INSERT", "b", lease=5, key="q:k")]) == []


@pytest.mark.parametrize(
    ("problem", "changes"),
    [
        (
            "a: lease 5 of None: was claimed, and has kept the key 'q:k'",
            [INSERTED, CLAIMED._replace(key="q:k")],
        ),
        (
            "a: lease 6 of 1: got the key 'q:k'",
            [INSERTED, CLAIMED, Change("UPDATE", "a", 6, 1, 7, None, key="q:k")],
        ),
        (
            "b: has the key 'q:k', which a has",
            [INSERTED, Change("INSERT", "b", lease=5, key="q:k")],
        ),
    ],
)
def test_what_must_not_become_of_a_key(problem: str, changes: list[Change]) -> None:
    assert record_problems(changes) == [problem]
