"""Unique keys while others come and go: no two jobs, no lost update, no deadlock."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Column, Connection, Engine, MetaData, Table, Text, select, text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_bgjob import BGJob, JobRef, Unique, enqueue, enqueue_from, enqueue_many
from sqlalchemy_bgjob._db.errors import sqlstate
from sqlalchemy_bgjob._handlers.outcomes import COMPLETED, HAND_BACK
from sqlalchemy_bgjob._lifecycle import claim as claims
from sqlalchemy_bgjob._lifecycle import settle
from sqlalchemy_bgjob._lifecycle.settle import Fate
from sqlalchemy_bgjob._sql import Statements, statements_of
from support import wait_until
from support.plans import recorded_plans
from support.rows import claim, ids, pending, query, waiting
from support.tables import new_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support import TestServer

metadata = MetaData()
jobs: BGJob[Any, Any] = BGJob(metadata)
keys = Table("key", metadata, Column("name", Text, primary_key=True))


@jobs.handler("sync", queue="q")
def sync(ctx: Any, arg: Any) -> None: ...


@pytest.fixture(scope="module")
def made(server: TestServer) -> Iterator[Engine]:
    with new_engine(server) as engine:
        metadata.create_all(engine)
        yield engine


@pytest.fixture
def db(made: Engine) -> Engine:
    with made.begin() as connection:
        connection.execute(text("TRUNCATE bgjob_job, bgjob_dead_job, bgjob_unique_period, key"))
    return made


@pytest.fixture
def statements() -> Statements:
    return statements_of(jobs.models)


def add(connection: Connection, key: str = "7", **words: Any) -> JobRef:
    return enqueue(connection, sync, 1, unique=Unique(key, **words))


def in_bulk(connection: Connection, key: str = "7", **words: Any) -> JobRef:
    """The same, as one of several."""
    some = [f"a{key}", key, f"z{key}"]
    result = enqueue_many(connection, sync, some, unique=lambda name: Unique(name, **words))
    return result.refs[1]


WAYS = [add, in_bulk]
SCOPES: list[dict[str, Any]] = [{"scope": "live"}, {"scope": "queued"}, {"period": 60}]


@pytest.mark.core
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("words", SCOPES, ids=str)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_the_second_of_two_at_once_waits_for_the_first(
    way: Callable[..., JobRef], words: dict[str, Any], end: str, db: Engine
) -> None:
    with db.connect() as first, ThreadPoolExecutor(1) as pool:
        one = add(first, **words)

        def second() -> JobRef:
            with db.begin() as connection:
                return way(connection, **words)

        future = pool.submit(second)
        wait_until(lambda: waiting(db) == 1)
        getattr(first, end)()
        two = future.result(10)

    assert two.inserted is (end == "rollback")
    assert (two.id == one.id) is (end == "commit")
    assert len(query(db, "SELECT FROM bgjob_job WHERE arg IN ('1', '\"7\"')")) == 1


@pytest.mark.core
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "words",
    [
        {"scope": "live"},
        {"scope": "queued"},
        {"scope": "queued", "on_conflict": "replace"},
        {"scope": "queued", "on_conflict": "earlier"},
    ],
    ids=str,
)
def test_a_job_that_waits_starts_after_the_callers_commit(
    way: Callable[..., JobRef], words: dict[str, Any], db: Engine, statements: Statements
) -> None:
    """So it sees what the caller has written, whom it was told to."""
    there = enqueue(db, sync, 1, unique=Unique("7", words["scope"]))

    with db.connect() as caller, db.connect() as worker:
        assert way(caller, **words) == JobRef(there.id, inserted=False)
        assert ids(claim(worker, statements)) == []
        caller.commit()
        assert there.id in ids(claim(worker, statements))


@pytest.mark.core
@pytest.mark.parametrize("scope", ["live", "queued"])
def test_a_query_holds_back_what_waits(scope: Any, db: Engine, statements: Statements) -> None:
    there = enqueue(db, sync, 1, unique=Unique("7", scope))
    with db.begin() as connection:
        connection.execute(keys.insert(), {"name": "7"})
    unique = Unique(keys.c.name, scope)

    with db.connect() as caller, db.connect() as worker:
        assert enqueue_from(caller, sync, select(keys.c.name), unique=unique) == 0
        assert ids(claim(worker, statements)) == []
        caller.commit()
        assert ids(claim(worker, statements)) == [there.id]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scope", ["live", "queued"])
def test_callers_of_one_key_do_not_wait_for_each_other(
    way: Callable[..., JobRef], scope: str, db: Engine, statements: Statements
) -> None:
    there = enqueue(db, sync, 1, unique=Unique("7", scope))  # type: ignore[arg-type]
    with db.connect() as one, db.connect() as two, db.connect() as worker:
        two.execute(text("SET statement_timeout = '2s'"))
        assert add(one, scope=scope).id == there.id
        assert way(two, scope=scope).id == there.id

        one.commit()
        assert ids(claim(worker, statements)) == []
        two.commit()
        assert there.id in ids(claim(worker, statements))


@pytest.mark.parametrize("way", WAYS)
def test_a_running_job_can_end_while_a_caller_knows_it(
    way: Callable[..., JobRef], db: Engine, statements: Statements
) -> None:
    there = enqueue(db, sync, 1, unique="7")
    with db.connect() as caller, db.connect() as worker:
        held = claim(worker, statements)
        assert way(caller, scope="live") == JobRef(there.id, inserted=False)

        ((_, fate),) = settle.settle(worker, statements, pending(held, COMPLETED))
        assert fate is Fate.SETTLED


@pytest.mark.core
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_claim_that_goes_on_is_waited_for(
    way: Callable[..., JobRef], end: str, db: Engine, statements: Statements
) -> None:
    """Only its end tells whether the job that waits is there."""
    there = enqueue(db, sync, 1, unique=Unique("7", "queued"))
    with db.connect() as worker, ThreadPoolExecutor(1) as pool:
        given = {"queue": "q", "limit": 5, "worker": 1}
        worker.execute(
            statements.claim.from_head, {f"given_{name}": v for name, v in given.items()}
        )

        def come() -> JobRef:
            with db.begin() as connection:
                return way(connection, scope="queued")

        future = pool.submit(come)
        wait_until(lambda: waiting(db) == 1)
        getattr(worker, end)()
        ref = future.result(10)

    assert ref.inserted is (end == "commit")
    assert (ref.id == there.id) is (end == "rollback")


@pytest.mark.parametrize("way", WAYS)
def test_who_locked_the_row_is_waited_for(way: Callable[..., JobRef], db: Engine) -> None:
    """Or nobody would know whether it is taken up before the caller commits."""
    there = enqueue(db, sync, 1, unique="7")
    with db.connect() as other, ThreadPoolExecutor(1) as pool:
        other.execute(text("SELECT FROM bgjob_job FOR UPDATE"))

        def come() -> JobRef:
            with db.begin() as connection:
                return way(connection, scope="live")

        future = pool.submit(come)
        wait_until(lambda: waiting(db) == 1)
        other.rollback()
        assert future.result(10) == JobRef(there.id, inserted=False)


def late(db: Engine, key: str = "7", **words: Any) -> JobRef:
    """A queued job that has expired."""
    ref = enqueue(db, sync, 0, unique=Unique(key, **words), expires=60)
    with db.begin() as connection:
        connection.execute(
            text("UPDATE bgjob_job SET expires_at = now() - interval '1 min' WHERE id = :id"),
            {"id": ref.id},
        )
    return ref


@pytest.mark.core
@pytest.mark.parametrize("way", WAYS)
def test_a_marked_job_that_came_back_keeps_nobody_away(
    way: Callable[..., JobRef], db: Engine, statements: Statements
) -> None:
    """It ended its last run before it was told to; the next claim ends it unrun."""
    old = enqueue(db, sync, 1, unique="7")
    with db.connect() as worker:
        held = claim(worker, statements)
        assert jobs.cancel(db, old.id) == "asked"
        with db.begin() as connection:
            assert way(connection, scope="live") == JobRef(old.id, inserted=False)  # it runs
        settle.settle(worker, statements, pending(held, HAND_BACK))

        with db.begin() as connection:
            new = way(connection, scope="live")
        again = {job.id: job.cancelled for job in claim(worker, statements)}

    assert new.inserted
    assert (again[old.id], again[new.id]) == (True, False)


@pytest.mark.core
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scope", ["live", "queued"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_of_two_who_take_a_key_at_once_one_gets_it(
    way: Callable[..., JobRef], scope: str, end: str, db: Engine
) -> None:
    late(db, scope=scope)
    with db.connect() as first, ThreadPoolExecutor(1) as pool:
        one = add(first, scope=scope)

        def second() -> JobRef:
            with db.begin() as connection:
                return way(connection, scope=scope)

        future = pool.submit(second)
        wait_until(lambda: waiting(db) == 1)
        getattr(first, end)()
        two = future.result(10)

    assert one.inserted
    assert two.inserted is (end == "rollback")
    assert (two.id == one.id) is (end == "commit")


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_two_queries_that_take_a_key_at_once_take_it_once(end: str, db: Engine) -> None:
    late(db, scope="queued")
    with db.begin() as connection:
        connection.execute(keys.insert(), {"name": "7"})

    def from_query(connection: Connection) -> int:
        return enqueue_from(
            connection, sync, select(keys.c.name), unique=Unique(keys.c.name, "queued")
        )

    with db.connect() as first, ThreadPoolExecutor(1) as pool:
        assert from_query(first) == 1

        def second() -> int:
            with db.begin() as connection:
                return from_query(connection)

        future = pool.submit(second)
        wait_until(lambda: waiting(db) == 1)
        getattr(first, end)()
        assert future.result(10) == (end == "rollback")

    assert query(db, "SELECT count(*) FROM bgjob_job WHERE unique_key = 'q:7'") == [(1,)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_key_is_not_taken_from_what_is_being_claimed(
    way: Callable[..., JobRef], end: str, db: Engine, statements: Statements
) -> None:
    """A claim that began before it expired may run it, and only the claim's end tells."""
    there = late(db, scope="live")
    with db.connect() as worker, ThreadPoolExecutor(1) as pool:
        given = {"queue": "q", "limit": 5, "worker": 1}
        worker.execute(
            statements.claim.from_head, {f"given_{name}": v for name, v in given.items()}
        )

        def come() -> JobRef:
            with db.begin() as connection:
                return way(connection, scope="live")

        future = pool.submit(come)
        wait_until(lambda: waiting(db) == 1)
        getattr(worker, end)()
        ref = future.result(10)

    assert ref.inserted is (end == "rollback")
    assert (ref.id == there.id) is (end == "commit")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scope", ["live", "queued"])
