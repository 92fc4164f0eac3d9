"""What may be said of a unique key, and what is answered to the rest."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Integer, MetaData, column, create_engine, select
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import (
    BGJob,
    JobAlreadyExists,
    Unique,
    enqueue,
    enqueue_from,
    enqueue_many,
)
from sqlalchemy_bgjob._drafts.unique import checked, split

if TYPE_CHECKING:
    from collections.abc import Callable

jobs: BGJob[Any, Any] = BGJob(MetaData())


@jobs.handler("sync")
def sync(ctx: Any, arg: Any) -> None: ...


def session() -> Session:
    return Session(create_engine("postgresql+psycopg://nobody@nowhere.invalid/none"))


@pytest.mark.parametrize(
    ("unique", "stored"),
    [
        (Unique("7"), "l:7"),
        (Unique("7", "queued"), "q:7"),
        (Unique("7", period=60), "7"),
    ],
)
def test_keys_of_different_scopes_never_meet(unique: Unique, stored: str) -> None:
    assert unique.stored == stored


def test_a_stored_key_is_told_as_it_was_given() -> None:
    assert split("l:a:b") == ("a:b", "live")
    assert split("q:a") == ("a", "queued")
    assert split(None, "a") == ("a", "period")
    assert split(None) == (None, None)
    assert split("by hand") == ("by hand", None)


def test_other_keys_may_look_like_those_of_schedules() -> None:
    for unique in (Unique("cron:a"), Unique("cron:a", period=60), Unique("crontab", "queued")):
        assert checked(unique) == unique


def test_text_alone_is_a_key_of_scope_live() -> None:
    assert checked("7") == Unique("7", "live", on_conflict="skip")
    assert checked(None) is None


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "an int": (lambda: sync.job(1, unique=7), "write unique=str(...)"),  # type: ignore[call-overload]
    "an int in Unique": (lambda: sync.job(1, unique=Unique(7)), "Unique(str(...))"),  # type: ignore[arg-type]
    "nothing in it": (lambda: Unique(""), "1 to 255"),
    "much": (lambda: Unique("x" * 256), "1 to 255"),
    "a NUL": (lambda: Unique("a\0"), "NUL"),
    "a scope": (lambda: Unique("a", "running"), "neither 'live' nor 'queued'"),  # type: ignore[arg-type]
    "a policy": (lambda: Unique("a", on_conflict="ignore"), "none of 'skip'"),  # type: ignore[arg-type]
    "replace": (lambda: Unique("a", on_conflict="replace"), "write Unique(key, 'queued', on"),
    "earlier": (
        lambda: Unique("a", period=1, on_conflict="earlier"),
        "write Unique(key, 'queued', on",
    ),
    "two scopes": (lambda: Unique("a", "queued", period=1), "not both"),
    "no period": (lambda: Unique("a", "period"), "Unique(key, period=3600)"),
    "a schedule's": (lambda: Unique("cron:sync", "queued"), "belong to schedules"),
    "a schedule's, of many": (
        lambda: enqueue_many(session(), sync, [1], unique=lambda n: Unique(f"cron:{n}", "queued")),
        "begin it with another word",
    ),
    "less than none": (lambda: Unique("a", period=-1), "between 0 and"),
    "an id and replace": (
        lambda: enqueue(
            session(), sync, 1, id="x", unique=Unique("a", "queued", on_conflict="replace")
        ),
        "goes with ids that the library makes",
    ),
    "an id and a period": (
        lambda: enqueue(session(), sync, 1, id="x", unique=Unique("a", period=1)),
        "goes with ids that the library makes",
    ),
    "ids and replace": (
        lambda: enqueue_many(
            session(),
            sync,
            [1],
            ids=["x"],
            unique=lambda n: Unique(str(n), "queued", on_conflict="replace"),
        ),
        "goes with ids that the library makes",
    ),
    "the wrong on_conflict": (
        lambda: enqueue(session(), sync, 1, unique="a", on_conflict="ignore"),
        "unique=Unique(key, on_conflict='skip')",
    ),
    "the wrong on_conflict of a query": (
        lambda: enqueue_from(
            session(), sync, select(column("n")), unique=column("n"), on_conflict="raise"
        ),
        "unique=Unique(key, on_conflict='raise')",
    ),
    "one key for many": (
        lambda: enqueue_many(session(), sync, [1], unique="a"),  # type: ignore[call-overload]
        "unique=lambda arg:",
    ),
    "one key for a query": (
        lambda: enqueue_from(session(), sync, select(column("n")), unique="a"),  # type: ignore[call-overload]
        "unique=cast(Order.id, Text)",
    ),
    "a label id": (
        lambda: enqueue_from(
            session(), sync, select(column("id"), column("n", Integer)), unique=column("n")
        ),
        "either a label id or unique=",
    ),
    "a column for one": (
        lambda: enqueue(session(), sync, 1, unique=Unique(column("n"))),
        "must be a str",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_answered_before_any_sql(name: str) -> None:
    call, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert words in str(caught.value)


def test_the_error_tells_keys_and_their_jobs() -> None:
    error = JobAlreadyExists(("id-1",), ("sync:7",))

    assert "a job has the unique key 'sync:7'" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.ids, again.keys, str(again)) == (("id-1",), ("sync:7",), str(error))
