"""Every command as a process: what it prints, its JSON, and its exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from sqlalchemy_bgjob.cli import cli
from support import cli_app as app
from support.cli import add
from support.commands import Command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

AMONG_THEIRS = {
    "bench": "test_bench.py",
    "demo": "test_demo.py",
    "dev": "test_dev_command.py",
    "import-bgjob": "test_import_bgjob.py",
    "top": "test_top_command.py",
    "web": "test_web_command.py",
    "worker": "test_worker_command.py",
}
"""Commands that go on for a while; their own tests run them to a good end."""
WITHOUT_JSON = {
    *("completion", "grants", "version"),  # what these print is itself for programs, or one line
    *("pause", "resume", "slots", "schedules pause", "schedules resume", "schedules run-now"),
    *("migrate", "import-bgjob"),
    *("demo", "dev", "top", "web", "worker"),
}
"""Those that list nothing: they act, or go on for a while."""
APP = "support.cli_app:functions"
MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:Z| UTC)"
NOT_THERE = ["--table-prefix", "none_"]

# In this order: each changes what the next one finds. A text is a pattern of all of stdout, a dict
# what the first JSON object has among others, and without either stdout is empty.
RUNS: list[tuple[str, list[str], int, str | dict[str, Any] | None]] = [
    ("version", [], 0, r"(?s)sqlalchemy-bgjob .*psycopg .*"),
    ("completion", ["bash"], 0, r"(?s).*_bgjob_completion.*"),
    ("completion", ["tcsh"], 2, None),
    ("config", ["queues"], 0, r"(?s).*table-prefix +bgjob_ .*"),
    ("config", ["queues", "--json"], 0, {"option": "database-url", "source": "BGJOB_DATABASE_URL"}),
    ("config", ["none"], 2, None),
    ("grants", ["--worker", "shop"], 0, r'(?s).*GRANT .* TO "?shop"?;.*'),
    ("grants", [], 2, None),
    ("migrate", [], 0, r".*version 2.*\n"),
    ("migrate", ["--database-url", "postgresql+psycopg://127.0.0.1:1/x"], 3, None),
    ("doctor", [], 0, r"(?s)ok +server: PostgreSQL .*"),
    ("doctor", ["--json"], 0, {"level": "ok"}),
    ("doctor", NOT_THERE, 1, r"(?s).*migrate --table-prefix none_.*"),
    ("check", ["--host", "web-1"], 0, r"worker 9, pid 7: beats, last heartbeat .*\n"),
    ("check", ["--host", "web-1", "--json"], 0, {"id": 9, "alive": True}),
    ("check", ["--host", "elsewhere"], 1, None),
    ("workers", [], 0, r"(?s)id +host.*\n +9 +web-1 +7 +alive .*"),
    ("workers", ["--json"], 0, {"id": 9, "hostname": "web-1"}),
    ("workers", NOT_THERE, 4, None),
    ("stats", [], 0, r"(?s)jobs:     3 due, 1 scheduled, 0 running\n.*"),
    ("stats", ["--json"], 0, {"due": 3, "workers": 1}),
    ("stats", NOT_THERE, 4, None),
    ("queues", [], 0, r"(?s)queue +due .*\ndefault +2 +1 +0 .*"),
    ("queues", ["--json"], 0, {"queue": "default", "due": 2, "scheduled": 1}),
    ("queues", NOT_THERE, 4, None),
    ("pressure", ["mail"], 0, r"mail: 1 due, the first for \S+ s\n"),
    ("pressure", ["mail", "--json"], 0, {"queue": "mail", "due": 1}),
    ("pressure", ["--sql"], 2, None),
    ("pause", ["mail", "--by", "ada"], 0, rf"queue 'mail' is paused since {MOMENT} by ada\n"),
    ("pause", ["mail", "--until", "soon"], 2, None),
    ("resume", ["mail"], 0, r"queue 'mail' is not paused any more\n"),
    ("resume", ["mail", *NOT_THERE], 4, None),
    ("slots", ["mail", "4"], 0, r"each worker has 4 slots for queue 'mail'\n"),
    ("slots", ["mail", "0"], 2, None),
    ("schedules list", [], 0, r"(?s)name .*\nnight .*30 2 \* \* \*.*"),
    ("schedules list", ["--json"], 0, {"name": "night", "cron": "30 2 * * *"}),
    ("schedules list", NOT_THERE, 4, None),
    ("schedules pause", ["night"], 0, r".*night.*\n"),
    ("schedules pause", ["none"], 1, None),
    ("schedules resume", ["night"], 0, r".*it fires next at .*\n"),
    ("schedules resume", ["night"], 1, None),
    ("schedules run-now", ["night"], 0, r"\S+\n"),
    ("schedules run-now", ["none"], 1, None),
    ("handlers", [APP], 0, r"(?s)type +queue .*\nnote +default .*"),
    ("handlers", [APP, "--type", "note", "--json"], 0, {"arg_schema": {"type": "string"}}),
    ("handlers", [APP, "--type", "none"], 2, None),
    ("enqueue", ["note", '"x"', "--id", "new", "--app", APP], 0, r"new\n"),
    ("enqueue", ["sync", "7", "--queue", "q", "--json"], 0, {"inserted": True}),
    ("enqueue", ["note", '"x"', "--id", "new", "--app", APP], 2, None),
    ("batches list", [], 0, r"(?s)id .*\nb1 +unfinished +0 +2 +2 +0 +continue +note in mail .*"),
    ("batches list", ["--unfinished", "--json"], 0, {"state": "unfinished", "total": 2}),
    ("batches list", NOT_THERE, 4, None),
    ("batches show", ["b1"], 0, r"(?s)id: +b1\nstate: +unfinished\n.*then_id: +b1:then\n"),
    ("batches show", ["b1", "--json"], 0, {"id": "b1", "live": 2, "dead": 0}),
    ("batches show", ["none"], 1, None),
    ("jobs list", ["id:n1"], 0, r"id +state .*\nn1 +due +note .*\n"),
    ("jobs list", ["id:n1", "--json"], 0, {"id": "n1", "state": "due"}),
    ("jobs list", ["quee:mail"], 2, None),
    ("jobs show", ["n1"], 0, r"(?s).*arg: +one\n.*"),
    ("jobs show", ["n1", "--json"], 0, {"id": "n1", "arg": "one", "errors": []}),
    ("jobs show", ["none"], 1, None),
    ("jobs edit", ["n1", '"other"', "--app", APP], 0, r"n1 is changed\n"),
    ("jobs edit", ["n1", "--priority", "7", "--json"], 0, {"edited": "n1"}),
    ("jobs edit", ["none", "1"], 1, None),
    ("jobs run-now", ["id:n3"], 0, r"1 job is due now\n"),
    ("jobs run-now", ["id:n3", "--json"], 1, {"due": 0}),
    ("jobs run-now", ["queue:mail"], 2, r"the search finds 1 job\n"),
    ("jobs cancel", ["id:n1"], 0, r"cancelled 1 job\n"),
    ("jobs cancel", ["id:n2", "--json"], 0, {"cancelled": 1, "asked": 0}),
    ("jobs cancel", ["id:n1"], 1, r"cancelled 0 jobs\n"),
    ("jobs cancel", ["queue:mail"], 2, r"the search finds 1 job\n"),
    ("dlq list", [], 0, rf"(?s){MOMENT}  d\d  charge  in mail, attempt 20: OSError: x\n.*"),
    ("dlq list", ["--id", "d1", "--json"], 0, {"job_id": "d1", "error_type": "OSError"}),
    ("dlq list", ["--limit", "0"], 2, None),
    ("dlq summary", [], 0, rf" +4  charge: OSError, {MOMENT} to {MOMENT}\n"),
    ("dlq summary", ["--json"], 0, {"type": "charge", "count": 4}),
    ("dlq summary", NOT_THERE, 4, None),
    ("dlq show", ["d1"], 0, r"(?s).*last_error:\nOSError: x\n.*"),
    ("dlq show", ["d1", "--json"], 0, {"job_id": "d1", "arg": None}),
    ("dlq show", ["none"], 1, None),
    ("dlq edit", ["d1", "[1]"], 0, r"the arg of d1 is changed; it is still dead\n"),
    ("dlq edit", ["d1", "[2]", "--json"], 0, {"edited": "d1"}),
    ("dlq edit", ["none", "[1]"], 1, None),
    ("dlq redrive", ["--id", "d1"], 0, r"redrove 1 dead job:\n  d1\n"),
    ("dlq redrive", ["--id", "d2", "--json"], 0, {"redriven": ["d2"], "left": []}),
    ("dlq redrive", ["--id", "d1"], 1, r"redrove 0 dead jobs\n"),
    ("dlq redrive", [], 2, None),
    ("dlq prune", ["--older-than", "0s"], 2, r"would prune 2 dead jobs\n"),
    ("dlq prune", ["--older-than", "0s", "--limit", "1", "--yes"], 0, r"(?s).*pruned 1 dead job\n"),
    ("dlq prune", ["--older-than", "0s", "--yes", "--json"], 0, {"pruned": 1}),
    ("bench", ["--only", "W99"], 2, None),
    ("import-bgjob", NOT_THERE, 4, None),
    ("web", ["--database-url", "postgresql+psycopg://127.0.0.1:1/x"], 3, None),
]


WORKER = """
    INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout)
    VALUES (9, 'web-1', 7, '1', '{"default": 4, "mail": 1}', 3600)
