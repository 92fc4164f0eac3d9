"""The pages for those who come from elsewhere: their Python and SQL run, and do what they say.

Each is a program of its own, after the README's first block. What is marked ``py`` there and not
``python`` is the other library's.
"""

from __future__ import annotations

import re
import shlex
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import Complete, MoveToDlq, Reschedule, Retry, enqueue, schema
from sqlalchemy_bgjob.testing.faults import let_time_pass
from support.cli import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.databases import TestServer

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


class Program:
    """The README's app on a database of its own, and the names of a page that ran there."""

    def __init__(self, app: ModuleType) -> None:
        self.names: dict[str, Any] = vars(app)
        self.engine, self.jobs = self.names["engine"], self.names["jobs"]

    def run(self, page: str) -> None:
        for block in blocks(page):
            exec(compile(block, page, "exec"), self.names)
        self.names["Base"].metadata.create_all(self.engine)

    def __getattr__(self, name: str) -> Any:
        return self.names[name]

    def enqueue(self, handler: Any, *args: Any, **options: Any) -> str:
        return enqueue(self.engine, handler, *args, **options).id

    def work(self, queue: str) -> Any:
        return self.jobs.work_one(self.engine, queue)

    def bury(self, queue: str) -> None:
        """Let the next job of a queue die."""
        self.jobs.work_one(self.engine, queue, lambda ctx, arg: MoveToDlq("a test"))

    def pass_time(self, seconds: float) -> None:
        let_time_pass(self.engine, self.jobs, timedelta(seconds=seconds))

    def get(self, id: str) -> Any:
        """A live job."""
        with Session(self.engine) as session:
            return session.get(self.jobs.Job, id)

    def dead(self) -> list[str]:
        with Session(self.engine) as session:
            return list(session.scalars(select(self.jobs.DeadJob.job_id)))


@contextmanager
def readme_app(server: TestServer) -> Iterator[Program]:
    url = server.create_database("coming_from")
    app = ModuleType("app")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", url)
        patch.setitem(sys.modules, "app", app)
        definitions = blocks("README.md")[1].split('if __name__ == "__main__":\n')[0]
        exec(compile(definitions, "app.py", "exec"), vars(app))
        program = Program(app)
        program.names["Base"].metadata.create_all(program.engine)
        yield program
        program.engine.dispose()
    server.drop_database(url)


@pytest.fixture
def app(server: TestServer) -> Iterator[Program]:
    with readme_app(server) as program:
        yield program


@pytest.fixture(scope="module")
def celery(server: TestServer) -> Iterator[Program]:
    """What docs/from_celery.md defines; each test has a queue of its own."""
    with readme_app(server) as program:
        program.run("docs/from_celery.md")
        yield program


# ---- Celery --------------------------------------------------------------------------------------


def test_the_nightly_job_is_a_schedule(celery: Program) -> None:
    celery.jobs.schedules.run_now(celery.engine, "nightly")

    assert isinstance(celery.work("default"), Complete)
    schedule = celery.jobs.registry.schedules["nightly"]
    assert schedule.timetable.after(datetime(2026, 7, 15, tzinfo=UTC)).hour == 0


def test_turns_are_spent_one_at_a_time(celery: Program) -> None:
    with Session(celery.engine) as session, session.begin():
        session.add(celery.Turn(name="api"))
    for order in range(3):
        celery.enqueue(celery.call_api, order)

    outcomes = [type(celery.work("api")) for _ in range(3)]

    assert outcomes == [Complete, Reschedule, Reschedule]
    with celery.engine.begin() as connection:
        connection.execute(text("UPDATE turns SET free_at = free_at - interval '6 s'"))
    celery.pass_time(6)
    assert [type(celery.work("api")) for _ in range(2)] == [Complete, Reschedule]


def test_jobs_of_one_customer_run_one_at_a_time(celery: Program) -> None:
    for customer in (1, 1, 2):
        celery.enqueue(celery.sync_customer, customer)

    with Session(celery.engine) as first, Session(celery.engine) as second:
        outcomes = [celery.jobs.work_one(first, "sync")]
        outcomes += [celery.jobs.work_one(second, "sync") for _ in range(2)]
        assert [type(outcome) for outcome in outcomes] == [Complete, Reschedule, Complete]
        second.commit()
        first.commit()

    celery.pass_time(1)
    assert isinstance(celery.work("sync"), Complete)


