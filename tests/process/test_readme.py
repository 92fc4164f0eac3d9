"""What README and docs say is what happens: their Python runs, their tables are complete."""

import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import DeclarativeBase, Session

from sqlalchemy_bgjob._handlers.options import HandlerOptions
from sqlalchemy_bgjob.settings import WorkerSettings
from support import wait_until, wait_until_async
from support.commands import Command
from support.rows import jobs_left

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = (
    "README.md",
    "docs/enqueue.md",
    "docs/handlers.md",
    "docs/workers.md",
    "docs/guides/cancel.md",
    "docs/guides/schedules.md",
    "docs/testing.md",
    "docs/deploying.md",
    "docs/guides/dead_jobs.md",
    "docs/guides/dashboard.md",
    "docs/guides/unique.md",
    "docs/guides/chunks.md",  # whose call no middleware of the next page is for
    "docs/guides/middleware.md",
    "docs/guides/queue_control.md",
)
"""Those whose blocks are one program, in this order; pages of frameworks have projects."""
GUIDES_OF_OTHER_TESTS = {
    "batches": "test_batches_page.py",
    "command_line": "test_dev_command.py",
    "metrics": "test_metrics_pages.py",
    "records": "test_records_page.py",
    "resources": "test_resources_page.py",
    "traces": "test_metrics_pages.py",
}
"""Whose blocks are programs of their own, and the test that runs them."""
MAIN = 'if __name__ == "__main__":\n'
OF_ALEMBIC = ("context.configure(", "def upgrade()")


def python_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.core
def test_python_of_the_pages_runs(database_url, url_for, capsys, monkeypatch):
    """The README's second block is the module app; the others use its names, page by page."""
    imports = """
import asyncio
import signal
from datetime import UTC, datetime, timedelta
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Mapped
from sqlalchemy_bgjob import AsyncWorker, DeadJobMixin, JobMixin, Observer, Worker, enqueue_from
from sqlalchemy_bgjob import GIVE_UP, on_exception, retry_after, steps
"""
    monkeypatch.setenv("DATABASE_URL", database_url)
    _, first, *rest = python_of("README.md")
    definitions, main = first.split(MAIN)
    app = ModuleType("app")
    monkeypatch.setitem(sys.modules, "app", app)
    exec(compile(definitions, "app.py", "exec"), vars(app))

    class TenantBase(DeclarativeBase):
        pass

    def is_mailed():
        with Session(app.engine) as session:
            return session.scalar(select(app.Order.receipt_sent))

    program = vars(app) | {
        "ASYNC_DATABASE_URL": url_for("asyncpg"),
        "TenantBase": TenantBase,
        "gateway_is_down": lambda: True,
        "report": print,
        "CardDeclined": type("CardDeclined", (Exception,), {}),
        "TooManyRequests": type("TooManyRequests", (Exception,), {}),
        "new_token": lambda: app.engine.url.password,
        "wait_until_mailed_async": lambda: wait_until_async(is_mailed, 30),
    }
    exec(dedent(main), program)
    exec(imports, program)
    blocks = [(page, block) for page in PAGES[1:] for block in python_of(page)]
    of_tables = [b for b in python_of("docs/tables.md") if not b.startswith(OF_ALEMBIC)]
    blocks = [("README.md", b) for b in rest] + blocks + [("docs/tables.md", b) for b in of_tables]
    for page, block in blocks:
        if page == "docs/testing.md" and "conftest.py" in block:
            empty_the_queue(program)
        exec(compile(block, page, "exec"), program)
        if "def work()" in block:
            stop_by_signal(program)
        if "async def main" in block:
            exec("asyncio.run(main())", program)
    program["engine"].dispose()

    assert {page for page, _ in blocks} == {*PAGES, "docs/tables.md"}
    assert "mail to ada@example.com" in capsys.readouterr().out
    assert program["tenant_jobs"].DeadJob.__table__.c.tenant_id is not None


def test_each_guide_is_run_by_a_test() -> None:
    """Here, or by a test of its own that reads the page."""
    guides = {path.stem for path in (ROOT / "docs" / "guides").glob("*.md")}
    here = {Path(page).stem for page in PAGES if page.startswith("docs/guides/")}

    assert here | GUIDES_OF_OTHER_TESTS.keys() == guides
    assert here.isdisjoint(GUIDES_OF_OTHER_TESTS)
    for guide, test in GUIDES_OF_OTHER_TESTS.items():
        assert f"{guide}.md" in Path(__file__).with_name(test).read_text()


def empty_the_queue(program):
    """A test's own database has no jobs but its own."""
    with program["engine"].begin() as connection:
        connection.execute(program["jobs"].models.job.delete())


