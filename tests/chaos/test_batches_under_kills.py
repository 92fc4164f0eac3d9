"""Batches that are made, worked on and finished while workers are killed."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import enqueue_many
from support import batch_app as app
from support import wait_until
from support.commands import Command

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

WORKERS, PAGES, SECONDS = 3, 10, 30.0


@pytest.mark.parametrize("kind", ["functions", "coroutines"])
def test_each_batch_is_followed_once(
    database_url: str, engine: Engine, tmp_path: Path, kind: str
) -> None:
    """Each page once, and then what binds them, once; whoever is killed, and when."""
    app.Base.metadata.create_all(engine)
    page, bind = {
        "functions": (app.page, app.bind),
        "coroutines": (app.page_async, app.bind_async),
    }[kind]
    options = ["support.batch_app:jobs", "--database-url", database_url, "--queue", f"{kind}:4"]
    options += ["--health-interval", "0.5", "--lease-timeout", "3", "--heartbeat-interval", "0.3"]
    made = 0
    with ExitStack() as stack:

        def start(number: int) -> Command:
            folder = tmp_path / f"worker{number}"
            folder.mkdir()
            return stack.enter_context(Command(folder, "worker", *options))

        workers = [start(number) for number in range(WORKERS)]
        started, ends_at = WORKERS, time.monotonic() + SECONDS
        while time.monotonic() < ends_at:
            for _ in range(20):
                add_batch(engine, page, bind, made)
                made += 1
            time.sleep(random.uniform(0.1, 0.6))
            with workers.pop(0):  # leaving the block kills it
                pass
            workers.append(start(started))
            started += 1
        wait_until(lambda: left(engine) == 0, 120, what="the end of all batches")

    with engine.connect() as connection:
        rows = connection.execute(select(app.Done.what, app.Done.id).order_by(app.Done.id)).all()
    done = Counter(what for what, _ in rows)
    expected = {f"page {n} of {batch}": 1 for batch in range(made) for n in range(PAGES)}
    assert done == expected | {f"bound {batch}": 1 for batch in range(made)}
    last: dict[str, int] = {}
    for what, id in rows:
        last[what.split()[-1]] = id
        if what.startswith("bound"):
            assert last[what.split()[-1]] == id
    print(f"{made} batches, {started} workers")


def add_batch(engine: Engine, page: Any, bind: Any, number: int) -> None:
    with (
        Session(engine) as session,
        session.begin(),
        app.jobs.batch(session, then=bind.job(f"bound {number}")) as batch,
    ):
        pages = [f"page {n} of {number}" for n in range(PAGES)]
        enqueue_many(session, page, pages, batch=batch)


def left(engine: Engine) -> int | None:
    """Jobs, and batches that are not finished."""
    jobs = select(func.count()).select_from(app.jobs.Job).scalar_subquery()
    batch = app.jobs.Batch
    batches = select(func.count()).where(batch.finished_at.is_(None)).scalar_subquery()
    with engine.connect() as connection:
        return connection.scalar(select(jobs + batches))
