"""Cancel, redrive and prune: in the caller's transaction, once, and never against a worker."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import Engine, event, func, select, text, true
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import BGJob, CancelResult, InvalidArg, enqueue
from sqlalchemy_bgjob._handlers.outcomes import (
    CANCELLED,
    COMPLETED,
    HAND_BACK,
    INTERRUPTED,
    Kind,
    Settlement,
)
from sqlalchemy_bgjob._lifecycle import settle
from sqlalchemy_bgjob._lifecycle.cancel import find_asked
from sqlalchemy_bgjob._lifecycle.settle import Fate
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob.testing.faults import let_time_pass
from support import wait_until
from support.producers import FEW_UNITS, producer
from support.rows import ME, OTHER, claim, pending, waiting
from support.tables import new_queue

if TYPE_CHECKING:
    from sqlalchemy_bgjob._lifecycle.claim import ClaimedJob

pytestmark = [pytest.mark.core, pytest.mark.keeps_tables]


@pytest.fixture
def jobs(engine: Engine) -> BGJob:
    jobs = new_queue()
    jobs.metadata.create_all(engine)

    @jobs.handler("mail", queue="q", max_attempts=3)
    def mail(ctx: Any, to: str) -> None: ...

    return jobs


def put(jobs: BGJob, engine: Engine, *ids: str, **options: Any) -> None:
    for id in ids:
        enqueue(engine, jobs.registry.find_type("mail"), id, id=id, **options)


def take(jobs: BGJob, engine: Engine) -> list[ClaimedJob]:
    with engine.connect() as connection:
        return claim(connection, statements_of(jobs.models), 100)


def end(
    jobs: BGJob, engine: Engine, claimed: list[ClaimedJob], settlement: Settlement
) -> set[Fate]:
    with engine.connect() as connection:
        fates = settle.settle(connection, statements_of(jobs.models), pending(claimed, settlement))
    return {fate for _, fate in fates}


def died(error: str = "no such address") -> Settlement:
    return Settlement(Kind.DEAD, error=error)


def kill(jobs: BGJob, engine: Engine, *ids: str, ago: float = 0.0) -> None:
    """Let jobs be claimed, and moved to the DLQ."""
    put(jobs, engine, *ids)
    claimed = take(jobs, engine)
    assert sorted(job.id for job in claimed) == sorted(ids)
    end(jobs, engine, claimed, died())
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE bgjob_dead_job SET moved_at = now() - make_interval(secs => :ago)"
                " WHERE job_id = ANY(:ids)"
            ),
            {"ago": ago, "ids": list(ids)},
        )


def live(jobs: BGJob, engine: Engine) -> list[str]:
    with Session(engine) as session:
        return list(session.scalars(select(jobs.Job.id).order_by(jobs.Job.id)))


def dead(jobs: BGJob, engine: Engine) -> list[str]:
    with Session(engine) as session:
        return list(session.scalars(select(jobs.DeadJob.job_id).order_by(jobs.DeadJob.job_id)))


# ---- cancel ---------------------------------------------------------------------------------


def test_a_queued_job_is_cancelled_and_no_other(jobs: BGJob, engine: Engine) -> None:
    put(jobs, engine, "a", "b")
    put(jobs, engine, "later", delay=3600)

    assert jobs.cancel(engine, "a") == "cancelled"
    assert jobs.cancel(engine, "later") == "cancelled"
    assert jobs.cancel(engine, "a") is None
    assert jobs.cancel(engine, "never") is None
    assert live(jobs, engine) == ["b"]


def test_a_running_job_is_marked_for_its_worker(jobs: BGJob, engine: Engine) -> None:
    """Its worker holds it as before: it may complete it all the same."""
    put(jobs, engine, "a", "b")
    claimed = take(jobs, engine)
    statements = statements_of(jobs.models)

    assert jobs.cancel(engine, "a") == "asked"
    assert jobs.cancel(engine, "a") == "asked", "it is still to end"

    with engine.connect() as connection:
        assert find_asked(connection, statements, worker_id=ME, jobs=claimed) == {"a"}
        assert find_asked(connection, statements, worker_id=OTHER, jobs=claimed) == set()
    assert end(jobs, engine, claimed, COMPLETED) == {Fate.SETTLED}
    assert live(jobs, engine) == []


@pytest.mark.parametrize(
    "release", [HAND_BACK, INTERRUPTED, Settlement(Kind.RETRY, delay=3600.0, error="failed")]
)
def test_a_marked_job_that_comes_back_is_due_to_end(
    jobs: BGJob, engine: Engine, release: Settlement
) -> None:
    """Its next claim is told so, and comes soon, whatever the backoff says."""
    put(jobs, engine, "a", "b")
    claimed = take(jobs, engine)
    jobs.cancel(engine, "a")
    assert end(jobs, engine, claimed, release) == {Fate.SETTLED}

    again = {job.id: job.cancelled for job in take(jobs, engine)}

    assert again.pop("a") is True
    assert set(again.values()) <= {False}
    assert end(jobs, engine, claimed, CANCELLED) == {Fate.STALE}


def test_a_marked_job_that_waits_again_is_deleted(jobs: BGJob, engine: Engine) -> None:
    put(jobs, engine, "a")
    claimed = take(jobs, engine)
    jobs.cancel(engine, "a")
    end(jobs, engine, claimed, HAND_BACK)

    assert jobs.cancel(engine, "a") == "cancelled"
    assert live(jobs, engine) == []


def test_a_redriven_job_is_not_marked_any_more(jobs: BGJob, engine: Engine) -> None:
    put(jobs, engine, "a", expires=3600)
    claimed = take(jobs, engine)
    jobs.cancel(engine, "a")
    end(jobs, engine, claimed, died())
    jobs.redrive(engine, true())

    (again,) = take(jobs, engine)

    assert again.extras is None


def test_jobs_are_cancelled_by_a_condition(jobs: BGJob, engine: Engine) -> None:
    put(jobs, engine, "r1", "r2")
    take(jobs, engine)
    put(jobs, engine, "a", "b", "c", "kept")

    some = jobs.Job.id != "kept"

    assert jobs.cancel_where(engine, some & (jobs.Job.state == "queued"), limit=1) == (
        CancelResult(cancelled=1, asked=0)
    )
    assert jobs.cancel_where(engine, some) == CancelResult(cancelled=2, asked=2)
    assert jobs.cancel_where(engine, some) == CancelResult(cancelled=0, asked=2)
    assert jobs.cancel_where(engine, jobs.Job.id == "none") == CancelResult(0, 0)
    assert live(jobs, engine) == ["kept", "r1", "r2"]


def test_a_mark_is_a_hot_update(jobs: BGJob, engine: Engine) -> None:
    """It changes no column of an index."""
    put(jobs, engine, "a")
    take(jobs, engine)
    count = text("SELECT pg_stat_get_xact_tuples_hot_updated('bgjob_job'::regclass)")
    with engine.begin() as connection:
        before = connection.scalar(count)
        jobs.cancel(connection, "a")
        assert connection.scalar(count) == before + 1


def test_a_running_job_is_cancelled_despite_references(jobs: BGJob, engine: Engine) -> None:
    """Somebody's open transaction refers to the row: a mark does not wait for that."""
    put(jobs, engine, "a")
    take(jobs, engine)
    with engine.begin() as connection:
        connection.execute(text("SELECT FROM bgjob_job FOR KEY SHARE"))
        assert jobs.cancel(engine, "a") == "asked"


