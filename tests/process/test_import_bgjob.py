"""``import-bgjob``: each job of the Go library is in exactly one table, whatever dies when."""

from __future__ import annotations

import importlib
import re
import signal
import sys
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, MetaData, text

from sqlalchemy_bgjob import BGJob, schema
from sqlalchemy_bgjob._lifecycle import go_bgjob
from support.cli import run
from support.rows import waiting
from support.waiting import wait_until

COMMAND = importlib.import_module("sqlalchemy_bgjob.cli.import_bgjob")
BATCH = go_bgjob.BATCH

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import UrlFor
    from support.commands import Command
    from support.tuning import Tune

# As the library's own migration/init.sql and migration/add_request_id.sql make them.
GO_TABLES = """
    CREATE TABLE bgjob_job (
        id text PRIMARY KEY, queue text NOT NULL, type text NOT NULL, arg bytea,
        attempt int4 NOT NULL, last_error text, next_run_at int8 NOT NULL,
        created_at timestamp NOT NULL, updated_at timestamp NOT NULL);
    CREATE INDEX ix_bgjob_job__queue_next_run_at_created_at
        ON bgjob_job (queue, next_run_at, created_at);
    CREATE TABLE bgjob_dead_job (
        id serial8 PRIMARY KEY, job_id text NOT NULL, queue text NOT NULL, type text NOT NULL,
        arg bytea, attempt int4 NOT NULL, last_error text, next_run_at int8 NOT NULL,
        job_created_at timestamp NOT NULL, job_updated_at timestamp NOT NULL,
        moved_at timestamp NOT NULL);
"""
REQUEST_ID = """
    ALTER TABLE bgjob_job ADD COLUMN request_id text NOT NULL DEFAULT '';
    ALTER TABLE bgjob_dead_job ADD COLUMN request_id text NOT NULL DEFAULT '';
"""
# 550 jobs: 70 are due in each second, their ids do not tell which is older, and the last hundred
# are scheduled for tomorrow. Bytes of every kind.
GO_ROWS = r"""
    INSERT INTO bgjob_job
    SELECT md5(n::text), CASE WHEN mod(n, 3) = 0 THEN 'hooks' ELSE 'mail' END, 'send' || mod(n, 2),
           (ARRAY['{"order_id": 7}'::bytea, '\x089601ff00'::bytea, NULL, ''::bytea])[1 + mod(n, 4)],
           mod(n, 4), CASE WHEN mod(n, 4) > 0 THEN '<2024-05-01T10:00:00Z> no ' || n END,
           1714557600 + n / 70 + CASE WHEN n > 450 THEN 4000000000 ELSE 0 END,
           timestamp '2024-05-01 09:00:00.000001' + mod(n * 7919, 550) * interval '1 ms',
           timestamp '2024-05-01 10:00:00.654321' + n * interval '1 ms',
           CASE WHEN mod(n, 5) > 0 THEN 'request ' || n ELSE '' END
    FROM generate_series(1, 550) AS n;
    INSERT INTO bgjob_dead_job (job_id, queue, type, arg, attempt, last_error, next_run_at,
        job_created_at, job_updated_at, moved_at, request_id)
    SELECT 'dead ' || n / 2, 'mail', 'send', '\x00ff'::bytea, n, 'gone ' || n, 1714557600 + n,
           timestamp '2024-05-01 09:00:00.000001' + n * interval '1 s', timestamp '2024-05-02',
           timestamp '2024-05-03 11:00:00.123456' + n * interval '1 s', 'request ' || n
    FROM generate_series(1, 5) AS n;
"""
# Each statement of this worker is one of the library's: Acquire, Delete, Update, SaveInDlq.
GO_WORKER = """
import pathlib, sys, time, psycopg
url, go = sys.argv[1], pathlib.Path(sys.argv[2])
connections = [psycopg.connect(url) for _ in range(3)]
ids = [
    connection.execute(
        "SELECT id FROM bgjob_job WHERE queue = 'mail' AND next_run_at <= extract(epoch FROM now())"
        " ORDER BY next_run_at, created_at LIMIT 1 FOR UPDATE SKIP LOCKED"
    ).fetchone()[0]
    for connection in connections
]
print(*ids, flush=True)
while not go.exists():
    time.sleep(0.01)
done, retried, dead = connections
done.execute("DELETE FROM bgjob_job WHERE id = %s", [ids[0]])
retried.execute(
    "UPDATE bgjob_job SET attempt = 9, last_error = 'again', next_run_at = 1714557900,"
    " updated_at = '2024-05-04' WHERE id = %s", [ids[1]])
retried.execute(
    "INSERT INTO bgjob_job SELECT 'new', queue, type, arg, 0, NULL, next_run_at, created_at,"
    " updated_at, request_id FROM bgjob_job WHERE id = %s", [ids[1]])
dead.execute(
    "INSERT INTO bgjob_dead_job (job_id, queue, type, arg, attempt, last_error, next_run_at,"
    " job_created_at, job_updated_at, moved_at, request_id) SELECT id, queue, type, arg,"
    " attempt + 1, 'dlq', next_run_at, created_at, updated_at, '2024-05-04', request_id"
    " FROM bgjob_job WHERE id = %s", [ids[2]])
dead.execute("DELETE FROM bgjob_job WHERE id = %s", [ids[2]])
for connection in connections:
    connection.commit()
"""
SAME_JOBS = """
    SELECT r.id FROM record r JOIN ours.bgjob_job o USING (id)
    WHERE (o.queue, o.type, o.attempt, o.created_at, o.updated_at, o.crashes, o.priority)
        = (r.queue, r.type, r.attempt, r.created_at AT TIME ZONE 'UTC',
           r.updated_at AT TIME ZONE 'UTC', 0, 0)
      AND date_trunc('second', o.next_run_at) = to_timestamp(r.next_run_at)
      AND o.arg IS NOT DISTINCT FROM r.arg AND o.last_error IS NOT DISTINCT FROM r.last_error
      AND coalesce(o.headers ->> 'request-id', '') = r.request_id
      AND o.claimed_by IS NULL AND o.lease > 1714557600000000
"""
SAME_DEAD_JOBS = """
    SELECT count(*) FROM dead_record r JOIN ours.bgjob_dead_job o USING (job_id, attempt)
    WHERE (o.queue, o.type, o.arg, o.last_error, o.next_run_at)
        = (r.queue, r.type, r.arg, r.last_error, to_timestamp(r.next_run_at))
      AND (o.job_created_at, o.job_updated_at, o.moved_at)
        = (r.job_created_at AT TIME ZONE 'UTC', r.job_updated_at AT TIME ZONE 'UTC',
           r.moved_at AT TIME ZONE 'UTC')
      AND o.headers ->> 'request-id' = r.request_id AND o.lease > 1714557600000000
"""
ADD = text(
    "INSERT INTO bgjob_job VALUES (:id, :queue, :type, :arg, :attempt, NULL, :next_run_at,"
    " CAST(:created_at AS timestamp), now(), :request_id)"
)
FITS = {
    "id": "fits",
    "queue": "mail",
    "type": "send",
    "arg": b'{"order_id":7}',
    "attempt": 0,
    "next_run_at": 1_714_557_600,
    "created_at": "2024-05-01",
    "request_id": "",
}


