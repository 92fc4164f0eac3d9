"""enqueue_many: many jobs in few statements, all or nothing."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Session

from sqlalchemy_bgjob import BGJob, BulkResult, InvalidArg, JobAlreadyExists, enqueue, enqueue_many
from sqlalchemy_bgjob._db.errors import sqlstate
from support import wait_until
from support.producers import KINDS, UNITS, Producer, Sent, produce
from support.rows import waiting
from support.shop import Job, Receipt, clean_up, jobs, note, send_receipt, store


class Base(DeclarativeBase):
    """Another application's."""


other_jobs = BGJob(Base)


@other_jobs.handler("other")
def other(ctx: Any, arg: Any) -> None: ...


def ids(session: Session) -> list[str]:
    return sorted(session.scalars(select(Job.id)))


def count(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Job)) or 0


@pytest.mark.core
def test_what_is_said_for_all_is_said_of_each(session: Session) -> None:
    at = datetime(2030, 1, 1, tzinfo=UTC)

    result = enqueue_many(
        session,
        send_receipt,
        (Receipt(n) for n in range(3)),
        ids=(f"r{n}" for n in range(3)),
        queue="slow",
        run_at=at,
        priority=-7,
        headers={"a": None},
    )

    assert result == BulkResult(3, ())
    rows = session.scalars(select(Job).order_by(Job.id)).all()
    assert [(job.id, job.arg_json["order_id"]) for job in rows] == [("r0", 0), ("r1", 1), ("r2", 2)]
    for job in rows:
        assert (job.queue, job.type, job.priority) == ("slow", "send_receipt", -7)
        assert (job.next_run_at, job.headers) == (at, {"a": None})


@pytest.mark.core
def test_jobs_of_several_handlers_go_together(session: Session) -> None:
    """Each as it was made, raw bytes and times included."""
    result = enqueue_many(
        session,
        [
            send_receipt.job(Receipt(1), delay=60),
            store.job(b"\xff", headers={"a": 1}),
            clean_up.job(priority=9),
            note.job([1], queue="q", run_at=datetime(2030, 1, 1, tzinfo=UTC)),
        ],
    )

    assert result == BulkResult(4, ())
    rows = {job.type: job for job in session.scalars(select(Job))}
    begun = session.scalar(select(func.now()))
    assert begun is not None
    assert rows["send_receipt"].next_run_at == begun + timedelta(seconds=60)
    assert rows["store"].arg == b"\xff"
    assert rows["store"].headers == {"a": 1, "content-type": "application/octet-stream"}
    assert (rows["clean_up"].arg, rows["clean_up"].priority) == (None, 9)
    assert rows["clean_up"].next_run_at == begun
    assert (rows["note"].queue, rows["note"].arg_json) == ("q", [1])


def test_ids_that_are_made_keep_the_order(session: Session) -> None:
    """Jobs of one transaction are due at the same time, and the id decides."""
    enqueue_many(session, note, range(6_000))
    enqueue(session, note, 6_000)
    enqueue_many(session, [note.job(n) for n in range(6_001, 6_100)])

    args = session.scalars(select(Job.arg_json).order_by(Job.next_run_at, Job.id))
    assert list(args) == list(range(6_100))


@pytest.mark.core
@pytest.mark.parametrize("empty", [[], (), iter(())], ids=["list", "tuple", "iterator"])
def test_nothing_is_nothing(empty: Any, session: Session) -> None:
    with Sent(session.connection()) as sent:
        assert enqueue_many(session, note, empty) == BulkResult(0, ())
        assert enqueue_many(session, note, [], ids=[]) == BulkResult(0, ())
        assert enqueue_many(session, []) == BulkResult(0, ())
        assert enqueue_many(session, note, [], on_conflict="ignore") == BulkResult(0, ())

    assert sent.statements == []


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_nothing_for_every_target(kind: str, shop: Engine) -> None:
    async def body(made: Producer) -> None:
        assert await made.do(enqueue_many(made.target, [])) == BulkResult(0, ())
        assert await made.do(enqueue_many(made.target, note, [])) == BulkResult(0, ())

    produce(kind, shop, body)


