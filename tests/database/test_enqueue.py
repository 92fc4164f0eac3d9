"""enqueue: what it stores, what it refuses before SQL, and when the workers hear of it."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import UUID, uuid4

import msgspec
import psycopg
import pydantic
import pytest
from sqlalchemy import Connection, Engine, create_engine, delete, func, insert, select, text
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import (
    InvalidArg,
    JobAlreadyExists,
    JobRef,
    enqueue,
    enqueue_from,
    enqueue_many,
)
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob._sql.words import own_channel
from support import wait_until, with_driver
from support.databases import private_server
from support.producers import FEW_UNITS, UNITS, Producer, Sent, produce
from support.rows import keep_out, waiting
from support.shop import (
    Invoice,
    Job,
    Order,
    Receipt,
    clean_up,
    jobs,
    make_tables,
    note,
    send_invoice,
    send_receipt,
    store,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy_bgjob import JobType
    from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres

FAR = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
CHANNEL = statements_of(jobs.models).tables.channel


def the_job(session: Session) -> Any:
    return session.scalars(select(Job)).one()


def count(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Job)) or 0


# ---- what is stored ------------------------------------------------------------------------------


@pytest.mark.core
def test_a_job_is_stored_as_it_was_given(session: Session) -> None:
    ref = enqueue(
        session,
        send_receipt,
        Receipt(7),
        id="receipt-7",
        queue="slow",
        run_at=FAR,
        priority=-5,
        headers={"request_id": "r1", "nested": {"a": [1, None, True]}},
    )

    assert ref == JobRef("receipt-7", inserted=True)
    job = the_job(session)
    assert (job.id, job.queue, job.type, job.priority) == ("receipt-7", "slow", "send_receipt", -5)
    assert job.next_run_at == FAR
    assert job.headers == {"request_id": "r1", "nested": {"a": [1, None, True]}}
    assert (job.attempt, job.crashes, job.claimed_by, job.last_error) == (0, 0, None, None)
    assert job.unknown_since is None
    begun = session.scalar(select(func.now()))
    assert job.created_at == job.updated_at == begun
    assert abs(job.lease / 1_000_000 - job.created_at.timestamp()) < 60


def test_the_rest_is_the_handlers_and_the_databases(session: Session) -> None:
    ref = enqueue(session, send_receipt, Receipt(7))

    job = the_job(session)
    assert job.id == ref.id
    assert UUID(job.id).version == 7
    assert (job.queue, job.priority, job.headers) == ("mail", 0, None)
    assert job.next_run_at == session.scalar(select(func.now()))


class Struct(msgspec.Struct):
    number: int
    at: datetime


class Model(pydantic.BaseModel):
    number: int
    mail: str | None = None


class Pair(NamedTuple):
    left: int
    right: str


@jobs.handler("takes_struct")
def takes_struct(ctx: Any, arg: Struct) -> None: ...


@jobs.handler("takes_model")
def takes_model(ctx: Any, arg: Model) -> None: ...


@jobs.handler("takes_many")
def takes_many(ctx: Any, arg: list[Model] | None) -> None: ...


@jobs.handler("takes_choice")
def takes_choice(ctx: Any, arg: Literal["a", "b"]) -> None: ...


STORED: list[tuple[JobType[Any], Any, bytes | None]] = [
    (send_receipt, Receipt(1, "é"), b'{"order_id":1,"note":"\xc3\xa9"}'),
    (takes_struct, Struct(1, FAR), b'{"number":1,"at":"2030-01-02T03:04:05.678901Z"}'),
    (takes_model, Model(number=1), b'{"number":1,"mail":null}'),
    (takes_many, [Model(number=1)], b'[{"number":1,"mail":null}]'),
    (takes_many, None, None),
    (takes_choice, "a", b'"a"'),
    (send_invoice, Invoice(UUID(int=1), FAR, Decimal("1.10")), None),
    (store, b"\x00\xff raw", b"\x00\xff raw"),
    (store, b"", b""),
    (note, {"a": [1, 2.5, None, True, "x"]}, b'{"a":[1,2.5,null,true,"x"]}'),
    (note, 0, b"0"),
    (note, False, b"false"),
    (note, "", b'""'),
    (note, [], b"[]"),
    (note, None, None),
    (note, b"raw", b"raw"),
    (clean_up, None, None),
]


@pytest.mark.core
@pytest.mark.parametrize(("handler", "arg", "data"), STORED, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
def test_an_arg_comes_back_as_it_went(
    driver: str, handler: JobType[Any], arg: Any, data: bytes | None, shop: Engine
) -> None:
    """One by one, in bulk and as an object: the same bytes, the same content type."""

    async def body(made: Producer) -> None:
        await made.do(enqueue(made.target, handler, arg))
        await made.do(enqueue_many(made.target, handler, [arg]))
        made.target.add(handler.job(arg))
        rows = (await made.execute(select(Job))).scalars().all()
        assert len(rows) == 3
        for row in rows:
            assert handler.decode(row.arg, row.headers) == arg
            if data is not None or arg is None:
                assert row.arg == data
            is_raw = isinstance(arg, bytes)
            assert row.headers == ({"content-type": "application/octet-stream"} if is_raw else None)
        await made.rollback()

    run(driver, shop, body)


def run(driver: str, shop: Engine, body: Any) -> None:
    kind = f"{'AsyncSession' if driver == 'asyncpg' else 'Session'}-{driver}"

    produce(kind, shop, body)


@pytest.mark.core
def test_arg_json_reads_json_and_leaves_bytes_alone(session: Session) -> None:
    """One row of bytes must not fail the user's whole query."""
    enqueue(session, note, {"n": 1}, id="1")
    enqueue(session, store, b"\x00\xff", id="2")
    enqueue(session, note, None, id="3")
    enqueue(session, note, "text", id="4", headers={"other": 1})

    in_sql = session.execute(select(Job.id, Job.arg_json).order_by(Job.id)).all()

    assert [tuple(row) for row in in_sql] == [
        ("1", {"n": 1}),
        ("2", None),
        ("3", None),
        ("4", "text"),
    ]
    for job in session.scalars(select(Job)):
        assert job.arg_json == dict(map(tuple, in_sql))[job.id]
    found = session.scalars(select(Job.id).where(Job.arg_json["n"].as_integer() == 1)).all()
    assert found == ["1"]


