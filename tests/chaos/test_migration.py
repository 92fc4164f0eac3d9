"""Version 2 of the tables comes while workers of version 1 run, beside many rows."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, text

from sqlalchemy_bgjob import enqueue_many, schema
from support import wait_until
from support.processes import TWO, of_checkout

if TYPE_CHECKING:
    from support.processes import Fleet, WorkerProcess

pytestmark = pytest.mark.chaos

BEFORE_VERSION_2 = "fabbdc7"
"""The last commit whose workers need version 1."""

PRODUCE = """
import sys
from sqlalchemy import create_engine
from sqlalchemy_bgjob import enqueue_many
from support.worker_app import Journal, make_app

url, journal, kind, *ids = sys.argv[1:]
app = make_app(kind, Journal(journal))
enqueue_many(create_engine(url), app.effect, [None] * len(ids), ids=ids)
"""


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of the release before."""
    folder = tmp_path_factory.mktemp("older")
    command = ["git", "archive", BEFORE_VERSION_2, "sqlalchemy_bgjob", "tests/support"]
    packed = subprocess.run(
        command, cwd=Path(__file__).parents[2], check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("variant", TWO, ids=str)
def test_old_and_new_workers_share_a_queue_while_it_is_migrated(fleet: Fleet, older: Path) -> None:
    """Nothing is lost, nothing refused, and each rescues the jobs of the other."""
    every: list[str] = []

    def ids(count: int) -> list[str]:
        new = [f"job-{len(every) + n:05}" for n in range(count)]
        every.extend(new)
        return new

    def produce_until_started_by(process: WorkerProcess) -> None:
        while len(fleet.started_by(process)) < 20:
            new = ids(100)
            enqueue_many(fleet.engine, fleet.app.effect, [None] * len(new), ids=new)
            fleet.wait_until_done(60)

    def produce_by_the_older() -> None:
        url = fleet.engine.url.render_as_string(hide_password=False)
        arguments = [url, str(fleet.journal.path), fleet.variant.kind, *ids(100)]
        subprocess.run(
            [sys.executable, "-c", PRODUCE, *arguments],
            cwd=older / "tests",
            env={**os.environ, **of_checkout(older)},
            check=True,
        )

    with fleet.engine.begin() as connection:
        schema.downgrade(connection, from_version=2, to_version=1)
    first = fleet.start(checkout=older)
    produce_until_started_by(first)
    produce_by_the_older()
    with fleet.engine.connect() as connection:
        assert schema.migrate_online(connection) == 1
    assert fleet.scalar("SELECT to_regclass('bgjob_job_claim_idx') IS NOT NULL")
    new = fleet.start()
    produce_by_the_older()
    produce_until_started_by(new)

    for holder, other in ((first, new), (new, None)):
        if other is None:
            fleet.start(checkout=older)
        enqueue_many(fleet.engine, fleet.app.nap, [600.0] * 8, ids=(naps := ids(8)))
        wait_until(lambda naps=naps: set(naps) <= set(fleet.journal.starts()), what="all naps")
        held = set(fleet.claimed_by(holder))
        holder.kill()
        wait_until(lambda held=held: not held & left(fleet), 60, what="the rescue of its jobs")
    fleet.journal.release()
    fleet.wait_until_done(120)

    effects = [id for id in every if id in fleet.effects()]
    fleet.check(every, with_effects=effects, faults=2)


def left(fleet: Fleet) -> set[str]:
    return {row.id for row in fleet.rows("SELECT id FROM bgjob_job")}


def test_a_migration_of_a_million_jobs_holds_nobody_up(engine: Engine) -> None:
    """Enqueues go on beside it, and beside a reader that keeps its snapshot for seconds."""
    with engine.begin() as connection:
        schema.upgrade(connection, from_version=0, to_version=1)
        connection.execute(
            text(
                "INSERT INTO bgjob_job (id, queue, type)"
                " SELECT 'job-' || n, 'q' || n % 10, 't' FROM generate_series(1, 1000000) AS n"
            )
        )
    waits: list[float] = []
    over = threading.Event()

    def enqueue() -> None:
        insert = text("INSERT INTO bgjob_job (id, queue, type) VALUES (:id, 'q', 't')")
        while not over.is_set():
            begun = time.monotonic()
            with engine.begin() as connection:
                connection.execute(insert, {"id": f"new-{len(waits)}"})
            waits.append(time.monotonic() - begun)
            time.sleep(0.02)

    def migrate() -> int:
        with engine.connect() as connection:
            return schema.migrate_online(connection)

    with ThreadPoolExecutor() as pool, engine.connect() as reader:
        producing = pool.submit(enqueue)
        try:
            reader.execution_options(isolation_level="REPEATABLE READ")
            reader.execute(text("SELECT count(*) FROM bgjob_job"))
            migrating = pool.submit(migrate)
            before = len(waits)
            wait_until(lambda: len(waits) > before + 100, 60, what="enqueues beside the reader")
            assert not migrating.done()
            reader.rollback()
            wait_until(migrating.done, 300, what="the end of the migration")
            assert migrating.result() == 1
        finally:
            over.set()
        producing.result()

    print(f"{len(waits)} enqueues, the slowest took {max(waits):.2f} s")
    assert max(waits) < 2
    with engine.connect() as connection:
        assert schema.db_version(connection) == 2
