"""Jobs as ORM objects: ``session.add(handler.job(...))`` and ``session.add(Job(...))``."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, ForeignKey, create_engine, event, func, inspect, literal, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_bgjob import (
    BGJob,
    DeadJobMixin,
    InvalidArg,
    JobMixin,
    enqueue,
    enqueue_from,
    enqueue_many,
)
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob._sql.words import own_channel
from support.producers import Sent
from support.shop import Job, Order, Receipt, jobs, make_tables, note, send_receipt, store


@pytest.fixture(scope="module")
def shop(shop: Engine) -> Engine:
    OwnBase.metadata.create_all(shop)
    return shop


@pytest.mark.core
def test_a_jobs_arg_is_decoded_as_its_handler_takes_it(session: Session) -> None:
    known = enqueue(session, send_receipt, Receipt(1, "é"))
    other = jobs.enqueue(session, "elsewhere", {"n": [1, None]}, queue="q")
    raw = jobs.enqueue(session, "elsewhere", b"\xff", queue="q")
    bare = jobs.enqueue(session, "elsewhere", queue="q")

    found = {job.id: jobs.decode(job) for job in session.scalars(select(Job))}

    assert found[known.id] == Receipt(1, "é")
    assert found[other.id] == {"n": [1, None]}
    assert found[raw.id] == b"\xff"
    assert found[bare.id] is None
    wrong = Job(queue="mail", type=send_receipt.type, arg={"n": 1})
    with pytest.raises(InvalidArg):
        jobs.decode(wrong)


# ---- handler.job() -------------------------------------------------------------------------------


@pytest.mark.core
def test_a_handlers_job_is_stored_as_enqueue_would(session: Session) -> None:
    at = datetime(2030, 1, 1, tzinfo=UTC)
    given: dict[str, Any] = {"queue": "q", "priority": 4, "headers": {"a": 1}, "run_at": at}
    job = send_receipt.job(Receipt(1, "é"), **given)
    session.add(job)
    ref = enqueue(session, send_receipt, Receipt(1, "é"), **given)

    session.flush()
    session.expire_all()

    other = session.get_one(Job, ref.id)
    for name in (
        "queue",
        "type",
        "arg",
        "priority",
        "headers",
        "next_run_at",
        "attempt",
        "crashes",
    ):
        assert getattr(job, name) == getattr(other, name), name
    assert job.created_at == other.created_at


def test_making_a_job_needs_no_session(shop: Engine) -> None:
    """It is plain data until it is added."""
    with Sent(shop) as sent:
        job = send_receipt.job(Receipt(1), delay=60)
        assert UUID(job.id).version == 7
        assert inspect(job).transient
        assert (job.type, job.queue, job.arg_json) == (
            "send_receipt",
            "mail",
            {"order_id": 1, "note": None},
        )

    assert sent.statements == []


def test_an_own_id_is_for_enqueue(session: Session) -> None:
    """A duplicate would abort the flush, and with it the caller's transaction."""
    with pytest.raises(TypeError, match=r"enqueue\(session, handler, arg, id=\.\.\.\)"):
        send_receipt.job(Receipt(1), id="own")
    with pytest.raises(TypeError, match="unexpected keyword argument 'on_conflict'"):
        send_receipt.job(Receipt(1), on_conflict="ignore")


def test_a_thousand_jobs_are_few_inserts(shop: Engine) -> None:
    """SQLAlchemy sends them in pages: a default of the wrong kind would cost one for each."""
    for make in (
        lambda n: send_receipt.job(Receipt(n)),
        lambda n: Job(queue="q", type="t", arg=n),
        lambda n: note.job(n, run_at=datetime(2030, 1, 1, tzinfo=UTC)),
        lambda n: note.job(n, headers={"n": n} if n % 2 else None),
    ):
        with Session(shop) as session, Sent(shop) as sent:
            session.add_all([make(n) for n in range(1000)])
            session.flush()
        assert 1 <= len(sent.inserts()) <= 3


def test_a_delay_is_counted_from_the_transactions_start(session: Session) -> None:
    session.add_all([note.job(n, delay=n * 60) for n in range(3)])
    session.flush()

    begun = session.scalar(select(func.now()))
    assert begun is not None
    times = session.scalars(select(Job.next_run_at).order_by(Job.next_run_at)).all()
    assert times == [begun + timedelta(minutes=n) for n in range(3)]


