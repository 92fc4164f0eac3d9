"""A worker is killed in the middle of a chunk: nothing is lost, and everything happens once."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import enqueue_many
from support import chunk_app, wait_until
from support.commands import Command

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy_bgjob.testing.faults import KillPoint

DYING = (sys.executable, "-m", "sqlalchemy_bgjob.testing.faults")
COUNT = 20


@pytest.mark.parametrize("point", ["claim", "handler", "write", "settle"])
@pytest.mark.parametrize("kind", ["functions", "coroutines"])
def test_a_worker_killed_mid_chunk_loses_nothing(
    database_url: str, engine: Engine, tmp_path: Path, point: KillPoint, kind: str
) -> None:
    """What the call wrote is committed with the end of its jobs, or not at all."""
    chunk_app.Base.metadata.create_all(engine)
    handler = chunk_app.add if kind == "functions" else chunk_app.add_async
    with Session(engine) as session, session.begin():
        enqueue_many(session, handler, range(COUNT))
    options = ["support.chunk_app:jobs", "--database-url", database_url, "--queue", f"{kind}:1"]

    killed = [*DYING, "--kill-after", point, "worker", *options]
    with Command(tmp_path, program=killed) as dying:
        assert dying.wait() == -signal.SIGKILL, dying.stderr
    with engine.begin() as connection:  # so that nobody waits for the rescue
        connection.execute(text("UPDATE bgjob_worker SET beat_at = now() - interval '1 hour'"))
    with Command(tmp_path, "worker", *options) as living:
        wait_until(lambda: left(engine) == 0, 60, what="the end of all jobs")
        living.signal(signal.SIGTERM)
        assert living.wait() == 0, living.stderr

    with engine.connect() as connection:
        numbers = connection.scalars(select(chunk_app.Added.number).order_by("number")).all()
        assert connection.scalar(select(func.count()).select_from(chunk_app.jobs.DeadJob)) == 0
    assert numbers == list(range(COUNT))


def left(engine: Engine) -> int | None:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(chunk_app.jobs.Job))
