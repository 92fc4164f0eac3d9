"""``jobs.on_enqueue``: headers that an application adds to its jobs, whichever way they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import MetaData, literal, select
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import BGJob, InvalidArg, enqueue, enqueue_from, enqueue_many
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection

jobs: BGJob[Any, Any] = BGJob(MetaData())
asked: list[tuple[str, str]] = []


@jobs.handler("send", queue="mail")
def send(ctx: Any, arg: Any) -> None: ...


@jobs.on_enqueue
def first(type: str, queue: str) -> Mapping[str, Any]:
    asked.append((type, queue))
    return {"by": "first", "type": type}


@jobs.on_enqueue
def second(type: str, queue: str) -> Mapping[str, Any] | None:
    return {"by": "second", "also": 2} if queue == "mail" else None


@pytest.fixture
def session(connection: Connection) -> Iterator[Session]:
    jobs.metadata.create_all(connection)
    asked.clear()
    with Session(connection) as session:
        yield session


def headers(session: Session) -> list[Any]:
    return list(session.scalars(select(jobs.Job.headers).order_by(jobs.Job.id)))


ADDED = {"by": "first", "type": "send", "also": 2}


@pytest.mark.core
def test_every_way_to_enqueue_adds_them(session: Session) -> None:
    """What the caller gives stands, and of two functions what the first one gives."""
    enqueue(session, send, 1)
    enqueue(session, send, 2, headers={"by": "caller", "own": True})
    enqueue(session, send, b"bytes")
    jobs.enqueue(session, "send", 3)
    jobs.enqueue(session, "elsewhere", 4, queue="other")
    enqueue_many(session, send, [5, 6])
    enqueue_many(session, [send.job(7), send.job(8, queue="other")])
    session.add(send.job(9))
    session.flush()
    enqueue_from(session, send, select(literal(1).label("number")))

    found = headers(session)
    assert len(found) == 11
    assert found.count(ADDED) == 7
    assert {"by": "caller", "own": True, "type": "send", "also": 2} in found
    assert {**ADDED, "content-type": "application/octet-stream"} in found
    assert {"by": "first", "type": "elsewhere"} in found
    assert {"by": "first", "type": "send"} in found
    assert asked.count(("send", "mail")) == 8, "once for all jobs of a bulk"
    assert asked.count(("send", "other")) == 1
    assert asked.count(("elsewhere", "other")) == 1


def test_rows_of_other_ways_have_their_own(session: Session) -> None:
    session.add(jobs.Job(queue="mail", type="send", headers={"a": 1}))
    session.flush()
    assert headers(session) == [{"a": 1}]
    assert asked == []


def test_a_schedule_is_the_same_in_every_process() -> None:
    """Whatever is added to jobs there, or else each process would change its row."""
    other = new_queue()
    other.on_enqueue(lambda name, queue: {"process": 1})
    other.schedule("@daily", name="s")(other.handler("t")(lambda ctx: None))
    assert other.registry.schedules["s"].headers is None


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ([("a", 1)], TypeError, "wrong, given to on_enqueue, returned a list"),
        ({"a": object()}, InvalidArg, "headers.a"),
        ({"content-type": "x"}, ValueError, "derived from the arg"),
    ],
)
def test_wrong_headers_are_refused_before_any_sql(
    session: Session, given: Any, error: type[Exception], words: str
) -> None:
    other = new_queue()
    handler = other.handler("t")(lambda ctx, arg: None)

    @other.on_enqueue
    def wrong(type: str, queue: str) -> Any:
        return given

    for call in (
        lambda: enqueue(session, handler, 1),
        lambda: enqueue_many(session, handler, [1]),
        lambda: handler.job(1),
    ):
        with pytest.raises(error, match=words):
            call()
    session.execute(select(1))


def test_only_a_function_is_asked() -> None:
    other = new_queue()

    async def coroutine(type: str, queue: str) -> Any: ...

    for wrong in (coroutine, 3):
        with pytest.raises(TypeError, match="takes a function f"):
            other.on_enqueue(wrong)  # type: ignore[type-var]
