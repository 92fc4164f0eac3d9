"""Pages in Chromium: opened, watched, and looked at by axe."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from axe_playwright_python.base import AXE_SCRIPT  # type: ignore[import-untyped]
from playwright.sync_api import expect, sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE, NARROW = {"width": 1_280, "height": 900}, {"width": 320, "height": 700}
# A list's twelfth row is made as its first one is.
_LOOK = """async () => {
  const found = await axe.run(
    { exclude: [["tbody tr:nth-child(n+12)"]] }, { resultTypes: ["violations"] });
  return found.violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.html)}`);
}"""
expect.set_options(timeout=30_000)


def chromium() -> str:
    """The browser's program: Debian's, or the one that BGJOB_TEST_CHROMIUM names."""
    named = os.environ.get("BGJOB_TEST_CHROMIUM")
    found = named or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        raise RuntimeError(
            "no Chromium was found; apt-get install chromium, or name it in BGJOB_TEST_CHROMIUM"
        )
    return found


@contextmanager
def running_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, **options: Any) -> Iterator[Page]:
    """A page whose console stays empty."""
    context = browser.new_context(**options)
    context.set_default_timeout(60_000)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    try:
        yield page
    finally:
        context.close()
    # The browser itself notes each page that is answered by an error.
    assert [
        words for words in said if "the server responded with a status of 40" not in words
    ] == []


def violations(page: Page) -> list[str]:
    """What axe finds on a page as it is shown now."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    found: list[str] = page.evaluate(_LOOK)
    return found
