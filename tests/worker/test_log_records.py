"""What a handler logs names its job, and so does what it starts."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob import Context, JobLogFilter, constant
from support.running import FLAVORS, Workbench, one_of_each

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("shop.mail")


class Records(logging.Handler):
    """Keeps records, and who may have written them."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What is logged by the application, as its own handler has it."""
    handler = Records()
    handler.addFilter(JobLogFilter(headers=("request_id", "color")))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler.records
    log.removeHandler(handler)


@pytest.mark.core
@one_of_each
def test_each_record_of_a_handler_has_its_job(
    bench: Workbench, records: list[logging.LogRecord]
) -> None:
    """Until it has ended, and with all that it starts; what the record has itself stays."""

    def body(ctx: Context[Any]) -> None:
        log.info("plain")
        log.info("own", extra={"queue": "of the record"})
        thread = threading.Thread(target=copy_context().run, args=(log.info, "in a thread"))
        thread.start()
        thread.join()
        raise ValueError("no")

    log.info("before")
    handler = bench.handler("t", body, uses_session=False, retry=constant(3600.0))
    job_id = bench.enqueue(handler, headers={"color": "red", "taste": "sour"})
    bench.run()
    log.info("after")

    before, plain, own, in_a_thread, after = records
    for record in (plain, in_a_thread):
        fields = {name: vars(record)[name] for name in ("job_id", "job_type", "queue", "attempt")}
        expected = {"job_id": job_id, "job_type": "t", "queue": "default", "attempt": 1}
        assert fields == expected
        assert vars(record)["color"] == "red"
        assert not {"taste", "request_id"} & set(vars(record))
    assert vars(own)["queue"] == "of the record"
    for record in (before, after):
        assert "job_id" not in vars(record)


@pytest.mark.parametrize("bench", [FLAVORS[2]], ids=str, indirect=True)
def test_tasks_of_a_handler_log_its_job(bench: Workbench, records: list[logging.LogRecord]) -> None:
    """And two coroutines that take turns each log their own."""

    @bench.jobs.handler("t", session=False)
    async def handler(ctx: Context, arg: int) -> None:
        await asyncio.sleep(0)
        log.info("%s", arg)
        await asyncio.gather(asyncio.to_thread(log.info, "%s", arg), within(arg))

    async def within(arg: int) -> None:
        log.info("%s", arg)

    ids = [bench.enqueue(handler, number) for number in range(4)]
    bench.run()

    assert len(records) == 12
    assert all(vars(record)["job_id"] == ids[int(record.getMessage())] for record in records)


@one_of_each
def test_headers_that_sql_has_written_do_no_harm(
    bench: Workbench, records: list[logging.LogRecord]
) -> None:
    bench.handler("t", lambda ctx: log.info("ran"), uses_session=False)
    bench.sql("INSERT INTO bgjob_job (id, queue, type, headers) VALUES ('j', 'default', 't', '{}')")
    bench.run()

    assert [vars(record)["job_id"] for record in records] == ["j"]
