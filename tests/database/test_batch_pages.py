"""The dashboard's pages of batches: how far each has come, and what follows it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from sqlalchemy import Engine, create_engine, insert, text

from sqlalchemy_bgjob._inspect import batches as reads
from sqlalchemy_bgjob._web import batches as pages
from sqlalchemy_bgjob.schema._grants import grants
from support.dashboard import BATCHES, Client, fill, make_jobs, mounted
from support.plans import recorded_plans

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from sqlalchemy_bgjob import BGJob

JSON = {"accept": "application/json"}


@pytest.fixture(scope="module")
def jobs() -> BGJob:
    return make_jobs()


@pytest.fixture(scope="module")
def shop(module_engine: Engine, jobs: BGJob) -> Engine:
    """A queue with batches in each state; each test leaves it so."""
    jobs.metadata.create_all(module_engine)
    fill(jobs, module_engine)
    return module_engine


@pytest.fixture
def visit(shop: Engine, jobs: BGJob) -> Iterator[Any]:
    """Makes a browser at a dashboard over an engine."""
    clients: list[Client] = []

    def make(engine: Any = shop) -> Client:
        clients.append(Client(mounted("/jobs", jobs, engine, access="all"), "/jobs"))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def add(jobs: BGJob, connection: Connection, *ids: str, **columns: Any) -> None:
    rows = [{"id": id, "total": 9, **columns} for id in ids]
    connection.execute(insert(jobs.models.batch), rows)


def test_batches_tell_how_far_they_have_come(visit: Any) -> None:
    client = visit()
    found = client.get("batches", headers=JSON).json()["batches"]
    told = {one["id"]: (one["state"], one["live"], one["dead"], one["ended"]) for one in found}

    assert list(told) == sorted(BATCHES.values(), reverse=True)
    assert told == {
        BATCHES["running"]: ("unfinished", 120, 3, 360),
        BATCHES["stopped"]: ("stopped", 0, 2, 40),
        BATCHES["finished"]: ("finished", 0, 0, 2_500),
        BATCHES["over"]: ("finished", 0, 0, 12),
    }
    unfinished = client.get("batches?state=unfinished", headers=JSON).json()["batches"]
    assert [one["state"] for one in unfinished] == ["unfinished", "stopped"]
    page = client.get("batches").text
    assert "360 of 480 ended" in page
    assert "360 of 480 ended, 3 of them are dead" in page
    assert f'jobs?q=batch%3A{BATCHES["running"]}">120</a>' in page
    assert f'dead?q=batch%3A{BATCHES["stopped"]}">2</a>' in page


def test_the_job_that_follows_is_linked_while_it_is_there(visit: Any) -> None:
    """Without a record of it there is no page once it has ended."""
    client = visit()
    followed = f"job?id={BATCHES['finished']}%3Athen"
    for path in ("batches", f"batch?id={BATCHES['finished']}"):
        assert f'href="/jobs/{followed}"' in client.get(path).text
    assert client.get(followed).status_code == 200
    for name in ("running", "over"):
        page = client.get(f"batch?id={BATCHES[name]}")
        assert "report.daily" in page.text
        assert "Athen" not in page.text, name


def test_the_record_of_what_followed_is_linked(visit: Any, engine: Engine, jobs: BGJob) -> None:
    jobs.metadata.create_all(engine)
    with engine.begin() as connection:
        over = {"finished_at": text("now()"), "then_type": "t", "then_queue": "q"}
        connection.execute(insert(jobs.models.batch).values(id="b", total=1, **over))
        connection.exec_driver_sql(
            "INSERT INTO bgjob_record (job_id, queue, type, state, attempt, lease, enqueued_at,"
            " due_at, ended_at, keep_until) SELECT 'b:then', 'q', 't', 'completed', 1, 1, at, at,"
            " at, at FROM now() AS at"
        )
    client = visit(engine)
    assert 'href="/jobs/job?id=b%3Athen"' in client.get("batches").text
    assert client.get("job?id=b:then").status_code == 200


def test_a_job_leads_to_its_batch(visit: Any) -> None:
    """A live one, and a dead one, whose batch can be redriven as a whole."""
    client = visit()
    live = client.get(f"jobs?q=batch:{BATCHES['running']}", headers=JSON).json()["jobs"]
    assert len(live) == 50
    for id, batch in ((live[0]["id"], "running"), ("order-4", "stopped")):
        assert f'href="/jobs/batch?id={BATCHES[batch]}"' in client.get(f"job?id={id}").text
    dead = client.get(f"dead?q=batch:{BATCHES['stopped']}", headers=JSON).json()["jobs"]
    assert [job["id"] for job in dead] == ["order-4", "order-8"]
    page = client.get(f"batch?id={BATCHES['stopped']}").text
    assert "Waits for its dead jobs" in page
    question = f"confirm?action=redrive&whole=1&q=batch:{BATCHES['stopped']}"
    assert client.get(question, headers=JSON).json()["count"] == 2
    here = f"batch?id={BATCHES['stopped']}"
    asked = client.get(f"{question}&back={quote(here)}").text
    assert f'href="/jobs/{here}">Keep' in asked


def test_batches_go_from_page_to_page(visit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are unfinished alone."""
    monkeypatch.setattr(pages, "PAGE", 1)
    client = visit()
    for path, ids in (
        ("batches", sorted(BATCHES.values(), reverse=True)),
        ("batches?state=unfinished", [BATCHES["running"], BATCHES["stopped"]]),
    ):
        found, following = [], f"/jobs/{path}"
        while following:
            page = client.get(f"http://shop.example{following}", headers=JSON).json()
            found += [one["id"] for one in page["batches"]]
            following = page["following"]
        assert found == ids
    assert "No more batches." in client.get("batches?after=0").text


