"""``queues``, ``pause``, ``resume``, ``slots`` and ``pressure``, and who else tells of pauses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, select

from sqlalchemy_bgjob import Worker
from support import cli_app as app
from support.cli import add

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.commands import Command

pytestmark = pytest.mark.keeps_tables

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "queue_control.md"


def rows(engine: Engine) -> list[Any]:
    table = app.functions.models.control
    with engine.connect() as connection:
        columns = table.c.queue, table.c.paused_by, table.c.pause_reason, table.c.slots
        return [tuple(row) for row in connection.execute(select(*columns))]


def test_pause_and_resume_say_what_they_did(bgjob: Any, tables: Engine) -> None:
    code, out, _ = bgjob("pause", "mail", "--by", "ada", "--reason", "no", "--until", "2h")
    assert code == 0
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    words = rf"queue 'mail' is paused since {when} by ada, until {when}: no\n"
    assert re.fullmatch(words, out)
    assert rows(tables) == [("mail", "ada", "no", None)]

    assert bgjob("resume", "mail")[:2] == (0, "queue 'mail' is not paused any more\n")
    assert bgjob("resume", "mail")[:2] == (0, "queue 'mail' was not paused\n")
    assert rows(tables) == []


def test_a_mistyped_queue_is_told(bgjob: Any, tables: Engine) -> None:
    """It is paused all the same: its first worker may be about to start."""
    add(tables, app.note, "x")

    code, out, err = bgjob("pause", "defualt")
    assert (code, err) == (
        0,
        "queue 'defualt' has no jobs and no workers; did you mean 'default'?\n",
    )
    assert "is paused since" in out
    assert "has no jobs" in bgjob("slots", "mial", "4")[2]
    assert bgjob("pause", "default")[2] == bgjob("slots", "default", "4")[2] == ""


def test_no_command_moves_the_cursor(bgjob: Any, tables: Engine) -> None:
    """By what somebody else has written: names of queues, who paused one, and why."""
    add(tables, app.note, "x", queue="\x1b[2Jq")
    paused = bgjob("pause", "mail", "--by", "\x1b[1mada", "--reason", "no\n\x1b[31mworse")
    said = [paused, *(bgjob(name) for name in ("pressure", "queues", "stats", "doctor", "check"))]
    for _, out, err in said:
        assert "\x1b" not in out + err
    assert "by \\x1b[1mada: no\\x0a\\x1b[31mworse\n" in paused[1]


def test_letters_that_a_terminal_lacks_fail_no_command(
    tables: Engine, database_url: str, start: Callable[..., Command]
) -> None:
    """It was done when it is told of: an error would say that it was not."""
    command = start(
        *("pause", "żółw", "--by", "ada"),
        BGJOB_DATABASE_URL=database_url,
        PYTHONIOENCODING="latin-1",
    )

    assert command.wait() == 0, command.stderr
    assert command.stdout.startswith("queue '\\u017c\N{REPLACEMENT CHARACTER}\\u0142w' is paused")
    assert [queue for queue, *_ in rows(tables)] == ["żółw"]


def test_who_pauses_is_the_systems_user(
    bgjob: Any, tables: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "grace")
    assert bgjob("pause", "mail", "--until", "2999-01-01T00:00Z")[0] == 0
    assert rows(tables) == [("mail", "grace", None, None)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pause", "mail", "--until", "soon"], "neither a time such as"),
        (["pause", "mail", "--until", "2999-01-01T00:00"], "has no time zone"),
        (["pause", "mail", "--until", "2020-01-01T00:00Z"], "is over already"),
        (["pause", ""], "has 0 characters"),
        (["slots", "mail", "0"], "to claim nothing of a queue, pause it"),
        (["slots", "mail", "many"], "neither a number nor 'default'"),
        (["pressure", "--sql"], "--sql takes one QUEUE"),
        (["check", "--worker", "web-1"], "is not HOST:PID"),
        (["check", "--worker", "web-1:7", "--pid", "7"], "leave out --host and --pid"),
    ],
)
def test_a_wrong_argument_is_wrong_usage(
    bgjob: Any, tables: Engine, arguments: list[str], words: str
) -> None:
    import click

    try:
        code, _, err = bgjob(*arguments)
    except click.UsageError as error:
        code, err = error.exit_code, error.message
    assert code == 2
    assert words in err
    assert rows(tables) == []


def test_slots_are_set_and_given_back(bgjob: Any, tables: Engine) -> None:
    words = "each worker has 40 slots for queue 'mail'\n"
    assert bgjob("slots", "mail", "40")[:2] == (0, words)
    assert rows(tables) == [("mail", None, None, 40)]

    code, out, _ = bgjob("slots", "mail", "default")
    assert (code, "as it was started with" in out) == (0, True)
    assert rows(tables) == []


def test_queues_are_a_table(bgjob: Any, tables: Engine) -> None:
    for _ in range(3):
        add(tables, app.note, "x")
    bgjob("pause", "mail", "--by", "ada", "--reason", "provider down")
    bgjob("slots", "bills", "3")

    code, out, _ = bgjob("queues")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "queue    due  scheduled  running  slots       paused"
    assert lines[1] == "bills      0          0        0  0 (3 each)"
    assert lines[2] == "default    3          0        0  0"
    assert lines[3].startswith("mail       0          0        0  0           since 2")
    assert lines[3].endswith(" UTC by ada: provider down")

    found = {
        one["queue"]: one for one in map(json.loads, bgjob("queues", "--json")[1].splitlines())
    }
    assert found["default"] == {
        "queue": "default",
        "due": 3,
        "scheduled": 0,
        "running": 0,
        "workers": 0,
        "slots": 0,
        "set_slots": None,
        "oldest_age": found["default"]["oldest_age"],
        "stopped": False,
        "paused": None,
    }
    assert found["mail"]["paused"]["by"] == "ada"
    assert found["mail"]["paused"]["at"].endswith("+00:00")
    assert found["mail"]["paused"]["until"] is None


def test_a_count_that_stops_says_so(bgjob: Any, tables: Engine) -> None:
    with tables.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO bgjob_job (id, queue, type, claimed_by, next_run_at)"
            " SELECT 'j' || n, 'default', 'note', 7, now() - interval '1 hour'"
            " FROM generate_series(1, 10000) AS n"
        )
    add(tables, app.note, "x")

    assert bgjob("queues")[1].splitlines()[1].split() == ["default", "0+", "0+", "10000+", "0"]
    assert json.loads(bgjob("queues", "--json")[1])["stopped"] is True
    assert "jobs:     0+ due, 0+ scheduled, 10,000+ running\n" in bgjob("stats")[1]


def test_pressure_is_told_of_some_queues_or_of_all(bgjob: Any, tables: Engine) -> None:
    add(tables, app.note, "x")

    code, out, _ = bgjob("pressure")
    assert code == 0
    assert re.fullmatch(r"default: 1 due, the first for \d+\.\d s\n", out)
    _, out, _ = bgjob("pressure", "mail", "default", "--json")
    empty, one = map(json.loads, out.splitlines())
    assert bgjob("pressure", "mail")[1] == "mail: 0 due\n"
    assert empty == {"queue": "mail", "due": 0, "oldest_age": 0.0}
    assert (one["queue"], one["due"]) == ("default", 1)

    _, sql, _ = bgjob("pressure", "default", "--sql", BGJOB_DATABASE_URL="nowhere")
    with tables.connect() as connection:
        assert connection.exec_driver_sql(sql).all() == [(1,)]


def test_doctor_and_check_tell_of_paused_queues(bgjob: Any, tables: Engine) -> None:
    """Which are no problem, however long their jobs have been due."""
    with Worker(app.functions, tables, queues={"default": 1}):
        app.functions.pause(tables, "default", by="ada", reason="provider down")
        add(tables, app.note, "x")
        with tables.begin() as connection:
            connection.exec_driver_sql("UPDATE bgjob_job SET next_run_at = now() - interval '1 d'")

        doctor = bgjob("doctor")
        check = bgjob("check")
        as_json = json.loads(bgjob("check", "--json")[1])

    assert re.search(
        r"^note     queues: queue 'default' is paused since .* by ada: ", doctor[1], re.MULTILINE
    )
    assert "jobs are due" not in doctor[1]
    assert "1 job is due" not in doctor[1]
    assert doctor[0] == 0, doctor[1]
    assert check[0] == 0
    assert check[1].splitlines()[1].startswith("queue 'default' is paused since")
    assert as_json["paused"] == ["default"]


def test_check_looks_at_one_process_of_any_host(bgjob: Any, tables: Engine) -> None:
    with tables.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout)"
            " VALUES (7, 'web:1', 70, 'x', '{}', 30)"
        )

    assert bgjob("check", "--worker", "web:1:70")[0] == 0
    code, _, err = bgjob("check", "--worker", "web:1:71")
    assert code == 1
    assert "no worker of host 'web:1' with pid 71" in err
