"""``jobs``, ``schedules``, ``workers``, ``handlers``, ``enqueue`` and ``stats``."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click
import pytest
from sqlalchemy import select

from sqlalchemy_bgjob._process.exits import CommandError
from sqlalchemy_bgjob.cli.on_tables import json_arg
from support import cli_app as app
from support.cli import add
from support.commands import TESTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.keeps_tables


def ids(engine: Engine) -> list[str]:
    job = app.functions.models.job
    with engine.connect() as connection:
        return list(connection.scalars(select(job.c.id).order_by(job.c.id)))


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def some(tables: Engine) -> None:
    """Two due jobs, one for later, one of another queue."""
    add(tables, app.note, "one", id="n1")
    add(tables, app.note, "two", id="n2", priority=5)
    add(tables, app.note, "later", id="n3", delay=3600)
    add(tables, app.fail, "x", id="f1", queue="mail")


def process(engine: Engine, *words: str, stdin: str = "") -> tuple[int, str, str]:
    """The same by a process of its own, as it is typed."""
    done = subprocess.run(
        [sys.executable, "-m", "sqlalchemy_bgjob", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=TESTS,
        input=stdin,
        env=os.environ | {"BGJOB_DATABASE_URL": engine.url.render_as_string(hide_password=False)},
    )
    return done.returncode, done.stdout, done.stderr


def test_a_process_lists_what_a_search_finds(some: None, tables: Engine) -> None:
    """With a negation, which begins like an option."""
    code, out, err = process(tables, "jobs", "list", "state:due", "-queue:mail", "--json")
    assert (code, err) == (0, "")
    first, second = objects(out)
    assert (first["id"], first["state"], first["queue"]) == ("n1", "due", "default")
    assert (second["id"], second["priority"]) == ("n2", 5)
    assert not {"arg", "headers"} & set(first)


def test_jobs_are_a_table(some: None, bgjob: Run) -> None:
    code, out, err = bgjob("jobs", "list", "--limit", "2", "queue:default")
    assert code == 0
    head, first, *_ = out.splitlines()
    assert head.split()[:3] == ["id", "state", "type"]
    assert first.split()[:4] == ["n1", "due", "note", "default"]
    assert len(out.splitlines()) == 3
    assert "there are more; --limit 20" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["jobs", "list", "quee:mail"], "did you mean 'queue'"),
        (["jobs", "list", "--jsn"], "No such option '--jsn'"),
        (["jobs", "cancel"], "say which jobs"),
        (["jobs", "cancel", "state:dead"], "dlq redrive"),
        (["jobs", "edit", "n1"], "say what to change"),
        (["jobs", "edit", "n1", "words"], "the arg is not JSON"),
        (["jobs", "edit", "n1", "--headers", "{"], "the headers are not JSON"),
        (["jobs", "edit", "n1", "--headers", "[1]"], "headers"),
        (["jobs", "edit", "n1", "--run-at", "2026-12-24T18:00"], "has no time zone"),
        (["jobs", "edit", "n1", "7", "--app", "support.cli_app:functions"], "expected `str`"),
        (["enqueue", "note", "words", "--queue", "q"], "a text needs its own quotes"),
        (["enqueue", "note", "3"], "name the application by --app"),
        (["enqueue", "note", "3", "--app", "support.cli_app:functions"], "str"),
        (["enqueue", "note", "--app", "support.cli_app:metadata"], "not BGJob"),
        (["handlers", "support.cli_app:functions", "--type", "no"], "known: block"),
    ],
)
def test_a_mistake_is_told(some: None, bgjob: Run, arguments: list[str], words: str) -> None:
    try:
        code, _, err = bgjob(*arguments)
    except click.UsageError as error:
        code, err = error.exit_code, error.format_message()
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_json_from_stdin_that_is_no_text_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"caf\xe9"'), "utf-8"))
    with pytest.raises(CommandError, match="byte 4 of stdin is not utf-8; convert it") as caught:
        json_arg("-")
    assert caught.value.exit_code == 2


def test_show_has_arg_headers_and_errors(some: None, bgjob: Run) -> None:
    (job,) = objects(bgjob("jobs", "show", "n1", "--json")[1])
    assert (job["arg"], job["type"], job["errors"]) == ("one", "note", [])
    code, out, _ = bgjob("jobs", "show", "n1")
    assert code == 0
    assert "arg:            one\n" in out

    code, out, err = bgjob("jobs", "show", "none such")
    assert (code, out) == (1, "")
    assert "there is no job with the id" in err


@pytest.mark.parametrize("arg", [b"\xff", b"[" * 200_000 + b"]" * 200_000], ids=["odd", "nested"])
def test_what_is_no_json_is_shown_by_its_size(tables: Engine, bgjob: Run, arg: bytes) -> None:
    """SQL may have written any bytes, also what is nested too deeply for any parser."""
    add(tables, app.note, "x", id="n1")
    job = app.functions.models.job
    with tables.begin() as connection:
        connection.execute(job.update().where(job.c.id == "n1").values(arg=arg))

    code, out, _ = bgjob("jobs", "show", "n1")

    assert code == 0
    assert f"arg:            {len(arg)} bytes\n" in out


def test_many_are_cancelled_after_a_yes(some: None, bgjob: Run, tables: Engine) -> None:
    code, out, err = bgjob("jobs", "cancel", "queue:default")
    assert (code, out) == (2, "the search finds 3 jobs\n")
    assert "nothing is changed; add --yes" in err
    assert len(ids(tables)) == 4

    code, out, _ = bgjob("jobs", "cancel", "queue:default", "--yes")
    assert (code, out) == (0, "the search finds 3 jobs\ncancelled 3 jobs\n")
    assert ids(tables) == ["f1"]

    code, out, _ = bgjob("jobs", "cancel", "id:f1", "--json")
    assert (code, objects(out)) == (0, [{"cancelled": 1, "asked": 0}])
    assert bgjob("jobs", "cancel", "id:f1")[:2] == (1, "cancelled 0 jobs\n")


def test_more_are_cancelled_than_one_transaction_takes(
    some: None, bgjob: Run, tables: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running ones are asked once, and do not keep it from the others."""
    monkeypatch.setattr("sqlalchemy_bgjob.cli.jobs._AT_ONCE", 1)
    job = app.functions.models.job
    with tables.begin() as connection:
        connection.execute(job.update().where(job.c.id == "f1").values(claimed_by=7, lease=1))
    code, out, err = bgjob("jobs", "cancel", "type:note,fail", "--yes", "--json")
    assert code == 0
    assert objects(out) == [{"cancelled": 3, "asked": 1}]
    assert "cancelled 2 jobs so far" in err
    assert ids(tables) == ["f1"]


