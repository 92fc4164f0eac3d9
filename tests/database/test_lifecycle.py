"""Settling, looking up lost COMMITs, handing back: one row, and what its neighbours get."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_bgjob._db.connections import configure, maintain
from sqlalchemy_bgjob._db.sessions import PLANS_LAST, name_session
from sqlalchemy_bgjob._handlers.outcomes import COMPLETED, HAND_BACK, INTERRUPTED, Kind, Settlement
from sqlalchemy_bgjob._lifecycle import rescue, settle, workers
from sqlalchemy_bgjob._lifecycle.settle import Fate, Pending
from sqlalchemy_bgjob._lifecycle.unknown_claims import return_unknown_claims
from sqlalchemy_bgjob._sql.words import own_channel
from sqlalchemy_bgjob.testing.points import at
from support.rows import ME, OTHER, claim, ids, pending, rows, waiting
from support.waiting import wait_until

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sqlalchemy_bgjob._sql import Statements
    from support.queue import Queue

pytestmark = pytest.mark.core

RETRY = Settlement(Kind.RETRY, delay=60.0, error="x")
DEAD = Settlement(Kind.DEAD, error="y")
SETTLEMENTS = pytest.mark.parametrize(
    "settlement", [COMPLETED, RETRY, DEAD], ids=["complete", "retry", "dead"]
)


@pytest.fixture(scope="module")
def tables(tables: tuple[Engine, Statements]) -> tuple[Engine, Statements]:
    """Those of all, and a function for triggers that refuse."""
    with tables[0].begin() as connection:
        connection.execute(
            text(
                """
                CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'no, says %', OLD.arg USING ERRCODE = 'BG001'; END $$
                """
            )
        )
    return tables


# ---- one row that can't be settled ----------------------------------------------------------


@SETTLEMENTS
def test_a_batch_that_is_fine_is_one_transaction(queue: Queue, settlement: Settlement) -> None:
    items = pending(queue.claim("a", "b", "c"), settlement)

    fates = queue.settle(items)

    assert fates == dict.fromkeys("abc", Fate.SETTLED)
    assert len({item.xid for item in items}) == 1
    assert not any(row.claimed_by for row in rows(queue.connection).values())


def test_a_row_that_a_foreign_key_holds_is_parked_alone(
    queue: Queue,
) -> None:
    jobs = queue.claim("a", "b", "c")
    queue.execute("INSERT INTO receipt VALUES ('b')")
    items = pending(jobs, COMPLETED)

    assert queue.settle(items) == {"a": Fate.SETTLED, "b": Fate.FAILED, "c": Fate.SETTLED}

    (left,) = rows(queue.connection).values()
    assert (left.id, left.claimed_by, left.lease) == ("b", ME, jobs[1].lease)
    assert left.last_error.startswith("the settlement (completed) was refused: IntegrityError:")
    assert "23503" in left.last_error
    assert "receipt_job_id_fkey" in left.last_error
    assert items[1].error is not None

    queue.execute("DELETE FROM receipt")
    assert queue.settle([items[1]]) == {"b": Fate.SETTLED}
    assert rows(queue.connection) == {}


def test_a_row_that_is_refused_at_the_commit_harms_no_other(queue: Queue) -> None:
    """A deferred constraint lets every statement pass, and fails the COMMIT."""
    queue.execute(
        "CREATE TABLE deferred (job_id text REFERENCES bgjob_job DEFERRABLE INITIALLY DEFERRED)"
    )
    jobs = queue.claim("a", "b", "c")
    queue.execute("INSERT INTO deferred VALUES ('b')")
    try:
        fates = queue.settle(pending(jobs, COMPLETED))
    finally:
        queue.execute("DROP TABLE deferred")

    assert fates == {"a": Fate.SETTLED, "b": Fate.FAILED, "c": Fate.SETTLED}
    assert set(rows(queue.connection)) == {"b"}


@SETTLEMENTS
def test_a_trigger_that_refuses_one_row_harms_no_other(
    queue: Queue, settlement: Settlement
) -> None:
    jobs = queue.claim("a", "b", "c")
    queue.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON bgjob_job FOR EACH ROW "
        "WHEN (OLD.id = 'b') EXECUTE FUNCTION refuse()"
    )
    try:
        fates = queue.settle(pending(jobs, settlement))
    finally:
        queue.execute("DROP TRIGGER refuse ON bgjob_job")

    assert fates == {"a": Fate.SETTLED, "b": Fate.FAILED, "c": Fate.SETTLED}
    assert rows(queue.connection)["b"].claimed_by == ME


def test_where_not_even_the_error_can_be_noted_it_is_logged(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = queue.claim("a", arg=b"secret")
    queue.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON bgjob_job FOR EACH ROW "
        "EXECUTE FUNCTION refuse()"
    )
    try:
        with caplog.at_level(logging.WARNING, "sqlalchemy_bgjob"):
            fates = queue.settle(pending(jobs, COMPLETED))
    finally:
        queue.execute("DROP TRIGGER refuse ON bgjob_job")

    assert fates == {"a": Fate.FAILED}
    assert "job a: its error could not be noted" in caplog.text
    assert "BG001" in caplog.text
    assert "secret" not in caplog.text
    assert "736563726574" not in caplog.text  # the same in hex


def test_a_batch_of_several_kinds_is_written_whole_or_row_by_row(queue: Queue) -> None:
    """The refusal of one kind undoes the batch's other statements too, and all are repeated."""
    jobs = queue.claim(*"abcdef")
    queue.execute("INSERT INTO receipt VALUES ('e')")
    kinds = [COMPLETED, RETRY, DEAD, RETRY, COMPLETED, DEAD]
    items = [Pending(job, kind) for job, kind in zip(jobs, kinds, strict=True)]

    fates = queue.settle(items)

    assert fates == {**dict.fromkeys("abcdf", Fate.SETTLED), "e": Fate.FAILED}
    assert set(rows(queue.connection)) == {"b", "d", "e"}
    assert set(rows(queue.connection, "bgjob_dead_job")) == {"c", "f"}


def test_a_job_stays_if_its_dead_row_is_refused(queue: Queue) -> None:
    jobs = queue.claim("a", "b")
    queue.execute("ALTER TABLE bgjob_dead_job ADD CONSTRAINT no_b CHECK (job_id <> 'b')")
    try:
        fates = queue.settle(pending(jobs, DEAD))
    finally:
        queue.execute("ALTER TABLE bgjob_dead_job DROP CONSTRAINT no_b")

    assert fates == {"a": Fate.SETTLED, "b": Fate.FAILED}
    assert set(rows(queue.connection)) == {"b"}
    assert set(rows(queue.connection, "bgjob_dead_job")) == {"a"}


# ---- locked, stale --------------------------------------------------------------------------


@SETTLEMENTS
def test_a_locked_row_is_not_waited_for(queue: Queue, settlement: Settlement) -> None:
    items = pending(queue.claim("a", "b", "c"), settlement)
    with queue.engine.connect() as user, user.begin():
        user.execute(text("SELECT 1 FROM bgjob_job WHERE id = 'b' FOR UPDATE"))

        assert queue.settle(items) == {"a": Fate.SETTLED, "b": Fate.LOCKED, "c": Fate.SETTLED}
        assert queue.settle([items[1]]) == {"b": Fate.LOCKED}

    assert queue.settle([items[1]]) == {"b": Fate.SETTLED}


def test_a_job_that_a_user_refers_to_can_be_queued_again(queue: Queue) -> None:
    """The reference locks its key only, which a retry does not change; but it can't be deleted."""
    jobs = queue.claim("a", "b")
    with queue.engine.connect() as user, user.begin():
        user.execute(text("INSERT INTO receipt VALUES ('a'), ('b')"))

        fates = queue.settle([Pending(jobs[0], RETRY), Pending(jobs[1], COMPLETED)])

    assert fates == {"a": Fate.SETTLED, "b": Fate.LOCKED}


@SETTLEMENTS
def test_what_is_not_ours_any_more_is_stale_and_left_alone(
    queue: Queue, settlement: Settlement
) -> None:
    items = pending(queue.claim("a", "b", "c"), settlement)
    queue.execute("UPDATE bgjob_job SET lease = lease + 1, claimed_by = :o WHERE id = 'a'", o=OTHER)
    queue.execute("DELETE FROM bgjob_job WHERE id = 'b'")
    before = rows(queue.connection)["a"]

    fates = queue.settle(items)

    assert fates == {"a": Fate.STALE, "b": Fate.STALE, "c": Fate.SETTLED}
    assert rows(queue.connection)["a"] == before


def test_a_late_settlement_never_meets_a_new_job_of_its_id(queue: Queue) -> None:
    """Frozen, rescued, completed elsewhere, enqueued again, claimed again: by the same worker."""
    (old,) = queue.claim("daily")
    queue.execute("DELETE FROM bgjob_job")
    (new,) = queue.claim("daily")
    assert new.lease > old.lease

    assert queue.settle([Pending(old, COMPLETED)]) == {"daily": Fate.STALE}

    assert rows(queue.connection)["daily"].claimed_by == ME
    assert queue.settle([Pending(new, COMPLETED)]) == {"daily": Fate.SETTLED}


def test_queues_are_settled_together_and_workers_apart(queue: Queue) -> None:
    """A worker that was found lost goes on under a new id, and settles what it had under both."""
    jobs = queue.claim("a1", "a2", queue="a") + queue.claim("b1", queue="b")
    queue.put("c1", queue="a")
    jobs += claim(queue.connection, queue.statements, queue="a", worker_id=OTHER)
    items = pending(reversed(jobs), COMPLETED)

    assert queue.settle(items) == dict.fromkeys(["a1", "a2", "b1", "c1"], Fate.SETTLED)

    by_job = {item.job.id: item.xid for item in items}
    assert by_job["a1"] == by_job["a2"] == by_job["b1"] != by_job["c1"]
    assert rows(queue.connection) == {}


@SETTLEMENTS
def test_jobs_of_many_queues_are_one_transaction(queue: Queue, settlement: Settlement) -> None:
    """With one a queue, a worker of 1,000 queues spent its time in COMMITs."""
    items = pending([queue.claim(f"{n}", queue=f"q{n}")[0] for n in range(10)], settlement)

    assert queue.settle(items) == {f"{n}": Fate.SETTLED for n in range(10)}

    assert len({item.xid for item in items}) == 1


def test_a_row_that_refuses_harms_neither_its_queue_nor_others(queue: Queue) -> None:
    jobs = queue.claim("a1", "a2", queue="a") + queue.claim("b1", "b2", queue="b")
    queue.execute("INSERT INTO receipt VALUES ('a2')")
    items = pending(jobs, COMPLETED)

    fates = queue.settle(items)

    assert fates == {**dict.fromkeys(["a1", "b1", "b2"], Fate.SETTLED), "a2": Fate.FAILED}
    assert items[2].xid == items[3].xid  # the other queue's are together still
    assert set(rows(queue.connection)) == {"a2"}


def test_what_was_refused_takes_no_others_apart(queue: Queue) -> None:
    """With a thousand such rows, each tried once a minute, no batch of others would stay whole."""
    (refused,) = pending(queue.claim("a", queue="a"), COMPLETED)
    queue.execute("INSERT INTO receipt VALUES ('a')")
    assert queue.settle([refused]) == {"a": Fate.FAILED}
    refused.tries = 1
    others = pending(queue.claim("b", queue="b") + queue.claim("c", queue="c"), COMPLETED)

    fates = queue.settle([*others, refused])

    assert fates == {"a": Fate.FAILED, "b": Fate.SETTLED, "c": Fate.SETTLED}
    assert others[0].xid == others[1].xid


def test_of_many_queues_each_fence_is_its_own(queue: Queue) -> None:
    """Another lease, another queue under the same id, a lock: each concerns one row alone."""
    jobs = [queue.claim(name, queue=f"of-{name}")[0] for name in ("a", "b", "c", "d")]
    queue.execute("UPDATE bgjob_job SET lease = lease + 1 WHERE id = 'a'")
    queue.execute("UPDATE bgjob_job SET queue = 'moved' WHERE id = 'b'")
    with queue.engine.connect() as user, user.begin():
        user.execute(text("SELECT 1 FROM bgjob_job WHERE id = 'c' FOR UPDATE"))

        fates = queue.settle(pending(jobs, COMPLETED))

    assert fates == {"a": Fate.STALE, "b": Fate.STALE, "c": Fate.LOCKED, "d": Fate.SETTLED}
    assert set(rows(queue.connection)) == {"a", "b", "c"}


