"""Pause, resume, slots and drain: in the caller's transaction, and what the row is like then."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import Engine, MetaData, delete, event, insert, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import BGJob
from sqlalchemy_bgjob._lifecycle import control, rescue
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob._sql.control import CHANGED
from sqlalchemy_bgjob.testing.faults import let_time_pass
from support import wait_until
from support.databases import with_driver
from support.producers import UNITS, producer
from support.rows import add, waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy_bgjob._lifecycle.control import QueueState

pytestmark = pytest.mark.core

HOUR = 3_600.0
KINDS = (
    "Session-psycopg2",
    "Connection-psycopg",
    "Engine-psycopg",
    "Flask-psycopg",
    "AsyncSession-asyncpg",
    "AsyncConnection-psycopg",
    "AsyncEngine-asyncpg",
)


@pytest.fixture(scope="module")
def made(module_engine: Engine) -> BGJob:
    jobs = BGJob(MetaData())
    jobs.metadata.create_all(module_engine)
    return jobs


@pytest.fixture
def engine(module_engine: Engine, jobs: BGJob) -> Engine:
    return module_engine


@pytest.fixture
def jobs(made: BGJob, module_engine: Engine) -> BGJob:
    """In a database whose tables are empty."""
    with module_engine.begin() as connection:
        for table in (made.models.control, made.models.job, made.models.worker):
            connection.execute(delete(table))
    return made


def rows(jobs: BGJob, engine: Engine) -> list[Any]:
    """All that is set: queue, who, why, whether it has an end, slots."""
    its = jobs.Control
    columns = its.queue, its.paused_by, its.pause_reason, its.resume_at.is_not(None), its.slots
    with Session(engine) as session:
        return [tuple(row) for row in session.execute(select(*columns).order_by(its.queue))]


def state(jobs: BGJob, engine: Engine) -> dict[str, QueueState]:
    """What a worker reads."""
    with engine.connect() as connection:
        return control.look(connection, statements_of(jobs.models))


def paused(jobs: BGJob, engine: Engine) -> list[str]:
    return sorted(queue for queue, one in state(jobs, engine).items() if one.is_paused)


# ---- pause and resume -----------------------------------------------------------------------


def test_a_row_tells_who_paused_what_and_why(jobs: BGJob, engine: Engine) -> None:
    assert jobs.pause(engine, "mail", by="ada", reason="provider down", until=HOUR) is True
    assert jobs.pause(engine, "bills") is True

    assert rows(jobs, engine) == [
        ("bills", None, None, False, None),
        ("mail", "ada", "provider down", True, None),
    ]
    assert paused(jobs, engine) == ["bills", "mail"]


def test_a_second_pause_replaces_all_but_its_begin(jobs: BGJob, engine: Engine) -> None:
    began = select(jobs.Control.paused_at)
    jobs.pause(engine, "mail", by="ada", until=HOUR)
    with Session(engine) as session:
        first = session.scalar(began)

    assert jobs.pause(engine, "mail", by="bob", reason="still down") is False

    assert rows(jobs, engine) == [("mail", "bob", "still down", False, None)]
    with Session(engine) as session:
        assert session.scalar(began) == first


def test_resume_leaves_no_row_behind(jobs: BGJob, engine: Engine) -> None:
    jobs.pause(engine, "mail")

    assert jobs.resume(engine, "mail") is True
    assert jobs.resume(engine, "mail") is False
    assert rows(jobs, engine) == []
    assert state(jobs, engine) == {}


def test_a_pause_is_over_by_the_servers_clock(jobs: BGJob, engine: Engine) -> None:
    """Nobody changes the row; a later pause begins anew."""
    jobs.pause(engine, "mail", by="ada", until=timedelta(hours=1))
    jobs.pause(engine, "bills", until=datetime.now(UTC) + timedelta(hours=3))
    seconds = state(jobs, engine)["mail"].resumes_in
    assert seconds == pytest.approx(HOUR, abs=60)

    with engine.begin() as connection:
        let_time_pass(connection, jobs, 2 * HOUR)

    assert paused(jobs, engine) == ["bills"]
    assert len(rows(jobs, engine)) == 2
    assert jobs.pause(engine, "mail") is True
    assert jobs.resume(engine, "mail") is True


def test_resume_removes_a_pause_that_is_over(jobs: BGJob, engine: Engine) -> None:
    jobs.pause(engine, "mail", until=1)
    with engine.begin() as connection:
        let_time_pass(connection, jobs, 2.0)

    assert jobs.resume(engine, "mail") is False
    assert rows(jobs, engine) == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_target_sets_and_takes_back(jobs: BGJob, engine: Engine, kind: str) -> None:
    """All of it, in the caller's transaction where there is one."""
    url = engine.url.render_as_string(hide_password=False)

    async def act(*, commit: bool) -> list[Any]:
        async with producer(kind, url) as its:
            target = its.target
            done = [
                await its.do(jobs.pause(target, "mail", by="ada", reason="no", until=HOUR)),
                await its.do(jobs.pause(target, "mail", by="ada")),
                await its.do(jobs.set_slots(target, "mail", 3)),
                await its.do(jobs.resume(target, "mail")),
                await its.do(jobs.set_slots(target, "mail", None)),
                await its.do(jobs.pause(target, "bills")),
                await its.do(jobs.set_slots(target, "files", 5)),
                (await its.do(jobs.pressure(target, "bills"))).due,
            ]
            if kind in UNITS:
                await (its.commit() if commit else its.rollback())
        return done

    if kind in UNITS:
        assert asyncio.run(act(commit=False)) == [True, False, None, True, None, True, None, 0]
        assert rows(jobs, engine) == []
    assert asyncio.run(act(commit=True)) == [True, False, None, True, None, True, None, 0]
    assert rows(jobs, engine) == [
        ("bills", None, None, False, None),
        ("files", *[None] * 2, False, 5),
    ]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"queue": ""}, ValueError, "queue='' has 0 characters"),
        ({"by": 7}, TypeError, "by must be a str"),
        ({"reason": "x" * 1_001}, ValueError, "1 to 1000 are allowed"),
        ({"reason": "a\x00b"}, ValueError, "NUL"),
        ({"until": datetime(2999, 1, 1)}, ValueError, "no time zone"),  # noqa: DTZ001
        ({"until": datetime(2020, 1, 1, tzinfo=UTC)}, ValueError, "is over already"),
        ({"until": 0}, ValueError, "is over already"),
        ({"until": -1}, ValueError, "not between 0"),
        ({"until": "tomorrow"}, TypeError, "seconds"),
    ],
)
def test_a_wrong_pause_is_refused_before_any_sql(
    jobs: BGJob, given: dict[str, Any], error: type[Exception], words: str
) -> None:
    nowhere: Any = None

    with pytest.raises(error, match=words):
        jobs.pause(nowhere, **{"queue": "mail", **given})


