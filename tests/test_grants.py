"""Each role may do what it is for, and nothing else: the server is asked."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, MetaData, create_engine, literal, select, text, true
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import BGJob, MoveToDlq, Worker, enqueue, enqueue_from, enqueue_many
from sqlalchemy_bgjob._grants import TASKS, grants
from sqlalchemy_bgjob.cli import cli
from support import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy_bgjob._grants import Task

pytestmark = pytest.mark.core

SCHEMA = 'We"ird Schema'


class Roles:
    """A queue in a schema of an owner's, and an engine for each role."""

    def __init__(self, owner: Engine, stack: ExitStack) -> None:
        self.owner = owner
        self.jobs: BGJob[Any, Any] = BGJob(MetaData(), schema=SCHEMA)

        @self.jobs.handler("t", max_attempts=1)
        def handle(ctx: Any, arg: int) -> MoveToDlq | None:
            return MoveToDlq("no") if arg < 0 else None

        @self.jobs.handler("of rows")
        def of_rows(ctx: Any, arg: dict[str, int]) -> None: ...

        self.handle, self.of_rows = handle, of_rows
        with owner.begin() as connection:
            connection.execute(text('CREATE SCHEMA "We""ird Schema"'))
            self.jobs.metadata.create_all(connection)
        self.engines = {task: self._make(task, stack) for task in TASKS}

    def _make(self, task: Task, stack: ExitStack) -> Engine:
        name = f"{task} {self.owner.url.database}"
        with self.owner.begin() as connection:
            connection.execute(text(f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'secret'"))
            for statement in grants(
                [(task, name)], schema=SCHEMA, table_prefix="bgjob_"
            ).splitlines():
                connection.execute(text(statement))
        engine = create_engine(self.owner.url.set(username=name, password="secret"))
        stack.callback(self._drop, name)
        stack.callback(engine.dispose)
        return engine

    def _drop(self, name: str) -> None:
        with self.owner.begin() as connection:
            connection.execute(text(f'DROP OWNED BY "{name}"'))
            connection.execute(text(f'DROP ROLE "{name}"'))

    def put(self, *args: int) -> None:
        enqueue_many(self.owner, self.handle, args)

    def count(self, table: str) -> int:
        with self.owner.connect() as connection:
            return int(
                connection.execute(
                    text(f'SELECT count(*) FROM "We""ird Schema".bgjob_{table}')
                ).scalar_one()
            )


@pytest.fixture
def roles(engine: Engine) -> Iterator[Roles]:
    with ExitStack() as stack:
        yield Roles(engine, stack)


@contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(ProgrammingError) as error:
        yield
    assert error.value.orig.sqlstate == "42501"  # type: ignore[union-attr]


def sql(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement.replace("@", '"We""ird Schema".bgjob_')))


def test_who_enqueues_may_in_every_way(roles: Roles) -> None:
    engine, jobs = roles.engines["enqueue"], roles.jobs

    enqueue(engine, roles.handle, 1, id="own")
    assert enqueue(engine, roles.handle, 1, id="own", on_conflict="ignore").inserted is False
    enqueue_many(engine, roles.handle, [1, 2])
    enqueue_many(engine, roles.handle, range(2_000))
    enqueue_many(engine, roles.handle, [1], ids=["another"])
    enqueue_from(engine, roles.of_rows, select(literal(1).label("n")))
    with Session(engine) as session, session.begin():
        session.add(roles.handle.job(1))
        job = jobs.Job(queue="q", type="t", arg=1)
        session.add(job)
        session.flush()
        assert job.attempt == 0

    assert roles.count("job") == 1 + 2 + 2_000 + 1 + 1 + 2


def test_a_worker_claims_runs_and_settles(roles: Roles) -> None:
    roles.put(1, -1)

    with Worker(roles.jobs, roles.engines["worker"], queues={"default": 2}):
        wait_until(lambda: roles.count("job") == 0, 20, what="the end of the jobs")
        assert roles.count("worker") == 1

    assert (roles.count("dead_job"), roles.count("worker")) == (1, 0)


def test_an_operator_cancels_redrives_and_prunes(roles: Roles) -> None:
    roles.put(-1)
    with Worker(roles.jobs, roles.engines["worker"]):
        wait_until(lambda: roles.count("dead_job") == 1, 20, what="the dead job")
    engine, jobs = roles.engines["operator"], roles.jobs

    with Session(engine) as session, session.begin():
        session.scalars(select(jobs.DeadJob)).one().arg = b"5"
    (redriven,) = jobs.redrive(engine, true()).ids
    assert jobs.cancel(engine, redriven) is True
    assert jobs.prune(engine, 0) == 0


def test_who_only_looks_sees_all_but_args(roles: Roles) -> None:
    roles.put(1)
    engine, job = roles.engines["dashboard"], roles.jobs.models.job

    columns = [column for column in job.c if column.name != "arg"]
    with engine.connect() as connection:
        assert len(connection.execute(select(*columns)).all()) == 1
    sql(engine, "SELECT * FROM @worker")


@pytest.mark.parametrize(
    ("task", "statement"),
    [
        ("enqueue", "SELECT arg FROM @job"),
        ("enqueue", "SELECT last_error FROM @job"),
        ("enqueue", "UPDATE @job SET priority = 0"),
        ("enqueue", "DELETE FROM @job"),
        ("enqueue", "SELECT id FROM @dead_job"),
        ("enqueue", "SELECT hostname FROM @worker"),
        ("enqueue", "UPDATE @worker SET beat_at = now()"),
        ("worker", "SELECT arg FROM @dead_job"),
        ("worker", "DELETE FROM @dead_job"),
        ("worker", "TRUNCATE @job"),
        ("operator", "UPDATE @job SET claimed_by = 1"),
        ("operator", "UPDATE @worker SET beat_at = now()"),
        ("operator", "INSERT INTO @dead_job DEFAULT VALUES"),
        ("dashboard", "SELECT arg FROM @job"),
        ("dashboard", "SELECT arg FROM @dead_job"),
        ("dashboard", "INSERT INTO @job (id, queue, type) VALUES ('a', 'b', 'c')"),
        ("dashboard", "UPDATE @job SET priority = 0"),
        ("dashboard", "DELETE FROM @job"),
        *((task, "ALTER TABLE @job ADD COLUMN mine int") for task in ("worker", "operator")),
        *((task, "DROP TABLE @job") for task in TASKS),
    ],
)
def test_what_is_not_granted_is_refused(roles: Roles, task: Task, statement: str) -> None:
    with refused():
        sql(roles.engines[task], statement)


def test_the_command_prints_them() -> None:
    printed = CliRunner().invoke(
        cli,
        ["grants", "--worker", "jobs", "--enqueue", 'o"dd', "--schema", "app"],
        standalone_mode=False,
    )

    assert printed.return_value == 0
    assert printed.output == grants(
        [("enqueue", 'o"dd'), ("worker", "jobs")], schema="app", table_prefix="bgjob_"
    )
    assert 'GRANT USAGE ON SCHEMA "app" TO "o""dd";\n' in printed.output


def test_the_command_needs_a_role() -> None:
    refused = CliRunner().invoke(cli, ["grants"], standalone_mode=False)
    assert refused.return_value == 2
    assert "name a role with at least one of --enqueue, --worker, --operator, --dashboard" in (
        refused.output
    )
