"""The dashboard over HTTP: who may do what, what is shown, and what no request can make it do."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from a2wsgi import ASGIMiddleware
from fastapi import FastAPI
from flask import Flask
from sqlalchemy import Engine, MetaData, create_engine, delete, event, func, insert, select, update
from sqlalchemy.ext.asyncio import create_async_engine
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from sqlalchemy_bgjob import BGJob, enqueue
from sqlalchemy_bgjob._web import operations, pages
from sqlalchemy_bgjob._web.actions import ACTIONS
from sqlalchemy_bgjob._web.app import NAVIGATION, PAGES, STATIC, TYPES
from sqlalchemy_bgjob._web.twin import as_json
from sqlalchemy_bgjob._web.visit import LARGEST_FORM
from sqlalchemy_bgjob.web import PERMISSIONS, Access, dashboard
from support.dashboard import BATCHES, Client, add_workers, fill, make_jobs, mounted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from httpx import Response


SAME = {"sec-fetch-site": "same-origin"}
PATHS = ["", "?range=24h", "jobs", "dead", "history", "queues", "workers", "schedules", "handlers"]
PATHS += ["batches", "batches?state=unfinished", *(f"batch?id={id}" for id in BATCHES.values())]
PATHS += [
    "audit",
    "system",
    "job?id=ended-1",
    "job?id=order-5",
    "handler?type=send_receipt",
    "confirm?action=cancel&whole=1",
]
JSON = {"accept": "application/json"}
LISTS = [("jobs", "jobs", True), ("dead", "jobs", True), ("history", "records", True)]
LISTS += [("batches", "batches", True), ("audit", "actions", True), ("", "queues", False)]
LISTS += [(name, name, False) for name in ("queues", "workers", "schedules", "handlers")]
LISTS += [("system", "findings", False)]
"""Pages, what their lists are called in JSON, and whether these have a next page."""
DOCUMENTED = (Path(__file__).parents[2] / "docs" / "guides" / "dashboard.md").read_text()


@pytest.fixture(scope="module")
def jobs() -> BGJob:
    return make_jobs()


@pytest.fixture(scope="module")
def shop(module_engine: Engine, jobs: BGJob) -> Engine:
    """A queue that has something of everything; each test leaves it so."""
    jobs.metadata.create_all(module_engine)
    fill(jobs, module_engine)
    return module_engine


@pytest.fixture
def visit(shop: Engine, jobs: BGJob) -> Iterator[Any]:
    """Makes a browser at a dashboard with these options, mounted at /admin/jobs."""
    clients: list[Client] = []

    def make(engine: Any = shop, path: str = "/admin/jobs", **options: Any) -> Client:
        app = mounted(path, jobs, engine, **{"access": "all", **options})
        clients.append(Client(app, path))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def token(client: Client) -> str:
    """What the forms of this browser's pages hold."""
    page = client.get("queues")
    assert page.status_code == 200, page.text
    found = client.cookies.get("bgjob_csrf")
    assert found
    return found


def post(client: Client, action: str, headers: Any = SAME, /, **fields: Any) -> Response:
    given = {"csrf": token(client), **fields}
    return client.post(f"do/{action}", data=given, headers=headers)


# ---- pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_each_page_is_shown_and_has_its_json_twin(visit: Any, path: str) -> None:
    client = visit()
    page = client.get(path)
    twin = client.get(path, headers=JSON)

    assert (page.status_code, twin.status_code) == (200, 200)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert twin.headers["content-type"] == "application/json"
    assert isinstance(twin.json(), dict)
    for header in ("content-security-policy", "x-content-type-options"):
        assert page.headers[header] == twin.headers[header]
    assert "'unsafe" not in page.headers["content-security-policy"]
    assert not re.search(r"<[^>]+ (?:style|on\w+)=", page.text)
    assert page.text.count("<h1") == 1


@pytest.mark.parametrize(("path", "name", "is_paged"), LISTS)
def test_twins_of_lists_have_the_same_names(
    visit: Any, path: str, name: str, is_paged: bool
) -> None:
    """And nothing of what only the drawn page has."""
    twin = visit().get(path, headers=JSON).json()
    assert [type(row) for row in twin[name]] == [dict] * len(twin[name]) != []
    assert ("following" in twin) is is_paged
    assert not {"page", "rows", "tabs", "types", "fields", "first", "only"} & set(twin)
    assert f"`{name}`" in DOCUMENTED


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
def test_it_reads_and_acts_on_every_kind_of_engine(
    visit: Any, jobs: BGJob, shop: Engine, driver: str
) -> None:
    url = shop.url.set(drivername=f"postgresql+{driver}")
    engine = create_engine(url) if driver == "psycopg2" else create_async_engine(url)
    client = visit(engine)
    for path in PATHS:
        assert client.get(path).status_code == 200, path

    done = client.post(
        "do/enqueue",
        data={"csrf": token(client), "type": "sync", "arg": '{"shop": 5}'},
        headers=SAME | JSON,
    )
    id = done.json()["id"]
    assert jobs.cancel(shop, id) == "cancelled"
    if driver != "psycopg2":
        client.call(engine.dispose)  # type: ignore[union-attr]
    else:
        engine.dispose()  # type: ignore[unused-coroutine]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
