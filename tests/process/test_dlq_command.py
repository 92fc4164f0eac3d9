"""``dlq``: looks at dead jobs, brings them back, deletes them, and says what it did."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
import pytest
from sqlalchemy import text

from sqlalchemy_bgjob.schema._grants import grants
from support.cli import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import URL, Engine


@pytest.fixture
def url(tables: Engine, in_process: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """Four dead jobs: two of one kind, one that died twice, one with a name that is none."""
    monkeypatch.delenv("BGJOB_DATABASE_URL", raising=False)
    row = text(
        "INSERT INTO bgjob_dead_job (id, job_id, queue, type, arg, attempt, lease, last_error,"
        " next_run_at, job_created_at, job_updated_at, moved_at, headers, errors) VALUES (:id,"
        " :job_id, :queue, :type, CAST(:arg AS bytea), 3, 1, :error, now(), now(), now(),"
        " '2026-01-02 03:04:05+00', '{\"trace\": \"x\"}',"
        ' \'[{"at": "2026-01-02T03:04:05+00:00", "attempt": 3, "worker": 7,'
        ' "error": "KeyError: 7"}]\')'
    )
    some = [
        ("1", "charge-1", "billing", "charge", "ConnectionError: refused\n  app.py:7 in charge"),
        ("2", "charge-2", "billing", "charge", "ConnectionError: reset"),
        ("3", "receipt", "mail", "send_receipt", "KeyError: 'street'"),
        ("4", "odd\x1b[31m", "mail", "odd", None),
    ]
    with tables.begin() as connection:
        for id, job_id, queue, type, error in some:
            given = {"id": id, "job_id": job_id, "queue": queue, "type": type, "error": error}
            arg = "\\xff" if id == "4" else '{"order_id": 7}'
            connection.execute(row, {**given, "arg": arg})
    return tables.url.render_as_string(hide_password=False)


@pytest.fixture
def reader(url: str, tables: Engine) -> Iterator[URL]:
    """A role that has what ``grants --dashboard`` gives."""
    role = f"reader_{tables.url.database}"
    with tables.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'test'")
        sql = grants([("dashboard", role)], schema=None, table_prefix="bgjob_")
        connection.exec_driver_sql(sql)
    yield tables.url.set(username=role, password="test")
    with tables.begin() as connection:
        connection.exec_driver_sql(f'DROP OWNED BY "{role}"')
        connection.exec_driver_sql(f'DROP ROLE "{role}"')


def dlq(url: str, *words: str) -> tuple[int, str, str]:
    command, *rest = words
    return run("dlq", command, "--database-url", url, *rest)


def objects(url: str, *words: str) -> list[dict[str, Any]]:
    code, out, err = dlq(url, *words, "--json")
    assert code in (0, 1)
    said = err and "there are more" not in err
    assert bool(said) is not bool(out), "either there is something, or it is said that there is not"
    return [json.loads(line) for line in out.splitlines()]


def count(engine: Engine, table: str) -> int:
    with engine.connect() as connection:
        return connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()


def test_list_names_each_job_and_its_error(url: str) -> None:
    code, out, _ = dlq(url, "list")

    assert code == 0
    assert (
        "2026-01-02 03:04:05Z  receipt  send_receipt  in mail, attempt 3: KeyError: 'street'\n"
    ) in out
    assert "ConnectionError: refused\n" in out
    assert "app.py" not in out
    assert "odd\\x1b[31m" in out, "nothing moves the terminal's cursor"


def test_filters_choose_together(url: str) -> None:
    chosen = {
        ("--type", "charge"): ["charge-2", "charge-1"],
        ("--where-type", "charge", "--limit", "1"): ["charge-2"],
        ("--queue", "mail", "--error-type", "KeyError"): ["receipt"],
        ("--id", "receipt", "--id", "charge-1"): ["receipt", "charge-1"],
        ("--error-type", "none such"): [],
        ("--since", "2026-01-02T03:04:06Z"): [],
        ("--since", "2026-01-02T03:04:05Z", "--type", "charge"): ["charge-2", "charge-1"],
        ("--since", "36500d", "--queue", "mail", "--error-type", "KeyError"): ["receipt"],
        ("--since", "1s"): [],
    }
    for filters, found in chosen.items():
        assert [job["job_id"] for job in objects(url, "list", *filters)] == found


def test_an_empty_list_says_so(url: str, tables: Engine) -> None:
    """Nothing printed at all looks as if the command had not worked."""
    assert dlq(url, "list", "--type", "chrage") == (0, "", "there are no dead jobs of this kind\n")
    with tables.begin() as connection:
        connection.execute(text("DELETE FROM bgjob_dead_job"))
    for command in ("list", "summary"):
        assert dlq(url, command) == (0, "", "there are no dead jobs\n")


@pytest.mark.parametrize("command", ["list", "summary"])
def test_a_list_that_is_cut_says_so(url: str, command: str) -> None:
    _, out, err = dlq(url, command, "--limit", "2")
    assert (len(out.splitlines()), err) == (2, "there are more; --limit 20 shows more of them\n")
    assert dlq(url, command, "--limit", "4")[2] == ""


def test_summary_counts_by_type_and_error(url: str) -> None:
    code, out, _ = dlq(url, "summary")
    first, *_ = objects(url, "summary")

    moment = "2026-01-02 03:04:05Z"
    assert code == 0
    assert out.splitlines()[0] == f"       2  charge: ConnectionError, {moment} to {moment}"
    assert "       1  odd: no error, " in out
    assert (first["type"], first["error_type"], first["count"]) == ("charge", "ConnectionError", 2)
    assert first["last"] == "2026-01-02T03:04:05+00:00"


def test_show_has_all_of_a_job(url: str) -> None:
    code, out, _ = dlq(url, "show", "charge-1")
    (facts,) = objects(url, "show", "charge-1")
    (odd,) = objects(url, "show", "4")

    assert code == 0
    assert 'arg:            {"order_id": 7}\n' in out
    assert "last_error:\nConnectionError: refused\n  app.py:7 in charge\n" in out
    assert "error:          2026-01-02 03:04:05Z attempt 3: KeyError: 7\n" in out
    assert (facts["arg"], facts["headers"]) == ({"order_id": 7}, {"trace": "x"})
    assert (facts["attempt"], facts["errors"][0]["worker"]) == (3, 7)
    assert odd["arg"] == "1 bytes"
    assert dlq(url, "show", "none")[::2] == (1, "no dead job has the id 'none'\n")


def test_a_role_that_may_read_no_arg_sees_the_rest(reader: URL, tables: Engine) -> None:
    """Also one with the right to the args of live jobs alone."""
    as_reader = reader.render_as_string(hide_password=False)
    (facts,) = objects(as_reader, "show", "charge-1")
    code, out, _ = dlq(as_reader, "show", "charge-1")

    assert (facts["arg"], facts["headers"]) == (None, {"trace": "x"})
    assert (code, "order_id" in out) == (0, False)
    assert "last_error:\nConnectionError: refused\n" in out

    with tables.begin() as connection:
        connection.exec_driver_sql(f'GRANT SELECT (arg) ON bgjob_job TO "{reader.username}"')
    code, out, err = run("jobs", "show", "charge-1", "--database-url", as_reader)
    assert (code, "order_id" in out) == (0, False), err


def test_columns_of_the_application_are_not_looked_at(reader: URL, tables: Engine) -> None:
    """The role that reads has no right to them."""
    with tables.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE bgjob_dead_job ADD tenant text")
    as_reader = reader.render_as_string(hide_password=False)

    assert len(objects(as_reader, "list")) == 4
    assert len(objects(as_reader, "summary")) == 3
    assert len(objects(as_reader, "show", "charge-1")) == 1


def test_redrive_says_which_jobs_it_brought_back(url: str, tables: Engine) -> None:
    which = ["--type", "charge", "--error-type", "ConnectionError"]

    assert dlq(url, "redrive", *which, "--dry-run")[:2] == (
        0,
        "would redrive 2 dead jobs: charge 2\n",
    )
    assert objects(url, "redrive", "--all", "--dry-run")[0]["would_redrive"]["charge"] == 2
    assert count(tables, "bgjob_job") == 0

    code, out, _ = dlq(url, "redrive", *which, "--per-second", "0.5", "--delay", "1m")

    assert (code, out) == (0, "redrove 2 dead jobs:\n  charge-1\n  charge-2\n")
    with tables.connect() as connection:
        due = "SELECT extract(epoch FROM max(next_run_at) - min(next_run_at)) FROM bgjob_job"
        assert float(connection.execute(text(due)).scalar_one()) == 2.0
    assert dlq(url, "redrive", *which)[:2] == (1, "redrove 0 dead jobs\n"), "there is none left"


def test_what_stays_dead_is_named_with_1(url: str, tables: Engine) -> None:
    with tables.begin() as connection:
        connection.execute(
            text("INSERT INTO bgjob_job (id, queue, type) VALUES ('receipt', 'mail', 't')")
        )

    code, out, _ = dlq(url, "redrive", "--queue", "mail")

    assert code == 1
    assert out.endswith("left 1 dead job, as a live job has the id or unique key:\n  receipt\n")
    assert objects(url, "redrive", "--all") == [
        {"redriven": ["charge-1", "charge-2"], "left": ["receipt"]}
    ]


def test_columns_of_the_application_come_back_too(url: str, tables: Engine) -> None:
    """The command knows no models of the application; what both tables have is kept."""
    with tables.begin() as connection:
        for table in ("bgjob_job", "bgjob_dead_job"):
            connection.execute(text(f'ALTER TABLE {table} ADD tenant text, ADD "Odd: %" jsonb'))
        connection.execute(text("ALTER TABLE bgjob_dead_job ADD only_dead int DEFAULT 7"))
        made = "ADD twice int GENERATED ALWAYS AS (priority * 2) STORED"
        connection.execute(text(f"ALTER TABLE bgjob_job {made}"))
        connection.execute(text("UPDATE bgjob_dead_job SET tenant = 'acme', \"Odd: %\" = '[1]'"))

    assert dlq(url, "redrive", "--type", "charge")[0] == 0

    with tables.connect() as connection:
        found = connection.execute(text('SELECT DISTINCT tenant, "Odd: %" FROM bgjob_job'))
        assert [tuple(row) for row in found] == [("acme", [1])]


def test_many_ids_are_cut_and_json_has_all(url: str, tables: Engine) -> None:
    with tables.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO bgjob_dead_job (id, job_id, queue, type, attempt, lease, next_run_at,"
                " job_created_at, job_updated_at) SELECT 'd' || n, 'job-' || n, 'q', 'many', 1, 1,"
                " now(), now(), now() FROM generate_series(1, 25) AS n"
            )
        )
    out = dlq(url, "redrive", "--type", "many")[1]
    assert out.endswith("\n  and 5 more; --json names all\n")
    assert out.count("job-") == 20


def test_prune_counts_what_it_deletes(url: str, tables: Engine) -> None:
    age = ["--older-than", "1d"]

    assert dlq(url, "prune", *age, "--dry-run")[:2] == (0, "would prune 4 dead jobs\n")
    one = ("prune", *age, "--type", "charge", "--limit", "1")
    code, out, err = dlq(url, *one)
    assert (code, out) == (2, "would prune 1 dead job\n")
    assert "nothing is changed; add --yes" in err
    assert dlq(url, *one, "--yes")[:2] == (0, "found 1 dead job\npruned 1 dead job\n")
    assert objects(url, "prune", *age, "--dry-run") == [{"would_prune": 3}]
    assert objects(url, "prune", *age, "--yes") == [{"pruned": 3}]
    assert (
        dlq(url, "prune", "--older-than", "36500d", "--dry-run")[1] == "would prune 0 dead jobs\n"
    )


def test_what_is_not_meant_is_refused_with_2(url: str, tables: Engine) -> None:
    refused = {
        ("redrive",): "say which dead jobs",
        ("redrive", "--all", "--type", "charge"): "say which dead jobs",
        ("redrive", "--all", "--since", "1h"): "say which dead jobs",
        ("list", "--since", "yesterday"): "neither a time such as",
        ("list", "--since", "2026-01-02"): "has no time zone",
        ("redrive", "--all", "--per-second", "0"): "per_second=0.0 is not between",
        ("prune",): "--older-than",
        ("prune", "--older-than", "-1d"): "older_than=-86400.0 s is not between 0 and",
        ("prune", "--older-than", "40000d", "--yes"): "is not between 0 and",
        ("list", "--since", "-1h"): "since=-3600.0 s is not between 0 and",
        ("summary", "--since", "1e15"): "since=1000000000000000.0 s is not between 0 and",
        ("list", "--limit", "0"): "0 is not in the range",
    }
    for words, told in refused.items():
        try:
            code, _, err = dlq(url, *words)
        except click.UsageError as error:
            code, err = error.exit_code, error.format_message()
        assert (code, told in err) == (2, True), words
    assert count(tables, "bgjob_dead_job") == 4


def test_a_missing_privilege_names_what_prints_it(url: str, tables: Engine) -> None:
    with tables.connect() as connection:
        connection.execute(text("CREATE ROLE bgjob_reader LOGIN PASSWORD 'test'"))
        try:
            connection.commit()
            reader = tables.url.set(username="bgjob_reader", password="test")
            code, _, err = dlq(reader.render_as_string(hide_password=False), "list")
        finally:
            connection.execute(text("DROP ROLE bgjob_reader"))
            connection.commit()

    assert code == 1
    assert "permission denied for table" in err
    assert "sqlalchemy-bgjob grants prints what each kind of role needs" in err


def test_every_driver_will_do(url: str, url_for: Callable[[str], str]) -> None:
    assert dlq(url_for("asyncpg"), "redrive", "--type", "charge")[0] == 0
    assert len(objects(url_for("psycopg2"), "list")) == 2


def test_tables_that_are_missing_are_told_with_4(url: str) -> None:
    code, _, err = dlq(url, "list", "--table-prefix", "other_")
    assert (code, "sqlalchemy-bgjob migrate" in err) == (4, True)


def test_a_file_for_workers_gives_no_filter(
    url: str, tables: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's URL is taken from it; the queue, which is a worker's, is not."""
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.sqlalchemy-bgjob]\ndatabase-url = "{url}"\nqueue = ["none:3"]\napp = "app:jobs"\n'
    )
    monkeypatch.chdir(tmp_path)

    code, out, err = run("dlq", "list", "--type", "charge")

    assert (code, len(out.splitlines())) == (0, 2), err


