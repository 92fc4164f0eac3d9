"""The dashboard in a real browser, light and dark, wide and narrow, with and without JavaScript.

It needs Chromium: ``apt-get install chromium``, or BGJOB_TEST_CHROMIUM names its program.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from playwright.sync_api import expect

from support.browsing import NARROW, WIDE, opened, running_browser, violations
from support.dashboard import BATCHES, fill, make_jobs, mounted, served
from support.on_call import PICTURES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from playwright.sync_api import Browser, Page
    from sqlalchemy import Engine

    from sqlalchemy_bgjob import BGJob

PAGES = {
    "overview": "",
    "jobs": "jobs",
    "dead": "dead",
    "history": "history",
    "batches": "batches",
    "batch": f"batch?id={BATCHES['stopped']}",
    "queues": "queues",
    "workers": "workers",
    "schedules": "schedules",
    "handlers": "handlers",
    "handler": "handler?type=send_receipt",
    "audit": "audit",
    "system": "system",
    "job": "job?id=order-5",
    "queued": "job?id=export-7",
    "ended": "job?id=ended-1",
    "confirm": "confirm?action=redrive&whole=1&q=type:send_receipt",
    "error": "jobs?q=stat:due",
    "none": "job?id=nobody",
}
HALVES = {"one half": dict([*PAGES.items()][::2]), "the other": dict([*PAGES.items()][1::2])}
Looks = tuple[tuple[Any, Literal["light", "dark"]], ...]
LOOKS: dict[str, Looks] = {
    "/admin/jobs": ((WIDE, "light"), (NARROW, "dark")),
    "/": ((WIDE, "dark"), (NARROW, "light")),
}
"""In which sizes and colours each page is looked at, by where the dashboard is mounted."""
PATIENT = 200
"""Seconds for a look at half of the pages: axe is busy for long where others are at work too."""
SCRIPT = {"content-type": "text/javascript"}
HEAR = """() => {
  window.heard = new Promise((done) => {
    const source = new EventSource(`${document.body.dataset.base}/events`);
    source.addEventListener("changed", () => { source.close(); done(1); });
  });
}"""


@pytest.fixture(scope="module")
def jobs() -> BGJob:
    return make_jobs()


@pytest.fixture(scope="module")
def shop(module_engine: Engine, jobs: BGJob) -> Engine:
    jobs.metadata.create_all(module_engine)
    fill(jobs, module_engine)
    return module_engine


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def addresses(shop: Engine, jobs: BGJob) -> Iterator[dict[str, str]]:
    """The same dashboard at / and at /admin/jobs, by its base."""
    options: Any = {"access": "all", "environment": "production"}
    with (
        served(mounted("", jobs, shop, **options)) as root,
        served(mounted("/admin/jobs", jobs, shop, **options)) as inside,
    ):
        yield {"/": f"{root}/", "/admin/jobs": f"{inside}/admin/jobs/"}


@pytest.mark.timeout(PATIENT)
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("base", LOOKS)
def test_each_page_is_sound(
    browser: Browser, addresses: dict[str, str], base: str, half: str
) -> None:
    with opened(browser) as page:
        look_at_each(page, addresses[base], HALVES[half], LOOKS[base])


@pytest.mark.timeout(PATIENT)
def test_each_page_is_sound_without_its_scripts(
    browser: Browser, addresses: dict[str, str]
) -> None:
    """Axe is a script itself, so scripts are not switched off here: those of the page are empty."""
    with opened(browser) as page:
        page.route("**/static/*.js?*", lambda route: route.fulfill(body="", headers=SCRIPT))
        look_at_each(page, addresses["/"], PAGES, ((NARROW, "dark"),))
        assert page.evaluate("'htmx' in window") is False


def look_at_each(page: Page, base: str, pages: Mapping[str, str], looks: Looks) -> None:
    """No violation that axe finds, nothing in the console, nothing wider than the screen.

    Each page is opened once, and all of it is unfolded.
    """
    for name, path in pages.items():
        page.goto(f"{base}{path}", wait_until="load")
        assert page.locator("h1").count() == 1
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        for size, scheme in looks:
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=scheme)
            assert violations(page) == [], f"{name}, {scheme}"
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= size["width"], name


def test_each_page_opens_without_javascript(browser: Browser, addresses: dict[str, str]) -> None:
    """And the console stays empty."""
    options: Any = {"viewport": NARROW, "java_script_enabled": False, "color_scheme": "dark"}
    with opened(browser, **options) as page:
        for path in PAGES.values():
            page.goto(f"{addresses['/']}{path}", wait_until="load")
            assert page.locator("h1").count() == 1


def test_a_narrow_screen_shows_which_page_it_is(
    browser: Browser, addresses: dict[str, str]
) -> None:
    """Where not all names of pages fit; and what a batch is doing stands beside its id."""
    with opened(browser, viewport=NARROW) as page:
        page.goto(f"{addresses['/']}batches")
        expect(page.locator(".top [aria-current]")).to_be_in_viewport(ratio=1)
        expect(page.locator("tbody .pill").first).to_be_in_viewport(ratio=1)


def test_jobs_are_found_selected_and_cancelled(
    browser: Browser, addresses: dict[str, str], shop: Engine, jobs: BGJob
) -> None:
    with opened(browser, viewport=WIDE) as page:
        page.goto(f"{addresses['/admin/jobs']}jobs")
        expect(page.locator(".bulk button").first).to_be_disabled()
        page.keyboard.press("/")
        page.keyboard.type("queue:images")
        page.keyboard.press("Enter")
        expect(page.locator("tbody tr")).to_have_count(50)
        boxes = page.locator("tbody input")
        boxes.nth(1).click()
        boxes.nth(4).click(modifiers=["Shift"])
        expect(page.locator(".selected")).to_have_text("4 selected")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("h1")).to_have_text("Cancel 4 jobs?")
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("status")).to_have_text("Cancelled 4 jobs.")
        assert page.url.endswith("jobs?q=queue%3Aimages")


def test_single_actions_work_without_javascript(
    browser: Browser, addresses: dict[str, str], shop: Engine, jobs: BGJob
) -> None:
    """Edit dead and queued jobs, redrive, pause and resume a queue, enqueue, run a schedule."""
    with opened(browser, viewport=NARROW, java_script_enabled=False) as page:
        base = addresses["/admin/jobs"]
        page.goto(f"{base}job?id=order-9")
        page.get_by_text("Change the arg").click()
        page.get_by_label("JSON").fill('{"order_id": 900, "to": "x@y.example"}')
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_role("status")).to_have_text("The arg is changed.")
        expect(page.locator("pre").first).to_contain_text("900")
        page.get_by_role("link", name="Redrive").click()
        page.get_by_label("How many fall due in a second").fill("50")
        page.get_by_role("button", name="Redrive").click()
        expect(page.get_by_role("status")).to_have_text("Redrove 1 job.")
        expect(page.locator("h1")).to_contain_text("due")

        page.goto(f"{base}job?id=report/2026-11-30")
        page.get_by_text("Change this job").click()
        page.get_by_label("Priority").fill("-4")
        page.get_by_label("Runs at").fill("2030-01-02T03:04:05")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_role("status")).to_have_text("Changed priority, run_at.")
        expect(page.locator(".facts")).to_contain_text("-4")

        page.goto(f"{base}queues")
        card = page.locator(".cards > li", has_text="reports")
        card.get_by_text("Control").click()
        card.get_by_label("Why it is paused").fill("provider down")
        card.get_by_role("button", name="Pause").click()
        expect(card.locator(".note")).to_contain_text("provider down")
        card.get_by_role("button", name="Resume").click()
        expect(card.locator(".note")).to_have_count(0)

        page.goto(f"{base}handler?type=sync")
        page.get_by_label("Arg, as JSON").fill('{"shop": 1}')
        page.get_by_role("button", name="Enqueue").click()
        expect(page.get_by_role("status")).to_have_text("Enqueued.")
        page.goto(f"{base}schedules")
        row = page.locator("tr", has_text="tenant 7")
        row.get_by_role("button", name="Run now").click()
        expect(page.get_by_role("status")).to_have_text("Enqueued a job of tenant 7 digest.")


def test_an_open_page_follows_the_jobs(
    browser: Browser, addresses: dict[str, str], shop: Engine, jobs: BGJob
) -> None:
    """By events; and not while jobs are selected."""
    queue = "live"
    with opened(browser, viewport=WIDE) as page:
        with page.expect_response(lambda answer: answer.url.endswith("/events")) as events:
            page.goto(f"{addresses['/admin/jobs']}jobs?q=queue:{queue}")
        assert events.value.headers["content-type"].startswith("text/event-stream")
        expect(page.locator("#live")).to_have_text("Live")
        jobs.enqueue(shop, "sync", {"shop": 1}, queue=queue, id="live-1")
        expect(page.locator("tbody tr")).to_have_count(1)

        page.locator("tbody input").check()
        expect(page.locator("#live")).to_have_text("Waits")
        page.evaluate(HEAR)
        jobs.enqueue(shop, "sync", {"shop": 1}, queue=queue, id="live-2")
        page.evaluate("window.heard")
        assert page.locator("tbody tr").count() == 1
        page.locator("tbody input").uncheck()
        expect(page.locator("tbody tr")).to_have_count(2)

        page.locator("#live").click()
        expect(page.locator("#live")).to_have_text("Paused")


def test_a_page_polls_where_there_are_no_events(
    browser: Browser, shop: Engine, jobs: BGJob
) -> None:
    with (
        served(mounted("/jobs", jobs, shop, access="read", live=False)) as address,
        opened(browser, viewport=WIDE) as page,
    ):
        page.goto(f"{address}/jobs/jobs?q=queue:polled")
        jobs.enqueue(shop, "sync", {"shop": 1}, queue="polled", id="polled-1")
        expect(page.locator("tbody tr")).to_have_count(1)


def test_an_open_page_tells_what_it_can_not_follow(
    browser: Browser, shop: Engine, jobs: BGJob
) -> None:
    """A job that is gone is gone from the page; and a page that gets no answer does not seem so."""
    jobs.enqueue(shop, "sync", {"shop": 1}, queue="gone", id="gone-1", delay=3600)
    with (
        served(mounted("/jobs", jobs, shop, access="read", live=False)) as address,
        opened(browser, viewport=WIDE) as page,
    ):
        page.goto(f"{address}/jobs/job?id=gone-1")
        expect(page.locator("h1")).to_contain_text("scheduled")
        refused = page.content().replace("scheduled", "refused")
        answer: dict[str, Any] = {}
        for status, body in ((403, refused), (200, '<main id="main"><h1>Log in first</h1></main>')):
            answer.update(status=status, body=body, content_type="text/html")
            page.route("**/job?*", lambda route: route.fulfill(**answer))
            expect(page.locator("#live")).to_have_text("Not reached")
            expect(page.locator("h1")).to_contain_text("scheduled")
            page.unroute("**/job?*")
            expect(page.locator("#live")).to_have_text("Live")

        with shop.begin() as connection:
            job = jobs.models.job
            connection.execute(job.delete().where(job.c.id == "gone-1"))
        expect(page.locator("h1")).to_have_text("This can't be shown")


def test_the_script_of_screenshots_finds_its_pages() -> None:
    """Each picture of the guide is made of a page that the tests open too."""
    guide = Path(__file__).parents[2] / "docs" / "guides" / "dashboard.md"
    pictures = {path.stem for path in (guide.parent / "dashboard").glob("*.png")}
    text = guide.read_text()
    assert pictures
    assert all(f"dashboard/{name}.png" in text for name in pictures)
    assert {name.partition("_")[0] for name in pictures - {*PICTURES}} <= set(PAGES)
    sizes = [path.stat().st_size for path in (guide.parent / "dashboard").glob("*.png")]
    assert max(sizes) < 100_000