def test_jobs_can_be_selected_changed_and_deleted(session: Session) -> None:
    job = note.job({"a": 1})
    session.add(job)
    session.flush()

    session.expire(job)
    assert job.state == "queued"
    assert session.scalars(select(Job).where(Job.state == "queued")).all() == [job]
    job.next_run_at = datetime(9000, 1, 1, tzinfo=UTC)
    assert session.scalars(select(Job.state)).all() == ["scheduled"]
    assert job.state == "scheduled"
    assert repr(job) == f"<Job {job.id} 'note' in 'default', attempt 0>"
    session.delete(job)
    session.flush()
    assert session.scalars(select(Job)).all() == []


# ---- Job(...) ------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize(
    ("arg", "data", "headers"),
    [
        ({"a": Decimal("1.5")}, b'{"a":"1.5"}', None),
        ([1, None], b"[1,null]", None),
        (b"\xff", b"\xff", {"content-type": "application/octet-stream"}),
        (Receipt(1), b'{"order_id":1,"note":null}', None),
        (None, None, None),
    ],
    ids=str,
)
def test_an_arg_is_encoded_when_it_is_assigned(
    arg: Any, data: bytes | None, headers: Any, session: Session
) -> None:
    for job in (
        Job(queue="q", type="t", arg=arg),
        Job(arg=arg, type="t", queue="q", headers={}),
        Job(queue="q", type="t"),
    ):
        job.arg = arg
        session.add(job)
        session.flush()
        session.expire(job)
        assert job.arg == data
        assert job.headers == headers


def test_the_content_type_follows_the_arg(session: Session) -> None:
    """Whichever is set first; the user's own headers stay."""
    before, after = (
        Job(headers={"a": 1}, arg=b"raw", queue="q", type="t"),
        Job(arg=b"raw", headers={"a": 1}, queue="q", type="t"),
    )
    raw = {"a": 1, "content-type": "application/octet-stream"}
    assert before.headers == after.headers == raw
    session.add_all([before, after])
    session.flush()
    for job in (before, after):
        job.arg = {"now": "json"}
        assert job.headers == {"a": 1}
        job.headers = None
    session.flush()
    session.expire_all()
    for job in (before, after):
        assert (job.arg_json, job.headers) == ({"now": "json"}, None)


@pytest.mark.core
def test_a_merged_job_keeps_its_arg(session: Session) -> None:
    """``session.merge`` assigns what an arg was encoded to."""
    args: dict[str, Any] = {"send_receipt": Receipt(1, "é"), "store": b"\xff", "t": {"n": [1]}}
    made = [
        send_receipt.job(args["send_receipt"], headers={"a": 1}),
        store.job(args["store"]),
        Job(queue="q", type="t", arg=args["t"]),
    ]

    added = [session.merge(job) for job in made]
    session.flush()
    session.expire_all()
    assert {job.type: jobs.decode(job) for job in added} == args
    assert added[0].headers == {"a": 1}

    for job in added:
        session.expunge(job)
        job.priority = 3
    changed = [session.merge(job) for job in added]
    session.flush()
    session.expire_all()
    assert {job.type: jobs.decode(job) for job in changed} == args
    assert {job.priority for job in changed} == {3}


@pytest.mark.core
@pytest.mark.parametrize("arg", [{"n": [1]}, b"\xff", None], ids=["json", "bytes", "none"])
def test_a_merged_job_restores_the_arg_it_was_read_with(session: Session, arg: Any) -> None:
    """Somebody has given the row another arg since; JSON does not become bytes on the way."""
    id = jobs.enqueue(session, "t", arg, queue="q", headers={"a": 1}).id
    read = session.get_one(Job, id)
    session.expunge(read)
    for other in ({"n": 2}, b"other"):
        session.get_one(Job, id).arg = other
        session.flush()
        session.expire_all()

        merged = session.merge(read)
        session.flush()
        session.expire_all()

        assert jobs.decode(merged) == arg
        assert merged.headers == read.headers


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "queue": ({"queue": ""}, ValueError, "1 to 128"),
    "queue NUL": ({"queue": "\0"}, ValueError, "NUL"),
    "type": ({"type": "t" * 129}, ValueError, "1 to 128"),
    "id": ({"id": "\ud800"}, ValueError, "surrogate"),
    "priority": ({"priority": 40_000}, ValueError, "32767"),
    "next_run_at": ({"next_run_at": datetime(2030, 1, 1)}, ValueError, "time zone"),  # noqa: DTZ001
    "arg": ({"arg": {"a": float("inf")}}, InvalidArg, r"\$\.a"),
    "orm arg": ({"arg": Order(id=1, email="x")}, InvalidArg, "primary key"),
    "headers": ({"headers": {"a": object()}}, InvalidArg, r"headers\.a"),
    "headers list": ({"headers": ["a"]}, TypeError, "mapping"),
}


