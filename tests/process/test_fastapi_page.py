"""docs/fastapi.md as it stands: its files, its command, and its worker in the web process."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import shlex
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import Engine, create_engine, inspect, text

from support import wait_until
from support.forks import finished
from support.kit_project import run_pytest
from support.pages import files_of, importable, other_python_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import UrlFor
    from support.commands import Command

PAGE = "fastapi.md"


@pytest.fixture
def project(tmp_path: Path, url_for: UrlFor, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the page, importable in this process too."""
    assert other_python_of(PAGE) == []
    for name, content in files_of(PAGE).items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    monkeypatch.setenv("DATABASE_URL", url_for("asyncpg"))
    with importable(tmp_path):
        yield tmp_path


@pytest.fixture
def tables(project: Path, database_url: str) -> Iterator[Engine]:
    """What `Base.metadata` has, in the database."""
    engine = create_engine(database_url)
    importlib.import_module("shop.db").Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def sent(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(connection.scalar(text("SELECT bool_and(receipt_sent) FROM orders")))


async def order_through(app: Any) -> int:
    """Place an order by HTTP, within the application's lifespan; its id."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        answer = await client.post("/orders", params={"email": "ada@example.com"})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


def test_a_worker_of_its_own_sends_the_receipt(
    project: Path, tables: Engine, start: Callable[..., Command], url_for: UrlFor
) -> None:
    web = importlib.import_module("shop.web")
    db = importlib.import_module("shop.db")
    (command,) = re.findall(r"^\$ sqlalchemy-bgjob (.*)$", text_of(PAGE), re.MULTILINE)

    async def order() -> None:
        await order_through(web.app)
        await db.engine.dispose()

    asyncio.run(order())
    worker = start(*shlex.split(command), cwd=project, DATABASE_URL=url_for("asyncpg"))

    wait_until(lambda: sent(tables), 60, what="the receipt")
    assert "mail to ada@example.com" in worker.stdout


def test_a_worker_in_the_web_process_sends_the_receipt(
    tables: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    page = importlib.import_module("shop.one_process")
    app = page.app
    db = importlib.import_module("shop.db")

    async def serve() -> None:
        async with app.router.lifespan_context(app):
            await order_through(app)
            await asyncio.to_thread(wait_until, lambda: sent(tables), 60)
        await page.worker_engine.dispose()
        await db.engine.dispose()

    asyncio.run(serve())

    assert "mail to ada@example.com" in capsys.readouterr().out


def test_its_migration_makes_all_tables(project: Path, url_for: UrlFor, engine: Engine) -> None:
    """Alembic's asynchronous template, in which the page's lines replace what they name."""
    page = text_of(PAGE)
    (changed,) = re.findall(r"^```\n(from shop.db .*?)```", page, re.DOTALL | re.MULTILINE)
    names, do_run, run_async = re.split(r"\n(?=def |async def )", changed)
    commands = re.findall(r"^\$ alembic (.*)$", page, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["init", "revision", "upgrade"]

    def alembic(command: str) -> None:
        environment = os.environ | {"DATABASE_URL": url_for("asyncpg")}
        done = finished("alembic", *shlex.split(command), cwd=project, env=environment)
        assert done.returncode == 0, done.stderr

    alembic(commands[0])
    env = project / "migrations" / "env.py"
    text_of_env = env.read_text().replace("target_metadata = None", names)
    for function, name in ((do_run, "def do_run_"), (run_async, "async def run_async_")):
        text_of_env, made = re.subn(
            rf"^{name}.*?(?=^def |^async def )",
            lambda _, new=function: f"{new}\n",  # type: ignore[misc]
            text_of_env,
            flags=re.DOTALL | re.MULTILINE,
        )
        assert made == 1
    env.write_text(text_of_env)
    for command in commands[1:]:
        alembic(command)

    (revision,) = (project / "migrations" / "versions").glob("*.py")
    assert "bgjob.upgrade(op, from_version=0, to_version=2)" in revision.read_text()
    assert {"orders", "bgjob_job", "bgjob_worker"} <= set(inspect(engine).get_table_names())


def test_its_tests_pass_and_leave_nothing(project: Path, tables: Engine) -> None:
    done = run_pytest(project, "tests", "-p", "no:asyncio")

    assert "2 passed" in done.stdout, done.stdout + done.stderr
    with tables.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM orders")) == 0
        assert connection.scalar(text("SELECT count(*) FROM bgjob_job")) == 0
