"""Plans hold: on small and large tables, just filled and never analysed, prepared before and after.

A plan that is right on the developer's table and reads the whole of the user's is the classic way
in which a queue in PostgreSQL dies. Autovacuum is off here, as it is in effect for the first minute
of a burst.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text

from sqlalchemy_bgjob._db.connections import configure, maintain
from sqlalchemy_bgjob._handlers.outcomes import COMPLETED, HAND_BACK, Kind, Settlement
from sqlalchemy_bgjob._lifecycle import claim as claims
from sqlalchemy_bgjob._lifecycle import rescue, workers
from sqlalchemy_bgjob._lifecycle import settle as settlements
from sqlalchemy_bgjob._lifecycle.claim import Look, Position
from sqlalchemy_bgjob._sql import Statements
from sqlalchemy_bgjob._worker.permits import HandlerConnections
from support.plans import Plan, let_cleaning_catch_up, recorded_plans
from support.rows import ME, add, claim, fill, ids, make_tables, pending
from support.tables import new_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy_bgjob._lifecycle.claim import ClaimedJob
    from support.databases import TestServer

BATCH = 200
MODES = ["auto", "force_custom_plan", "force_generic_plan"]
WHEN = ["prepared early", "prepared late", "analysed"]
CLAIM_INDEX, KEY = "bgjob_job_due_idx", "bgjob_job_pkey"

RETRY = Settlement(Kind.RETRY, delay=3_600.0, error="x")
DEAD = Settlement(Kind.DEAD, error="x")


@dataclass(frozen=True)
class Step:
    """One statement of a worker: its plan, and how many jobs it was for."""

    plan: Plan
    jobs: int


def a_round(connection: Connection, statements: Statements, plans: list[Plan]) -> dict[str, Step]:
    """All hot statements of a worker, on its own connection; the table keeps what it had."""
    connection = configure(connection)
    maintain(connection, None, plans=True)
    steps = {}

    def note(name: str, jobs: int) -> None:
        # The settlements' own; what else ran looked the missing ones up.
        steps[name] = Step(plans[-1], jobs)
        plans.clear()
        let_cleaning_catch_up(connection.engine)

    plans.clear()
    let_cleaning_catch_up(connection.engine)
    third = max(BATCH // 3, 1)
    jobs = claim(connection, statements, third)
    note("claim", len(jobs))
    looks = [Look("q", third), Look("absent", third), Look("none", third, (Position(0, None, ""),))]
    with connection.begin():
        found, absent, none = claims.claim_from_queues(
            connection, statements, looks=looks, worker_id=ME
        )
    assert absent.jobs == none.jobs == []
    note("claim from queues", len(found.jobs))
    jobs += found.jobs
    with connection.begin():
        priorities = claims.lanes(connection, statements, queue="q")
    note("lanes", 1)
    last = Position(jobs[-1].priority, jobs[-1].next_run_at, jobs[-1].id)
    with connection.begin():
        onward = claims.claim(
            connection, statements, queue="q", limit=third, worker_id=ME, onward=[last]
        )
    note("claim onward", len(onward))
    jobs += onward
    with connection.begin():
        claims.next_due(connection, statements, queue="q", priorities=priorities)
    note("next_due", 1)
    workers.set_waits_for(connection, statements, worker_id=ME, queues=["q"])
    note("announce", 1)
    share = max(len(jobs) // 4, 1)
    parts = [jobs[n * share : (n + 1) * share] for n in range(3)] + [jobs[3 * share :]]
    for name, settlement, part in zip(
        ("complete", "retry", "bury", "hand back"),
        (COMPLETED, RETRY, DEAD, HAND_BACK),
        parts,
        strict=True,
    ):
        if part:
            settle(connection, statements, part, settlement)
            note(name, len(part))
    workers.beat(connection, statements, worker_id=ME, listener=None)
    note("beat", 1)
    return steps


def settle(
    connection: Connection, statements: Statements, jobs: list[ClaimedJob], settlement: Settlement
) -> None:
    with connection.begin():
        held, _ = settlements.write(connection, statements, pending(jobs, settlement))
    assert held == set(ids(jobs))


def make_queue(engine: Engine) -> Statements:
    statements = Statements(make_tables(engine))
    with engine.begin() as connection:
        for table in ("bgjob_job", "bgjob_dead_job", "bgjob_worker"):
            connection.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = off)"))
    with engine.connect() as connection:
        register(connection, statements)
    return statements


def register(connection: Connection, statements: Statements, worker_id: int = ME) -> None:
    workers.register(
        connection,
        statements,
        worker_id=worker_id,
        hostname="h",
        pid=1,
        version="0",
        queues={"q": 1},
        lease_timeout=30.0,
    )


def age_plans(connection: Connection) -> None:
    connection.info["bgjob_planned_at"] = connection.info.get("bgjob_planned_at", 0.0) - 1.5


SIZES = [100, 20_000, 200_000, pytest.param(1_000_000, marks=pytest.mark.chaos)]


@pytest.fixture(scope="module", params=SIZES)
def rounds(
    request: pytest.FixtureRequest, server: TestServer
) -> Iterator[tuple[int, dict[tuple[str, str], dict[str, Step]]]]:
    """The steps of a worker's round, by plan_cache_mode and when its statements were prepared."""
    size = request.param
    found = {}
    with new_engine(server) as engine, ExitStack() as stack:
        statements = make_queue(engine)

        def connect(mode: str) -> tuple[Connection, list[Plan]]:
            connection = stack.enter_context(engine.connect())
            return connection, stack.enter_context(recorded_plans(connection, mode))

        early = {mode: connect(mode) for mode in MODES}
        for mode in MODES:
            # Of itself PostgreSQL tries five custom plans before it makes a generic one.
            for n in range(7 if mode == "auto" else 1):
                with engine.begin() as connection:
                    fill(connection, 4, prefix=f"early-{mode}-{n}-")
                a_round(early[mode][0], statements, early[mode][1])
        with engine.begin() as connection:
            fill(connection, size)
            add(connection, "later", due_in=3_600.0)
        for mode in MODES:
            age_plans(early[mode][0])
            found[mode, "prepared early"] = a_round(early[mode][0], statements, early[mode][1])
            refill(engine, size)
            connection, plans = connect(mode)
            found[mode, "prepared late"] = a_round(connection, statements, plans)
            refill(engine, size)
        with engine.begin() as connection:
            connection.execute(text("ANALYZE bgjob_job"))
        for mode in MODES:
            connection, plans = connect(mode)
            found[mode, "analysed"] = a_round(connection, statements, plans)
            refill(engine, size)
        yield size, found