def test_edit_changes_the_arg_of_the_last_death(url: str, tables: Engine) -> None:
    assert dlq(url, "edit", "receipt", '{"street": "Elm"}')[:2] == (
        0,
        "the arg of receipt is changed; it is still dead\n",
    )
    assert objects(url, "show", "receipt")[0]["arg"] == {"street": "Elm"}

    code, _, err = dlq(url, "edit", "none such", "1")
    assert (code, "no dead job has the id" in err) == (1, True)
    code, _, err = dlq(url, "edit", "receipt", "no JSON")
    assert (code, "the arg is not JSON" in err) == (2, True)
    assert objects(url, "edit", "receipt", "[2]") == [{"edited": "receipt"}]


def test_edit_checks_the_arg_by_the_handler(url: str, tables: Engine) -> None:
    with tables.begin() as connection:
        connection.execute(text("UPDATE bgjob_dead_job SET type = 'note' WHERE id = '3'"))
    app = ("--app", "support.cli_app:functions")
    code, _, err = dlq(url, "edit", "receipt", "7", *app)
    assert (code, "expected `str`" in err) == (2, True), err
    assert objects(url, "show", "receipt")[0]["arg"] == {"order_id": 7}
    assert dlq(url, "edit", "receipt", '"words"', *app)[0] == 0