def test_two_phase_transactions_mark_without_a_word(jobs: BGJob, engine: Engine) -> None:
    """PostgreSQL refuses NOTIFY there; the worker looks by itself."""
    put(jobs, engine, "a")
    take(jobs, engine)
    with engine.connect() as connection, connection.begin_twophase():
        assert jobs.cancel(connection, "a") == "asked"


@pytest.mark.parametrize("kind", FEW_UNITS)
def test_the_caller_s_transaction_decides(jobs: BGJob, engine: Engine, kind: str) -> None:
    """For sessions and connections, for all three."""
    kill(jobs, engine, "brought-back", "pruned", ago=100)
    put(jobs, engine, "gone", "kept")
    url = engine.url.render_as_string(hide_password=False)

    async def act(*, commit: bool) -> list[Any]:
        async with producer(kind, url) as made:
            done = [
                await made.do(jobs.cancel(made.target, "gone")),
                await made.do(jobs.redrive(made.target, jobs.DeadJob.job_id == "brought-back")),
                await made.do(jobs.prune(made.target, 50)),
            ]
            await (made.commit() if commit else made.rollback())
        return [done[0], done[1].ids, done[2]]

    assert asyncio.run(act(commit=False)) == ["cancelled", ("brought-back",), 1]
    assert live(jobs, engine) == ["gone", "kept"]
    assert dead(jobs, engine) == ["brought-back", "pruned"]
    assert asyncio.run(act(commit=True)) == ["cancelled", ("brought-back",), 1]
    assert live(jobs, engine) == ["brought-back", "kept"]
    assert dead(jobs, engine) == []