@pytest.mark.parametrize("wrong", [{"database": "no_such"}, {"username": "nobody"}, {"port": 1}])
def test_who_can_not_connect_is_told_so_whatever_the_driver(
    visit: Any, shop: Engine, driver: str, wrong: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """With SQLAlchemy 2.0 what asyncpg raises then is no error of SQLAlchemy's."""
    url = shop.url.set(drivername=f"postgresql+{driver}", **wrong)
    engine = create_engine(url) if driver == "psycopg2" else create_async_engine(url)
    client = visit(engine)

    page, twin = client.get("jobs"), client.get("jobs", headers=JSON)

    assert (page.status_code, twin.status_code) == (503, 503)
    assert "be reached." in page.text
    assert twin.json() == {"error": "The database can't be reached."}
    assert "NotConnected" not in caplog.text, "the log tells the cause"


def test_all_that_the_pages_link_to_is_there(visit: Any) -> None:
    """Under the path where it is mounted."""
    client = visit()
    links = set()
    for path in PATHS:
        links |= set(re.findall(r'(?:href|src)="([^"#]+)"', client.get(path).text))
    assert len(links) > 60
    for link in links:
        assert link.startswith("/admin/jobs/"), link
        assert client.get(f"http://shop.example{link.replace('&amp;', '&')}").status_code < 400, (
            link
        )


def test_under_fastapi_and_at_the_root(shop: Engine, jobs: BGJob) -> None:
    app = FastAPI()
    app.mount("/jobs", dashboard(jobs, shop, access="read"))
    at_root = dashboard(jobs, shop, access="read")
    for application, base in ((app, "/jobs"), (at_root, "")):
        client = Client(application, base)
        assert f'href="{base}/static/app.css' in client.get("queues").text
        client.close()


def test_under_litestar_and_under_flask(shop: Engine, jobs: BGJob) -> None:
    """Which each tell an application in their own way where it is mounted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Litestar imports
        from litestar import Litestar, asgi
    pages = dashboard(jobs, shop, access="read", live=False)
    client = Client(
        Litestar([asgi("/ops/jobs", is_mount=True, copy_scope=True)(pages)]), "/ops/jobs"
    )
    flask = Flask("shop")
    inside = {"/ops/jobs": ASGIMiddleware(pages)}
    flask.wsgi_app = DispatcherMiddleware(flask.wsgi_app, inside)  # type: ignore[method-assign]
    in_flask = flask.test_client()
    for path in ("", "queues", "job?id=order-5", "static/app.css"):
        answers = [client.get(path), in_flask.get(f"/ops/jobs/{path}")]
        assert [answer.status_code for answer in answers] == [200, 200], path
        if "static" not in path:
            assert all('href="/ops/jobs/queues"' in answer.text for answer in answers)
    client.close()


def test_a_proxys_prefix_is_part_of_each_link(shop: Engine, jobs: BGJob) -> None:
    client = Client(dashboard(jobs, shop, access="read"), root_path="/ops/it's")
    assert 'href="/ops/it%27s/static/app.css' in client.get("queues").text
    client.close()


def test_what_there_is_is_shown(visit: Any) -> None:
    client = visit(environment="production")
    overview = client.get("").text
    assert "No worker serves the queue" in overview
    assert "exports" in overview
    assert ">production<" in overview
    assert "the CDN is down" in client.get("queues").text
    assert "At 06:00 on Monday through Friday" in client.get("schedules").text
    assert "It is safe to send one twice" in client.get("handler?type=send_receipt").text
    job = client.get("job?id=order-5", headers=JSON).json()
    assert job["job"]["state"] == "dead"
    assert [past["attempt"] for past in job["job"]["history"]] == [1, 2]


def test_who_serves_a_queue_and_runs_a_job_is_told(visit: Any) -> None:
    client = visit()
    assert client.get("queues").text.count("Served by web-1:4211") == 2
    serving = client.get("queues", headers=JSON).json()["serving"]
    assert serving["images"] == [{"hostname": "web-2", "pid": 977}]
    workers = client.get("workers", headers=JSON).json()["workers"]
    assert [(one["pid"], one["running"]) for one in workers] == [(4_211, 8), (977, 0)]
    running = client.get("jobs?q=worker:1001", headers=JSON).json()["jobs"]
    assert len(running) == 8
    assert "by process 4211 on web-1" in client.get(f"job?id={running[0]['id']}").text


def test_counts_are_drawn_and_told_in_numbers(visit: Any) -> None:
    """Throughput by outcome, waits and run times, and each type."""
    client = visit()
    page, trends = client.get("").text, client.get("", headers=JSON).json()["trends"]

    assert (trends["state"], trends["range"], len(trends["periods"])) == ("on", "1h", 60)
    for outcome, n in trends["all"]["outcomes"].items():
        assert sum(one["outcomes"].get(outcome, 0) for one in trends["periods"]) == n > 0
    assert trends["types"][0]["type"] == "send_receipt"
    for what in ("waits", "runs"):
        told = trends["all"][what]
        assert 0 < told["p50"] < told["p95"] <= told["p99"]
    for id in ("throughput", "waits", "runs"):
        svg = re.search(rf'<svg[^>]*aria-labelledby="{id}-title {id}-words">.*?</svg>', page)
        assert svg is not None
        assert f'<desc id="{id}-words">In the last hour' in svg[0]
        assert svg[0].count("<g><title>") == 60
    assert page.count('<tr><th scope="row">') > 55  # its twin
    day = client.get("?range=24h", headers=JSON).json()["trends"]
    assert (day["range"], len(day["periods"])) == ("24h", 48)
    assert day["all"]["n"] >= trends["all"]["n"]
    assert client.get("?range=9y", headers=JSON).json()["trends"]["range"] == "1h"


def test_without_counts_there_is_a_sentence_and_no_chart(visit: Any, engine: Engine) -> None:
    plain = BGJob(MetaData())
    plain.metadata.create_all(engine)
    client = visit(engine)

    page = client.get("").text
    assert "BGJob(..., records=True)" in page
    assert 'class="chart"' not in page
    assert client.get("", headers=JSON).json()["trends"] == {"state": "off"}
    assert "No records are kept" in client.get("history").text
    assert client.get("job?id=nobody").status_code == 404


def test_what_is_kept_of_a_job_is_shown(visit: Any, jobs: BGJob, shop: Engine) -> None:
    """Its end and its result, without secrets; and the progress of one that runs."""
    client = visit()
    page = client.get("job?id=ended-1")
    twin = client.get("job?id=ended-1", headers=JSON).json()
    assert twin["record"]["state"] == "completed"
    assert "4711@shop.example" in twin["result"]["text"]
    assert "message_id" in page.text
    assert "s3cret" not in page.text + str(twin)
    assert "ConnectionError" in client.get("job?id=ended-5").text  # it died, and was pruned
    with shop.connect() as connection:
        runs = connection.scalar(select(jobs.Record.job_id).where(jobs.Record.state == "live"))
    assert "page 34" in client.get("job", params={"id": runs}).text
    hidden = visit(access=Access(args=False))
    assert "4711@shop.example" not in hidden.get("job?id=ended-1").text
    assert "4711@shop.example" not in hidden.get("job?id=ended-1", headers=JSON).text


def test_the_history_goes_from_page_to_page(visit: Any) -> None:
    client = visit()
    first = client.get("history", headers=JSON).json()
    assert len(first["records"]) == 50
    rest = client.get(f"http://shop.example{first['following']}", headers=JSON).json()
    ids = [one["id"] for one in first["records"] + rest["records"]]
    assert ids == [f"ended-{n}" for n in range(1, 61)]
    assert rest["following"] is None
    assert client.get("history?type=sync", headers=JSON).json()["records"] == []


def test_a_list_of_schedules_that_is_cut_says_so(
    visit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = visit()
    assert client.get("schedules", headers=JSON).json()["more"] is False
    monkeypatch.setattr(operations, "MOST_SCHEDULES", 1)
    page = client.get("schedules").text
    assert "These are the first 1 by name; there are more" in page
    assert "has its row once a worker that has it has started" not in page


def test_some_of_very_many_queues_are_shown(visit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paused ones, and those with the most due jobs; sums are over all."""
    client = visit()
    before = client.get("", headers=JSON).json()
    monkeypatch.setattr(pages, "MOST_QUEUES", 2)
    for path in ("", "queues"):
        assert "These are 2 queues" in client.get(path).text
        found = client.get(path, headers=JSON).json()
        assert [one["queue"] for one in found["queues"]] == ["images", "mail"]
        assert found["queues_left_out"] == len(before["queues"]) - 2
        assert found["totals"] == before["totals"]
    assert 'data-queue="images mail"' in client.get("jobs").text


@pytest.mark.parametrize("others", [True, False])
def test_a_silent_workers_jobs_go_to_one_that_runs(
    visit: Any, engine: Engine, jobs: BGJob, others: bool
) -> None:
    jobs.metadata.create_all(engine)
    with engine.begin() as connection:
        add_workers(jobs, connection)
        worker = jobs.models.worker
        silent = update(worker).values(lease_timeout=1.0, beat_at=datetime(2026, 1, 2, tzinfo=UTC))
        connection.execute(silent.where(worker.c.id == 1001) if others else silent)
    page = visit(engine).get("").text
    assert "A worker on web-1 has been silent" in page
    assert ("Another takes its jobs." in page, "start one" in page) == (others, not others)


def test_the_doctor_is_asked_now_and_then(visit: Any) -> None:
    """And the page says how long ago that was, and asks again if it is told to."""
    client = visit()
    first, second = (client.get("system", headers=JSON).json() for _ in range(2))
    assert (first["age"], second["findings"]) == (0, first["findings"])
    assert second["age"] > 0
    assert client.get("system?anew=1", headers=JSON).json()["age"] == 0
    assert "Check again" in client.get("system").text


def test_a_page_takes_one_connection(visit: Any, shop: Engine) -> None:
    """Of the engine, for all that it asks; the doctor too, whose statements have their limits."""
    small = create_engine(shop.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    client = visit(small)
    assert [path for path in PATHS if client.get(path).status_code != 200] == []
    small.dispose()


def test_an_id_leads_to_its_job_and_dead_to_dead_jobs(visit: Any) -> None:
    client = visit()
    assert client.get("jobs?q=order-5").headers["location"] == "/admin/jobs/job?id=order-5"
    there = client.get("jobs", params={"q": "state:dead type:send_receipt"})
    assert there.headers["location"] == "/admin/jobs/dead?q=type%3Asend_receipt"


def test_names_with_any_character_are_followed(visit: Any, jobs: BGJob, shop: Engine) -> None:
    id = "a/../b?c=d&e #%2F\"'<"
    enqueue(shop, jobs.registry.find_type("sync"), {"shop": 1}, id=id)  # type: ignore[arg-type]
    try:
        assert visit().get(f"job?id={quote(id, safe='')}").status_code == 200
    finally:
        jobs.cancel(shop, id)


def test_large_numbers_keep_their_digits(visit: Any, shop: Engine, jobs: BGJob) -> None:
    large = 2**63 - 5
    made = jobs.enqueue(shop, "sync", {"n": large})
    try:
        client = visit()
        assert str(large) in client.get(f"job?id={made.id}").text
        assert (
            str(large) in client.get(f"job?id={made.id}", headers=JSON).json()["contents"]["text"]
        )
        assert as_json([2**53 + 1, -5]) == [str(2**53 + 1), -5]
    finally:
        jobs.cancel(shop, made.id)


# ---- access --------------------------------------------------------------------------------------


def test_it_is_closed_until_somebody_is_let_in(visit: Any) -> None:
    client = visit(access=None)
    for path in [*PATHS, "events"]:
        page = client.get(path)
        assert page.status_code == 403
        assert "order-5" not in page.text
    assert "dashboard(jobs, engine, access=who)" in page.text
    assert client.post("do/cancel").status_code == 403


@pytest.mark.parametrize("answer", ["all", "read", None, Access(can={"cancel"}), Access(can=())])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_function_decides_for_each_request(visit: Any, answer: Any, asynchronous: bool) -> None:
    asked: list[str] = []

    def who(request: Any) -> Any:
        asked.append(request.headers["x-user"])
        return answer

    async def who_async(request: Any) -> Any:
        return who(request)

    client = visit(access=who_async if asynchronous else who)
    page = client.get("jobs", headers={"x-user": "ada"})

    assert asked == ["ada"]
    assert page.status_code == (403 if answer is None else 200)
    may_cancel = answer == "all" or (isinstance(answer, Access) and "cancel" in answer.can)
    assert ('value="cancel"' in page.text) == may_cancel


def test_a_wrong_answer_lets_nobody_in(visit: Any) -> None:
    client = visit(access=lambda request: True)
    with pytest.raises(TypeError, match="returned bool"):
        client.get("")
    with pytest.raises(ValueError, match="unknown permissions"):
        Access(can={"fly"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is a str"):
        Access(can="cancel")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="none of 'all', 'read'"):
        visit(access="everybody")


@pytest.mark.parametrize("permission", sorted(PERMISSIONS))
def test_each_role_may_do_what_it_may_and_nothing_else(visit: Any, permission: str) -> None:
    """All actions of one who has a single permission: those of it are not refused."""
    client = visit(access=Access(can={permission}))  # type: ignore[arg-type]
    statuses = {name: post(client, name, SAME | JSON) for name in ACTIONS}

    for name, (needed, _) in ACTIONS.items():
        refused = statuses[name].status_code == 403
        assert refused == (needed != permission), (name, statuses[name].text)
        if refused:
            assert "needs the permission" in statuses[name].text


def test_who_may_read_may_do_nothing(visit: Any) -> None:
    client = visit(access="read")
    for name in ACTIONS:
        assert post(client, name, id="order-5", whole="1").status_code == 403
    for path in PATHS[:-1]:
        page = client.get(path).text
        assert "/do/" not in page
        assert "confirm?" not in page
    assert client.get("confirm?action=delete&whole=1").status_code == 403


def test_who_may_not_see_args_sees_none(visit: Any) -> None:
    client = visit(access=Access(args=False))
    page = client.get("job?id=order-5")
    assert "customer@shop.example" not in page.text
    assert "customer@shop.example" not in client.get("job?id=order-5", headers=JSON).text
    assert client.get("jobs?q=arg.order_id:5").status_code == 400
    assert post(client, "edit", row="dead-5", arg="{}").status_code == 403
    assert post(client, "change", id="export-7", lease="1", arg="{}").status_code == 403


def test_a_read_only_database_is_a_read_only_dashboard(visit: Any, shop: Engine) -> None:
    engine = create_engine(
        shop.url, connect_args={"options": "-c default_transaction_read_only=on"}
    )
    client = visit(engine)
    assert "The database is read-only" in client.get("jobs").text
    assert post(client, "cancel", whole="1").status_code == 403
    engine.dispose()


# ---- forged requests -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "is_own"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"origin": "http://shop.example"}, True),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://["}, False),
        ({"origin": "http://evil.example", "host": "shop.example"}, False),
        ({"sec-fetch-site": "cross-site", "origin": "http://shop.example"}, False),
        ({}, True),
    ],
)
def test_no_other_site_can_act(visit: Any, headers: dict[str, str], is_own: bool) -> None:
    done = post(visit(), "resume", headers, queue="default")
    assert done.status_code == (303 if is_own else 403)


@pytest.mark.parametrize("given", ["", "x", "0" * 32, "é" * 32])
def test_a_form_needs_the_token_of_its_browser(visit: Any, given: str) -> None:
    client = visit()
    assert post(client, "resume", queue="default", csrf=given).status_code == 403
    client.cookies.clear()
    assert client.post("do/resume", data={"csrf": given, "queue": "q"}).status_code == 403


def test_actions_need_a_post_of_a_form(visit: Any) -> None:
    client = visit()
    assert client.get("do/cancel?whole=1").status_code == 405
    assert client.post("do/cancel", json={"whole": "1"}).status_code == 415
    assert post(client, "fly").status_code == 404


@pytest.mark.parametrize(
    "back",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "\r\nx: y",
        "javascript:alert(1)",
    ],
)
def test_an_action_leads_back_into_the_dashboard(visit: Any, back: str) -> None:
    for base in ("/admin/jobs", ""):
        done = post(visit(path=base), "resume", queue="default", back=back)
        assert re.match(rf"{base}/[^/\\]", done.headers["location"])