def stop_by_signal(program):
    """Run the page's own worker in this thread, and send it SIGTERM once it is registered."""
    rows = select(program["jobs"].WorkerRow.id)

    def registered():
        with program["engine"].connect() as connection:
            return connection.execute(rows).all()

    def end():
        wait_until(registered, 60, what="the worker")
        signal.raise_signal(signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    other = threading.Thread(target=end)
    other.start()
    try:
        program["work"]()
    finally:
        other.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_first_job_takes_three_commands_at_most(tmp_path: Path) -> None:
    """Fifteen lines, without a database; its output is what the page shows."""
    first = python_of("README.md")[0]
    section = README.split("## The first job\n")[1].split("\n## ")[0]
    (shown,) = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    commands = re.findall(r"^\$ (.+)$", shown, re.MULTILINE)
    (tmp_path / "hello.py").write_text(first)

    program = subprocess.Popen(
        [sys.executable, "-u", "hello.py"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    with program:
        expected = shown.splitlines(keepends=True)[-2:]
        said = program.stdout.read(sum(map(len, expected)))  # by two threads, in any order
        program.stdin.write("\n")
        program.stdin.close()
        rest = program.stdout.read()

    assert program.returncode == 0
    assert all(line.rstrip() in said for line in expected), said
    assert rest == ""
    assert len([line for line in first.splitlines() if line]) <= 15
    assert len(commands) <= 3
    assert commands[-1] == "python hello.py"


@pytest.mark.core
def test_the_quick_start_sends_one_mail(
    database_url: str,
    engine: Engine,
    start: Callable[..., Command],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its file and its two commands as they stand; a second worker has nothing to do."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    (tmp_path / "app.py").write_text(python_of("README.md")[1])
    (command,) = re.findall(r"^\$ sqlalchemy-bgjob (worker app:jobs .*)$", README, re.MULTILINE)
    assert "\n$ python app.py\n" in README

    subprocess.run([sys.executable, "app.py"], cwd=tmp_path, check=True)
    mails = []
    for _ in range(2):
        worker = start(*shlex.split(command), cwd=tmp_path, DATABASE_URL=database_url)
        wait_until(lambda: jobs_left(engine) == 0, 60)
        worker.says("worker of ")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        mails.append(worker.stdout.strip())

    assert mails == ["mail to ada@example.com", ""]


def test_the_readme_is_short():
    """It is a page to start from; the rest is in docs/."""
    assert len(README.splitlines()) <= 220


def test_alembic_blocks_are_what_the_plugin_writes():
    """The two blocks that need an Alembic project are run by tests/database/test_alembic.py."""
    configure, upgrade = [b for b in python_of("docs/tables.md") if b.startswith(OF_ALEMBIC)]
    tests = (ROOT / "tests" / "database" / "test_alembic.py").read_text()

    assert 'autogenerate_plugins=["alembic.autogenerate.*", "sqlalchemy_bgjob"]' in configure
    assert 'autogenerate_plugins=["alembic.autogenerate.*", "sqlalchemy_bgjob"]' in tests
    assert "bgjob.upgrade(op, from_version=0, to_version=2)" in upgrade
    assert "bgjob.upgrade(op, from_version=0, to_version=2)" in tests


def test_the_table_of_settings_is_what_their_declaration_says() -> None:
    rows = [
        f"| `{field.name}` | {field.metadata['unit']} | {shown(field.default)} | "
        f"{field.metadata['help']} |"
        for field in fields(WorkerSettings)
    ]
    page = (ROOT / "docs" / "workers.md").read_text()
    assert re.findall(r"^\| `\w+` \|.*\|.*\|.*\|$", page, re.MULTILINE) == rows


def test_the_table_of_a_handlers_options_is_complete() -> None:
    page = (ROOT / "docs" / "handlers.md").read_text().split("## Options\n")[1].split("## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == [
        field.name for field in fields(HandlerOptions)
    ]
    assert f"| `max_attempts` | {HandlerOptions().max_attempts} |" in page


def shown(default: float | bool) -> str:
    return {True: "on", False: "off"}[default] if isinstance(default, bool) else f"{default:.10g}"


def test_the_extras_that_are_named_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = README.split("## Install\n")[1].split("## ")[0]
    named = set(re.findall(r"`([a-z0-9]+)`", text))
    installed = re.findall(r'pip install -e "\.\[([\w,]+)\]"', README)

    assert {"asyncpg", "embedded"} <= named
    assert named | {extra for extras in installed for extra in extras.split(",")} <= {
        *project["optional-dependencies"]
    }


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