def test_a_job_that_is_not_yet_flushed_can_be_cancelled(jobs: BGJob, engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.add(jobs.Job(id="a", queue="q", type="mail"))
        assert jobs.cancel(session, "a") == "cancelled"
    assert live(jobs, engine) == []


@pytest.mark.parametrize(("id", "error"), [("", ValueError), (7, TypeError), ("\x00", ValueError)])
def test_an_id_that_can_t_be_is_refused(jobs: BGJob, engine: Engine, id: Any, error: type) -> None:
    with pytest.raises(error, match="id"):
        jobs.cancel(engine, id)


# ---- redrive --------------------------------------------------------------------------------


def test_scheduled_jobs_are_made_due(jobs: BGJob, engine: Engine) -> None:
    """Those for later, and those that wait for a retry; not what is due, runs, or has no seat."""
    put(jobs, engine, "later", "retry", "seatless", delay=3_600)
    put(jobs, engine, "running", "due")
    job = jobs.models.job
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE bgjob_job SET claimed_by = 7, next_run_at = now() + interval '1 h'"
                " WHERE id = 'running'"
            )
        )
        connection.execute(text("UPDATE bgjob_job SET waits = true WHERE id = 'seatless'"))
    assert take_ids(jobs, engine) == ["due"]

    assert jobs.run_now(engine, job.c.id == "nobody") == 0
    assert jobs.run_now(engine, true(), limit=1) == 1
    assert jobs.run_now(engine, true()) == 1
    assert jobs.run_now(engine, true()) == 0
    assert sorted(take_ids(jobs, engine)) == ["later", "retry"]


def test_a_job_that_is_claimed_meanwhile_is_left_alone(jobs: BGJob, engine: Engine) -> None:
    put(jobs, engine, "a", delay=3_600)
    with engine.connect() as other, ThreadPoolExecutor(1) as pool:
        with other.begin():
            other.execute(text("UPDATE bgjob_job SET claimed_by = 7"))
            asked = pool.submit(jobs.run_now, engine, true())
            wait_until(lambda: waiting(engine))
        assert asked.result(30) == 0
        with other.begin():
            assert other.scalar(text("SELECT next_run_at > now() FROM bgjob_job"))


def take_ids(jobs: BGJob, engine: Engine) -> list[str]:
    return [job.id for job in take(jobs, engine)]


# ---- edit -----------------------------------------------------------------------------------


def row_of(jobs: BGJob, engine: Engine, id: str) -> Any:
    with engine.connect() as connection:
        return connection.execute(select(jobs.models.job).where(jobs.models.job.c.id == id)).one()


def test_a_queued_job_is_edited(jobs: BGJob, engine: Engine) -> None:
    """What is named is changed, and nothing else; who has seen it before can't edit it by that."""
    put(jobs, engine, "a", "other", delay=3_600, headers={"bgjob-schedule": "s", "trace": "1"})
    before, other = row_of(jobs, engine, "a"), row_of(jobs, engine, "other")

    assert jobs.edit(engine, "a", lease=before.lease, arg="somebody else") == "edited"
    row = row_of(jobs, engine, "a")
    assert (row.arg, row.headers, row.priority) == (b'"somebody else"', before.headers, 0)
    assert (row.next_run_at, row.lease) == (before.next_run_at, before.lease + 1)
    assert jobs.edit(engine, "a", lease=before.lease, priority=3) == "changed"

    at = before.next_run_at + timedelta(hours=1)
    assert jobs.edit(engine, "a", priority=-5, headers={"x": 1}, run_at=at) == "edited"
    row = row_of(jobs, engine, "a")
    assert (row.priority, row.next_run_at) == (-5, at)
    assert row.headers == {"bgjob-schedule": "s", "x": 1}
    assert jobs.edit(engine, "a", headers=None, delay=0) == "edited"
    assert row_of(jobs, engine, "a").headers == {"bgjob-schedule": "s"}
    assert take_ids(jobs, engine) == ["a"]
    assert row_of(jobs, engine, "other") == other


