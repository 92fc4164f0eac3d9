"""One request to the dashboard: who asks, for what, and what of it may be believed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

from sqlalchemy import Connection
from starlette.exceptions import HTTPException
from starlette.requests import Request

from .._inspect.counts import Window
from .._inspect.paging import Position
from .._sql import Statements
from .._sql.search_terms import Search, SearchError, parse
from ..bgjob import BGJob
from ..models import Models
from .access import Access, Permission
from .database import Database
from .kept import Kept
from .redaction import Redaction
from .words import iso

T = TypeVar("T")

LARGEST_FORM: Final = 3 * 1024 * 1024
"""Bytes of a form: an arg of 1 MiB, with its characters escaped."""
MOST_FIELDS: Final = 500
LONGEST_VALUE: Final = 2_000
"""Characters of what a URL says; no id, name or search is longer."""


@dataclass(frozen=True)
class Site:
    """What all pages of one dashboard share."""

    jobs: BGJob[Any, Any]
    statements: Statements
    database: Database
    redaction: Redaction
    environment: str | None
    live: bool
    is_bare: bool
    """Whether there is no application: types are not known, and rows may have more columns."""
    answers: dict[str, Kept[Any]] = field(default_factory=dict)
    """What is shown again for some seconds, by the name of the question."""
    counted: dict[str, Window] = field(default_factory=dict)
    """What workers have counted, by the name of its range."""

    def kept(self, name: str, seconds: float) -> Kept[Any]:
        """The answer to a question that is the same for all visitors."""
        return self.answers.setdefault(name, Kept(seconds))

    @property
    def types(self) -> list[str]:
        """The types that have a handler, in order."""
        return sorted(handler.type for handler in self.jobs.registry if handler.type != "*")

    @property
    def models(self) -> Models:
        """The tables."""
        return self.jobs.models

    @property
    def where(self) -> tuple[str | None, str]:
        """Schema and prefix, as reads that are text take them."""
        return self.models.schema, self.models.table_prefix


@dataclass
class Visit:
    """A request whose visitor may read.

    Attributes:
        site: The dashboard.
        request: What was asked.
        access: What the visitor may do.
        form: The fields of a form that was sent.
    """

    site: Site
    request: Request
    access: Access
    form: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """What stands before each path of the dashboard, without a slash at its end.

        It is never from a header that a visitor can set.
        """
        return base_of(self.request)

    def may(self, permission: Permission) -> bool:
        """Whether the visitor has a permission."""
        return permission in self.access.can

    def demand(self, permission: Permission) -> None:
        """Refuse a visitor without a permission."""
        if not self.may(permission):
            raise HTTPException(403, f"You may not do this: it needs the permission {permission}.")

    def asked(self, name: str) -> str:
        """A value of the form, or else of the URL; empty if there is none."""
        values = self.all_asked(name)
        return values[0] if values else ""

    def all_asked(self, name: str) -> list[str]:
        """All values of a name."""
        if self.request.method == "POST":
            values = self.form.get(name, [])
        else:
            values = self.request.query_params.getlist(name)
            if len(values) > MOST_FIELDS or any(len(value) > LONGEST_VALUE for value in values):
                raise HTTPException(400, f"{name} is too long")
        if any("\x00" in value for value in values):
            raise HTTPException(400, f"{name} has a character that no text in PostgreSQL can have")
        return values

    def search(self) -> tuple[str, Search, str | None]:
        """What is searched for: as it was written, parsed, and why it is no search if so."""
        text = self.asked("q").strip()
        try:
            search = parse(text)
            self._refuse_secrets(search)
        except SearchError as error:
            return text, Search(), str(error)
        return text, search, None

    def _refuse_secrets(self, search: Search) -> None:
        for term in search.terms:
            if term.field == "arg" and not self.access.args:
                raise SearchError("you may not see args, nor search in them")
            if any(self.site.redaction.hides(key) for key in term.path):
                raise SearchError(f"arg.{'.'.join(term.path)} is hidden, so it can't be searched")

    def position(self) -> Position | None:
        """Where the page before stopped."""
        time, _, id = self.asked("after").partition(" ")
        if not time:
            return None
        refusal = HTTPException(400, "after is no position of a page")
        try:
            moment = datetime.fromisoformat(time)
            if moment.tzinfo is None or not id:
                raise refusal
            return Position(moment.astimezone(UTC), id)
        except (ValueError, OverflowError):  # text, or a moment before the year 1
            raise refusal from None

    def following(self, path: str, position: Position | None, **query: Any) -> str | None:
        """Where the next page is, which begins behind a position; None behind the last page."""
        if position is None:
            return None
        return self.url(path, **query, after=f"{iso(position.time)} {position.id}")

    def first(self, path: str) -> str | None:
        """Where the first page of this list is; None if this is it."""
        query = self.request.query_params
        if "after" not in query:
            return None
        return self.url(path, **{name: value for name, value in query.items() if name != "after"})

    def url(self, path: str, **query: Any) -> str:
        """The path of a page here, with its query."""
        given = {name: value for name, value in query.items() if value not in (None, "")}
        return f"{self.base}/{path}{'?' if given else ''}{urlencode(given, doseq=True)}"

    def back(self, default: str) -> str:
        """Where to go after an action: a path of this dashboard, whatever the form says."""
        given = self.asked("back") or default
        path = given.lstrip("/\\")
        if len(path) > LONGEST_VALUE or not path.isprintable():
            path = default
        return f"{self.base}/{quote(path, safe='/?&=%+:,;@!~*().-_')}"

    async def read(self, work: Callable[[Connection], T]) -> T:
        """See :meth:`.database.Database.read`."""
        return await self.site.database.read(work)

    async def act(self, work: Callable[[Connection], T]) -> T:
        """See :meth:`.database.Database.act`."""
        return await self.site.database.act(work)


@dataclass
class View:
    """What a page shows.

    Attributes:
        template: How it is drawn.
        data: What it tells, which is also its JSON twin.
        status: That of the answer.
        around: What only the drawn page has, such as its tabs.
    """

    template: str
    data: dict[str, Any]
    status: int = 200
    around: dict[str, Any] = field(default_factory=dict)


def base_of(request: Request) -> str:
    """Where the dashboard is mounted, as a path."""
    root = str(request.scope.get("root_path", "")).strip("/")
    return f"/{quote(root)}" if root else ""


async def form_of(request: Request) -> dict[str, list[str]]:
    """The fields of a form that was sent, read up to a size."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "send a form: application/x-www-form-urlencoded")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_FORM:
            raise HTTPException(413, f"a form has at most {LARGEST_FORM} bytes")
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            encoding="utf-8",
            errors="strict",
            max_num_fields=MOST_FIELDS,
        )
    except ValueError:
        raise HTTPException(400, "this is no form, or has too many fields") from None
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields
