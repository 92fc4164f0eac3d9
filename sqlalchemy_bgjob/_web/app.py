"""The dashboard as a Starlette application: routes, the gate before each, and what comes out."""

import functools
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from .._db.errors import database_message, sqlstate, summary
from .._inspect.reading import can_write
from .._sql import statements_of
from .._version import __version__
from ..bgjob import BGJob
from . import audit, batches, charts, one_job, operations, pages
from .access import (
    COOKIE,
    FIELD,
    Access,
    AccessOption,
    access_of,
    checked,
    forged,
    new_token,
    token_of,
)
from .actions import perform
from .database import Database, NotConnected
from .live import Live
from .mounting import Rooted
from .redaction import SECRETS, Redaction, pretty
from .twin import as_json
from .visit import Site, View, Visit, base_of, form_of
from .words import FILTERS

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

log = logging.getLogger("sqlalchemy_bgjob")

Page = Callable[[Visit], Awaitable[View | Response]]

STATIC: Final = Path(__file__).parent / "static"
TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
READ_ONLY_FOR: Final = 30.0
"""Seconds for which it is remembered whether the database can be written to."""

PAGES: Final[dict[str, tuple[str, Page]]] = {
    "": ("Overview", pages.overview),
    "jobs": ("Jobs", pages.live_jobs),
    "dead": ("Dead jobs", pages.dead_jobs),
    "history": ("History", one_job.history),
    "batches": ("Batches", batches.all_batches),
    "batch": ("Batch", batches.one_batch),
    "job": ("Job", one_job.one_job),
    "confirm": ("Confirm", pages.confirm),
    "queues": ("Queues", operations.all_queues_page),
    "workers": ("Workers", operations.all_workers),
    "schedules": ("Schedules", operations.all_schedules),
    "handlers": ("Handlers", operations.all_handlers),
    "handler": ("Handler", operations.one_handler),
    "audit": ("Audit", audit.audit),
    "system": ("System", operations.system),
}
"""Each page's title and function, by its path."""
NAVIGATION: Final = (
    *("", "jobs", "dead", "history", "batches"),
    *("queues", "workers", "schedules", "handlers", "audit", "system"),
)


def dashboard(
    jobs: BGJob[Any, Any],
    engine: "Engine | AsyncEngine",
    *,
    access: AccessOption = None,
    redact: Collection[str] = SECRETS,
    environment: str | None = None,
    live: bool = True,
) -> Starlette:
    """Make the dashboard, an ASGI application that you mount in yours.

    ``app.mount("/jobs", dashboard(jobs, engine, access=who))``

    It needs ``pip install "sqlalchemy-bgjob[web]"``. It takes at most 4 of the engine's
    connections. It reads in transactions that can change nothing, and commits each action by
    itself. It keeps answers that take the database long, for a minute at most, and sums of what
    workers have counted; and nothing else.

    Args:
        jobs: The application's BGJob.
        engine: Its Engine or AsyncEngine, on any driver.
        access: Who may do what. By default nobody gets in, and the page says what to write.
            ``"all"`` and ``"read"`` are for everybody who reaches it. A function of the Starlette
            request, or a coroutine, returns ``"all"``, ``"read"``, an :class:`Access`, or None for
            nobody. It is asked at each request.
        redact: Words. If a key of an arg or a header contains one of them, in any case, what stands
            under the key is hidden.
        environment: A name to show on each page, such as ``"production"``.
        live: False for servers on which a stream would hold a thread, as under WSGI: pages then
            poll.

    Raises:
        TypeError: An argument is of another type.
        ValueError: The engine's database is not PostgreSQL.
    """
    if not isinstance(jobs, BGJob):
        raise TypeError(
            f"dashboard() takes a BGJob, not {type(jobs).__name__}; write dashboard(jobs, engine)"
        )
    site = Site(
        jobs=jobs,
        statements=statements_of(jobs.models),
        database=Database(engine),
        redaction=Redaction(redact),
        environment=environment,
        live=live,
        is_bare=False,
    )
    return application(site, access)


def application(site: Site, access: AccessOption) -> Starlette:
    """The dashboard of a site."""
    return _Dashboard(site, checked(access)).app