def test_a_rollback_gives_the_key_back(
    way: Callable[..., JobRef], scope: str, db: Engine, statements: Statements
) -> None:
    there = late(db, scope=scope)
    with db.connect() as caller, db.connect() as worker:
        assert way(caller, scope=scope).inserted
        assert ids(claim(worker, statements)) == []  # it is passed by, and waits for its end
        caller.rollback()
        (job,) = claim(worker, statements)

    assert (job.id, job.expired) == (there.id, True)


def test_what_is_handed_back_has_no_key_any_more(db: Engine, statements: Statements) -> None:
    enqueue(db, sync, 1, unique=Unique("7", "queued"))
    enqueue(db, sync, 1, unique="7")
    with db.connect() as worker:
        held = claim(worker, statements)
        assert query(db, "SELECT unique_key FROM bgjob_job ORDER BY 1") == [("l:7",), (None,)]
        settle.settle(worker, statements, pending(held, HAND_BACK))

    assert query(db, "SELECT unique_key FROM bgjob_job ORDER BY 1") == [("l:7",), (None,)]
    assert enqueue(db, sync, 1, unique=Unique("7", "queued")).inserted
    assert not enqueue(db, sync, 1, unique="7").inserted


@pytest.mark.parametrize(
    ("key", "hot"), [(None, 9), (Unique("7"), 9), (Unique("7", "queued"), 8)], ids=str
)
def test_a_claim_writes_no_index_for_who_has_no_key(
    key: Unique | None, hot: int, db: Engine, statements: Statements
) -> None:
    """Its updates are HOT, also for a key of scope live; only one of scope queued is taken out."""
    enqueue_many(db, sync, range(8))
    enqueue(db, sync, 1, unique=key)
    counts = text(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables"
        " WHERE relid = CAST('bgjob_job' AS regclass)"
    )

    with db.connect() as worker, worker.begin():
        before = worker.execute(counts).one()  # of what this session has not reported yet
        claims.claim(worker, statements, queue="q", limit=100, worker_id=1)
        after = worker.execute(counts).one()

    assert tuple(now - then for then, now in zip(before, after, strict=True)) == (9, hot)