# ---- duplicates ----------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("kind", UNITS)
def test_raise_is_all_or_nothing_and_ignore_adds_the_rest(kind: str, clean: Engine) -> None:
    async def body(made: Producer) -> None:
        target = made.target
        await made.do(enqueue(target, note, 0, id="b"))
        with pytest.raises(JobAlreadyExists) as refused:
            await made.do(enqueue_many(target, note, [1, 2, 3], ids=["c", "b", "a"]))
        assert refused.value.ids == ("b",)
        rows = (await made.execute(select(Job.id))).scalars().all()
        assert rows == ["b"]
        await made.do(enqueue(target, note, 1, id="usable"))
        savepoint = await made.savepoint()
        result = await made.do(
            enqueue_many(target, note, [1, 2, 3], ids=["c", "b", "a"], on_conflict="ignore")
        )
        assert result == BulkResult(2, ("b",))
        with pytest.raises(JobAlreadyExists) as refused:
            await made.do(enqueue_many(target, note, [1, 2, 3, 4], ids=["a", "b", "c", "d"]))
        assert refused.value.ids == ("a", "b", "c")
        await made.do(savepoint.rollback())
        result = await made.do(enqueue_many(target, note, [8, 9], ids=["a", "d"]))
        assert result == BulkResult(2, ())
        await made.commit()

    produce(kind, clean, body)

    with Session(clean) as session:
        stored = {job.id: job.arg_json for job in session.scalars(select(Job))}
    assert stored == {"b": 0, "usable": 1, "a": 8, "d": 9}


def test_an_id_that_comes_twice_is_a_duplicate(session: Session) -> None:
    with pytest.raises(JobAlreadyExists) as refused:
        enqueue_many(session, note, [1, 2, 3], ids=["a", "b", "a"])
    assert refused.value.ids == ("a",)
    assert ids(session) == []

    result = enqueue_many(session, note, [1, 2, 3], ids=["a", "b", "a"], on_conflict="ignore")
    assert result == BulkResult(2, ("a",))
    assert ids(session) == ["a", "b"]


def test_the_same_job_twice_is_a_duplicate(session: Session) -> None:
    job = note.job(1)
    with pytest.raises(JobAlreadyExists):
        enqueue_many(session, [job, job])
    assert ids(session) == []
    assert enqueue_many(session, [job, job], on_conflict="ignore").inserted == 1


@pytest.mark.parametrize("count", [1, 600])
def test_jobs_that_were_sent_before_are_duplicates(clean: Engine, count: int) -> None:
    """By a bulk, or by session.add(); a copy, of 600, would abort the transaction."""
    by_bulk = [note.job(n) for n in range(count)]
    added = note.job(7)
    with Session(clean) as session:
        enqueue_many(session, by_bulk)
        session.add(added)
        session.commit()
        session.expunge(added)

        for again in (by_bulk, [*(note.job(n) for n in range(count)), added]):
            with pytest.raises(JobAlreadyExists):
                enqueue_many(session, again)
            assert len(ids(session)) == count + 1

        assert enqueue_many(session, by_bulk, on_conflict="ignore").inserted == 0


def test_jobs_whose_insert_was_rolled_back_are_new(session: Session) -> None:
    job = note.job(1)
    enqueue_many(session, [job])
    session.rollback()
    assert enqueue_many(session, [job]).inserted == 1


def test_duplicates_in_any_chunk_undo_all_chunks(session: Session) -> None:
    many = [f"{n:06}" for n in range(12_000)]
    enqueue(session, note, 0, id=many[-1])

    with pytest.raises(JobAlreadyExists) as refused:
        enqueue_many(session, note, [0] * 12_000, ids=many)

    assert refused.value.ids == (many[-1],)
    assert ids(session) == [many[-1]]


