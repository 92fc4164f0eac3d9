"""A process that ends at each point of a job's life: nothing is lost, and effects happen once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, get_args

import pytest

from sqlalchemy_bgjob import enqueue, enqueue_many
from sqlalchemy_bgjob.testing import faults
from support.commands import TESTS
from support.processes import ONE

if TYPE_CHECKING:
    from support.processes import Fleet

IDS = [f"job-{n}" for n in range(5)]


@pytest.mark.parametrize(
    "point",
    [
        "claim",
        pytest.param("handler", marks=pytest.mark.chaos),
        "write",
        "settle",
        pytest.param("beat", marks=pytest.mark.chaos),  # it has to wait for a heartbeat
    ],
)
@pytest.mark.parametrize("variant", ONE, ids=str)
def test_a_worker_that_dies_there_loses_nothing(fleet: Fleet, point: faults.KillPoint) -> None:
    """Each job has its effect once, and was started at most twice; at the default settings."""
    # Its first beats are at the start, where there are no jobs yet.
    later = {"dies_skip": 6, "heartbeat_interval": 0.5} if point == "beat" else {}
    victim = fleet.start(slots=3, dies_after=point, **later)
    enqueue_many(fleet.engine, fleet.app.hold, [8.0 if later else 0.0] * 5, ids=IDS)
    victim.dies()

    fleet.start(slots=5)
    fleet.wait_until_done()

    fleet.check(IDS, with_effects=IDS, faults=1)


@pytest.mark.parametrize(
    ("handler", "point"),
    [
        ("quick", "write"),
        pytest.param("quick", "settle", marks=pytest.mark.chaos),
        ("give_up", "write"),
        ("give_up", "settle"),
    ],
)
@pytest.mark.parametrize("variant", ONE, ids=str)
def test_a_batch_that_was_cut_short_is_settled_again(
    fleet: Fleet, handler: str, point: faults.KillPoint
) -> None:
    """Settlements without a session, many in one transaction: all of them count, or none.

    A job is never both queued and dead, and dead once.
    """
    victim = fleet.start(slots=5, dies_after=point)
    enqueue_many(fleet.engine, getattr(fleet.app, handler), [None] * 5, ids=IDS)
    victim.dies()
    left = fleet.jobs_left
    both = "SELECT count(*) FROM bgjob_job JOIN bgjob_dead_job ON job_id = bgjob_job.id"
    assert fleet.scalar(both) == 0

    fleet.start(slots=5)
    fleet.wait_until_done()

    fleet.check(IDS, faults=1)
    dead = fleet.rows("SELECT job_id FROM bgjob_dead_job ORDER BY job_id")
    assert [row.job_id for row in dead] == (IDS if handler == "give_up" else [])
    again = sum(len(lines) - 1 for lines in fleet.journal.starts().values())
    assert left == 5 if point == "write" else again < 5


def test_the_command_ends_where_it_is_told(fleet: Fleet) -> None:
    """``python -m sqlalchemy_bgjob.testing.faults`` is the worker's command, but for its end."""
    enqueue(fleet.engine, fleet.app.quick, id="job")
    command = [sys.executable, "-m", "sqlalchemy_bgjob.testing.faults", "--kill-after", "claim"]
    worker = ["worker", "support.cli_app:functions", "--queue", "default:1"]
    url = fleet.engine.url.render_as_string(hide_password=False)

    ended = subprocess.run(
        [*command, *worker],
        cwd=TESTS,
        env={**os.environ, "BGJOB_DATABASE_URL": url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert fleet.scalar("SELECT attempt FROM bgjob_job WHERE claimed_by IS NOT NULL") == 1


def test_the_command_says_what_it_takes() -> None:
    command = [sys.executable, "-m", "sqlalchemy_bgjob.testing.faults", "--kill-after", "lunch"]
    ended = subprocess.run([*command, "worker"], capture_output=True, timeout=60, check=False)

    assert ended.returncode == 2
    for point in faults.KILL_POINTS:
        assert f"'{point}'" in ended.stderr.decode()


def test_points_are_those_of_the_type() -> None:
    assert get_args(faults.KillPoint) == faults.KILL_POINTS
    unknown: Any = "lunch"
    with pytest.raises(ValueError, match="can be one of claim, handler, write, settle, beat"):
        faults.kill_worker_after(unknown).__enter__()
