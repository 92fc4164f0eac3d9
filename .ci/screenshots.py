"""Make the pictures in docs/guides/dashboard: ``python .ci/screenshots.py``.

It needs Chromium, and what the tests need. The times in the pictures are those of the day.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from sqlalchemy import create_engine

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from sqlalchemy_bgjob.testing import EmbeddedPostgres  # noqa: E402
from sqlalchemy_bgjob.web import Access  # noqa: E402
from support import on_call  # noqa: E402
from support.browsing import opened, running_browser  # noqa: E402
from support.dashboard import fill, make_jobs, mounted, served  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from sqlalchemy import Engine

FOLDER = ROOT / "docs" / "guides" / "dashboard"
PICTURES = {
    "overview_light": ("", "light", 1_180, 880),
    "overview_dark": ("", "dark", 1_180, 880),
    "jobs_light": ("jobs?q=queue:default,reports,exports", "light", 1_180, 720),
    "dead_dark": ("dead", "dark", 1_180, 720),
    "job_light": ("job?id=order-5", "light", 1_180, 820),
    "ended_light": ("job?id=ended-1", "light", 1_180, 520),
    "queues_light": ("queues", "light", 1_180, 720),
    "batches_light": ("batches", "light", 1_180, 520),
    "audit_light": ("audit", "light", 1_180, 520),
    "job_narrow": ("job?id=order-5", "dark", 320, 720),
}
"""By the name of the picture: page, scheme, width and height."""
DEAD = 5_001


def main() -> None:
    """Serve dashboards over queues that have something of everything, and take the pictures."""
    FOLDER.mkdir(exist_ok=True)
    with running_browser() as browser:
        with EmbeddedPostgres.start() as server:
            take_pages(browser, create_engine(server.url))
        with EmbeddedPostgres.start() as server:
            take_story(browser, create_engine(server.url))


def take_pages(browser: Browser, engine: Engine) -> None:
    """One picture of each page."""
    jobs = make_jobs()
    jobs.metadata.create_all(engine)
    fill(jobs, engine)
    app = mounted("/jobs", jobs, engine, access="all", environment="production")
    with served(app) as address:
        for name, (path, scheme, width, height) in PICTURES.items():
            size = {"width": width, "height": height}
            with opened(browser, color_scheme=scheme, viewport=size) as page:
                page.goto(f"{address}/jobs/{path}")
                save(page, name)
    engine.dispose()


def take_story(browser: Browser, engine: Engine) -> None:
    """The night on call, with thousands of dead jobs."""
    jobs = make_jobs()
    jobs.metadata.create_all(engine)
    on_call.begin(jobs, engine, dead=DEAD)
    app = mounted("/jobs", jobs, engine, access=Access(user="ada"), environment="production")
    size = {"width": 1_180, "height": 760}
    with served(app) as address, opened(browser, viewport=size) as page:
        on_call.play(page, f"{address}/jobs/", DEAD, lambda name: save(page, name))
    engine.dispose()


def save(page: Page, name: str) -> None:
    """With few colours a picture is a third as large, and looks the same."""
    picture = Image.open(BytesIO(page.screenshot()))
    picture.quantize(96, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
