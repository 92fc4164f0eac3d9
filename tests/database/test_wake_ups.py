"""Which of the waiting workers a job wakes, and what they are told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import Engine, func, insert, select
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import Context, enqueue, enqueue_from, enqueue_many
from sqlalchemy_bgjob._lifecycle import workers
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob._sql.words import own_channel
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.core, pytest.mark.keeps_tables]

END = "end"


class Fleet:
    """Workers that wait for the queue q, and a session that hears what each of them would."""

    def __init__(self, engine: Engine, number: int = 5) -> None:
        self.engine = engine
        self.jobs = new_queue()
        self.jobs.metadata.create_all(engine)
        self.statements = statements_of(self.jobs.models)

        @self.jobs.handler("note", queue="q")
        def note(ctx: Context, arg: Any) -> None: ...

        self.note = note
        self.channel = self.statements.tables.channel
        url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        self.session = psycopg.connect(url, autocommit=True)
        self.session.execute(f"LISTEN {self.channel}")
        for n in range(1, number + 1):
            self.add(n)

    def add(self, worker_id: int, *queues: str) -> None:
        """A worker that waits."""
        row = {"id": worker_id, "pid": 1, "hostname": "h", "version": "0", "queues": {}}
        waits = list(queues or ("q",))
        with self.engine.begin() as connection:
            connection.execute(
                insert(self.jobs.models.worker).values(**row, lease_timeout=30.0, waits_for=waits)
            )
        self.session.execute(f"LISTEN {own_channel(self.channel, worker_id)}")

    def heard(self) -> list[tuple[int, str]]:
        """What each worker was told since the last call, by its id."""
        self.session.execute(f"NOTIFY {self.channel}, '{END}'")
        heard: list[tuple[int, str]] = []
        for notification in self.session.notifies(timeout=10):
            if notification.payload == END:
                return sorted(heard)
            worker_id = notification.channel.rpartition("_")[2]
            heard.append((int(worker_id), notification.payload))
        raise AssertionError("the notifications did not come")


@pytest.fixture
def fleet(engine: Engine) -> Iterator[Fleet]:
    fleet = Fleet(engine)
    yield fleet
    fleet.session.close()


@pytest.mark.parametrize("way", ["one", "many", "copy", "from", "object"])
def test_a_job_wakes_two_of_those_who_wait(fleet: Fleet, way: str) -> None:
    with Session(fleet.engine) as session, session.begin():
        match way:
            case "one":
                enqueue(session, fleet.note, 1)
            case "many":
                enqueue_many(session, fleet.note, [1, 2, 3])
            case "copy":
                enqueue_many(session, fleet.note, range(1_000))
            case "from":
                enqueue_from(session, fleet.note, select(func.now().label("t")))
            case _:
                session.add(fleet.note.job(1))

    heard = fleet.heard()
    assert len({worker_id for worker_id, _ in heard}) == 2
    assert [payload for _, payload in heard] == ["new 3 q"] * 2


def test_all_jobs_of_a_transaction_wake_the_same_two(fleet: Fleet) -> None:
    """Equal notifications are sent once: a thousand jobs of a transaction cost no more than one."""
    with Session(fleet.engine) as session, session.begin():
        for n in range(20):
            enqueue(session, fleet.note, n)

    assert len(fleet.heard()) == 2


def test_each_worker_has_its_turn(fleet: Fleet) -> None:
    for n in range(40):
        enqueue(fleet.engine, fleet.note, n)

    assert {worker_id for worker_id, _ in fleet.heard()} == {1, 2, 3, 4, 5}


def test_jobs_of_several_queues_wake_those_who_wait_for_each(fleet: Fleet) -> None:
    fleet.add(6, "mail", "q of spaces")
    with Session(fleet.engine) as session, session.begin():
        enqueue_many(
            session,
            [
                fleet.note.job(1, queue="mail"),
                fleet.note.job(2, queue="q of spaces"),
                fleet.note.job(3, queue="nobody's"),
            ],
        )

    assert fleet.heard() == [(6, "new 0 mail"), (6, "new 0 q of spaces")]


def test_a_wake_up_is_passed_on_to_another(fleet: Fleet) -> None:
    for _ in range(20):
        with fleet.engine.connect() as connection:
            workers.pass_on(connection, fleet.statements, worker_id=3, queues=["q", "nobody's"])
        ((worker_id, payload),) = fleet.heard()
        assert worker_id != 3
        assert payload == "returned 3 q"


def test_a_worker_alone_passes_nothing_on(engine: Engine) -> None:
    alone = Fleet(engine, 1)
    try:
        with engine.connect() as connection:
            workers.pass_on(connection, alone.statements, worker_id=1, queues=["q"])
        assert alone.heard() == []
    finally:
        alone.session.close()


def test_a_worker_that_ends_tells_those_who_wait(fleet: Fleet) -> None:
    """A job may have woken it, and it has not looked."""
    with fleet.engine.connect() as connection:
        workers.unregister(connection, fleet.statements, worker_id=3)

    heard = fleet.heard()
    assert [payload for _, payload in heard] == ["returned 2 q"] * 2
    assert 3 not in {worker_id for worker_id, _ in heard}