def test_a_forged_host_changes_nothing(visit: Any) -> None:
    client = visit()
    page = client.get("jobs", headers={"host": "evil.example", "x-forwarded-host": "evil.example"})
    assert page.status_code == 200
    assert "evil.example" not in page.text
    assert "evil.example" not in str(page.headers)


@pytest.mark.parametrize(
    "words",
    ["5b" * 2_000, "no hex", "5b5d", b'"\\ud800"'.hex()],
    ids=["nested", "odd", "list", "half"],
)
def test_a_cookie_that_was_not_written_here_says_nothing(visit: Any, words: str) -> None:
    """Such as too many brackets for a parser, a list, or half of a character."""
    page = visit().get("queues", headers={"cookie": f"bgjob_done={words}"})
    assert page.status_code == 200


# ---- what others have written --------------------------------------------------------------------

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{7*7}}"


def test_nothing_stored_becomes_markup(visit: Any, shop: Engine, jobs: BGJob) -> None:
    """Id, type, queue, key, group, arg, headers, error, host, pause, schedule, record, batch."""
    models = jobs.models
    evil = EVIL[:120]
    row = {"id": evil, "queue": evil, "type": evil, "unique_key": evil, "group_key": evil}
    row["batch_id"] = evil
    texts = {"last_error": EVIL, "headers": {evil: evil}, "arg": json.dumps({evil: evil}).encode()}
    history = [{"at": "2026-11-29T00:00:00+00:00", "attempt": 1, "worker": 1, "error": EVIL}]
    job = insert(models.job).values(**row, **texts, errors=history, priority=-9, claimed_by=99)
    worker = {"id": 99, "hostname": evil, "pid": 1, "version": evil, "queues": {evil: 1}}
    schedule = {"name": evil, "source": "data", "type": evil, "queue": evil, "cron": evil}
    ended = {"job_id": evil + "r", "queue": evil, "type": evil, "state": "dead", "attempt": 1}
    left = {"progress": {"done": 1, "note": EVIL}, "result": texts["arg"], "error": EVIL}
    now = datetime.now(UTC)
    times = dict.fromkeys(("enqueued_at", "due_at", "started_at", "ended_at", "keep_until"), now)
    counted = {"at": now, "worker": 99, "queue": evil, "type": evil, "outcome": "dead", "n": 9**6}
    durations = {"waits": [1], "runs": [1], "waited": 1.0, "ran": 1.0}
    acted = {"id": evil, "who": EVIL, "origin": evil, "verb": evil, "changed": 1}
    batch = {"id": evil, "then_type": evil, "then_queue": evil, "on_dead": evil, "total": 2}
    with shop.begin() as connection:
        details = {
            "details": {evil: EVIL, "ids": [EVIL], "a": {evil: evil}, "b": None},
            "given": {evil: EVIL},
        }
        connection.execute(insert(jobs.Audit).values(**acted, **details))
        connection.execute(insert(jobs.Record).values(**ended, **left, **times, lease=1))
        connection.execute(insert(jobs.Minute).values(**counted, **durations))
        connection.execute(job)
        connection.execute(insert(models.worker).values(**worker, lease_timeout=1e9))
        connection.execute(insert(models.schedule).values(**schedule, timezone=evil))
        connection.execute(insert(models.batch).values(**batch))
        jobs.pause(connection, evil, by=evil, reason=EVIL)
    try:
        client = visit(environment=evil)
        paths = [*PATHS, f"job?id={quote(evil, safe='')}", f"jobs?q={quote(EVIL)}"]
        paths += [f"job?id={quote(evil + 'r', safe='')}", f"history?type={quote(evil, safe='')}"]
        paths += [f"batch?id={quote(evil, safe='')}"]
        for path in [*paths, f"dead?q={quote(EVIL)}", f"job?id={quote(EVIL)}x"]:
            page = client.get(path).text
            assert "<script>alert" not in page, path
            assert "<img" not in page, path
            assert "49" not in re.findall(r"&gt;(\d+)", page), path
        assert "&lt;script&gt;" in client.get("workers").text
    finally:
        with shop.begin() as connection:
            connection.execute(delete(models.job).where(models.job.c.id == evil))
            connection.execute(delete(models.worker).where(models.worker.c.id == 99))
            connection.execute(delete(jobs.Record).where(jobs.Record.type == evil))
            connection.execute(delete(jobs.Audit).where(jobs.Audit.id == evil))
            connection.execute(delete(jobs.Minute).where(jobs.Minute.worker == 99))
            connection.execute(delete(models.schedule).where(models.schedule.c.name == evil))
            connection.execute(delete(models.batch).where(models.batch.c.id == evil))
            jobs.resume(connection, evil)


