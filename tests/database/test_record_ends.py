"""Records that the caller's transaction writes, and what fences those of workers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, MetaData, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import BGJob, Complete, Context, MoveToDlq, enqueue
from sqlalchemy_bgjob._handlers.outcomes import COMPLETED, Kind, Settlement
from sqlalchemy_bgjob._inspect.records import Progress
from sqlalchemy_bgjob._lifecycle import claim, records, settle
from sqlalchemy_bgjob._lifecycle.settle import Fate, Pending
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob.testing import JobKit
from sqlalchemy_bgjob.testing.points import at
from support.tables import new_engine
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy_bgjob._lifecycle.claim import ClaimedJob
    from support.databases import TestServer

pytestmark = pytest.mark.core

jobs: BGJob[Any, Any] = BGJob(MetaData(), records=True)
history: BGJob[Any, Any] = BGJob(MetaData(), record_all=timedelta(days=1))
HOUR = timedelta(hours=1)


@jobs.handler("kept", record=HOUR)
def kept(ctx: Context[Any]) -> Complete[int]:
    ctx.progress(1, of=1)
    return Complete(result=7)


@jobs.handler("plain")
def plain(ctx: Context[Any]) -> None: ...


@jobs.default_handler("open", record=HOUR)
def any_type(ctx: Context[Any]) -> None: ...


@jobs.handler("bad", record=HOUR)
def bad(ctx: Context[Any]) -> MoveToDlq:
    return MoveToDlq("no")


@pytest.fixture(scope="module")
def kept_engine(server: TestServer) -> Iterator[Engine]:
    with new_engine(server) as engine:
        jobs.metadata.create_all(engine)
        yield engine


@pytest.fixture
def shop(kept_engine: Engine) -> Engine:
    with kept_engine.begin() as connection:
        for name in ("job", "dead_job", "record", "minute"):
            connection.exec_driver_sql(f"DELETE FROM bgjob_{name}")
    return kept_engine


def state(engine: Engine, id: str) -> str | None:
    found = jobs.record(engine, id)
    return None if found is None else found.state


# ---- cancel -------------------------------------------------------------------------------------


def test_a_cancel_of_a_queued_job_is_recorded(shop: Engine) -> None:
    """In the caller's transaction, and only of handlers that are."""
    ids = [enqueue(shop, handler).id for handler in (kept, plain)]
    ids += [jobs.enqueue(shop, "whatever", queue=queue).id for queue in ("open", "q")]

    with Session(shop) as session:
        assert [jobs.cancel(session, id) for id in ids] == ["cancelled"] * 4
        assert state(shop, ids[0]) is None
        session.commit()

    assert [state(shop, id) for id in ids] == ["cancelled", None, "cancelled", None]
    record = jobs.record(shop, ids[0])
    assert record is not None
    assert record.started_at is None
    assert record.keep_until - record.ended_at == pytest.approx(HOUR, abs=HOUR / 60)  # type: ignore[operator]


def test_a_cancel_of_many_records_each(shop: Engine) -> None:
    ids = [enqueue(shop, kept).id for _ in range(3)]

    assert jobs.cancel_where(shop, jobs.Job.type == "kept").cancelled == 3

    assert [state(shop, id) for id in ids] == ["cancelled"] * 3


def test_a_history_has_what_was_cancelled(shop: Engine) -> None:
    id = history.enqueue(shop, "nobody's", queue="q").id

    history.cancel(shop, id)

    found = history.record(shop, id)
    assert found is not None
    assert found.state == "cancelled"


def test_a_record_that_is_there_is_ended_by_anybody(shop: Engine) -> None:
    """Also where the type is not registered, as in a dashboard; its progress stays."""
    id = jobs.enqueue(shop, "elsewhere", queue="q").id
    with shop.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO bgjob_record (job_id, queue, type, state, attempt, lease, progress,"
                " enqueued_at, due_at, keep_until) SELECT id, queue, type, 'live', 1, lease,"
                " '{\"done\": 2}', now(), now(), now() + interval '1h' FROM bgjob_job"
            )
        )

    jobs.cancel(shop, id)

    found = jobs.record(shop, id)
    assert found is not None
    assert (found.state, found.progress) == ("cancelled", Progress(2))


