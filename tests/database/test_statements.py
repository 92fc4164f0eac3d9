"""The statements of claim and settlement, one by one, on a real server."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, MetaData, Text, create_engine, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateSchema

from sqlalchemy_bgjob._drafts.codec import Encoded
from sqlalchemy_bgjob._handlers.outcomes import COMPLETED, HAND_BACK, INTERRUPTED, Kind, Settlement
from sqlalchemy_bgjob._lifecycle import claim as claims
from sqlalchemy_bgjob._lifecycle import settle
from sqlalchemy_bgjob._lifecycle.settle import Pending
from sqlalchemy_bgjob._sql import Statements
from sqlalchemy_bgjob._sql.schedules import DEFINITION, GAP
from sqlalchemy_bgjob._sql.words import PARAMETER_PREFIX, channel_name, parameters
from sqlalchemy_bgjob.models import DeadJobMixin, JobMixin, build_models
from support.rows import ME, OTHER, add, claim, fill, ids, pending, rows

if TYPE_CHECKING:
    from support.queue import Queue

pytestmark = pytest.mark.core

RETRY = Settlement(Kind.RETRY, delay=60.0, error="x")
DEAD = Settlement(Kind.DEAD, error="y")

# ---- claim ----------------------------------------------------------------------------------


def test_order_is_priority_then_time_then_id(queue: Queue) -> None:
    queue.put("c", "b", "a", due_in=-10.0)
    queue.put("older", due_in=-20.0)
    queue.put("urgent", priority=-1, due_in=-1.0)
    queue.put("later", priority=1, due_in=-99.0)
    with queue.engine.begin() as connection:
        connection.execute(
            text("UPDATE bgjob_job SET next_run_at = '2020-01-01' WHERE id IN ('a', 'b', 'c')")
        )

    assert queue.take() == ["urgent", "a", "b", "c", "older", "later"]


def test_one_at_a_time_gives_the_same_order(queue: Queue) -> None:
    """The LIMIT takes the first ones, whatever the order of the rows on disk."""
    for n, (priority, due_in) in enumerate([(1, -5), (0, -1), (0, -3), (-7, -1), (1, -9), (0, -2)]):
        queue.put(f"{n}", priority=priority, due_in=due_in)

    assert [queue.take(1) for _ in range(7)] == [["3"], ["2"], ["5"], ["1"], ["4"], ["0"], []]


@pytest.mark.parametrize(
    "plan",
    [
        "enable_indexscan enable_indexonlyscan enable_bitmapscan",
        "enable_seqscan enable_indexscan enable_indexonlyscan",
        "enable_nestloop",
        "enable_tidscan",
        "enable_sort",
    ],
)
def test_order_and_limit_do_not_depend_on_the_plan(queue: Queue, plan: str) -> None:
    for n, (priority, due_in) in enumerate([(1, -5), (0, -1), (0, -3), (-7, -1), (1, -9), (0, -2)]):
        queue.put(f"{n}", priority=priority, due_in=due_in)
    with queue.connection.begin():
        for name in plan.split():
            queue.connection.execute(text(f"SET {name} = off"))
    try:
        assert [queue.take(n) for n in (1, 2, 10)] == [["3"], ["2", "5"], ["1", "4", "0"]]
    finally:
        queue.connection.invalidate()


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 10, 14, 15, 16])
def test_a_claim_takes_exactly_its_limit_across_priorities(queue: Queue, limit: int) -> None:
    for priority in (-2, 0, 1, 5, 9):
        queue.put(*(f"p{priority + 2:02}-{n}" for n in range(3)), priority=priority)

    taken = queue.take(limit)

    assert taken == sorted(rows(queue.connection))[: min(limit, 15)]


def test_the_smallest_and_the_largest_priority_are_lanes_too(queue: Queue) -> None:
    queue.put("last", priority=32_767)
    queue.put("middle", priority=0)
    queue.put("first", priority=-32_768)

    assert queue.take() == ["first", "middle", "last"]


def test_what_is_scheduled_or_running_is_left(queue: Queue) -> None:
    queue.put("scheduled", due_in=60.0)
    queue.put("running", claimed_by=OTHER)
    queue.put("due")

    assert queue.take() == ["due"]
    assert rows(queue.connection)["running"].claimed_by == OTHER
    assert rows(queue.connection)["scheduled"].claimed_by is None


def test_a_priority_of_which_nothing_is_due_hides_no_other(queue: Queue) -> None:
    queue.put("scheduled", due_in=60.0, priority=-1)
    queue.put("running", claimed_by=OTHER, priority=0)
    queue.put("due", priority=1)

    assert queue.take() == ["due"]


def test_a_claim_takes_from_its_own_queue_only(queue: Queue) -> None:
    for name in ("a", "q", "q ", "Q", "z"):
        queue.put(f"in {name}", queue=name)

    assert queue.take() == ["in q"]
    assert queue.take(queue="Q") == ["in Q"]
    assert queue.take(queue="none") == []


def test_a_claim_writes_who_and_counts_lease_and_attempt(queue: Queue) -> None:
    queue.put("a", attempt=3, crashes=1, last_error="before", arg=b"\x00\xff")
    before = rows(queue.connection)["a"]

    (job,) = claim(queue.connection, queue.statements)

    after = rows(queue.connection)["a"]
    assert after.claimed_by == job.worker_id == ME
    assert after.lease == job.lease == before.lease + 1
    assert after.attempt == job.attempt == 4
    assert after.updated_at > before.updated_at
    unchanged = set(before._fields) - {"claimed_by", "lease", "attempt", "updated_at"}
    for name in unchanged:
        assert getattr(after, name) == getattr(before, name), name
    for name in ("id", "queue", "type", "arg", "priority", "crashes", "last_error", "headers"):
        assert getattr(job, name) == getattr(after, name), name
    assert job.next_run_at == after.next_run_at
    assert job.created_at == after.created_at
    assert job.unknown_for is None


def test_a_claim_tells_for_how_long_the_type_has_been_unknown(queue: Queue) -> None:
    queue.put("a")
    with queue.engine.begin() as connection:
        connection.execute(
            text("UPDATE bgjob_job SET unknown_since = now() - interval '90 seconds'")
        )

    (job,) = claim(queue.connection, queue.statements)

    assert job.unknown_for == pytest.approx(90, abs=20)


def test_the_lease_of_a_new_job_is_the_servers_clock(queue: Queue) -> None:
    queue.put("a")

    row = rows(queue.connection)["a"]

    assert row.lease == pytest.approx(row.created_at.timestamp() * 1e6, abs=60e6)


# ---- claim, beside others -------------------------------------------------------------------


def test_two_claims_at_once_skip_each_others_rows(queue: Queue) -> None:
    queue.put(*"abcdef")
    with queue.engine.connect() as other, other.begin():
        given: dict[str, Any] = {"queue": "q", "limit": 2, "worker_id": OTHER}
        first = claims.claim(other, queue.statements, **given)

        assert ids(first) == ["a", "b"]
        assert queue.take(3) == ["c", "d", "e"]


def test_a_claim_locks_no_more_than_it_takes(queue: Queue) -> None:
    """Neither the rest of a lane nor the lanes after it."""
    queue.put("a", "b", "c", priority=0)
    queue.put("d", "e", priority=1)
    with queue.engine.connect() as other, other.begin():
        given: dict[str, Any] = {"queue": "q", "limit": 2, "worker_id": OTHER}
        claims.claim(other, queue.statements, **given)

        assert queue.take() == ["c", "d", "e"]


def test_a_claim_that_rolls_back_leaves_no_trace(queue: Queue) -> None:
    queue.put("a")
    before = rows(queue.connection)

    with queue.engine.connect() as other, other.begin() as transaction:
        given: dict[str, Any] = {"queue": "q", "limit": 2, "worker_id": OTHER}
        assert claims.claim(other, queue.statements, **given)
        transaction.rollback()

    assert rows(queue.connection) == before
    assert queue.take() == ["a"]


def test_a_job_that_a_user_refers_to_can_be_claimed(queue: Queue) -> None:
    """An INSERT with a foreign key locks the job FOR KEY SHARE until its transaction ends."""
    queue.put("a", "b")
    with queue.engine.connect() as user, user.begin():
        user.execute(text("INSERT INTO receipt VALUES ('a')"))

        assert queue.take() == ["a", "b"]


def test_a_job_that_is_being_edited_is_skipped_alone(queue: Queue) -> None:
    queue.put("a", "b", "c")
    with queue.engine.connect() as user, user.begin():
        user.execute(text("SELECT 1 FROM bgjob_job WHERE id = 'a' FOR UPDATE"))

        assert queue.take(2) == ["b", "c"]
    assert queue.take(2) == ["a"]


@pytest.mark.parametrize("claimers", [2, 16])
def test_claimers_take_each_of_10_000_jobs_once(queue: Queue, claimers: int) -> None:
    """Whatever batches they take, no row has two leases, and none was left out."""
    with queue.engine.begin() as connection:
        for priority in range(4):
            fill(connection, 2_500, priority=priority, prefix=f"p{priority}-")
    taken: dict[int, list[str]] = {ME + n: [] for n in range(claimers)}
    leases: dict[str, int] = {}
    begin = threading.Barrier(claimers)
    failures: list[BaseException] = []

    engine = create_engine(queue.engine.url, pool_size=claimers)

    def claimer(worker_id: int) -> None:
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
                connection.rollback()
                begin.wait(20)
                while jobs := claim(connection, queue.statements, 97, worker_id=worker_id):
                    assert len(jobs) <= 97
                    taken[worker_id] += ids(jobs)
                    leases.update({job.id: job.lease for job in jobs})
                    if len(taken[worker_id]) == len(jobs):
                        begin.wait(20)  # on a busy machine the first would take them all
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=claimer, args=(worker_id,)) for worker_id in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    engine.dispose()
    assert not failures
    every = [id for claimed in taken.values() for id in claimed]
    assert len(every) == len(set(every)) == 10_000
    assert all(taken.values())
    found = rows(queue.connection)
    assert {id: row.lease for id, row in found.items()} == leases
    assert {row.attempt for row in found.values()} == {1}
    for worker_id, claimed in taken.items():
        assert {id for id, row in found.items() if row.claimed_by == worker_id} == set(claimed)


def test_claims_beside_edits_take_no_job_twice(queue: Queue) -> None:
    """An operator moves due jobs about while two workers claim: each row's lease counts once."""
    with queue.engine.begin() as connection:
        fill(connection, 2_000)
    taken: list[str] = []
    failures: list[BaseException] = []
    editing = threading.Event()

    def edit() -> None:
        try:
            with queue.engine.connect() as connection:
                for n in range(40):
                    with connection.begin():
                        connection.execute(
                            text(
                                "UPDATE bgjob_job SET next_run_at = now() - interval '1 minute', "
                                "priority = :n % 3 WHERE claimed_by IS NULL "
                                "AND right(id, 1) = :digit"
                            ),
                            {"n": n, "digit": str(n % 10)},
                        )
                    editing.set()
        except BaseException as error:
            failures.append(error)

    def claimer(worker_id: int) -> None:
        try:
            editing.wait(20)
            with queue.engine.connect() as connection:
                while len(taken) < 2_000:
                    jobs = claim(connection, queue.statements, 20, worker_id=worker_id)
                    assert len(jobs) <= 20
                    taken.extend(ids(jobs))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=edit)]
    threads += [threading.Thread(target=claimer, args=(worker_id,)) for worker_id in (ME, OTHER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert not failures
    assert len(taken) == len(set(taken)) == 2_000
    assert {row.attempt for row in rows(queue.connection).values()} == {1}


# ---- when the next one is due ---------------------------------------------------------------


def next_due(queue: Queue, name: str = "q") -> float | None:
    with queue.connection.begin():
        priorities = claims.lanes(queue.connection, queue.statements, queue=name)
        return claims.next_due(
            queue.connection, queue.statements, queue=name, priorities=priorities
        )


def test_the_next_due_time_is_the_earliest_of_all_lanes(queue: Queue) -> None:
    queue.put("a", priority=-1, due_in=500.0)
    queue.put("b", priority=0, due_in=100.0)
    queue.put("c", priority=1, due_in=300.0)
    queue.put("d", due_in=10.0, queue="another")

    delay = next_due(queue)

    assert delay is not None
    assert 80 < delay <= 100


def test_there_is_no_next_due_time_without_scheduled_jobs(queue: Queue) -> None:
    queue.put("due")
    queue.put("running", claimed_by=OTHER)

    assert next_due(queue) is None
    assert next_due(queue, "none") is None


# ---- settle: the fence ----------------------------------------------------------------------


@pytest.mark.parametrize("settlement", [COMPLETED, RETRY, DEAD], ids=["complete", "retry", "dead"])
@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("wrong", ["lease", "id", "worker_id"])
def test_a_settlement_of_another_claim_changes_nothing(
    queue: Queue, settlement: Settlement, locked: bool, wrong: str
) -> None:
    queue.put("a", "b")
    jobs = claim(queue.connection, queue.statements)
    before = rows(queue.connection)
    for job in jobs:
        setattr(job, wrong, {"lease": job.lease - 1, "id": "none", "worker_id": OTHER}[wrong])

    items = pending(jobs, settlement)
    with queue.connection.begin():
        if locked:
            settle.lock(queue.connection, queue.statements, items)
        held, xid = settle.write(queue.connection, queue.statements, items)

    assert (held, xid) == (set(), None)
    assert rows(queue.connection) == before
    assert rows(queue.connection, "bgjob_dead_job") == {}


@pytest.mark.parametrize("settlement", [COMPLETED, RETRY, DEAD], ids=["complete", "retry", "dead"])
def test_a_stale_settlement_harms_none_of_its_batch(queue: Queue, settlement: Settlement) -> None:
    queue.put(*"abcd")
    jobs = claim(queue.connection, queue.statements)
    jobs[1].lease -= 1

    with queue.connection.begin():
        held, xid = settle.write(queue.connection, queue.statements, pending(jobs, settlement))

    assert held == {"a", "c", "d"}
    assert xid is not None
    assert xid.isdecimal()
    assert rows(queue.connection)["b"].claimed_by == ME


def test_leases_are_matched_with_their_own_ids(queue: Queue) -> None:
    """Not any id with any lease of the batch: each row's own."""
    queue.put("a", "b")
    first, second = claim(queue.connection, queue.statements)
    first.lease, second.lease = second.lease, first.lease
    assert first.lease != second.lease

    with queue.connection.begin():
        held, _ = settle.write(
            queue.connection, queue.statements, pending([first, second], COMPLETED)
        )

    assert held == set()


# ---- settle: what becomes of the row --------------------------------------------------------


def test_a_batch_of_mixed_outcomes_gives_each_row_its_own(queue: Queue) -> None:
    names = ["complete", "retry", "retry now", "reschedule", "new arg", "no arg", "back", "stop"]
    names += ["unknown", "dead"]
    queue.put(
        *names,
        attempt=4,
        last_error="before",
        arg=b"1",
        headers='{"trace": "t", "content-type": "x/y"}',
    )
    before = rows(queue.connection)
    jobs = {job.id: job for job in claim(queue.connection, queue.statements)}
    settlements = {
        "complete": COMPLETED,
        "retry": Settlement(Kind.RETRY, delay=60.0, error="e"),
        "retry now": Settlement(Kind.RETRY, delay=0.0, error=None),
        "reschedule": Settlement(Kind.RESCHEDULED, delay=600.0, refund_attempt=True),
        "new arg": Settlement(
            Kind.RESCHEDULED, delay=1.0, refund_attempt=True, arg=Encoded(b"\x00\x01", "a/b")
        ),
        "no arg": Settlement(
            Kind.RESCHEDULED, delay=1.0, refund_attempt=True, arg=Encoded(None, None)
        ),
        "back": HAND_BACK,
        "stop": INTERRUPTED,
        "unknown": Settlement(Kind.UNKNOWN_TYPE, delay=1.0, keep_error=True, refund_attempt=True),
        "dead": DEAD,
    }
    items = [Pending(jobs[name], settlements[name]) for name in names]

    with queue.connection.begin():
        held, _ = settle.write(queue.connection, queue.statements, items)

    assert held == set(names)
    after = rows(queue.connection)
    assert set(after) == set(names) - {"complete", "dead"}
    assert set(rows(queue.connection, "bgjob_dead_job")) == {"dead"}
    for name, row in after.items():
        assert row.claimed_by is None, name
        assert row.lease == jobs[name].lease + 1, name
        assert row.attempt == (5 if name in ("retry", "retry now") else 4), name
        assert (row.unknown_since is not None) == (name == "unknown"), name
        assert row.crashes == 0
        assert row.created_at == before[name].created_at
    assert {name: row.last_error for name, row in after.items()} == {
        "retry": "e",
        "retry now": None,
        "reschedule": None,
        "new arg": None,
        "no arg": None,
        "back": "before",
        "stop": "interrupted by shutdown",
        "unknown": "before",
    }
    for name in ("back", "stop"):
        assert after[name].next_run_at == before[name].next_run_at, name
    for name, delay in {"retry": 60, "retry now": 0, "reschedule": 600, "unknown": 1}.items():
        waits = after[name].next_run_at - after[name].updated_at
        assert waits == pytest.approx(timedelta(seconds=delay), abs=timedelta(seconds=0.9)), name
    given = {"trace": "t", "content-type": "x/y"}
    assert (after["new arg"].arg, after["new arg"].headers) == (
        b"\x00\x01",
        {"trace": "t", "content-type": "a/b"},
    )
    assert (after["no arg"].arg, after["no arg"].headers) == (None, {"trace": "t"})
    assert (after["retry"].arg, after["retry"].headers) == (b"1", given)


def test_an_attempt_that_is_given_back_is_never_below_zero(queue: Queue) -> None:
    queue.put("a")
    (job,) = claim(queue.connection, queue.statements)
    with queue.engine.begin() as connection:
        connection.execute(text("UPDATE bgjob_job SET attempt = 0"))

    with queue.connection.begin():
        settle.write(queue.connection, queue.statements, [Pending(job, HAND_BACK)])

    assert rows(queue.connection)["a"].attempt == 0


def test_unknown_since_is_kept_until_the_type_is_known(queue: Queue) -> None:
    unknown = Settlement(Kind.UNKNOWN_TYPE, delay=0.0, keep_error=True, refund_attempt=True)
    queue.put("a")
    times: list[datetime | None] = []

    for settlement in (unknown, unknown, Settlement(Kind.RETRY, delay=0.0)):
        (job,) = claim(queue.connection, queue.statements)
        with queue.connection.begin():
            settle.write(queue.connection, queue.statements, [Pending(job, settlement)])
        times.append(rows(queue.connection)["a"].unknown_since)

    assert times[0] is not None
    assert times == [times[0], times[0], None]


def test_a_dead_job_keeps_all_that_the_live_one_had(queue: Queue) -> None:
    queue.put(
        "a",
        priority=-3,
        attempt=7,
        crashes=2,
        last_error="before",
        arg=b"\x00",
        headers='{"k": 1}',
    )
    (job,) = claim(queue.connection, queue.statements)
    live = rows(queue.connection)["a"]

    with queue.connection.begin():
        settle.write(queue.connection, queue.statements, [Pending(job, DEAD)])

    dead = rows(queue.connection, "bgjob_dead_job")["a"]
    for name in ("queue", "type", "arg", "priority", "attempt", "crashes", "lease", "headers"):
        assert getattr(dead, name) == getattr(live, name), name
    assert dead.next_run_at == live.next_run_at
    assert dead.job_created_at == live.created_at
    assert dead.job_updated_at == live.updated_at
    assert dead.moved_at >= live.updated_at
    assert dead.last_error == "y"
    assert dead.id != "a"
    assert rows(queue.connection) == {}


def test_a_dead_job_without_an_error_keeps_the_last_one(queue: Queue) -> None:
    queue.put("a", attempt=7, last_error="before")
    (job,) = claim(queue.connection, queue.statements)
    given_up = Settlement(Kind.DEAD, refund_attempt=True)

    with queue.connection.begin():
        settle.write(queue.connection, queue.statements, [Pending(job, given_up)])

    dead = rows(queue.connection, "bgjob_dead_job")["a"]
    assert (dead.last_error, dead.attempt) == ("before", 7)


def test_the_same_job_may_die_more_than_once(queue: Queue) -> None:
    for _ in range(2):
        queue.put("a")
        jobs = claim(queue.connection, queue.statements)
        with queue.connection.begin():
            settle.write(queue.connection, queue.statements, pending(jobs, DEAD))

    with queue.engine.connect() as connection:
        found = connection.execute(text("SELECT id, job_id FROM bgjob_dead_job")).all()
    assert [row.job_id for row in found] == ["a", "a"]
    assert len({row.id for row in found}) == 2


def test_the_users_own_columns_move_with_the_job(engine: Engine) -> None:
    """Those that both tables have; the others stay behind, or take their default."""

    class Base(DeclarativeBase):
        pass

    class Job(JobMixin, Base):
        tenant: Mapped[str | None] = mapped_column(Text)
        only_live: Mapped[str | None] = mapped_column(Text)

    class DeadJob(DeadJobMixin, Base):
        tenant: Mapped[str | None] = mapped_column(Text)
        only_dead: Mapped[str | None] = mapped_column(Text, server_default="new")

    statements = Statements(build_models(Base, models=(Job, DeadJob)))
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        add(connection, "a", tenant="acme", only_live="x")

    with engine.connect() as connection:
        jobs = claim(connection, statements)
        with connection.begin():
            settle.write(connection, statements, pending(jobs, DEAD))
        dead = rows(connection, "bgjob_dead_job")["a"]

    assert (dead.tenant, dead.only_dead) == ("acme", "new")


def test_names_in_a_schema_and_with_a_prefix_of_ones_own(engine: Engine) -> None:
    """Every statement names its tables as the models do, however they have to be quoted."""
    metadata = MetaData()
    statements = Statements(build_models(metadata, schema='Jo"bs %s', table_prefix="its:own %_"))
    with engine.begin() as connection:
        connection.execute(CreateSchema('Jo"bs %s'))
        metadata.create_all(connection)
    given: dict[str, Any] = {
        "id": "a",
        "queue": "q",
        "type": "t",
        "arg": b"1",
        "priority": 0,
        "headers": None,
        "delay": None,
        "run_at": None,
    }

    with engine.connect() as connection:
        for settlement in (HAND_BACK, DEAD, COMPLETED):
            with connection.begin():
                connection.execute(statements.enqueue.job(True), parameters(**given))
            jobs = claim(connection, statements)
            assert ids(jobs) == ["a"]
            with connection.begin():
                held, _ = settle.write(connection, statements, pending(jobs, settlement))
            assert held == {"a"}


# ---- what other statements do ---------------------------------------------------------------


def test_of_a_refused_settlement_only_the_error_is_stored(
    queue: Queue,
) -> None:
    queue.put("a", "b")
    jobs = claim(queue.connection, queue.statements)
    before = rows(queue.connection)

    with queue.connection.begin():
        queue.connection.execute(
            queue.statements.settle.note_error,
            parameters(queue="q", worker=ME, ids=["a"], leases=[jobs[0].lease], error="refused"),
        )

    after = rows(queue.connection)
    assert after["b"] == before["b"]
    changed = {n for n in after["a"]._fields if getattr(after["a"], n) != getattr(before["a"], n)}
    assert changed == {"last_error", "updated_at"}
    assert after["a"].last_error == "refused"


def test_still_held_sees_locked_rows_and_no_strangers(queue: Queue) -> None:
    queue.put("a", "b", "c")
    jobs = claim(queue.connection, queue.statements)
    jobs[1].lease += 1
    with queue.engine.connect() as user, user.begin():
        user.execute(text("SELECT 1 FROM bgjob_job WHERE id = 'a' FOR UPDATE"))
        with queue.connection.begin():
            held = queue.connection.execute(
                queue.statements.settle.still_held,
                parameters(queue="q", worker=ME, ids=ids(jobs), leases=[job.lease for job in jobs]),
            )
            found = set(held.scalars())

    assert found == {"a", "c"}


# ---- the parameters -------------------------------------------------------------------------

FENCE = {"queue", "worker", "ids", "leases"}
RELEASE = {"refunds", "moments", "delays", "errors", "keep_errors", "args", "new_args", "headers"}
MINE = {"names", "queues", "types", "open_queues"}
SCHEDULE = {*DEFINITION, *GAP, "next_at"}
JOB = {"id", "queue", "type", "arg", "priority", "headers", "delay", "run_at"}
MORE = {"expires_in", "expires_at", "batch_id"}
BATCH = {"id", "on_dead", "then_queue", "then_type", "then_arg", "then_headers"}


@pytest.mark.parametrize(
    ("name", "flags", "given"),
    [
        ("claim.from_head", None, {"queue", "limit", "worker"}),
        (
            "claim.of_queues",
            None,
            {"worker", "queue", "limits", "lanes_from", "lanes_to", "priority", "at", "id"},
        ),
        ("claim.next_due", None, {"queue", "priorities"}),
        ("claim.lanes", None, {"queue"}),
        ("settle.complete_one", None, {"queue", "worker", "id", "lease"}),
        ("claim.onward", None, {"queue", "limit", "worker", "priority", "at", "id"}),
        ("workers.set_waits_for", None, {"worker", "queues"}),
        ("workers.pass_on", None, {"worker", "queue"}),
        ("settle.complete", None, FENCE),
        ("settle.release", None, FENCE | RELEASE | {"unknowns"}),
        ("settle.bury", None, FENCE | {"dead_ids", "refunds", "errors"}),
        ("settle_of_queues.complete", None, FENCE - {"queue"} | {"queues"}),
        ("settle.still_held", None, FENCE),
        ("settle.free", (False, True), FENCE),
        ("settle.lock", (False, True), FENCE),
        ("settle.asked", None, FENCE),
        ("cancel.one", (False, True), {"id"}),
        ("settle.note_error", None, FENCE | {"error"}),
        ("rescue.unknown_claims.held", None, {"worker", "ids", "leases"}),
        ("rescue.unknown_claims.again", None, {"queue", "ids", "leases", "holders"}),
        ("workers.beat", None, {"worker", "listener_pid", "listener_started_at"}),
        ("workers.unregister", None, {"worker"}),
        ("rescue.mark_lost", None, {"worker"}),
        ("rescue.give_back.held", None, {"worker"}),
        ("rescue.give_back.again", None, {"queue", "ids", "leases", "holders"}),
        ("rescue.give_back_orphans.held", None, set()),
        ("claim.skipping", None, {"queue", "limit", "worker", "skip"}),
        ("claim.due_ids", None, {"queue", "limit", "skip"}),
        ("claim.one", None, {"queue", "worker", "id"}),
        ("claim.by_id", (False, True), {"worker", "id"}),
        ("dead_jobs.delete_old", None, {"age", "limit"}),
        ("dead_jobs.delete_old_but", None, {"age", "limit", "skip"}),
        ("dead_jobs.old_ids", None, {"age", "limit", "skip"}),
        ("dead_jobs.delete_one", None, {"age", "id"}),
        ("rescue.holds_any", None, {"worker"}),
        ("settle.transaction_status", None, {"xid"}),
        ("rescue.workers", None, MINE - {"names"}),
        ("fire.due", None, MINE | {"limit", "left_out"}),
        (
            "fire.fire",
            None,
            {
                *("name", "first", "last", "following", "ids", "fire_times"),
                *("missed_from", "missed_until"),
            },
        ),
        ("fire.astray", None, MINE | {"limit", "left_out"}),
        ("fire.set_right", None, {"name", "seen_next_at", "next_at", *GAP}),
        ("fire.add", None, SCHEDULE),
        ("fire.change", None, SCHEDULE | {"seen_at", "seen_next_at"}),
        ("schedules.add", None, SCHEDULE),
        ("schedules.change", None, SCHEDULE),
        ("schedules.locked", None, {"name"}),
        ("schedules.resume", None, {"name", "next_at", *GAP}),
        ("schedules.make_due", None, {"names", "until"}),
        ("schedules.run_now", (False, True), {"name", "id", "fire_time"}),
        ("enqueue.notify", None, {"queue"}),
        ("operate.to_edit", None, {"id"}),
        ("enqueue.job", (False, True), JOB),
        ("enqueue.jobs", (False, True), JOB),
        ("unique.replace", (False, True), JOB | MORE | {"unique_key"}),
        ("unique.earlier", (False, True), JOB | MORE | {"unique_key"}),
        ("unique.in_period", (False, True), JOB | MORE | {"unique_key", "period"}),
        ("batches.close", (False, True), BATCH),
        ("batches.finish", (False, True), {"ids"}),
        ("batches.unfinished", None, {"after", "limit"}),
        ("batches.oldest", None, {"after", "limit", "keep"}),
        ("batches.forget", None, {"ids"}),
    ],
)
def test_statements_are_built_once_and_name_their_parameters(
    name: str, flags: tuple[bool, ...] | None, given: set[str]
) -> None:
    statements = Statements(build_models(MetaData()))

    for flag in flags or (None,):
        statement = attrgetter(name)(statements)
        if flag is not None:
            assert statement(flag) is statement(flag)
            statement = statement(flag)
        else:
            assert attrgetter(name)(statements) is statement
        names = statement.compile(dialect=postgresql.dialect()).params
        found = {n.removeprefix(PARAMETER_PREFIX) for n in names if n.startswith(PARAMETER_PREFIX)}
        assert found == given


def test_parameters_keep_clear_of_the_columns_names() -> None:
    assert parameters(queue="q", ids=[]) == {"given_queue": "q", "given_ids": []}


def test_each_set_of_tables_has_a_channel_of_its_own() -> None:
    places = [(None, "bgjob_"), ("a", "bgjob_"), ("b", "bgjob_"), (None, ""), (None, "a.bgjob_")]

    names = {channel_name(schema, prefix) for schema, prefix in places}

    assert len(names) == len(places)
    assert all(len(name.encode()) <= 63 and name.isidentifier() for name in names)
    assert channel_name("x" * 63, "y" * 32) != channel_name("x" * 63, "y" * 31)
