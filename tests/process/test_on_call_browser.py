"""The night on call of docs/guides/dashboard.md, in a real browser; its twin is of the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from sqlalchemy_bgjob.web import Access
from support import on_call
from support.browsing import WIDE, opened, running_browser
from support.dashboard import make_jobs, mounted, served

if TYPE_CHECKING:
    from sqlalchemy import Engine

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "dashboard.md"
DEAD = 5_000


def test_the_night_on_call_goes_as_told_in_the_browser(engine: Engine) -> None:
    """No SQL, no Python and no terminal; the pictures of the guide are of its moments."""
    jobs = make_jobs()
    jobs.metadata.create_all(engine)
    on_call.begin(jobs, engine, dead=DEAD)
    seen: list[str] = []

    app = mounted("/jobs", jobs, engine, access=Access(user="ada"), environment="production")
    with (
        served(app) as address,
        running_browser() as browser,
        opened(browser, viewport=WIDE) as page,
    ):
        on_call.play(page, f"{address}/jobs/", DEAD, seen.append)

    told = GUIDE.read_text("utf-8").partition("## A night on call")[2]
    places = [told.find(f"(dashboard/{name}.png)") for name in seen]
    assert seen == list(on_call.PICTURES)
    assert places == sorted(places)
    assert places[0] >= 0
    job = jobs.models.job
    redriven = job.c.id.startswith("receipt-")
    with engine.connect() as connection:
        spread, count = connection.execute(
            select(func.max(job.c.next_run_at) - func.min(job.c.next_run_at), func.count()).where(
                redriven
            )
        ).one()
        arg = connection.scalar(select(job.c.arg).where(job.c.id == "receipt-of-9"))
        paused = connection.scalar(select(func.count()).select_from(jobs.models.control))
    assert (count, paused) == (DEAD, 0)
    assert abs(spread.total_seconds() - (DEAD - 1) / 50) < 1e-3
    assert json.loads(arg or b"")["order_id"] == 9
