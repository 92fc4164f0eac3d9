"""The words of the glossary: what its last column says not to call a thing is not written.

It reads the prose of all pages and of the command line's help, without code. Words that belong here
in another sense, as asyncio's task does, have a row below.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy_bgjob.cli import cli
from sqlalchemy_bgjob.testing.faults import main as faults

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
ROWS = re.findall(
    r"^\| (?!word |---)(.*?) \| (.*?) \| .*? \| (.*?) \|$", GLOSSARY.read_text(), re.MULTILINE
)
WORDS = {word for word, _, _ in ROWS}
INSTEAD = {
    re.sub(r" \(.*\)$", "", other): word for word, _, others in ROWS for other in others.split(", ")
}
"""By a word that is not to be used: the one to write instead."""

MANY_SENSES = {
    *("args", "check", "client", "event", "failure", "finish", "kill", "lock", "locked", "look"),
    *("process", "release", "signal", "thread", "try", "version"),
}
"""Words of SQL, of the operating system and of everyday, whose senses no program tells apart."""

BETRAYED_BY = {
    "data": r"\bjobs?('s)? data\b|\bdata of (a|the|each) job\b",
    "dead": r"\bdead workers?\b",
    "give back": r"\battempts? [^.|;]{0,25}\bg(iven?|ives|iving|ave) back\b",
    "message": r"\b(enqueue|claim|deliver)[a-z]* (a |the |each )?messages?\b|\bmessage queue\b",
    "status": r"\bjobs?('s)? status\b|\bstatus of (a|the|each) job\b",
    "stop gracefully": r"\bgraceful(ly)? (stop|shut)|\b(stop|shut)[a-z]* (down )?gracefully\b",
}
"""By a word of several senses: what stands around it where it has the wrong one."""

MEANT_BESIDE = {
    "backend": r"\bauthentication backend\b|\bbuild backend\b",
    "busy": r"\bbusy (worker|handler|machine|web)|\b(idle|workers|become).* busy\b",
    "callback": r"\btimers\b",
    "channel": r"\bwait|\bname|\bof (its|their) own\b",
    "clean": r"\bclean(ing|s|ed)? (up|tables|checkout|clone)\b|\bare stored, cleaned\b",
    "cursor": r"\bSQLAlchemy\b|\bdriver\b",
    "discard": r"\bplans\b",
    "fetch": r"\bby address\b|\bwhich is fetched\b",
    "guard": r"\block\b|\bguards what\b|\bwho takes it\b",
    "hook": r"\bsession|\bconnect|\bcommit|\bengine|\bpre-commit\b|\bgue\b",
    "kind": r"\bkinds? of\b|\b(both|one|other) kinds?\b",
    "manager": r"\bcontext manager\b|\bpackage manager\b",
    "monitor": r"\bmonitoring\b",
    "new job": r"\bnotif",
    "partition": r"\bpartitioned tables?\b",
    "primary": r"\bprimary key\b|\bfailover\b",
    "replay": r"\bstandby\b|\btakes over\b",
    "retries": r"^## Retries$",
    "scan": r"\bhead\b|\btable\b",
    "stale": r"\bsettlement\b",
    "task": r"\bcoroutine|\basyncio\b|\bevent loop\b|\bthread|\bslot|\bhandler's task\b",
    "token": r"\bAsyncEngine\b|\bpassword\b|\bid-token\b|\bAPI token"
    r"|\bdashboard\b|\bbrowser\b|\bforms\b",
    "top": r"\bat the top\b|\btop to bottom\b",
    "vacuum": r"\bhold|\bfrom removing\b|\bindex\b|\bautovacuum\b",
}
"""By a word: what stands in the same paragraph or row where it has a sense of its own."""


def test_nothing_is_called_by_the_wrong_word() -> None:
    """If this fails: write the glossary's word, or give the other sense a row above."""
    paragraphs = [*pages(), *help_texts()]
    wrong = [
        f"{where}: {found.group()!r} ({INSTEAD[word]}?) in: {text[:120]}"
        for where, text in paragraphs
        for word in INSTEAD
        if (found := misused(word, text))
    ]

    assert len(paragraphs) > 1_000
    assert wrong == []


def test_words_that_are_excused_are_in_the_glossary() -> None:
    excused = [*MANY_SENSES, *BETRAYED_BY, *MEANT_BESIDE]

    assert len(set(excused)) == len(excused)
    assert [word for word in excused if word not in INSTEAD] == []


def misused(word: str, text: str) -> re.Match[str] | None:
    """Where a paragraph has a word in the sense for which the glossary has another."""
    if word in BETRAYED_BY:
        return re.search(BETRAYED_BY[word], text, re.IGNORECASE)
    if word in MANY_SENSES or word in WORDS:
        return None
    found = re.search(any_form(word), text, re.IGNORECASE)
    beside = MEANT_BESIDE.get(word)
    if found and beside and re.search(beside, text, re.IGNORECASE):
        return None
    return found


def any_form(word: str) -> str:
    """A pattern of a word, its plural, and the forms that it has as a verb."""
    stem, ending = (word[:-1], word[-1]) if word[-1] in "ey" else (word, "")
    return rf"\b{stem}({ending}|{ending}s|s|es|ed|ies|ied|{ending}ing|ing)\b"


def pages() -> Iterator[tuple[str, str]]:
    """Each paragraph, item and row of each page, without code, addresses and names of files."""
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]):
        if page.name == "comparison.md" or page.name.startswith("from_"):
            continue  # they speak of other libraries in those libraries' words
        if page == GLOSSARY:
            yield from ((page.name, meaning) for _, meaning, _ in ROWS)
            continue
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        text = re.sub(r"`[^`]*`|\]\([^)]*\)|<[^>]*>|https?://\S+", " ", text)
        for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[*-]|\d+\.) |\|)", text):
            yield page.name, " ".join(paragraph.split())


def help_texts() -> Iterator[tuple[str, str]]:
    commands: dict[str, Any] = {**cli.commands, "": cli, "faults": faults}
    for name, group in cli.commands.items():
        inner = getattr(group, "commands", {})
        commands |= {f"{name} {command}": inner[command] for command in inner}
    for name, command in commands.items():
        for text in (command.help, *(getattr(it, "help", None) for it in command.params)):
            for paragraph in (text or "").split("\n\n"):
                yield f"{name} --help", " ".join(paragraph.split())
