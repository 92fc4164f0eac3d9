"""What the docs name exists."""

from __future__ import annotations

import re
import shlex
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from sqlalchemy_bgjob.cli import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))


@pytest.mark.parametrize("page", ["reliability.md", "state_machine.md"])
def test_the_tests_that_a_page_names_exist(page: str) -> None:
    """Each by folder, file and name."""
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (DOCS / page).read_text())

    assert len(named) > 40
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not re.search(rf"^(async )?def {name}\(", (TESTS / file).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_links_lead_to_files_and_headings() -> None:
    """In the README and in every other page."""
    found = [
        (page, *link.partition("#")[::2])
        for page in PAGES
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text())
        if "://" not in link
    ]

    assert any(heading for _, _, heading in found)
    for page, file, heading in found:
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name}: {file}"
        assert not heading or heading in headings(target), f"{page.name}: {file}#{heading}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_and_tables_stand_apart(page: Path) -> None:
    """Not every Markdown lets them end a paragraph."""
    prose = re.sub(r"^```.*?^```", "```", page.read_text(), flags=re.DOTALL | re.MULTILINE)

    assert re.findall(r"^(?!```|[|#])[^\n]+\n((?:#+ |\|)[^\n]*)", prose, re.MULTILINE) == []


@pytest.mark.parametrize(
    ("page", "folder"),
    [
        ("litestar.md", "litestar_shop"),
        ("scripts.md", "nightly_import"),
        ("tenants.md", "tenants"),
    ],
)
def test_code_of_a_guide_is_that_of_its_example(page: str, folder: str) -> None:
    """Each block names its file and stands in it as it is, so the example's test runs it."""
    text = (DOCS / page).read_text()
    blocks = re.findall(r"^```python\n# (\S+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)

    assert len(blocks) == text.count("```python\n") > 2
    files = {name: (ROOT / "examples" / folder / name).read_text() for name, _ in blocks}
    assert [code for name, code in blocks if code not in files[name]] == []


def headings(page: Path) -> set[str]:
    """What links can name, as GitHub makes it of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_commands_of_the_docs_exist() -> None:
    """Each command and flag is known to the command line."""
    shown = [
        line.removeprefix("$ ")
        for page in PAGES
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
        for line in block.replace("\\\n", "").splitlines()
        if line.startswith("$ ")
    ]
    commands = [words for line in shown for words in commands_of(line)]
    faults = ["python", "-m", "sqlalchemy_bgjob.testing.faults", "--kill-after", "handler"]
    ours = [
        words[len(before) :]
        for words in commands
        for before in (["sqlalchemy-bgjob"], faults)
        if words[: len(before)] == before
    ]

    assert len(ours) >= 10
    assert any(words[: len(faults)] == faults for words in commands)
    for name, *words in ours:
        command = cli.commands[name]
        if isinstance(command, click.Group):
            command = command.commands[words[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def commands_of(line: str) -> Iterator[list[str]]:
    """The words of each command of a line, which are joined by ``&&``, ``|`` or ``>``."""
    words = shlex.shlex(line, posix=True, punctuation_chars="&|>")
    words.whitespace_split = True
    for joins, command in groupby(words, key=lambda word: set(word) <= set("&|>")):
        if not joins:
            yield list(command)


def test_sessions_of_the_docs_exist() -> None:
    """Each ``nox -s name`` is a session of noxfile.py."""
    noxfile = ROOT / "noxfile.py"
    told = [*PAGES, ROOT / ".ci" / "run", *WORKFLOWS]
    named = {
        name
        for page in told
        if page.exists()
        for line in re.findall(r"nox (?:-R )?-s \"?(\w+(?: \w+)*)", page.read_text())
        for name in line.split()
    }

    assert len(named) >= 8
    if noxfile.exists():  # a source distribution has none
        sessions = set(re.findall(r"^@nox\..*\ndef (\w+)\(", noxfile.read_text(), re.MULTILINE))
        assert named <= sessions