# ---- slots ----------------------------------------------------------------------------------


def test_slots_and_a_pause_share_a_row(jobs: BGJob, engine: Engine) -> None:
    jobs.set_slots(engine, "mail", 4)
    jobs.pause(engine, "mail", by="ada")
    assert rows(jobs, engine) == [("mail", "ada", None, False, 4)]

    jobs.resume(engine, "mail")
    assert rows(jobs, engine) == [("mail", None, None, False, 4)]
    assert state(jobs, engine)["mail"].slots == 4

    jobs.pause(engine, "mail")
    jobs.set_slots(engine, "mail", None)
    assert rows(jobs, engine) == [("mail", None, None, False, None)]
    assert paused(jobs, engine) == ["mail"]

    jobs.resume(engine, "mail")
    jobs.set_slots(engine, "mail", None)
    assert rows(jobs, engine) == []


def test_a_limit_of_the_queue_is_left_alone(jobs: BGJob, engine: Engine) -> None:
    """Which another feature keeps in the same row; and so is what is set for a group."""
    with engine.begin() as connection:
        table = jobs.models.control
        connection.execute(insert(table), [{"queue": "mail", "max_running": 9}])
        connection.execute(insert(table), [{"queue": "mail", "key": "7", "slots": 1}])
    assert state(jobs, engine) == {}

    jobs.pause(engine, "mail")
    jobs.set_slots(engine, "mail", 2)
    jobs.set_slots(engine, "mail", None)
    jobs.resume(engine, "mail")

    with engine.connect() as connection:
        left = connection.execute(select(table.c.key, table.c.max_running, table.c.slots))
        assert sorted(map(tuple, left)) == [("", 9, None), ("7", None, 1)]


@pytest.mark.parametrize("slots", [0, -1, 10_001, 1.5, True, "3"])
def test_wrong_slots_are_refused(jobs: BGJob, engine: Engine, slots: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="slots"):
        jobs.set_slots(engine, "mail", slots)
    assert rows(jobs, engine) == []