@pytest.mark.core
@pytest.mark.parametrize(("given", "error", "problem"), BAD.values(), ids=BAD)
def test_bad_values_are_refused_at_the_assignment(
    given: dict[str, Any], error: type[Exception], problem: str, session: Session
) -> None:
    """And not by the flush, which would end the transaction."""
    with pytest.raises(error, match=problem):
        Job(**{"queue": "q", "type": "t", **given})
    job = Job(queue="q", type="t")
    session.add(job)
    for name, value in given.items():
        with pytest.raises(error, match=problem):
            setattr(job, name, value)
    session.flush()
    assert (job.queue, job.type, job.arg) == ("q", "t", None)


def test_sql_expressions_are_left_to_the_database(session: Session) -> None:
    job = Job(queue=func.lower("MAIL"), type="t", priority=literal(2) + 1)  # type: ignore[arg-type]
    job.next_run_at = func.now() + timedelta(hours=1)  # type: ignore[assignment]
    session.add(job)
    session.flush()
    assert (job.queue, job.priority) == ("mail", 3)


def test_a_duplicate_in_a_flush_is_the_callers_own_error(session: Session) -> None:
    enqueue(session, note, 1, id="one")
    with pytest.raises(IntegrityError), session.begin_nested():
        session.add(Job(id="one", queue="q", type="t"))
    assert session.scalars(select(Job.id)).all() == ["one"]


def test_a_row_that_is_no_json_reads_as_none(session: Session) -> None:
    """Rows written by SQL may hold anything."""
    job = Job(queue="q", type="t")
    session.add(job)
    session.flush()
    raw: Any = literal(b"{not json")
    job.arg = raw
    session.flush()
    session.refresh(job)
    assert job.arg == b"{not json"
    assert job.arg_json is None


def test_sqlite_takes_jobs_too() -> None:
    """A user's own tests may run there: the tables are made and jobs are added, without NOTIFY."""
    engine = create_engine("sqlite://")
    make_tables(engine)
    with Session(engine) as session:
        session.add_all([send_receipt.job(Receipt(1)), store.job(b"\xff")])
        session.add(Job(queue="q", type="t", arg=[1]))
        session.commit()
        args = {job.type: (job.arg, job.arg_json) for job in session.scalars(select(Job))}
        assert args == {
            "send_receipt": (b'{"order_id":1,"note":null}', {"order_id": 1, "note": None}),
            "store": (b"\xff", None),
            "t": (b"[1]", [1]),
        }
    engine.dispose()


# ---- models of one's own -------------------------------------------------------------------------


class OwnBase(DeclarativeBase):
    """The base of an application with columns of its own on the queue's tables."""


class Tenant(OwnBase):
    __tablename__ = "tenant"
    id: Mapped[int] = mapped_column(primary_key=True)


class OwnJob(JobMixin, OwnBase):
    __tablename__ = "own_job"
    tenant_id: Mapped[int | None] = mapped_column(
        ForeignKey("tenant.id", ondelete="SET NULL"), index=True
    )
    tenant: Mapped[Tenant | None] = relationship()
    region: Mapped[str] = mapped_column(server_default="eu")
    note: Mapped[str] = mapped_column(default="in Python")
    token: Mapped[UUID] = mapped_column(default=uuid4)


class OwnDeadJob(DeadJobMixin, OwnBase):
    __tablename__ = "own_dead_job"
    tenant_id: Mapped[int | None]
    region: Mapped[str] = mapped_column(server_default="eu")


own = BGJob(OwnBase, models=(OwnJob, OwnDeadJob))


@own.handler("own")
def own_handler(ctx: Any, arg: dict[str, int]) -> None: ...


@pytest.mark.core
def test_columns_with_defaults_are_filled_in_every_way(session: Session) -> None:
    ways = [
        lambda: enqueue(session, own_handler, {"n": 1}),
        lambda: enqueue(session, own_handler, {"n": 1}),
        lambda: enqueue_many(session, own_handler, [{"n": 1}, {"n": 2}]),
        lambda: enqueue_many(session, [own_handler.job({"n": 1})]),
        lambda: enqueue_from(session, own_handler, select(literal(1).label("n"))),
        lambda: own.enqueue(session, "own", {"n": 1}),
        lambda: session.add(own_handler.job({"n": 1})),
        lambda: session.add(OwnJob(queue="q", type="own")),
    ]
    for way in ways:
        way()
    session.flush()
    session.expire_all()

    rows = session.scalars(select(own.Job)).all()
    assert len(rows) == 9
    for row in rows:
        assert (row.tenant_id, row.region, row.note) == (None, "eu", "in Python")
    # SQLAlchemy calls a default that is a function once for each INSERT ... SELECT.
    assert len({row.token for row in rows}) == 8