def test_secrets_are_hidden_wherever_they_stand(visit: Any, shop: Engine, jobs: BGJob) -> None:
    client = visit()
    for headers in ({}, JSON):
        page = client.get("job?id=order-5", headers=headers).text
        assert "s3cret" not in page
        assert "[hidden]" in page
    header = {"Authorization": "Bearer h1dden", "trace": "seen"}
    made = jobs.enqueue(shop, "sync", {"n": 1}, headers=header)
    try:
        for path in (f"job?id={made.id}", "jobs?q=queue:default", "jobs"):
            for headers in ({}, JSON):
                assert "h1dden" not in client.get(path, headers=headers).text, path
        assert "seen" in client.get(f"job?id={made.id}").text
        assert "seen" not in visit(access=Access(args=False)).get(f"job?id={made.id}").text
    finally:
        jobs.cancel(shop, made.id)
    refused = client.get("dead?q=arg.api_token:s3cret")
    assert refused.status_code == 400
    assert "hidden" in refused.text
    shown = visit(redact=["order"]).get("job?id=order-5").text
    assert "s3cret" in shown


# ---- what is too large or no input at all --------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        f"jobs?q={'x' * 1_500}",
        "jobs?q=priority:99999999999",
        "jobs?q=stat:due",
        "jobs?after=2026-01-01",
        "jobs?after=2026-01-01T00:00:00 x",
        "jobs?after=" + "9" * 50,
        "jobs?after=0001-01-01T00:00:00%2B14:00 x",
        "history?after=9999-12-31T23:59:59-14:00 x",
        "batches?after=%00",
        f"batches?after={'x' * 3_000}",
        "batch?id=%00",
        "dead?after=yesterday x",
        "job?id=%00",
        "jobs?after=2026-01-01T00:00:00%2B00:00 %00",
        f"jobs?q={'x' * 3_000}",
        "confirm?action=cancel",
        "confirm?action=cancel&whole=1&q=stat:due",
        "confirm?" + "&".join(["action=cancel"] + ["id=x"] * 600),
    ],
)
def test_odd_requests_are_refused_in_words(visit: Any, path: str) -> None:
    page = visit().get(path)
    assert page.status_code == 400
    assert page.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    "path",
    [
        "static/../app.py",
        "static/..%2f..%2fapp.py",
        "static/%2e%2e/%2e%2e/bgjob.py",
        "static//etc/passwd",
        "static/app.css%00",
        "static/SHA256SUMS",
        "nothing",
        "job?id=nobody",
        "batch?id=nobody",
        "batch",
        "job",
        "handler?type=*",
        "confirm?action=fly",
    ],
)
def test_what_is_not_there_is_not_found(visit: Any, path: str) -> None:
    assert visit().get(path).status_code == 404