# ---- in the caller's transaction ----------------------------------------------------------------


def test_work_one_writes_it_in_the_callers_transaction(shop: Engine) -> None:
    id = enqueue(shop, kept).id
    with Session(shop) as session:
        assert isinstance(jobs.work_one(session, id=id), Complete)
        assert jobs.record(shop, id) is None
        session.commit()

    found = jobs.record(shop, id)
    assert found is not None
    assert (found.state, found.result, found.progress) == ("completed", 7, Progress(1, 1))


def test_the_kit_for_tests_writes_it_too(shop: Engine) -> None:
    with Session(shop) as session:
        good, given_up = enqueue(session, kept).id, enqueue(session, bad).id
        kit = JobKit(jobs)

        kit.work_due(session)

        assert jobs.record(session, good).result == 7  # type: ignore[union-attr]
        assert jobs.record(session, given_up).state == "dead"  # type: ignore[union-attr]


def test_prune_and_redrive_leave_records_alone(shop: Engine) -> None:
    id = enqueue(shop, bad).id
    jobs.work_one(shop, id=id)

    jobs.prune(shop, 0)
    assert state(shop, id) == "dead"


# ---- fences -------------------------------------------------------------------------------------

STATEMENTS = statements_of(jobs.models)
ME = 815


def claimed(engine: Engine, count: int = 1) -> list[ClaimedJob]:
    for _ in range(count):
        enqueue(engine, kept)
    with engine.begin() as connection:
        found = claim.claim(connection, STATEMENTS, queue="default", limit=count, worker_id=ME)
    for job in found:
        job.served_by(kept, jobs.models.recording)
    return found


def say(engine: Engine, *those: ClaimedJob, done: int = 1) -> None:
    said: list[records.Said] = [(job, {"done": done}, 0.0) for job in those]
    with engine.connect() as connection:
        records.write_progress(connection, STATEMENTS, ME, said)


def end(engine: Engine, *items: Pending) -> list[Fate]:
    with engine.connect() as connection:
        return [fate for _, fate in settle.settle(connection, STATEMENTS, items)]


def test_progress_of_a_lease_that_is_over_is_dropped(shop: Engine) -> None:
    (job,) = claimed(shop)
    with shop.begin() as connection:
        connection.exec_driver_sql("UPDATE bgjob_job SET lease = lease + 1")

    say(shop, job)

    assert jobs.record(shop, job.id) is None


def test_progress_that_comes_after_the_end_is_dropped(shop: Engine) -> None:
    """The handler's own transaction settles while the loop, which sees the job held, writes."""
    (job,) = claimed(shop)
    waits = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    def is_waiting() -> bool:
        with shop.connect() as connection:
            return bool(connection.execute(waits).scalar())

    with shop.connect() as own, ThreadPoolExecutor(1) as loop:
        transaction = own.begin()
        settle.write(own, STATEMENTS, [Pending(job, COMPLETED)])
        late = loop.submit(say, shop, job)
        wait_until(is_waiting)
        transaction.commit()
        late.result(60)

    found = jobs.record(shop, job.id)
    assert found is not None
    assert (found.state, found.progress) == ("completed", None)
    say(shop, job)
    assert jobs.record(shop, job.id) == found


def test_progress_goes_on_after_a_commit_that_failed(shop: Engine) -> None:
    """The job goes on, and so does what it says."""
    (job,) = claimed(shop)
    with shop.connect() as own:
        transaction = own.begin()
        settle.write(own, STATEMENTS, [Pending(job, COMPLETED)])
        transaction.rollback()

    say(shop, job)

    assert state(shop, job.id) == "live"


def insert_record(connection: Connection, job: ClaimedJob, *, lease: int | None = None) -> None:
    """Of a job that is dead, or was so under another lease."""
    connection.execute(
        text(
            "INSERT INTO bgjob_record (job_id, queue, type, state, attempt, lease,"
            " enqueued_at, due_at, ended_at, keep_until) VALUES (:id, 'default', 'kept',"
            " 'dead', 2, :lease, now(), now(), now(), now() + interval '1h')"
        ),
        {"id": job.id, "lease": lease or job.lease},
    )


def last_error(engine: Engine, id: str) -> str | None:
    with engine.connect() as connection:
        found: str | None = connection.scalar(select(jobs.Job.last_error).filter_by(id=id))
    return found


def test_an_earlier_claims_end_comes_too_late(shop: Engine) -> None:
    """Even if its row were there again: a record is fenced by itself."""
    (job,) = claimed(shop)
    with shop.begin() as connection:
        insert_record(connection, job, lease=job.lease + 1)

    assert end(shop, Pending(job, COMPLETED)) == [Fate.SETTLED]

    assert state(shop, job.id) == "dead"


DEAD = Settlement(Kind.DEAD, error="no")


@pytest.mark.parametrize("ends", [COMPLETED, DEAD])
def test_a_locked_record_is_not_waited_for(
    shop: Engine, ends: Settlement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settlement is tried again later, as that of a locked job; the others are written."""
    monkeypatch.setattr(records, "LOCKED_FOR_MS", 600_000)
    held, free = claimed(shop, 2)
    say(shop, held)
    with shop.connect() as connection, connection.begin():
        connection.exec_driver_sql("SELECT FROM bgjob_record FOR UPDATE")

        with shop.connect() as loop:
            loop.exec_driver_sql("SET statement_timeout = '30s'")
            loop.commit()
            items = [Pending(held, ends), Pending(free, ends)]
            fates = dict(settle.settle(loop, STATEMENTS, items))

        assert [fates[item] for item in items] == [Fate.LOCKED, Fate.SETTLED]
        assert state(shop, free.id) == ends.kind.value
        assert state(shop, held.id) == "live"
    assert last_error(shop, held.id) is None

    assert end(shop, Pending(held, ends)) == [Fate.SETTLED]
    assert state(shop, held.id) == ends.kind.value


def test_a_record_that_a_job_does_not_leave_is_not_locked(shop: Engine) -> None:
    """It may have an old one, of a handler that left records. Somebody has that locked."""
    waits, goes_on = claimed(shop, 2)
    say(shop, waits, goes_on)
    waits.keep = goes_on.keep = None
    items = [Pending(waits, COMPLETED), Pending(goes_on, COMPLETED)]
    with shop.connect() as holder, shop.connect() as locker, shop.connect() as own:
        holder.exec_driver_sql("SELECT FROM bgjob_record FOR UPDATE")
        own.exec_driver_sql("SET statement_timeout = '10s'")
        settle.lock(own, STATEMENTS, items[:1])
        held, _ = settle.write(own, STATEMENTS, items[:1])
        own.commit()
        assert held == {waits.id}

        locker.exec_driver_sql("SELECT FROM bgjob_job FOR UPDATE")
        with at("write", lambda _: locker.rollback()):  # it has been passed over by then
            fates = settle.settle(own, STATEMENTS, items[1:])

    assert fates == [(items[1], Fate.SETTLED)]


def test_a_record_that_is_being_written_is_no_failure(shop: Engine) -> None:
    """Somebody has inserted it, and not committed: the settlement is tried again."""
    held, free = claimed(shop, 2)
    with shop.connect() as connection, connection.begin():
        insert_record(connection, held)

        fates = end(shop, Pending(held, COMPLETED), Pending(free, COMPLETED))

        assert sorted(fate.value for fate in fates) == ["locked", "settled"]
    assert last_error(shop, held.id) is None


def test_a_locked_record_keeps_no_others_progress(shop: Engine) -> None:
    """Nor does one that somebody has inserted and not committed."""
    held, new, free = claimed(shop, 3)
    say(shop, held)
    with shop.connect() as connection, connection.begin():
        connection.exec_driver_sql("SELECT FROM bgjob_record FOR UPDATE")
        say(shop, held, free, done=2)
        found = jobs.record(shop, free.id)
        assert found is not None
        assert found.progress == Progress(2)

        insert_record(connection, new)
        with pytest.raises(OperationalError):
            say(shop, held, new, free, done=3)
        found = jobs.record(shop, free.id)
        assert found is not None
        assert found.progress == Progress(3)


def test_the_transaction_of_a_record_can_be_looked_up(shop: Engine) -> None:
    """Though the others of its batch, which leave no record, are of a lease that is over."""
    good, late = claimed(shop, 2)
    late.keep = None
    late.lease -= 1
    with shop.begin() as connection:
        items = [Pending(late, COMPLETED), Pending(good, COMPLETED)]
        held, xid = settle.write(connection, STATEMENTS, items)

    assert held == {good.id}
    assert xid is not None


def test_a_settlement_that_is_rolled_back_leaves_no_record(shop: Engine) -> None:
    (job,) = claimed(shop)
    with shop.connect() as connection:
        transaction = connection.begin()
        settle.write(connection, STATEMENTS, [Pending(job, COMPLETED)])
        transaction.rollback()

    assert jobs.record(shop, job.id) is None


def test_progress_of_the_next_attempt_replaces_the_record(shop: Engine) -> None:
    """Of a job that was redriven: nothing of its end is left."""
    (job,) = claimed(shop)
    dead = Settlement(Kind.DEAD, error="no")
    assert end(shop, Pending(job, dead)) == [Fate.SETTLED]
    jobs.redrive(shop, jobs.DeadJob.job_id == job.id)
    with shop.begin() as connection:
        (again,) = claim.claim(connection, STATEMENTS, queue="default", limit=1, worker_id=ME)
    again.served_by(kept, jobs.models.recording)

    say(shop, again, done=5)

    found = jobs.record(shop, job.id)
    assert found is not None
    assert (found.state, found.progress, found.error) == ("live", Progress(5), None)
    assert found.ended_at is None


# ---- retention ----------------------------------------------------------------------------------


def test_what_is_too_old_is_deleted_the_oldest_first(shop: Engine) -> None:
    for job in claimed(shop, 5):
        end(shop, Pending(job, COMPLETED))
    with shop.begin() as connection:
        connection.exec_driver_sql("UPDATE bgjob_record SET keep_until = now() - interval '1s'")
        connection.exec_driver_sql(
            "UPDATE bgjob_record SET keep_until = now() + interval '1h'"
            " WHERE job_id = (SELECT max(job_id) FROM bgjob_record)"
        )
        connection.exec_driver_sql(
            "INSERT INTO bgjob_minute SELECT now() - n * interval '1 day', 1, 'q', 't',"
            " 'completed', 1, '{1}', '{1}', 0, 0 FROM generate_series(1, 9) AS n"
        )

    with shop.connect() as connection:
        first = records.delete_old_records(connection, STATEMENTS, limit=3)
        rest = records.delete_old_records(connection, STATEMENTS, limit=3)
        counts = records.delete_old_counts(
            connection, STATEMENTS, keep=timedelta(days=6.5).total_seconds(), limit=99
        )

    assert (first, rest, counts) == (3, 1, 3)


# ---- misuse -------------------------------------------------------------------------------------


def test_record_needs_the_tables() -> None:
    without: BGJob[Any, Any] = BGJob(MetaData())
    with pytest.raises(ValueError, match=r"record= of the handler of 't'.*records=True"):
        without.handler("t", record=60)(lambda ctx: None)
    with pytest.raises(TypeError, match=r"record=True is no time"):
        jobs.handler("t", record=True)
    with pytest.raises(TypeError, match=r"record_all=True is no time"):
        BGJob(MetaData(), record_all=True)
    for call in (without.record, without.wait):
        with pytest.raises(AttributeError, match="records=True"):
            call(None, "id")  # type: ignore[call-overload]
