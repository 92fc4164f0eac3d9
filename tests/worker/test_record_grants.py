"""What ``grants --records`` prints is enough for each role, and no more than it needs."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, MetaData, create_engine, text
from sqlalchemy.exc import ProgrammingError

from sqlalchemy_bgjob import BGJob, Complete, Context, Worker, enqueue
from sqlalchemy_bgjob._inspect import counts, records
from sqlalchemy_bgjob._inspect.doctor import examine
from sqlalchemy_bgjob._lifecycle import audit
from sqlalchemy_bgjob._lifecycle.records import delete_old_counts, delete_old_records
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob.cli import cli
from sqlalchemy_bgjob.schema._grants import TASKS, grants
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

jobs: BGJob[Any, Any] = BGJob(MetaData(), records=True)


@jobs.handler("t", record=3600)
def handler(ctx: Context[Any]) -> Complete[int]:
    ctx.progress(1)
    return Complete(7)


@pytest.fixture
def roles(engine: Engine) -> Iterator[dict[str, Engine]]:
    """An engine for each role."""
    jobs.metadata.create_all(engine)
    with ExitStack() as stack:
        yield {task: made(engine, task, stack) for task in TASKS}


def made(owner: Engine, task: Any, stack: ExitStack) -> Engine:
    name = f"{task} {owner.url.database}"
    with owner.begin() as connection:
        connection.execute(text(f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'secret'"))
        given = grants([(task, name)], schema=None, table_prefix="bgjob_", records=True)
        for statement in given.splitlines():
            connection.execute(text(statement))

    def drop() -> None:
        with owner.begin() as connection:
            connection.execute(text(f'DROP OWNED BY "{name}"'))
            connection.execute(text(f'DROP ROLE "{name}"'))

    stack.callback(drop)
    role = create_engine(owner.url.set(username=name, password="secret"), pool_size=8)
    stack.callback(role.dispose)
    return role


def test_each_role_can_do_its_part(roles: dict[str, Engine], engine: Engine) -> None:
    done, cancelled = (enqueue(roles["enqueue"], handler).id for _ in range(2))
    assert jobs.cancel(roles["operator"], cancelled) == "cancelled"
    with Worker(jobs, roles["worker"], queues=["default"]):
        wait_until(lambda: jobs.record(engine, done))
        found = jobs.wait(roles["enqueue"], done, timeout=60)
        assert found is not None
        assert found.result == 7
    hour = timedelta(hours=1)
    with roles["dashboard"].connect() as connection:
        page = records.page(connection, None, "bgjob_", limit=9)
        assert {one.state for one in page} == {"completed", "cancelled"}
        history = counts.Window(hour, 2).look(connection, None, "bgjob_")
        assert [one.outcomes for one in history.types.values()] == [{"completed": 1}]
        found = records.find(connection, None, "bgjob_", done, with_result=False).record
        assert found in page
        with pytest.raises(ProgrammingError):
            connection.execute(text("SELECT result FROM bgjob_record"))
    with roles["worker"].connect() as connection:
        statements = statements_of(jobs.models)
        assert delete_old_records(connection, statements, limit=9) == 0
        assert delete_old_counts(connection, statements, keep=0, limit=9) == 1
        assert audit.delete_old(connection, statements, keep=0, limit=9) == 0


def test_doctor_and_check_tell_what_is_lacking(roles: dict[str, Engine], engine: Engine) -> None:
    def told() -> list[str]:
        with roles["worker"].connect() as connection:
            found = examine(connection, schema=None, table_prefix="bgjob_")
        return [one.text for one in found if one.check == "privileges"]

    assert told() == ["those of a worker"]
    with engine.begin() as connection:
        name = roles["worker"].url.username
        connection.execute(text(f'REVOKE INSERT ON bgjob_minute FROM "{name}"'))

    (lacking,) = told()
    assert 'lacks INSERT ON "bgjob_minute"' in lacking
    assert 'run: GRANT INSERT ON "bgjob_minute" TO' in lacking
    url = roles["worker"].url.render_as_string(hide_password=False)
    for before in ("", "DROP TABLE bgjob_audit"):  # tables of records from before the audit
        with engine.begin() as connection:
            connection.execute(text(before or "SELECT 1"))
        probe = CliRunner().invoke(cli, ["check", "--database-url", url], standalone_mode=False)
        assert 'lacks INSERT ON "bgjob_minute"' in probe.output