def refill(engine: Engine, size: int) -> None:
    """Small tables run out of jobs."""
    if size < 1_000:
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM bgjob_job WHERE id LIKE 'job-%'"))
            fill(connection, size)


@pytest.mark.core
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("when", WHEN)
def test_no_hot_statement_reads_the_whole_table(
    rounds: tuple[int, dict[tuple[str, str], dict[str, Step]]], mode: str, when: str
) -> None:
    size, found = rounds
    steps = found[mode, when]

    assert set(steps) == {
        *("claim", "claim from queues", "lanes", "claim onward", "next_due", "announce"),
        *("complete", "retry", "bury", "hand back", "beat"),
    }
    for name, step in steps.items():
        scans = step.plan.scans()
        # On a table of a few pages, reading them all is the cheapest way to find rows by address.
        if size > 1_000:
            assert not any("Seq" in scan or "Bitmap" in scan for scan in scans), (name, scans)
        # A row costs its page, its index pages, and for each new version their changes.
        assert step.plan.buffers <= 20 * step.jobs + 60, (name, step.plan.buffers, step.jobs)
    if size > 1_000:
        for name in ("claim", "claim from queues"):
            assert steps[name].plan.scans() == {
                f"Index Only Scan {CLAIM_INDEX}",
                f"Index Scan {CLAIM_INDEX}",
                "Tid Scan",
            }, name
        assert steps["claim onward"].plan.scans() == {f"Index Scan {CLAIM_INDEX}", "Tid Scan"}
        for name in ("lanes", "next_due"):
            assert steps[name].plan.scans() == {f"Index Only Scan {CLAIM_INDEX}"}, name
        for name in ("complete", "retry", "bury", "hand back"):
            assert steps[name].plan.scans() == {f"Index Scan {KEY}", "Tid Scan"}, name
    assert not steps["beat"].plan.scans()


