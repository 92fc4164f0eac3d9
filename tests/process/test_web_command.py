"""``web``: the dashboard by itself, for whoever has the address that it prints."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import signal
import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import create_engine, func, insert, select

from sqlalchemy_bgjob._process.exits import CommandError
from sqlalchemy_bgjob._web.standalone import Key, standalone
from sqlalchemy_bgjob.cli import web as web_module
from support.cli import run
from support.dashboard import fill, make_jobs
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from sqlalchemy_bgjob import BGJob
    from support.commands import Command


def address(command: Command) -> str:
    command.says("Ctrl-C ends it")
    (found,) = re.findall(r"The dashboard is at (http://\S+)", command.stdout)
    return str(found)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_the_printed_address_lets_in_one_browser_once(
    start: Callable[..., Command],
    tables: Engine,
    url_for: Callable[[str], str],
    driver: str,
) -> None:
    """On nothing but a URL."""
    command = start("web", "--port", "0", "--database-url", url_for(driver))
    entry = address(command)
    root = entry.partition("/enter")[0]
    with httpx.Client(base_url=root) as browser, httpx.Client(base_url=root) as other:
        assert browser.get("/jobs").status_code == 403
        assert browser.get("/enter?token=wrong").status_code == 403
        entered = browser.get(entry)
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        assert "httponly" in entered.headers["set-cookie"].lower()
        for page in ("/", "/jobs", "/dead", "/handlers", "/system"):
            assert browser.get(page).status_code == 200, page
        assert browser.get(entry).status_code == 303
        assert other.get(entry).status_code == 403
        assert other.get("/").status_code == 403
        assert browser.get("/", headers={"host": "evil.example"}).status_code == 400
        assert browser.post("/do/cancel", data={"whole": "1"}).status_code == 403
    command.signal(signal.SIGINT)
    assert command.wait() == 0
    assert entry.partition("token=")[2] not in command.stderr


@pytest.mark.parametrize("host", ["[::1]:8080", "[::1]", "LOCALHOST:80", "localhost"])
def test_a_host_is_known_by_name_or_address(host: str) -> None:
    """With each Starlette; before 1.7 its own check takes an address of IPv6 for a name."""
    assert asks_for(host) == 403, "the token is wrong"


@pytest.mark.parametrize("host", ["evil.example", "[::2]:8080", "[::1", "", "localhost.example:80"])
def test_no_other_host_is_known(host: str) -> None:
    assert asks_for(host) == 400


def asks_for(host: str) -> int:
    engine = create_engine("postgresql+psycopg://")
    app = standalone(new_queue(), engine, Key(), hosts=["localhost", "::1"])

    async def ask() -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://h") as browser:
            answer = await browser.get("/enter?token=wrong", headers={"host": host})
            return answer.status_code

    return asyncio.run(ask())


def test_it_listens_on_ipv6(
    start: Callable[..., Command], tables: Engine, database_url: str
) -> None:
    command = start("web", "--host", "::1", "--port", "0", "--database-url", database_url)
    entry = address(command)
    assert entry.startswith("http://[::1]:")
    with httpx.Client(base_url=entry.partition("/enter")[0], follow_redirects=True) as browser:
        assert browser.get(entry).status_code == 200


def test_on_all_interfaces_it_names_one_that_can_be_opened(
    start: Callable[..., Command], tables: Engine, database_url: str
) -> None:
    """Browsers refuse 0.0.0.0."""
    command = start("web", "--host", "0.0.0.0", "--port", "0", "--database-url", database_url)
    entry = address(command)

    assert entry.startswith("http://localhost:")
    assert "write this machine's name instead of localhost" in command.stderr
    entry = entry.replace("localhost", "127.0.0.1")
    with httpx.Client(base_url=entry.partition("/enter")[0], follow_redirects=True) as browser:
        assert browser.get(entry).status_code == 200


def test_it_knows_the_handlers_of_an_application(
    start: Callable[..., Command], tables: Engine, database_url: str
) -> None:
    command = start(
        "web",
        "support.cli_app:functions",
        "--port",
        "0",
        "--read-only",
        "--database-url",
        database_url,
    )
    entry = address(command)
    with httpx.Client(base_url=entry.partition("/enter")[0], follow_redirects=True) as browser:
        assert "read only" in browser.get(entry).text
        types = [one["type"] for one in browser.get("/handlers", headers=JSON).json()["handlers"]]
    assert types


JSON = {"accept": "application/json"}


def test_a_record_is_ended_with_its_job(
    engine: Engine, database_url: str, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without the application, which would say that records are kept."""
    kept = make_jobs()
    kept.metadata.create_all(engine)
    fill(kept, engine, many=12)
    served: list[BGJob] = []
    monkeypatch.setattr(web_module, "_serve", lambda jobs, *_, **__: served.append(jobs))

    run("web", "--database-url", database_url)
    (jobs,) = served
    states = select(kept.Record.state).where(kept.Record.job_id == "export-7")
    with engine.begin() as connection:
        row = {"job_id": "export-7", "queue": "exports", "type": "export.csv", "state": "live"}
        times = dict.fromkeys(("enqueued_at", "due_at", "keep_until"), func.now())
        connection.execute(insert(kept.Record).values(**row, **times, attempt=0, lease=0))
        jobs.cancel_where(connection, jobs.models.job.c.id == "export-7")
        assert connection.scalars(states).all() == ["cancelled"]


@pytest.mark.parametrize("known", [["::1"], ["::1", "127.0.0.1"]])
def test_it_listens_on_what_a_name_stands_for(
    monkeypatch: pytest.MonkeyPatch, known: list[str]
) -> None:
    """On IPv6 only if there is nothing else."""
    resolve = socket.getaddrinfo

    def resolved(host: str, *given: Any, **options: Any) -> list[Any]:
        assert host == "app.example"
        return [found for each in known for found in resolve(each, *given, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with web_module.listen("app.example", 0) as listening:
        assert listening.getsockname()[0] == known[-1]


@pytest.mark.parametrize("host", ["nobody.invalid", "a" * 70 + ".example", "a..b"])
def test_a_host_that_is_none_is_told(host: str) -> None:
    with pytest.raises(CommandError, match="give another --host"):
        web_module.listen(host, 0)


def test_what_is_missing_or_wrong_is_told(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run("web", "support.cli_app:metadata", "--database-url", database_url)
    assert (code, "not BGJob" in err) == (2, True)
    for host, remedy in (("192.0.2.1", "give another --host"), ("", "--host is empty; give")):
        code, _, err = run("web", "--host", host, "--database-url", database_url)
        assert (code, remedy in err) == (2, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, err = run("web", "--port", port, "--database-url", database_url)
    assert (code, "already in use; give another --port" in err) == (2, True)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "uvicorn" else found(name, *rest),
    )
    code, _, err = run("web", "--database-url", database_url)
    assert (code, "sqlalchemy-bgjob[web-server]" in err) == (2, True)