@pytest.fixture
def go(engine: Engine) -> Engine:
    """A database with the Go library's tables, and with ours in the schema "ours"."""
    with engine.begin() as connection:
        connection.exec_driver_sql(GO_TABLES + REQUEST_ID)
        schema.migrate(connection, schema="ours")
    return engine


def moved(url: str, *arguments: str) -> tuple[int, str, str]:
    return run("import-bgjob", "--database-url", url, "--schema", "ours", *arguments)


def ids(connection: Connection, table: str, column: str = "id", order: str = "id") -> list[str]:
    return list(connection.scalars(text(f"SELECT {column} FROM {table} ORDER BY {order}")))


def add(engine: Engine, *jobs: dict[str, Any]) -> None:
    with engine.begin() as connection:
        connection.execute(ADD, [{**FITS, **job} for job in jobs])


# ---- killed in between, beside a Go worker -------------------------------------------------------


def test_a_kill_leaves_each_job_in_one_table(
    go: Engine, database_url: str, start: Callable[..., Command], tmp_path: Path
) -> None:
    """The command is killed within a transaction while a Go worker runs three jobs."""
    with go.begin() as connection:
        connection.exec_driver_sql(GO_ROWS)
        connection.exec_driver_sql("CREATE TABLE record AS SELECT * FROM bgjob_job")
        connection.exec_driver_sql("CREATE TABLE dead_record AS SELECT * FROM bgjob_dead_job")
    url = re.sub(r"\+\w+", "", database_url)
    finish = tmp_path / "finish"
    worker = start(url, str(finish), program=(sys.executable, "-c", GO_WORKER))
    running = wait_until(lambda: worker.stdout.split() if worker.stdout.endswith("\n") else [], 60)
    assert len(running) == 3
    arguments = ["import-bgjob", "--database-url", database_url, "--schema", "ours"]

    # A job of this id, not committed yet, stops the command within its second batch.
    with go.connect() as blocker:
        (stop,) = blocker.scalars(
            text(
                "SELECT id FROM bgjob_job WHERE id <> ALL (:running)"
                " ORDER BY queue, next_run_at, created_at OFFSET :batch + 50 LIMIT 1"
            ),
            {"running": running, "batch": BATCH},
        )
        blocker.execute(
            text("INSERT INTO ours.bgjob_job (id, queue, type) VALUES (:id, 'q', 't')"),
            {"id": stop},
        )
        killed = start(*arguments)
        wait_until(lambda: waiting(go) == 1 or not killed.alive, 60, what="the second batch")
        assert killed.alive, killed.stderr
        killed.signal(signal.SIGKILL)
        killed.wait()
        blocker.rollback()

    with go.connect() as connection:
        theirs, ours = ids(connection, "bgjob_job"), ids(connection, "ours.bgjob_job")
        assert len(ours) == BATCH
        assert sorted(theirs + ours) == ids(connection, "record")

    again = start(*arguments)
    again.says("waiting for 3 rows")
    finish.touch()

    assert worker.wait() == 0, worker.stderr
    assert again.wait() == 0, again.stderr
    done, retried, dead = running
    assert again.stdout == "moved 349 jobs and 6 dead jobs\n"
    with go.connect() as connection:
        assert ids(connection, "bgjob_job") == ids(connection, "bgjob_dead_job") == []
        untouched = set(ids(connection, "record")) - set(running)
        assert set(ids(connection, "ours.bgjob_job")) == untouched | {retried, "new"}
        assert set(connection.scalars(text(SAME_JOBS))) == untouched
        assert connection.scalar(text(SAME_DEAD_JOBS)) == 5
        assert ids(connection, "ours.bgjob_dead_job", "job_id", "moved_at")[-1] == dead
        (row,) = connection.execute(
            text("SELECT attempt, last_error FROM ours.bgjob_job WHERE id = :id"), {"id": retried}
        )
        assert tuple(row) == (9, "again")
        order = ids(connection, "record", order="queue, next_run_at, created_at")
        now = ids(connection, "ours.bgjob_job", order="queue, priority, next_run_at, id")
    assert [id for id in now if id in untouched] == [id for id in order if id in untouched]
    assert done not in now