@pytest.mark.core
@pytest.mark.parametrize("mode", MODES)
def test_settlements_beside_rows_that_vacuum_must_keep(server: TestServer, mode: str) -> None:
    """The statistics say that the table is empty, and all of its indexes look alike.

    Beside an open transaction each search by id was a walk through the claim's index, and 600 jobs
    a second were too many for a worker after two minutes.
    """
    with new_engine(server) as engine, engine.connect() as pin, engine.connect() as connection:
        statements = make_queue(engine)
        pin.execution_options(isolation_level="REPEATABLE READ")
        pin.execute(text("SELECT count(*) FROM bgjob_job"))
        with engine.begin() as other:
            fill(other, 20_000)
            other.execute(text("DELETE FROM bgjob_job"))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            other.execute(text("VACUUM ANALYZE bgjob_job"))
            assert other.scalar(text("SELECT count(*) FROM bgjob_job")) == 0
            fill(other, BATCH, prefix="late-")
        pin.rollback()  # the plans do not depend on it, and no clean-up is to be in the way

        with recorded_plans(connection, mode) as plans:
            steps = a_round(connection, statements, plans)

    for name in ("complete", "retry", "bury", "hand back"):
        step = steps[name]
        assert step.plan.scans() == {f"Index Scan {KEY}", "Tid Scan"}, name
        assert step.plan.buffers <= 20 * step.jobs + 60, (name, step.plan.buffers, step.jobs)


@pytest.mark.core
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("known", [0, 3], ids=["absent", "rare"])
def test_a_queue_that_statistics_hardly_know(server: TestServer, mode: str, known: int) -> None:
    """They were taken while the queue had no jobs, or three, beside 50,000 of another one."""
    with new_engine(server) as engine, engine.connect() as connection:
        statements = make_queue(engine)
        with engine.begin() as other:
            fill(other, 50_000, queue="busy", prefix="busy-")
            fill(other, known, prefix="early-")
            other.execute(text("ANALYZE bgjob_job"))
            fill(other, 20_000)

        with recorded_plans(connection, mode) as plans:
            steps = a_round(connection, statements, plans)

    assert steps["claim onward"].plan.scans() == {f"Index Scan {CLAIM_INDEX}", "Tid Scan"}
    for name in ("complete", "retry", "bury", "hand back"):
        assert steps[name].plan.scans() == {f"Index Scan {KEY}", "Tid Scan"}, name
    for name, step in steps.items():
        assert step.plan.buffers <= 20 * step.jobs + 60, (name, step.plan.buffers, step.jobs)