def test_jobs_for_later_run_now_after_a_yes(some: None, bgjob: Run) -> None:
    assert bgjob("jobs", "run-now", "state:scheduled")[0] == 2
    code, out, _ = bgjob("jobs", "run-now", "state:scheduled", "--yes")
    assert (code, out.splitlines()[-1]) == (0, "1 job is due now")
    assert bgjob("jobs", "run-now", "id:n3")[:2] == (1, "0 jobs are due now\n")


def test_a_process_edits_a_queued_job(some: None, tables: Engine) -> None:
    """Its arg, which is checked by the handler, and from stdin too; headers; priority; and time."""
    app_of = ("--app", "support.cli_app:functions")
    assert process(tables, "jobs", "edit", "n1", '"new"', "--priority", "7", *app_of) == (
        0,
        "n1 is changed\n",
        "",
    )
    words = ("n1", "-", "--headers", '{"trace": "x"}', "--run-at", "1h", "--json")
    code, out, err = process(tables, "jobs", "edit", *words, stdin="[2]")
    assert (code, err) == (0, "")
    assert objects(out) == [{"edited": "n1"}]

    code, out, err = process(tables, "jobs", "show", "n1", "--json")
    (job,) = objects(out)
    assert (job["arg"], job["headers"], job["priority"]) == ([2], {"trace": "x"}, 7)
    assert job["state"] == "scheduled"

    code, out, err = process(tables, "jobs", "edit", "none such", "3", "--json")
    assert (code, out) == (1, "")
    assert err == "there is no live job with the id 'none such'; nothing is changed\n"


def test_an_edit_comes_too_late_for_a_claimed_job(some: None, bgjob: Run, tables: Engine) -> None:
    job = app.functions.models.job
    (before,) = objects(bgjob("jobs", "show", "n1", "--json")[1])
    at = ("--run-at", "2036-12-24T18:00+01:00")
    assert bgjob("jobs", "edit", "n1", *at, "--lease", str(before["lease"]))[0] == 0
    with tables.begin() as connection:
        connection.execute(job.update().where(job.c.id == "n1").values(claimed_by=7, lease=8))

    code, out, err = bgjob("jobs", "edit", "n1", "2")
    assert (code, out, err) == (1, "", "a worker holds the job 'n1'; nothing is changed\n")
    with tables.begin() as connection:
        connection.execute(job.update().where(job.c.id == "n1").values(claimed_by=None))
    code, out, err = bgjob("jobs", "edit", "n1", "2", "--lease", str(before["lease"]))
    assert (code, out) == (1, "")
    assert "has another lease by now" in err
    (after,) = objects(bgjob("jobs", "show", "n1", "--json")[1])
    assert (after["arg"], after["next_run_at"]) == ("one", "2036-12-24T17:00:00+00:00")


def test_enqueue_prints_the_id(bgjob: Run, tables: Engine) -> None:
    options = ("--app", "support.cli_app:functions", "--id", "mine", "--priority", "3")
    code, out, _ = bgjob("enqueue", "note", '"words"', *options, "--delay", "1h")
    assert (code, out) == (0, "mine\n")
    (job,) = objects(bgjob("jobs", "list", "--json")[1])
    assert (job["state"], job["priority"], job["queue"]) == ("scheduled", 3, "default")
    assert bgjob("enqueue", "note", '"w"', *options)[0] == 2, "the id is taken"


