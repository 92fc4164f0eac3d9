"""What the README says is what happens: its Python runs, its tables are complete."""

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import DeclarativeBase, Session

from sqlalchemy_bgjob.settings import WorkerSettings
from support import wait_until, wait_until_async
from support.commands import Command
from support.rows import jobs_left

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
OF_ALEMBIC = ("context.configure(", "def upgrade()")


@pytest.mark.core
def test_python_of_the_readme_runs(database_url, url_for, capsys, monkeypatch):
    """Every block but Alembic's two, in order, in one program; the first is the module app."""
    imports = """
import asyncio
from datetime import UTC, datetime, timedelta
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Mapped
from sqlalchemy_bgjob import (
    AsyncWorker, BGJob, Context, DeadJobMixin, JobMixin, MoveToDlq, Observer, Retry, enqueue_from,
    enqueue_many, exponential
)
"""
    program = {"DATABASE_URL": database_url, "ASYNC_DATABASE_URL": url_for("asyncpg")}

    class TenantBase(DeclarativeBase):
        pass

    def left():
        with Session(program["engine"]) as session:
            return session.scalar(
                select(func.count())
                .select_from(program["jobs"].Job)
                .where(program["jobs"].Job.queue == "mail", program["jobs"].Job.state == "queued")
            )

    program |= {
        "TenantBase": TenantBase,
        "gateway_is_down": lambda: True,
        "wait_until_mailed": lambda: wait_until(lambda: left() == 0, 30),
        "wait_until_mailed_async": lambda: wait_until_async(lambda: left() == 0, 30),
    }
    exec(imports, program)
    first, *blocks = [block for block in PYTHON if not block.startswith(OF_ALEMBIC)]
    app = ModuleType("app")
    monkeypatch.setitem(sys.modules, "app", app)
    exec(compile(first, "app.py", "exec"), vars(app))
    for block in blocks:
        exec(compile(block, "README.md", "exec"), program)
        if "async def main" in block:
            exec("asyncio.run(main())", program)
    program["engine"].dispose()

    assert len(blocks) >= 9
    assert "mail to ada@example.com" in capsys.readouterr().out
    with Session(program["engine"]) as session:
        assert session.scalar(select(program["Order"].receipt_sent)) is True
    program["engine"].dispose()
    assert program["tenant_jobs"].DeadJob.__table__.c.tenant_id is not None


@pytest.mark.core
def test_the_quick_start_sends_one_mail(
    database_url: str, engine: Engine, start: Callable[..., Command], tmp_path: Path
) -> None:
    """Its two files and its command as they stand; a second worker has nothing to do."""
    app, order = PYTHON[:2]
    (tmp_path / "app.py").write_text(app)
    (tmp_path / "order.py").write_text(f"DATABASE_URL = {database_url!r}\n{order}")
    (command,) = re.findall(r"^\$ sqlalchemy-bgjob (worker app:jobs .*)$", README, re.MULTILINE)
    words = shlex.split(command.replace("postgresql+psycopg://...", database_url))

    subprocess.run([sys.executable, "order.py"], cwd=tmp_path, check=True)
    mails = []
    for _ in range(2):
        worker = start(*words, cwd=tmp_path)
        wait_until(lambda: jobs_left(engine) == 0, 60)
        worker.says("worker of ")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        mails.append(worker.stdout.strip())

    assert mails == ["mail to ada@example.com", ""]


def test_alembic_blocks_are_what_the_plugin_writes():
    """The two blocks that need an Alembic project are run by tests/database/test_alembic.py."""
    configure, upgrade = [block for block in PYTHON if block.startswith(OF_ALEMBIC)]
    tests = (ROOT / "tests" / "database" / "test_alembic.py").read_text()

    assert 'autogenerate_plugins=["alembic.autogenerate.*", "sqlalchemy_bgjob"]' in configure
    assert 'autogenerate_plugins=["alembic.autogenerate.*", "sqlalchemy_bgjob"]' in tests
    assert "bgjob.upgrade(op, from_version=0, to_version=1)" in upgrade
    assert "bgjob.upgrade(op, from_version=0, to_version=1)" in tests


def test_the_table_of_settings_is_what_their_declaration_says() -> None:
    rows = [
        f"| `{field.name}` | {field.metadata['unit']} | {shown(field.default)} | "
        f"{field.metadata['help']} |"
        for field in fields(WorkerSettings)
    ]
    assert re.findall(r"^\| `\w+` \|.*\|.*\|.*\|$", README, re.MULTILINE) == rows


def shown(default: float | bool) -> str:
    return "on" if default is True else f"{default:g}"


def test_install_table_names_real_extras():
    """Each extra exists."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = README.split("| extra |")[1].split("\n\n")[0]
    named = {
        name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }

    assert named
    assert named <= set(project["optional-dependencies"])


def test_the_table_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is printed from the file that the comparison has written, not typed."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.report import table_lines

    found = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    assert found["scale"] == 1
    assert found["rounds"] == 3

    assert "\n".join(table_lines(found)) in README


def test_the_pictures_are_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Drawn from the same file; another matplotlib draws other lines, and no other words."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.plot import draw

    def words(path: Path) -> list[str]:
        return re.findall(r">([^<>]+)</text>", path.read_text())

    found = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    measured = (ROOT / "docs" / "measured.md").read_text()

    drawn = list(draw(found, tmp_path))

    assert drawn
    for path in drawn:
        assert f"](plots/{path.name})" in measured
        assert words(ROOT / "docs" / "plots" / path.name) == words(path) != []