def test_without_batches_a_page_tells_how_to_make_one(
    visit: Any, engine: Engine, jobs: BGJob
) -> None:
    jobs.metadata.create_all(engine)
    client = visit(engine)
    assert "with jobs.batch(session, then=" in client.get("batches").text
    assert "No batch is unfinished." in client.get("batches?state=unfinished").text
    with engine.begin() as connection:
        add(jobs, connection, "empty", total=0, finished_at=datetime.now(UTC))
    assert "it had no jobs" in client.get("batch?id=empty").text


def test_a_count_that_stops_is_marked(
    visit: Any, engine: Engine, jobs: BGJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is drawn of what is not known."""
    monkeypatch.setattr(reads, "COUNTED", 2)
    monkeypatch.setattr(reads, "COUNTED_IN_ALL", 5)
    jobs.metadata.create_all(engine)
    with engine.begin() as connection:
        add(jobs, connection, "large", "small")
        connection.exec_driver_sql(
            "INSERT INTO bgjob_job (id, queue, type, batch_id) SELECT 'j' || n, 'q', 't',"
            " CASE WHEN n < 8 THEN 'large' ELSE 'small' END FROM generate_series(1, 9) AS n"
        )
    client = visit(engine)
    found = client.get("batches", headers=JSON).json()["batches"]
    assert [(one["id"], one["live"], one["more_live"]) for one in found] == [
        ("small", 2, False),
        ("large", 5, True),
    ]
    page = client.get("batches").text
    assert "7 of 9 ended" in page
    assert "more than 5 of 9 are left" in page
    assert page.count("<rect class=") == page.count('<rect class="due"') + 1
    assert client.get("batch?id=large", headers=JSON).json()["batch"]["live"] == 5


def test_a_role_of_earlier_grants_is_told_what_to_do(
    visit: Any, engine: Engine, jobs: BGJob
) -> None:
    """It may read all but batches, so the other pages are shown."""
    jobs.metadata.create_all(engine)
    fill(jobs, engine, many=5)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE ROLE watcher_of_batches LOGIN")
        sql = grants([("dashboard", "watcher_of_batches")], schema=None, table_prefix="bgjob_")
        connection.exec_driver_sql(sql)
    as_watcher = create_engine(engine.url, connect_args={"options": "-c role=watcher_of_batches"})
    paths = ("batches", "batches?state=unfinished", f"batch?id={BATCHES['stopped']}")
    try:
        client = visit(as_watcher)
        for path in paths:
            page = client.get(path)
            assert (page.status_code, BATCHES["stopped"] in page.text) == (200, True), path
        with engine.begin() as connection:
            connection.exec_driver_sql("REVOKE SELECT ON bgjob_batch FROM watcher_of_batches")
        for path in paths:
            page = client.get(path)
            assert page.status_code == 200, path
            assert "sqlalchemy-bgjob grants --dashboard ROLE" in page.text
            assert client.get(path, headers=JSON).json()["state"] == "hidden"
        assert client.get("job?id=order-4").status_code == 200
    finally:
        as_watcher.dispose()
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP OWNED BY watcher_of_batches")
            connection.exec_driver_sql("DROP ROLE watcher_of_batches")


MANY = """
    INSERT INTO bgjob_batch (id, total, finished_at)
    SELECT lpad(CAST(n AS text), 6, '0'), 9, CASE WHEN n % 100 > 0 THEN now() END
    FROM generate_series(1, 9000) AS n;
    INSERT INTO bgjob_job (id, queue, type, batch_id) SELECT id, 'q', 't', id FROM bgjob_batch;
    INSERT INTO bgjob_dead_job (id, job_id, queue, type, lease, next_run_at, job_created_at,
                                job_updated_at, batch_id)
    SELECT id, id, 'q', 't', 1, now(), now(), now(), id FROM bgjob_batch;
    ANALYZE bgjob_batch, bgjob_job, bgjob_dead_job;
"""
"""Batches of which one in a hundred is unfinished, each with a live and a dead job."""


def test_a_page_of_batches_reads_few_rows(engine: Engine, jobs: BGJob) -> None:
    """Of the batches those of the page, by their keys; of jobs those of its batches."""
    jobs.metadata.create_all(engine)
    with engine.begin() as connection:
        for statement in MANY.split(";")[:-1]:
            connection.execute(text(statement))
    with engine.connect() as connection, recorded_plans(connection) as plans:
        for unfinished in (False, True):
            for before in (None, "004000"):
                found = reads.batches(
                    connection, None, "bgjob_", limit=10, before=before, unfinished=unfinished
                )
                assert [one.live for one in found] == [1] * 10

    for plan in plans:
        for table in ("bgjob_batch", "bgjob_job", "bgjob_dead_job"):
            assert "Seq Scan" not in plan.scans(table), plan.query
            rows = sum(
                node["Actual Rows"] * node["Actual Loops"]
                for node in plan.nodes()
                if node.get("Relation Name") == table
            )
            assert rows <= 10, plan.query
