"""A worker that ends the last job of a batch lets the next one follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import DBAPIError

from sqlalchemy_bgjob import Complete, MoveToDlq, enqueue_many
from sqlalchemy_bgjob._worker import batch_sweep, ended_batches, own_end
from sqlalchemy_bgjob.testing.points import at
from support.running import FLAVORS, Recorder, Workbench, one_of_each

if TYPE_CHECKING:
    from sqlalchemy_bgjob import JobType
    from sqlalchemy_bgjob._drafts.batch import OpenBatch
    from support.tuning import Tune

one = pytest.mark.parametrize("bench", FLAVORS[:1], ids=str, indirect=True)
"""For what the driver and the kind of worker have no part in."""


def batch_of(
    bench: Workbench, handler: JobType[Any], count: int, follower: JobType[Any]
) -> OpenBatch:
    with (
        bench.outside.execution_options(isolation_level="READ COMMITTED").begin() as connection,
        bench.jobs.batch(connection, then=follower.job()) as batch,
    ):
        enqueue_many(connection, handler, [None] * count, batch=batch)
    return batch


def finished(bench: Workbench) -> list[bool]:
    rows = bench.sql("SELECT finished_at IS NOT NULL FROM bgjob_batch ORDER BY id")
    return [row[0] for row in rows]


@pytest.mark.core
@pytest.mark.parametrize("options", [{}, {"chunk": 5}], ids=["each", "chunks"])
@pytest.mark.parametrize("uses_session", [True, False], ids=["session", "none"])
def test_the_follower_runs_after_all_the_others(
    bench: Workbench, uses_session: bool, options: dict[str, Any]
) -> None:
    """Once, whether the ends are written by the handlers' sessions or by the loop."""
    ran: list[str] = []

    def work(*given: Any) -> None:
        ran.extend(["page"] * len(given[-1].jobs))

    follower = bench.handler("bind", lambda ctx: ran.append("bind"), uses_session=False)
    if options:
        page = chunks(bench, work, uses_session=uses_session, **options)
    else:
        page = bench.handler("page", work, uses_session=uses_session)
    batch_of(bench, page, 12, follower)

    bench.run(until=lambda: "bind" in ran)

    assert ran == ["page"] * 12 + ["bind"]
    assert finished(bench) == [True]


def chunks(bench: Workbench, work: Any, *, uses_session: bool, **options: Any) -> JobType[Any]:
    """A handler of chunks that does the same."""
    register: Any = bench.jobs.handler("page", **options)
    if bench.flavor.is_async:

        async def coroutine(ctx: Any, args: list[Any]) -> None:
            if uses_session:
                await ctx.session.connection()
            work(ctx)

        made: JobType[Any] = register(coroutine)
        return made

    def function(ctx: Any, args: list[Any]) -> None:
        if uses_session:
            ctx.session.connection()
        work(ctx)

    return register(function)


@one_of_each
def test_all_that_ends_a_job_ends_its_batch(bench: Workbench) -> None:
    """Outcomes of the handler, a cancel, an expiry, a type that nobody knows."""
    ran: list[str] = []
    follower = bench.handler("bind", lambda ctx: ran.append("bind"), uses_session=False)
    complete = bench.handler("complete", lambda ctx: Complete(), uses_session=False)
    dead = bench.handler("dead", lambda ctx: MoveToDlq("broken"), uses_session=False)
    with (
        bench.outside.execution_options(isolation_level="READ COMMITTED").begin() as connection,
        bench.jobs.batch(connection, then=follower.job()) as batch,
    ):
        for job in (complete.job(batch=batch), dead.job(batch=batch)):
            enqueue_many(connection, [job])
        for type in ("cancelled", "expired", "unknown"):
            bench.jobs.enqueue(connection, type, queue="default", batch=batch, id=type)
    bench.sql("UPDATE bgjob_job SET cancel_at = now() WHERE id = 'cancelled'")
    bench.sql("UPDATE bgjob_job SET expires_at = now() - interval '1 s' WHERE id = 'expired'")

    bench.run(until=lambda: "bind" in ran, unknown_type_grace=0.01)

    assert ran == ["bind"]


def five_that_nobody_has_looked_at(bench: Workbench) -> list[str]:
    """Batches that are over; returns the list to which each follower's run is added."""
    ran: list[str] = []
    follower = bench.handler("bind", lambda ctx: ran.append("bind"), uses_session=False)
    page = bench.handler("page", lambda ctx: None, uses_session=False)
    for _ in range(5):
        batch_of(bench, page, 1, follower)
    bench.sql("DELETE FROM bgjob_job")
    return ran


@one_of_each
def test_a_worker_until_idle_does_what_follows(bench: Workbench) -> None:
    ran: list[str] = []
    follower = bench.handler("bind", lambda ctx: ran.append("bind"), uses_session=False)
    page = bench.handler("page", lambda ctx: None, uses_session=False)
    batch_of(bench, page, 3, follower)

    bench.run(until=lambda: "bind" in ran, until_idle=True)

    assert ran == ["bind"]