def test_an_edited_arg_names_its_content_type(jobs: BGJob, engine: Engine) -> None:
    jobs.enqueue(engine, "raw", b"bytes", queue="q", id="a", headers={"trace": "1"})

    jobs.edit(engine, "a", arg={"n": 1})
    assert (row_of(jobs, engine, "a").arg, row_of(jobs, engine, "a").headers) == (
        b'{"n":1}',
        {"trace": "1"},
    )
    jobs.edit(engine, "a", arg=b"again")
    assert row_of(jobs, engine, "a").headers == {
        "trace": "1",
        "content-type": "application/octet-stream",
    }


def test_what_can_t_be_edited_is_left_as_it_is(jobs: BGJob, engine: Engine) -> None:
    """A job that runs, has run, is gone, has no seat, or would expire; and a wrong value."""
    put(jobs, engine, "a")
    assert jobs.edit(engine, "nobody", priority=1) is None
    (claimed,) = take(jobs, engine)
    assert jobs.edit(engine, "a", priority=1) == "running"
    end(jobs, engine, [claimed], Settlement(Kind.RETRY, delay=60.0, error="failed"))
    assert jobs.edit(engine, "a", lease=claimed.lease, priority=1) == "changed"
    before = row_of(jobs, engine, "a")
    for wrong, error in (
        ({"arg": 5}, InvalidArg),
        ({"headers": {"content-type": "x"}}, ValueError),
        ({"priority": 40_000}, ValueError),
        ({"run_at": before.created_at, "delay": 1}, ValueError),
        ({"colour": "red"}, TypeError),
        ({}, TypeError),
    ):
        with pytest.raises(error):
            jobs.edit(engine, "a", **wrong)  # type: ignore[arg-type]
    assert row_of(jobs, engine, "a") == before

    put(jobs, engine, "late", delay=60, expires=60)
    with pytest.raises(ValueError, match="never start"):
        jobs.edit(engine, "late", delay=3_600)
    put(jobs, engine, "seatless")
    with engine.begin() as connection:
        connection.execute(text("UPDATE bgjob_job SET waits = true WHERE id = 'seatless'"))
    assert jobs.edit(engine, "seatless", delay=0) == "waiting"
    assert jobs.edit(engine, "seatless", priority=1) == "edited"


def test_an_edit_waits_for_a_claim_and_is_told(jobs: BGJob, engine: Engine) -> None:
    put(jobs, engine, "a")
    with engine.connect() as other, ThreadPoolExecutor(1) as pool:
        with other.begin():
            other.execute(text("UPDATE bgjob_job SET claimed_by = 7, lease = lease + 1"))
            asked = pool.submit(jobs.edit, engine, "a", priority=9)
            wait_until(lambda: waiting(engine))
        assert asked.result(30) == "running"
    assert row_of(jobs, engine, "a").priority == 0


def test_all_workers_are_told_of_an_edited_job_that_is_due(jobs: BGJob, engine: Engine) -> None:
    """One that reads on has passed it by while it was locked, or it is due before that."""
    put(jobs, engine, "a", delay=3_600)
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as session:
        channel = statements_of(jobs.models).tables.channel_of_given_back
        session.execute(f"LISTEN {channel}")
        assert jobs.edit(engine, "a", priority=1) == "edited"
        assert jobs.edit(engine, "a", delay=0) == "edited"
        assert jobs.edit(engine, "a", priority=2) == "edited"
        heard = [one.payload for one in session.notifies(timeout=30, stop_after=2)]
    assert heard == ["q", "q"]


@pytest.mark.parametrize("kind", FEW_UNITS)
def test_an_edit_belongs_to_the_callers_transaction(jobs: BGJob, engine: Engine, kind: str) -> None:
    """For sessions and connections."""
    put(jobs, engine, "a")
    url = engine.url.render_as_string(hide_password=False)

    async def act(*, commit: bool) -> Any:
        async with producer(kind, url) as made:
            done = await made.do(jobs.edit(made.target, "a", arg="new", priority=7))
            await (made.commit() if commit else made.rollback())
        return done

    assert asyncio.run(act(commit=False)) == "edited"
    assert row_of(jobs, engine, "a").priority == 0
    assert asyncio.run(act(commit=True)) == "edited"
    assert (row_of(jobs, engine, "a").priority, row_of(jobs, engine, "a").arg) == (7, b'"new"')


