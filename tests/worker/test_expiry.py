"""``expires=``: a job that was not started in time is never started."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import MetaData, create_engine, literal, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import (
    BGJob,
    Context,
    Expired,
    enqueue,
    enqueue_from,
    enqueue_many,
)
from sqlalchemy_bgjob._enqueue import many as enqueueing
from sqlalchemy_bgjob.testing import JobKit
from sqlalchemy_bgjob.testing.faults import let_time_pass
from support.databases import with_driver
from support.running import Workbench, one_of_each
from support.tables import new_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from support.databases import TestServer
    from support.tuning import Tune

jobs: BGJob[Any, Any] = BGJob(MetaData())
FAR = datetime(2100, 1, 1, tzinfo=UTC)


@jobs.handler("otp")
def otp(ctx: Context[Any], arg: dict[str, int]) -> None: ...


@pytest.fixture(scope="module")
def shop(server: TestServer) -> Iterator[Engine]:
    with new_engine(server) as engine:
        jobs.metadata.create_all(engine)
        yield engine


@pytest.fixture
def session(shop: Engine) -> Iterator[Session]:
    with Session(shop) as session:
        yield session


ARG = {"n": 1}
WAYS: dict[str, Callable[..., Any]] = {
    "enqueue": lambda s, **options: enqueue(s, otp, ARG, **options),
    "by its type": lambda s, **options: jobs.enqueue(s, "otp", ARG, **options),
    "INSERT": lambda s, **options: enqueue_many(s, otp, [ARG], **options),
    "COPY": lambda s, **options: enqueue_many(s, otp, [ARG] * 2, **options),
    "objects": lambda s, **options: enqueue_many(s, [otp.job(ARG, **options), otp.job(ARG)]),
    "query": lambda s, **options: enqueue_from(s, otp, select(literal(1).label("n")), **options),
    "session.add": lambda s, **options: s.add(otp.job(ARG, **options)),
}


@pytest.mark.core
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("options", "after_due", "at"),
    [
        ({"expires": 30}, 30.0, None),
        ({"expires": timedelta(minutes=1), "delay": 600}, 60.0, None),
        ({"expires": 1.5, "run_at": FAR}, 1.5, None),
        ({"expires": FAR}, None, FAR),
        ({}, None, None),
    ],
    ids=["seconds", "delayed", "run_at", "moment", "never"],
)
def test_every_way_stores_when_it_expires(
    session: Session,
    way: str,
    options: dict[str, Any],
    after_due: float | None,
    at: Any,
    tune: Tune,
) -> None:
    """Counted from the moment when the job is due."""
    if way == "COPY":
        tune(enqueueing, WORTH_IT=1)

    WAYS[way](session, **options)

    rows = session.scalars(select(jobs.Job).order_by(jobs.Job.expires_at)).all()
    first = rows[0]
    if after_due is not None:
        assert first.expires_at == first.next_run_at + timedelta(seconds=after_due)
    else:
        assert first.expires_at == at
    if way == "objects":
        assert rows[-1].expires_at is None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"expires": 0}, ValueError, "would never let the job start"),
        ({"expires": -1}, ValueError, "expires=-1 s is not between"),
        ({"expires": "30"}, TypeError, "expires must be seconds"),
        ({"expires": datetime(2100, 1, 1)}, ValueError, "has no time zone"),  # noqa: DTZ001
        ({"expires": FAR, "run_at": FAR}, ValueError, "is not after run_at"),
    ],
)
def test_what_can_not_be_is_refused(
    session: Session, way: str, options: dict[str, Any], error: Any, match: str
) -> None:
    with pytest.raises(error, match=match):
        WAYS[way](session, **options)


def test_an_end_beyond_all_time_is_the_last_moment(session: Session) -> None:
    last = datetime(9998, 12, 31, tzinfo=UTC)

    enqueue(session, otp, ARG, run_at=last, expires=timedelta(days=30_000))

    stored = session.scalars(select(jobs.Job.expires_at)).one()
    assert stored is not None
    assert stored.astimezone(UTC).year == 9998


@pytest.mark.core
@one_of_each
def test_a_job_that_is_too_late_is_never_started(bench: Workbench) -> None:
    """It is dead and says why, or gone; told once, and costs no attempt. Redriven it runs."""
    kept = bench.handler("kept", bench.note)
    dropped = bench.handler("dropped", bench.note, on_expiry="drop")
    in_time = bench.enqueue(kept, expires=3600)
    late = bench.enqueue(kept, expires=60)
    gone = bench.enqueue(dropped, expires=60)
    # It has begun before, and is to be retried: no attempt starts any more.
    again = bench.enqueue(kept, expires=60)
    bench.sql("UPDATE bgjob_job SET attempt = 3, crashes = 1 WHERE id = :id", id=again)
    # Only its handler says what becomes of it.
    unknown = bench.jobs.enqueue(bench.outside, "none", queue="default", expires=60).id
    let_time_pass(bench.outside, bench.jobs, 61)

    ran = bench.run()

    assert ran.of(in_time) == ["started", "completed"]
    assert [ran.of(job_id) for job_id in (late, again)] == [["moved_to_dlq"]] * 2
    assert ran.of(gone) == ["expired"]
    dead = bench.dead(late)
    assert (dead.attempt, dead.last_error) == (0, "Expired: the job expired before it was started")
    assert bench.dead(again).attempt == 3
    assert bench.dead(gone) is None
    assert [bench.notes(job_id) for job_id in (late, again, gone)] == [[], [], []]
    waits = bench.job(unknown)
    assert (waits.attempt, waits.last_error, waits.unknown_since is not None) == (0, None, True)

    bench.jobs.redrive(bench.outside, bench.jobs.DeadJob.job_id == late)
    bench.run()
    assert bench.notes(late) == ["written"], "whoever brings it back wants it to run"


@one_of_each
def test_work_one_ends_what_has_expired(bench: Workbench) -> None:
    kept = bench.enqueue(bench.handler("kept", bench.note), expires=60)
    bench.enqueue(bench.handler("dropped", bench.note, on_expiry="drop"), expires=60)
    let_time_pass(bench.outside, bench.jobs, 61)
    url = with_driver(bench.url, bench.flavor.driver)

    async def work() -> list[Any]:
        if not bench.flavor.is_async:
            engine = create_engine(url)
            outcomes = [bench.jobs.work_one(engine, "default") for _ in range(2)]
            engine.dispose()
            return outcomes
        async_engine = create_async_engine(url)
        outcomes = [await bench.jobs.work_one(async_engine, "default") for _ in range(2)]
        await async_engine.dispose()
        return outcomes

    assert [type(outcome) for outcome in asyncio.run(work())] == [Expired, Expired]
    assert bench.sql("SELECT job_id FROM bgjob_dead_job") == [(kept,)]
    assert bench.sql("SELECT FROM note") == []


def test_a_test_travels_beyond_it(session: Session) -> None:
    """And cancels: both hold in a test's own transaction."""
    kit = JobKit(jobs)
    enqueue(session, otp, ARG, expires=60)
    kit.travel(session, minutes=2)
    assert [type(outcome) for outcome in kit.work_due(session)] == [Expired]

    gone = enqueue(session, otp, ARG)
    assert jobs.cancel(session, gone.id) == "cancelled"
    assert kit.work_due(session) == []


def test_the_claim_asks_the_server_s_clock(session: Session) -> None:
    """A worker whose own clock is wrong starts and drops as all others do."""
    enqueue(session, otp, ARG, expires=60)
    session.execute(text("UPDATE bgjob_job SET expires_at = now() - interval '1 ms'"))

    assert isinstance(jobs.work_one(session, "default"), Expired)