def test_a_form_has_its_limits(visit: Any) -> None:
    client = visit()
    assert post(client, "edit", row="x", arg="x" * LARGEST_FORM).status_code == 413
    many = {f"f{n}": "1" for n in range(600)}
    assert post(client, "edit", **many).status_code == 400
    nested = "[" * 100_000
    assert post(client, "edit", row="dead-5", arg=nested).status_code == 400
    for name, value in (("delay", "nan"), ("delay", "1e400"), ("priority", "99999")):
        done = post(client, "enqueue", type="sync", arg="{}", **{name: value})
        assert done.status_code == 400, (name, value)


# ---- actions -------------------------------------------------------------------------------------


def count(engine: Engine, table: Any) -> int:
    with engine.connect() as connection:
        return len(connection.execute(select(table.c.id)).all())


@pytest.fixture
def own(visit: Any, engine: Engine, jobs: BGJob) -> Client:
    """A dashboard over a database that this test may change."""
    jobs.metadata.create_all(engine)
    fill(jobs, engine, many=20)
    client: Client = visit(engine, access=Access(user="ada"))
    return client


def test_selected_jobs_are_cancelled(own: Client, engine: Engine, jobs: BGJob) -> None:
    page = own.get("jobs?q=queue:images", headers=JSON).json()["jobs"]
    ids = [job["id"] for job in page[:3]]
    question = own.get("confirm", params={"action": "cancel", "id": ids}).text
    assert "Cancel 3 jobs?" in question

    done = post(own, "cancel", id=ids, back="jobs?q=queue:images")

    assert done.headers["location"] == "/admin/jobs/jobs?q=queue:images"
    assert "Cancelled 3 jobs." in own.get("jobs").text
    assert "Cancelled 3 jobs." not in own.get("jobs").text
    assert len(own.get("jobs?q=queue:images", headers=JSON).json()["jobs"]) == 7