def test_a_redriven_job_begins_anew_and_keeps_what_it_is(jobs: BGJob, engine: Engine) -> None:
    kill(jobs, engine, "a")
    with Session(engine) as session:
        before = session.scalars(select(jobs.DeadJob)).one()

    done = jobs.redrive(engine, jobs.DeadJob.type == "mail")

    assert (done.ids, done.left) == (("a",), ())
    assert dead(jobs, engine) == []
    with Session(engine) as session:
        job = session.scalars(select(jobs.Job)).one()
    assert (job.attempt, job.crashes, job.claimed_by) == (0, 0, None)
    assert (job.arg, job.queue, job.type, job.priority) == (b'"a"', "q", "mail", 0)
    assert job.created_at == before.job_created_at
    assert job.last_error == "no such address"
    assert job.lease > before.lease


def test_an_edited_arg_is_what_runs(jobs: BGJob, engine: Engine) -> None:
    """Also if the edit is committed while the redrive waits for it."""
    kill(jobs, engine, "a")
    with Session(engine) as session, session.begin():
        session.scalars(select(jobs.DeadJob)).one().arg = "edited"
        session.flush()
        with ThreadPoolExecutor() as pool:
            done = pool.submit(jobs.redrive, engine, true())
            wait_until(lambda: waiting(engine) == 1, what="the redrive to wait")
            session.commit()
            assert done.result().ids == ("a",)

    with Session(engine) as session:
        assert session.scalars(select(jobs.Job.arg)).one() == b'"edited"'


def test_a_live_job_of_the_same_id_is_left_alone(jobs: BGJob, engine: Engine) -> None:
    kill(jobs, engine, "a", "b")
    put(jobs, engine, "a")

    done = jobs.redrive(engine, true())

    assert (done.ids, done.left) == (("b",), ("a",))
    assert dead(jobs, engine) == ["a"]
    assert live(jobs, engine) == ["a", "b"]


def test_of_two_dead_jobs_with_one_id_the_later_one_comes_back(jobs: BGJob, engine: Engine) -> None:
    kill(jobs, engine, "a", ago=100)
    with engine.begin() as connection:
        connection.execute(text("UPDATE bgjob_dead_job SET last_error = 'first'"))
    put(jobs, engine, "a")
    end(jobs, engine, take(jobs, engine), died("second"))

    done = jobs.redrive(engine, true())

    assert (done.ids, done.left) == (("a",), ("a",))
    with Session(engine) as session:
        assert session.scalars(select(jobs.Job.last_error)).one() == "second"
        assert session.scalars(select(jobs.DeadJob.last_error)).one() == "first"


def test_a_lease_is_never_used_again(jobs: BGJob, engine: Engine) -> None:
    """Neither one of the life that ended, nor one of a life that came after it."""
    kill(jobs, engine, "a")
    put(jobs, engine, "a")
    later = take(jobs, engine)
    end(jobs, engine, later, COMPLETED)

    jobs.redrive(engine, true())

    assert take(jobs, engine)[0].lease > later[0].lease


def test_the_limit_and_the_delay(jobs: BGJob, engine: Engine) -> None:
    kill(jobs, engine, "a", "b", "c")

    first = jobs.redrive(engine, true(), limit=2, delay=timedelta(hours=1))

    assert len(first.ids) == 2
    with Session(engine) as session:
        waits = session.scalars(select(func.extract("epoch", jobs.Job.next_run_at - func.now())))
        assert [round(float(seconds), -2) for seconds in waits] == [3600, 3600]
    assert len(jobs.redrive(engine, true(), limit=2).ids) == 1
    assert jobs.redrive(engine, true()).ids == ()


