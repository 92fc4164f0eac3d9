"""``@jobs.schedule``: what it declares, and what it refuses when a module is imported."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sqlalchemy_bgjob import BGJob, Context, InvalidArg
from support.tables import new_queue


@pytest.fixture
def jobs() -> BGJob:
    return new_queue()


def test_a_schedule_stands_above_its_handler(jobs: BGJob) -> None:
    @jobs.schedule("0  9 * * mon-fri", timezone="Europe/Berlin")
    @jobs.schedule(name="often", every=timedelta(minutes=5), arg="x", priority=3, overlap="allow")
    @jobs.handler("report", queue="reports")
    def report(ctx: Context, what: str | None) -> None: ...

    assert jobs.registry.find_type("report") is report
    morning, often = (jobs.registry.schedules[name] for name in ("report", "often"))
    assert (morning.type, morning.queue, morning.cron) == ("report", "reports", "0 9 * * mon-fri")
    assert (morning.timezone, morning.missed, morning.overlap) == ("Europe/Berlin", "one", "skip")
    assert (often.cron, often.arg, often.priority) == ("@every 300", b'"x"', 3)
    assert (often.timezone, often.overlap) == ("UTC", "allow")


def refused(jobs: BGJob, error: type[Exception], problem: str, *args: Any, **options: Any) -> None:
    def handle(ctx: Context, arg: int | None) -> None: ...

    with pytest.raises(error, match=problem):
        jobs.schedule(*args, **options)(jobs.handler(f"t{len(list(jobs.registry))}")(handle))
    assert jobs.registry.schedules == {}


def test_mistakes_are_errors_at_import(jobs: BGJob) -> None:
    refused(jobs, ValueError, "never fires|Bad day", "0 0 30 2 *")
    refused(jobs, ValueError, "is not known", "@daily", timezone="Mars/Olympus")
    refused(jobs, ValueError, "is no cron expression", "every morning")
    refused(jobs, TypeError, "one of them")
    refused(jobs, TypeError, "one of them", "@daily", every=60)
    refused(jobs, TypeError, "cron must be a str", 5)
    refused(jobs, ValueError, "shortest interval", every=0.1)
    refused(jobs, ValueError, "missed='two' is not one of", "@daily", missed="two")
    refused(jobs, ValueError, "overlap='no' is not one of", "@daily", overlap="no")
    refused(jobs, ValueError, "give overlap='allow'", "@daily", missed="all")
    refused(jobs, InvalidArg, "invalid arg", "@daily", arg="no number")
    refused(jobs, ValueError, "name=", "@daily", name="")
    refused(jobs, TypeError, "unexpected keyword", "@daily", zone="UTC")


def test_two_schedules_have_two_names(jobs: BGJob) -> None:
    @jobs.schedule("@daily")
    @jobs.handler("a")
    def handle(ctx: Context) -> None: ...

    with pytest.raises(ValueError, match="give another one by name="):
        jobs.schedule("@hourly")(handle)


def test_the_wrong_order_and_forgotten_brackets_are_told(jobs: BGJob) -> None:
    def handle(ctx: Context) -> None: ...

    with pytest.raises(TypeError, match=r"above @jobs.handler"):
        jobs.schedule("@daily")(handle)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="instead of a cron expression"):
        jobs.schedule(handle)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="default handler"):
        jobs.schedule("@daily")(jobs.default_handler("q")(handle))
