"""Which jobs fit an assertion, and what it says of those that do not."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sqlalchemy_bgjob import Unique
from sqlalchemy_bgjob.testing import EnqueuedJob
from sqlalchemy_bgjob.testing.matching import (
    ANY,
    Looked,
    Wanted,
    difference,
    explain,
    explain_fitting,
)

AT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Receipt:
    order_id: int
    to: dict[str, Any]


def job(id: str = "1", type: str = "send", **changes: Any) -> EnqueuedJob:
    values: dict[str, Any] = {
        "queue": "mail",
        "arg": Receipt(7, {"name": "Ada", "city": "London"}),
        "priority": 0,
        "headers": {"a": 1, "b": 2},
        "delay": 60.0,
        "run_at": AT,
        "attempt": 0,
        "running": False,
        "unique": "k",
        "unique_scope": "queued",
        "batch": "b",
    }
    return EnqueuedJob(id=id, type=type, **(values | changes))


def differs(arg: Any = ANY, type: str = "send", **wanted: Any) -> list[str]:
    return difference(job(), Wanted.of(type, arg, wanted))


def test_what_fits_has_no_difference() -> None:
    assert differs() == []
    assert differs(Receipt(7, {"name": "Ada", "city": "London"})) == []
    assert differs({"order_id": 7, "to": {"city": "London"}}) == []
    assert differs(order_id=7, queue="mail", id="1", priority=0, run_at=AT) == []
    assert differs(headers={"a": 1}, delay=timedelta(minutes=1)) == []
    assert differs(headers=None, delay=None) == []
    assert differs(unique="k") == differs(unique=Unique("k", "queued")) == []
    assert differs(batch="b") == []


@pytest.mark.parametrize(
    ("arg", "wanted", "told"),
    [
        (ANY, {"type": "charge"}, "its type is 'send'"),
        (ANY, {"queue": "default"}, "its queue is 'mail'"),
        (ANY, {"priority": 1}, "its priority is 0"),
        (ANY, {"delay": 61}, "its delay is 60 s"),
        (ANY, {"order_id": 8}, "order_id is 7"),
        (ANY, {"size": 8}, "it has no size"),
        (ANY, {"unique": "other"}, "its unique is 'k'"),
        (ANY, {"unique": Unique("k")}, "its unique is 'k', of scope 'queued'"),
        (ANY, {"batch": "c"}, "its batch is 'b'"),
        (ANY, {"headers": {"a": 2}}, "header a is 1"),
        ({"to": {"city": "Paris"}}, {}, "to.city is 'London'"),
        ({"to": {"street": "x"}}, {}, "it has no to.street"),
        (7, {}, "its arg is Receipt(order_id=7, to={'city': 'London', 'name': 'Ada'})"),
    ],
)
def test_each_difference_is_named(arg: Any, wanted: dict[str, Any], told: str) -> None:
    assert differs(arg, **wanted) == [told] or told.startswith("its arg is")
    assert len(differs(arg, **wanted)) == 1


def test_the_nearest_jobs_are_shown_first() -> None:
    jobs = [
        job("far", "other", queue="x", arg=None),
        job("near"),
        job("middle", queue="x"),
        job("fourth", "other", queue="x", arg={}),
    ]

    told = explain(Looked(jobs), [], Wanted.of("send", ANY, {"order_id": 8, "queue": "mail"}))

    assert told.splitlines() == [
        "no job fits type 'send', order_id=8, queue 'mail'",
        "the nearest of 4:",
        "  send near in 'mail': order_id is 7",
        "  send middle in 'x': its queue is 'x'; order_id is 7",
        "  other far in 'x': its type is 'other'; its queue is 'x'; it has no order_id",
    ]


def test_none_at_all_and_a_wrong_number_are_told() -> None:
    wanted = Wanted.of("send", {"order_id": 7}, {"count": 1, "delay": 5, "headers": {"h": 1}})
    two = [job(), job("2")]

    assert explain(Looked([]), [], wanted).splitlines() == [
        f"no job is enqueued in this transaction; looked for {wanted}",
        "Has another transaction enqueued it, which has not committed? Or has it been run already?",
    ]
    assert explain(Looked(two), two, wanted).splitlines() == [
        "2 jobs fit, not 1: type 'send', order_id=7, header h=1, delay 5 s",
        "  send 1 in 'mail': arg Receipt(order_id=7, to={'name': 'Ada', 'city': 'London'})",
        "  send 2 in 'mail': arg Receipt(order_id=7, to={'name': 'Ada', 'city': 'London'})",
    ]


def test_jobs_that_are_not_flushed_are_told() -> None:
    told = explain(Looked([job()], unflushed=1), [], Wanted.of("send", ANY, {"order_id": 8}))

    assert told.splitlines() == [
        "no job fits type 'send', order_id=8",
        "the only job there is:",
        "  send 1 in 'mail': order_id is 7",
        "a job is in the session and not flushed, as it has no autoflush: call session.flush()",
    ]


def test_a_refuted_job_is_shown() -> None:
    many = [job(str(number), arg=number) for number in range(5)]

    assert explain_fitting(many[:1], Wanted.of("send", ANY, {})).splitlines() == [
        "a job fits: type 'send'",
        "  send 0 in 'mail': arg 0",
    ]
    assert explain_fitting(many, Wanted.of("send", ANY, {})).splitlines() == [
        "5 jobs fit: type 'send'",
        "  send 0 in 'mail': arg 0",
        "  send 1 in 'mail': arg 1",
        "  send 2 in 'mail': arg 2",
        "  and 2 more",
    ]


def test_a_long_value_is_cut() -> None:
    long = job(arg={"text": "x" * 10_000})

    (told,) = difference(long, Wanted.of("send", {"text": "y"}, {}))

    assert len(told) < 120


def test_no_count_is_what_refute_is_for() -> None:
    with pytest.raises(ValueError, match="use refute_enqueued"):
        Wanted.of("send", ANY, {"count": 0})


def test_something_else_than_a_handler_is_refused() -> None:
    with pytest.raises(TypeError, match="name a handler or a type, not a function"):
        Wanted.of(lambda: None, ANY, {})  # type: ignore[arg-type]
