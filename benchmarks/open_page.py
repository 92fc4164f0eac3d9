"""What an open page costs a drain: ``python -m benchmarks open-page``.

The same jobs are drained by one AsyncWorker, in turns while nobody looks and while the overview is
open. A process of its own serves that, and does as the script of the page does: it hears of
changes, and loads the page again, but not too often. CPU is that of the worker's process and of the
server, which the page asks too.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx
import uvicorn
from sqlalchemy import URL, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.records import Variant
from benchmarks.server import new_database, running_server
from sqlalchemy_bgjob.web import dashboard

SOONEST, RESTS, AT_LATEST = 2.0, 30, 15.0
"""As in the page's script: seconds between two loads, and how many times as long as one took."""
LOADED: Final = "loaded\n"
KEEPS: Final = "counts"
"""What the queue keeps, see :data:`benchmarks.records.VARIANTS`."""


def run_open_page(*, jobs: int, rounds: int, work_folder: Path, say: Callable[[str], None]) -> None:
    """Measure on a server of its own, and tell the medians."""
    with running_server(work_folder) as server:
        url = new_database(server, "open_page").set(drivername="postgresql+psycopg")
        engine = create_engine(url)
        variant = Variant(0, KEEPS)
        variant.jobs.metadata.create_all(engine)
        variant.drain(engine, url, jobs // 10)
        alone, beside, loads = [], [], 0
        for number in range(rounds):
            for is_open in (number % 2 == 0, number % 2 == 1):
                if not is_open:
                    alone.append(variant.drain(engine, url, jobs))
                    continue
                with _open(url) as page:
                    beside.append(variant.drain(engine, url, jobs))
                loads += len(page)
        engine.dispose()
    say(f"jobs {jobs:,}, rounds {rounds}; medians, and the least and the most")
    for name, drains in (("nobody looks", alone), ("a page is open", beside)):
        rates = sorted(jobs / took for took, _ in drains)
        cpus = sorted(cpu / jobs * 1e6 for _, cpu in drains)
        say(
            f"{name:16}{median(rates):9,.0f} jobs/s [{rates[0]:,.0f} .. {rates[-1]:,.0f}]"
            f"{median(cpus):8.1f} µs of CPU a job [{cpus[0]:.1f} .. {cpus[-1]:.1f}]"
        )
    for what, place in (("seconds", 0), ("CPU", 1)):
        more = median(b[place] / a[place] - 1 for a, b in zip(alone, beside, strict=True))
        say(f"{what} of a drain, of the same round: {more:+.1%}")
    say(f"the page was loaded {loads / rounds:.1f} times in a drain")


@contextmanager
def _open(url: URL) -> Iterator[list[str]]:
    """Open the page; the lines of its loads are there when it is closed."""
    command = [sys.executable, "-m", __name__, url.render_as_string(hide_password=False)]
    loads: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != LOADED:
                raise RuntimeError("the page was not loaded")
            yield loads
        finally:
            process.kill()  # uvicorn would wait for what is open
            loads += process.stdout.readlines()


async def look(url: str) -> None:
    """Serve the dashboard, and have its first page open."""
    engine = create_async_engine(url.replace("+psycopg", "+asyncpg"))
    pages: Any = dashboard(Variant(0, KEEPS).jobs, engine, access="read")
    config = uvicorn.Config(pages, host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        while not serving.done():
            async with client.stream("GET", "/events") as events:
                await _load(client)
                async for line in events.aiter_lines():
                    if line == "event: changed":
                        await _load(client)


async def _load(client: httpx.AsyncClient) -> None:
    began = time.monotonic()
    answer = await client.get("/")
    answer.raise_for_status()
    sys.stdout.write(LOADED)
    sys.stdout.flush()
    took = time.monotonic() - began
    await asyncio.sleep(min(max(SOONEST, RESTS * took), AT_LATEST) - took)


if __name__ == "__main__":
    asyncio.run(look(sys.argv[1]))
