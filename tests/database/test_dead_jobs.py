"""Dead jobs as data: redrive with a rate and a dry run, summary, retention, edits."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, func, select, text, true, update
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import BGJob, InvalidArg, enqueue
from sqlalchemy_bgjob._lifecycle.dead_jobs import delete_old, delete_old_one_by_one
from sqlalchemy_bgjob._sql import statements_of
from support import wait_until
from support.producers import producer
from support.rows import waiting
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.core, pytest.mark.keeps_tables]


@dataclass(frozen=True)
class Receipt:
    order_id: int


@pytest.fixture
def jobs(engine: Engine) -> BGJob:
    jobs = new_queue()
    jobs.metadata.create_all(engine)

    @jobs.handler("mail", queue="q")
    def mail(ctx: Any, receipt: Receipt) -> None: ...

    @jobs.handler("tidy", queue="q")
    def tidy(ctx: Any) -> None: ...

    return jobs


def bury(
    engine: Engine,
    *ids: str,
    type: str = "mail",
    error: str | None = "ValueError: no",
    ago: float = 0.0,
    key: str | None = None,
) -> None:
    """Dead jobs of so many seconds ago, the first one before the others."""
    row = text(
        "INSERT INTO bgjob_dead_job (id, job_id, queue, type, arg, attempt, lease, last_error,"
        " next_run_at, job_created_at, job_updated_at, moved_at, unique_key)"
        " VALUES ('dead ' || :id || ' ' || clock_timestamp(), :id, 'q', :type, '{\"order_id\": 1}',"
        " 3, 1, :error, now(), now(), now(),"
        " clock_timestamp() - make_interval(secs => :ago), :key)"
    )
    with engine.begin() as connection:
        for id in ids:
            given = {"id": id, "type": type, "error": error, "ago": ago, "key": key}
            connection.execute(row, given)


def live(jobs: BGJob, engine: Engine) -> dict[str, float]:
    """The seconds until each live job is due."""
    due_in = func.extract("epoch", jobs.Job.next_run_at - func.now())
    with Session(engine) as session:
        found = session.execute(select(jobs.Job.id, due_in).order_by(jobs.Job.next_run_at))
        return {id: float(seconds) for id, seconds in found}


def dead(jobs: BGJob, engine: Engine) -> list[str]:
    with Session(engine) as session:
        return list(session.scalars(select(jobs.DeadJob.job_id).order_by(jobs.DeadJob.moved_at)))


# ---- redrive -------------------------------------------------------------------------------------


def test_a_rate_spaces_the_jobs_in_the_order_of_death(jobs: BGJob, engine: Engine) -> None:
    names = [f"{n:02}" for n in range(20)]
    for n, id in enumerate(names):
        bury(engine, id, ago=100.0 - n)

    jobs.redrive(engine, true(), delay=60, per_second=0.5)

    due = live(jobs, engine)
    assert list(due) == names
    assert due["00"] <= 60.0
    gaps = [due[later] - due[earlier] for earlier, later in pairwise(names)]
    assert all(abs(gap - 2.0) < 0.001 for gap in gaps)


def test_without_a_rate_all_are_due_together(jobs: BGJob, engine: Engine) -> None:
    bury(engine, "a", "b")
    jobs.redrive(engine, true(), delay=60)
    assert len(set(live(jobs, engine).values())) == 1


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    ("rate", "error"),
    [(0, ValueError), (-1, ValueError), (float("nan"), ValueError), ("5", TypeError)],
)
def test_a_rate_that_can_t_be_is_refused(rate: Any, error: type, *, dry_run: bool) -> None:
    """Before anything is sent, also in a dry run."""
    nobody = create_engine("postgresql+psycopg://nobody@nowhere.invalid/none")
    jobs = new_queue()
    with pytest.raises(error, match="per_second"):
        jobs.redrive(nobody, true(), per_second=rate, dry_run=dry_run)


def test_a_dry_run_counts_what_would_come_back(jobs: BGJob, engine: Engine) -> None:
    """Exactly that: with an id twice, with live ids, with keys that are taken or twice."""
    bury(engine, "twice", ago=100)
    bury(engine, "twice", "a", "b", "lives", "keyed")
    bury(engine, "t", type="tidy")
    bury(engine, "k1", "k2", type="keys", key="l:same")
    bury(engine, "k3", type="keys", key="l:taken")
    enqueue(engine, jobs.registry.find_type("mail"), Receipt(1), id="lives")
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO bgjob_job (id, queue, type, unique_key) VALUES ('x','q','t',:key)"),
            {"key": "l:taken"},
        )
    before = dead(jobs, engine)

    counted = jobs.redrive(engine, true(), dry_run=True)

    assert counted == {"keys": 1, "mail": 4, "tidy": 1}
    assert dead(jobs, engine) == before
    with Session(engine) as session:
        types = dict(session.execute(select(jobs.DeadJob.job_id, jobs.DeadJob.type)).all())
    done = jobs.redrive(engine, true())
    assert Counter(types[id] for id in done.ids) == counted
    assert jobs.redrive(engine, true(), dry_run=True) == {}
    assert jobs.redrive(engine, true(), dry_run=True, limit=1) == {}


def test_a_taken_unique_key_leaves_the_job_dead(jobs: BGJob, engine: Engine) -> None:
    """It is told, and the caller's transaction goes on."""
    bury(engine, "a", key="l:7")
    bury(engine, "b", key="l:8")
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO bgjob_job (id, queue, type, unique_key) VALUES ('x','q','t','l:7')")
        )

    with Session(engine) as session, session.begin():
        done = jobs.redrive(session, true())
        assert (done.ids, done.left) == (("b",), ("a",))
        assert session.scalar(select(func.count(jobs.Job.id))) == 2
    assert dead(jobs, engine) == ["a"]

    with engine.begin() as connection:
        connection.execute(text("DELETE FROM bgjob_job WHERE id = 'x'"))
    assert jobs.redrive(engine, true()).ids == ("a",)


