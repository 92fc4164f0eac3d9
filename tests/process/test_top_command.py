"""``top``: drawn in a pseudo-terminal as in one over ssh, and printed once where there is none."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text, update

from sqlalchemy_bgjob._inspect.glance import Glance, glance, rates
from sqlalchemy_bgjob._inspect.queues import QueueInfo
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob.cli.top import fitting, headline
from support import cli_app as app
from support.cli import add, run
from support.commands import TESTS
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from support.commands import Command
    from support.proxy import Proxy

pytestmark = pytest.mark.keeps_tables

ENTERS_THE_SCREEN = "\x1b[?1049h"
LEAVES_THE_SCREEN = "\x1b[?1049l"


class Terminal:
    """A command in a pseudo-terminal: what it has drawn, keys for it, and its window.

    With *has_shell* it is a job of this process, as of a shell; else a session of its own.
    """

    def __init__(self, *arguments: str, has_shell: bool = False, **environment: str) -> None:
        self._master, slave = pty.openpty()
        self.resize(30, 120)
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sqlalchemy_bgjob", *arguments],
            cwd=TESTS,
            env={**os.environ, "TERM": "xterm-256color", **environment},
            stdin=slave,
            stdout=slave,
            stderr=subprocess.PIPE,
            start_new_session=not has_shell,
            process_group=0 if has_shell else None,
        )
        self._slave, self._drawn = slave, b""

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    @property
    def drawn(self) -> str:
        """All that it has written so far."""
        while select.select([self._master], [], [], 0)[0]:
            self._drawn += os.read(self._master, 65_536)
        return self._drawn.decode()

    def shows(self, words: str, *, after: int = 0) -> int:
        """Wait until it has drawn this later than *after*; how much it has drawn by then."""
        wait_until(
            lambda: words in self.drawn[after:] or self.process.poll() is not None, 60, what=words
        )
        assert words in self.drawn[after:], (self.drawn, self.process.stderr)
        return len(self.drawn)

    @property
    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def is_stopped(self) -> bool:
        assert self.drawn  # what it draws must be read, or it waits for that
        found = os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
        return found is not None

    def ends(self) -> int:
        """Its exit code, having given the terminal back as it was."""

        def is_over() -> bool:
            assert self.drawn  # what it draws must be read, or it waits for that
            return self.process.poll() is not None

        wait_until(is_over, 60, what="its end")
        assert LEAVES_THE_SCREEN in self.drawn
        assert self.settings == self.before
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def terminal(database_url: str) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def top(*arguments: str, url: str = database_url, **options: Any) -> Terminal:
        opened.append(Terminal("top", "--database-url", url, *arguments, **options))
        return opened[-1]

    yield top
    for one in opened:
        one.close()


def test_it_is_drawn_again_until_somebody_quits(
    tables: Engine, terminal: Callable[..., Terminal]
) -> None:
    """What comes meanwhile is seen, also in a smaller window; the terminal is given back."""
    add(tables, app.note, "x", queue="mail")
    with tables.begin() as connection:
        running = app.functions.models.job
        connection.execute(update(running).values(claimed_by=7, attempt=1))
    top = terminal("--interval", "0.2")

    top.shows("0 due, 1 running")
    top.shows("note")
    add(tables, app.note, "x", queue="re\x1b[31mports")
    at = top.shows("re\\x1b[31mports")
    assert "no worker" in top.drawn
    top.shows("/s in", after=at)

    for number in range(60):
        add(tables, app.note, "x", queue=f"queue-{number:02}")
    top.resize(24, 60)
    top.process.send_signal(signal.SIGWINCH)
    top.shows("more", after=at)

    top.press(b"q")
    assert top.ends() == 0


@pytest.mark.parametrize(
    ("number", "driver"),
    [
        *((signal.SIGINT, "psycopg"), (signal.SIGINT, "asyncpg")),
        *((signal.SIGTERM, "asyncpg"), (signal.SIGQUIT, "psycopg")),
    ],
)
def test_ctrl_c_is_an_end_as_well(
    tables: Engine,
    terminal: Callable[..., Terminal],
    url_for: Callable[[str], str],
    number: signal.Signals,
    driver: str,
) -> None:
    """Not at the next look only."""
    top = terminal("--interval", "600", url=url_for(driver))
    top.shows("0 due")

    top.process.send_signal(number)

    assert top.ends() == 0


def test_the_shell_has_the_terminal_while_it_is_stopped(
    tables: Engine, terminal: Callable[..., Terminal]
) -> None:
    """As by Ctrl-Z, and ``fg`` after that."""
    top = terminal("--interval", "600", has_shell=True)
    top.shows("0 due")

    top.process.send_signal(signal.SIGTSTP)
    wait_until(top.is_stopped, 60, what="the stop")
    assert LEAVES_THE_SCREEN in top.drawn
    assert top.settings == top.before

    at = len(top.drawn)
    top.process.send_signal(signal.SIGCONT)
    top.shows("0 due", after=at)
    assert top.settings != top.before
    top.press(b"q")
    assert top.ends() == 0


def test_ctrl_z_does_nothing_where_there_is_no_shell(
    tables: Engine, terminal: Callable[..., Terminal], url_for: Callable[[str], str]
) -> None:
    """As in a container that runs only this: nobody could let it go on."""
    top = terminal("--interval", "600", url=url_for("asyncpg"))
    top.shows("0 due")

    at = len(top.drawn)
    top.process.send_signal(signal.SIGTSTP)
    top.shows(ENTERS_THE_SCREEN, after=at)
    top.shows("0 due", after=at)
    assert not top.is_stopped()

    top.press(b"q")
    assert top.ends() == 0


def test_space_looks_at_once(
    tables: Engine, terminal: Callable[..., Terminal], url_for: Callable[[str], str]
) -> None:
    """On a driver of asyncio, too."""
    top = terminal("--interval", "60", url=url_for("asyncpg"))
    top.shows("0 due")

    add(tables, app.note, "x", queue="mail")
    top.press(b" ")
    top.shows("1 due")
    top.press(b"Q")

    assert top.ends() == 0


def test_it_goes_on_when_the_database_is_back(
    tables: Engine, terminal: Callable[..., Terminal], proxy: Proxy
) -> None:
    top = terminal("--interval", "0.1", url=proxy.url)
    top.shows("0 due")

    proxy.refuse()
    at = top.shows("the database refuses: ")
    proxy.pass_on()
    add(tables, app.note, "x", queue="mail")
    top.shows("1 due", after=at)

    top.press(b"q")
    assert top.ends() == 0


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ([], {"TERM": "dumb"}, "a terminal of type 'dumb' can't be drawn on; use `top --once`"),
        (["--interval", "0"], {}, "--interval 0 is not between 0.1 s and a day"),
        (["--interval", "1000000d"], {}, "is not between 0.1 s and a day"),
        (["--table-prefix", "no_"], {}, "no_job"),
    ],
)
def test_what_is_wrong_is_said_and_no_screen_is_left(
    tables: Engine,
    terminal: Callable[..., Terminal],
    arguments: list[str],
    environment: dict[str, str],
    words: str,
) -> None:
    top = terminal(*arguments, **environment)
    _, err = top.process.communicate(timeout=60)

    assert top.process.returncode == (4 if "--table-prefix" in arguments else 2)
    assert words in err.decode()
    assert "Traceback" not in err.decode()
    assert ENTERS_THE_SCREEN not in top.drawn


def test_without_a_terminal_it_says_what_to_use(
    tables: Engine, database_url: str, start: Callable[..., Command]
) -> None:
    command = start("top", BGJOB_DATABASE_URL=database_url)

    assert command.wait() == 2
    assert "top needs a terminal to draw on; use `stats --json`, or `top --once`" in command.stderr


def test_once_prints_what_there_is(
    tables: Engine, database_url: str, start: Callable[..., Command]
) -> None:
    for number in range(3):
        add(tables, app.note, "x", queue="mail", id=f"mail-{number}")
    app.functions.pause(tables, "mail", by="ada")

    command = start("top", "--once", BGJOB_DATABASE_URL=database_url)

    assert command.wait() == 0, command.stderr
    assert "  3 due, 0 running\n" in command.stdout
    (mail,) = [line for line in command.stdout.splitlines() if line.startswith("mail ")]
    assert mail.split()[:6] == ["mail", "3", "0", "0", "0", "0"]
    assert mail.endswith("paused")
    assert "\x1b" not in command.stdout


def test_its_interval_can_be_set(database_url: str, in_process: None) -> None:
    code, out, _ = run("config", "top", BGJOB_INTERVAL="5s", BGJOB_DATABASE_URL=database_url)

    assert code == 0
    assert re.search(r"^interval +5\.0 +BGJOB_INTERVAL$", out, re.MULTILINE)


# ---- what it shows ------------------------------------------------------------------------------


def test_a_look_changes_nothing_and_reads_what_there_is(tables: Engine) -> None:
    add(tables, app.note, "x", queue="mail")
    models = app.functions.models
    with tables.connect() as connection, connection.begin():
        connection.execute(text("SET TRANSACTION READ ONLY"))
        seen = glance(connection, models, statements_of(models))

    assert [(it.queue, it.due) for it in seen.queues] == [("mail", 1)]
    assert (seen.workers, seen.running) == ([], [])


def test_what_comes_and_goes_is_counted(tables: Engine) -> None:
    """By the statistics of the server, which come a second late."""
    models = app.functions.models

    def look() -> Glance:
        with tables.connect() as connection, connection.begin():
            return glance(connection, models, statements_of(models))

    before = look()
    for number in range(5):
        add(tables, app.note, "x", id=f"{number}")
    with tables.begin() as connection:
        connection.execute(models.job.delete().where(models.job.c.id.in_(["0", "1"])))

    wait_until(lambda: look().deleted - before.deleted == 2, 30, what="the statistics")
    after = look()
    assert after.inserted - before.inserted == 5
    found = rates(before, after)
    assert found is not None
    assert found.arrived / found.left == pytest.approx(2.5)


def queue(name: str, due: int, *, stopped: bool = False) -> QueueInfo:
    return QueueInfo(name, due, 0, 0, 1, 10, None, 0.0, stopped, None)


def seen(seconds: float, inserted: int, deleted: int, *queues: QueueInfo) -> Glance:
    at = datetime(2026, 11, 30, tzinfo=UTC) + timedelta(seconds=seconds)
    return Glance(at, [*queues], [], [], inserted, deleted)


def test_rates_are_differences_a_second() -> None:
    before = seen(0, 100, 50, queue("a", 10), queue("b", 10, stopped=True))
    after = seen(2, 160, 60, queue("a", 4), queue("b", 10), queue("c", 3))

    found = rates(before, after)

    assert found is not None
    assert (found.arrived, found.left, found.growth) == (30.0, 5.0, {"a": -3.0})
    assert headline(after, found) == "2026-11-30 00:00:02Z  17 due, 0 running, 30.0/s in, 5.0/s out"


@pytest.mark.parametrize("after", [seen(2, 3, 60), seen(2, 160, 3), seen(0, 160, 60)])
def test_statistics_that_began_anew_give_no_rates(after: Glance) -> None:
    assert rates(seen(0, 100, 50), after) is None


@pytest.mark.parametrize(
    ("lengths", "room", "expected"),
    [
        ([3, 2, 1], 20, [3, 2, 1]),
        ([50, 2, 50], 20, [9, 2, 9]),
        ([50, 50, 50], 20, [6, 7, 7]),
        ([5, 5, 5], 2, [0, 1, 1]),
        ([5, 5, 5], -3, [0, 0, 0]),
    ],
)
def test_sections_share_the_room(lengths: list[int], room: int, expected: Any) -> None:
    assert fitting(lengths, room) == expected