def test_all_that_fit_are_changed_and_counted_first(
    own: Client, engine: Engine, jobs: BGJob
) -> None:
    question = own.get("confirm?action=redrive&whole=1&q=error:KeyError", headers=JSON).json()
    assert (question["count"], question["by_type"]) == (16, {"send_receipt": 16})

    done = post(own, "redrive", SAME | JSON, whole="1", q="error:KeyError", per_second="0.01")

    assert done.json() == {"done": "Redrove 16 jobs.", "redriven": 16, "left": 0}
    assert count(engine, jobs.models.dead_job) == 48
    found = own.get("jobs?q=state:scheduled type:send_receipt", headers=JSON).json()
    assert len(found["jobs"]) == 15
    done = post(own, "delete", SAME | JSON, whole="1", q="error:TimeoutError")
    assert done.json()["deleted"] == 16
    assert count(engine, jobs.models.dead_job) == 32


def test_nothing_chosen_changes_nothing(own: Client, engine: Engine, jobs: BGJob) -> None:
    before = count(engine, jobs.models.job), count(engine, jobs.models.dead_job)
    for name in ("cancel", "run", "redrive", "delete"):
        assert post(own, name).status_code == 400
        assert post(own, name, whole="1", id="order-5").status_code == 400
        assert post(own, name, whole="1", q="stat:due").status_code == 400
    assert (count(engine, jobs.models.job), count(engine, jobs.models.dead_job)) == before


def test_an_arg_is_edited_and_its_secrets_stay(own: Client, engine: Engine, jobs: BGJob) -> None:
    dead = jobs.models.dead_job
    edited = '{"order_id": 500, "to": "x@y.example", "api_token": "[hidden]"}'
    assert post(own, "edit", row="dead-5", arg=edited).status_code == 303
    with engine.connect() as connection:
        arg = connection.scalar(select(dead.c.arg).where(dead.c.id == "dead-5"))
    assert json.loads(arg or b"") == {
        "order_id": 500,
        "to": "x@y.example",
        "api_token": "s3cret",
    }
    refused = post(own, "edit", row="dead-5", arg='{"order": 1}')
    assert refused.status_code == 400
    assert "invalid arg" in refused.text
    assert post(own, "edit", row="gone", arg="{}").status_code == 404


@pytest.mark.parametrize("depth", [400, 700, 900, 40_000])
def test_json_that_is_nested_too_deeply_is_refused(own: Client, depth: int) -> None:
    """A parser takes more than what then looks through it."""
    deep = "[" * depth + "]" * depth
    assert post(own, "edit", row="dead-5", arg=deep).status_code == 400
    assert post(own, "enqueue", type="send_receipt", arg=deep).status_code == 400


def test_a_queued_job_is_changed_as_it_was_shown(own: Client, engine: Engine, jobs: BGJob) -> None:
    """What differs from what it has, and its secrets stay."""
    secret = {"order_id": 1, "to": "x", "api_token": "s3cret"}
    jobs.enqueue(engine, "send_receipt", secret, id="later", delay=3_600, headers={"trace": "1"})
    page = own.get("job?id=later", headers=JSON).json()
    form = {
        "id": "later",
        "lease": page["job"]["lease"],
        "shown": page["job"]["updated_at"],
        "arg": page["contents"]["text"],
        "headers": page["contents"]["own"],
        "priority": "0",
        "run_at": page["job"]["next_run_at"][:19],
    }
    assert "[hidden]" in form["arg"]
    nothing = post(own, "change", SAME | JSON, **form).json()
    assert nothing["changed"] == []

    changed = form["arg"].replace('"x"', '"y@shop.example"')
    given = form | {"arg": changed, "priority": "-3", "run_at": "2030-01-01T10:00"}
    done = post(own, "change", SAME | JSON, **given).json()
    assert done["done"] == "Changed arg, priority, run_at."
    row = row_of(engine, jobs, "later")
    assert json.loads(row.arg) == secret | {"to": "y@shop.example"}
    assert (row.priority, row.headers) == (-3, {"trace": "1"})
    assert row.next_run_at == datetime(2030, 1, 1, 10, tzinfo=UTC)

    again = post(own, "change", **given)
    assert (again.status_code, "was changed meanwhile" in again.text) == (409, True)
    wrong = form | {"lease": str(row.lease), "shown": ""}
    for values in ({"arg": "{"}, {"arg": '{"order": 1}'}, {"headers": "[]"}, {"run_at": "noon"}):
        assert post(own, "change", **wrong | values).status_code == 400
    assert "headers is not JSON" in post(own, "change", **wrong | {"headers": "{"}).text
    assert row_of(engine, jobs, "later") == row


