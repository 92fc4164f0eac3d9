"""enqueue_from: one job for each row of the user's own query."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    Column,
    Connection,
    DateTime,
    Engine,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    Uuid,
    cast,
    func,
    insert,
    literal,
    literal_column,
    null,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import JobAlreadyExists, enqueue, enqueue_from
from support.producers import Producer, Sent, produce
from support.shop import (
    Invoice,
    Job,
    Order,
    Receipt,
    clean_up,
    jobs,
    note,
    send_invoice,
    send_receipt,
    store,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


MOMENT = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=5)))


@pytest.fixture
def session(shop: Engine) -> Iterator[Session]:
    """A session whose transaction holds a few orders, and is rolled back."""
    with Session(shop) as session:
        session.add_all([Order(id=n, email=f"{n}@x", total=Decimal(n) / 3) for n in range(1, 6)])
        session.flush()
        yield session


def arg_of(job: Any) -> Any:
    handler = jobs.registry.find_type(job.type)
    assert handler is not None
    return handler.decode(job.arg, job.headers)


def args(session: Session) -> list[Any]:
    return [arg_of(job) for job in session.scalars(select(Job).order_by(Job.id))]


@pytest.mark.core
def test_each_row_is_a_job_in_the_querys_order(session: Session) -> None:
    """The ids are made by the server, and grow as the rows come."""
    query = select(Order.id.label("order_id"), Order.email.label("note")).order_by(Order.id.desc())

    assert enqueue_from(session, send_receipt, query, priority=3, headers={"a": 1}) == 5

    assert args(session) == [Receipt(n, f"{n}@x") for n in (5, 4, 3, 2, 1)]
    for job in session.scalars(select(Job)):
        assert (job.type, job.queue, job.priority) == ("send_receipt", "mail", 3)
        assert (job.headers, job.attempt, job.claimed_by) == ({"a": 1}, 0, None)


@pytest.mark.core
def test_made_ids_are_uuids_of_version_7_that_grow(session: Session) -> None:
    """Also from one statement to the next, and over more rows than the counter has bits for."""
    before = session.scalar(select(func.clock_timestamp()))
    for start in (0, 10_000):
        numbers = (
            func.generate_series(start + 1, start + 10_000)
            .table_valued("order_id")
            .render_derived()
        )
        query = select(numbers.c.order_id).order_by(numbers.c.order_id)
        assert enqueue_from(session, send_receipt, query) == 10_000
    after = session.scalar(select(func.clock_timestamp()))

    rows = session.execute(select(Job.id, Job.arg_json["order_id"].as_integer())).all()
    ids = [id for id, _ in sorted(rows, key=lambda row: row[1])]
    assert ids == sorted(ids)
    assert len(set(ids)) == 20_000
    for id in ids:
        assert str(UUID(id)) == id
        assert UUID(id).version == 7
        assert UUID(id).variant == "specified in RFC 4122"
    assert before is not None
    assert after is not None
    made = [int(id.replace("-", "")[:12], 16) / 1000 for id in ids]
    assert before.timestamp() - 0.001 <= made[0] <= made[-1] <= after.timestamp() + 0.004
    assert len({id[19:] for id in ids}) == 20_000, "the rest is random"


@pytest.mark.core
def test_a_handler_takes_what_to_jsonb_makes_of_sql_types(session: Session) -> None:
    id_ = uuid4()
    amount = Decimal("12345678901234567890.123456789")
    query = select(
        literal(id_, Uuid()).label("id_"),
        literal(MOMENT, DateTime(timezone=True)).label("due"),
        literal(amount, Numeric()).label("amount"),
    )

    enqueue_from(session, send_invoice, query)

    assert args(session) == [Invoice(id_, MOMENT, amount)]


def test_nulls_are_null(session: Session) -> None:
    query = select(Order.id.label("order_id"), cast(null(), Text).label("note")).limit(1)

    enqueue_from(session, send_receipt, query)

    assert args(session) == [Receipt(1, None)]


def test_the_reserved_labels_are_the_jobs_own(session: Session) -> None:
    query = select(
        func.concat("order-", Order.id).label("id"),
        (Order.id * 60).label("delay"),
        (Order.id - 3).label("priority"),
        Order.id.label("order_id"),
    )

    assert enqueue_from(session, send_receipt, query) == 5

    begun = session.scalar(select(func.now()))
    for job in session.scalars(select(Job)):
        arg = arg_of(job)
        assert arg == Receipt(arg.order_id)
        assert job.id == f"order-{arg.order_id}"
        assert job.priority == arg.order_id - 3
        assert job.next_run_at == begun + timedelta(minutes=arg.order_id)


def test_a_delay_that_is_null_is_none(session: Session) -> None:
    query = select(Order.id.label("order_id"), cast(null(), Integer).label("delay"))

    enqueue_from(session, send_receipt, query)

    begun = session.scalar(select(func.now()))
    assert set(session.scalars(select(Job.next_run_at))) == {begun}


@pytest.mark.parametrize("given", [{"delay": 90}, {"delay": timedelta(seconds=90)}])
def test_a_delay_for_all_counts_from_the_transactions_start(
    given: dict[str, Any], session: Session
) -> None:
    enqueue_from(session, send_receipt, select(Order.id.label("order_id")), **given)

    begun = session.scalar(select(func.now()))
    assert begun is not None
    assert set(session.scalars(select(Job.next_run_at))) == {begun + timedelta(seconds=90)}


def test_run_at_and_another_queue_for_all(session: Session) -> None:
    query = select(Order.id.label("order_id"))

    enqueue_from(session, send_receipt, query, run_at=MOMENT, queue="%s :x é", headers={"h": "%s"})

    for job in session.scalars(select(Job)):
        assert (job.next_run_at, job.queue) == (MOMENT, "%s :x é")
        assert job.headers == {"h": "%s"}


@pytest.mark.core
def test_an_id_that_exists_adds_no_job_at_all(session: Session) -> None:
    enqueue(session, note, 0, id="order-3")
    query = select(func.concat("order-", Order.id).label("id"), Order.id.label("order_id"))

    with pytest.raises(JobAlreadyExists) as refused:
        enqueue_from(session, send_receipt, query)

    assert refused.value.ids == ()
    assert set(session.scalars(select(Job.id))) == {"order-3"}
    assert enqueue_from(session, send_receipt, query, on_conflict="ignore") == 4
    assert session.scalar(select(Job.type).where(Job.id == "order-3")) == "note"


def test_an_id_that_comes_twice_adds_no_job_at_all(session: Session) -> None:
    query = select(literal("same").label("id"), Order.id.label("order_id"))

    with pytest.raises(JobAlreadyExists, match="live job"):
        enqueue_from(session, send_receipt, query)

    assert session.scalar(select(func.count()).select_from(Job)) == 0
    assert enqueue_from(session, send_receipt, query, on_conflict="ignore") == 1


def test_another_violation_is_the_callers_own_error(session: Session) -> None:
    """It is not taken for a duplicate; with own ids the transaction is usable even so."""
    query = select(literal("x" * 256).label("id"), Order.id.label("order_id"))

    with pytest.raises(IntegrityError, match="id_check"):
        enqueue_from(session, send_receipt, query)

    assert session.scalar(select(func.count()).select_from(Order)) == 5


def test_an_empty_query_adds_nothing(session: Session) -> None:
    query = select(Order.id.label("order_id")).where(Order.id < 0)

    assert enqueue_from(session, send_receipt, query) == 0
    assert enqueue_from(session, send_receipt, query.add_columns(literal("x").label("id"))) == 0


def test_a_handler_without_an_arg_gets_a_job_for_each_row(session: Session) -> None:
    """What is stored for it is an object without fields, which it never sees."""
    enqueue_from(session, clean_up, select(literal(1).label("priority")).select_from(Order))

    assert session.scalar(select(func.count()).select_from(Job)) == 5
    with pytest.raises(ValueError, match="takes no arg, but the select has the columns order_id"):
        enqueue_from(session, clean_up, select(Order.id.label("order_id")))


def test_a_handler_of_any_value_gets_an_object(session: Session) -> None:
    query = select(Order.email, Order.id.label('Ord\'er "%s" :id')).where(Order.id == 1)

    enqueue_from(session, note, query)

    assert args(session) == [{"email": "1@x", 'Ord\'er "%s" :id': 1}]


def test_a_column_that_is_called_as_the_query_is_inside(session: Session) -> None:
    """PostgreSQL takes a name for a column before it takes it for a row."""
    query = select(Order.id.label("source"), Order.email.label("inserted")).limit(1)

    enqueue_from(session, note, query)

    assert args(session) == [{"source": 1, "inserted": "1@x"}]


def test_a_query_may_have_ctes_locks_and_tables_of_any_name(session: Session) -> None:
    connection = session.connection()
    inserted = Table("inserted", MetaData(), Column("order_id", Integer))
    inserted.create(connection)
    connection.execute(insert(inserted), [{"order_id": 8}])
    tree = select(literal(1).label("n")).cte("inserted", recursive=True)
    tree = tree.union_all(select(tree.c.n + 1).where(tree.c.n < 3))

    assert enqueue_from(session, send_receipt, select(inserted.c.order_id)) == 1
    assert enqueue_from(session, send_receipt, select(tree.c.n.label("order_id"))) == 3
    locked = select(Order.id.label("order_id")).with_for_update(skip_locked=True)
    assert enqueue_from(session, send_receipt, locked.order_by(Order.id).limit(1)) == 1

    assert [arg.order_id for arg in args(session)] == [8, 1, 2, 3, 1]


def test_the_names_that_count_are_those_of_sql(session: Session) -> None:
    """A column's key is only Python's name for it."""
    table = Table("keyed", MetaData(), Column("order_id", Integer, key="id"))
    table.create(session.connection())
    session.execute(insert(table).values(id=7))

    assert enqueue_from(session, send_receipt, select(table.c.id)) == 1

    assert args(session) == [Receipt(7)]


NAMELESS = {
    "a function": lambda: select(func.lower(Order.email)),
    "a literal": lambda: select(literal(1)),
    "twice the same": lambda: select(Order.id.label("order_id"), Order.email.label("order_id")),
    "of two tables": lambda: select(Order.id, Job.id),
}


@pytest.mark.parametrize("query", NAMELESS.values(), ids=NAMELESS)
def test_a_column_without_a_name_of_its_own_is_refused(query: Any, session: Session) -> None:
    """Its name in the arg would be one that SQLAlchemy makes up."""
    with Sent(session.connection()) as sent, pytest.raises(ValueError, match=r"\.label\(\)"):
        enqueue_from(session, note, query())

    assert sent.statements == []


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "missing": (select(Order.email.label("note")), {}, r"missing: order_id"),
    "unknown": (
        select(Order.id.label("order_id"), Order.email.label("mail")),
        {},
        r"not a field: mail",
    ),
    "both": (select(Order.email), {}, r"missing: order_id; not a field: email"),
    "delay twice": (
        select(Order.id.label("order_id"), literal(1).label("delay")),
        {"delay": 0},
        "delay is given twice",
    ),
    "priority twice": (
        select(Order.id.label("order_id"), literal(1).label("priority")),
        {"priority": 1},
        "priority is given twice",
    ),
    "delay and run_at": (
        select(Order.id.label("order_id"), literal(1).label("delay")),
        {"run_at": MOMENT},
        "not both",
    ),
    "naive": (
        select(Order.id.label("order_id")),
        {"run_at": datetime(2030, 1, 1)},  # noqa: DTZ001
        "no time zone",
    ),
    "priority": (select(Order.id.label("order_id")), {"priority": 32_768}, "32767"),
    "queue": (select(Order.id.label("order_id")), {"queue": "a\0b"}, "NUL"),
    "headers": (select(Order.id.label("order_id")), {"headers": {"a": float("nan")}}, "headers.a"),
    "on_conflict": (select(Order.id.label("order_id")), {"on_conflict": "update"}, "neither"),
}


@pytest.mark.parametrize(("query", "given", "problem"), WRONG.values(), ids=WRONG)
def test_bad_input_is_refused_before_sql(
    query: Any, given: dict[str, Any], problem: str, session: Session
) -> None:
    with Sent(session.connection()) as sent, pytest.raises(ValueError, match=problem):
        enqueue_from(session, send_receipt, query, **given)

    assert sent.statements == []


@pytest.mark.parametrize("wrong", [text("SELECT 1 AS order_id"), "SELECT 1", Order, [1]], ids=str)
def test_only_a_select_is_a_query(wrong: Any, session: Session) -> None:
    with pytest.raises(TypeError, match=re.escape("takes a select()")):
        enqueue_from(session, send_receipt, wrong)


@dataclass
class Blob:
    content: bytes
    took: timedelta | None = None


@jobs.handler("blob")
def blob(ctx: Any, arg: Blob) -> None: ...


def test_a_handler_of_bytes_gets_the_json_text(session: Session) -> None:
    enqueue_from(session, store, select(Order.email).where(Order.id == 1))

    assert args(session) == [b'{"email": "1@x"}']


@jobs.handler("number")
def number(ctx: Any, arg: int) -> None: ...


@jobs.handler("numbers")
def numbers(ctx: Any, arg: list[int] | None) -> None: ...


@jobs.handler("amounts")
def amounts(ctx: Any, arg: dict[str, int]) -> None: ...


@jobs.handler("either")
def either(ctx: Any, arg: Receipt | int) -> None: ...


def test_a_handler_that_takes_no_object_is_refused(session: Session) -> None:
    """Each of its jobs would end in the dead table."""
    query = select(Order.id.label("order_id")).where(Order.id == 1)
    for refused in (number, numbers):
        with pytest.raises(ValueError, match="takes no object of fields"):
            enqueue_from(session, refused, query)

    enqueue_from(session, amounts, query)
    enqueue_from(session, either, query)
    assert args(session) == [{"order_id": 1}, Receipt(1)]


def test_types_that_come_out_otherwise_are_refused(session: Session) -> None:
    """to_jsonb writes bytes as hex, and intervals as PostgreSQL shows them."""
    content = cast(func.convert_to(Order.email, "UTF8"), Job.__table__.c.arg.type)
    for query, name in (
        (select(content.label("content")), "content"),
        (
            select(
                func.encode(content, "base64").label("content"),
                (func.now() - func.now()).label("took"),
            ),
            "took",
        ),
    ):
        with pytest.raises(ValueError, match=name):
            enqueue_from(session, blob, query)

    enqueue_from(session, blob, select(func.encode(content, "base64").label("content")).limit(1))
    assert args(session) == [Blob(b"1@x")]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
def test_a_thousand_rows_are_one_statement(driver: str, shop: Engine) -> None:
    kind = f"{'AsyncSession' if driver == 'asyncpg' else 'Session'}-{driver}"
    numbers = func.generate_series(1, 1000).table_valued("order_id").render_derived()

    async def body(made: Producer) -> None:
        with Sent(made.engine) as sent:
            await made.do(enqueue_from(made.target, send_receipt, select(numbers.c.order_id)))
        assert len(sent.inserts()) == 1
        await made.rollback()

    produce(kind, shop, body)


def test_a_string_column_is_no_trouble(session: Session) -> None:
    """Quotes, backslashes and every plane of Unicode go through jsonb as they are."""
    strange = "\"'\\ \n\t %s :x {} 😀 \u202e é"
    query = select(literal(1).label("order_id"), literal(strange, String).label("note"))

    enqueue_from(session, send_receipt, query)

    assert args(session) == [Receipt(1, strange)]
    assert session.scalars(select(Job.arg_json)).one() == {"order_id": 1, "note": strange}


def test_a_column_of_a_type_that_sqlalchemy_does_not_know(session: Session) -> None:
    enqueue_from(session, send_receipt, select(literal_column("7").label("order_id")))

    assert args(session) == [Receipt(7)]


def test_a_connection_takes_it_too(shop: Engine) -> None:
    with shop.connect() as connection:
        assert isinstance(connection, Connection)
        assert enqueue_from(connection, note, select(literal(UTC.tzname(None)).label("zone"))) == 1
        connection.rollback()