@one_of_each
def test_a_worker_until_idle_looks_for_what_others_have_left(bench: Workbench, tune: Tune) -> None:
    """Before it ends: where cron starts all of them, none may live for long enough to lead."""
    tune(own_end, LIMIT=2, ASK_IDLE_EVERY=0.01)
    ran = five_that_nobody_has_looked_at(bench)

    bench.run(until=lambda: len(ran) == 5, until_idle=True)

    assert finished(bench) == [True] * 5


@one
def test_a_worker_until_idle_ends_though_it_may_not_look(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise LookupError("no right")

    monkeypatch.setattr(own_end, "look_through", refused)
    caplog.set_level("INFO")
    bench.handler("page", lambda ctx: None, uses_session=False)

    bench.run(until=lambda: "runs nothing: stopping" in caplog.text, until_idle=True)

    assert "batches were not looked through: LookupError: no right" in caplog.text


@one
def test_without_batches_nothing_is_sent(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    page = bench.handler("page", lambda ctx: None, uses_session=False)
    bench.sql("TRUNCATE bgjob_batch")
    sweeps: list[str] = []
    monkeypatch.setattr(ended_batches, "finish", lambda *_: sweeps.append("a look"))
    with at("sweeping", sweeps.append):
        for _ in range(5):
            bench.enqueue(page)
        bench.run(until=lambda: sweeps.count("health") > 2, health_interval=0.05)

    assert not {"batches", "a look"} & {*sweeps}


@one
def test_the_leader_finishes_what_nobody_has_looked_at(bench: Workbench, tune: Tune) -> None:
    """In several looks; and what is old goes."""
    tune(batch_sweep, LIMIT=2, LASTS=0.0, GO_ON_AFTER=0.01)
    ran = five_that_nobody_has_looked_at(bench)
    bench.sql(
        "INSERT INTO bgjob_batch (id, created_at, finished_at) "
        "SELECT '00' || n, at, at FROM generate_series(1, 5) AS n, "
        "(SELECT now() - interval '1 hour') AS _ (at)"
    )

    bench.run(
        until=lambda: len(ran) == 5 and finished(bench) == [True] * 5,
        health_interval=0.05,
        batch_keep=60.0,
    )


@one
def test_an_old_batch_that_refuses_to_go_is_told_once(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """By a foreign key of the application's: the others go, and it is passed over for an hour."""
    bench.handler("page", lambda ctx: None, uses_session=False)
    bench.sql("TRUNCATE bgjob_batch")
    bench.sql(
        "INSERT INTO bgjob_batch (id, created_at, finished_at) "
        "SELECT '00' || n, at, at FROM generate_series(1, 3) AS n, "
        "(SELECT now() - interval '1 hour') AS _ (at)"
    )
    bench.sql("CREATE TABLE invoice (batch_id text REFERENCES bgjob_batch)")
    bench.sql("INSERT INTO invoice VALUES ('001')")
    recorder, sweeps = Recorder(), list[str]()

    try:
        with at("sweeping", sweeps.append):
            bench.run(
                until=lambda: sweeps.count("batches") > 3,
                observers=(recorder,),
                health_interval=0.05,
                batch_keep=60.0,
            )
        assert bench.sql("SELECT id FROM bgjob_batch") == [("001",)]
    finally:
        bench.sql("DROP TABLE invoice")

    assert "1 batches can't be deleted, such as that of id 001: " in caplog.text
    assert len([event for event in recorder.events if event.name == "worker_error"]) == 1


@one
def test_a_look_that_fails_does_not_stop_the_worker(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A role of an older grant, for one; the leader looks again."""

    def refused(*_: Any) -> None:
        raise LookupError("no right")

    monkeypatch.setattr(ended_batches, "finish", refused)
    ran: list[str] = []
    follower = bench.handler("bind", lambda ctx: ran.append("bind"), uses_session=False)
    page = bench.handler("page", lambda ctx: None, uses_session=False)
    batch_of(bench, page, 3, follower)

    bench.run(until=lambda: ran, health_interval=0.05)

    assert "batches were not finished" in caplog.text


@one_of_each
def test_a_worker_that_can_not_look_at_its_end_unregisters(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its last jobs, and its row, would wait until it counts as silent."""
    lost = DBAPIError("SELECT", None, Exception(), connection_invalidated=True)
    looks: list[str] = []

    def cut(*_: Any) -> None:
        looks.append("a look")
        raise lost

    monkeypatch.setattr(ended_batches, "finish", cut)
    page = bench.handler("page", lambda ctx: None, uses_session=False)
    batch_of(bench, page, 3, page)

    bench.run(until=lambda: looks)

    assert bench.sql("SELECT id FROM bgjob_worker") == []