# ---- what is moved, and how it runs ------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
def test_args_come_as_the_handler_says(go: Engine, url_for: UrlFor, driver: str) -> None:
    """JSON by the annotation; what is not JSON as bytes; and the id of the request."""
    add(
        go,
        {"id": "json", "request_id": "r 1"},
        {"id": "raw", "type": "raw", "arg": b"\x08\x96\x01\xff\x00"},
        {"id": "json as bytes", "type": "raw", "attempt": 3},
        {"id": "nothing", "type": "none", "arg": None},
    )
    jobs: BGJob[Any, Any] = BGJob(MetaData(), schema="ours")
    got: dict[str, Any] = {}

    @jobs.handler("send", queue="mail")
    def send(ctx: Any, arg: dict[str, int]) -> None:
        got[ctx.job.id] = (arg, ctx.job.attempt, ctx.job.headers)

    @jobs.handler("raw", queue="mail")
    def raw(ctx: Any, arg: bytes) -> None:
        got[ctx.job.id] = (arg, ctx.job.attempt, ctx.job.headers)

    @jobs.handler("none", queue="mail")
    def none(ctx: Any) -> None:
        got[ctx.job.id] = ctx.job.created_at

    assert moved(url_for(driver)) == (0, "moved 4 jobs and 0 dead jobs\n", "")
    while jobs.work_one(go, "mail") is not None:
        pass

    as_bytes = {"content-type": "application/octet-stream"}
    assert got == {
        "json": ({"order_id": 7}, 1, {"request-id": "r 1"}),
        "raw": (b"\x08\x96\x01\xff\x00", 1, as_bytes),
        "json as bytes": (b'{"order_id":7}', 4, {}),
        "nothing": datetime(2024, 5, 1, tzinfo=UTC),
    }
    assert moved(url_for(driver)) == (0, "moved 0 jobs and 0 dead jobs\n", "")


