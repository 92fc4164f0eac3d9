"""Commands that act leave a row of the audit, in the transaction that acts."""

from __future__ import annotations

import os
import pwd
import socket
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from sqlalchemy_bgjob import schema
from sqlalchemy_bgjob.cli import jobs as job_commands
from sqlalchemy_bgjob.cli.on_tables import os_account
from support import cli_app as app
from support.cli import add, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bgjob(tables: Engine, in_process: None, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command on this test's database, which has tables of records."""
    with tables.begin() as connection:
        schema.migrate(connection, records=True)
        connection.execute(
            text(
                "INSERT INTO bgjob_dead_job (id, job_id, queue, type, arg, attempt, lease,"
                " next_run_at, job_created_at, job_updated_at, moved_at) SELECT 'd' || n, 'd' || n,"
                " 'mail', 't', '{}', 1, 1, now(), now(), now(), now() - interval '2 days'"
                " FROM generate_series(1, 4) AS n"
            )
        )
    monkeypatch.setenv("BGJOB_DATABASE_URL", tables.url.render_as_string(hide_password=False))
    return run


def rows(engine: Engine) -> list[tuple[Any, ...]]:
    """Verb, changed rows, details and what was given, the first thing first."""
    statement = "SELECT verb, changed, details, given FROM bgjob_audit ORDER BY at, id"
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def test_each_command_that_acts_leaves_its_row(
    bgjob: Run, tables: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reads, counts, enqueues or changes nothing leaves none."""
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setattr(job_commands, "_AT_ONCE", 2)
    for n in range(3):
        add(tables, app.note, "x", id=f"n{n}", delay=3600)
    app.functions.schedules.put(tables, "nightly", app.note, "x", cron="0 3 * * *")

    def act(*words: str) -> str:
        code, out, err = bgjob(*words)
        assert code == 0, err
        return out

    act("pause", "mail", "--by", "ada", "--reason", "down", "--until", "30m")
    act("slots", "mail", "3")
    act("resume", "mail")
    act("resume", "mail")
    act("schedules", "pause", "nightly")
    act("schedules", "resume", "nightly")
    made = act("schedules", "run-now", "nightly").strip()
    act("jobs", "edit", "n0", '{"token": "s3cret"}', "--priority", "7")
    bgjob("jobs", "edit", "n0", "1", "--lease", "99")
    act("jobs", "list")
    bgjob("jobs", "run-now", "queue:default")
    act("jobs", "run-now", "id:n0,n1,n2", "-arg.a:zzz", "--yes")
    act("jobs", "cancel", "id:n0,n1,n2", "--yes")
    act("dlq", "list")
    act("dlq", "edit", "d1", '{"token": "s3cret", "a": 1}')
    act("dlq", "redrive", "--all", "--limit", "1", "--dry-run")
    act("dlq", "redrive", "--id", "d1", "--per-second", "5")
    bgjob("dlq", "prune", "--older-than", "1d")
    act("dlq", "prune", "--older-than", "1d", "--type", "t", "--yes")
    act("dlq", "prune", "--older-than", "1d", "--type", "t", "--yes")
    act("enqueue", "t", "1", "--queue", "mail")

    by_arg = {"search": "id:n0,n1,n2 -arg.a:[hidden]"}
    queued = {"search": "id:n0,n1,n2 -state:running,cancelling"}
    assert rows(tables) == [
        ("pause", 1, {"queue": "mail", "by": "ada", "reason": "down", "until": 1800.0}, None),
        ("slots", 1, {"queue": "mail", "slots": 3}, None),
        ("resume", 1, {"queue": "mail"}, None),
        ("schedule-pause", 1, {"name": "nightly", "by": "somebody"}, None),
        ("schedule-resume", 1, {"name": "nightly"}, None),
        ("schedule-run", 1, {"name": "nightly", "id": made}, None),
        ("change", 1, {"id": "n0", "priority": 7}, {"arg": {"token": "[hidden]"}}),
        ("run", 2, by_arg, None),
        ("run", 1, by_arg, None),
        ("cancel", 2, queued, None),
        ("cancel", 1, queued, None),
        ("edit", 1, {"id": "d1"}, {"arg": {"token": "[hidden]", "a": 1}}),
        ("redrive", 1, {"ids": ["d1"], "per_second": 5.0}, None),
        ("delete", 3, {"type": "t", "older_than": 86400.0}, None),
    ]
    with tables.connect() as connection:
        who = connection.execute(text("SELECT DISTINCT who, origin FROM bgjob_audit")).one()
    name = pwd.getpwuid(os.getuid()).pw_name
    assert tuple(who) == (f"{name}@{socket.gethostname()}", "command line")


def test_a_command_whose_row_is_refused_changes_nothing(bgjob: Run, tables: Engine) -> None:
    """And says so."""
    with tables.begin() as connection:
        connection.execute(text("ALTER TABLE bgjob_audit ADD CHECK (verb <> 'delete')"))

    code, out, err = bgjob("dlq", "prune", "--older-than", "1d", "--yes")

    assert (code, "pruned" in out) == (1, False)
    assert "bgjob_audit" in err
    with tables.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM bgjob_dead_job")) == 4
    assert rows(tables) == []


def test_tables_from_before_the_audit_are_to_be_migrated(bgjob: Run, tables: Engine) -> None:
    """Until then a command changes nothing, so no record is left live without its job."""
    add(tables, app.note, "x", id="n", delay=3600)
    with tables.begin() as connection:
        connection.execute(text("DROP TABLE bgjob_audit"))
        connection.execute(
            text(
                "INSERT INTO bgjob_record (job_id, queue, type, state, attempt, lease, enqueued_at,"
                " due_at, keep_until) SELECT id, queue, type, 'live', 0, lease, created_at,"
                " next_run_at, 'infinity' FROM bgjob_job"
            )
        )

    def state() -> tuple[Any, ...]:
        count = "SELECT (SELECT count(*) FROM bgjob_job), state FROM bgjob_record"
        with tables.connect() as connection:
            return tuple(connection.execute(text(count)).one())

    code, _, err = bgjob("jobs", "cancel", "id:n", "--yes")
    assert (code, state()) == (1, (1, "live"))
    assert "migrate --records" in err

    assert bgjob("migrate", "--records")[0] == 0
    assert bgjob("jobs", "cancel", "id:n", "--yes")[0] == 0
    assert state() == (0, "cancelled")


def test_without_tables_of_records_commands_act_as_before(bgjob: Run, tables: Engine) -> None:
    with tables.begin() as connection:
        schema.records.downgrade(connection, from_version=1)

    assert bgjob("pause", "mail")[0] == 0
    assert bgjob("dlq", "prune", "--older-than", "1d", "--yes")[0] == 0


def test_who_has_no_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert os_account() == f"{os.getuid()}@{socket.gethostname()}"
