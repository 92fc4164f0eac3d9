"""examples/litestar_shop and docs/litestar.md: a server, two workers, real mail, a migration."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import text

from support import wait_until
from support.mail import Mailbox, MailServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from conftest import UrlFor
    from support.commands import Command

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "litestar_shop"
PAGE = (ROOT / "docs" / "litestar.md").read_text()
TOLD = ast.get_docstring(ast.parse((FOLDER / "shop" / "__init__.py").read_text())) or ""
FAILS_AT_COMMIT = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN RAISE EXCEPTION ''refused''; END';
    CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (new.email = 'refused@example.org') EXECUTE FUNCTION refuse()
"""
MIGRATE = """
import pathlib, shlex, sys
from litestar.cli import litestar_group
from litestar.cli._utils import LitestarEnv

def run(command):
    litestar_group(shlex.split(command), prog_name="litestar", standalone_mode=False, obj=app)

plugins, init, *others = sys.argv[1:]
app = LitestarEnv.from_env("shop.web:app")
run(init)
env = pathlib.Path("migrations/env.py")
env.write_text(env.read_text().replace("context.configure(", "context.configure(" + plugins))
for command in others:
    run(command)
"""
"""The commands of the page in one process, as each takes seconds to start."""


def commands_of(page: str, program: str) -> list[str]:
    """What follows the program in each command of a page or docstring."""
    return re.findall(rf"^ *\$ {program} (.*)$", page.replace("\\\n", ""), re.MULTILINE)


@pytest.fixture
def mail_server() -> Iterator[MailServer]:
    """It takes mails, and keeps whoever sends them waiting until it is told to go on."""
    server = MailServer(Mailbox(answered=0))
    server.start()
    yield server
    server.stop()


def count(engine: Engine, table: str) -> int:
    with engine.connect() as connection:
        return connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0


def address_of(server: Command) -> str:
    found = wait_until(lambda: re.search(r"running on (http://\S+)", server.stderr), 60)
    return str(found[1])


def test_a_job_whose_worker_is_killed_is_done_by_another(
    engine: Engine, url_for: UrlFor, mail_server: MailServer, start: Callable[..., Command]
) -> None:
    """The other one imports the application too, whose logging leaves its log as it is."""
    options: dict[str, Any] = {
        "cwd": FOLDER,
        "DATABASE_URL": url_for("asyncpg"),
        "SMTP_HOST": mail_server.hostname,
        "SMTP_PORT": str(mail_server.port),
        "UVICORN_PORT": "0",
    }
    (serve,) = commands_of(TOLD, "uvicorn")
    (work,) = commands_of(TOLD, "sqlalchemy-bgjob")
    same, work_with_json = commands_of(PAGE, "sqlalchemy-bgjob")
    assert same == work
    assert "--import shop.web" in work_with_json

    web = start(serve, program=(sys.executable, "-m", "uvicorn"), **options)
    with httpx.Client(base_url=address_of(web)) as shop:
        with engine.begin() as connection:
            connection.execute(text(FAILS_AT_COMMIT))
        refused = shop.post("/orders", json={"email": "refused@example.org"})
        assert (refused.status_code, count(engine, "bgjob_job")) == (500, 0)

        first = start(*shlex.split(work), **options)
        order = shop.post("/orders", json={"email": "ann@example.org"}).json()
        mails = wait_until(lambda: mail_server.handler.mails, 60, what="a mail")
        second = start(*shlex.split(work_with_json), **options)
        second.says("worker of asyncio")
        first.signal(signal.SIGKILL)
        first.wait()
        mail_server.loop.call_soon_threadsafe(mail_server.handler.go_on.set)

        wait_until(lambda: count(engine, "bgjob_job") == 0, 60, what="no job")
        shown = shop.get(f"/orders/{order['id']}").json()

    assert shown["receipt_sent_at"] is not None
    assert count(engine, "bgjob_dead_job") == 0
    assert [to for to, _ in mails] == ["ann@example.org"] * 2
    assert len({message_id for _, message_id in mails}) == 1
    lines = [json.loads(line) for line in second.stderr.splitlines()]
    assert f"mailed the receipt of order {order['id']}" in [line["message"] for line in lines]


def test_a_worker_in_the_web_process_does_the_job(
    engine: Engine, url_for: UrlFor, mail_server: MailServer, start: Callable[..., Command]
) -> None:
    """It needs tables, which serving the routes alone has made; it drains with the server."""
    options: dict[str, Any] = {
        "cwd": FOLDER,
        "DATABASE_URL": url_for("asyncpg"),
        "SMTP_HOST": mail_server.hostname,
        "SMTP_PORT": str(mail_server.port),
        "UVICORN_PORT": "0",
    }
    uvicorn = (sys.executable, "-m", "uvicorn")
    mail_server.loop.call_soon_threadsafe(mail_server.handler.go_on.set)
    first = start("shop.one_process:app", program=uvicorn, **options)
    assert first.wait() != 0
    assert "table 'bgjob_job' does not exist" in first.stderr

    alone = start("shop.web:app", program=uvicorn, **options)
    address_of(alone)
    alone.signal(signal.SIGTERM)
    alone.wait()

    web = start("shop.one_process:app", program=uvicorn, **options)
    with httpx.Client(base_url=address_of(web)) as shop:
        order = shop.post("/orders", json={"email": "ann@example.org"}).json()
        wait_until(lambda: count(engine, "bgjob_job") == 0, 60, what="no job")
        shown = shop.get(f"/orders/{order['id']}").json()
    web.signal(signal.SIGTERM)
    web.wait()

    assert shown["receipt_sent_at"] is not None
    assert len(mail_server.handler.mails) == 1
    assert count(engine, "bgjob_worker") == 0, "the worker has left"


def test_its_migration_makes_the_tables_of_the_queue(
    engine: Engine, url_for: UrlFor, tmp_path: Path
) -> None:
    """Advanced Alchemy's own commands, with the one line that the page adds to env.py."""
    shutil.copytree(FOLDER / "shop", tmp_path / "shop")
    (plugins,) = re.findall(r"^autogenerate_plugins=.*,$", PAGE, re.MULTILINE)
    commands = commands_of(PAGE, "litestar")
    program = [sys.executable, "-c", MIGRATE, plugins, *commands]

    done = subprocess.run(
        program,
        cwd=tmp_path,
        env={"DATABASE_URL": url_for("asyncpg"), "PATH": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert [command.split()[3] for command in commands] == [
        "init",
        "make-migrations",
        "upgrade",
        "check",
    ]
    (revision,) = (tmp_path / "migrations" / "versions").glob("*orders*.py")
    assert "bgjob.upgrade(op, from_version=0, to_version=2)" in revision.read_text()
    assert count(engine, "orders") == count(engine, "bgjob_job") == 0