def test_tables_without_request_ids_are_moved_too(engine: Engine, database_url: str) -> None:
    """Those of the library's first version, and in a schema that is named."""
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "It\'s %%s"')
        connection.exec_driver_sql('SET LOCAL search_path = "It\'s %%s"')
        connection.exec_driver_sql(GO_TABLES)
        connection.exec_driver_sql(
            "INSERT INTO bgjob_job VALUES ('a', 'q', 't', NULL, 0, NULL, 0, now(), now());"
            "INSERT INTO bgjob_dead_job VALUES"
            " (DEFAULT, 'a', 'q', 't', NULL, 0, NULL, 0, now(), now(), now())"
        )
        schema.migrate(connection, schema="public")

    code, out, err = run("import-bgjob", "--database-url", database_url, "--from-schema", "It's %s")

    assert (code, out, err) == (0, "moved 1 job and 1 dead job\n", "")


def test_workers_that_wait_are_woken(go: Engine, database_url: str) -> None:
    from sqlalchemy_bgjob._sql.words import channel_name, own_channel

    add(go, {})
    with go.connect() as connection:
        for worker, queue in ((1, "mail"), (2, "hooks")):
            connection.execute(
                text(
                    "INSERT INTO ours.bgjob_worker (id, hostname, pid, version, queues,"
                    " lease_timeout, waits_for) VALUES (:id, 'h', 1, '0', '{}', 30,"
                    " jsonb_build_array(CAST(:queue AS text)))"
                ),
                {"id": worker, "queue": queue},
            )
            channel = own_channel(channel_name("ours", "bgjob_"), worker)
            connection.exec_driver_sql(f"LISTEN {channel}")
        connection.commit()

        assert moved(database_url)[0] == 0

        driver: Any = connection.connection.driver_connection
        heard = [it.payload for it in driver.notifies(timeout=10, stop_after=1)]
    assert heard == ["new 0 mail"]


# ---- what is left ------------------------------------------------------------------------------

TOO_MUCH: dict[str, tuple[dict[str, Any], str]] = {
    "queue": ({"queue": "q" * 129}, "has 129 characters; 1 to 128 are allowed"),
    "no queue": ({"queue": ""}, "has 0 characters"),
    "type": ({"type": "t" * 129}, "has 129 characters"),
    "i" * 256: ({}, "has 256 characters; 1 to 255 are allowed"),
    "arg": ({"arg": b"x" * 1_048_577}, "the arg has 1048577 bytes; 1048576 are allowed"),
    "attempt": ({"attempt": -1}, "attempt=-1 is below 0"),
    "due": ({"next_run_at": 10**15}, "not between the years 1970 and 9998"),
    "created": ({"created_at": "infinity"}, "not between the years 1970 and 9998"),
    "request": ({"request_id": "r" * 70_000}, "invalid arg at headers"),
    "lives": ({}, "a live job has this id here"),
}


def test_what_does_not_fit_is_left_and_told(go: Engine, database_url: str, tune: Tune) -> None:
    """By its id and the reason; the others are moved, and the next run says the same."""
    tune(go_bgjob, BATCH=3)  # so whole batches do not fit
    add(go, *({"id": id, **values} for id, (values, _) in TOO_MUCH.items()), {"id": "fits"})
    with go.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO bgjob_dead_job (job_id, queue, type, attempt, next_run_at, job_created_at,"
            " job_updated_at, moved_at) SELECT id, queue, type, 1, next_run_at, created_at,"
            " updated_at, created_at FROM bgjob_job WHERE id IN ('queue', 'fits')"
        )
        connection.exec_driver_sql(
            "INSERT INTO ours.bgjob_job (id, queue, type, attempt) VALUES ('lives', 'q', 't', 5)"
        )

    code, out, err = moved(database_url)

    assert (code, out) == (1, "moved 1 job and 1 dead job\n")
    told = dict(re.findall(r"^left job '(.*?)': (.*)$", err, re.MULTILINE))
    assert told.keys() == TOO_MUCH.keys()
    for id, (_, reason) in TOO_MUCH.items():
        assert reason in told[id]
    assert "left dead job 'queue': queue='qqq" in err
    assert err.endswith("11 rows left in public\n")
    with go.connect() as connection:
        assert set(ids(connection, "bgjob_job")) == set(TOO_MUCH)
        assert ids(connection, "ours.bgjob_job") == ["fits", "lives"]
    code, out, again = moved(database_url)
    assert (code, out) == (1, "moved 0 jobs and 0 dead jobs\n")
    assert sorted(again.splitlines()) == sorted(err.splitlines())


def test_once_leaves_what_a_go_worker_runs(go: Engine, database_url: str) -> None:
    add(go, {"id": "runs"}, {"id": "fits"})
    with go.connect() as worker:
        worker.execute(text("SELECT FROM bgjob_job WHERE id = 'runs' FOR UPDATE"))

        code, out, err = moved(database_url, "--once")

    assert (code, out, err) == (1, "moved 1 job and 0 dead jobs\n", "1 row left in public\n")
    assert moved(database_url, "--once")[:2] == (0, "moved 1 job and 0 dead jobs\n")