def test_a_job_that_is_claimed_meanwhile_is_not_changed(
    own: Client, engine: Engine, jobs: BGJob
) -> None:
    id, job = jobs.enqueue(engine, "sync", {"shop": 1}, delay=60).id, jobs.models.job
    shown = own.get(f"job?id={id}", headers=JSON).json()["job"]
    form = {"id": id, "lease": shown["lease"], "shown": shown["updated_at"], "priority": "5"}
    taken = {"claimed_by": 1001, "lease": job.c.lease + 1, "updated_at": func.now()}
    with engine.begin() as connection:
        connection.execute(update(job).where(job.c.id == id).values(taken))

    refused = post(own, "change", **form)

    assert (refused.status_code, "A worker has claimed this job" in refused.text) == (409, True)
    assert 'action="/admin/jobs/do/change"' not in own.get(f"job?id={id}").text
    without = post(own, "change", **form | {"shown": ""})
    assert (without.status_code, row_of(engine, jobs, id).priority) == (409, 0)
    assert post(own, "change", **form | {"id": "nobody"}).status_code == 404


def row_of(engine: Engine, jobs: BGJob, id: str) -> Any:
    with engine.connect() as connection:
        return connection.execute(select(jobs.models.job).where(jobs.models.job.c.id == id)).one()


def test_an_action_leads_to_its_job_whatever_the_id(
    own: Client, engine: Engine, jobs: BGJob
) -> None:
    """Which may be any text, also what has a meaning in a URL."""
    for id in ("a&id=b", "50% + 1", "x?id=%26", "é/#", "a"):
        jobs.enqueue(engine, "sync", {"shop": 1}, id=id, delay=60)
    for id in ("a&id=b", "50% + 1", "x?id=%26", "é/#"):
        shown = own.get("job", params={"id": id}, headers=JSON).json()["job"]
        done = post(own, "change", id=id, lease=shown["lease"], priority="5")
        page = own.get(f"http://shop.example{done.headers['location']}", headers=JSON)
        assert page.json()["job"]["id"] == shown["id"] == id


def test_jobs_run_now_and_are_copied(own: Client, engine: Engine, jobs: BGJob) -> None:
    done = post(own, "run", SAME | JSON, whole="1", q="queue:images")
    assert done.json()["due"] == 10
    copied = post(own, "copy", SAME | JSON, id="order-5", row="dead-5").json()["id"]
    with engine.connect() as connection:
        row = connection.execute(
            select(jobs.models.job).where(jobs.models.job.c.id == copied)
        ).one()
    assert (row.type, row.queue, json.loads(row.arg)["order_id"]) == ("send_receipt", "mail", 5)
    assert post(own, "copy", id="nobody", row="").status_code == 404


def test_queues_and_schedules_are_controlled(own: Client, engine: Engine, jobs: BGJob) -> None:
    post(own, "pause", queue="mail", reason="provider down", minutes="5")
    post(own, "slots", queue="mail", slots="3")
    queues = own.get("queues", headers=JSON).json()["queues"]
    mail = next(queue for queue in queues if queue["queue"] == "mail")
    assert (mail["paused"]["by"], mail["paused"]["reason"]) == ("ada", "provider down")
    assert (mail["set_slots"], mail["slots"]) == (3, 3)
    post(own, "slots", queue="mail", slots="")
    post(own, "resume", queue="mail")
    post(own, "schedule-pause", name="daily report")
    shown = own.get("schedules", headers=JSON).json()["schedules"]
    assert [one["name"] for one in shown if one["paused_at"]] == ["daily report"]
    assert post(own, "schedule-resume", name="daily report").status_code == 303
    id = post(own, "schedule-run", SAME | JSON, name="daily report").json()["id"]
    assert own.get(f"job?id={id}").status_code == 200
    assert post(own, "schedule-run", name="nobody").status_code == 400
    assert post(own, "resume", SAME | JSON, queue="mail").json() == {
        "done": "The queue mail was not paused.",
        "queue": "mail",
        "was_paused": False,
    }


def test_a_number_that_is_none_is_refused(own: Client, engine: Engine, jobs: BGJob) -> None:
    """As the library refuses it; and nothing is rounded to what it would take."""
    for action, name, values in (
        ("slots", "slots", ("0", "2.9", "x")),
        ("pause", "minutes", ("0", "-1", "nan", "1e400")),
    ):
        for value in values:
            refused = post(own, action, queue="mail", **{name: value})
            assert refused.status_code == 400, (name, value)
    for value in ("1.5", "nan", "99999"):
        refused = post(own, "enqueue", type="sync", arg="{}", priority=value)
        assert refused.status_code == 400, value
    queues = own.get("queues", headers=JSON).json()["queues"]
    assert [one["queue"] for one in queues if one["paused"] or one["set_slots"]] == ["images"]


