"""The words of a search for jobs, parsed. Pure; what they mean in SQL is in :mod:`.search`.

``state:running queue:mail,images -type:report* arg.user.id:42 error:"timed out" since:1h``: all
terms must fit, a comma is "or", a minus in front is "not", and quotes hold spaces and commas.
"""

import re
from dataclasses import dataclass, replace
from typing import Final

from .._db.errors import did_you_mean

MAX_LENGTH: Final = 1_000
"""The most characters of a search."""
MAX_TERMS: Final = 20
MAX_VALUES: Final = 100
"""The most values of one term."""

STATES: Final = ("due", "scheduled", "running", "retrying", "cancelling", "waiting", "dead")
FIELDS: Final = {
    "state": f"one of {', '.join(STATES)}",
    "queue": "its queue; mail* is all that begin with mail",
    "type": "its type; report* is all that begin with report",
    "id": "its id; order-* is all that begin with order-",
    "key": "its unique key",
    "group": "its group",
    "batch": "the id of its batch",
    "priority": "its priority: 5, >5, >=5, <5 or <=5",
    "attempt": "how many attempts have begun: 3, or >3",
    "worker": "the id of the worker that runs it",
    "error": "words of its last error",
    "since": "enqueued, or dead, for at most so long: 90s, 15m, 1h, 7d",
    "arg": "a value in its arg: arg.user.id:42",
}
"""Each field, and what its values are."""
TEXT: Final = ("queue", "type", "id", "key", "group", "batch")
"""Fields whose values may end with ``*``."""
NUMBERS: Final = ("priority", "attempt")

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_NUMBER: Final = re.compile(r"(>=|<=|>|<|)(-?\d{1,9})")
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])")
_TOKEN: Final = re.compile(r'\s*(-?)(?:([A-Za-z][^\s:",]*):)?((?:"[^"]*"|[^\s"])*)')
_VALUE: Final = re.compile(r'((?:"[^"]*"|[^,"])*)(?:,|$)')


class SearchError(ValueError):
    """A search that has no meaning; the text says what to write instead."""


@dataclass(frozen=True, slots=True)
class Term:
    """One condition of a search.

    Attributes:
        field: One of :data:`FIELDS`; empty for a bare word, which is an id or a type.
        values: One of them must fit.
        negated: Whether none of them may.
        path: For ``arg``: the keys that lead to the value.
    """

    field: str
    values: tuple[str, ...]
    negated: bool = False
    path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Search:
    """A parsed search: all of its terms must fit. Without any it finds all jobs."""

    terms: tuple[Term, ...] = ()

    def only(self, field: str) -> tuple[str, ...] | None:
        """The values that a field must have one of, if some term says so without wildcards."""
        for term in self.terms:
            whole = not term.negated and not any(value.endswith("*") for value in term.values)
            if term.field == field and whole:
                return term.values
        return None

    @property
    def bare_word(self) -> str | None:
        """The word, if the search is nothing but one."""
        if len(self.terms) == 1:
            (term,) = self.terms
            if not term.field and not term.negated and len(term.values) == 1:
                return term.values[0]
        return None

    def without(self, field: str) -> "Search":
        """The same without the terms of a field."""
        return Search(tuple(term for term in self.terms if term.field != field))

    def hiding_args(self, word: str) -> "Search":
        """The same with a word in place of each value of an arg: to be told, and not to be used."""
        return Search(
            tuple(
                replace(term, values=(word,)) if term.field == "arg" else term
                for term in self.terms
            )
        )

    def __str__(self) -> str:
        return " ".join(_written(term) for term in self.terms)


def parse(text: str) -> Search:
    """Parse a search.

    Raises:
        SearchError: It is too long, or a term is none.
    """
    if len(text) > MAX_LENGTH:
        raise SearchError(f"a search has at most {MAX_LENGTH} characters")
    if not text.replace("\t", " ").isprintable() or text.count('"') % 2:
        odd = "a quotation mark has no partner" if text.count('"') % 2 else "it is not printable"
        raise SearchError(f"this is no search: {odd}")
    terms: list[Term] = []
    position = 0
    text = text.strip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None or found.end() == position:  # pragma: no cover - any text is a token
            raise SearchError(f"this is no term: {text[position:]!r}")
        position = found.end()
        terms.append(_term(*found.groups()))
        if len(terms) > MAX_TERMS:
            raise SearchError(f"a search has at most {MAX_TERMS} terms")
    return Search(tuple(terms))


def _term(minus: str, field: str | None, rest: str) -> Term:
    values = tuple(part.replace('"', "") for part in _VALUE.findall(rest) if part)
    name = (field or "").lower()
    path: tuple[str, ...] = ()
    if name.startswith("arg."):
        path = tuple((field or "").split(".")[1:])
        name = "arg"
    if name and name not in FIELDS:
        guess = did_you_mean(name, FIELDS) or f"fields are {', '.join(FIELDS)}"
        raise SearchError(
            f"there is no field {field!r}; {guess} A value with a colon stands in quotes."
        )
    if name == "arg" and not all(path or ("",)):
        raise SearchError("write where in the arg the value is: arg.user.id:42")
    if not any(values):
        raise SearchError(f"{field or minus}{':' if field else ''} needs a value")
    if len(values) > MAX_VALUES:
        raise SearchError(f"a term has at most {MAX_VALUES} values")
    for value in values:
        _check(name, value)
    if name == "state":
        values = tuple("due" if value == "queued" else value for value in values)
    return Term(name, values, bool(minus), path)


def _check(name: str, value: str) -> None:
    if name == "state" and value not in (*STATES, "queued"):
        guess = did_you_mean(value, STATES) or f"states are {', '.join(STATES)}"
        raise SearchError(f"there is no state {value!r}; {guess}")
    if name in NUMBERS and not _NUMBER.fullmatch(value):
        raise SearchError(f"{name}:{value} is no number; write {name}:5 or {name}:>5")
    if name == "worker" and not (value.isascii() and value.isdigit() and len(value) < 20):
        raise SearchError(f"worker:{value} is no id of a worker")
    if name == "since":
        if not _DURATION.fullmatch(value):
            raise SearchError(f"since:{value} is no duration; write 90s, 15m, 1h or 7d")
        if seconds(value) > 100 * 366 * 86_400.0:
            raise SearchError(f"since:{value} is more than 100 years")


def seconds(duration: str) -> float:
    """The seconds of a value of ``since``."""
    found = _DURATION.fullmatch(duration)
    assert found is not None
    return float(found[1]) * _UNITS[found[2]]


def comparison(value: str) -> tuple[str, int]:
    """The operator and the number of a value of ``priority`` or ``attempt``."""
    found = _NUMBER.fullmatch(value)
    assert found is not None
    return found[1] or "=", int(found[2])


def _written(term: Term) -> str:
    name = ".".join((term.field, *term.path)) if term.field else ""
    values = ",".join(
        f'"{value}"'
        if not value or re.search(r"[\s,:]", value) or (not name and value.startswith("-"))
        else value
        for value in term.values
    )
    return f"{'-' if term.negated else ''}{name}{':' if name else ''}{values}"