@functools.cache
def _templates() -> Environment:
    """They are the same for each dashboard, and are compiled when they are first shown."""
    made = Environment(
        loader=PackageLoader("sqlalchemy_bgjob._web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(FILTERS, pretty=pretty)
    made.globals.update(stacked=charts.stacked, lines=charts.lines, share=charts.share)
    return made


class _Dashboard:
    def __init__(self, site: Site, access: AccessOption) -> None:
        self._site, self._access = site, access
        self._static = {path.name: path.read_bytes() for path in STATIC.iterdir()}
        digest = hashlib.sha256(b"".join(self._static[name] for name in sorted(self._static)))
        self._version = digest.hexdigest()[:12]
        self._live = Live(site.database, site.models)
        self._writable: tuple[float, bool] | None = None
        recorded = site.models.recording is not None
        names = [name for name in NAVIGATION if name != "audit" or recorded]
        self._navigation = [(name, PAGES[name][0]) for name in names]
        routes = [Route(f"/{path}", self._page(path)) for path in PAGES]
        routes += [
            Route("/do/{name}", self._act, methods=["POST"]),
            Route("/events", self._events),
            Route("/static/{name}", self._file),
        ]
        self.app = Starlette(
            routes=routes,
            middleware=[Middleware(Rooted)],
            exception_handlers={
                HTTPException: self._refused,
                SQLAlchemyError: self._failed,
                OSError: self._failed,  # no connection, or asyncpg's has gone
            },
        )
        # Such a redirect would name the Host that the client has sent.
        self.app.router.redirect_slashes = False

    # ---- endpoints --------------------------------------------------------------------------

    def _page(self, path: str) -> Callable[[Request], Awaitable[Response]]:
        _, function = PAGES[path]

        async def endpoint(request: Request) -> Response:
            visit = await self._visit(request)
            view = await function(visit)
            return view if isinstance(view, Response) else self._shown(visit, path, view)

        return endpoint

    async def _act(self, request: Request) -> Response:
        visit = await self._visit(request)
        visit.form = await form_of(request)
        why = forged(request, visit.asked(FIELD))
        if why is not None:
            raise HTTPException(403, f"Nothing was done: {why}.")
        name = str(request.path_params["name"])
        done = await perform(visit, name)
        if _wants_json(request):
            return _json({"done": done.words, **done.facts})
        response = RedirectResponse(visit.back(_as_url(done.to)), 303, headers=HEADERS)
        # For the next page alone; what a URL says anybody could have written.
        response.set_cookie("bgjob_done", _quoted(done.words), max_age=20, **_cookie(request))
        return response

    async def _events(self, request: Request) -> Response:
        await self._visit(request)
        if not self._site.live or self._live.is_full:
            return Response(status_code=204)  # the browser does not try again
        return StreamingResponse(
            self._live.events(),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def _file(self, request: Request) -> Response:
        """One of the few files that were read at the start: no path leads anywhere else."""
        name = str(request.path_params["name"])
        kind = TYPES.get(Path(name).suffix)
        if name not in self._static or kind is None:
            raise HTTPException(404, "There is no such file.")
        fixed = request.query_params.get("v") == self._version
        keep = "public, max-age=31536000, immutable" if fixed else "no-cache"
        headers = {**HEADERS, "Cache-Control": keep}
        return Response(self._static[name], headers=headers, media_type=kind)

    # ---- the gate ---------------------------------------------------------------------------

    async def _visit(self, request: Request) -> Visit:
        """Who asks, and what they may do; nobody else comes further than this.

        Raises:
            HTTPException: This visitor may not even read.
        """
        access = await access_of(self._access, request)
        if access is None:
            raise HTTPException(403, "closed" if self._access is None else "You may not see this.")
        if access.can and not await self._can_write():
            access = Access(can=(), user=access.user, args=access.args)
            request.state.read_only = True
        return Visit(self._site, request, access)

    async def _can_write(self) -> bool:
        now = time.monotonic()
        if self._writable is None or now - self._writable[0] > READ_ONLY_FOR:
            # Asked in a transaction that may write, as it asks what would be allowed there.
            self._writable = now, await self._site.database.act(can_write)
        return self._writable[1]

    # ---- what comes out ---------------------------------------------------------------------

    def _shown(self, visit: Visit, path: str, view: View) -> Response:
        request = visit.request
        if _wants_json(request):
            return _json(as_json(view.data), view.status)
        token = token_of(request)
        made = token or new_token()
        response = self._rendered(
            request,
            view.template,
            view.status,
            path=path,
            title=PAGES[path][0],
            visit=visit,
            access=visit.access,
            may=visit.may,
            first=visit.first(path),
            token=made,
            done=_unquoted(request.cookies.get("bgjob_done", "")),
            **view.data,
            **view.around,
        )
        if token is None:
            response.set_cookie(COOKIE, made, **_cookie(request))
        if "bgjob_done" in request.cookies:
            response.delete_cookie("bgjob_done", path=_cookie(request)["path"])
        return response

    def _rendered(
        self, request: Request, template: str, status: int = 200, **data: Any
    ) -> Response:
        text = (
            _templates()
            .get_template(template)
            .render(
                base=base_of(request),
                asset=self._version,
                navigation=self._navigation,
                environment=self._site.environment,
                release=__version__,
                live=self._site.live,
                read_only=getattr(request.state, "read_only", False),
                **data,
            )
        )
        headers = {**HEADERS, "Cache-Control": "no-store", "Vary": "Accept, Cookie"}
        return Response(text, status, headers, "text/html; charset=utf-8")

    async def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        closed = error.detail == "closed"
        words = "This dashboard is closed: nobody was given access." if closed else error.detail
        if _wants_json(request):
            return _json({"error": words}, error.status_code)
        return self._rendered(
            request, "error.html", error.status_code, words=words, closed=closed, path=None
        )

    async def _failed(self, request: Request, error: Exception) -> Response:
        """The database has refused: in its own words, without the statement and its values."""
        code = sqlstate(error) or ""
        if not isinstance(error, DBAPIError | OSError):
            raise error
        status, words = 503, "The database can't be reached."
        if code == "57014":
            status, words = 503, "This took too long, and was given up. Search for less."
        elif code == "42501":
            status, words = 403, f"The dashboard's database role may not: {database_message(error)}"
        elif code == "25006":
            status, words = 403, "The database is read-only."
        elif code in ("22P02", "22021", "22P05"):
            status = 400
            words = (
                "An arg among these jobs is not JSON, so args can't be searched: narrow it down."
            )
        elif code == "42P01":
            recorded = self._site.models.recording is not None
            migrate = f"sqlalchemy-bgjob migrate{' --records' if recorded else ''}"
            status, words = 503, f"Some tables are missing: run `{migrate}`."
        elif isinstance(error, DBAPIError) and code:
            # Not its own words, which may hold values of rows.
            status, words = 500, f"The database refuses: {summary(error)}"
        if status >= 500:
            cause = (isinstance(error, NotConnected) and error.__cause__) or error
            log.warning("the dashboard: %s (%s)", words, sqlstate(cause) or type(cause).__name__)
        if _wants_json(request):
            return _json({"error": words}, status)
        return self._rendered(request, "error.html", status, words=words, closed=False, path=None)


def _wants_json(request: Request) -> bool:
    """Whether the client asks for JSON, as a browser never does."""
    accept = request.headers.get("accept", "")
    return "application/json" in accept and "text/html" not in accept


def _json(data: Any, status: int = 200) -> Response:
    headers = {**HEADERS, "Cache-Control": "no-store", "Vary": "Accept, Cookie"}
    return Response(json.dumps(data), status, headers, "application/json")


def _cookie(request: Request) -> dict[str, Any]:
    return {
        "path": base_of(request) or "/",
        "httponly": True,
        "samesite": "strict",
        "secure": request.url.scheme == "https",
    }


def _as_url(to: str) -> str:
    """Where an action leads, such as ``job?id=a&b``, with the id as a URL has it."""
    page, has_id, id = to.partition("?id=")
    return f"{page}{has_id}{quote(id, safe='')}"


def _quoted(words: str) -> str:
    """For a cookie, which holds ASCII."""
    return json.dumps(words[:300]).encode("ascii").hex()


def _unquoted(cookie: str) -> str:
    """What such a cookie says; nothing, if it was not written here."""
    try:
        words = json.loads(bytes.fromhex(cookie[:4_000]))
    except (ValueError, RecursionError):
        return ""
    if not isinstance(words, str):
        return ""
    return words[:300].encode(errors="replace").decode()  # no page can hold half a character
