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
    from support.processes import Fleet

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
    parts = [[f"job-{part}-{n:03}" for n in range(150)] for part in range(4)]
    with fleet.engine.begin() as connection:
        schema.downgrade(connection, from_version=2, to_version=1)

    def produce(ids: list[str]) -> None:
        enqueue_many(fleet.engine, fleet.app.effect, [None] * len(ids), ids=ids)

    def produce_by_the_older(ids: list[str]) -> None:
        url = fleet.engine.url.render_as_string(hide_password=False)
        arguments = [url, str(fleet.journal.path), fleet.variant.kind, *ids]
        subprocess.run(
            [sys.executable, "-c", PRODUCE, *arguments],
            cwd=older / "tests",
            env={**os.environ, **of_checkout(older)},
            check=True,
        )

    first = fleet.start(checkout=older)
    produce_by_the_older(parts[0])
    fleet.wait_for_starts(20, first)

    with fleet.engine.connect() as connection:
        assert schema.migrate_online(connection) == 1
    assert fleet.scalar("SELECT to_regclass('bgjob_job_claim_idx') IS NOT NULL")
    new = fleet.start()
    produce(parts[1])
    fleet.wait_for_starts(20, new)
    first.kill()
    second = fleet.start(checkout=older)
    produce_by_the_older(parts[2])
    fleet.wait_for_starts(20, second)
    new.kill()
    produce(parts[3])
    fleet.wait_until_done(120)

    assert second.alive
    every = [id for part in parts for id in part]
    fleet.check(every, with_effects=every, faults=2)


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
