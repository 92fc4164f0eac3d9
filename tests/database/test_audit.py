"""The audit: a row for each thing that was done, in the transaction that did it, and its page."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, event, func, insert, select, text

from sqlalchemy_bgjob import BGJob, schema
from sqlalchemy_bgjob._lifecycle import audit
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob._web import audit as audit_page
from sqlalchemy_bgjob._worker.retention import Retention
from sqlalchemy_bgjob.schema._grants import grants
from sqlalchemy_bgjob.settings import WorkerSettings
from sqlalchemy_bgjob.web import Access
from support.dashboard import Client, fill, make_jobs, mounted
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from httpx import Response
    from sqlalchemy import Connection

    from support.tuning import Tune

JSON = {"accept": "application/json"}
FORM = {"sec-fetch-site": "same-origin", **JSON}


@pytest.fixture(scope="module")
def jobs() -> BGJob:
    return make_jobs()


@pytest.fixture
def shop(engine: Engine, jobs: BGJob) -> Engine:
    """A queue that has something of everything, in which nothing was done yet."""
    jobs.metadata.create_all(engine)
    fill(jobs, engine, many=12)
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE bgjob_audit"))
    return engine


@pytest.fixture
def visit() -> Iterator[Any]:
    """Makes a browser at a dashboard, mounted at /jobs."""
    clients: list[Client] = []

    def make(jobs: BGJob, engine: Any, **options: Any) -> Client:
        given = {"access": Access(user="ada"), **options}
        clients.append(Client(mounted("/jobs", jobs, engine, **given), "/jobs"))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def post(client: Client, action: str, **fields: Any) -> Response:
    client.get("handlers")
    token = client.cookies.get("bgjob_csrf")
    return client.post(f"do/{action}", data={"csrf": token, **fields}, headers=FORM)


def rows(engine: Engine) -> list[Any]:
    """What was written down, the first thing first."""
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT * FROM bgjob_audit ORDER BY at, id")))


def count(engine: Engine, table: str) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


# ---- what is written -----------------------------------------------------------------------------


def test_each_action_leaves_its_row(visit: Any, shop: Engine, jobs: BGJob) -> None:
    """Who, what, on what and how many rows; and no row of what changed nothing."""
    client = visit(jobs, shop)
    done: list[tuple[str, int, dict[str, Any], Any]] = []

    def act(verb: str, changed: int, details: Any, given: Any = None, **fields: Any) -> Any:
        answer = post(client, verb, **fields)
        assert answer.status_code == 200, answer.text
        if changed:
            done.append((verb, changed, details, given))
        return answer.json()

    act("cancel", 1, {"ids": ["export-7", "nobody"]}, id=["export-7", "nobody"])
    act("cancel", 0, {}, id="export-7")
    act(
        "run",
        6,
        {"search": "queue:images -arg.picture:[hidden]"},
        whole="1",
        q="queue:images -arg.picture:private.jpg",
    )
    arg = {"order_id": 1, "to": "x", "api_token": "s3cret"}
    hidden = arg | {"api_token": "[hidden]"}
    act("edit", 1, {"id": "order-5"}, {"arg": hidden}, row="dead-5", arg=json.dumps(arg))
    search = {"search": "error:KeyError", "per_second": 50.0}
    act("redrive", 16, search, whole="1", q="error:KeyError", per_second="50")
    act("delete", 16, {"search": "error:TimeoutError"}, whole="1", q="error:TimeoutError")
    act(
        "pause",
        1,
        {"queue": "mail", "reason": "down", "until": 300.0},
        queue="mail",
        reason="down",
        minutes="5",
    )
    act("slots", 1, {"queue": "mail", "slots": 3}, queue="mail", slots="3")
    act("resume", 1, {"queue": "mail"}, queue="mail")
    act("resume", 0, {}, queue="mail")
    act("schedule-pause", 1, {"name": "daily report"}, name="daily report")
    act("schedule-resume", 1, {"name": "daily report"}, name="daily report")
    details = {"name": "daily report"}
    details["id"] = act("schedule-run", 1, details, name="daily report")["id"]
    details = {"type": "send_receipt", "delay": 60.0, "priority": 0}
    given = {"arg": hidden}
    details["id"] = act(
        "enqueue", 1, details, given, type="send_receipt", arg=json.dumps(arg), delay="60"
    )["id"]
    id = details["id"]
    shown = client.get(f"job?id={id}", headers=JSON).json()
    headers = {"authorization": "Bearer x", "trace": "1"}
    hidden = {"authorization": "[hidden]", "trace": "1"}
    act(
        "change",
        1,
        {"id": id, "priority": -3},
        {"headers": hidden},
        id=id,
        priority="-3",
        lease=shown["job"]["lease"],
        headers=json.dumps(headers),
    )
    details = {"of": id}
    details["id"] = act("copy", 1, details, id=id, row="")["id"]

    found = rows(shop)
    assert [(row.verb, row.changed, row.details, row.given) for row in found] == done
    assert {(row.who, row.origin) for row in found} == {("ada", "dashboard")}
    assert "s3cret" not in str(found)
    assert "private" not in str(found)
    with shop.connect() as connection:
        assert connection.scalar(select(func.now() - found[0].at)).total_seconds() < 600


def test_an_action_without_its_row_is_undone(
    visit: Any, shop: Engine, jobs: BGJob, caplog: pytest.LogCaptureFixture
) -> None:
    """The row is refused after the action, before its commit."""
    with shop.begin() as connection:
        connection.execute(text("ALTER TABLE bgjob_audit ADD CHECK (who <> 'ada')"))
    before = count(shop, "bgjob_dead_job"), count(shop, "bgjob_job")

    with caplog.at_level(logging.INFO, "sqlalchemy_bgjob.audit"):
        answer = post(visit(jobs, shop), "redrive", whole="1")

    assert (answer.status_code, "The database refuses" in answer.text) == (500, True)
    assert (count(shop, "bgjob_dead_job"), count(shop, "bgjob_job")) == before
    assert rows(shop) == []
    assert [one for one in caplog.records if one.name == "sqlalchemy_bgjob.audit"] == []


def test_a_row_without_its_action_is_undone(visit: Any, shop: Engine, jobs: BGJob) -> None:
    """The commit is refused, after both."""
    with shop.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE invoice (dead_id text REFERENCES bgjob_dead_job"
                " DEFERRABLE INITIALLY DEFERRED)"
            )
        )
        connection.execute(text("INSERT INTO invoice VALUES ('dead-1')"))
    before = count(shop, "bgjob_dead_job")

    assert post(visit(jobs, shop), "delete", whole="1").status_code == 500

    assert (count(shop, "bgjob_dead_job"), rows(shop)) == (before, [])


def test_without_tables_of_records_nothing_is_sent(visit: Any, engine: Engine) -> None:
    jobs = new_queue()
    jobs.metadata.create_all(engine)
    sent: list[str] = []
    client = visit(jobs, engine)

    @event.listens_for(engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        sent.append(statement)

    assert post(client, "pause", queue="mail").status_code == 200
    page = client.get("queues").text

    assert len(sent) > 3
    assert not [statement for statement in sent if "audit" in statement]
    assert "/jobs/audit" not in page
    assert "There are no tables for it" in client.get("audit").text


def test_tables_made_before_the_audit_refuse_actions(visit: Any, shop: Engine, jobs: BGJob) -> None:
    """In words that say what to run; then they have one."""
    with shop.begin() as connection:
        connection.execute(text("DROP TABLE bgjob_audit"))
    client = visit(jobs, shop)

    refused = post(client, "pause", queue="mail")

    assert (refused.status_code, "migrate --records" in refused.text) == (503, True)
    assert "There are no tables for it" in client.get("audit").text
    with shop.connect() as connection:
        schema.migrate_online(connection, records=True)
    assert post(client, "pause", queue="mail").status_code == 200
    assert len(rows(shop)) == 1


def test_an_operator_can_neither_change_nor_forge_rows(
    visit: Any, shop: Engine, jobs: BGJob
) -> None:
    """With the privileges of ``grants``; and without that to insert nothing is done."""
    role = "operator_of_the_audit"
    where: dict[str, Any] = {"schema": None, "table_prefix": "bgjob_", "records": True}
    with shop.begin() as connection:
        connection.execute(text(f'CREATE ROLE "{role}"'))
        connection.exec_driver_sql(grants([("operator", role)], **where))
    operator = create_engine(shop.url, connect_args={"options": f"-c role={role}"})
    try:
        client = visit(jobs, operator)
        assert post(client, "pause", queue="mail").status_code == 200
        assert client.get("audit", headers=JSON).json()["actions"][0]["who"] == "ada"
        forged = (
            "INSERT INTO bgjob_audit (at, id, origin, verb, changed, details)"
            " VALUES (now() - interval '1 day', 'x', 'dashboard', 'pause', 1, '{}')"
        )
        for sql in (
            forged,
            "DELETE FROM bgjob_audit",
            "UPDATE bgjob_audit SET who = 'grace'",
        ):
            with operator.connect() as connection, pytest.raises(Exception, match="permission"):
                connection.execute(text(sql))

        with shop.begin() as connection:
            connection.execute(text(f'REVOKE INSERT ON bgjob_audit FROM "{role}"'))
        refused = post(client, "resume", queue="mail")
        assert (refused.status_code, "bgjob_audit" in refused.text) == (403, True)
        assert count(shop, "bgjob_control") == 2, "the queue is paused still, as is that of fill()"
        assert len(rows(shop)) == 1
    finally:
        operator.dispose()
        with shop.begin() as connection:
            connection.execute(text(f'DROP OWNED BY "{role}"'))
            connection.execute(text(f'DROP ROLE "{role}"'))


# ---- whatever is given ---------------------------------------------------------------------------


@pytest.fixture
def tables(connection: Connection, jobs: BGJob) -> Connection:
    """Empty tables, in a transaction that is rolled back."""
    jobs.metadata.create_all(connection)
    return connection


def write(connection: Connection, jobs: BGJob, **given: Any) -> Any:
    """Write one row; the row."""
    values = {"who": "ada", "origin": "dashboard", "verb": "edit", "changed": 1, "details": {}}
    audit.write(connection, statements_of(jobs.models), **{**values, **given})
    return connection.execute(text("SELECT * FROM bgjob_audit ORDER BY id DESC LIMIT 1")).one()


def test_any_text_can_be_written_down(tables: Connection, jobs: BGJob) -> None:
    """NUL, lone surrogates, line ends, and what is no number; and who nobody knows."""
    odd = "a\x00b\ud800\r\n\x1b[31m é"
    plain = "a\\x00b\\xd800\\x0d\\x0a\\x1b[31m é"
    details = {odd: odd, "list": [odd, float("nan"), 1.5, True, None], "absent": None}

    row = write(tables, jobs, who=odd, details=details, given={"arg": {odd: [odd]}})

    assert row.who == plain
    assert row.details == {plain: plain, "list": [plain, "nan", 1.5, True, None]}
    assert row.given == {"arg": {plain: [plain]}}
    assert write(tables, jobs, who=None).who is None


def test_what_is_very_large_is_cut_and_says_so(tables: Connection, jobs: BGJob) -> None:
    nested: Any = "x"
    for _ in range(900):
        nested = [nested]
    ids = [f"{n:04}" + "y" * 251 for n in range(501)]
    large = {"arg": ["z" * 900] * 400}

    row = write(tables, jobs, who="w" * 1_000, details={"ids": ids}, given=large)

    assert row.who == "w" * 200 + "..."
    assert row.details == {"ids": [*ids[:500], "and 1 more"]}
    assert row.given == {"left out": f"{len(json.dumps(large))} characters"}
    deep = write(tables, jobs, details={"a": "b" * 10**6}, given={"arg": nested})
    assert deep.details == {"a": "b" * 1_200 + "..."}
    assert str(deep.given["arg"]) == f"{'[' * 20}'...'{']' * 20}"


def test_characters_that_the_database_lacks_are_replaced() -> None:
    """As what is written to a database of another encoding."""
    shown = audit.bounded({"é": ["é"]}, lambda text: text.replace("é", "\\xe9"))
    assert shown == {"\\xe9": ["\\xe9"]}


# ---- retention -----------------------------------------------------------------------------------


def test_what_is_too_old_is_deleted(shop: Engine, jobs: BGJob) -> None:
    """The oldest first; what somebody has locked is left to the next time."""
    with shop.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO bgjob_audit (at, id, origin, verb, changed, details) SELECT"
                " now() - n * interval '1 day', n, 'dashboard', 'run', 1, '{}'"
                " FROM generate_series(1, 9) AS n"
            )
        )
    keep = 4.5 * 86_400.0
    statements = statements_of(jobs.models)

    with shop.connect() as connection, shop.connect() as other:
        assert audit.delete_old(connection, statements, keep=keep, limit=2) == 2
        other.execute(text("SELECT FROM bgjob_audit WHERE id = '7' FOR UPDATE"))
        assert audit.delete_old(connection, statements, keep=keep, limit=9) == 2
        other.rollback()
        assert audit.delete_old(connection, statements, keep=keep, limit=9) == 1

    assert [row.id for row in rows(shop)] == ["4", "3", "2", "1"]
    for days, left in ((0.0, "4321"), (2.5, "21")):
        settings = WorkerSettings(audit_keep=days * 86_400.0)
        with shop.connect() as connection:
            Retention(statements, settings, lambda: 1, lambda error: None).turn(connection)
        assert "".join(row.id for row in rows(shop)) == left


# ---- the page ------------------------------------------------------------------------------------


def test_the_page_goes_back_in_time(visit: Any, shop: Engine, jobs: BGJob) -> None:
    """By who did it and by what it was; rows of the same moment are neither lost nor repeated."""
    with shop.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO bgjob_audit (at, id, who, origin, verb, changed, details) SELECT"
                " now() - (n / 10) * interval '1 s', lpad(CAST(n AS text), 3, '0'),"
                " CASE WHEN n % 2 = 0 THEN 'ada' ELSE 'grace' END, 'dashboard',"
                " CASE WHEN n % 3 = 0 THEN 'run' ELSE 'cancel' END, n, '{}'"
                " FROM generate_series(1, 115) AS n"
            )
        )
    client = visit(jobs, shop)

    def all_of(path: str) -> list[int]:
        found: list[int] = []
        while path:
            page = client.get(path, headers=JSON).json()
            assert len(page["actions"]) <= 50
            found += [row["changed"] for row in page["actions"]]
            path = (page["following"] or "").removeprefix("/jobs/")
        return found

    every = sorted(range(1, 116), key=lambda n: (n // 10, -n))
    assert all_of("audit") == every
    assert all_of("audit?who=ada") == [n for n in every if n % 2 == 0]
    assert all_of("audit?who=grace&verb=run") == [n for n in every if n % 2 and n % 3 == 0]
    assert "Nothing of this kind was done." in client.get("audit?who=nobody").text
    assert 'href="/jobs/audit"' in client.get("queues").text
    assert client.get("audit?after=yesterday").status_code == 400


def test_a_search_looks_at_a_part_and_goes_on(
    visit: Any, shop: Engine, jobs: BGJob, tune: Tune
) -> None:
    """However many rows there are, a page reads so many; and what they lack is said."""
    with shop.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO bgjob_audit (at, id, who, origin, verb, changed, details) SELECT"
                " now() - n * interval '1 s', n, CASE WHEN n = 25 THEN 'ada' ELSE 'grace' END,"
                " 'dashboard', 'run', n, '{}' FROM generate_series(1, 29) AS n"
            )
        )
    tune(audit_page, SCAN=10)
    client = visit(jobs, shop)
    path, seen = "audit?who=ada", []
    while path:
        page = client.get(path, headers=JSON).json()
        seen.append(([row["changed"] for row in page["actions"]], page["stopped"]))
        path = (page["following"] or "").removeprefix("/jobs/")

    assert seen == [([], True), ([], True), ([25], False)]
    shown = client.get("audit?who=ada").text
    assert "None of the rows looked at so far fits." in shown
    assert "Looked at 10 rows." in shown
    assert "Search on" in shown
    long_ago = "2000-01-01T00:00:00%2B00:00%20x"
    rest = client.get(f"audit?who=ada&after={long_ago}").text
    assert "Nothing of this kind was done." in rest
    assert "Looked at" not in rest


def test_what_was_given_is_for_who_may_see_args(visit: Any, shop: Engine, jobs: BGJob) -> None:
    """And a word that hides values here hides them too."""
    row = {
        "id": "1",
        "origin": "command line",
        "verb": "edit",
        "changed": 1,
        "details": {"id": "j"},
    }
    with shop.begin() as connection:
        connection.execute(insert(jobs.Audit).values(**row, given={"arg": {"customer": "c-77"}}))

    def shown(**options: Any) -> str:
        client = visit(jobs, shop, **options)
        return str(client.get("audit").text + client.get("audit", headers=JSON).text)

    assert "c-77" in shown()
    assert "c-77" not in shown(redact=["customer"])
    assert "c-77" not in shown(access=Access(args=False))
    assert "c-77" in shown(access="read")


def test_a_role_of_a_dashboard_reads_what_it_may(visit: Any, shop: Engine, jobs: BGJob) -> None:
    role = "reader_of_the_audit"
    where: dict[str, Any] = {"schema": None, "table_prefix": "bgjob_"}
    row = {"id": "1", "origin": "dashboard", "verb": "edit", "changed": 1, "details": {"id": "j7"}}
    with shop.begin() as connection:
        connection.execute(insert(jobs.Audit).values(**row, given={"arg": "c-77"}))
        connection.execute(text(f'CREATE ROLE "{role}"'))
        connection.exec_driver_sql(grants([("dashboard", role)], **where))
    eyes = create_engine(shop.url, connect_args={"options": f"-c role={role}"})
    try:
        client = visit(jobs, eyes)
        assert "may not read the audit" in client.get("audit").text
        with shop.begin() as connection:
            connection.exec_driver_sql(grants([("dashboard", role)], **where, records=True))
        page = client.get("audit").text
        assert ("j7" in page, "c-77" in page) == (True, False)
    finally:
        eyes.dispose()
        with shop.begin() as connection:
            connection.execute(text(f'DROP OWNED BY "{role}"'))
            connection.execute(text(f'DROP ROLE "{role}"'))
