"""The server's disk is full: nothing is lost."""

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

from sqlalchemy_bgjob import enqueue_many
from support import wait_until
from support.processes import FAST, Fleet
from support.shop import note

if TYPE_CHECKING:
    from collections.abc import Iterator

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
