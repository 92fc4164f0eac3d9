"""A night on call, played in the browser; the guide to the dashboard tells it with its pictures."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from playwright.sync_api import expect
from sqlalchemy import insert

from sqlalchemy_bgjob import enqueue_many
from support.dashboard import Receipt, add_counts, add_workers, errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page
    from sqlalchemy import Engine

    from sqlalchemy_bgjob import BGJob

PICTURES = (
    "night_overview",
    "night_paused",
    "night_groups",
    "night_arg",
    "night_redrive",
    "night_resumed",
)
"""Those of the story, in its order."""
REFUSED = 'ConnectionError: smtp.example refused\n  File "shop/mail.py", line 12, in send'


def begin(jobs: BGJob, engine: Engine, *, dead: int) -> None:
    """The provider of the mails is down: so many have died of it, and one of its arg."""
    handlers = {handler.type: handler for handler in jobs.registry}
    now = datetime.now(UTC)
    rows: list[dict[str, Any]] = [
        {
            "id": f"dead-{n}",
            "job_id": f"receipt-{n}",
            "queue": "mail",
            "type": "send_receipt",
            "arg": b'{"order_id": %d, "to": "customer@shop.example"}' % n,
            "attempt": 20,
            "lease": n,
            "next_run_at": now,
            "job_created_at": now - timedelta(hours=1),
            "job_updated_at": now,
            "moved_at": now - timedelta(minutes=20 * n / dead),
            "last_error": REFUSED,
            "errors": errors(now),
        }
        for n in range(1, dead + 1)
    ]
    rows[0] |= {"arg": b'{"order": 9, "to": "customer@shop.example"}'}
    rows[0] |= {"last_error": "KeyError: 'order_id'", "job_id": "receipt-of-9"}
    with engine.begin() as connection:
        connection.execute(insert(jobs.models.dead_job), rows)
        mails = [Receipt(n, "customer@shop.example") for n in range(30)]
        enqueue_many(connection, handlers["send_receipt"], mails)
        enqueue_many(connection, handlers["sync"], [{"shop": n} for n in range(4)])
        add_workers(jobs, connection)
        add_counts(jobs, connection)


def play(page: Page, base: str, dead: int, look: Callable[[str], None]) -> None:
    """From the first look to the queue that runs again; *look* is called where there is a picture.

    Args:
        page: A browser's page, of somebody who may do everything.
        base: The dashboard's address.
        dead: How many jobs have died.
        look: Gets the names of the pictures, in their order.
    """
    # The provider is down.
    page.goto(base)
    died = page.locator(".tiles .alarm")
    expect(died).to_contain_text(f"{dead:,}")
    expect(page.get_by_role("region", name="Failures of the last hour")).to_contain_text(
        "ConnectionError"
    )
    look("night_overview")

    # No worker shall try more of them.
    page.get_by_role("link", name="Queues", exact=True).click()
    card = page.locator(".cards > li").filter(has=page.get_by_role("link", name="mail", exact=True))
    card.get_by_text("Control").click()
    card.get_by_label("Why it is paused").fill("provider down")
    card.get_by_role("button", name="Pause").click()
    expect(card.locator(".note")).to_contain_text("provider down")
    look("night_paused")

    # What died, and of what?
    page.get_by_role("link", name="Dead jobs").click()
    groups = page.get_by_role("region", name="Groups of dead jobs").locator("tbody tr")
    expect(groups).to_have_count(2)
    look("night_groups")

    # One has an arg that its handler can't work with.
    groups.filter(has_text="KeyError").get_by_role("link").click()
    page.get_by_role("region", name="Dead jobs", exact=True).get_by_role("link").click()
    page.get_by_text("Change the arg").click()
    page.get_by_label("JSON").fill('{"order_id": 9, "to": "customer@shop.example"}')
    look("night_arg")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_have_text("The arg is changed.")

    # The provider is back.
    page.get_by_role("link", name="Dead jobs").click()
    page.get_by_label("Search jobs").fill("queue:mail")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("link", name="Redrive all that fit").click()
    expect(page.locator("h1")).to_have_text(f"Redrive {dead:,} dead jobs?")
    page.get_by_label("How many fall due in a second").fill("50")
    look("night_redrive")
    page.get_by_role("button", name="Redrive").click()
    expect(page.get_by_role("status")).to_have_text(f"Redrove {dead:,} jobs.")
    expect(page.get_by_text("No job is dead.")).to_be_visible()

    # And let the workers go on.
    page.get_by_role("link", name="Queues", exact=True).click()
    card.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("status")).to_have_text("Resumed the queue mail.")
    expect(card.locator(".note")).to_have_count(0)
    page.goto(base)
    expect(page.locator(".tiles")).to_contain_text(re.compile("Died in the last hour *0"))
    look("night_resumed")