def test_of_two_with_one_unique_key_the_later_one_comes_back(jobs: BGJob, engine: Engine) -> None:
    for id, ago in (("first", 300), ("last", 100), ("middle", 200)):
        bury(engine, id, ago=ago, key="l:7")

    done = jobs.redrive(engine, true())

    assert (done.ids, done.left) == (("last",), ("first", "middle"))


def test_redrives_and_enqueues_of_the_same_keys_never_deadlock(jobs: BGJob, engine: Engine) -> None:
    """Both insert in the order of keys, whatever died first; so one waits with nothing in hand."""
    bury(engine, "b", ago=200, key="l:2")
    bury(engine, "a", ago=100, key="l:1")
    insert = text(
        "INSERT INTO bgjob_job (id, queue, type, unique_key) VALUES (:key, 'q', 't', :key)"
    )

    with ThreadPoolExecutor() as pool, engine.begin() as connection:
        connection.execute(insert, {"key": "l:1"})
        done = pool.submit(jobs.redrive, engine, true())
        wait_until(lambda: waiting(engine) == 1, what="the redrive to wait")
        connection.execute(insert, {"key": "l:2"})
        connection.commit()
        assert (done.result(30).ids, done.result().left) == ((), ("a", "b"))


# ---- what is asked -------------------------------------------------------------------------------


def test_the_summary_groups_by_type_and_error(jobs: BGJob, engine: Engine) -> None:
    bury(engine, "a", ago=300, error="ValueError: no such order\n  app.py:7 in f: g()")
    bury(engine, "b", ago=100, error="ValueError: another")
    bury(engine, "c", error="ValueError: a third", type="tidy")
    bury(engine, "d", error="gateway is down")
    bury(engine, "e", "f", "g", error=None)

    lines = jobs.dead_summary(engine)

    assert [(line.type, line.error_type, line.count) for line in lines] == [
        ("mail", None, 3),
        ("mail", "ValueError", 2),
        ("mail", "gateway is down", 1),
        ("tidy", "ValueError", 1),
    ]
    assert 199 < (lines[1].last - lines[1].first).total_seconds() < 202
    assert jobs.dead_summary(engine, limit=1) == lines[:1]
    assert jobs.dead_summary(engine, jobs.DeadJob.type == "tidy") == lines[3:]
    with pytest.raises(ValueError, match="limit=0"):
        jobs.dead_summary(engine, limit=0)


def test_the_type_of_an_error_is_the_same_in_sql(jobs: BGJob, engine: Engine) -> None:
    errors = ["A: b: c", "A", "", ":", "a b\nc: d", "B.C: x\n\ny", None]
    for n, error in enumerate(errors):
        bury(engine, f"{n}", error=error)
    column = jobs.DeadJob.error_type

    with Session(engine) as session:
        rows = session.execute(select(jobs.DeadJob, column)).all()
        assert {row.DeadJob.job_id: row.DeadJob.error_type for row in rows} == {
            row.DeadJob.job_id: row[1] for row in rows
        }
        assert [row.DeadJob.job_id for row in rows if row[1] == "A"] == ["0", "1"]
        # Each use makes an expression of its own: the server must find them equal.
        counts = select(jobs.DeadJob.error_type, func.count()).group_by(jobs.DeadJob.error_type)
        assert dict(session.execute(counts).all())["A"] == 2
        some = select(jobs.DeadJob.job_id).where(jobs.DeadJob.error_type == "B.C")
        assert session.scalars(some).all() == ["5"]


