"""One of the workers looks at the server now and then, and tells what keeps it from cleaning up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text

from sqlalchemy_bgjob import Health, Observer
from sqlalchemy_bgjob._inspect import health
from sqlalchemy_bgjob._lifecycle import workers
from sqlalchemy_bgjob._sql import Statements
from sqlalchemy_bgjob.testing.points import at
from support import wait_until
from support.shop import jobs, make_tables
from support.standby import ask, standby_of

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres
    from support.running import Workbench
    from support.tuning import Tune


class Samples(Observer):
    def __init__(self) -> None:
        self.seen: list[Health] = []

    def health_sampled(self, health: Health) -> None:
        self.seen.append(health)


def nothing(*_: Any) -> None:
    """The body of a handler."""


@pytest.mark.core
def test_a_worker_names_who_holds_vacuum_back(
    bench: Workbench, tune: Tune, caplog: pytest.LogCaptureFixture
) -> None:
    tune(health, HELD_BACK_AFTER=0.0)
    caplog.set_level(logging.WARNING, logger="sqlalchemy_bgjob")
    samples = Samples()
    bench.enqueue(bench.handler("plain", nothing))
    report = create_engine(bench.outside.url, connect_args={"application_name": "report"})
    with report.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ")
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()

        def told() -> bool:
            return any(s.holder and s.holder.pid == pid and s.problems for s in samples.seen)

        bench.run(health_interval=0.05, observers=(samples,), until=told)
    report.dispose()

    holder = next(s.holder for s in samples.seen if s.holder is not None and s.holder.pid == pid)
    assert (holder.kind, holder.name) == ("session", "report")
    assert holder.seconds is not None
    assert 0 < holder.seconds < 60
    assert any(f"session {pid} (report" in message for message in caplog.messages)


def test_it_tells_how_long_claims_took(bench: Workbench) -> None:
    samples = Samples()
    bench.enqueue(bench.handler("plain", nothing))
    bench.run(
        health_interval=0.05,
        observers=(samples,),
        until=lambda: any(s.slowest_claim is not None for s in samples.seen),
    )
    slowest = next(s.slowest_claim for s in samples.seen if s.slowest_claim is not None)
    assert 0 < slowest < 10


def test_a_look_at_the_health_that_fails_is_repeated(bench: Workbench) -> None:
    failures = [RuntimeError("no")]

    def fail_once(sweep: str) -> None:
        if sweep == "health" and failures:
            raise failures.pop()

    bench.handler("plain", nothing)
    samples = Samples()
    with at("sweeping", fail_once):
        ran = bench.run(
            health_interval=0.05, observers=(samples,), until=lambda: bool(samples.seen)
        )
    assert failures == []
    assert [event.subject for event in ran.named("worker_error")] == ["RuntimeError"]


@pytest.mark.core
@pytest.mark.parametrize(
    "first",
    ["beats", "is silent", "is lost"],
)
def test_one_worker_looks_for_all(first: str, engine: Engine) -> None:
    make_tables(engine)
    add = (
        "INSERT INTO bgjob_worker"
        " (id, hostname, pid, version, queues, lease_timeout, beat_at, lost_at)"
        " VALUES (:id, '', 1, '', '{}', 30, clock_timestamp() - make_interval(secs => :ago),"
        " CASE WHEN :lost THEN clock_timestamp() END)"
    )
    one = {"id": 1, "ago": 31 if first == "is silent" else 29, "lost": first == "is lost"}
    with engine.begin() as connection:
        connection.execute(text(add), [one, {"id": 2, "ago": 0, "lost": False}])
    statements = Statements(jobs.models)

    with engine.connect() as connection:
        found = {id: workers.sample_health(connection, statements, worker_id=id) for id in (1, 2)}

    looks = [id for id, health in found.items() if health is not None]
    assert looks == [1 if first == "beats" else 2]


def test_a_slot_far_behind_is_not_hidden_by_a_session(
    own_server: EmbeddedPostgres, tune: Tune
) -> None:
    tune(health, SLOT_BEHIND=-1)
    engine = create_engine(own_server.url)
    xmin = "SELECT xmin::text FROM pg_replication_slots"
    with standby_of(own_server, slot="behind"), engine.connect() as busy:
        wait_until(lambda: ask(own_server, xmin), 60, what="the feedback of the standby")
        busy.execute(text("SELECT pg_current_xact_id()"))
        with engine.connect() as connection:
            holder = health.look(connection, []).holder
    engine.dispose()

    assert holder is not None
    assert (holder.kind, holder.name) == ("replication slot", "behind")
