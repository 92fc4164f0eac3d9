"""A worker process that is killed around a settlement: the record is there with the end, or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, text

from sqlalchemy_bgjob import enqueue
from support import records_app as app
from support.waiting import wait_until

if TYPE_CHECKING:
    from subprocess import Popen

TESTS = Path(__file__).parents[1]
HANDLERS = (app.with_a_session, app.without, app.given_up)


def worker(engine: Engine, *fault: str) -> Popen[bytes]:
    module = ["sqlalchemy_bgjob.testing.faults", *fault] if fault else ["sqlalchemy_bgjob"]
    command = ["worker", "support.records_app:jobs", "--queue", "default:1"]
    return subprocess.Popen(
        [sys.executable, "-m", *module, *command, "--lease-timeout", "3", "--heartbeat-interval=1"],
        cwd=TESTS,
        env={
            **os.environ,
            "BGJOB_DATABASE_URL": engine.url.render_as_string(hide_password=False),
        },
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("point", ["write", "settle"])
def test_a_job_and_its_record_are_one_commit(engine: Engine, point: str) -> None:
    app.jobs.metadata.create_all(engine)
    ids = [enqueue(engine, handler, id=handler.type).id for handler in HANDLERS]

    victim = worker(engine, "--kill-after", point)
    assert victim.wait(60) == -signal.SIGKILL

    with engine.connect() as connection:
        live = set(connection.scalars(text("SELECT id FROM bgjob_job")))
    ended = {id for id in ids if (found := app.jobs.record(engine, id)) and found.state != "live"}
    assert ended == set(ids) - live
    assert bool(ended) == (point == "settle")

    other = worker(engine)
    try:
        wait_until(lambda: not left(engine), 60)
    finally:
        other.terminate()
        other.wait(60)
    states = {id: app.jobs.wait(engine, id, timeout=0) for id in ids}
    assert [found.state for found in states.values() if found] == [
        "completed",
        "completed",
        "dead",
    ]
    by_victim = {id for id, found in states.items() if str(victim.pid) in said(found)}
    assert by_victim == ended


def left(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT id FROM bgjob_job")))


def said(found: object) -> str:
    """What the run that ended the job has left: the number of its process is in it."""
    return f"{getattr(found, 'result', None)} {getattr(found, 'error', None)}"