def test_nothing_to_settle_is_nothing_to_do(queue: Queue) -> None:
    assert queue.settle([]) == {}
    with queue.connection.begin():
        assert settle.write(queue.connection, queue.statements, []) == (set(), None)


# ---- a COMMIT without an answer -------------------------------------------------------------


def cut(queue: Queue, items: list[Pending], *, before_commit: bool) -> None:
    """Settle, and lose the connection around the COMMIT."""
    engine = create_engine(queue.engine.url)

    class Cut(DBAPIError):
        def __init__(self) -> None:
            super().__init__("COMMIT", {}, Exception("cut"), connection_invalidated=True)

    def lose(connection: Connection) -> None:
        driver: Any = connection.connection.dbapi_connection
        if before_commit:
            driver.close()
        else:
            driver.commit()
        raise Cut

    event.listen(engine, "commit", lose)
    with engine.connect() as connection, pytest.raises(DBAPIError):
        settle.settle(connection, queue.statements, items)
    engine.dispose()


@SETTLEMENTS
def test_a_commit_whose_answer_was_lost_is_looked_up(queue: Queue, settlement: Settlement) -> None:
    items = pending(queue.claim("a", "b"), settlement)
    cut(queue, items, before_commit=False)
    after = rows(queue.connection)

    fates = queue.settle(items)

    assert fates == dict.fromkeys("ab", Fate.SETTLED)
    assert rows(queue.connection) == after
    assert [item.settlement for item in items] == [settlement] * 2


@SETTLEMENTS
def test_a_commit_that_never_arrived_is_repeated(queue: Queue, settlement: Settlement) -> None:
    items = pending(queue.claim("a", "b"), settlement)
    cut(queue, items, before_commit=True)
    # The server's process may still be about to notice that its client is gone.
    xid = str(items[0].xid)
    wait_until(lambda: queue.execute("SELECT pg_xact_status(:xid)", xid=xid) == "aborted")
    assert all(row.claimed_by == ME for row in rows(queue.connection).values())

    fates = queue.settle(items)

    assert fates == dict.fromkeys("ab", Fate.SETTLED)
    assert not any(row.claimed_by for row in rows(queue.connection).values())


def test_a_commit_still_under_way_is_asked_for_again_later(queue: Queue) -> None:
    (job,) = queue.claim("a")
    with queue.engine.connect() as slow, slow.begin() as transaction:
        held, xid = settle.write(slow, queue.statements, [Pending(job, COMPLETED)])
        assert held == {"a"}
        item = Pending(job, RETRY, xid=xid, if_committed=COMPLETED)

        assert queue.settle([item]) == {"a": Fate.LOCKED}
        assert item.xid == xid

        transaction.commit()
    assert queue.settle([item]) == {"a": Fate.SETTLED}
    assert item.settlement is COMPLETED, "observers are told what was committed"
    assert rows(queue.connection) == {}


def test_a_handlers_commit_that_was_aborted_leads_to_its_retry(queue: Queue) -> None:
    """What is written then is the settlement for this case, not the one that was to be."""
    (job,) = queue.claim("a")
    with queue.engine.connect() as lost, lost.begin() as transaction:
        _, xid = settle.write(lost, queue.statements, [Pending(job, COMPLETED)])
        transaction.rollback()
    item = Pending(job, RETRY, xid=xid, if_committed=COMPLETED)

    assert queue.settle([item]) == {"a": Fate.SETTLED}

    assert item.settlement is RETRY
    assert rows(queue.connection)["a"].last_error == "x"


# ---- hand back ------------------------------------------------------------------------------


def test_what_a_claim_gave_without_arriving_is_handed_back(queue: Queue) -> None:
    (gone,) = queue.claim("gone")
    assert queue.settle([Pending(gone, COMPLETED)]) == {"gone": Fate.SETTLED}
    jobs = queue.claim("known", "lost 1", "lost 2", attempt=2)
    queue.put("free")
    queue.put("other's", claimed_by=OTHER)
    before = rows(queue.connection)

    count = return_unknown_claims(
        queue.connection, queue.statements, worker_id=ME, known=[jobs[0], gone]
    )

    after = rows(queue.connection)
    assert count == 2
    assert len(jobs) == 3
    for name in ("known", "free", "other's"):
        assert after[name] == before[name], name
    for name in ("lost 1", "lost 2"):
        assert after[name].claimed_by is None
        assert after[name].attempt == 2
        assert after[name].lease == before[name].lease + 1
        assert after[name].crashes == 0


