"""The server's notification queue is full: who enqueues sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_bgjob import enqueue
from sqlalchemy_bgjob._inspect.health import look
from support import wait_until
from support.databases import private_server
from support.shop import make_tables, note

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine


@pytest.fixture
def crowded() -> Iterator[Engine]:
    """A server whose notification queue is full after half a megabyte."""
    with private_server(max_notify_queue_pages="64") as server:
        engine = create_engine(server.url)
        yield engine
        engine.dispose()


def test_a_full_notification_queue_is_the_enqueuers_to_see(crowded: Engine) -> None:
    """The COMMIT fails, so there is no job; and doctor has told of it before."""
    make_tables(crowded)
    with crowded.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO bgjob_worker"
                " (id, hostname, pid, version, queues, lease_timeout, waits_for)"
                " VALUES (1, '', 1, '', '{}', 30, '[\"default\"]')"
            )
        )
    listener = crowded.connect()
    listener.exec_driver_sql("LISTEN other")
    listener.commit()
    listener.exec_driver_sql("SELECT 1")  # and stays in its transaction
    told: list[str] = []
    with pytest.raises(DBAPIError) as full:  # noqa: PT012 - at which one is the server's business
        for n in range(2_000):
            with crowded.begin() as connection:
                sent = "SELECT pg_notify('noise', :n || repeat('x', 7000))"
                connection.execute(text(sent), {"n": str(n)})
            if n % 10 == 0:
                with crowded.connect() as connection:
                    told += look(connection, ["bgjob_job"]).problems
    assert "notification" in str(full.value.orig).lower()
    assert any("notification queue is" in problem for problem in told)

    with pytest.raises(DBAPIError) as refused:
        enqueue(crowded, note, 1)
    assert "notification" in str(refused.value.orig).lower()
    with crowded.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM bgjob_job")) == 0

    listener.invalidate()
    listener.close()

    def enqueued() -> bool:
        with crowded.connect() as connection:
            look(connection, [])  # it lets the server notice that the queue can be emptied
        try:
            return enqueue(crowded, note, 1).inserted
        except DBAPIError:
            return False

    wait_until(enqueued, 30, what="room in the queue")
