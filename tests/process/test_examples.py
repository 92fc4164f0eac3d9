"""The examples, run as their docstrings tell: a server, workers that are killed, real mail.

Whatever a docstring shows after ``$`` is what runs here, but for installing things.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from aiosmtpd.controller import Controller
from sqlalchemy import text

from support import wait_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from aiosmtpd.smtp import SMTP, Envelope, Session
    from sqlalchemy import Engine

    from conftest import UrlFor

EXAMPLES = Path(__file__).parents[2] / "examples"
DRIVERS = {"fastapi_shop": "psycopg", "fastapi_shop_async": "asyncpg"}


def told(folder: Path) -> list[str]:
    """The commands of an example's docstring."""
    docstring = ast.get_docstring(ast.parse((folder / "app.py").read_text("utf-8")))
    assert docstring is not None
    return re.findall(r"^ +\$ (.+)$", docstring, re.MULTILINE)


@dataclass
class Mailbox:
    """What the mail server got: (to, Message-ID) of each mail.

    Mails after the first *answered* are kept too, but whoever sent them waits for the answer.
    """

    answered: int = sys.maxsize
    mails: list[tuple[str, str]] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle_DATA(  # noqa: N802 - the name that aiosmtpd calls
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        mail = message_from_bytes(envelope.content)
        [to] = envelope.rcpt_tos
        self.mails.append((to, mail["Message-ID"]))
        if len(self.mails) > self.answered:
            await self.go_on.wait()
        return "250 OK"

    def recipients(self) -> set[str]:
        return {to for to, _ in self.mails}


class MailServer(Controller):
    """A mail server on a port that the system chose."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        host, port = self.socket.getsockname()
        super().__init__(mailbox, hostname=host, port=port)

    def _create_server(self) -> Awaitable[asyncio.AbstractServer]:
        return self.loop.create_server(self._factory_invoker, sock=self.socket)


class Shop:
    """An example under test: its processes, its API, its database, its mail."""

    def __init__(self, folder: Path, url: str, engine: Engine, logs: Path) -> None:
        self.folder, self.engine, self.logs = folder, engine, logs
        self.commands = told(folder)
        self.mailbox = Mailbox()
        self.smtp = MailServer(self.mailbox)
        self.environment = {
            # What whoever runs the tests has set for workers of their own is not for these.
            **{name: value for name, value in os.environ.items() if not name.startswith("BGJOB_")},
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "DATABASE_URL": url,
            "SMTP_HOST": self.smtp.hostname,
            "SMTP_PORT": str(self.smtp.port),
            "UVICORN_PORT": "0",
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        self.api = httpx.Client()

    def command(self, start: str) -> str:
        """The one command that begins so."""
        [command] = [command for command in self.commands if command.startswith(start)]
        return command

    def run(self, start: str) -> None:
        """Run a command that ends by itself."""
        subprocess.run(
            self.command(start), shell=True, check=True, cwd=self.folder, env=self.environment
        )

    def start(self, start: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Start a command that goes on: its process and what it says."""
        log = self.logs / f"{len(self.processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                f"exec {self.command(start)}",  # so that its process is the one we know
                shell=True,
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return process, log

    def start_worker(self) -> subprocess.Popen[bytes]:
        process, _ = self.start("sqlalchemy-bgjob worker ")
        return process

    def open(self) -> None:
        """Start the server, make the tables while it starts, and wait until it listens."""
        _, log = self.start("uvicorn ")
        self.run("python -c ")
        found = wait_until(
            lambda: re.search(r"running on (http://\S+)", log.read_text("utf-8")),
            30,
            what="the server's address in its log",
        )
        self.api = httpx.Client(base_url=found[1])

    def order(self, **changes: str) -> httpx.Response:
        """Order as the docstring tells, with some changes."""
        _, address, _, data = shlex.split(self.command("curl localhost:8000/orders --json "))
        path = address.removeprefix("localhost:8000")
        return self.api.post(path, json={**json.loads(data), **changes})

    def show(self, order_id: int) -> httpx.Response:
        """Ask for an order as the docstring tells."""
        _, address = shlex.split(self.command("curl localhost:8000/orders/1"))
        path = address.removeprefix("localhost:8000").removesuffix("1")
        return self.api.get(f"{path}{order_id}")

    def is_sent(self, order_id: int) -> bool:
        return self.show(order_id).json()["receipt_sent_at"] is not None

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(sql))]

    def count(self, table: str) -> int:
        [(number,)] = self.rows(f"SELECT count(*) FROM {table}")
        assert isinstance(number, int)
        return number

    def execute(self, sql: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(sql))

    def close(self) -> None:
        self.api.close()
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(params=DRIVERS)
def shop(
    request: pytest.FixtureRequest, url_for: UrlFor, engine: Engine, tmp_path: Path
) -> Iterator[Shop]:
    """An example with its tables, its server and its mail server, and no worker yet."""
    shop = Shop(EXAMPLES / request.param, url_for(DRIVERS[request.param]), engine, tmp_path)
    shop.smtp.start()
    try:
        shop.open()
        yield shop
    finally:
        shop.close()
        shop.smtp.stop()
        for log in sorted(tmp_path.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text('utf-8')}")  # shown if the test fails