@pytest.mark.parametrize("first", ["resume", "slots"])
def test_two_who_take_back_all_there_is_leave_no_row(
    jobs: BGJob, engine: Engine, first: str
) -> None:
    """Each sees that the other's is still set, unless it waits for the other."""

    def take_back(what: str, target: Any) -> None:
        if what == "resume":
            jobs.resume(target, "mail")
        else:
            jobs.set_slots(target, "mail", None)

    second = "slots" if first == "resume" else "resume"
    jobs.pause(engine, "mail")
    jobs.set_slots(engine, "mail", 4)

    with ThreadPoolExecutor(1) as pool, Session(engine) as session:
        take_back(first, session)
        other = pool.submit(take_back, second, engine)
        wait_until(lambda: waiting(engine), what="the second one")
        session.commit()
        other.result(20)

    assert rows(jobs, engine) == []


# ---- who is told ----------------------------------------------------------------------------


@pytest.fixture
def heard(jobs: BGJob, engine: Engine) -> Iterator[Any]:
    """The payloads that came on the channel of all since the last call."""
    channel = statements_of(jobs.models).tables.channel
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as session:
        session.execute(f"LISTEN {channel}")

        def heard() -> list[str]:
            session.execute(f"NOTIFY {channel}, 'end'")
            found: list[str] = []
            for notification in session.notifies(timeout=10):
                if notification.payload == "end":
                    break
                found.append(notification.payload)
            return found

        yield heard


def test_workers_are_told_at_the_commit(jobs: BGJob, engine: Engine, heard: Any) -> None:
    with Session(engine) as session:
        jobs.pause(session, "mail")
        jobs.set_slots(session, "bills", 3)
        assert heard() == []
        session.commit()
    assert heard() == [CHANGED], "once for all of it"

    jobs.resume(engine, "mail")
    assert heard() == [CHANGED]
    jobs.set_slots(engine, "bills", None)
    assert heard() == [CHANGED]
    jobs.resume(engine, "mail")
    jobs.set_slots(engine, "bills", None)
    assert heard() == [], "nothing was changed"


def test_a_two_phase_transaction_pauses_too(jobs: BGJob, engine: Engine) -> None:
    """PostgreSQL allows no NOTIFY there; workers see the pause at their next look."""
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        jobs.pause(connection, "mail")
        transaction.commit()

    assert paused(jobs, engine) == ["mail"]


def test_an_open_pause_keeps_no_worker_from_looking(jobs: BGJob, engine: Engine) -> None:
    jobs.pause(engine, "bills")
    with Session(engine) as session:
        jobs.pause(session, "mail")
        jobs.resume(session, "bills")

        assert paused(jobs, engine) == ["bills"]


def test_the_rescuers_look_shows_the_same(jobs: BGJob, engine: Engine) -> None:
    """So a worker that missed a notification finds out."""
    statements = statements_of(jobs.models)
    row = {"id": 1, "pid": 1, "hostname": "h", "version": "0", "queues": {}, "lease_timeout": 30.0}
    with engine.begin() as connection:
        connection.execute(insert(jobs.models.worker).values(**row))

    with engine.connect() as connection:
        assert rescue.look_at_workers(connection, statements).control is None
        jobs.pause(engine, "mail", until=HOUR)
        jobs.set_slots(engine, "mail", 3)
        jobs.set_slots(engine, "bills", 2)
        jobs.pause(engine, "files", until=HOUR / 2)
        seen = rescue.look_at_workers(connection, statements)
        assert seen.control == {"mail": [True, 3], "bills": [False, 2], "files": [True, None]}
        assert len(seen.workers) == 1
        with engine.begin() as other:
            let_time_pass(other, jobs, HOUR + 1)
        assert rescue.look_at_workers(connection, statements).control == {
            "mail": [False, 3],
            "bills": [False, 2],
        }


# ---- drain ----------------------------------------------------------------------------------


@pytest.fixture
def soon(tune: Any) -> None:
    """Workers see a pause at once."""
    tune(control, SEEN_WITHIN=0.1)


def run_job(engine: Engine, id: str, queue: str = "q") -> None:
    with engine.begin() as connection:
        add(connection, id, queue=queue, claimed_by=1, attempt=1)


