"""docs/guides/resources.md as it stands: its two programs, and a recipe for each framework."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_bgjob import AsyncWorker, enqueue
from sqlalchemy_bgjob.testing import JobKit
from support.pages import other_python_of
from support.waiting import wait_until, wait_until_async

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

PAGE = "guides/resources.md"
pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with")
"""Said by Starlette's test client, which svcs imports."""


def gateway(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200 if request.url.path == "/there" else 404)


def left(engine: Engine, jobs: Any) -> int:
    with engine.connect() as connection:
        return len(connection.execute(jobs.models.job.select()).all())


@pytest.fixture
def page(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """All that the page defines, with its tables made, and no request that leaves this process."""
    client = functools.partial(httpx.AsyncClient, transport=httpx.MockTransport(gateway))
    monkeypatch.setattr(httpx, "AsyncClient", client)

    def sent() -> bool:
        of_programs = [program[name] for name in ("jobs", "flask_jobs") if name in program]
        return not any(left(engine, jobs) for jobs in of_programs)

    program: dict[str, Any] = {"engine": engine, "wait_until_sent": lambda: wait_until(sent, 60)}
    for block in other_python_of(PAGE):
        exec(compile(block, PAGE, "exec", dont_inherit=True), program)
    program["Base"].metadata.create_all(engine)
    return program


def test_the_recipes_do_what_they_say(
    page: dict[str, Any], engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one test, as all have the same tables."""
    enqueue(engine, page["send_receipt"], 7)
    page["main"]()
    said = capsys.readouterr().out
    assert said == "by smtp1: receipt of order 7\nsmtp1 closed\nsmtp2 closed\n"

    enqueue(engine, page["send_invoice"], 8)
    page["main"]()
    assert capsys.readouterr().out == "by smtp2: invoice of order 8\nsmtp2 closed\n"

    enqueue(engine, page["greet"], "Ada")
    page["serve_flask"]()
    assert capsys.readouterr().out == "shop@example.com greets Ada\n"

    of_svcs = page["svcs_jobs"].handler("t")(page["send_receipt"].function)
    JobKit(page["svcs_jobs"]).perform(of_svcs, 9)
    assert capsys.readouterr().out == "by smtp3: receipt of order 9\n"

    async def send(ctx: Any, *, mailer: Any) -> None:
        mailer.send("something")

    async def with_dishka() -> None:
        async with page["closing"]():
            await JobKit(page["dishka_jobs"]).perform(page["dishka_jobs"].handler("t")(send))

    asyncio.run(with_dishka())
    assert capsys.readouterr().out == "by smtp4: something\n"


def test_requests_and_handlers_share_a_client(
    page: dict[str, Any], engine: Engine, url_for: Callable[[str], str]
) -> None:
    jobs, app = page["async_jobs"], page["app"]

    async def ask(path: str) -> Any:
        """A request, as a server hands it over: with a copy of what the lifespan has yielded."""
        async with app.router.lifespan_context(app) as state:

            async def served(scope: Any, receive: Any, send: Any) -> None:
                await app({**scope, "state": dict(state)}, receive, send)

            transport = httpx.ASGITransport(served)
            async with httpx.AsyncClient(transport=transport, base_url="http://shop") as web:
                return (await web.get("/ping", params={"path": path})).json()

    async def work() -> None:
        assert [await ask("/there"), await ask("/gone")] == [200, 404]
        async_engine = create_async_engine(url_for("asyncpg"), poolclass=NullPool)
        async with AsyncWorker(jobs, async_engine, lifespan=page["clients"]):
            await wait_until_async(lambda: not left(engine, jobs), 60)
        await async_engine.dispose()

    enqueue(engine, page["ping"], "/there")
    asyncio.run(work())