@pytest.mark.parametrize("kind", ["Session-psycopg", "AsyncSession-asyncpg", "Connection-psycopg2"])
def test_every_kind_of_target_will_do(jobs: BGJob, engine: Engine, kind: str) -> None:
    bury(engine, "a", ago=100)
    url = engine.url.render_as_string(hide_password=False)

    async def ask() -> list[Any]:
        async with producer(kind, url) as made:
            return [
                await made.do(jobs.dead_summary(made.target)),
                await made.do(jobs.redrive(made.target, true(), dry_run=True)),
                await made.do(jobs.prune(made.target, 50, dry_run=True)),
                await made.do(jobs.redrive(made.target, true(), per_second=5.0)),
            ]

    (line,), would, old, done = asyncio.run(ask())

    assert (line.type, line.error_type, line.count) == ("mail", "ValueError", 1)
    assert (would, old, done.ids) == ({"mail": 1}, 1, ("a",))
    assert dead(jobs, engine) == ["a"], "nothing was committed"


def test_a_dry_prune_counts_what_a_prune_deletes(jobs: BGJob, engine: Engine) -> None:
    bury(engine, "a", "b", "c", ago=100)
    bury(engine, "new")
    which = jobs.DeadJob.type == "mail"

    assert jobs.prune(engine, 50, which, dry_run=True) == 3
    assert jobs.prune(engine, 50, limit=2, dry_run=True) == 2
    assert len(dead(jobs, engine)) == 4
    assert jobs.prune(engine, 50, which) == 3


# ---- retention -----------------------------------------------------------------------------------


def test_retention_deletes_the_oldest_first(jobs: BGJob, engine: Engine) -> None:
    for id, ago in (("old", 200.0), ("older", 300.0), ("new", 10.0)):
        bury(engine, id, ago=ago)
    statements = statements_of(jobs.models)

    with engine.connect() as connection:
        assert delete_old(connection, statements, keep=100.0, limit=1) == 1
        assert dead(jobs, engine) == ["old", "new"]
        assert delete_old(connection, statements, keep=100.0, limit=10) == 1
        assert delete_old(connection, statements, keep=100.0, limit=10) == 0
    assert dead(jobs, engine) == ["new"]


def test_locked_rows_are_left_to_the_next_turn(jobs: BGJob, engine: Engine) -> None:
    """Of an operator who edits or redrives: nobody waits, and nothing is deleted under him."""
    bury(engine, "a", "b", ago=100)
    statements = statements_of(jobs.models)

    with engine.connect() as operator, engine.connect() as connection:
        operator.execute(text("UPDATE bgjob_dead_job SET arg = '1' WHERE job_id = 'a'"))
        assert delete_old(connection, statements, keep=50.0, limit=10) == 1
        operator.commit()
        assert dead(jobs, engine) == ["a"]
        assert delete_old(connection, statements, keep=50.0, limit=10) == 1


def test_one_by_one_the_same_rows_are_deleted(jobs: BGJob, engine: Engine) -> None:
    """Old ones, the oldest first, without what is locked or passed over."""
    for id, ago in (("old", 200.0), ("older", 300.0), ("locked", 90.0), ("new", 10.0)):
        bury(engine, id, ago=ago)
    given: dict[str, Any] = {"keep": 50.0, "until": inf, "skip": []}
    statements = statements_of(jobs.models)

    with engine.connect() as operator, engine.connect() as connection:
        operator.execute(text("SELECT FROM bgjob_dead_job WHERE job_id = 'locked' FOR UPDATE"))
        assert delete_old_one_by_one(connection, statements, limit=1, **given) == (1, {})
        assert dead(jobs, engine) == ["old", "locked", "new"]
        assert delete_old_one_by_one(connection, statements, limit=9, **given) == (1, {})
    assert dead(jobs, engine) == ["locked", "new"]


