"""The dashboard by itself: for one person, who has the token that was printed at its start."""

import hmac
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route

from .._sql import statements_of
from .access import Access
from .app import HEADERS, application
from .database import Database
from .redaction import SECRETS, Redaction
from .visit import Site

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ..bgjob import BGJob


class _KnownHosts:
    """Refuses requests for another host. Starlette's own, before 1.7, takes [::1] for "[".

    A page elsewhere could send a browser here by its own name.
    """

    def __init__(self, app: "ASGIApp", hosts: "Collection[str]") -> None:
        self._app, self._hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "http" and not self._knows(Headers(scope=scope).get("host", "")):
            refusal = Response("There is no such host here.\n", 400, HEADERS, "text/plain")
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _knows(self, host: str) -> bool:
        try:
            return "*" in self._hosts or urlsplit(f"//{host}").hostname in self._hosts
        except ValueError:  # brackets without an address in them
            return False


class Key:
    """A token that lets one browser in, once, and the cookie that this browser has from then on."""

    def __init__(self) -> None:
        self.token: str | None = secrets.token_urlsafe(24)
        self._cookie = secrets.token_urlsafe(32)
        # Browsers keep cookies by host, whatever the port: there may be another dashboard there.
        self.name = f"bgjob_key_{secrets.token_hex(4)}"

    def let_in(self, given: str) -> str | None:
        """The cookie for who has the token, which is used up by that; None for others."""
        if self.token is None or not hmac.compare_digest(self.token.encode(), given.encode()):
            return None
        self.token = None
        return self._cookie

    def is_known(self, request: Request) -> bool:
        """Whether this is the browser that was let in."""
        given = request.cookies.get(self.name, "")
        return hmac.compare_digest(self._cookie.encode(), given.encode())


def standalone(
    jobs: "BGJob[Any, Any]",
    engine: "Engine | AsyncEngine",
    key: Key | None,
    *,
    hosts: "Collection[str]",
    user: str | None = None,
    read_only: bool = False,
    environment: str | None = None,
    is_bare: bool = False,
) -> Starlette:
    """The dashboard for whoever has the key, or for all who can reach it.

    Args:
        jobs: The queue.
        engine: Its engine.
        key: The token and the cookie; None lets in everybody.
        hosts: By which names and addresses it may be asked for; ``*`` is any.
        user: Who is let in, as the audit names them.
        read_only: Whether it may only be read.
        environment: As for ``dashboard``.
        is_bare: Whether the application is not here.
    """
    site = Site(
        jobs=jobs,
        statements=statements_of(jobs.models),
        database=Database(engine),
        redaction=Redaction(SECRETS),
        environment=environment,
        live=True,
        is_bare=is_bare,
    )
    granted = Access(can=(), user=user) if read_only else Access(user=user)

    def enter(request: Request) -> Response:
        assert key is not None
        cookie = key.let_in(request.query_params.get("token", ""))
        if cookie is None and not key.is_known(request):
            words = "This token is not right, or was used before. Start the command again.\n"
            return Response(words, 403, HEADERS, "text/plain")
        response = RedirectResponse("/", 303, HEADERS)
        if cookie is not None:
            response.set_cookie(key.name, cookie, httponly=True, samesite="strict")
        return response

    def who(request: Request) -> Access | None:
        return granted if key is None or key.is_known(request) else None

    entrance = [] if key is None else [Route("/enter", enter)]
    return Starlette(
        routes=[*entrance, Mount("/", application(site, who))],
        middleware=[Middleware(_KnownHosts, hosts=hosts)],
    )