POLICIES = ("skip", "skip", "replace", "earlier", "raise")


@pytest.mark.core
def test_bulks_of_the_same_keys_never_deadlock(db: Engine, statements: Statements) -> None:
    """In any order, by any policy, from queries too, beside claims; each key is there once."""
    names = [f"{n:02}" for n in range(12)]
    with db.begin() as connection:
        connection.execute(keys.insert(), [{"name": name} for name in names])
    failures: list[BaseException] = []
    done = threading.Event()

    def produce(seed: int) -> None:
        dice = random.Random(seed)
        with db.connect() as connection:
            for _ in range(25):
                scope: Any = dice.choice(("live", "queued", "queued"))
                policy: Any = dice.choice(POLICIES if scope == "queued" else ("skip",))
                some = dice.sample(names, 8)
                try:
                    if dice.random() < 0.3:
                        unique = Unique(keys.c.name, scope, on_conflict=policy)
                        which = select(keys.c.name).where(keys.c.name.in_(some))
                        enqueue_from(connection, sync, which, unique=unique)
                    else:
                        words = {"scope": scope, "on_conflict": policy}
                        soon: Any = {"expires": 0.001} if dice.random() < 0.5 else {}
                        unique = partial(Unique, **words)
                        enqueue_many(connection, sync, some, unique=unique, **soon)
                    connection.commit() if dice.random() < 0.7 else connection.rollback()
                except Exception as error:
                    connection.rollback()
                    if type(error).__name__ != "JobAlreadyExists":
                        failures.append(error)

    def work() -> None:
        with db.connect() as connection:
            while not done.is_set():
                held = claim(connection, statements, 3)
                if held:
                    settle.settle(connection, statements, pending(held, COMPLETED))

    with ThreadPoolExecutor(4) as pool:
        worker = pool.submit(work)
        producers = [pool.submit(produce, seed) for seed in range(3)]
        for future in producers:
            future.result(60)
        done.set()
        worker.result(60)

    states = [sqlstate(error) for error in failures if isinstance(error, DBAPIError)]
    assert (states, failures) == ([], [])