def test_what_is_refused_at_the_commit_is_not_deleted(jobs: BGJob, engine: Engine) -> None:
    """As by a deferred foreign key of the application's."""
    bury(engine, "kept", ago=200.0)
    bury(engine, "old", ago=100.0)
    given: dict[str, Any] = {"keep": 50.0, "until": inf, "skip": [], "limit": 9}
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE note (of text REFERENCES bgjob_dead_job (id)"
                " DEFERRABLE INITIALLY DEFERRED)"
            )
        )
        connection.execute(
            text("INSERT INTO note SELECT id FROM bgjob_dead_job WHERE job_id = 'kept'")
        )

    with engine.connect() as connection:
        deleted, refused = delete_old_one_by_one(connection, statements_of(jobs.models), **given)

    assert (deleted, len(refused)) == (1, 1)
    assert dead(jobs, engine) == ["kept"]
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE note"))


@pytest.mark.parametrize("name", ["delete_old", "delete_old_but", "old_ids"])
def test_retention_walks_the_index_of_the_time(name: str, jobs: BGJob, engine: Engine) -> None:
    """A look that finds nothing reads nothing, however many dead jobs there are."""
    statement = getattr(statements_of(jobs.models).dead_jobs, name)
    given = {"given_age": timedelta(days=1), "given_limit": 1_000, "given_skip": ["1", "2"]}
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO bgjob_dead_job (id, job_id, queue, type, attempt, lease, next_run_at,"
                " job_created_at, job_updated_at) SELECT n, n, 'q', 't', 1, 1, now(), now(), now()"
                " FROM generate_series(1, 3000) AS n"
            )
        )
        connection.execute(text("ANALYZE bgjob_dead_job"))
        sql = str(statement.compile(engine))
        plan = connection.exec_driver_sql(f"EXPLAIN {sql}", given).scalars().all()

    assert any("bgjob_dead_job_moved_at_idx" in line for line in plan), plan
    assert not any("Seq Scan" in line for line in plan), plan


# ---- edits ---------------------------------------------------------------------------------------


@pytest.fixture
def session(jobs: BGJob, engine: Engine) -> Iterator[Session]:
    bury(engine, "a")
    bury(engine, "t", type="tidy")
    bury(engine, "elsewhere", type="resize")
    with Session(engine) as session:
        yield session


def one(session: Session, jobs: BGJob, id: str) -> Any:
    return session.scalars(select(jobs.DeadJob).where(jobs.DeadJob.job_id == id)).one()


def test_an_edited_arg_is_encoded_for_its_handler(
    session: Session, jobs: BGJob, engine: Engine
) -> None:
    row = one(session, jobs, "a")
    row.arg = Receipt(7)
    row.headers = {"mended-by": "ada"}

    assert jobs.decode(row) == Receipt(7)
    jobs.redrive(session, jobs.DeadJob.job_id == "a")
    session.commit()

    with Session(engine) as other:
        job = other.get_one(jobs.Job, "a")
        assert (job.arg, job.headers) == (b'{"order_id":7}', {"mended-by": "ada"})
        assert jobs.decode(job) == Receipt(7)


def test_an_arg_that_does_not_fit_is_refused_at_once(session: Session, jobs: BGJob) -> None:
    """Also bytes, where the handler takes something else; and the row stays as it was."""
    wrong: list[tuple[str, Any]] = [
        ("a", {"order": 7}),
        ("a", {"order_id": "x"}),
        ("a", None),
        ("a", b'{"order_id": 7}'),
        ("t", {"order_id": 7}),
        ("elsewhere", {"x": object()}),
    ]
    for id, arg in wrong:
        row = one(session, jobs, id)
        with pytest.raises(InvalidArg):
            row.arg = arg
        assert row.arg == b'{"order_id": 1}'
    for headers, error in (([1], TypeError), ({"x": object()}, InvalidArg)):
        with pytest.raises(error):
            row.headers = headers
    assert not session.dirty


def test_an_unregistered_type_takes_any_json_or_bytes(session: Session, jobs: BGJob) -> None:
    row = one(session, jobs, "elsewhere")

    row.arg = {"width": 7}
    assert (row.arg, row.headers) == (b'{"width":7}', None)
    row.arg = b"\x00"
    assert row.headers == {"content-type": "application/octet-stream"}
    row.headers = {"own": 1}
    assert row.headers == {"own": 1, "content-type": "application/octet-stream"}
    row.arg = 3
    assert (row.arg, row.headers) == (b"3", {"own": 1})
    session.flush()


def test_what_the_database_computes_is_not_encoded(session: Session, jobs: BGJob) -> None:
    row = one(session, jobs, "a")
    row.arg = func.convert_to('{"order_id": 9}', "UTF8")
    session.flush()
    session.execute(update(jobs.DeadJob).values(headers={"by": "sql"}))
    session.expire(row)
    assert jobs.decode(row) == Receipt(9)