def test_headers_are_plain_json(session: Session) -> None:
    """Also values that the engine's own JSON serializer does not know."""
    id_ = uuid4()
    given = {"at": FAR, "id": id_, "é": "%s :x", "deep": {"amount": Decimal("1.5")}}

    enqueue(session, send_receipt, Receipt(1), headers=given)
    enqueue_many(session, send_receipt, [Receipt(1)], headers=given)
    session.add(send_receipt.job(Receipt(1), headers=given))

    for headers in session.scalars(select(Job.headers)):
        assert headers == {
            "at": "2030-01-02T03:04:05.678901Z",
            "id": str(id_),
            "é": "%s :x",
            "deep": {"amount": "1.5"},
        }
    enqueue(session, store, b"x", id="raw", headers={"a": 1})
    assert session.scalar(select(Job.headers).where(Job.id == "raw")) == {
        "a": 1,
        "content-type": "application/octet-stream",
    }
    enqueue(session, note, 1, id="empty", headers={})
    assert session.scalar(select(Job.headers.is_(None)).where(Job.id == "empty")) is True


def test_a_type_that_is_registered_here_is_checked_by_name_too(session: Session) -> None:
    jobs.enqueue(session, "send_receipt", {"order_id": 3}, id="a")
    jobs.enqueue(session, "elsewhere", {"any": ["thing"]}, queue="there", id="b")
    jobs.enqueue(session, "elsewhere", b"raw", queue="there", id="c")

    rows = session.execute(select(Job.queue, Job.type, Job.arg).order_by(Job.id)).all()
    assert [tuple(row) for row in rows] == [
        ("mail", "send_receipt", b'{"order_id":3}'),
        ("there", "elsewhere", b'{"any":["thing"]}'),
        ("there", "elsewhere", b"raw"),
    ]
    with pytest.raises(InvalidArg, match="order_id"):
        jobs.enqueue(session, "send_receipt", {"order": 3})
    with pytest.raises(ValueError, match="not known; did you mean 'send_receipt'"):
        jobs.enqueue(session, "send_reciept", {"order_id": 3})
    with pytest.raises(ValueError, match="give queue="):
        jobs.enqueue(session, "elsewhere", 1)
    with pytest.raises((InvalidArg, TypeError)):
        jobs.enqueue(session, "clean_up", 1)