@pytest.mark.core
def test_the_claim_reads_what_it_takes(
    rounds: tuple[int, dict[tuple[str, str], dict[str, Step]]],
) -> None:
    """Four pages a job and the way to the first one, however many there are."""
    size, found = rounds

    for key, steps in found.items():
        claims_of = [steps[name] for name in ("claim", "claim from queues", "claim onward")]
        assert min(size, BATCH // 3 * 3) <= sum(step.jobs for step in claims_of) <= BATCH, key
        for step in claims_of:
            assert step.plan.buffers <= 5 * step.jobs + 60, (key, step.plan.buffers)


@contextmanager
def handler_connection(engine: Engine) -> Iterator[Connection]:
    connections = HandlerConnections(engine, None)
    connection = connections.connect(None, ME)
    try:
        yield connection
    finally:
        connections.disconnect(connection)


def test_a_handler_s_own_connection_forgets_its_plans_too(server: TestServer) -> None:
    """Its settlement was prepared on a table of one page, and runs on one of a thousand."""
    with new_engine(server) as engine:
        statements = make_queue(engine)
        one = create_engine(engine.url, pool_size=1, max_overflow=0)
        with engine.connect() as claimer, ExitStack() as stack:
            for n in range(8):
                with engine.begin() as connection:
                    fill(connection, 1, prefix=f"early-{n}-")
                    connection.execute(text("ANALYZE bgjob_job"))
                with handler_connection(one) as connection:
                    if not n:
                        plans = stack.enter_context(recorded_plans(connection))
                    settle(connection, statements, claim(claimer, statements), COMPLETED)
                    age_plans(connection)
            with engine.begin() as connection:
                fill(connection, 20_000)
            plans.clear()
            with handler_connection(one) as connection:
                settle(connection, statements, claim(claimer, statements, 1), COMPLETED)
        one.dispose()

    assert plans[-1].scans() == {f"Index Scan {KEY}", "Tid Scan"}


@pytest.mark.core
@pytest.mark.parametrize("mode", MODES)
def test_an_idle_poll_reads_little_however_much_is_scheduled(
    scheduled: tuple[Engine, Statements], mode: str
) -> None:
    """200,000 jobs for tomorrow, over five priorities; nothing is due."""
    engine, statements = scheduled

    with engine.connect() as connection, recorded_plans(connection, mode) as plans:
        assert claim(connection, statements, BATCH) == []
        with connection.begin():
            priorities = claims.lanes(connection, statements, queue="q")
            delay = claims.next_due(connection, statements, queue="q", priorities=priorities)
            onward = [Position(priority, None, "") for priority in priorities]
            given: Any = {"queue": "q", "limit": BATCH, "worker_id": ME, "onward": onward}
            assert claims.claim(connection, statements, **given) == []
            looks = [Look("q", BATCH)]
            (found,) = claims.claim_from_queues(connection, statements, looks=looks, worker_id=ME)

    assert found.priorities == priorities
    assert found.due_in == pytest.approx(delay, abs=5.0)
    assert priorities == [-5, 0, 1, 7, 100]
    assert delay is not None
    assert 80_000 < delay <= 86_400
    head, lanes, next_due, onward_poll, together = (plan.buffers for plan in plans)
    assert head + lanes + next_due <= 200, (head, lanes, next_due)
    assert onward_poll + next_due <= 100, (onward_poll, next_due)
    assert together <= 200


@pytest.fixture(scope="module")
def scheduled(server: TestServer) -> Iterator[tuple[Engine, Statements]]:
    with new_engine(server) as engine:
        statements = make_queue(engine)
        with engine.begin() as connection:
            for priority in (-5, 0, 1, 7, 100):
                fill(
                    connection,
                    40_000,
                    priority=priority,
                    due_in=86_400.0,
                    prefix=f"p{priority}-",
                )
        yield engine, statements


@pytest.mark.core
def test_an_idle_sweep_reads_no_job(scheduled: tuple[Engine, Statements]) -> None:
    """Every worker looks every few seconds; that must not cost a read of the table each time."""
    engine, statements = scheduled
    sent: list[str] = []
    with engine.connect() as made:
        event.listen(made, "before_cursor_execute", lambda *args: sent.append(args[2]))
        connection = configure(made)
        workers.beat(connection, statements, worker_id=ME, listener=None)
        assert rescue.rescue_silent(connection, statements, judge=ME, connected=3_600.0) == []
        assert rescue.rescue_rest(connection, statements) == []
        now = rescue.look_at_workers(connection, statements)
        assert rescue.rescue_ended(connection, statements, now, now) == []
        beats: dict[int, rescue.Beat] = {}
        fit: Any = {"judge": ME, "connected": 3_600.0}
        assert rescue.rescue_unchanged(connection, statements, now, beats, **fit) == []

    assert len(sent) >= 4
    assert not [statement for statement in sent if "bgjob_job" in statement]


@pytest.mark.parametrize("size", [200_000, pytest.param(1_000_000, marks=pytest.mark.chaos)])
def test_a_rescue_takes_less_than_a_second(server: TestServer, size: int) -> None:
    """Of fifty jobs, behind however many that wait; the table was never analysed."""
    with new_engine(server) as engine:
        statements = make_queue(engine)
        with engine.begin() as connection:
            fill(connection, size)
        took = []
        for n in range(3):
            with engine.connect() as connection:
                if n:  # the rescue has removed it
                    register(connection, statements)
            with engine.connect() as connection:
                assert len(claim(configure(connection), statements, 50)) == 50
            with engine.begin() as connection:
                lost = "UPDATE bgjob_worker SET lost_at = now() WHERE id = :id"
                connection.execute(text(lost), {"id": ME})
            with engine.connect() as connection:
                begun = time.monotonic()
                (rescued,) = rescue.rescue_rest(configure(connection), statements)
                took.append(time.monotonic() - begun)
            assert rescued.jobs == 50
        print(f"a rescue of 50 among {size} took {sorted(took)[1] * 1000:.0f} ms")
        assert sorted(took)[1] < 1.0


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_claims_are_quick_beside_millions(server: TestServer) -> None:
    """A million that are due, a million for later, a million dead; nothing was analysed."""
    dead = (
        "INSERT INTO bgjob_dead_job (id, job_id, queue, type, priority, attempt, lease,"
        " next_run_at, job_created_at, job_updated_at)"
        " SELECT n, 'dead-' || n, 'q', 't', 0, 1, n, now(), now(), now()"
        " FROM generate_series(1, 1000000) AS n"
    )
    took = []
    with new_engine(server) as engine, engine.connect() as made:
        statements = make_queue(engine)
        with engine.begin() as connection:
            fill(connection, 1_000_000)
            fill(connection, 1_000_000, due_in=86_400.0, prefix="later-")
            connection.execute(text(dead))
        connection = configure(made)
        last: list[Position] | None = None
        for _ in range(200):
            given: Any = {"queue": "q", "limit": BATCH, "worker_id": ME, "onward": last}
            begun = time.monotonic()
            with connection.begin():
                jobs = claims.claim(connection, statements, **given)
            took.append(time.monotonic() - begun)
            assert len(jobs) == BATCH
            last = [Position(jobs[-1].priority, jobs[-1].next_run_at, jobs[-1].id)]
            settle(connection, statements, jobs, COMPLETED)
    took.sort()
    print(f"claims of {BATCH}: median {took[100] * 1000:.1f} ms, p99 {took[198] * 1000:.1f} ms")
    assert took[198] < 0.1


def test_one_lost_job_is_found_among_ten_thousand_that_run(server: TestServer) -> None:
    """By the row of its worker: the jobs of those that live are not even looked at one by one."""
    silent = ME + 1
    with new_engine(server) as engine, engine.connect() as made:
        statements = make_queue(engine)
        with engine.begin() as connection:
            fill(connection, 10_001)
            connection.execute(text("ANALYZE bgjob_job"))
        connection = configure(made)
        register(connection, statements, silent)
        (lost,) = claim(connection, statements, 1, worker_id=silent)
        assert len(claim(connection, statements, 10_000)) == 10_000
        age = "UPDATE bgjob_worker SET beat_at = now() - interval '31 s' WHERE id = :id"
        with connection.begin():
            connection.execute(text(age), {"id": silent})

        begun = time.monotonic()
        rescued = rescue.rescue_silent(connection, statements, judge=ME, connected=3_600.0)
        took = time.monotonic() - begun

        assert [(worker.worker_id, worker.jobs) for worker in rescued] == [(silent, 1)]
        free = "SELECT id FROM bgjob_job WHERE claimed_by IS NULL"
        with connection.begin():
            assert connection.scalars(text(free)).all() == [lost.id]
    print(f"one lost job among 10,000 that run was given back in {took * 1000:.0f} ms")
    assert took < 1.0


@pytest.mark.core
def test_the_claim_s_update_is_hot(engine: Engine) -> None:
    """No column of an index changes, and half of each page is free: no new index entries."""
    statements = Statements(make_tables(engine))
    with engine.begin() as connection:
        fill(connection, 2_000)

    with engine.connect() as connection, connection.begin():
        before = updates(connection)
        for _ in range(10):
            given: Any = {"queue": "q", "limit": BATCH, "worker_id": ME}
            assert len(claims.claim(connection, statements, **given)) == BATCH
        after = updates(connection)

    assert after[0] - before[0] == 2_000
    assert after[1] - before[1] >= 0.95 * 2_000


def updates(connection: Connection) -> tuple[int, int]:
    """Rows updated in this transaction, and how many of them by HOT."""
    counts = "pg_stat_get_xact_tuples_updated(oid), pg_stat_get_xact_tuples_hot_updated(oid)"
    row = connection.execute(text(f"SELECT {counts} FROM pg_class WHERE relname = 'bgjob_job'"))
    found = row.one()
    return found[0], found[1]
