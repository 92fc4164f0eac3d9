"""work_one of one certain job: that one or none, in the caller's transaction."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import Complete, Reschedule, Retry, UnknownType, constant, enqueue
from sqlalchemy_bgjob.testing import JobKit
from support.databases import with_driver
from support.running import FLAVORS, Workbench, one_of_each, only_threads

if TYPE_CHECKING:
    from collections.abc import Callable


def work(bench: Workbench, id: str | None = None, *queue: Any, **options: Any) -> Any:
    """work_one in a transaction of its own, which is committed."""
    url = with_driver(bench.url, bench.flavor.driver)
    if not bench.flavor.is_async:
        engine = create_engine(url)
        try:
            with Session(engine) as session, session.begin():
                return bench.jobs.work_one(session, *queue, id=id, **options)
        finally:
            engine.dispose()

    async def in_loop() -> Any:
        engine = create_async_engine(url)
        try:
            async with AsyncSession(engine) as session, session.begin():
                return await bench.jobs.work_one(session, *queue, id=id, **options)
        finally:
            await engine.dispose()

    return asyncio.run(in_loop())


@pytest.mark.core
def test_only_the_job_of_that_id_is_run(bench: Workbench) -> None:
    """Neither an urgent one nor an older one; of any queue, and it commits with the caller."""
    handler = bench.handler("t", bench.note)
    first = bench.enqueue(handler, priority=-5)
    wanted = bench.enqueue(handler, queue="another")

    assert isinstance(work(bench, wanted), Complete)

    assert bench.job(wanted) is None
    assert bench.notes(wanted) == ["written"]
    assert bench.job(first).attempt == 0
    assert work(bench, wanted) is None, "it is gone"


@one_of_each
def test_only_a_due_job_is_taken_unless_asked(bench: Workbench) -> None:
    job_id = bench.enqueue(bench.handler("t", bench.note), delay=3600)

    assert work(bench, job_id) is None
    assert bench.job(job_id).attempt == 0
    assert isinstance(work(bench, job_id, due=False), Complete)


@one_of_each
def test_a_job_that_somebody_holds_is_left_alone(bench: Workbench) -> None:
    """Running, locked, or waiting for a seat of its group; whether due is asked or not."""
    handler = bench.handler("t", bench.note)
    running, locked, waits = (bench.enqueue(handler, id=name) for name in "abc")
    bench.sql("UPDATE bgjob_job SET claimed_by = 7 WHERE id = :id", id=running)
    bench.sql("UPDATE bgjob_job SET waits = true, next_run_at = '9998-01-01' WHERE id = 'c'")

    with bench.outside.connect().execution_options(isolation_level="READ COMMITTED") as other:
        other.execute(text("SELECT FROM bgjob_job WHERE id = 'b' FOR UPDATE"))
        for job_id in (running, locked, waits):
            for due in (True, False):
                assert work(bench, job_id, due=due) is None, job_id
        other.rollback()


@only_threads
def test_of_two_at_once_one_runs_it(bench: Workbench) -> None:
    job_id = bench.enqueue(bench.handler("t", bench.note))
    engine = create_engine(with_driver(bench.url, bench.flavor.driver))

    with Session(engine) as one, Session(engine) as other:
        assert isinstance(bench.jobs.work_one(one, id=job_id), Complete)
        assert bench.jobs.work_one(other, id=job_id) is None
        one.rollback()
        assert isinstance(bench.jobs.work_one(other, id=job_id), Complete)
        other.commit()

    engine.dispose()
    assert bench.notes(job_id) == ["written"]


@one_of_each
def test_it_is_settled_as_any_other(bench: Workbench) -> None:
    """A failure, a handler of the caller's own, and a type that nobody knows."""

    def fails(*args: Any) -> Any:
        raise ValueError("x")

    failed = bench.enqueue(bench.handler("bad", fails, retry=constant(60.0)))
    unknown = bench.jobs.enqueue(bench.outside, "nobody's", 1, queue="default").id

    assert isinstance(work(bench, failed), Retry)
    assert bench.job(failed).attempt == 1
    assert isinstance(work(bench, failed, None, lambda ctx: Reschedule(9), due=False), Reschedule)
    assert isinstance(work(bench, unknown), Reschedule)
    assert bench.job(unknown).unknown_since is not None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda jobs, session: jobs.work_one(session), "a queue or an id="),
        (lambda jobs, session: jobs.work_one(session, "q", id="x"), "a queue or an id="),
        (lambda jobs, session: jobs.work_one(session, "q", due=False), "due=False needs id="),
        (lambda jobs, session: jobs.work_one(session, id=7), "id must be a str"),
    ],
)
@pytest.mark.parametrize("bench", FLAVORS[:1], ids=str, indirect=True)
def test_what_is_not_one_job_is_refused(
    bench: Workbench, call: Callable[[Any, Any], Any], words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        call(bench.jobs, Session(bench.outside))


@pytest.mark.parametrize("bench", FLAVORS[:1], ids=str, indirect=True)
def test_the_test_kit_runs_one_job(bench: Workbench) -> None:
    """By what enqueue returned, and raising what its handler raises."""

    def body(session: Session, ctx: Any) -> None:
        bench.note(session, ctx)
        if ctx.job.id == "bad":
            raise ValueError("broken")

    handler = bench.handler("t", body, retry=constant(60.0))
    kit = JobKit(bench.jobs)
    engine = create_engine(bench.url)
    with Session(engine) as session:
        ref = enqueue(session, handler, None, delay=60)
        bad = enqueue(session, handler, None, id="bad")
        unknown = bench.jobs.enqueue(session, "nobody's", queue="default")

        assert kit.work_one(session, ref) is None
        assert isinstance(kit.work_one(session, ref, due=False), Complete)
        with pytest.raises(ValueError, match="broken"):
            kit.work_one(session, bad)
        with pytest.raises(UnknownType):
            kit.work_one(session, unknown.id)
        assert isinstance(kit.work_one(session, "bad", due=False, raise_errors=False), Retry)
        with pytest.raises(TypeError, match="give it a Session"):
            kit.work_one(engine, ref)
        session.rollback()
    engine.dispose()
    assert bench.none_left()