# ---- ids -----------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("kind", UNITS)
def test_a_duplicate_leaves_the_transaction_usable(kind: str, clean: Engine) -> None:
    """Refused or ignored, also within a savepoint that is then undone."""

    async def body(made: Producer) -> None:
        target = made.target
        await made.do(enqueue(target, note, 1, id="daily"))
        with pytest.raises(JobAlreadyExists) as refused:
            await made.do(enqueue(target, note, 2, id="daily"))
        assert refused.value.ids == ("daily",)
        ref = await made.do(enqueue(target, note, 3, id="daily", on_conflict="ignore"))
        assert ref == JobRef("daily", inserted=False)
        savepoint = await made.savepoint()
        await made.do(enqueue(target, note, 4, id="inner"))
        with pytest.raises(JobAlreadyExists):
            await made.do(enqueue(target, note, 5, id="daily"))
        await made.do(savepoint.rollback())
        assert (await made.do(enqueue(target, note, 6, id="inner"))).inserted
        await made.commit()

    produce(kind, clean, body)

    with Session(clean) as session:
        stored = {job.id: job.arg_json for job in session.scalars(select(Job))}
    assert stored == {"daily": 1, "inner": 6}


def test_what_a_trigger_keeps_out_is_no_duplicate(session: Session) -> None:
    """Nobody else has an id that was made a moment ago."""
    keep_out(session, "NEW.type = 'note'")

    with pytest.raises(RuntimeError, match="look for a trigger on the table of jobs"):
        enqueue(session, note, 1)
    assert enqueue(session, note, 1, on_conflict="ignore").inserted is False
    assert enqueue_many(session, note, [1, 2]).inserted == 0


@pytest.mark.core
@pytest.mark.parametrize("lock", ["FOR UPDATE", "FOR NO KEY UPDATE"])
def test_a_duplicate_of_a_locked_row_is_told_at_once(lock: str, clean: Engine) -> None:
    """work_one, for one, holds the lock of its row for as long as the handler runs."""
    enqueue(clean, note, 1, id="daily")
    with clean.connect() as holder, Session(clean) as session:
        holder.execute(text(f"SELECT * FROM bgjob_job {lock}"))
        session.execute(text("SET LOCAL statement_timeout = '1s'"))

        assert enqueue(session, note, 2, id="daily", on_conflict="ignore").inserted is False
        with pytest.raises(JobAlreadyExists):
            enqueue(session, note, 2, id="daily")
        with pytest.raises(JobAlreadyExists):
            enqueue_many(session, note, [1, 2], ids=["other", "daily"])
        query = select(func.concat("da", "ily").label("id"), func.now().label("x"))
        assert enqueue_from(session, note, query, on_conflict="ignore") == 0


def test_the_id_is_free_again_when_the_job_is_done(clean: Engine) -> None:
    enqueue(clean, note, 1, id="daily")
    with clean.begin() as connection:
        first = connection.execute(select(Job.lease)).scalar_one()
        connection.execute(delete(Job))

    assert enqueue(clean, note, 2, id="daily").inserted
    with clean.connect() as connection:
        assert connection.execute(select(Job.lease)).scalar_one() > first


def test_one_of_two_producers_waits_for_the_other_and_is_told(clean: Engine) -> None:
    """What an uncommitted insert of the same id will come to is not known before it ends."""
    results: list[JobRef] = []
    with Session(clean) as first:
        enqueue(first, note, 1, id="daily")
        thread = threading.Thread(
            target=lambda: results.append(enqueue(clean, note, 2, id="daily", on_conflict="ignore"))
        )
        thread.start()
        try:
            wait_until(lambda: waiting(clean) == 1, what="the second producer waits")
        finally:
            first.commit()
            thread.join(10)

    assert results == [JobRef("daily", inserted=False)]