def end_job(engine: Engine, id: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM bgjob_job WHERE id = :id"), {"id": id})


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
def test_a_drain_waits_until_nothing_runs(
    jobs: BGJob, engine: Engine, soon: None, driver: str
) -> None:
    """What is due and not claimed is not waited for, nor another queue's jobs."""
    run_job(engine, "running")
    run_job(engine, "elsewhere", "other")
    with engine.begin() as connection:
        add(connection, "due")
    result: list[int] = []

    def drain() -> None:
        url = with_driver(engine.url.render_as_string(hide_password=False), driver)
        if driver == "psycopg2":
            result.append(jobs.drain(engine, "q", by="ada", reason="deploy", until=HOUR))
            return

        async def main() -> None:
            async_engine = create_async_engine(url)
            result.append(await jobs.drain(async_engine, "q", by="ada"))
            await async_engine.dispose()

        asyncio.run(main())

    waiter = threading.Thread(target=drain)
    waiter.start()
    wait_until(lambda: paused(jobs, engine) == ["q"])
    waiter.join(0.3)
    assert waiter.is_alive()
    end_job(engine, "running")
    waiter.join(20)

    assert result == [0]
    assert paused(jobs, engine) == ["q"], "it stays so"


def test_a_drain_tells_what_still_runs_in_the_end(jobs: BGJob, engine: Engine, soon: None) -> None:
    run_job(engine, "a")
    run_job(engine, "b")

    begun = time.monotonic()
    assert jobs.drain(engine, "q", timeout=0.3) == 2
    assert 0.3 <= time.monotonic() - begun < 20


def test_a_job_claimed_just_after_the_pause_is_waited_for(
    jobs: BGJob, engine: Engine, tune: Any
) -> None:
    """By a worker that has not heard of it."""
    tune(control, SEEN_WITHIN=0.5)
    looks: list[int] = []

    def look(_: Any, __: Any, statement: str, *___: Any) -> None:
        if "count(*)" in statement:
            looks.append(1)
            if len(looks) == 1:
                run_job(engine, "late")

    other = engine.execution_options()
    event.listen(other, "after_cursor_execute", look)
    try:
        assert jobs.drain(other, "q", timeout=0.8) == 1
    finally:
        event.remove(other, "after_cursor_execute", look)


def test_a_drain_leaves_no_transaction_open(jobs: BGJob, engine: Engine, soon: None) -> None:
    run_job(engine, "a")
    waiter = threading.Thread(target=jobs.drain, args=(engine, "q"), kwargs={"timeout": 5})
    waiter.start()
    wait_until(lambda: paused(jobs, engine) == ["q"])
    idle = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND state LIKE 'idle in transaction%' AND now() - xact_start > interval '0.1 s'"
    )
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_sleep(0.5)"))
        assert connection.scalar(idle) == 0
    end_job(engine, "a")
    waiter.join(20)


@pytest.mark.parametrize("kind", ["Session-psycopg", "AsyncSession-asyncpg", "Connection-psycopg"])
def test_a_drain_takes_no_transaction_of_others(jobs: BGJob, engine: Engine, kind: str) -> None:
    url = engine.url.render_as_string(hide_password=False)

    async def act() -> None:
        async with producer(kind, url) as its:
            with pytest.raises(TypeError, match="takes an Engine or AsyncEngine"):
                jobs.drain(its.target, "q")

    asyncio.run(act())
    assert rows(jobs, engine) == []


def test_infinity_is_a_pause_without_end(jobs: BGJob, engine: Engine) -> None:
    """Written by SQL, where it is a natural word; Python has no such time."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO bgjob_control (queue, paused_at, resume_at)"
                " VALUES ('q', now(), 'infinity')"
            )
        )
    with engine.connect() as connection:
        state = control.look(connection, statements_of(jobs.models))["q"]

    assert (state.is_paused, state.resumes_in, state.until) == (True, None, None)


@pytest.mark.parametrize("kind", ["control", "schedule"])
def test_a_table_that_is_out_of_reach_hides_no_worker(
    jobs: BGJob, engine: Engine, kind: str
) -> None:
    """Jobs of lost workers are found all the same."""
    statements = statements_of(jobs.models)
    with engine.connect() as other, engine.connect() as connection:
        other.execute(text(f"LOCK TABLE bgjob_{kind} IN ACCESS EXCLUSIVE MODE"))
        connection.execute(text("SET lock_timeout = '50ms'"))
        connection.commit()
        seen = rescue.look_at_workers(connection, statements)
        other.rollback()

    assert seen.refusal is not None
    assert seen.workers == ()
