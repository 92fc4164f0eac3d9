"""Each role may do what it is for, and nothing else: the server is asked."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, MetaData, create_engine, delete, event, literal, select, text, true
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import (
    AsyncWorker,
    BGJob,
    MoveToDlq,
    Reschedule,
    Unique,
    Worker,
    WorkerSettings,
    enqueue,
    enqueue_from,
    enqueue_many,
)
from sqlalchemy_bgjob._db.errors import sqlstate
from sqlalchemy_bgjob._inspect.doctor import examine
from sqlalchemy_bgjob._worker import drain, preflight
from sqlalchemy_bgjob.cli import cli
from sqlalchemy_bgjob.exceptions import WorkerRefused
from sqlalchemy_bgjob.schema._grants import TASKS, grants, needs
from sqlalchemy_bgjob.schema._names import quoted
from sqlalchemy_bgjob.testing.faults import let_time_pass
from support import wait_until, wait_until_async
from support.running import FLAVORS
from support.tuning import Tune

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy_bgjob.schema._grants import Task
    from support.running import Flavor

SCHEMA = 'We"ird Schema'


class Roles:
    """A queue in a schema of an owner's, and an engine for each role."""

    def __init__(self, owner: Engine, stack: ExitStack) -> None:
        self.owner = owner
        self.jobs: BGJob[Any, Any] = BGJob(MetaData(), schema=SCHEMA)

        @self.jobs.handler("t", max_attempts=1)
        def handle(ctx: Any, arg: int) -> MoveToDlq | None:
            return MoveToDlq("no") if arg < 0 else None

        @self.jobs.handler("every end", max_attempts=2)
        def every_end(ctx: Any, arg: str) -> Any:
            match arg:
                case "enqueue":
                    enqueue(ctx.session, handle, 1)
                    for _ in range(2):
                        enqueue(ctx.session, handle, 1, unique=Unique("over", period=60))
                    with self.jobs.batch(ctx.session) as batch:
                        enqueue(ctx.session, handle, 1, batch=batch)
                case "retry" if ctx.job.attempt == 1:
                    raise ValueError
                case "reschedule" if ctx.job.attempt == 1:
                    return Reschedule(0, arg="done")
                case "dead":
                    return MoveToDlq("no")
            return None

        @self.jobs.handler("of rows")
        def of_rows(ctx: Any, arg: dict[str, int]) -> None: ...

        self.handle, self.every_end, self.of_rows = handle, every_end, of_rows
        for name in ("new", "due"):
            self.jobs.schedule("@yearly", name=name, arg=1)(handle)
        with owner.begin() as connection:
            connection.execute(text('CREATE SCHEMA "We""ird Schema"'))
            self.jobs.metadata.create_all(connection)
        self.engines = {task: self._make(task, stack) for task in TASKS}

    def _make(self, task: Task, stack: ExitStack) -> Engine:
        name = self.name(task)
        with self.owner.begin() as connection:
            connection.execute(text(f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'secret'"))
        self.grant(task)
        engine = create_engine(self.owner.url.set(username=name, password="secret"))
        stack.callback(self._drop, name)
        stack.callback(engine.dispose)
        return engine

    def grant(self, task: Task) -> None:
        given = grants([(task, self.name(task))], schema=SCHEMA, table_prefix="bgjob_")
        with self.owner.begin() as connection:
            connection.exec_driver_sql(given)

    @contextmanager
    def without(self, task: Task, privilege: str) -> Iterator[None]:
        """Take a privilege from a role, and give it back."""
        sql(self.owner, f'REVOKE {privilege} FROM "{self.name(task)}"')
        try:
            yield
        finally:
            self.grant(task)

    def _drop(self, name: str) -> None:
        with self.owner.begin() as connection:
            connection.execute(text(f'DROP OWNED BY "{name}"'))
            connection.execute(text(f'DROP ROLE "{name}"'))

    def name(self, task: Task) -> str:
        return f"{task} {self.owner.url.database}"

    def put(self, *args: int) -> None:
        enqueue_many(self.owner, self.handle, args)

    def count(self, table: str) -> int:
        with self.owner.connect() as connection:
            return int(
                connection.execute(
                    text(f'SELECT count(*) FROM "We""ird Schema".bgjob_{table}')
                ).scalar_one()
            )


@pytest.fixture(scope="module")
def shared(module_engine: Engine) -> Iterator[Roles]:
    with ExitStack() as stack:
        yield Roles(module_engine, stack)


@pytest.fixture
def roles(shared: Roles) -> Roles:
    """The same for all tests of the module; the tables are empty."""
    tables = ("job", "dead_job", "worker", "schedule", "unique_period", "batch")
    sql(shared.owner, ";".join(f"DELETE FROM @{table}" for table in tables))
    return shared


@contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(ProgrammingError) as error:
        yield
    assert error.value.orig.sqlstate == "42501"  # type: ignore[union-attr]


def sql(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement.replace("@", '"We""ird Schema".bgjob_')))


def enqueue_in_every_way(roles: Roles) -> None:
    engine, jobs = roles.engines["enqueue"], roles.jobs
    enqueue(engine, roles.handle, 1, id="own")
    assert enqueue(engine, roles.handle, 1, id="own", on_conflict="ignore").inserted is False
    enqueue_many(engine, roles.handle, [1, 2])
    enqueue_many(engine, roles.handle, [1], ids=["another"])
    enqueue_from(engine, roles.of_rows, select(literal(1).label("n")))
    key = str(uuid4())
    for unique in (key, Unique(key, "queued"), Unique(key, period=60)):
        assert enqueue(engine, roles.handle, 1, unique=unique).inserted
        assert not enqueue(engine, roles.handle, 1, unique=unique).inserted
    enqueue(engine, roles.handle, 1, unique=f"soon {key}", expires=60)
    let_time_pass(roles.owner, jobs, 61)
    assert enqueue(engine, roles.handle, 1, unique=f"soon {key}").inserted
    assert enqueue(engine, roles.handle, 1, unique=Unique(key, period=60)).inserted
    rows = select(literal(1).label("n"))
    enqueue_from(engine, roles.of_rows, rows, unique=Unique(literal("r"), "queued"))
    with Session(engine) as session, session.begin():
        session.add(roles.handle.job(1, expires=30))
        job = jobs.Job(queue="q", type="t", arg=1)
        session.add(job)
        session.flush()
        read_back = ("attempt", "crashes", "lease", "next_run_at", "created_at", "updated_at")
        assert all(getattr(job, name) is not None for name in read_back)
    with Session(engine) as session, session.begin(), jobs.batch(session) as batch:
        enqueue(session, roles.handle, 1, batch=batch)
    assert jobs.batch_info(engine, batch.id) is not None
    enqueue_many(engine, roles.handle, range(2_000))


def test_who_enqueues_may_in_every_way(roles: Roles) -> None:
    enqueue_in_every_way(roles)

    assert roles.count("job") == 1 + 2 + 2_000 + 1 + 1 + 7 + 2 + 1


@pytest.mark.core
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
        session.scalars(select(jobs.DeadJob)).one().arg = 5
    (redriven,) = jobs.redrive(engine, true()).ids
    assert jobs.cancel(engine, redriven) == "cancelled"
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
        ("worker", "DELETE FROM @schedule"),
        ("enqueue", "SELECT name FROM @schedule"),
        ("dashboard", "SELECT arg FROM @schedule"),
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


# ---- each privilege is needed, and no other ------------------------------------------------------

SINGLE = [
    (task, one.kind, one.verb, column)
    for task in TASKS
    for one in needs(task)
    for column in (one.columns or (None,))
]


@pytest.fixture
def refusals() -> Iterator[list[str]]:
    """What the server refuses to any engine of this process while a test runs."""
    heard: list[str] = []

    def note(context: Any) -> None:
        if sqlstate(context.original_exception) == "42501":
            heard.append(str(context.original_exception))

    def plain(*_: Any) -> None: ...

    event.listen(Engine, "handle_error", note)
    # A claim that nobody listens to goes by the driver, past the event above.
    event.listen(Engine, "before_cursor_execute", plain)
    yield heard
    event.remove(Engine, "handle_error", note)
    event.remove(Engine, "before_cursor_execute", plain)


def put_one_of_each_end(roles: Roles) -> None:
    """And a schedule in code that is due; another has no row yet. A period and a batch are over."""
    sql(
        roles.owner,
        "INSERT INTO @unique_period (key, job_id, until)"
        " SELECT key, '', now() - interval '1 day' FROM unnest(ARRAY['over', 'old']) AS key",
    )
    sql(
        roles.owner,
        "INSERT INTO @schedule (name, source, type, queue, arg, cron, next_at)"
        " VALUES ('due', 'code', 't', 'default', '1', '@yearly', now() - interval '1 s')",
    )
    old = "('old', now() - interval '1 month')"
    sql(roles.owner, f"INSERT INTO @batch (id, finished_at) VALUES {old}")
    ends = ("complete", "enqueue", "retry", "reschedule", "dead")
    enqueue_many(roles.owner, roles.every_end, ends)


def work(roles: Roles, refusals: list[str]) -> None:
    put_one_of_each_end(roles)
    with pytest.MonkeyPatch.context() as patch:
        # What is refused is not waited for at the worker's end.
        Tune(patch)(drain, COMMITTED_WITHIN=0.1, RELEASED_WITHIN=0.1)
        # Or it would not start, and nobody would know that the server refuses it.
        patch.setattr(preflight, "lacks", lambda *_, **__: [])
        settings = {"shutdown_timeout": 0.1, "health_interval": 0.1, "rescue_interval": 0.1}
        with Worker(roles.jobs, roles.engines["worker"], queues={"default": 2}, **settings):
            wait_until(lambda: refusals or done(roles), 60, what="the end of the jobs")


def done(roles: Roles) -> bool:
    return [roles.count(table) for table in ("job", "unique_period", "batch")] == [0, 1, 1]


def operate(roles: Roles) -> None:
    engine, jobs = roles.engines["operator"], roles.jobs
    enqueue(roles.owner, roles.handle, 1, id="live", delay=60)
    columns = "id, job_id, queue, type, lease, next_run_at, job_created_at, job_updated_at"
    for id in ("1", "2"):
        values = f"'{id}', 'dead {id}', 'q', 't', 1, now(), now(), now()"
        sql(roles.owner, f"INSERT INTO @dead_job ({columns}) VALUES ({values})")
    with Session(engine) as session, session.begin():
        for model in (jobs.Job, jobs.WorkerRow):
            session.scalars(select(model)).all()
        session.get_one(jobs.DeadJob, "1").arg = 5
    assert jobs.redrive(engine, jobs.DeadJob.id == "1").ids == ("dead 1",)
    assert jobs.prune(engine, 0) == 1
    assert jobs.run_now(engine, jobs.Job.id == "live") == 1
    changes: Any = {"arg": 2, "headers": {"x": 1}, "priority": 3, "delay": 60}
    assert jobs.edit(engine, "live", **changes) == "edited"
    assert jobs.cancel(engine, "live") == "cancelled"
    with Session(roles.owner) as session, session.begin(), jobs.batch(session) as batch:
        enqueue(session, roles.handle, 1, batch=batch)
    assert jobs.batch_info(engine, batch.id) is not None
    with Session(engine) as session, session.begin():
        jobs.cancel_where(session, jobs.Job.batch_id == batch.id)
        session.execute(delete(jobs.Batch).where(jobs.Batch.id == batch.id))
    its = jobs.schedules
    its.put(engine, "s", roles.handle, 1, cron="@daily")
    assert its.pause(engine, "s")
    assert its.resume(engine, "s")
    assert its.run_now(engine, "s")
    assert its.remove(engine, "s")
    jobs.pause(engine, "q")
    jobs.set_slots(engine, "q", 2)
    assert jobs.resume(engine, "q") is True
    jobs.set_slots(engine, "q", None)


def look(roles: Roles) -> None:
    with roles.engines["dashboard"].connect() as connection:
        jobs = roles.jobs
        for model in (jobs.Job, jobs.DeadJob, jobs.WorkerRow, jobs.Schedule, jobs.Batch):
            columns = [column for column in model.__table__.c if not column.name.endswith("arg")]
            connection.execute(select(*columns)).all()
        roles.jobs.pressure(connection, "q")


def act(roles: Roles, task: Task, refusals: list[str]) -> None:
    """Do all that a role is for; it ends early where the server refuses something."""
    acts: dict[Task, Callable[[], None]] = {
        "enqueue": lambda: enqueue_in_every_way(roles),
        "worker": lambda: work(roles, refusals),
        "operator": lambda: operate(roles),
        "dashboard": lambda: look(roles),
    }
    try:
        acts[task]()
    except (DBAPIError, WorkerRefused) as error:
        cause = error.__cause__ if isinstance(error, WorkerRefused) else error
        if sqlstate(cause) != "42501":
            raise


@pytest.mark.core
@pytest.mark.parametrize("task", TASKS)
def test_what_is_granted_is_enough(roles: Roles, task: Task, refusals: list[str]) -> None:
    act(roles, task, refusals)

    assert refusals == []


@pytest.mark.core
@pytest.mark.parametrize("flavor", [FLAVORS[0], FLAVORS[-1]], ids=str)
def test_it_is_enough_for_each_kind_of_worker(
    roles: Roles, flavor: Flavor, refusals: list[str]
) -> None:
    """With a dead worker's jobs to take over; and the doctor is content with the role."""
    sql(
        roles.owner,
        "INSERT INTO @worker (id, hostname, pid, version, queues, lease_timeout, beat_at)"
        " VALUES (7, 'far', 42, '0', '{}', 1, now() - interval '1 hour')",
    )
    put_one_of_each_end(roles)
    sql(roles.owner, "UPDATE @job SET claimed_by = 7, attempt = 1, lease = lease + 1")
    url = roles.engines["worker"].url.set(drivername=f"postgresql+{flavor.driver}")
    options = {
        "queues": {"default": 2},
        "settings": WorkerSettings(heartbeat_interval=0.5, lease_timeout=3, rescue_interval=0.5),
    }

    def done() -> bool:
        return bool(refusals) or (roles.count("job"), roles.count("worker")) == (0, 1)

    async def run() -> None:
        engine = create_async_engine(url)
        functions = create_engine(url.set(drivername="postgresql+psycopg"))
        async with AsyncWorker(roles.jobs, engine, sync_engine=functions, **options):
            await wait_until_async(done, 60, what="the end of the jobs")
        await engine.dispose()
        functions.dispose()

    if flavor.is_async:
        asyncio.run(run())
    else:
        engine = create_engine(url)
        with Worker(roles.jobs, engine, **options):
            wait_until(done, 60, what="the end of the jobs")
        engine.dispose()

    assert refusals == []
    assert roles.count("dead_job") == 1
    assert privilege_problems(roles) == []


@pytest.mark.parametrize(("task", "kind", "verb", "column"), SINGLE)
def test_each_privilege_is_needed(
    roles: Roles, task: Task, kind: str, verb: str, column: str | None, refusals: list[str]
) -> None:
    """Without it the server refuses that table, and the doctor tells a worker which it is."""
    which = verb if column is None else f'{verb} ("{column}")'
    with roles.without(task, f"{which} ON @{kind}"):
        act(roles, task, refusals)

        assert {message.splitlines()[0].split()[-1] for message in refusals} == {f"bgjob_{kind}"}
        if task == "worker":
            (problem,) = privilege_problems(roles)
            told = next(
                str(one)
                for one in needs(task)
                if (one.kind, one.verb) == (kind, verb) and (not column or column in one.columns)
            )
            assert f'lacks {told} ON "We""ird Schema"."bgjob_{kind}",' in problem


@pytest.mark.core
@pytest.mark.parametrize("kind", ["control", "job", "worker"])
def test_a_worker_that_would_run_nothing_does_not_start(roles: Roles, kind: str) -> None:
    """As after a migration to tables that its role knows nothing of; the remedy can be pasted."""
    engine, table = roles.engines["worker"], f'"We""ird Schema"."bgjob_{kind}"'
    with roles.without("worker", f"SELECT ON @{kind}"):
        with pytest.raises(WorkerRefused) as error, Worker(roles.jobs, engine):
            pass
        assert error.value.problem == f"this role lacks SELECT ON {table}, which a worker needs"
        remedy = f'GRANT SELECT ON {table} TO "{roles.name("worker")}";'
        assert error.value.remedy == f"as the owner of the tables run: {remedy}"

        sql(roles.owner, remedy)
        with Worker(roles.jobs, engine):
            wait_until(lambda: roles.count("worker") == 1)


def test_a_worker_that_lacks_what_few_need_says_so(
    roles: Roles, caplog: pytest.LogCaptureFixture
) -> None:
    engine = roles.engines["worker"]
    with (
        roles.without("worker", "INSERT, UPDATE ON @schedule"),
        roles.without("worker", "DELETE ON @unique_period"),
        Worker(roles.jobs, engine),
    ):
        wait_until(lambda: roles.count("worker") == 1)

    for what in ("INSERT, UPDATE ON {}schedule", "DELETE ON {}unique_period"):
        lacks = what.format('"We""ird Schema"."bgjob_') + '"'
        to = f'"{roles.name("worker")}"'
        assert (
            f"this role lacks {lacks}, which a worker needs; as the owner of the tables run: "
            f"GRANT {lacks} TO {to};"
        ) in caplog.messages


def test_check_tells_what_a_role_lacks(roles: Roles) -> None:
    url = roles.engines["worker"].url.render_as_string(hide_password=False)
    arguments = ["check", "--database-url", url, "--schema", SCHEMA]
    with Worker(roles.jobs, roles.engines["worker"]):
        wait_until(lambda: roles.count("worker") == 1)
        with roles.without("worker", "UPDATE ON @schedule"):
            told = CliRunner().invoke(cli, arguments, standalone_mode=False)
        with roles.without("worker", "SELECT ON @control"):
            refused = CliRunner().invoke(cli, arguments, standalone_mode=False)
        fine = CliRunner().invoke(cli, arguments, standalone_mode=False)

    lacks = 'this role lacks {} ON "We""ird Schema"."bgjob_{}", which a worker needs; as the owner'
    assert (told.return_value, refused.return_value, fine.return_value) == (0, 3, 0)
    assert lacks.format("UPDATE", "schedule") in told.output
    assert lacks.format("SELECT", "control") in refused.output
    assert "lacks" not in fine.output


@pytest.mark.core
def test_grants_of_all_columns_are_enough(roles: Roles) -> None:
    """Where nobody grants whole tables. One column less is told of, and ctid is one."""
    engine, to = roles.engines["worker"], f'"{roles.name("worker")}"'
    table = '"We""ird Schema"."bgjob_job"'
    names = [*roles.jobs.models.job.c.keys(), "ctid"]

    with roles.without("worker", "SELECT, UPDATE, INSERT ON @job"):
        for verb in ("SELECT", "UPDATE", "INSERT"):
            some = names if verb == "SELECT" else names[:-1]
            sql(roles.owner, f"GRANT {verb} ({', '.join(map(quoted, some))}) ON {table} TO {to}")
        assert privilege_problems(roles) == []
        enqueue(roles.owner, roles.handle, 1)
        with Worker(roles.jobs, engine):
            wait_until(lambda: roles.count("job") == 0)

        for column in ("ctid", "priority"):
            sql(roles.owner, f"REVOKE SELECT ({column}) ON {table} FROM {to}")
            (problem,) = privilege_problems(roles)
            assert f"lacks SELECT ON {table}" in problem
            sql(roles.owner, f"GRANT SELECT ({column}) ON {table} TO {to}")
    assert privilege_problems(roles) == []


def test_an_update_of_what_a_worker_writes_is_enough(roles: Roles, refusals: list[str]) -> None:
    to = f'"{roles.name("worker")}"'
    written = {
        one.kind: ", ".join(map(quoted, one.enough)) for one in needs("worker") if one.enough
    }

    with ExitStack() as stack:
        for kind, columns in written.items():
            stack.enter_context(roles.without("worker", f"UPDATE ON @{kind}"))
            sql(roles.owner, f"GRANT UPDATE ({columns}) ON @{kind} TO {to}")
        assert privilege_problems(roles) == []
        work(roles, refusals)

        assert refusals == []
        for kind, columns in written.items():
            for column in columns.split(", "):
                sql(roles.owner, f"REVOKE UPDATE ({column}) ON @{kind} FROM {to}")
                (problem,) = privilege_problems(roles)
                assert f'lacks UPDATE ON "We""ird Schema"."bgjob_{kind}"' in problem
                sql(roles.owner, f"GRANT UPDATE ({column}) ON @{kind} TO {to}")


@pytest.mark.core
def test_a_schema_without_usage_is_told(roles: Roles) -> None:
    with roles.without("worker", 'USAGE ON SCHEMA "We""ird Schema"'):
        (problem,) = privilege_problems(roles)

    assert 'this role lacks USAGE ON SCHEMA "We""ird Schema", which a worker needs' in problem


def privilege_problems(roles: Roles) -> list[str]:
    with roles.engines["worker"].connect() as connection:
        found = examine(connection, schema=SCHEMA, table_prefix="bgjob_")
    return [one.text for one in found if (one.check, one.level) == ("privileges", "problem")]


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