# ---- times ---------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
def test_a_delay_counts_from_the_start_of_the_transaction(driver: str, shop: Engine) -> None:
    async def body(made: Producer) -> None:
        begun = (await made.execute(select(func.now()))).scalar_one()
        later = select(func.clock_timestamp() > begun + timedelta(milliseconds=20))
        deadline = time.monotonic() + 10
        while not (await made.execute(later)).scalar_one():
            assert time.monotonic() < deadline
        for delay in (90, 90.0, timedelta(minutes=1.5)):
            await made.do(enqueue(made.target, note, 1, delay=delay))
            await made.do(enqueue_many(made.target, note, [1], delay=delay))
            made.target.add(note.job(1, delay=delay))
        times = (await made.execute(select(Job.next_run_at))).scalars().all()
        assert len(times) == 9
        assert set(times) == {begun + timedelta(seconds=90)}
        await made.rollback()

    run(driver, shop, body)


@pytest.mark.parametrize("delay", [0, 0.0, timedelta(0), None])
def test_no_delay_is_due_at_once(delay: Any, session: Session) -> None:
    enqueue(session, note, 1, delay=delay)
    session.add(note.job(1, delay=delay))

    begun = session.scalar(select(func.now()))
    assert set(session.scalars(select(Job.next_run_at))) == {begun}


MOMENTS = [
    FAR,
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(9998, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC),
    datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=-11, minutes=-59))),
    datetime(2030, 1, 1, tzinfo=timezone(timedelta(seconds=1172))),
]


@pytest.mark.core
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
def test_run_at_is_exact_in_every_zone(driver: str, shop: Engine) -> None:
    async def body(made: Producer) -> None:
        for moment in MOMENTS:
            await made.do(enqueue(made.target, note, 1, run_at=moment))
            await made.do(enqueue_many(made.target, note, [1], run_at=moment))
            made.target.add(note.job(1, run_at=moment))
            made.target.add(Job(queue="q", type="t", next_run_at=moment))
        times = (await made.execute(select(Job.next_run_at))).scalars().all()
        assert sorted(times) == sorted(MOMENTS * 4)
        await made.rollback()

    run(driver, shop, body)


# ---- what is refused before SQL ------------------------------------------------------------------

NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001
HUGE = "x" * 1_048_577