"""
DEAD = """
    INSERT INTO bgjob_dead_job (id, job_id, queue, type, attempt, lease, last_error, next_run_at,
                                job_created_at, job_updated_at)
    SELECT 'r' || n, 'd' || n, 'mail', 'charge', 20, 1, 'OSError: x', now(), now(), now()
    FROM generate_series(1, 4) AS n
"""


BATCH = """
    WITH made AS (
      INSERT INTO bgjob_batch (id, total, closed_at, then_type, then_queue)
      VALUES ('b1', 2, now(), 'note', 'mail') RETURNING id
    )
    UPDATE bgjob_job SET batch_id = made.id FROM made WHERE bgjob_job.id IN ('n1', 'n2')
"""


@pytest.fixture
def shop(tables: Engine) -> Engine:
    """Jobs of two queues, four dead ones, a schedule, a batch, and a worker that beats."""
    add(tables, app.note, "one", id="n1")
    add(tables, app.note, "two", id="n2")
    add(tables, app.note, "later", id="n3", delay=3_600)
    add(tables, app.note, "mail", id="m1", queue="mail")
    with tables.begin() as connection:
        app.functions.schedules.put(connection, "night", app.note, "x", cron="30 2 * * *")
        connection.exec_driver_sql(WORKER)
        connection.exec_driver_sql(DEAD)
        connection.exec_driver_sql(BATCH)
    return tables


def test_each_tells_what_it_did_and_exits_with_its_code(
    shop: Engine, subtests: pytest.Subtests, tmp_path: Path
) -> None:
    url = shop.url.render_as_string(hide_password=False)
    for name, words, code, expected in RUNS:
        with (
            subtests.test(command=(name, *words)),
            Command(tmp_path, *name.split(), *words, BGJOB_DATABASE_URL=url) as command,
        ):
            assert command.wait() == code, command.stderr
            out = command.stdout
            assert "Traceback" not in command.stderr
            if isinstance(expected, dict):
                assert expected.items() <= json.loads(out.splitlines()[0]).items()
            elif expected is None:
                assert out == ""
                assert command.stderr
            else:
                assert re.fullmatch(expected, out), out


def test_no_command_is_left_out() -> None:
    """Each has a run that succeeds, one that fails, and one with JSON if it prints that."""
    leaves = dict(_leaves(cli))
    tried = {
        name: [(words, code) for one, words, code, _ in RUNS if one == name] for name in leaves
    }

    for name, runs in tried.items():
        if name in AMONG_THEIRS:
            its_own = Path(__file__).with_name(AMONG_THEIRS[name]).read_text()
            assert f'"{name}"' in its_own
        else:
            codes = {code == 0 for _, code in runs}
            assert codes == ({True} if name == "version" else {True, False}), name
            assert any("--json" in words for words, _ in runs) == leaves[name], name


def test_each_list_has_json() -> None:
    """A command is either one of those that list nothing, or prints JSON."""
    assert {name for name, has_json in _leaves(cli) if not has_json} == WITHOUT_JSON


def _leaves(command: click.Command, *names: str) -> Iterator[tuple[str, bool]]:
    """Each command that is no group, and whether it prints JSON."""
    if not isinstance(command, click.Group):
        yield " ".join(names), any("--json" in one.opts for one in command.params)
        return
    for name in command.list_commands(click.Context(command)):
        found = command.get_command(click.Context(command), name)
        assert found is not None
        yield from _leaves(found, *names, name)
