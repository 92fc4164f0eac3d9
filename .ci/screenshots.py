"""Make the pictures in docs/guides/dashboard: ``python .ci/screenshots.py``.

It needs Chromium, and what the tests need. The times in the pictures are those of the day.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from sqlalchemy import create_engine

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from sqlalchemy_bgjob.testing import EmbeddedPostgres  # noqa: E402
from support.dashboard import (  # noqa: E402
    CHROMIUM_FLAGS,
    chromium,
    fill,
    make_jobs,
    mounted,
    served,
)

FOLDER = ROOT / "docs" / "guides" / "dashboard"
PICTURES = {
    "overview_light": ("", "light", 1_180, 720),
    "overview_dark": ("", "dark", 1_180, 720),
    "jobs_light": ("jobs?q=queue:default,reports,exports", "light", 1_180, 720),
    "dead_dark": ("dead", "dark", 1_180, 720),
    "job_light": ("job?id=order-5", "light", 1_180, 820),
    "queues_light": ("queues", "light", 1_180, 720),
    "job_narrow": ("job?id=order-5", "dark", 320, 720),
}
"""By the name of the picture: page, scheme, width and height."""


def main() -> None:
    """Serve a dashboard over a queue that has something of everything, and take the pictures."""
    FOLDER.mkdir(exist_ok=True)
    jobs = make_jobs()
    with EmbeddedPostgres.start() as server, sync_playwright() as playwright:
        engine = create_engine(server.url)
        jobs.metadata.create_all(engine)
        fill(jobs, engine)
        app = mounted("/jobs", jobs, engine, access="all", environment="production")
        with served(app) as address:
            browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
            for name, (path, scheme, width, height) in PICTURES.items():
                context = browser.new_context(
                    color_scheme=scheme,  # type: ignore[arg-type]
                    viewport={"width": width, "height": height},
                )
                page = context.new_page()
                page.goto(f"{address}/jobs/{path}")
                picture = Image.open(BytesIO(page.screenshot()))
                # With few colours it is a third as large, and looks the same.
                picture.quantize(96, dither=Image.Dither.NONE).save(
                    FOLDER / f"{name}.png", optimize=True
                )
                context.close()
            browser.close()
        engine.dispose()


if __name__ == "__main__":
    main()