def test_only_some_errors_are_retried(celery: Program) -> None:
    down = celery.enqueue(celery.call_webhook, "http://down")
    wrong = celery.enqueue(celery.call_webhook, "http://up")

    assert celery.work("hooks") is not None
    assert celery.work("hooks") is not None

    assert celery.get(down).attempt == 1
    assert celery.get(wrong) is None
    assert wrong in celery.dead()
    assert down not in celery.dead()


def test_the_second_job_is_enqueued_by_the_first(
    celery: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    celery.enqueue(celery.import_file, "a.csv")

    assert [type(celery.work("files")) for _ in range(2)] == [Complete, Complete]
    assert celery.work("files") is None
    assert capsys.readouterr().out == "a.csv is indexed\n"


def test_the_callback_comes_once_after_the_last_part(
    celery: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a part that is dead, when it was redriven and has completed."""
    with Session(celery.engine) as session, session.begin():
        celery.start_report(session, 7, 3)

    celery.bury("reports")
    while celery.work("reports") is not None:
        pass
    assert "complete" not in capsys.readouterr().out
    celery.jobs.redrive(celery.engine, celery.jobs.DeadJob.type == "report_part")
    while celery.work("reports") is not None:
        pass

    assert re.fullmatch(r"part \d of report 7\nreport 7 is complete\n", capsys.readouterr().out)


def test_a_function_looks_for_its_time_limit(celery: Program) -> None:
    celery.enqueue(celery.render, 2)
    assert isinstance(celery.work("pictures"), Complete)

    with pytest.raises(Retry):
        celery.render(SimpleNamespace(cancelled=True), 2)


def test_a_handler_that_is_told_stops(celery: Program, capsys: pytest.CaptureFixture[str]) -> None:
    celery.enqueue(celery.crunch, 2)
    assert isinstance(celery.work("numbers"), Complete)
    celery.crunch(SimpleNamespace(cancelled=True), 2)
    with Session(celery.engine) as session, session.begin():
        assert not celery.stop(session, "no such job")
        assert celery.stop(session, celery.enqueue(celery.crunch, 2))

    assert capsys.readouterr().out == "step 0\nstep 1\n"


def test_progress_and_result_are_rows(celery: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    id = celery.enqueue(celery.add_up, list(range(2500)))
    seen: list[tuple[int, Any]] = []

    def total(numbers: list[int]) -> int:
        with Session(celery.engine) as session:
            row = session.get(celery.Sum, id)
            seen.append((row.done, celery.result_of(session, id)))
        return sum(numbers)

    monkeypatch.setitem(celery.names, "sum", total)
    with Session(celery.engine) as session:
        assert celery.result_of(session, id) is None

    assert isinstance(celery.work("numbers"), Complete)

    assert seen == [(2000, None)]
    with Session(celery.engine) as session:
        assert celery.result_of(session, id) == sum(range(2500))


# ---- RQ, Procrastinate, Go -----------------------------------------------------------------------


def test_the_page_for_rq_is_what_happens(app: Program) -> None:
    """One run was made by the page itself; the intervals follow."""
    app.run("docs/from_rq.md")
    with Session(app.engine) as session:
        (id,) = session.scalars(select(app.jobs.Job.id))

    for interval in (10, 30, 60):
        job = app.get(id)
        assert interval - 5 < (job.next_run_at - datetime.now(UTC)).total_seconds() <= interval
        app.pass_time(interval)
        assert isinstance(app.work("cards"), Retry)

    assert app.get(id) is None
    assert app.dead() == [id]


def test_the_page_for_procrastinate_is_what_happens(app: Program) -> None:
    app.run("docs/from_procrastinate.md")

    def ask() -> bool:
        with Session(app.engine) as session, session.begin():
            return bool(app.ask_for_rebuild(session, 7))

    assert [ask(), ask()] == [True, False]
    assert isinstance(app.work("rebuilds"), Complete)
    assert ask()


def test_the_page_for_go_is_what_happens(app: Program, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("docs/from_go_bgjob.md")
    exec(compile(block, "docs/from_go_bgjob.md", "exec"), app.names)
    jobs = app.names["jobs"]
    with app.engine.begin() as connection:
        schema.migrate(connection, schema="jobs")

    enqueue(app.engine, app.resize, b"\x00\x01", headers={"request-id": "r 1"})
    assert isinstance(jobs.work_one(app.engine, "pictures"), Complete)

    assert capsys.readouterr().out == "2 bytes for request r 1\n"
    (moving,) = blocks("docs/from_go_bgjob.md", "sql")
    with app.engine.connect() as connection:
        connection.exec_driver_sql(moving)
        assert schema.db_version(connection) == 0
        assert schema.db_version(connection, schema="go") == 2


# ---- Django's admin ------------------------------------------------------------------------------

ADMIN = "docs/from_django.md"
STATEMENTS = [
    statement.strip()
    for block in blocks(ADMIN, "sql")
    for statement in block.split(";\n")
    if statement.strip()
]


@pytest.fixture
def admin(app: Program) -> Program:
    """Jobs of each kind that the page speaks of."""
    for number in (7, 8, 9):
        app.enqueue(app.send_receipt, app.Receipt(number), id=f"receipt-{number}")
    app.jobs.work_one(app.engine, "mail", lambda ctx, arg: Reschedule(60))
    app.jobs.work_one(app.engine, "mail", lambda ctx, arg: Retry(60, "no\nline 2"))
    app.bury("mail")
    app.jobs.enqueue(app.engine, "resize", 1, queue="pictures")
    app.jobs.enqueue(app.engine, "resize", 2, queue="albums", id="runs")
    with app.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout)"
            " VALUES (5, 'h', 1, '0', '{\"albums\": 1}', 30);"
            "UPDATE bgjob_job SET claimed_by = 5 WHERE id = 'runs';"
            "INSERT INTO bgjob_dead_job SELECT id || ' of old', job_id || ' of old', queue, type,"
            " arg, priority, attempt, crashes, lease, last_error, headers, next_run_at,"
            " job_created_at, job_updated_at, moved_at - interval '40 days' FROM bgjob_dead_job"
        )
    return app


def test_each_statement_of_the_admin_page_finds_rows(admin: Program) -> None:
    assert len(STATEMENTS) == 11

    for statement in STATEMENTS:
        with admin.engine.connect() as connection:
            assert connection.exec_driver_sql(statement).rowcount > 0, statement
            connection.rollback()


def test_no_statement_of_the_admin_page_touches_what_runs(admin: Program) -> None:
    changes = [it for it in STATEMENTS if not it.startswith("SELECT")]
    before = admin.get("runs").__dict__

    with admin.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE bgjob_job SET queue = 'pictures', type = 'send_receipt' WHERE id = 'runs'"
        )
        for statement in changes:
            connection.exec_driver_sql(statement)

    assert len(changes) == 5
    after = admin.get("runs").__dict__
    same = {"priority", "next_run_at", "claimed_by", "lease"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_the_python_of_the_admin_page_is_what_happens(admin: Program, in_process: None) -> None:
    admin.run(ADMIN)

    assert admin.get("receipt-7") is None
    assert admin.get("receipt-8").state == "queued"
    assert admin.get("receipt-9").arg_json == {"order_id": 1}

    url = admin.engine.url.render_as_string(hide_password=False)
    one, all_of_an_hour = (
        line.replace("--engine app:engine", f"--database-url {url}")
        for line in re.findall(
            r"^\$ sqlalchemy-bgjob (dlq redrive .*)$", (ROOT / ADMIN).read_text(), re.MULTILINE
        )
    )
    all_of_a_year = all_of_an_hour.replace("1h", "365d").replace(" --dry-run", "")
    none = (1, "redrove 0 dead jobs\n", "")
    assert run(*shlex.split(one)) == none, "it is redriven already"
    assert run(*shlex.split(all_of_an_hour)) == (0, "would redrive 0 dead jobs\n", "")
    assert run(*shlex.split(all_of_a_year)) == (0, "redrove 1 dead job:\n  receipt-9 of old\n", "")
