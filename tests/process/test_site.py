"""The documentation as ``nox -s docs`` has built it: whole, and of this host alone."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import sqlalchemy_bgjob
from sqlalchemy_bgjob.cli import cli
from sqlalchemy_bgjob.settings import WorkerSettings

pytestmark = pytest.mark.docs

DOCS = Path(__file__).parents[2] / "docs"
SITE = Path(os.environ.get("BGJOB_SITE", DOCS.parent / "build" / "docs"))
NAME = sqlalchemy_bgjob.__name__
FETCHED = {"src", "srcset", "data", "poster"}
"""Attributes whose address a browser asks for by itself, and not only at a click."""


class Page(HTMLParser):
    """What a page links to, what it fetches, and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in FETCHED or (tag == "link" and name == "href"):
                self.fetched.add(value or "")
            elif tag == "a" and name == "href":
                self.links.add(value or "")


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    """Every page, by its path."""
    assert SITE.is_dir(), "nox -s docs builds the site, and then runs these tests"
    return {path: Page(path) for path in SITE.rglob("*.html")}


def test_every_page_of_the_docs_is_in_the_site(pages: dict[Path, Page]) -> None:
    written = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert {SITE / page for page in written} <= set(pages)


def test_no_page_asks_another_host(pages: dict[Path, Page]) -> None:
    """Neither for scripts, styles, fonts and images, nor from within a style."""
    fetched = {url for page in pages.values() for url in page.fetched}
    styles = [*SITE.rglob("*.css"), *pages]
    in_styles = {
        url
        for path in styles
        for url in re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")]+)", path.read_text("utf-8"))
    }

    assert len(fetched) > 10
    assert in_styles
    assert [url for url in fetched | in_styles if re.match(r"\s*(\w+:)?//", url)] == []


def test_links_within_the_site_lead_to_something(pages: dict[Path, Page]) -> None:
    """To a file, and to a place in it."""
    missing = [
        f"{page.path.relative_to(SITE)}: {link}"
        for page in pages.values()
        for link in page.links | page.fetched
        if not urlsplit(link).scheme and not leads_somewhere(page, link, pages)
    ]
    assert sum(len(page.links) for page in pages.values()) > 1_000
    assert missing == []


def leads_somewhere(page: Page, link: str, pages: dict[Path, Page]) -> bool:
    path, anchor = unquote(urlsplit(link).path), unquote(urlsplit(link).fragment)
    target = (page.path.parent / path).resolve() if path else page.path
    if target.is_dir():
        target /= "index.html"
    found = pages.get(target)
    return target.is_file() and (not anchor or found is None or anchor in found.anchors)


def test_the_reference_is_made_from_the_code(pages: dict[Path, Page]) -> None:
    """Each public name, command, flag and setting can be linked to."""
    anchors = {anchor for page in pages.values() for anchor in page.anchors}
    objects = {anchor.rpartition(".")[2] for anchor in anchors if anchor.startswith(f"{NAME}.")}
    flags = {
        f"cmdoption-sqlalchemy-bgjob-{command}-{option.lstrip('-')}"
        for command in cli.commands
        for parameter in cli.commands[command].params
        for option in parameter.opts
        if option.startswith("--")
    }
    settings, commands = (
        (SITE / "reference" / f"{page}.html").read_text("utf-8") for page in ("settings", "cli")
    )

    assert len(flags) > 40
    assert {*sqlalchemy_bgjob.__all__} - objects == {"__version__"}
    assert flags - anchors == set()
    assert "Sentinel" not in commands
    assert [name for name in WorkerSettings.__slots__ if name not in settings] == []


def test_llms_txt_names_every_page() -> None:
    """For programs that read: the pages with their titles, as text."""
    text = (SITE / "llms.txt").read_text("utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)

    assert text.startswith("# sqlalchemy-bgjob")
    assert [link for link in links if not (SITE / link.lstrip("/")).is_file()] == []
    written = {path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md")}
    assert [page for page in written if not any(str(page) in link for link in links)] == []