@pytest.mark.core
def test_own_columns_and_relationships_go_with_an_added_job(session: Session) -> None:
    job = own_handler.job({"n": 1})
    job.tenant = Tenant(id=3)
    job.region = "us"
    session.add(job)
    session.flush()

    found = session.scalars(select(own.Job).where(own.Job.tenant_id == 3)).one()
    assert found.region == "us"
    other = own_handler.job({"n": 1})
    other.region = "us"
    with pytest.raises(ValueError, match="region"):
        enqueue_many(session, [other])


class MailJob(OwnJob):
    """A subclass with a table of its own, joined to the queue's."""

    __tablename__ = "mail"
    id: Mapped[str] = mapped_column(ForeignKey("own_job.id", ondelete="CASCADE"), primary_key=True)
    address: Mapped[str]


@pytest.mark.core
def test_a_subclass_wakes_the_workers_of_the_queues_own_table(session: Session) -> None:
    channels: list[str] = []

    def note_channel(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if "pg_notify" in statement:
            texts = [value for value in parameters.values() if isinstance(value, str)]
            channels.extend(value for value in texts if value.startswith("bgjob_"))

    event.listen(session.connection(), "before_cursor_execute", note_channel)
    session.add(MailJob(queue="mail", type="own", arg={"n": 1}, address="a@x"))
    session.flush()

    assert channels == [own_channel(statements_of(own.models).tables.channel, "")]
    assert session.scalars(select(own.Job.queue)).all() == ["mail"]


def test_two_queues_in_one_database_do_not_meet(session: Session) -> None:
    enqueue(session, own_handler, {"n": 1}, id="same")
    enqueue(session, note, 1, id="same")
    assert session.scalars(select(Job.type)).all() == ["note"]
    assert session.scalars(select(OwnJob.type)).all() == ["own"]
    assert own.registry.find_type("note") is None
    assert jobs.registry.find_type("own") is None


# ---- what an import costs ------------------------------------------------------------------------


def python(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_imports_neither_sqlalchemy_nor_asyncio() -> None:
    """The command line starts at once, and asyncio is for those who use it."""
    # What is loaded already is another's doing, for example that of coverage.
    code = (
        "import sys; had = set(sys.modules); import sqlalchemy_bgjob; print(*{*sys.modules} - had)"
    )
    loaded = python(code).split()
    assert "sqlalchemy_bgjob" in loaded
    for module in ("sqlalchemy", "asyncio", "msgspec", "greenlet"):
        assert module not in loaded


def test_every_public_name_is_there_and_no_other() -> None:
    import sqlalchemy_bgjob

    for name in sqlalchemy_bgjob.__all__:
        assert getattr(sqlalchemy_bgjob, name) is not None
    assert set(dir(sqlalchemy_bgjob)) == set(sqlalchemy_bgjob.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sqlalchemy_bgjob.nothing  # noqa: B018


@pytest.mark.core
def test_the_synchronous_side_needs_no_greenlet(shop: Engine) -> None:
    """SQLAlchemy 2.1 installs it only with its asyncio extra."""
    url = shop.url.render_as_string(hide_password=False)
    printed = python(
        f"""
import sys
sys.modules["greenlet"] = None
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy_bgjob import BGJob, Worker, enqueue, enqueue_many

class Base(DeclarativeBase): ...
jobs = BGJob(Base)

@jobs.handler("t")
def handler(ctx, arg): ...

engine = create_engine({url!r})
with Session(engine) as session:
    enqueue(session, handler, 1)
    enqueue_many(session, handler, [2], ids=["x"])
    session.add(handler.job(3))
    session.flush()
    print(*session.scalars(select(jobs.Job.arg_json).order_by(jobs.Job.id)))
    print(repr(jobs.work_one(session, "default")))
assert "sqlalchemy.ext.asyncio" not in sys.modules
engine.dispose()
"""
    )
    assert printed.splitlines()[0] == "1 3 2"
    assert printed.splitlines()[1].startswith("Complete")