ORDERS = 40
ANSWERED = 12


@pytest.mark.parametrize(
    "shop",
    ["fastapi_shop", pytest.param("fastapi_shop_async", marks=pytest.mark.chaos)],
    indirect=True,
)
def test_every_order_gets_its_mail_though_a_worker_is_killed(shop: Shop) -> None:
    """Each is marked once, which is a matter of one commit; a mail may come twice, and says so."""
    count_marks(shop)
    shop.mailbox.answered = ANSWERED
    worker = shop.start_worker()

    orders = [shop.order(email=f"{n}@example.org").json()["id"] for n in range(ORDERS)]
    wait_until(lambda: len(shop.mailbox.mails) > ANSWERED, 30, what="a mail that is not answered")
    worker.kill()
    worker.wait()

    # Some were sent, but not all; of some the worker never heard that they were.
    sent_before = shop.mailbox.recipients()
    assert ANSWERED < len(sent_before) < ORDERS
    assert shop.count("marks") <= ANSWERED
    assert shop.rows("SELECT 1 FROM bgjob_job WHERE claimed_by IS NOT NULL")
    shop.smtp.loop.call_soon_threadsafe(shop.mailbox.go_on.set)
    shop.start_worker()

    wait_until(lambda: shop.count("bgjob_job") == 0, 30, what="no job is left")
    assert shop.count("bgjob_dead_job") == 0
    assert all(shop.is_sent(order) for order in orders)
    marks = Counter(order for (order,) in shop.rows("SELECT order_id FROM marks"))
    assert marks == Counter(orders)
    assert shop.mailbox.recipients() == {f"{n}@example.org" for n in range(ORDERS)}
    # What was sent again is the same mail to whoever gets it.
    assert len(shop.mailbox.mails) > ORDERS
    assert len(set(shop.mailbox.mails)) == ORDERS
    assert len({message_id for _, message_id in shop.mailbox.mails}) == ORDERS


def count_marks(shop: Shop) -> None:
    """Note each committed change of an order."""
    shop.execute(
        """
        CREATE TABLE marks (order_id integer);
        CREATE FUNCTION mark() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN INSERT INTO marks VALUES (new.id); RETURN NULL; END';
        CREATE TRIGGER mark AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION mark();
        """
    )


def test_an_order_that_is_rolled_back_gets_no_mail(shop: Shop) -> None:
    """Its job was enqueued before the stock turned out to be empty, and went with it."""
    shop.execute("UPDATE products SET stock = 1")
    first = shop.order(email="first@example.org")
    refused = shop.order(email="refused@example.org")
    invalid = shop.order(email="nobody")
    shop.execute("UPDATE products SET stock = 1")
    last = shop.order(email="last@example.org")
    assert [r.status_code for r in (first, refused, invalid, last)] == [201, 409, 422, 201]
    assert (shop.count("orders"), shop.count("bgjob_job")) == (2, 2)
    assert not shop.is_sent(last.json()["id"])

    shop.start_worker()

    wait_until(lambda: shop.count("bgjob_job") == 0, 30, what="no job is left")
    assert shop.count("bgjob_dead_job") == 0
    assert [to for to, _ in sorted(shop.mailbox.mails)] == ["first@example.org", "last@example.org"]
    assert shop.is_sent(first.json()["id"])
    assert shop.is_sent(last.json()["id"])
    assert shop.show(10**6).status_code == 404


def test_each_example_is_tested_and_tells_nothing_else() -> None:
    """A new example, or a command that nothing above runs, must not go unnoticed."""
    assert {path.parent.name for path in EXAMPLES.glob("*/app.py")} == set(DRIVERS)
    for folder, driver in DRIVERS.items():
        commands = told(EXAMPLES / folder)
        assert [" ".join(re.split("[ =]", command)[:2]) for command in commands] == [
            "docker run",
            "pip install",
            "export DATABASE_URL",
            "python -c",
            "uvicorn app:app",
            "sqlalchemy-bgjob worker",
            "python -m",
            "curl localhost:8000/orders",
            "curl localhost:8000/orders/1",
        ]
        assert f"[{driver}]" in commands[1]
        assert f"DATABASE_URL=postgresql+{driver}:" in commands[2]