@pytest.mark.parametrize("mode", ["auto", "force_generic_plan"])
@pytest.mark.parametrize("scope", ["live", "queued"])
def test_keys_are_taken_by_one_probe_each(scope: Any, mode: str, db: Engine) -> None:
    count = 600

    def enqueue_all(connection: Connection, **options: Any) -> int:
        unique = partial(Unique, scope=scope)
        names = map(str, range(count))
        return enqueue_many(connection, sync, names, unique=unique, **options).inserted

    with db.connect() as connection, recorded_plans(connection, mode) as plans:
        enqueue_many(connection, sync, range(5_000))  # all pages of a small table cost nothing
        assert enqueue_all(connection, expires=60) == count
        connection.execute(
            text(
                "UPDATE bgjob_job SET expires_at = now() - interval '1 min'"
                " WHERE unique_key IS NOT NULL"
            )
        )
        plans.clear()
        assert enqueue_all(connection) == count
        (plan,) = plans
        connection.rollback()

    assert all("Index" in scan or scan == "Tid Scan" for scan in plan.scans()), plan.scans()
    removed = [node.get("Rows Removed by Join Filter", 0) for node in plan.nodes()]
    assert sum(removed) == 0
    assert plan.buffers < 100 * count


@pytest.mark.parametrize("mode", ["auto", "force_generic_plan"])
@pytest.mark.parametrize("words", [*SCOPES, {"scope": "queued", "on_conflict": "earlier"}], ids=str)
def test_a_bulk_is_one_probe_for_each_key(words: dict[str, Any], mode: str, db: Engine) -> None:
    """Of a table that was never analysed; and no key is compared with all others."""
    count = 600

    def unique(number: int) -> Unique:
        return Unique(str(number), **words)

    def enqueue_all(connection: Connection) -> int:
        return enqueue_many(connection, sync, range(count), unique=unique).inserted

    with db.connect() as connection, recorded_plans(connection, mode) as plans:
        enqueue_many(connection, sync, range(5_000))  # all pages of a small table cost nothing
        assert enqueue_all(connection) == count
        plans.clear()
        assert enqueue_all(connection) == 0
        (plan,) = plans
        connection.rollback()

    assert all("Index" in scan or scan == "Tid Scan" for scan in plan.scans()), plan.scans()
    removed = [node.get("Rows Removed by Join Filter", 0) for node in plan.nodes()]
    assert sum(removed) == 0
    assert plan.buffers < 40 * count


@pytest.mark.parametrize("act", ["cancel_where", "run_now"])
def test_those_who_act_on_many_lock_as_a_bulk_does(db: Engine, act: str) -> None:
    """By key, and not by id: two that wait for each other in a circle would be ended."""
    with db.begin() as connection:
        for id, key in (("1", "b"), ("2", "a")):
            enqueue(connection, sync, 1, id=id, unique=Unique(key, "queued"), delay=60)

    def on_all() -> object:
        with db.begin() as connection:
            return getattr(jobs, act)(connection, jobs.Job.type == "sync")

    replacing = partial(Unique, scope="queued", on_conflict="replace")
    with ThreadPoolExecutor() as pool, db.begin() as connection:
        enqueue(connection, sync, 2, unique=replacing("a"), delay=60)
        acting = pool.submit(on_all)
        wait_until(lambda: waiting(db) == 1, what="the lock of the first job")
        enqueue(connection, sync, 2, unique=replacing("b"), delay=60)
        connection.commit()
        acting.result()