def test_it_waits_for_a_go_worker_and_says_nothing_twice(
    go: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(go, {"id": "runs"}, {"id": "long", "type": "t" * 129})
    with go.connect() as worker:
        worker.execute(text("SELECT FROM bgjob_job WHERE id = 'runs' FOR UPDATE"))
        ends = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: worker.rollback())
        monkeypatch.setattr(COMMAND, "time", ends)

        code, out, err = moved(database_url)

    assert (code, out) == (1, "moved 1 job and 0 dead jobs\n")
    left, waits, rest = err.splitlines()
    assert left.startswith("left job 'long': type='ttt")
    assert waits.startswith("waiting for 1 row: ")
    assert rest == "1 row left in public"


def test_it_says_how_far_it_is(go: Engine, database_url: str, tune: Tune) -> None:
    tune(COMMAND, _TOLD_EVERY=0.0)
    add(go, *({"id": f"{n}"} for n in range(BATCH + 1)))

    code, _, err = moved(database_url)

    assert code == 0
    assert err.splitlines() == [
        f"moved {BATCH} jobs and 0 dead jobs so far",
        f"moved {BATCH + 1} jobs and 0 dead jobs so far",
    ]


# ---- mistakes ----------------------------------------------------------------------------------


def test_each_mistake_says_what_to_do(engine: Engine, database_url: str) -> None:
    """No tables of ours, none of theirs, and theirs where ours should be."""
    code, _, err = moved(database_url)
    assert (code, "sqlalchemy-bgjob migrate --schema ours" in err) == (4, True), err
    with engine.begin() as connection:
        schema.migrate(connection, schema="ours")
    code, _, err = moved(database_url)
    assert code == 2
    assert "no tables bgjob_job and bgjob_dead_job of the Go library on the search path" in err
    assert err.endswith("name their schema with --from-schema\n")
    code, _, err = moved(database_url, "--from-schema", "ours")
    assert (code, "of the Go library in schema 'ours'" in err) == (2, True), err
    with engine.begin() as connection:
        connection.exec_driver_sql(GO_TABLES)
    code, _, err = run("import-bgjob", "--database-url", database_url)
    assert (code, "is the Go library bgjob's" in err) == (4, True), err
    assert "--schema or --table-prefix" in err


def test_missing_privileges_are_named(go: Engine, database_url: str) -> None:
    """Those on our tables first, then those on the Go library's: what it says is enough."""
    add(go, {})
    name = f"mover of {go.url.database}"
    given = go.url.set(username=name, password="secret")
    url = given.render_as_string(hide_password=False)
    with go.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'secret'")
    told = []
    try:
        for _ in range(3):
            code, _, err = moved(url)
            assert (code, "this role may not move the rows" in err) == (3, True), err
            told.append(re.findall(r"GRANT (.+?) TO this role", err))
            with go.begin() as connection:
                for grant in told[-1]:
                    connection.exec_driver_sql(f'GRANT {grant} TO "{name}"')

        assert moved(url) == (0, "moved 1 job and 0 dead jobs\n", "")
    finally:
        with go.begin() as connection:
            connection.exec_driver_sql(f'DROP OWNED BY "{name}"')
            connection.exec_driver_sql(f'DROP ROLE "{name}"')

    assert told[0] == ['USAGE ON SCHEMA "ours"']
    assert [grant.rpartition(" ON ")[2] for grant in told[1]] == [
        f'"ours"."bgjob_{kind}"'
        for kind in ("job", "dead_job", "worker", "schedule", "control", "unique_period", "batch")
    ]
    assert told[2][1] == 'SELECT, UPDATE, DELETE ON "public"."bgjob_job", "public"."bgjob_dead_job"'


def test_a_row_that_our_tables_refuse_is_not_shown(go: Engine, database_url: str) -> None:
    """A check of the user's own: nothing of the batch is moved, and no arg gets into the log."""
    add(go, {"arg": b"secret"})
    with go.begin() as connection:
        connection.exec_driver_sql(
            "ALTER TABLE ours.bgjob_job ADD CONSTRAINT own CHECK (queue <> 'mail')"
        )

    code, out, err = moved(database_url)

    assert (code, out) == (1, "moved 0 jobs and 0 dead jobs\n")
    assert err.startswith("Error: the tables refuse a row: IntegrityError")
    assert "own" in err
    assert "secret" not in err
