"""The examples, run as they tell: a server, workers that are killed, real mail.

Whatever the docstring of an example, or its page, shows after ``$`` is what runs here, but for
installing things.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import text

from support import wait_until
from support.mail import Mailbox, MailServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from conftest import UrlFor

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@dataclass(frozen=True)
class Told:
    """How an example says that it is run.

    Attributes:
        driver: Of its database URL.
        page: Tells the commands; without one the docstring of its module does.
        tables: How the command begins that makes the tables.
        server: How the command begins that serves.
        making: How those begin that made what the example has in its folder.
    """

    driver: str = "psycopg"
    page: str | None = None
    tables: str = "python -c "
    server: str = "uvicorn "
    making: tuple[str, ...] = ()

    def commands(self, folder: Path) -> list[str]:
        """All that is shown after a ``$``."""
        if self.page is None:
            docstring = ast.get_docstring(ast.parse((folder / "app.py").read_text("utf-8")))
            assert docstring is not None
            return re.findall(r"^ +\$ (.+)$", docstring, re.MULTILINE)
        page = (ROOT / "docs" / self.page).read_text("utf-8").replace("\\\n", "")
        return re.findall(r"^\$ (.+)$", page, re.MULTILINE)


TOLD = {
    "fastapi_shop": Told(),
    "fastapi_shop_async": Told("asyncpg"),
    "flask_shop": Told(
        page="flask.md",
        tables="flask --app shop db upgrade",
        server="flask --app shop run",
        making=("flask --app shop db init", "flask --app shop db migrate "),
    ),
    "sqlmodel_shop": Told(page="sqlmodel.md"),
}


class Shop:
    """An example under test: its processes, its API, its database, its mail."""

    def __init__(self, name: str, url: str, engine: Engine, logs: Path) -> None:
        self.folder, self.engine, self.logs = EXAMPLES / name, engine, logs
        self.told = TOLD[name]
        self.commands = self.told.commands(self.folder)
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
            "FLASK_RUN_PORT": "0",
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
        _, log = self.start(self.told.server)
        self.run(self.told.tables)
        found = wait_until(
            lambda: re.search(r"[Rr]unning on (http://\S+)", log.read_text("utf-8")),
            30,
            what="the server's address in its log",
        )
        self.api = httpx.Client(base_url=found[1])

    def order(self, **changes: str) -> httpx.Response:
        """Order as the example tells, with some changes."""
        path, kind, data = self._curl(sends=True)
        if kind == "--json":
            return self.api.post(path, json={**json.loads(data), **changes})
        name, _, value = data.partition("=")
        return self.api.post(path, data={name: value, **changes})

    def show(self, order_id: int | str) -> httpx.Response:
        """Ask for an order as the example tells: for it alone, or for all."""
        [path] = self._curl(sends=False)
        return self.api.get(f"{path.removesuffix('1')}{order_id}" if path.endswith("/1") else path)

    def is_sent(self, order_id: int | str) -> bool:
        found = self.show(order_id).json()
        orders = found if isinstance(found, list) else [found]
        return any(order["id"] == order_id and order["receipt_sent_at"] for order in orders)

    def _curl(self, *, sends: bool) -> list[str]:
        """The path and further words of the one ``curl`` that sends something, or does not."""
        words = [shlex.split(command) for command in self.commands if command.startswith("curl ")]
        [[_, address, *rest]] = [curl for curl in words if (len(curl) > 2) == sends]
        return [f"/{address.partition('/')[2]}", *rest]

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


@pytest.fixture
def shop(
    request: pytest.FixtureRequest, url_for: UrlFor, engine: Engine, tmp_path: Path
) -> Iterator[Shop]:
    """An example with its tables, its server and its mail server, and no worker yet."""
    shop = Shop(request.param, url_for(TOLD[request.param].driver), engine, tmp_path)
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
    [
        "fastapi_shop",
        pytest.param("fastapi_shop_async", marks=pytest.mark.chaos),
        "flask_shop",
        "sqlmodel_shop",
    ],
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
    assert marks == Counter(map(str, orders))
    assert shop.mailbox.recipients() == {f"{n}@example.org" for n in range(ORDERS)}
    # What was sent again is the same mail to whoever gets it.
    assert len(shop.mailbox.mails) > ORDERS
    assert len(set(shop.mailbox.mails)) == ORDERS
    assert len({message_id for _, message_id in shop.mailbox.mails}) == ORDERS


def count_marks(shop: Shop) -> None:
    """Note each committed change of an order."""
    shop.execute(
        """
        CREATE TABLE marks (order_id text);
        CREATE FUNCTION mark() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN INSERT INTO marks VALUES (new.id); RETURN NULL; END';
        CREATE TRIGGER mark AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION mark();
        """
    )


@pytest.mark.parametrize("shop", ["fastapi_shop", "fastapi_shop_async"], indirect=True)
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
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    folders = [path.name for path in EXAMPLES.iterdir() if any(path.rglob("*.py"))]
    assert [name for name in folders if name not in TOLD and name not in tests] == []
    for name, told in TOLD.items():
        commands = told.commands(EXAMPLES / name)
        for start in (told.tables, told.server, *told.making):
            assert [command.startswith(start) for command in commands].count(True) == 1
        others = [
            " ".join(re.split("[ =]", command)[:2])
            for command in commands
            if not command.startswith((told.tables, told.server, *told.making))
        ]
        [port] = {command[15:19] for command in commands if command.startswith("curl ")}
        assert sorted(others) == [
            f"curl localhost:{port}/orders",
            f"curl localhost:{port}/orders" + ("" if told.page else "/1"),
            "docker run",
            "export DATABASE_URL",
            "pip install",
            "python -m",
            "sqlalchemy-bgjob worker",
        ]
        [install] = [command for command in commands if command.startswith("pip ")]
        [export] = [command for command in commands if command.startswith("export ")]
        assert re.search(rf"\[{told.driver}[],]", install)
        assert f"DATABASE_URL=postgresql+{told.driver}:" in export