def test_a_second_claim_of_a_job_in_hands_is_handed_back_too(queue: Queue) -> None:
    """The worker knows of its first lease only: the second claim was never answered."""
    (first,) = queue.claim("a")
    queue.connection.execute(text("UPDATE bgjob_job SET claimed_by = null, lease = lease + 1"))
    queue.connection.commit()
    claim(queue.connection, queue.statements)

    count = return_unknown_claims(queue.connection, queue.statements, worker_id=ME, known=[first])

    assert count == 1
    assert rows(queue.connection)["a"].claimed_by is None


def test_handing_back_waits_for_no_lock_and_does_the_rest_later(queue: Queue) -> None:
    queue.claim("a", "b")
    given: dict[str, Any] = {"worker_id": ME, "known": []}
    with queue.engine.connect() as user, user.begin():
        user.execute(text("SELECT 1 FROM bgjob_job WHERE id = 'a' FOR UPDATE"))

        assert return_unknown_claims(queue.connection, queue.statements, **given) == 1

    assert return_unknown_claims(queue.connection, queue.statements, **given) == 1
    assert return_unknown_claims(queue.connection, queue.statements, **given) == 0


def test_a_row_that_can_not_be_handed_back_keeps_no_other(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.claim("a", "refuses", "z")
    queue.connection.execute(
        text("ALTER TABLE bgjob_job ADD CHECK (id <> 'refuses' OR claimed_by IS NOT NULL)")
    )
    queue.connection.commit()

    given: dict[str, Any] = {"worker_id": ME, "known": []}
    assert return_unknown_claims(queue.connection, queue.statements, **given) == 2

    held = [id for id, row in rows(queue.connection).items() if row.claimed_by is not None]
    assert held == ["refuses"]
    assert "job refuses can't be given back" in caplog.text


def register(queue: Queue) -> None:
    workers.register(
        queue.connection,
        queue.statements,
        worker_id=ME,
        hostname="h",
        pid=1,
        version="0",
        queues={"q": 1},
        lease_timeout=30.0,
    )


def test_a_beat_that_meets_an_announcement_is_repeated(queue: Queue) -> None:
    """It commits by itself, and the session's default isolation level is a strict one."""
    register(queue)
    options = {"options": "-c default_transaction_isolation=serializable"}
    engine = create_engine(queue.engine.url, isolation_level="AUTOCOMMIT", connect_args=options)

    def beat() -> float | None:
        with engine.connect() as connection:
            return workers.beat(connection, queue.statements, worker_id=ME, listener=None)

    with ThreadPoolExecutor() as pool, queue.engine.connect() as announcing:
        announcing.execute(text("UPDATE bgjob_worker SET waits_for = '[\"q\"]'"))
        gap = pool.submit(beat)
        wait_until(lambda: waiting(queue.engine), what="the beat to wait for the row")
        announcing.commit()
        assert gap.result() is not None
    engine.dispose()


def test_unregister_gives_back_what_is_left(queue: Queue) -> None:
    register(queue)
    queue.claim("a", attempt=2)

    workers.unregister(queue.connection, queue.statements, worker_id=ME)

    row = rows(queue.connection)["a"]
    assert (row.claimed_by, row.attempt) == (None, 2)
    assert queue.execute("SELECT count(*) FROM bgjob_worker") == 0


def test_a_handed_back_job_is_claimed_with_the_same_attempt(queue: Queue) -> None:
    (first,) = queue.claim("a")
    queue.settle([Pending(first, HAND_BACK)])

    (second,) = claim(queue.connection, queue.statements)

    assert second.attempt == first.attempt == 1
    assert second.lease == first.lease + 2


def test_who_is_told_of_what_was_given_back(queue: Queue) -> None:
    """All, of what is rare; of single jobs that found no slot, who waits, as that may be often."""

    def heard(seconds: float = 5.0) -> list[str]:
        return [n.payload for n in driver.notifies(timeout=seconds, stop_after=1)]

    with queue.engine.connect() as listener:
        listener.execution_options(isolation_level="AUTOCOMMIT")
        listener.exec_driver_sql(f'LISTEN "{queue.statements.tables.channel_of_given_back}"')
        driver: Any = listener.connection.driver_connection
        jobs = queue.claim("a", "b", "c")
        queue.settle([Pending(jobs[0], COMPLETED), Pending(jobs[1], HAND_BACK)])
        assert heard(0.1) == []
        queue.settle([Pending(jobs[2], INTERRUPTED)])
        assert heard() == ["q"]

        insert = (
            "INSERT INTO bgjob_worker"
            " (id, hostname, pid, version, queues, lease_timeout, lost_at, waits_for)"
            " VALUES (:id, 'h', 1, '0', '{}', 30, :lost, CAST(:waits AS jsonb))"
        )
        lost = datetime(2026, 1, 1, tzinfo=UTC)
        queue.claim("d")
        queue.execute(insert, id=ME, lost=lost, waits="[]")
        with queue.engine.connect() as connection:
            (rescued,) = rescue.rescue_rest(configure(connection), queue.statements)
        assert rescued.jobs == 3
        assert heard() == ["q"]

        queue.execute(insert, id=OTHER, lost=None, waits='["q"]')
        channel = own_channel(queue.statements.tables.channel, OTHER)
        listener.exec_driver_sql(f'LISTEN "{channel}"')
        queue.settle([Pending(queue.claim("e")[0], HAND_BACK)])
        assert heard() == ["returned 0 q"]


def test_a_rescue_that_can_not_tell_is_made(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    """Where the server has no room for one more notification, its COMMIT fails."""
    queue.claim("a", "b")
    queue.execute(
        "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout, lost_at)"
        " VALUES (:id, 'h', 1, '0', '{}', 30, now())",
        id=ME,
    )

    def refuse(queues: object) -> None:
        raise RuntimeError("no room")

    with at("notifying", refuse), queue.engine.connect() as connection:
        (rescued,) = rescue.rescue_rest(configure(connection), queue.statements)

    assert rescued.jobs == 2
    assert {row.claimed_by for row in rows(queue.connection).values()} == {None}
    assert "not told of jobs that were given back" in caplog.text


# ---- the sessions of a worker ---------------------------------------------------------------


def test_a_session_is_named_once_for_each_worker(queue: Queue) -> None:
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        sent.append(statement)

    with queue.engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", note)
        for worker_id in (ME, ME, OTHER):
            name_session(connection, worker_id)
        name = connection.execute(text("SHOW application_name")).scalar()
        connection.rollback()

    assert [s for s in sent if s.startswith("SET")] == [
        f"SET application_name = 'bgjob/{ME}'",
        f"SET application_name = 'bgjob/{OTHER}'",
    ]
    assert name == f"bgjob/{OTHER}"


def test_only_old_plans_are_discarded_and_only_when_asked(queue: Queue) -> None:
    sent: list[str] = []
    with queue.engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", lambda *args: sent.append(args[2]))
        maintain(connection, None, plans=True)
        connection.info["bgjob_planned_at"] -= PLANS_LAST

        assert not maintain(connection, None, plans=False)
        assert sent == []
        assert maintain(connection, None, plans=True)
        assert not maintain(connection, None, plans=True)

    assert sent == ["DISCARD PLANS"]


@pytest.mark.parametrize("level", [None, "AUTOCOMMIT", "REPEATABLE READ", "SERIALIZABLE"])
def test_the_workers_own_statements_are_read_committed(queue: Queue, level: str | None) -> None:
    """Under AUTOCOMMIT a settlement is not one step; under the others claims fail each other."""
    options = {"isolation_level": level} if level else {}
    engine = create_engine(queue.engine.url, **options)

    with engine.connect() as connection:
        mine = configure(connection)
        maintain(mine, ME, plans=True)
        with mine.begin() as transaction:
            found = mine.execute(text("SHOW transaction_isolation")).scalar()
            mine.execute(text("INSERT INTO receipt VALUES (NULL)"))
            transaction.rollback()

    assert found == "read committed"
    assert queue.execute("SELECT count(*) FROM receipt") == 0
    engine.dispose()


def test_claimed_jobs_come_in_the_order_of_the_queue(queue: Queue) -> None:
    """RETURNING has no order of its own."""
    queue.put("z", due_in=-5.0)
    queue.put("m", due_in=-3.0, priority=-1)
    queue.put("a", due_in=-1.0)

    assert ids(claim(queue.connection, queue.statements)) == ["m", "z", "a"]
