"""A worker of many queues: quiet while they are empty, quick with each, fair between them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, event, text

from sqlalchemy_bgjob import Context, Worker, enqueue, enqueue_many
from support import wait_until
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Iterator

QUEUES = {f"q{n:03}": 2 for n in range(100)}


class Shop:
    """A handler for all queues, which notes what it has done."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.jobs = new_queue()
        self.jobs.metadata.create_all(engine)
        self.done: list[tuple[str, str]] = []

        @self.jobs.handler("note", session=False)
        def note(ctx: Context[Any]) -> None:
            self.done.append((ctx.job.queue, ctx.job.id))

        self.note = note

    def is_idle(self) -> bool:
        """Whether producers are told to notify for each queue."""
        with self.engine.connect() as connection:
            waits_for = connection.scalar(text("SELECT waits_for FROM bgjob_worker"))
        return len(waits_for or ()) == len(QUEUES)


@pytest.fixture
def shop(engine: Engine) -> Shop:
    return Shop(engine)


@pytest.fixture
def claims(engine: Engine) -> Iterator[tuple[Engine, list[str]]]:
    """An engine for a worker, and the statements with which it looks for jobs."""
    seen: list[str] = []

    def see(_: Any, __: Any, statement: str, *___: Any) -> None:
        if "SKIP LOCKED" in statement and "lanes" in statement:
            seen.append(statement)

    other = create_engine(engine.url)
    event.listen(other, "before_cursor_execute", see)
    try:
        yield other, seen
    finally:
        other.dispose()


def test_a_hundred_idle_queues_cost_one_statement_a_poll(
    shop: Shop, claims: tuple[Engine, list[str]]
) -> None:
    watched, seen = claims
    with Worker(shop.jobs, watched, queues=QUEUES, poll_interval=0.5):
        wait_until(shop.is_idle, what="a worker that waits in all queues")
        wait_until(lambda: len(seen) > 12, what="polls that have become rare")
        seen.clear()
        begun = time.monotonic()
        wait_until(lambda: len(seen) >= 4, what="four polls")
        took = time.monotonic() - begun

    # Apart they would be 800 in that time.
    assert len(seen) <= 3 * (took / 0.5 + 1)


def test_each_of_a_hundred_queues_is_served(shop: Shop) -> None:
    with Worker(shop.jobs, shop.engine, queues=QUEUES, poll_interval=30.0):
        wait_until(shop.is_idle, what="a worker that waits in all queues")
        expected = {(queue, enqueue(shop.engine, shop.note, queue=queue).id) for queue in QUEUES}
        wait_until(lambda: len(shop.done) == len(QUEUES))

    assert set(shop.done) == expected
    assert len(shop.done) == len(expected), "each once"


@pytest.mark.core
def test_a_deep_queue_keeps_no_other_waiting(shop: Shop) -> None:
    enqueue_many(shop.engine, shop.note, [None] * 20_000, queue="q000")
    with Worker(shop.jobs, shop.engine, queues=QUEUES):
        wait_until(lambda: shop.done, what="a start")
        for queue in QUEUES:
            enqueue(shop.engine, shop.note, queue=queue, id=queue)
        others = len(QUEUES) - 1
        wait_until(lambda: sum(queue != "q000" for queue, _ in list(shop.done)) == others)
        left = 20_000 - sum(queue == "q000" for queue, _ in list(shop.done))
        assert left > 0, "the backlog is worked off already: it shows nothing"


def test_queues_with_jobs_of_many_at_once_lose_and_repeat_none(shop: Shop) -> None:
    """Two workers, and producers for all queues at the same time."""
    ids: list[str] = []

    def produce(part: int) -> None:
        for n in range(300):
            queue = f"q{(n * 7 + part) % 100:03}"
            options: dict[str, Any] = {"delay": 0.2} if n % 5 == 0 else {}
            ids.append(
                enqueue(shop.engine, shop.note, queue=queue, priority=n % 3 - 1, **options).id
            )

    with (
        Worker(shop.jobs, shop.engine, queues=QUEUES, poll_interval=30.0),
        Worker(shop.jobs, shop.engine, queues=QUEUES, poll_interval=30.0),
    ):
        producers = [threading.Thread(target=produce, args=(part,)) for part in range(3)]
        for producer in producers:
            producer.start()
        for producer in producers:
            producer.join()
        wait_until(lambda: len(shop.done) >= len(ids) == 900, what="all jobs")

    assert sorted(id for _, id in shop.done) == sorted(ids)