@pytest.mark.parametrize(
    ("rounds", "size"), [(15, 300), pytest.param(1_000, 50, marks=pytest.mark.chaos)]
)
def test_ids_in_opposite_orders_do_not_deadlock(clean: Engine, rounds: int, size: int) -> None:
    """Each producer meets the other's uncommitted ids, and both insert them in the same order."""
    many = [f"{n:04}" for n in range(size)]
    errors: list[BaseException] = []
    results: list[BulkResult] = []
    barrier = threading.Barrier(2)

    def produce(own: list[str]) -> None:
        engine = create_engine(clean.url)
        try:
            for turn in range(rounds):
                barrier.wait(30)
                turns_ids = [f"{turn}-{id}" for id in own]
                results.append(
                    enqueue_many(
                        engine, note, [turn] * len(own), ids=turns_ids, on_conflict="ignore"
                    )
                )
        except BaseException as error:
            errors.append(error)
            barrier.abort()
        finally:
            engine.dispose()

    threads = [threading.Thread(target=produce, args=(own,)) for own in (many, many[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(110)

    assert errors == []
    assert sum(result.inserted for result in results) == rounds * len(many)
    with Session(clean) as session:
        assert count(session) == rounds * len(many)


def test_a_second_producer_of_chunks_waits_in_the_same_order(clean: Engine) -> None:
    """Sorted over all chunks, not within each: the first id of each is the first that waits."""
    many = [f"{n:06}" for n in range(10_001)]
    results: list[BulkResult] = []
    with clean.connect() as first, first.begin():
        enqueue(first, note, 0, id=many[0])
        thread = threading.Thread(
            target=lambda: results.append(
                enqueue_many(clean, note, [1] * len(many), ids=many[::-1], on_conflict="ignore")
            )
        )
        thread.start()
        try:
            wait_until(lambda: waiting(clean) == 1, what="the second producer waits")
            # It holds none of the later ids while it waits for the first one.
            first.execute(text("SET LOCAL lock_timeout = '5s'"))
            enqueue(first, note, 0, id=many[-1])
        finally:
            first.commit()
            thread.join(60)

    assert results == [BulkResult(len(many) - 2, (many[0], many[-1]))]


@pytest.mark.core
def test_an_error_of_the_statement_is_the_callers_own(clean: Engine) -> None:
    """It passes unchanged, and the savepoint keeps the transaction usable."""
    with Session(clean) as holder, Session(clean) as session:
        enqueue(holder, note, 1, id="b")
        enqueue(session, note, 1, id="before")
        session.execute(text("SET LOCAL lock_timeout = '50ms'"))
        with pytest.raises(OperationalError) as refused:
            enqueue_many(session, note, [1, 2], ids=["a", "b"])
        assert sqlstate(refused.value) == "55P03"
        enqueue(session, note, 1, id="after")
        holder.rollback()
        session.commit()
        assert ids(session) == ["after", "before"]


def test_a_lost_connection_is_the_callers_own_error(clean: Engine) -> None:
    """Undoing the savepoint does not hide it."""
    kill = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = :pid")
    with Session(clean) as holder, clean.connect() as connection:
        enqueue(holder, note, 1, id="b")
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()

        def kill_the_waiting() -> None:
            wait_until(lambda: waiting(clean) == 1, what="the producer waits")
            with clean.connect() as killer:
                killer.execute(kill, {"pid": pid})

        thread = threading.Thread(target=kill_the_waiting)
        thread.start()
        with pytest.raises(OperationalError) as refused:
            enqueue_many(connection, note, [1, 2], ids=["a", "b"])
        thread.join(10)
        assert refused.value.connection_invalidated


# ---- how much is sent ----------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg2"])
@pytest.mark.parametrize(("number", "statements"), [(1000, 1), (5000, 1), (5001, 2)])
def test_five_thousand_jobs_are_one_statement(
    number: int, statements: int, driver: str, shop: Engine
) -> None:
    kind = f"{'AsyncConnection' if driver == 'asyncpg' else 'Connection'}-{driver}"

    async def body(made: Producer) -> None:
        with Sent(made.engine) as sent:
            await made.do(enqueue_many(made.target, note, range(number)))
        assert len(sent.inserts()) == statements
        assert len(sent.statements) == statements
        found = await made.execute(select(func.count()).select_from(Job))
        assert found.scalar() == number
        await made.rollback()

    produce(kind, shop, body)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
def test_eight_mebibytes_are_one_statement(driver: str, shop: Engine) -> None:
    """Large args are sent in several: the server holds a statement's parameters in memory."""
    kind = f"{'AsyncConnection' if driver == 'asyncpg' else 'Connection'}-{driver}"
    mebibyte = b"x" * 1_048_576

    async def body(made: Producer) -> None:
        for number, statements in ((8, 1), (9, 2)):
            with Sent(made.engine) as sent:
                await made.do(enqueue_many(made.target, store, [mebibyte] * number))
            assert len(sent.inserts()) == statements
        sizes = await made.execute(select(func.sum(func.length(Job.arg))))
        assert sizes.scalar() == 17 * 1_048_576
        await made.rollback()

    produce(kind, shop, body)


def test_a_savepoint_is_spent_for_own_ids_only(session: Session) -> None:
    """All or nothing needs one; what has generated ids can't be refused."""
    connection = session.connection()
    spent: list[str] = []
    event.listen(connection, "savepoint", lambda _, name: spent.append(name))

    enqueue_many(session, note, [1])
    enqueue_many(session, [note.job(1)])
    enqueue_many(session, note, [1], ids=["a"], on_conflict="ignore")
    assert spent == []
    enqueue_many(session, note, [1], ids=["b"])
    assert len(spent) == 1


# ---- what is refused before SQL ------------------------------------------------------------------


@dataclass
class Line:
    amount: int


@dataclass
class Bill:
    lines: list[Line]


@jobs.handler("bill")
def bill(ctx: Any, arg: Bill) -> None: ...


@pytest.mark.core
def test_the_path_begins_with_the_index(session: Session) -> None:
    """The first bad one of many is found in them."""
    good = Bill([Line(1)])
    bad = Bill([Line(1), Line("2")])  # type: ignore[arg-type]
    for args, path in (
        ([good, good, bad], "[2].lines[1].amount"),
        ([bad], "[0].lines[1].amount"),
        ([good, None], "[1]"),
        ([good, {"lines": [{"amount": float("nan")}]}], "[1].lines[0].amount"),
        ([good, {}], "[1].lines"),
    ):
        with Sent(session.connection()) as sent, pytest.raises(InvalidArg) as refused:
            enqueue_many(session, bill, args)  # type: ignore[arg-type]
        assert refused.value.path == path
        assert sent.statements == []
    assert count(session) == 0


def test_the_path_of_headers_does_not(session: Session) -> None:
    """They are the same for all."""
    with pytest.raises(InvalidArg) as refused:
        enqueue_many(session, note, [1, 2], headers={"a": [float("nan")]})

    assert refused.value.path == "headers.a[0]"


def test_as_many_ids_as_args(session: Session) -> None:
    for own in ([], ["a"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match=f"{len(own)} ids for 2 args"):
            enqueue_many(session, note, [1, 2], ids=own)
    with pytest.raises(TypeError, match="needs args"):
        enqueue_many(session, note)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "given",
    [
        {"args": [1]},
        {"ids": ["a"]},
        {"queue": "q"},
        {"delay": 0},
        {"priority": 1},
        {"headers": {"a": 1}},
    ],
    ids=str,
)
def test_jobs_that_are_made_say_themselves_what_they_are(
    given: dict[str, Any], session: Session
) -> None:
    with pytest.raises(TypeError, match=r"handler\.job\("):
        enqueue_many(session, [note.job(1)], **given)  # type: ignore[call-overload]


@pytest.mark.core
def test_only_jobs_that_handlers_made_go_in_bulk(session: Session) -> None:
    for wrong in ([Job(queue="q", type="t")], [1], ["a"], [None], [note]):
        with pytest.raises(TypeError, match=r"jobs made by handler\.job"):
            enqueue_many(session, wrong)
    with pytest.raises(TypeError, match="a handler or jobs, not int"):
        enqueue_many(session, 7)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"different BGJob.* call enqueue_many once for each"):
        enqueue_many(session, [note.job(1), other.job(1)])
    added = note.job(1)
    session.add(added)
    with pytest.raises(ValueError, match="is in a session already"):
        enqueue_many(session, [note.job(2), added])


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("priority", 3),
        ("queue", "other"),
        ("id", "mine"),
        ("arg", {"a": 2}),
        ("headers", {"a": 1}),
        ("next_run_at", datetime(2030, 1, 1, tzinfo=UTC)),
        ("last_error", "none"),
    ],
)
def test_what_was_set_on_a_job_afterwards_is_never_lost(
    name: str, value: Any, session: Session
) -> None:
    """A bulk statement does not look at the object: it would insert the job as it was made."""
    job = note.job({"a": 1})
    setattr(job, name, value)

    with pytest.raises(ValueError, match=rf"{name}.*session\.add_all"):
        enqueue_many(session, [note.job(1), job])

    session.add(job)
    session.flush()
    session.expire(job)
    assert getattr(job, name) == value or job.arg_json == value