@pytest.mark.parametrize("act", ["cancel", "redrive"])
def test_of_many_that_do_the_same_one_has_done_it(jobs: BGJob, engine: Engine, act: str) -> None:
    """Twenty rounds of eight at once; and none of them fails."""
    barrier = threading.Barrier(8)

    def once(_: int) -> bool:
        barrier.wait(20)
        if act == "cancel":
            return jobs.cancel(engine, "a") is not None
        return bool(jobs.redrive(engine, jobs.DeadJob.job_id == "a").ids)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            (put if act == "cancel" else kill)(jobs, engine, "a")
            assert sum(pool.map(once, range(8))) == 1
            with engine.begin() as connection:
                connection.execute(text("DELETE FROM bgjob_job"))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"limit": 0}, ValueError, "limit=0 is below 1; None means all"),
        ({"limit": "2"}, TypeError, "limit must be an int or None, not str"),
        ({"delay": -1}, ValueError, "delay=-1 s is not between"),
    ],
)
def test_what_can_t_be_is_refused_before_any_sql(
    jobs: BGJob, engine: Engine, options: dict[str, Any], error: type, match: str
) -> None:
    with engine.connect() as connection:
        with pytest.raises(error, match=match):
            jobs.redrive(connection, true(), **options)
        assert not connection.in_transaction()


# ---- prune ----------------------------------------------------------------------------------


def test_what_died_long_ago_is_deleted_the_oldest_first(jobs: BGJob, engine: Engine) -> None:
    for id, ago in (("old", 200.0), ("older", 300.0), ("new", 10.0)):
        kill(jobs, engine, id, ago=ago)

    assert jobs.prune(engine, 100, limit=1) == 1
    assert dead(jobs, engine) == ["new", "old"]
    assert jobs.prune(engine, timedelta(seconds=100), jobs.DeadJob.type != "mail") == 0
    assert jobs.prune(engine, 100) == 1
    assert jobs.prune(engine, 0, jobs.DeadJob.type == "mail") == 1
    assert dead(jobs, engine) == []


def test_prune_waits_for_who_redrives(jobs: BGJob, engine: Engine) -> None:
    """And deletes what stays dead then, whatever was edited meanwhile."""
    kill(jobs, engine, "a", "b", "c", ago=100)
    with ThreadPoolExecutor() as pool, engine.begin() as connection:
        jobs.redrive(connection, jobs.DeadJob.job_id == "a")
        connection.execute(text("UPDATE bgjob_dead_job SET arg = '1' WHERE job_id = 'b'"))
        done = pool.submit(jobs.prune, engine, 50)
        wait_until(lambda: waiting(engine) == 1, what="the prune to wait")
        connection.commit()
        assert done.result(20) == 2
    assert live(jobs, engine) == ["a"]
    assert dead(jobs, engine) == []


def test_who_redrives_and_who_prunes_never_wait_in_a_circle(jobs: BGJob, engine: Engine) -> None:
    """Neither fails, and each dead job is brought back once or deleted once."""
    ids = [f"job-{n}" for n in range(20)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            kill(jobs, engine, *ids, ago=100)
            pruned = [pool.submit(jobs.prune, engine, 50, limit=7) for _ in range(2)]
            back = [pool.submit(jobs.redrive, engine, true(), limit=7) for _ in range(2)]
            count = sum(done.result(20) for done in pruned)
            redriven = [id for done in back for id in done.result(20).ids]
            assert len(live(jobs, engine)) == len(set(redriven)) == len(redriven)
            assert len(dead(jobs, engine)) == 20 - count - len(redriven)
            with engine.begin() as connection:
                connection.execute(text("TRUNCATE bgjob_job, bgjob_dead_job"))


# ---- time -----------------------------------------------------------------------------------


def test_time_that_passes_makes_jobs_due(jobs: BGJob, engine: Engine) -> None:
    kill(jobs, engine, "dead")
    put(jobs, engine, "soon", delay=3500)
    put(jobs, engine, "late", delay=3700)

    with Session(engine) as session, session.begin():
        let_time_pass(session, jobs, timedelta(hours=1))

    with Session(engine) as session:
        states = dict(session.execute(select(jobs.Job.id, jobs.Job.state)).all())
    assert states == {"soon": "queued", "late": "scheduled"}
    assert jobs.prune(engine, 3599) == 1


@pytest.fixture
def statements_sent(engine: Engine) -> list[str]:
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    return sent


def test_each_is_one_statement(jobs: BGJob, engine: Engine, statements_sent: list[str]) -> None:
    """What two do at once is then done once; redrive tells each queue's workers besides."""
    kill(jobs, engine, "a", "b")
    statements_sent.clear()

    jobs.cancel(engine, "x")
    jobs.prune(engine, 100)
    jobs.redrive(engine, true())

    assert [sql.split()[0] for sql in statements_sent] == ["WITH", "WITH", "WITH", "SELECT"]
