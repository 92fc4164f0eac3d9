"""What a worker says and does while the database can't be had: it waits, and keeps its voice down.

The proxy answers as PostgreSQL does when it starts up, has no room left, or refuses a password.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, make_url, select
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import enqueue
from sqlalchemy_bgjob._worker.listener import REFUSALS
from sqlalchemy_bgjob._worker.loop import VISIBLE_WITHIN
from support import cli_app as app
from support import wait_until, with_driver
from support.processes import ONE, START_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.commands import Command
    from support.processes import Fleet
    from support.proxy import Proxy

TRANSIENT = {
    "57P03": "the database system is starting up",
    "53300": "sorry, too many clients already",
}
FINAL = {
    "28P01": 'password authentication failed for user "postgres"',
    "3D000": 'database "shop" does not exist',
}
DRIVERS = [
    pytest.param("psycopg", marks=pytest.mark.chaos),
    "asyncpg",
    pytest.param("psycopg2", marks=pytest.mark.chaos),
]


def add(engine: Engine, words: str) -> None:
    enqueue(engine, app.note, words)


def wait_for_note(engine: Engine, words: str, command: Command) -> None:
    def there() -> bool:
        with Session(engine) as session:
            return any(found.startswith(words) for found in session.scalars(select(app.Note.words)))

    wait_until(there, 30, what=f"the job {words!r}\n{command.stderr}")


# ---- refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_full_server_is_waited_for_and_a_refusal_is_not(
    tables: Engine, proxy: Proxy, start: Callable[..., Command], driver: str
) -> None:
    """At the start: what passes by itself, and what somebody has to mend."""
    url = with_driver(proxy.url, driver)
    worker = ("worker", "support.cli_app:functions", "--database-url", url)
    proxy.refuse("57P03", TRANSIENT["57P03"])
    waiting = start(*worker)
    for sqlstate, words in TRANSIENT.items():
        proxy.refuse(sqlstate, words)
        before = proxy.refusals
        waiting.says(words)
        wait_until(lambda before=before: proxy.refusals > before + 1, what="further attempts")
    proxy.pass_on()
    add(tables, "after all")
    wait_for_note(tables, "after all", waiting)
    waiting.signal(signal.SIGTERM)
    assert waiting.wait() == 0
    assert "Traceback" not in waiting.stderr

    for sqlstate, words in FINAL.items():
        proxy.refuse(sqlstate, words)
        refused = start(*worker)
        assert refused.wait() == 3, refused.stderr
        assert "Error: the database refuses: " in refused.stderr
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("driver", DRIVERS)
def test_whatever_a_server_says_a_worker_that_runs_tries_again(
    tables: Engine, proxy: Proxy, start: Callable[..., Command], driver: str
) -> None:
    """Even that the password is wrong: while somebody changes it, no process has to end."""
    url = with_driver(proxy.url, driver)
    worker = start("worker", "support.cli_app:functions", "--database-url", url)
    add(tables, "before")
    wait_for_note(tables, "before", worker)

    for sqlstate, words in (TRANSIENT | FINAL).items():
        before = proxy.refusals
        proxy.refuse(sqlstate, words)
        worker.says(words)
        wait_until(lambda before=before: proxy.refusals > before + 1, what="further attempts")
    proxy.pass_on()
    add(tables, "after")

    wait_for_note(tables, "after", worker)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert "Traceback" not in worker.stderr


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_host_that_has_no_address_yet_is_waited_for(
    url_for: Callable[[str], str], start: Callable[..., Command], driver: str
) -> None:
    """A container's name is not known before the container runs."""
    url = make_url(url_for(driver)).set(host="no-such-host.invalid")
    worker = start(
        "worker", "support.cli_app:functions", "--database-url", url.render_as_string(False)
    )
    worker.says("no connection to the database, trying again: ")

    assert worker.alive
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert "Traceback" not in worker.stderr


# ---- an outage ------------------------------------------------------------------------------


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("driver", "seconds"),
    [
        ("asyncpg", 2.0),
        pytest.param("psycopg", 60.0, marks=pytest.mark.chaos),
        pytest.param("asyncpg", 600.0, marks=pytest.mark.chaos),
    ],
)
def test_an_outage_fills_neither_the_log_nor_the_table_of_files(
    tables: Engine, proxy: Proxy, start: Callable[..., Command], driver: str, seconds: float
) -> None:
    """One line for each of its connections, then one in five seconds; and nothing is left open."""
    url = with_driver(proxy.url, driver)
    worker = start("worker", "support.cli_app:functions", "--database-url", url)
    add(tables, "before")
    wait_for_note(tables, "before", worker)
    files, lines = open_files(worker.pid), len(worker.stderr.splitlines())

    proxy.refuse()
    down = time.monotonic()
    most = 0

    def over() -> bool:
        nonlocal most
        most = max(most, open_files(worker.pid))
        return time.monotonic() - down > seconds

    wait_until(over, seconds + 10, what="the outage's end")
    said = worker.stderr.splitlines()[lines:]
    attempts = proxy.refusals
    proxy.pass_on()
    add(tables, "after")
    wait_for_note(tables, "after", worker)
    took = time.monotonic() - down - seconds

    print(f"{attempts} attempts, {len(said)} lines, at most {most} files instead of {files}")
    print("\n".join(said))
    assert attempts > 8
    # Four connections, whose waits double from 50 ms: two to 1 s, two to 5 s. Each wait is at least
    # half of that.
    assert attempts < 2 * (8 + seconds / 0.5) + 2 * (8 + seconds / 2.5)
    # What the drivers say differs by how far an attempt came.
    assert len(said) <= 12 + 3 * seconds / 5
    assert most <= files + 4, "a connection is a file while it is tried"
    assert took < 15.0
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


# ---- LISTEN is refused ----------------------------------------------------------------------


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_a_worker_that_may_not_listen_says_so_once_and_polls(fleet: Fleet, proxy: Proxy) -> None:
    """As some poolers refuse it. It is tried a few times, then rarely; jobs start by polling."""
    proxy.replace('LISTEN "', 'LI5TEN "')
    enqueue(fleet.engine, fleet.app.quick)
    process = fleet.start(url=proxy.url, wait=False, poll_interval=0.5)
    wait_until(lambda: fleet.workers == 1, START_SECONDS, what="its row")
    fleet.wait_until_done(VISIBLE_WITHIN + 2)  # it does not wait for a listener for long
    wait_until(lambda: proxy.replacements >= REFUSALS, 20, what="attempts to listen")
    for n in range(3):
        enqueue(fleet.engine, fleet.app.quick, id=f"job-{n}")
        fleet.wait_until_done(5)

    # Of what fails again and again within five seconds, they hear once.
    wait_until(lambda: fleet.journal.count("error") >= 1, 20, what="what observers hear")
    assert proxy.replacements == REFUSALS
    assert process.log.count("falling back to polling") == 1
    assert "LISTEN is refused (42601)" in process.log
    assert len(process.log.splitlines()) <= 20
    assert process.alive


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_a_listener_that_fails_for_another_reason_is_back_soon(fleet: Fleet, proxy: Proxy) -> None:
    """As on a standby that is being promoted: nobody is to wait for minutes after that."""
    proxy.replace('LISTEN "', 'MOVE   "')
    process = fleet.start(url=proxy.url, wait=False, poll_interval=0.5)
    wait_until(lambda: proxy.replacements > REFUSALS, START_SECONDS, what="attempts to listen")

    proxy.replace('LISTEN "', 'LISTEN "')
    fleet.wait_for(process)

    assert "falling back to polling" not in process.log