def test_enqueue_keeps_a_unique_key(bgjob: Run, tables: Engine) -> None:
    words = ("enqueue", "sync", "[7]", "--queue", "other", "--unique", "shop-7", "--json")
    (first,), (second,) = objects(bgjob(*words)[1]), objects(bgjob(*words)[1])
    assert first["inserted"]
    assert second == {"id": first["id"], "inserted": False}
    odd = ("enqueue", "sync", "[7]", "--queue", "other", "--unique", "shop-8")
    for more in (("--id", "odd\x1b[31m"), ()):  # the other has the id of the first
        assert bgjob(*odd, *more)[:2] == (0, "odd\\x1b[31m\n"), "nothing moves the cursor"


def test_handlers_tell_the_schema_of_their_arg(bgjob: Run) -> None:
    code, out, _ = bgjob("handlers", "support.cli_app:functions", "--json")
    assert code == 0
    found = {one["type"]: one for one in objects(out)}
    assert found["note"]["arg_schema"] == {"type": "string"}
    assert found["note"]["summary"] == "Write a row, and with which class of session."
    assert found["kill"]["arg_schema"] is None

    _, out, _ = bgjob("handlers", "support.cli_app:functions", "--type", "note")
    assert 'arg: {\n  "type": "string"\n}' in out


def test_schedules_pause_resume_and_run_now(bgjob: Run, tables: Engine) -> None:
    with tables.begin() as connection:
        app.functions.schedules.put(connection, "night", app.note, "x", cron="30 2 * * *")
    (one,) = objects(bgjob("schedules", "list", "--next", "3", "--json")[1])
    assert (one["name"], one["cron"], len(one["next"])) == ("night", "30 2 * * *", 3)
    assert one["next"] == sorted(one["next"])

    assert bgjob("schedules", "pause", "night", "--by", "ada", "--reason", "move")[0] == 0
    _, out, _ = bgjob("schedules", "list")
    assert out.splitlines()[1].endswith("Z by ada: move")
    assert bgjob("schedules", "run-now", "night")[1].strip() in ids(tables)
    code, out, _ = bgjob("schedules", "resume", "night")
    assert (code, "it fires next at " in out) == (0, True)

    assert bgjob("schedules", "resume", "night")[0] == 1
    assert bgjob("schedules", "pause", "none such")[0] == 1
    code, _, err = bgjob("schedules", "run-now", "none such")
    assert (code, "no schedule is called 'none such'" in err) == (1, True)


def test_workers_and_stats_tell_who_works(some: None, bgjob: Run, tables: Engine) -> None:
    row = app.functions.models.worker
    with tables.begin() as connection:
        values = {"id": 9, "hostname": "web-1", "pid": 7, "version": "1", "queues": {"default": 4}}
        connection.execute(row.insert().values(**values, lease_timeout=60.0))
    (worker,) = objects(bgjob("workers", "--json")[1])
    assert (worker["hostname"], worker["alive"], worker["queues"]) == (
        "web-1",
        True,
        {"default": 4},
    )
    _, out, _ = bgjob("workers")
    assert out.splitlines()[1].split()[1:4] == ["web-1", "7", "alive"]

    (found,) = objects(bgjob("stats", "--json")[1])
    assert (found["due"], found["scheduled"], found["workers"], found["slots"]) == (3, 1, 1, 4)
    assert (found["unserved"], found["died_last_hour"]) == (["mail"], 0)
    _, out, _ = bgjob("stats")
    assert "jobs:     3 due, 1 scheduled, 0 running\n" in out
    assert "unserved: mail\n" in out


def test_what_the_database_refuses_is_told_with_what_to_do(bgjob: Run, tables: Engine) -> None:
    """A user is told what to do next, and sees no traceback."""
    with tables.begin() as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS bgjob_nobody")
        connection.exec_driver_sql("CREATE ROLE bgjob_nobody LOGIN")
    url = tables.url
    given = {
        url.set(username="bgjob_nobody"): (1, "sqlalchemy-bgjob grants prints"),
        url.set(port=1): (3, "look whether the server runs"),
        url.set(database="no_such"): (3, "the URL's user, password and database"),
        url.set(drivername="postgresql+asyncpg", database="no_such"): (3, "or create it"),
    }
    try:
        for wrong, (exit_code, words) in given.items():
            written = wrong.render_as_string(hide_password=False)
            code, out, err = bgjob("jobs", "list", "--database-url", written)
            assert (code, out) == (exit_code, ""), err
            assert words in err
            assert "Traceback" not in err
    finally:
        with tables.begin() as connection:
            connection.exec_driver_sql("DROP ROLE bgjob_nobody")
