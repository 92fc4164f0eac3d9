"""The primary dies and a standby takes over, with all that was committed and replayed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import create_engine

from sqlalchemy_bgjob import enqueue_many
from support import wait_until
from support.processes import ONE, THREADS, Fleet, Variant
from support.standby import ask, standby_of, wait_for_replay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres


LISTENS = """
    SELECT count(*) = 1 FROM bgjob_worker w JOIN pg_stat_activity s
    ON s.pid = w.listener_pid AND s.backend_start = w.listener_started_at
"""
HEART_IS_NAMED = """
    SELECT count(*) = 1 FROM bgjob_worker w JOIN pg_stat_activity s
    ON s.application_name = 'bgjob/' || w.id AND s.query LIKE 'UPDATE %bgjob_worker SET beat_at%'
"""


@pytest.fixture
def standby(own_server: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    with standby_of(own_server) as standby:
        yield standby


def engine_of_the_writable(*servers: EmbeddedPostgres) -> Engine:
    """Its URL names all servers, and wants the one that can be written to."""
    hosts = "&".join(f"host=127.0.0.1:{server.port}" for server in servers)
    url = f"postgresql+psycopg://postgres@/postgres?{hosts}&target_session_attrs=read-write"
    return create_engine(url, pool_pre_ping=True)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "variant",
    [THREADS, pytest.param(Variant("async", "psycopg"), marks=pytest.mark.chaos)],
    ids=str,
)
def test_workers_follow_to_the_new_primary(
    own_server: EmbeddedPostgres, standby: EmbeddedPostgres, tmp_path: Path, variant: Variant
) -> None:
    """The process stays."""
    engine = engine_of_the_writable(own_server, standby)
    with Fleet(engine, tmp_path, variant) as fleet:
        fleet.create_tables()
        process = fleet.start()
        held = [f"held-{n}" for n in range(4)]
        enqueue_many(engine, fleet.app.late, [4.0] * 4, ids=held)
        fleet.wait_for_starts(4, process)
        ids = [f"job-{n:03}" for n in range(100)]
        enqueue_many(engine, fleet.app.effect, [None] * 100, delay=3.0, ids=ids)
        wait_for_replay(own_server, standby)

        own_server._halt("immediate")
        ask(standby, "SELECT pg_promote()")
        up = time.monotonic()
        engine.dispose()
        fleet.wait_until_done(60)

        print(f"all done {time.monotonic() - up:.1f} s after the promotion")
        assert process.alive
        fleet.check([*ids, *held], with_effects=[*ids, *held], faults=1)
        assert {line["crashes"] for line in fleet.journal.read("start")} == {0}
    engine.dispose()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("variant", ONE, ids=str)
def test_a_worker_listens_where_it_writes(
    own_server: EmbeddedPostgres, standby: EmbeddedPostgres, tmp_path: Path, variant: Variant
) -> None:
    """The old primary is up and read-only: no session there ends, and none hears of a job."""
    engine = engine_of_the_writable(own_server, standby)
    with Fleet(engine, tmp_path, variant) as fleet:
        fleet.create_tables()
        process = fleet.start(poll_interval=3_600.0)
        enqueue_many(engine, fleet.app.effect, [None], ids=["before"])
        wait_until(lambda: fleet.jobs_left == 0, what="the job before")

        engine.dispose()
        with psycopg.connect(own_server.url.replace("+psycopg", ""), autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        ask(own_server, "SELECT pg_reload_conf()")
        wait_until(
            lambda: ask(own_server, "SHOW default_transaction_read_only") == "on", what="the old"
        )
        wait_for_replay(own_server, standby)
        ask(standby, "SELECT pg_promote()")
        wait_until(lambda: ask(standby, LISTENS), 60, what="a listener on the new primary")
        named = ask(standby, HEART_IS_NAMED)

        enqueue_many(engine, fleet.app.effect, [None], ids=["after"])
        wait_until(lambda: fleet.jobs_left == 0, 60, what="the job after")
        assert process.alive
        assert named
        fleet.check(["before", "after"], with_effects=["before", "after"], faults=1)
    engine.dispose()


def test_a_worker_on_a_standby_is_refused_until_it_is_promoted(
    own_server: EmbeddedPostgres, standby: EmbeddedPostgres, tmp_path: Path
) -> None:
    primary = create_engine(own_server.url)
    with Fleet(primary, tmp_path) as fleet:
        fleet.create_tables()
        enqueue_many(primary, fleet.app.effect, [None], ids=["one"])
        wait_for_replay(own_server, standby)
        refused = fleet.start(url=standby.url, wait=False)
        assert refused.wait() != 0
        assert "pg_is_in_recovery" in refused.log
    own_server._halt("fast")
    ask(standby, "SELECT pg_promote()")
    promoted = create_engine(standby.url)
    with Fleet(promoted, tmp_path) as fleet:
        fleet.start()
        wait_until(lambda: fleet.jobs_left == 0, what="the job")
    promoted.dispose()
    primary.dispose()