def test_actions_are_logged_without_args(own: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sqlalchemy_bgjob.audit"):
        post(own, "edit", row="dead-5", arg='{"order_id": 1, "to": "private@x.example"}')
        post(own, "cancel", whole="1", q="arg.to:private")
    audit = [record for record in caplog.records if record.name == "sqlalchemy_bgjob.audit"]
    edited, cancelled = audit
    assert edited.getMessage() == "edit by ada: The arg is changed."
    assert cancelled.getMessage() == "cancel by ada: Cancelled 0 jobs."
    assert "private" not in edited.getMessage() + cancelled.getMessage()


# ---- the database --------------------------------------------------------------------------------


def test_pages_write_nothing(visit: Any, shop: Engine) -> None:
    """Each runs in a transaction that the server holds to that."""
    seen: list[str] = []

    @event.listens_for(shop, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    try:
        client = visit(access="read")
        for path in PATHS[:-1]:
            seen.clear()
            assert client.get(path).status_code == 200
            first = [] if path.startswith("handler") else ["SET TRANSACTION READ ONLY"]
            assert seen[:1] == first, path
    finally:
        event.remove(shop, "before_cursor_execute", note)


def test_a_database_that_refuses_is_told_in_words(visit: Any, jobs: BGJob, engine: Engine) -> None:
    client = visit(engine, access="read")  # without tables
    page = client.get("jobs")
    assert (page.status_code, "sqlalchemy-bgjob migrate" in page.text) == (503, True)
    gone = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    page = visit(gone, access="read").get("jobs")
    assert (page.status_code, "be reached" in page.text) == (503, True)


def test_a_role_without_rights_to_args_sees_the_rest(
    visit: Any, engine: Engine, jobs: BGJob
) -> None:
    from sqlalchemy import text

    from sqlalchemy_bgjob.schema._grants import grants

    jobs.metadata.create_all(engine)
    fill(jobs, engine, many=5)
    with engine.begin() as connection:
        connection.execute(text("CREATE ROLE watcher_of_pages LOGIN"))
        sql = grants([("dashboard", "watcher_of_pages")], schema=None, table_prefix="bgjob_")
        connection.exec_driver_sql(sql)
    as_watcher = create_engine(engine.url, connect_args={"options": "-c role=watcher_of_pages"})
    try:
        client = visit(as_watcher)
        for path in PATHS[:-4]:
            assert client.get(path).status_code == 200, path
        findings = client.get("system", headers=JSON).json()["findings"]
        assert not [one for one in findings if "GRANT" in one["text"]]
        assert "may not read what workers count" in client.get("").text
        assert "may not read records" in client.get("history").text
        assert "role may not read args" in client.get("job?id=order-5").text
        refused = post(client, "cancel", whole="1")
        assert (refused.status_code, "role may not" in refused.text) == (403, True)
    finally:
        as_watcher.dispose()
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP OWNED BY watcher_of_pages")
            connection.exec_driver_sql("DROP ROLE watcher_of_pages")


def test_a_broken_arg_breaks_no_page(visit: Any, engine: Engine, jobs: BGJob) -> None:
    jobs.metadata.create_all(engine)
    fill(jobs, engine, many=5)
    with engine.begin() as connection:
        broken = update(jobs.models.dead_job).values(arg=b"{not json", headers=[1], errors="x")
        connection.execute(broken)
    client = visit(engine)
    assert "should be JSON" in client.get("job?id=order-5").text
    refused = client.get("dead?q=arg.order_id:5")
    assert (refused.status_code, "not JSON" in refused.text) == (400, True)


def test_tables_of_an_unknown_version_break_no_page(
    visit: Any, engine: Engine, jobs: BGJob
) -> None:
    """A dump may have lost the comment that tells it; the doctor says how to put it back."""
    jobs.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("COMMENT ON TABLE bgjob_job IS NULL")
    client = visit(engine)
    page = client.get("system")
    assert (page.status_code, "COMMENT ON TABLE" in page.text) == (200, True)
    assert "The version of the tables is not known" in page.text
    assert client.get("system", headers=JSON).json()["version"] is None


def test_half_a_character_in_an_arg_breaks_no_page(visit: Any, engine: Engine, jobs: BGJob) -> None:
    """JSON can write it, and no page can hold it; so it is shown as it is written."""
    jobs.metadata.create_all(engine)
    fill(jobs, engine, many=5)
    half = rb'{"order_id": 5, "to": "\ud800"}'
    with engine.begin() as connection:
        connection.execute(update(jobs.models.dead_job).values(arg=half))
    page = visit(engine).get("job?id=order-5")
    assert (page.status_code, r"\ud800" in page.text) == (200, True)


def test_pages_and_navigation_agree() -> None:
    assert set(NAVIGATION) <= set(PAGES)
    assert {needed for needed, _ in ACTIONS.values()} == PERMISSIONS
    assert replace(Access(), user="x").can == PERMISSIONS


# ---- files ---------------------------------------------------------------------------------------


def test_the_assets_are_few_and_what_they_were() -> None:
    """Under 120 kB in all; what is not ours has its checksum, and is served with its type."""
    served = [path for path in STATIC.iterdir() if path.suffix in TYPES]
    assert sum(path.stat().st_size for path in served) < 120_000
    for line in (STATIC / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest
    assert "htmx.min.js" in (STATIC / "SHA256SUMS").read_text()
    assert "Zero-Clause BSD" in (STATIC / "LICENSES.txt").read_text()


def test_assets_are_kept_by_browsers_until_they_change(visit: Any) -> None:
    client = visit(access="read")
    page = client.get("jobs")
    (script,) = re.findall(r'src="/admin/jobs/(static/app\.js\?v=\w+)"', page.text)
    assert "immutable" in client.get(script).headers["cache-control"]
    assert client.get("static/app.js?v=old").headers["cache-control"] == "no-cache"
    assert page.headers["cache-control"] == "no-store"
    assert visit(access=None).get(script).status_code == 200
