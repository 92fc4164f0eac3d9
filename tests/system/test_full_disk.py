"""What is full: the disk of the server, its notification queue, the connections that it allows."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import enqueue, enqueue_many
from sqlalchemy_bgjob._inspect.health import look
from support import wait_until
from support.databases import private_server
from support.processes import FAST, Fleet
from support.shop import make_tables, note

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres


@pytest.fixture
def small_disk(own_server: EmbeddedPostgres) -> Iterator[Path]:
    """A file system of 24 MiB, for a tablespace."""
    folder = Path(tempfile.mkdtemp(prefix="bgjob-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=True)
    place = folder / "space"
    place.mkdir(mode=0o700)
    own_server._hand_over(folder)
    own_server._hand_over(place)
    try:
        yield place
    finally:
        own_server.stop()
        subprocess.run(["umount", folder], check=True)
        shutil.rmtree(folder)


@pytest.mark.system
def test_a_full_disk_loses_nothing(
    own_server: EmbeddedPostgres, small_disk: Path, tmp_path: Path
) -> None:
    """Enqueue and settlements are refused; once there is room, the same workers go on."""
    engine = create_engine(own_server.url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE TABLESPACE small LOCATION '{small_disk}'"))
        connection.execute(text("ALTER DATABASE template1 SET default_tablespace = small"))
        connection.execute(text("CREATE DATABASE shop TEMPLATE template1"))
        connection.execute(text("ALTER DATABASE shop SET default_tablespace = small"))
    engine.dispose()
    shop = create_engine(own_server.url.rpartition("/")[0] + "/shop")
    with Fleet(shop, tmp_path) as fleet:
        fleet.create_tables()
        process = fleet.start(**FAST)
        ids = [f"job-{n}" for n in range(20)]
        enqueue_many(shop, fleet.app.late, [2.0] * 20, ids=ids)
        with shop.begin() as connection:
            connection.execute(text("CREATE TABLE ballast (filler text)"))
            connection.execute(text("ALTER TABLE ballast ALTER filler SET STORAGE EXTERNAL"))
        fleet.wait_for_starts(10, process)

        fill = text("INSERT INTO ballast SELECT repeat('x', 7000) FROM generate_series(1, :n)")
        with pytest.raises(DBAPIError) as full:  # noqa: PT012 - which one does not matter
            for _ in range(200):
                with shop.begin() as connection:
                    connection.execute(fill, {"n": 100})
        # And what is left, row by row.
        for n in (10, 1):
            while True:
                try:
                    with shop.begin() as connection:
                        connection.execute(fill, {"n": n})
                except DBAPIError:
                    break
        with pytest.raises(DBAPIError) as refused, Session(shop) as session:
            enqueue_many(session, note, ["x" * 100_000] * 300)
        assert {full.value.orig.sqlstate, refused.value.orig.sqlstate} == {"53100"}
        wait_until(lambda: fleet.journal.count("error") > 0, 30, what="an error of the worker")
        assert process.alive

        with shop.begin() as connection:
            connection.execute(text("DROP TABLE ballast"))
        fleet.wait_until_done(60)

        assert process.alive
        fleet.check(ids, with_effects=ids, faults=20)
    shop.dispose()


@pytest.fixture
def crowded() -> Iterator[Engine]:
    """A server whose notification queue is full after half a megabyte."""
    with private_server(max_notify_queue_pages="64") as server:
        engine = create_engine(server.url)
        yield engine
        engine.dispose()


def test_a_full_notification_queue_is_the_enqueuers_to_see(crowded: Engine) -> None:
    """The COMMIT fails, so there is no job; and doctor has told of it before."""
    make_tables(crowded)
    with crowded.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO bgjob_worker"
                " (id, hostname, pid, version, queues, lease_timeout, waits_for)"
                " VALUES (1, '', 1, '', '{}', 30, '[\"default\"]')"
            )
        )
    listener = crowded.connect()
    listener.exec_driver_sql("LISTEN other")
    listener.commit()
    listener.exec_driver_sql("SELECT 1")  # and stays in its transaction
    told: list[str] = []
    with pytest.raises(DBAPIError) as full:  # noqa: PT012 - at which one is the server's business
        for n in range(2_000):
            with crowded.begin() as connection:
                sent = "SELECT pg_notify('noise', :n || repeat('x', 7000))"
                connection.execute(text(sent), {"n": str(n)})
            if n % 10 == 0:
                with crowded.connect() as connection:
                    told += look(connection, ["bgjob_job"]).problems
    assert "notification" in str(full.value.orig).lower()
    assert any("notification queue is" in problem for problem in told)

    with pytest.raises(DBAPIError) as refused:
        enqueue(crowded, note, 1)
    assert "notification" in str(refused.value.orig).lower()
    with crowded.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM bgjob_job")) == 0

    listener.invalidate()
    listener.close()

    def enqueued() -> bool:
        with crowded.connect() as connection:
            look(connection, [])  # it lets the server notice that the queue can be emptied
        try:
            return enqueue(crowded, note, 1).inserted
        except DBAPIError:
            return False

    wait_until(enqueued, 30, what="room in the queue")