BAD: dict[str, tuple[JobType[Any], Any, dict[str, Any], type[Exception], str]] = {
    "naive run_at": (note, 1, {"run_at": NAIVE}, ValueError, "no time zone"),
    "run_at too early": (
        note,
        1,
        {"run_at": datetime(1969, 12, 31, tzinfo=UTC)},
        ValueError,
        "1970",
    ),
    "run_at too late": (note, 1, {"run_at": datetime.max.replace(tzinfo=UTC)}, ValueError, "9998"),
    "run_at beyond": (
        note,
        1,
        {"run_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-23)))},
        ValueError,
        "9998",
    ),
    "run_at text": (note, 1, {"run_at": "2030-01-01"}, TypeError, "datetime"),
    "both": (note, 1, {"run_at": FAR, "delay": 1}, ValueError, "not both"),
    "negative delay": (note, 1, {"delay": -0.001}, ValueError, "between 0"),
    "negative timedelta": (note, 1, {"delay": timedelta(seconds=-1)}, ValueError, "between 0"),
    "huge delay": (note, 1, {"delay": 1e15}, ValueError, "between 0"),
    "greatest timedelta": (note, 1, {"delay": timedelta.max}, ValueError, "between 0"),
    "nan delay": (note, 1, {"delay": float("nan")}, ValueError, "between 0"),
    "delay text": (note, 1, {"delay": "5"}, TypeError, "seconds"),
    "delay bool": (note, 1, {"delay": True}, TypeError, "seconds"),
    "priority above": (note, 1, {"priority": 32_768}, ValueError, "32767"),
    "priority below": (note, 1, {"priority": -32_769}, ValueError, "-32768"),
    "priority float": (note, 1, {"priority": 1.0}, TypeError, "int"),
    "priority bool": (note, 1, {"priority": True}, TypeError, "int"),
    "priority None": (note, 1, {"priority": None}, TypeError, "int"),
    "queue empty": (note, 1, {"queue": ""}, ValueError, "1 to 128"),
    "queue long": (note, 1, {"queue": "q" * 129}, ValueError, "1 to 128"),
    "queue NUL": (note, 1, {"queue": "a\0"}, ValueError, "NUL"),
    "queue surrogate": (note, 1, {"queue": "a\ud800"}, ValueError, "surrogate"),
    "queue bytes": (note, 1, {"queue": b"mail"}, TypeError, "str"),
    "id empty": (note, 1, {"id": ""}, ValueError, "1 to 255"),
    "id long": (note, 1, {"id": "i" * 256}, ValueError, "1 to 255"),
    "id NUL": (note, 1, {"id": "\0"}, ValueError, "NUL"),
    "id surrogate": (note, 1, {"id": "\udfff"}, ValueError, "surrogate"),
    "id number": (note, 1, {"id": 7}, TypeError, "str"),
    "id UUID": (note, 1, {"id": UUID(int=1)}, TypeError, "str"),
    "on_conflict": (note, 1, {"on_conflict": "update"}, ValueError, "neither"),
    "headers list": (note, 1, {"headers": [("a", 1)]}, TypeError, "mapping"),
    "headers nan": (note, 1, {"headers": {"a": float("nan")}}, InvalidArg, "headers.a"),
    "headers NUL": (note, 1, {"headers": {"a": {"b": "\0"}}}, InvalidArg, "headers.a.b"),
    "headers key NUL": (note, 1, {"headers": {"a\0": 1}}, InvalidArg, "headers"),
    "headers surrogate": (note, 1, {"headers": {"a": "\ud800"}}, InvalidArg, "headers.a"),
    "headers huge": (note, 1, {"headers": {"a": "x" * 70_000}}, InvalidArg, "headers"),
    "headers object": (note, 1, {"headers": {"a": object()}}, InvalidArg, "headers.a"),
    "headers set": (note, 1, {"headers": {"content-type": "x"}}, ValueError, "derived"),
    "arg NUL": (note, {"a": [1, "x\0"]}, {}, InvalidArg, r"\$\.a\[1\]"),
    "arg key NUL": (note, {"a\0": 1}, {}, InvalidArg, r"\$"),
    "arg surrogate": (note, ["\ud800"], {}, InvalidArg, r"\$\[0\]"),
    "arg NaN": (note, {"a": float("nan")}, {}, InvalidArg, r"\$\.a"),
    "arg inf": (note, [float("-inf")], {}, InvalidArg, r"\$\[0\]"),
    "arg huge": (note, HUGE, {}, InvalidArg, "1 MiB|1048576"),
    "arg huge bytes": (store, HUGE.encode(), {}, InvalidArg, "1 MiB|1048576"),
    "arg deep": (note, 1, {}, InvalidArg, r"\$"),
    "arg function": (note, {"f": print}, {}, InvalidArg, r"\$\.f"),
    "arg of another class": (
        send_receipt,
        Invoice(UUID(int=1), FAR, Decimal(1)),
        {},
        InvalidArg,
        r"\$.order_id",
    ),
    "arg missing": (send_receipt, None, {}, InvalidArg, "Receipt"),
    "field of another type": (
        send_receipt,
        Receipt("7"),  # type: ignore[arg-type]
        {},
        InvalidArg,
        r"\$\.order_id",
    ),
    "bytes for a dataclass": (send_receipt, b"{}", {}, InvalidArg, "bytes"),
    "text for bytes": (store, "text", {}, InvalidArg, "bytes"),
    "orm object": (note, Order(id=1, email="a"), {}, InvalidArg, "primary key"),
    "orm object inside": (note, {"o": Order(id=1, email="a")}, {}, InvalidArg, r"\$\.o"),
    "an arg for none": (clean_up, 1, {}, TypeError, "takes no arg"),
}
_deep: Any = 1
for _ in range(3_000):
    _deep = [_deep]
BAD["arg deep"] = (note, _deep, {}, InvalidArg, "nested")


@pytest.mark.core
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_input_is_refused_before_sql(bad: Any, session: Session) -> None:
    """In every way to enqueue; the transaction is as usable as before."""
    handler, arg, given, error, problem = bad
    problem = problem.replace(r"\$", r"(\$|\[0\])")  # in bulk the path begins with the index
    connection = session.connection()
    own_id = {"ids": [given["id"]]} if "id" in given else {}
    shared = {name: value for name, value in given.items() if name != "id"}
    ways: list[Callable[[], Any]] = [
        lambda: enqueue(session, handler, arg, **given),
        lambda: enqueue(connection, handler, arg, **given),
        lambda: enqueue_many(session, handler, [arg], **shared, **own_id),
    ]
    if handler is not clean_up:
        ways.append(lambda: jobs.enqueue(session, handler.type, arg, **given))
    if "id" not in given and "on_conflict" not in given:
        ways.append(lambda: session.add(handler.job(arg, **given)))

    with Sent(connection) as sent:
        for way in ways:
            with pytest.raises(error, match=problem) as refused:
                way()
            assert HUGE not in str(refused.value)

    assert sent.statements == []
    assert enqueue(session, note, 1).inserted
    assert count(session) == 1


@pytest.mark.parametrize("wrong", [None, "send_receipt", print, Receipt, Receipt(1)], ids=str)
def test_what_is_no_handler_is_refused_by_name(wrong: Any, session: Session) -> None:
    for use in (
        lambda: enqueue(session, wrong, Receipt(1)),
        lambda: enqueue_from(session, wrong, select(Order.id)),
    ):
        remedy = (
            r"jobs\.enqueue\(target, 'send_receipt'" if isinstance(wrong, str) else "decorate it"
        )
        with pytest.raises(TypeError, match=f"not a registered handler; .*{remedy}"):
            use()
    with pytest.raises(TypeError):
        enqueue_many(session, wrong, [Receipt(1)])


NAMES = [
    "emoji 😀👩‍👩‍👧",
    "right to left \u202e אב",
    "'; DROP TABLE bgjob_job; --",
    "\"quoted\" and 'single'",
    "%s %(name)s %%",
    ":x :given_id ::text",
    "{} {0} ${x} $1",
    "\\ \\n \\x00",
    "new\nline\ttab\r",
    " leading and trailing ",
    "Case",
    "case",
    "n" * 128,
    "é" * 128,
    "😀" * 128,
]


@pytest.mark.core
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
def test_every_name_round_trips(driver: str, shop: Engine) -> None:
    """Queues, types and ids are values to SQL, never text in it."""

    async def body(made: Producer) -> None:
        with Sent(made.engine) as sent:
            for name in NAMES:
                await made.do(jobs.enqueue(made.target, name, name, queue=name, id=name))
                job = note.job(name, queue=name, headers={name: name})
                await made.do(enqueue_many(made.target, [job]))
                made.target.add(Job(queue=name, type=name, arg=name))
            rows = (await made.execute(select(Job))).scalars().all()
        for name in NAMES:
            mine = [row for row in rows if row.queue == name]
            assert len(mine) == 3
            assert {row.arg_json for row in mine} == {name}
            assert sorted(row.type for row in mine) == sorted([name, name, "note"])
            assert any(row.id == name for row in mine)
            assert any(row.headers == {name: name} for row in mine)
        assert not [name for name in NAMES if any(name in sql for sql in sent.statements)]
        await made.rollback()

    run(driver, shop, body)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
def test_the_greatest_of_everything_is_stored(driver: str, shop: Engine) -> None:
    async def body(made: Producer) -> None:
        largest = "x" * (1_048_576 - 2)
        for way in (
            lambda: enqueue(made.target, note, largest, id="😀" * 255, priority=32_767),
            lambda: enqueue(made.target, store, b"\xff" * 1_048_576, priority=-32_768),
            lambda: enqueue(made.target, note, 1, delay=100 * 366 * 86_400),
        ):
            assert (await made.do(way())).inserted
        await made.rollback()

    run(driver, shop, body)


# ---- how much is sent ----------------------------------------------------------------------------


@pytest.mark.core
def test_one_job_is_one_statement(shop: Engine) -> None:
    with Session(shop) as session, Sent(shop) as sent:
        enqueue(session, send_receipt, Receipt(1), id="one")

    assert len(sent.statements) == 1


def test_an_engines_transaction_is_closed_again(clean: Engine) -> None:
    for _ in range(20):
        with pytest.raises(ValueError, match="NUL"):
            enqueue(clean, note, 1, id="\0")
        enqueue(clean, note, 1)
    assert clean.pool.checkedout() == 0  # type: ignore[attr-defined]


# ---- who hears of it -----------------------------------------------------------------------------


AWAITED = ["rolled back", "one", "many", "empty", "from", "by name", "undone", "added", "plain"]


def say(engine: Engine, *queues: str) -> None:
    """A worker says that it waits for these."""
    values = {"id": 1, "pid": 1, "hostname": "h", "version": "0", "queues": {}}
    worker = jobs.models.worker
    with engine.begin() as connection:
        connection.execute(delete(worker))
        connection.execute(
            insert(worker).values(**values, lease_timeout=30.0, waits_for=list(queues))
        )


class Listener:
    """A session that listens as that worker's does, which waits for all queues of the tests."""

    def __init__(self, engine: Engine) -> None:
        say(engine, *AWAITED, "inner added", "mail", "default", "q")
        url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute(f"LISTEN {CHANNEL}")
        self._connection.execute(f"LISTEN {own_channel(CHANNEL, 1)}")

    def heard(self) -> list[str]:
        """The queues of all notifications so far: what was committed before this call is in."""
        self._connection.execute(f"NOTIFY {CHANNEL}, 'end of the test'")
        queues: list[str] = []
        for notification in self._connection.notifies(timeout=10):
            if notification.payload == "end of the test":
                return sorted(queues)
            assert notification.channel == own_channel(CHANNEL, 1)
            queues.append(notification.payload.removeprefix("new 0 "))
        raise AssertionError("the notifications did not come")

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def listener(clean: Engine) -> Iterator[Listener]:
    listener = Listener(clean)
    yield listener
    listener.close()


@pytest.mark.core
@pytest.mark.parametrize("kind", UNITS)
def test_workers_hear_of_what_was_committed_only(
    kind: str, clean: Engine, listener: Listener
) -> None:
    """After the COMMIT, once for each queue, and not of what a savepoint took back."""

    async def body(made: Producer) -> None:
        target = made.target
        await made.do(enqueue(target, note, 1, queue="rolled back"))
        await made.rollback()
        assert listener.heard() == []
        await made.do(enqueue(target, note, 1, queue="one"))
        await made.do(enqueue(target, note, 1, queue="one"))
        await made.do(enqueue_many(target, note, [1, 2], queue="many"))
        await made.do(enqueue_from(target, note, select(Order.email), queue="empty"))
        await made.do(enqueue_from(target, note, select(func.now().label("t")), queue="from"))
        await made.do(jobs.enqueue(target, "t", queue="by name"))
        savepoint = await made.savepoint()
        await made.do(enqueue(target, note, 1, queue="undone"))
        await made.do(savepoint.rollback())
        if made.is_session:
            target.add_all([note.job(n, queue="added") for n in range(10)])
            target.add(Job(queue="plain", type="t"))
            inner = await made.savepoint()
            target.add(note.job(1, queue="inner added"))
            await made.do(target.flush())
            await made.do(inner.rollback())
        assert listener.heard() == []
        await made.commit()

    produce(kind, clean, body)

    added = ["added", "plain"] if "ession" in kind or "SQLModel" in kind or "Flask" in kind else []
    assert listener.heard() == sorted(["one", "many", "from", "by name", *added])


@pytest.mark.core
@pytest.mark.parametrize("kind", FEW_UNITS)
def test_nobody_is_told_what_nobody_waits_for(kind: str, clean: Engine, listener: Listener) -> None:
    """Every COMMIT that notifies holds up all others that do; a busy worker looks by itself."""
    say(clean, "another queue")

    async def body(made: Producer) -> None:
        target = made.target
        await made.do(enqueue(target, note, 1, queue="one"))
        await made.do(enqueue_many(target, note, range(600), queue="many"))
        await made.do(enqueue_from(target, note, select(func.now().label("t")), queue="from"))
        if made.is_session:
            target.add(note.job(1, queue="added"))
        await made.commit()

    produce(kind, clean, body)

    assert listener.heard() == []


def test_a_job_added_after_a_savepoint_rollback_wakes_a_worker(
    clean: Engine, listener: Listener
) -> None:
    """What was said within the savepoint went with it."""
    with Session(clean) as session:
        inner = session.begin_nested()
        session.add(note.job(1, queue="mail"))
        session.flush()
        inner.rollback()
        session.add(note.job(2, queue="mail"))
        session.commit()
        assert listener.heard() == ["mail"]

        session.add(note.job(3, queue="mail"))
        session.commit()
    assert listener.heard() == ["mail"]


def test_adding_a_thousand_jobs_says_it_once(clean: Engine) -> None:
    with Session(clean) as session, Sent(clean) as sent:
        session.add_all([note.job(n) for n in range(1000)])
        session.commit()

    assert len([sql for sql in sent.statements if "pg_notify" in sql]) == 1


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_two_phase_transactions_take_jobs_without_a_word(
    driver: str, own_server: EmbeddedPostgres
) -> None:
    """PostgreSQL refuses to prepare a transaction that has used NOTIFY.

    The server is the test's own: by default PostgreSQL allows no prepared transactions.
    """
    engine = create_engine(with_driver(own_server.url, driver))
    make_tables(engine)
    clean = create_engine(own_server.url)
    listener = Listener(clean)

    def fill(target: Any) -> None:
        enqueue(target, note, 1)
        enqueue_many(target, note, [2, 3], ids=["two", "three"])
        enqueue_from(target, note, select(func.now().label("t")))
        with target.begin_nested():
            enqueue(target, note, 4)

    with Session(engine, twophase=True) as session:
        fill(session)
        session.add_all([note.job(5), Job(queue="q", type="t")])
        session.commit()
        fill_again = "the session is as usable as before"
        enqueue(session, note, fill_again)
        session.prepare()
        session.commit()
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(delete(Job).where(Job.id.in_(["two", "three"])))
        fill(connection)
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            enqueue(session, note, 6)
            session.add(note.job(7))
            session.commit()
        transaction.prepare()
        transaction.commit()
    with Session(engine, twophase=True) as session:
        fill_rolled_back = enqueue(session, note, 8)
        assert fill_rolled_back.inserted
        session.rollback()
    engine.dispose()

    assert listener.heard() == []
    listener.close()
    with Session(clean) as session:
        assert count(session) == 5 + 2 + 1 + 5 - 2 + 2
    clean.dispose()


def test_a_server_without_prepared_transactions_changes_nothing() -> None:
    """The default of PostgreSQL: only the user's own two-phase session fails there."""
    with private_server(max_prepared_transactions="0") as server:
        check_plain_server(server)


def check_plain_server(server: EmbeddedPostgres) -> None:
    engine = create_engine(with_driver(server.url, "psycopg"))
    make_tables(engine)
    with Session(engine) as session:
        enqueue(session, note, 1)
        session.add(note.job(2))
        session.commit()
        assert count(session) == 2
    engine.dispose()


def test_a_job_refers_to_a_row_that_is_flushed_with_it(clean: Engine) -> None:
    """The flush of a new order gives it the id that the arg needs."""
    with Session(clean) as session, session.begin():
        order = Order(email="a")
        session.add(order)
        with pytest.raises(InvalidArg, match=r"\$\.order_id"):
            enqueue(session, send_receipt, Receipt(order.id))
        session.flush()
        enqueue(session, send_receipt, Receipt(order.id))

    with Session(clean) as session:
        assert the_job(session).arg_json["order_id"] == session.scalars(select(Order.id)).one()


def test_a_lost_answer_to_commit_leaves_one_live_job(clean: Engine) -> None:
    """A caller that does not know whether its COMMIT came through says it again, in time."""
    with Session(clean) as session:
        enqueue(session, note, 1, id="order-7")
        session.commit()
    with Session(clean) as again:
        assert not enqueue(again, note, 1, id="order-7", on_conflict="ignore").inserted
        again.commit()
        assert count(again) == 1


def test_connection_is_the_callers_own(shop: Engine) -> None:
    """Nothing is closed or ended that was not begun here."""
    with shop.connect() as connection:
        assert isinstance(connection, Connection)
        with connection.begin() as transaction:
            enqueue(connection, note, 1)
            enqueue_many(connection, note, [1], ids=["x"])
            assert transaction.is_active
            assert connection.get_nested_transaction() is None
            transaction.rollback()
