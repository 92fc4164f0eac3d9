"""Workers are killed where a batch ends: what follows it is enqueued, and once."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import enqueue_many
from support import batch_app as app
from support import wait_until
from support.commands import Command

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy_bgjob.testing.faults import KillPoint

DYING = (sys.executable, "-m", "sqlalchemy_bgjob.testing.faults")
COUNT = 5


@pytest.mark.parametrize(
    ("kind", "point"),
    [
        ("functions", "claim"),
        ("functions", "write"),
        ("functions", "settle"),
        ("coroutines", "settle"),
        ("plain", "settle"),
    ],
)
def test_what_follows_is_enqueued_though_a_worker_is_killed(
    database_url: str, engine: Engine, tmp_path: Path, kind: str, point: KillPoint
) -> None:
    """Also by the last end of a batch, after which nobody else would look."""
    app.Base.metadata.create_all(engine)
    page, bind = {
        "functions": (app.page, app.bind),
        "coroutines": (app.page_async, app.bind_async),
        "plain": (app.plain, app.bind),
    }[kind]
    with Session(engine) as session, session.begin():
        for n in range(2):
            with app.jobs.batch(session, then=bind.job(f"bound {n}")) as batch:
                enqueue_many(session, page, [f"page {n}"] * COUNT, batch=batch)
    queues = {"functions", kind}
    options = ["support.batch_app:jobs", "--database-url", database_url]
    options += [word for queue in sorted(queues) for word in ("--queue", f"{queue}:1")]
    options += ["--health-interval", "0.2"]

    one_by_one = kind != "plain" and point != "claim"
    skip = str(COUNT - 1 if one_by_one else 0)
    killed = [*DYING, "--kill-after", point, "--skip", skip, "worker", *options]
    with Command(tmp_path, program=killed) as dying:
        assert dying.wait() == -signal.SIGKILL, dying.stderr
    with engine.begin() as connection:  # so that nobody waits for the rescue
        connection.execute(text("UPDATE bgjob_worker SET beat_at = now() - interval '1 hour'"))
    with Command(tmp_path, "worker", *options) as living:
        wait_until(lambda: unfinished(engine) == 0 and left(engine) == 0, 60, what="both batches")
        living.signal(signal.SIGTERM)
        assert living.wait() == 0, living.stderr

    with engine.connect() as connection:
        done = Counter(connection.scalars(select(app.Done.what)))
    pages = {} if kind == "plain" else {f"page {n}": COUNT for n in range(2)}
    assert done == pages | {"bound 0": 1, "bound 1": 1}


def left(engine: Engine) -> int | None:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(app.jobs.Job))


def unfinished(engine: Engine) -> int | None:
    batch = app.jobs.Batch
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).where(batch.finished_at.is_(None)))
